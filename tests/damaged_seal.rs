//! A sealed object that only reading tells to be damaged, for its size is right: the binlog's segments, which are whole, take its place,
//! wherever the damage lies and whoever meets it. Nothing that is wrong is replayed.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{LazyLock, OnceLock},
    thread,
};

use mysql_pitr::binlog::{
    event::kind,
    splitter::{SplitError, Splitter, WHOLE_EVENT_BYTES_MAX},
};

use crate::support::{
    mysql::Server,
    node::{Node, path_text},
    shipped,
    truth::{Truth, truth},
};

const CHECKED: &str = "binlog.000002";
const UNCHECKED: &str = "binlog.000003";
const LIVE: &str = "binlog.000004";
const INSERT: &str = "INSERT INTO d.t (v) VALUES (RANDOM_BYTES(1000))";

/// One archive for all tests, not compressed, so that a byte can be changed where it is wanted: the snapshot's transactions in
/// `binlog.000001`; [`CHECKED`] with one of five rows, a row above 1 MiB, and a small one; [`UNCHECKED`], whose events have no checksums;
/// and segments of [`LIVE`]. No server and no agent run any more.
static ARCHIVED: LazyLock<Node> = LazyLock::new(|| {
    let make = || tokio::runtime::Runtime::new().unwrap().block_on(archived());
    // Nobody drops a static: what the last run left is removed by this one.
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR")).join("damaged_seal");
    let _ = fs::remove_dir_all(&parent);
    fs::create_dir_all(&parent).unwrap();
    thread::spawn(make).join().unwrap().copy_into(&parent)
});
/// What its server held.
static HELD: OnceLock<Truth> = OnceLock::new();

async fn archived() -> Node {
    let server = Server::start(&[]).await;
    let table = "CREATE TABLE d.t (id INT PRIMARY KEY AUTO_INCREMENT, v LONGBLOB)";
    server.execute(&["CREATE DATABASE d", table, INSERT]).await;
    let node = Node::new(&server, "[ship]\nflush_interval = \"50ms\"\ncodec = \"none\"\n");
    let agent = node.agent();
    node.wait_snapshots(1).await;
    server.execute(&["FLUSH LOCAL BINARY LOGS"]).await;
    let five_rows = ["START TRANSACTION", INSERT, INSERT, INSERT, INSERT, INSERT, "COMMIT"];
    server.execute(&five_rows).await;
    server
        .execute(&["INSERT INTO d.t (v) VALUES (REPEAT('x', 3 << 20))", INSERT])
        .await;
    node.wait_shipped(&server).await;
    // Which begins a new binlog.
    server.execute(&["SET GLOBAL binlog_checksum = NONE", INSERT, INSERT]).await;
    node.wait_shipped(&server).await;
    server.execute(&["SET GLOBAL binlog_checksum = CRC32", INSERT]).await;
    node.wait_shipped(&server).await;
    node.wait_sealed(3).await;
    HELD.set(truth(&mut server.root().await).await).unwrap();
    agent.stop().await;
    server.stop_for_good().await;
    for binlog in [CHECKED, UNCHECKED, LIVE] {
        assert!(!segments(&node, binlog).is_empty(), "{binlog}");
    }
    node
}

