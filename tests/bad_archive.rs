//! Damage in the archive, and targets that it cannot reach: each ends in one clear error that names the object, and leaves
//! nothing that starts.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
    thread,
};

use crate::support::{
    golden::assert_error,
    mysql::{Server, mysqld},
    node::{Node, SHARD, path_text},
    shipped,
};

const INSERT: &str = "INSERT INTO d.t (v) VALUES (REPEAT(RANDOM_BYTES(1000), 20))";
const LATEST: &str = "--latest";

/// One archive for all tests: `binlog.000001` with the snapshot's transactions 1 to 3 and 4 and 5, `binlog.000002` with 6 and 7,
/// and segments of `binlog.000003` with 8, 9 and 10 in segments of their own. No server and no agent run any more.
static ARCHIVED: LazyLock<Node> = LazyLock::new(|| {
    let make = || tokio::runtime::Runtime::new().unwrap().block_on(archived());
    // Nobody drops a static: what the last run left is removed by this one.
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bad_archive");
    let _ = fs::remove_dir_all(&parent);
    fs::create_dir_all(&parent).unwrap();
    thread::spawn(make).join().unwrap().copy_into(&parent)
});

async fn archived() -> Node {
    let server = Server::start(&[]).await;
    server
        .execute(&[
            "CREATE DATABASE d",
            "CREATE TABLE d.t (id INT PRIMARY KEY AUTO_INCREMENT, v LONGBLOB)",
            INSERT,
        ])
        .await;
    let node = Node::new(&server, "[ship]\nflush_interval = \"50ms\"\n");
    let agent = node.agent();
    node.wait_snapshots(1).await;
    server
        .execute(&[
            INSERT,
            INSERT,
            "FLUSH LOCAL BINARY LOGS",
            INSERT,
            INSERT,
            "FLUSH LOCAL BINARY LOGS",
        ])
        .await;
    for _ in 0..3 {
        server.execute(&[INSERT]).await;
        node.wait_shipped(&server).await;
    }
    node.wait_sealed(2).await;
    agent.stop().await;
    server.stop_for_good().await;
    assert!(segments(&node, "binlog.000003").len() >= 3);
    node
}

/// The only object below the archive whose path satisfies `is_it`.
fn object(node: &Node, is_it: impl Fn(&str) -> bool) -> PathBuf {
    let mut found = shipped::objects(&node.archive_dir);
    found.retain(|path| is_it(path_text(path)));
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn sealed(node: &Node, binlog: &str) -> PathBuf {
    object(node, |path| path.ends_with(&format!("_{binlog}.zst")))
}

fn manifest(node: &Node, binlog: &str) -> PathBuf {
    object(node, |path| path.ends_with(&format!("_{binlog}.zst.json")))
}

fn opening(node: &Node, binlog: &str) -> PathBuf {
    object(node, |path| path.ends_with(&format!("_{binlog}/open.json")))
}

fn segments(node: &Node, binlog: &str) -> Vec<PathBuf> {
    let mut found = shipped::objects(&node.archive_dir);
    found.retain(|path| path_text(path).contains(&format!("_{binlog}/")) && !path.ends_with("open.json"));
    found.sort();
    found
}

fn snapshot_record(node: &Node) -> PathBuf {
    object(node, |path| path.contains("/snapshots/") && path.ends_with(".json"))
}

fn snapshot_data(node: &Node) -> PathBuf {
    object(node, |path| path.contains("/snapshots/") && path.ends_with(".tar.zst"))
}

fn timeline(node: &Node) -> PathBuf {
    object(node, |path| path.contains("/timelines/"))
}

/// Something that is not there is named in the error by its absence alone.
fn remove(path: PathBuf) {
    fs::remove_file(path).unwrap();
}

/// Other bytes in the middle.
fn corrupt(path: PathBuf) {
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4].iter_mut().for_each(|b| *b ^= 0xff);
    fs::write(path, bytes).unwrap();
}

fn truncate(path: PathBuf) {
    let bytes = fs::read(&path).unwrap();
    fs::write(path, &bytes[..bytes.len() * 2 / 3]).unwrap();
}

