//! What a recovery proves, what it says of what it cannot do, and the report that it leaves.

use std::{fs, io::Read, path::Path};

use crate::support::{
    mysql::Server,
    node::{Node, path_text},
    shipped::objects,
    story::Story,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// InnoDB's pages; the fourth and those that follow hold the rows.
const PAGE_BYTES: usize = 16 * 1024;

fn report(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The only object whose path ends so.
fn object(node: &Node, end: &str) -> std::path::PathBuf {
    let mut found = objects(&node.archive_dir);
    found.retain(|path| path_text(path).contains("/snapshots/") && path_text(path).ends_with(end));
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// Damages pages of one table in the snapshot, as a disk would that wrote them wrong before the snapshot was taken: the
/// object is whole, and its record says so.
fn damage_table_in_snapshot(node: &Node, file: &str) {
    let (data, record) = (object(node, ".tar.zst"), object(node, ".json"));
    let plain = zstd::decode_all(&fs::read(&data).unwrap()[..]).unwrap();
    let mut packed = tar::Builder::new(Vec::new());
    let mut damaged = false;
    for entry in tar::Archive::new(&plain[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let (mut header, path) = (entry.header().clone(), entry.path().unwrap().into_owned());
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if path == Path::new(file) {
            for page in bytes.chunks_exact_mut(PAGE_BYTES).skip(4) {
                page[PAGE_BYTES / 2..PAGE_BYTES / 2 + 64].fill(0x5a);
            }
            damaged = true;
        }
        packed.append_data(&mut header, &path, &bytes[..]).unwrap();
    }
    assert!(damaged, "{file} is not in the snapshot");
    let stored = zstd::encode_all(&packed.into_inner().unwrap()[..], 1).unwrap();
    fs::write(&data, &stored).unwrap();
    let mut json: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    json["stored_sha256"] = format!("{:x}", Sha256::digest(&stored)).into();
    json["stored_bytes"] = stored.len().into();
    fs::write(&record, serde_json::to_vec(&json).unwrap()).unwrap();
}

const TABLES: [&str; 5] = [
    "CREATE DATABASE d",
    "CREATE TABLE d.sound (id INT PRIMARY KEY AUTO_INCREMENT, v VARCHAR(2000))",
    "CREATE TABLE d.damaged LIKE d.sound",
    "INSERT INTO d.sound (v) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) \
     SELECT REPEAT('x', 1000) FROM n",
    "INSERT INTO d.damaged SELECT * FROM d.sound",
];

/// i7: a table that is not sound is not handed over, and is named; what was proven of sound ones is in the report.
#[tokio::test]
async fn i7_every_table_is_checked_and_a_damaged_one_is_named() {
    let mut server = Server::start(&[]).await;
    server.execute(&TABLES).await;
    // Pages that are written from the redo log anew cannot be damaged in the table's file.
    server.restart().await;
    let story = Story::begin_on(server, "").await;
    let moment = story.moment().await;
    let Story { node, agent, server } = story;
    node.wait_shipped(&server).await;
    agent.stop().await;
    server.stop_for_good().await;

    let (target, file) = (node.target("sound"), node.target("report.json"));
    let options = [
        "recover",
        "--latest",
        "--verify",
        "tables",
        "--report",
        path_text(&file),
        "--target-dir",
    ];
    let printed = node.json(&[&options[..], &[path_text(&target)]].concat()).await;
    let report_of_success = report(&file);
    assert_eq!(report_of_success["outcome"], "recovered");
    assert_eq!(report_of_success["recovered"], printed);
    let tables = printed["tables"].as_array().unwrap();
    for (name, (_, rows, checksum)) in &moment.truth {
        let found = tables.iter().find(|t| t["name"] == name.replace('`', "")).unwrap();
        assert_eq!(
            (found["rows"].as_u64(), found["checksum"].as_u64()),
            (Some(*rows), Some(*checksum)),
            "{name}"
        );
    }
    assert!(printed["rpo_ms"].as_u64().is_some());
    let text = fs::read_to_string(&file).unwrap();
    assert!(!text.contains(crate::support::mysql::PASSWORD), "{text}");

    // What it measured is kept for the next plan, which says so; here, something slower than anybody would assume.
    let rates = node.state_path().with_file_name("recovery-rates.json");
    let mut kept = report(&rates);
    kept["replay"] = serde_json::json!({"measured_at": "2026-11-20T03:14:07Z", "transactions_per_s": 1, "bytes_per_s": 1 << 20});
    fs::write(&rates, kept.to_string()).unwrap();
    let plan = node.json(&["recover", "--latest", "--dry-run"]).await;
    let basis = plan["estimate"]["basis"].as_str().unwrap();
    assert!(
        basis.contains("(as this machine's recovery of 2026-11-20T03:14:07Z did)"),
        "{basis}"
    );
    assert!(
        plan["estimate"]["seconds"].as_u64() > plan["replay_gtids_max"].as_u64(),
        "{plan}"
    );

    damage_table_in_snapshot(&node, "d/damaged.ibd");
    let target = node.target("damaged");
    let said = node.fails(&[&options[..], &[path_text(&target)]].concat()).await;
    println!("{said}");
    assert!(said.contains("d.damaged") && !said.contains("d.sound"), "{said}");
    assert!(!target.join("mysql.ibd").exists());
    let report = report(&file);
    assert_eq!(report["outcome"], "failed");
    assert!(report["failure"]["error"].as_str().unwrap().contains("d.damaged"));
    assert!(report["plan"]["snapshot"].is_string());
    assert!(report["recovered"].is_null());
}

/// i7: what cannot be applied is named by its GTID, its binlog, its object and its position, and nothing after it is skipped to.
#[tokio::test]
async fn i7_a_transaction_that_cannot_be_applied_is_named() {
    let story = Story::begin(&[], "CREATE TABLE story.lost (id INT PRIMARY KEY)").await;
    // A table that the archive knows nothing of, as somebody makes one who bypasses the binlog.
    story
        .run("SET sql_log_bin = 0; CREATE TABLE story.unlogged (id INT PRIMARY KEY)")
        .await;
    story.moment().await;
    let failing = story.moment_by("INSERT INTO story.unlogged VALUES (1)").await;
    story.run("FLUSH LOCAL BINARY LOGS").await;
    story.moment().await;
    let Story { node, agent, server } = story;
    node.wait_shipped(&server).await;
    node.wait_sealed(1).await;
    agent.stop().await;
    let found = node.json(&["search", "--table", "story.unlogged"]).await;
    let position = found[0]["position"].as_u64().unwrap();
    let (target, file) = (node.target("target"), node.target("report.json"));
    let said = node
        .fails(&[
            "recover",
            "--latest",
            "--target-dir",
            path_text(&target),
            "--report",
            path_text(&file),
        ])
        .await;
    println!("{said}");
    let error = said.lines().find(|l| l.starts_with("error: ")).unwrap();
    assert!(
        error.contains(&format!("could not apply transaction {}", failing.gtid)),
        "{error}"
    );
    assert!(error.contains(&format!("at {position}, in object file://")), "{error}");
    assert!(
        error.contains("binlog.000001") && error.contains("story.unlogged") && !error.contains("pitr-0"),
        "{error}"
    );
    assert_eq!(report(&file)["outcome"], "failed");
    assert!(!target.join("mysql.ibd").exists());
    // The moment before it can still be had, once what was begun is thrown away.
    let arguments = ["--target-gtid", &failing.gtid, "--exclusive", "--restart"];
    let (recovered, _) = node.recover("target", &arguments).await;
    assert_eq!(
        recovered.gtid_executed().await.count() + 1,
        failing.gtids.count(),
        "all before it"
    );
}

/// What a server does to events that it is told of by replication: nobody can tell at the replica whether they ran.
#[tokio::test]
async fn events_that_ran_and_events_that_did_not_come_back_alike_and_are_reported() {
    let story = Story::begin(
        &[],
        "SET GLOBAL event_scheduler = OFF; CREATE EVENT story.before_it ON SCHEDULE EVERY 1 YEAR DO SET @a = 1",
    )
    .await;
    story
        .run(
            "CREATE EVENT story.ran ON SCHEDULE EVERY 1 YEAR ENABLE DO SET @a = 1; \
             CREATE EVENT story.did_not ON SCHEDULE EVERY 1 YEAR DISABLE DO SET @a = 1",
        )
        .await;
    let moment = story.moment().await;
    let (recovered, report) = story.recover(&moment, &["--latest"]).await;
    assert_eq!(
        report["events_disabled"],
        serde_json::json!(["`story`.`did_not`", "`story`.`ran`"])
    );
    let statuses: Vec<(String, String, u64)> = recovered
        .root()
        .await
        .rows("SELECT event_name, status, originator = 1 FROM information_schema.events ORDER BY 1")
        .await
        .unwrap();
    println!("{statuses:?}");
    let disabled = |name: &str| (name.to_owned(), "REPLICA_SIDE_DISABLED".to_owned(), 1);
    assert_eq!(statuses[0], ("before_it".to_owned(), "ENABLED".to_owned(), 1));
    assert_eq!(statuses[1..], [disabled("did_not"), disabled("ran")]);
    story.end().await;
}

/// A report that could not be written after hours is found out before anything is begun.
#[tokio::test]
async fn a_report_that_cannot_be_written_is_refused_at_once() {
    let server = Server::start(&[]).await;
    let node = Node::new(&server, "");
    let target = node.target("target");
    let nowhere = node.target("no/such/folder/report.json");
    let said = node
        .fails(&[
            "recover",
            "--latest",
            "--target-dir",
            path_text(&target),
            "--report",
            path_text(&nowhere),
        ])
        .await;
    assert!(said.contains("error: cannot write the report"), "{said}");
    assert!(!target.exists());
}