fn sealed(node: &Node, binlog: &str) -> PathBuf {
    let mut found = shipped::objects(&node.archive_dir);
    found.retain(|path| path_text(path).ends_with(&format!("_{binlog}")));
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// With the opening.
fn segments(node: &Node, binlog: &str) -> Vec<PathBuf> {
    let mut found = shipped::objects(&node.archive_dir);
    found.retain(|path| path_text(path).contains(&format!("_{binlog}/")));
    found
}

/// Kind, start and end of each event.
fn events(binlog: &[u8]) -> Vec<(u8, usize, usize)> {
    let mut events = Vec::new();
    let split = Splitter::new().push(binlog, |piece| {
        if piece.is_first() {
            events.push((piece.header.kind, piece.start as usize, piece.end() as usize));
        }
        Ok::<(), SplitError>(())
    });
    split.unwrap();
    events
}

/// Changes one byte of a sealed object: the one that `choose` finds in its events.
fn damage(node: &Node, binlog: &str, choose: impl FnOnce(&[(u8, usize, usize)]) -> usize) {
    let path = sealed(node, binlog);
    let mut bytes = fs::read(&path).unwrap();
    let at = choose(&events(&bytes));
    bytes[at] ^= 0x55;
    fs::write(path, bytes).unwrap();
}

fn middle(event: &(u8, usize, usize)) -> usize {
    event.1.midpoint(event.2)
}

/// In the middle of a row that is inserted: the `index`th event of that kind.
fn row(events: &[(u8, usize, usize)], index: usize) -> usize {
    let mut rows = events.iter().filter(|(event, ..)| *event == kind::WRITE_ROWS);
    middle(rows.nth(index).unwrap())
}

/// Recovers everything, and compares it with what the server held. Returns the warning.
async fn comes_back(node: &Node) -> String {
    let (recovered, report) = node.recover("target", &["--latest"]).await;
    assert!(Some(&truth(&mut recovered.root().await).await) == HELD.get());
    let warnings: Vec<&str> = report["warnings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|w| w.as_str().unwrap())
        .collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains(" is read from its segments instead"), "{warnings:?}");
    warnings[0].to_owned()
}

/// The object is named, and what its segments cannot give is no more than what was sent of it.
async fn a_replay_goes_on_with_segments(choose: impl FnOnce(&[(u8, usize, usize)]) -> usize) {
    let node = ARCHIVED.copy();
    damage(&node, CHECKED, choose);
    let warning = comes_back(&node).await;
    assert!(warning.contains(path_text(&sealed(&node, CHECKED))), "{warning}");
}

#[tokio::test]
async fn i6_damage_at_the_start_is_replaced() {
    a_replay_goes_on_with_segments(|_| 0).await;
}

/// The replica was sent a part of it.
#[tokio::test]
async fn i6_damage_within_a_transaction_is_replaced() {
    a_replay_goes_on_with_segments(|events| row(events, 3)).await;
}

/// The replica was sent a part of an event.
#[tokio::test]
async fn i6_damage_within_a_large_event_is_replaced() {
    let large = |events: &[(u8, usize, usize)]| {
        let large = events.iter().find(|(_, start, end)| end - start > WHOLE_EVENT_BYTES_MAX);
        middle(large.unwrap())
    };
    a_replay_goes_on_with_segments(large).await;
}

#[tokio::test]
async fn i6_damage_at_the_end_is_replaced() {
    a_replay_goes_on_with_segments(|events| events.last().unwrap().2 - 1).await;
}

/// Only the hash of the whole object tells: until then nothing of it is sent.
#[tokio::test]
async fn i6_damage_without_checksums_is_replaced() {
    let node = ARCHIVED.copy();
    damage(&node, UNCHECKED, |events| row(events, 0));
    let warning = comes_back(&node).await;
    assert!(warning.contains("is not what its manifest says"), "{warning}");
}

/// Nor does the same command, given again, take what it was sent for what it should have been sent.
#[tokio::test]
async fn i6_damage_without_checksums_and_segments_is_never_recovered() {
    let node = ARCHIVED.copy();
    damage(&node, UNCHECKED, |events| row(events, 1));
    segments(&node, UNCHECKED)
        .into_iter()
        .for_each(|path| fs::remove_file(path).unwrap());
    let target = node.target("target");
    for _ in 0..2 {
        let said = node.fails(&["recover", "--latest", "--target-dir", path_text(&target)]).await;
        assert!(said.contains("is not what its manifest says"), "{said}");
        assert!(said.contains(path_text(&sealed(&node, UNCHECKED))), "{said}");
        assert!(!target.join("mysql.ibd").exists());
    }
}

/// Planning reads the binlog in which the stop lies, and the last one.
#[tokio::test]
async fn a_plan_and_a_list_go_on_with_segments() {
    let node = ARCHIVED.copy();
    damage(&node, CHECKED, |events| row(events, 3));
    let archived = node.archived_gtids().await.unwrap().to_string();
    let server = archived.split(':').next().unwrap();
    let last_of_it = format!("{server}:6");
    let plan = node.json(&["recover", "--dry-run", "--target-gtid", &last_of_it]).await;
    assert_eq!(plan["target_gtids"], format!("{server}:1-6"));
    assert_eq!(plan["binlogs"][0]["sealed"], false, "{plan}");
    let warning = plan["warnings"][0].as_str().unwrap();
    assert!(warning.contains("is read from its segments instead"), "{warning}");

    // The one that ends the history: its manifest says that its segments hold all of it.
    let node = ARCHIVED.copy();
    segments(&node, LIVE)
        .into_iter()
        .for_each(|path| fs::remove_file(path).unwrap());
    let whole = node.json(&["list"]).await;
    damage(&node, UNCHECKED, |events| row(events, 0));
    let plan = node.json(&["recover", "--dry-run", "--latest"]).await;
    assert_eq!(plan["target_gtids"], format!("{server}:1-8"));
    let listed = node.json(&["list"]).await;
    assert_eq!(listed["window"], whole["window"]);
    assert!(listed["window"]["until"].is_string() && whole["faults"].as_array().unwrap().is_empty());
    let fault = listed["faults"][0].as_str().unwrap();
    assert!(fault.contains("is read from its segments instead"), "{fault}");

    // Without them there is one error, as ever.
    segments(&node, UNCHECKED)
        .into_iter()
        .for_each(|path| fs::remove_file(path).unwrap());
    let said = node.fails(&["recover", "--dry-run", "--latest"]).await;
    assert!(said.contains("is not what its manifest says"), "{said}");
    assert!(said.contains(path_text(&sealed(&node, UNCHECKED))), "{said}");
}