/// Recovers from a damaged copy of the archive: it fails, says `case`'s text, and leaves a target that does not start.
async fn recovery_fails(case: &str, damage: impl FnOnce(&Node), arguments: &[&str]) {
    let node = ARCHIVED.copy();
    damage(&node);
    let target = node.target("target");
    let said = node
        .fails(&[&["recover", "--target-dir", path_text(&target)], arguments].concat())
        .await;
    assert_error(case, &said, &names(&node, &target));
    let left: Vec<_> = fs::read_dir(&target)
        .into_iter()
        .flatten()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(left.is_empty() || left == [".mysql-pitr-recovery"], "{case}: {left:?}");
}

fn names<'a>(node: &'a Node, target: &'a Path) -> Vec<(&'a str, &'static str)> {
    vec![
        (path_text(target), "TARGET"),
        (path_text(&node.archive_dir), "/ARCHIVE"),
        (path_text(node.dir.path()), "/NODE"),
    ]
}

/// What is needed and damaged is named, at the plan or at its first byte.
#[tokio::test]
async fn i6_damaged_binlogs_are_named() {
    recovery_fails(
        "segment: corrupted",
        |n| corrupt(segments(n, "binlog.000003").remove(1)),
        &[LATEST],
    )
    .await;
    recovery_fails(
        "segment: truncated",
        |n| truncate(segments(n, "binlog.000003").remove(1)),
        &[LATEST],
    )
    .await;
    let corrupted = |n: &Node| {
        without_segments(n, "binlog.000002");
        corrupt(sealed(n, "binlog.000002"));
    };
    recovery_fails("sealed binlog: corrupted", corrupted, &[LATEST]).await;
    let truncated = |n: &Node| {
        without_segments(n, "binlog.000002");
        truncate(sealed(n, "binlog.000002"));
    };
    recovery_fails("sealed binlog: truncated", truncated, &[LATEST]).await;
    let missing = |n: &Node| {
        without_segments(n, "binlog.000002");
        remove(sealed(n, "binlog.000002"));
    };
    recovery_fails("sealed binlog: missing", missing, &[LATEST]).await;
}

fn without_segments(node: &Node, binlog: &str) {
    remove(opening(node, binlog));
    segments(node, binlog).into_iter().for_each(remove);
}

/// A binlog of which the sealed form is at fault is read from its segments where they are still there, and the plan says so.
#[tokio::test]
async fn segments_stand_in_for_what_was_sealed() {
    let damages: [fn(&Node); 3] = [
        |n| remove(sealed(n, "binlog.000002")),
        |n| truncate(sealed(n, "binlog.000002")),
        |n| truncate(manifest(n, "binlog.000002")),
    ];
    for damage in damages {
        let node = ARCHIVED.copy();
        let whole = node.archived_gtids().await.unwrap().to_string();
        damage(&node);
        let plan = node.json(&["recover", "--dry-run", LATEST]).await;
        assert_eq!(plan["target_gtids"], whole);
        let warning = plan["warnings"][0].as_str().unwrap();
        assert!(warning.contains("is read from its segments instead"), "{warning}");
    }
}

/// i8: less than everything is never recovered silently.
#[tokio::test]
async fn i8_missing_binlogs_are_named() {
    recovery_fails(
        "segment: missing",
        |n| remove(segments(n, "binlog.000003").remove(1)),
        &[LATEST],
    )
    .await;
    recovery_fails(
        "segment: the first is missing",
        |n| remove(segments(n, "binlog.000003").remove(0)),
        &[LATEST],
    )
    .await;
    recovery_fails("opening: missing", |n| remove(opening(n, "binlog.000003")), &[LATEST]).await;
    let all_of_the_second = |n: &Node| {
        remove(sealed(n, "binlog.000002"));
        remove(manifest(n, "binlog.000002"));
        remove(opening(n, "binlog.000002"));
        segments(n, "binlog.000002").into_iter().for_each(remove);
    };
    recovery_fails("binlog: missing", all_of_the_second, &[LATEST]).await;
    let a_hole = |n: &Node| remove(segments(n, "binlog.000003").remove(1));
    let time = ["--target-time", "2999-01-01T00:00:00Z"];
    recovery_fails("segment: missing, and a time behind it", a_hole, &time).await;

    // What does not need it is not kept from it; and without its manifest a binlog's segments still are its bytes.
    let node = ARCHIVED.copy();
    remove(segments(&node, "binlog.000003").remove(1));
    node.ok(&["recover", "--dry-run", "--target-gtid", &gtid(5).await]).await;
    remove(manifest(&node, "binlog.000002"));
    node.ok(&["recover", "--dry-run", "--target-gtid", &gtid(7).await]).await;
}

#[tokio::test]
async fn damaged_records_are_named() {
    let unreadable = |n: &Node| {
        without_segments(n, "binlog.000002");
        truncate(manifest(n, "binlog.000002"));
    };
    recovery_fails("manifest: corrupted", unreadable, &[LATEST]).await;
    recovery_fails("opening: corrupted", |n| corrupt(opening(n, "binlog.000003")), &[LATEST]).await;
    recovery_fails("timeline: corrupted", |n| truncate(timeline(n)), &[LATEST]).await;
    recovery_fails("timeline: missing", |n| remove(timeline(n)), &[LATEST]).await;
    recovery_fails("snapshot record: corrupted", |n| truncate(snapshot_record(n)), &[LATEST]).await;
    recovery_fails("snapshot record: missing", |n| remove(snapshot_record(n)), &[LATEST]).await;
    let newer = |n: &Node| {
        let text = fs::read_to_string(manifest(n, "binlog.000002")).unwrap();
        assert!(text.contains("\"format\": 1"));
        fs::write(manifest(n, "binlog.000002"), text.replace("\"format\": 1", "\"format\": 99")).unwrap();
    };
    recovery_fails("manifest: of a newer version", newer, &[LATEST]).await;
    let emptied = |n: &Node| fs::remove_dir_all(n.archive_dir.join(SHARD)).unwrap();
    recovery_fails("archive: empty", emptied, &[LATEST]).await;
}

#[tokio::test]
async fn damaged_snapshots_are_named() {
    recovery_fails("snapshot data: corrupted", |n| corrupt(snapshot_data(n)), &[LATEST]).await;
    recovery_fails("snapshot data: truncated", |n| truncate(snapshot_data(n)), &[LATEST]).await;
    recovery_fails("snapshot data: missing", |n| remove(snapshot_data(n)), &[LATEST]).await;
    let of_another_shard = |n: &Node| {
        let text = fs::read_to_string(snapshot_record(n)).unwrap();
        fs::write(
            snapshot_record(n),
            text.replace("test-shard/snapshots", "other-shard/snapshots"),
        )
        .unwrap();
    };
    recovery_fails("snapshot record: of another shard", of_another_shard, &[LATEST]).await;
    // A copy of a record is no second snapshot of that id: its key is the id.
    let node = ARCHIVED.copy();
    let copy = snapshot_record(&node).with_file_name("20200101T000000.000000Z-00000000.json");
    fs::copy(snapshot_record(&node), copy).unwrap();
    let plan = node.json(&["recover", "--dry-run", LATEST]).await;
    assert!(
        plan["warnings"][0]
            .as_str()
            .unwrap()
            .contains("holds what belongs under another key")
    );
}

/// Transaction `gno` of the archive's server.
async fn gtid(gno: u32) -> String {
    let archived = ARCHIVED.archived_gtids().await.unwrap().to_string();
    format!("{}:{gno}", archived.split(':').next().unwrap())
}

#[tokio::test]
async fn targets_out_of_reach_are_refused() {
    let undamaged = |_: &Node| {};
    let first = gtid(1).await;
    recovery_fails("target: before the first snapshot", undamaged, &["--target-gtid", &first]).await;
    let early = ["--target-time", "2000-01-01T00:00:00Z"];
    recovery_fails("target: a time before the first transaction", undamaged, &early).await;
    let late = ["--target-time", "2999-01-01T00:00:00Z"];
    recovery_fails("target: a time after the last transaction", undamaged, &late).await;
    let unknown = ["--target-gtid", "00000000-1111-2222-3333-444444444444:5"];
    recovery_fails("target: an unknown transaction", undamaged, &unknown).await;
    recovery_fails("target: an unknown timeline", undamaged, &[LATEST, "--timeline", "7"]).await;
}

/// The target folder's own content is never touched.
#[tokio::test]
async fn an_occupied_target_is_refused_and_untouched() {
    let node = ARCHIVED.copy();
    let target = node.target("target");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("ibdata1"), "precious").unwrap();
    let said = node.fails(&["recover", LATEST, "--target-dir", path_text(&target)]).await;
    assert_error("target folder: not empty", &said, &names(&node, &target));
    assert_eq!(fs::read_to_string(target.join("ibdata1")).unwrap(), "precious");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 1);

    let nowhere = node.target("no/such/parent");
    let said = node.fails(&["recover", LATEST, "--target-dir", path_text(&nowhere)]).await;
    assert_error("target folder: no parent", &said, &names(&node, &nowhere));
}

/// A server that cannot read what the archive's servers wrote is refused before anything is done.
#[tokio::test]
async fn an_older_mysqld_is_refused() {
    let node = ARCHIVED.copy();
    let (old, target) = (node.target("old-mysqld"), node.target("target"));
    fs::write(
        &old,
        "#!/bin/sh\necho \"/usr/sbin/mysqld  Ver 8.0.36 for Linux on x86_64 (MySQL Community Server - GPL)\"\n",
    )
    .unwrap();
    fs::set_permissions(&old, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    node.reconfigure(path_text(&mysqld()), path_text(&old));
    let version = archived_version().await;
    let mut names = names(&node, &target);
    names.push((&version, "VERSION"));
    for (case, program) in [("mysqld: older than the archive", Some(&old)), ("mysqld: not there", None)] {
        if program.is_none() {
            fs::remove_file(&old).unwrap();
        }
        let said = node.fails(&["recover", LATEST, "--target-dir", path_text(&target)]).await;
        assert_error(case, &said, &names);
        assert!(!target.exists());
    }
}

async fn archived_version() -> String {
    let snapshots = ARCHIVED.archive().snapshots().await.unwrap();
    snapshots[0].server_version.clone()
}

/// A recovery that was killed is not taken for another one, and only given up if asked to.
#[tokio::test]
async fn another_recovery_in_the_target_is_refused_until_it_is_thrown_away() {
    let mut node = ARCHIVED.copy();
    // A process that is killed leaves its folder for sockets behind: here it goes with the test's.
    node.environment.push(("TMPDIR".into(), path_text(node.dir.path()).into()));
    let target = node.target("target");
    let command = ["recover", LATEST, "--target-dir", path_text(&target)];
    let mut first = node.command(&command).kill_on_drop(true).spawn().unwrap();
    let journal = target.join(".mysql-pitr-recovery/recovery.json");
    crate::support::eventually("the snapshot is unpacked", async || {
        fs::read_to_string(&journal).is_ok_and(|text| text.contains("\"unpacked\""))
    })
    .await;
    let said = node.fails(&command).await;
    assert_error("target folder: at work", &said, &names(&node, &target));
    first.kill().await.unwrap();
    assert!(!target.join("mysql.ibd").exists());

    let uuid = archived_uuid().await;
    let other = [
        "recover",
        "--target-gtid",
        &format!("{uuid}:7"),
        "--target-dir",
        path_text(&target),
    ];
    let said = node.fails(&other).await;
    let snapshot = archived_snapshot().await;
    let names = [names(&node, &target), vec![(&snapshot, "SNAPSHOT"), (&uuid, "UUID")]].concat();
    assert_error("target folder: another recovery", &said, &names);
    node.ok(&[&other[..], &["--restart"]].concat()).await;
    let recovered = Server::start_on(&target, &["--server-id=2"]).await;
    assert_eq!(recovered.gtid_executed().await.to_string(), format!("{uuid}:1-7"));
}

async fn archived_uuid() -> String {
    ARCHIVED.archive().timelines().await.unwrap()[0].server_uuid.to_string()
}

async fn archived_snapshot() -> String {
    ARCHIVED.archive().snapshots().await.unwrap()[0].id.clone()
}
