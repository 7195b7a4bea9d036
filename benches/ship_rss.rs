//! The most memory that an agent holds: over a backlog, and while transactions and events of unusual size come through the live
//! stream and are sealed.

use serde_json::json;
use tempfile::TempDir;

use crate::{
    Scale,
    backlog::Backlog,
    fill,
    machine::{self, MIB},
    peer,
    report::{Better, Row},
    support::{mysql::Server, node::Node},
};

const AIM_MIB: f64 = 96.0;
const OPTIONS: [&str; 5] = [
    "--sync-binlog=0",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-redo-log-capacity=1G",
    "--innodb-buffer-pool-size=1G",
    "--max-binlog-cache-size=4G",
];
/// A row of the small ones: eight bytes of number, and 64 digits that compress to half.
const SMALL_ROW_BYTES: u64 = 75;
/// What a GROUP_CONCAT may take from one row of numbers: 32 bytes that do not compress.
const BLOCK_BYTES: u64 = 32;
const NUMBERS: &str = "SET SESSION cte_max_recursion_depth = 1000000000, group_concat_max_len = 1073741824";

/// One transaction of unusual size.
struct Case {
    name: &'static str,
    what: &'static str,
    bytes: u64,
    statements: fn(u64) -> Vec<String>,
}

const CASES: [Case; 3] = [
    Case {
        name: "ship_rss_transaction",
        what: "one transaction of small rows",
        bytes: 300 << 20,
        statements: small_rows,
    },
    Case {
        name: "ship_rss_compressed",
        what: "one compressed transaction, its size that of its payload event",
        bytes: 60 << 20,
        statements: compressed,
    },
    Case {
        name: "ship_rss_event",
        what: "one event",
        bytes: 124 << 20,
        statements: large_event,
    },
];

/// Of a backlog, which is shipped once.
pub async fn backlog(backlog: &Backlog) -> Row {
    let (shipped, copied) = (backlog.ship("zstd").await, backlog.copy_by_peer().await);
    row(
        "ship_rss_backlog",
        (shipped.used.peak_bytes, copied.used.peak_bytes),
        json!({"what": "a backlog", "bytes": backlog.bytes(), "binlogs": backlog.files(), "rows": fill::DESCRIPTION}),
    )
}

/// Of the case of this name.
pub async fn case(name: &str, scale: Scale) -> Row {
    let case = CASES
        .iter()
        .find(|c| c.name == name)
        .unwrap_or_else(|| panic!("there is no case `{name}`"));
    let server = Server::start(&OPTIONS).await;
    let node = Node::new(&server, "");
    let agent = node.agent();
    node.wait_snapshots(1).await;
    server
        .execute(&[
            "CREATE DATABASE d",
            "CREATE TABLE d.small (id BIGINT PRIMARY KEY, v CHAR(64) CHARACTER SET ascii NOT NULL)",
            "CREATE TABLE d.large (id BIGINT PRIMARY KEY AUTO_INCREMENT, v LONGBLOB NOT NULL)",
            "FLUSH BINARY LOGS",
        ])
        .await;
    node.wait_sealed(1).await;
    let mut session = server.root().await;
    for sql in (case.statements)(scale.bytes(case.bytes)) {
        session.execute_within(&sql, crate::PATIENCE).await.expect("the transaction");
    }
    session.execute("FLUSH BINARY LOGS").await.expect("a rotation");
    node.wait_shipped(&server).await;
    node.wait_sealed(2).await;
    let used = machine::usage(agent.pid()).expect("the agent runs");
    agent.assert_quiet();
    agent.stop().await;
    let binlogs = session.binary_logs().await.expect("the server's binlogs");
    let [.., large, _] = &binlogs[..] else {
        panic!("the server has {} binlogs", binlogs.len())
    };
    let folder = TempDir::new().expect("a temporary folder");
    let (_, copied) = machine::run(&mut peer::copy(&server, folder.path(), std::slice::from_ref(&large.name))).await;
    let details = json!({"what": case.what, "binlog_bytes": large.bytes, "cpu_s": used.cpu_s});
    row(case.name, (used.peak_bytes, copied.peak_bytes), details)
}

fn row(name: &str, (own_bytes, peer_bytes): (u64, u64), details: serde_json::Value) -> Row {
    let (own, peer_mib) = (own_bytes as f64 / MIB, peer_bytes as f64 / MIB);
    Row::against(name, (own, "MiB"), (peer::COPY, peer_mib), Better::Lower)
        .aim(format!("at most {AIM_MIB} MiB"), own <= AIM_MIB)
        .details(details)
}

fn insert_small(rows: u64) -> String {
    format!(
        "INSERT INTO d.small WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {rows}) SELECT n, SHA2(n, 256) FROM n"
    )
}

fn small_rows(bytes: u64) -> Vec<String> {
    vec![NUMBERS.into(), insert_small(bytes / SMALL_ROW_BYTES)]
}

/// The digits compress to half and a little.
fn compressed(bytes: u64) -> Vec<String> {
    let setting = "SET SESSION binlog_transaction_compression = ON".to_owned();
    vec![NUMBERS.into(), setting, insert_small(bytes * 2 / SMALL_ROW_BYTES)]
}

fn large_event(bytes: u64) -> Vec<String> {
    let blocks = bytes / BLOCK_BYTES;
    let insert = format!(
        "INSERT INTO d.large (v) WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {blocks}) \
         SELECT GROUP_CONCAT(UNHEX(SHA2(n, 256)) SEPARATOR '') FROM n"
    );
    vec![NUMBERS.into(), insert]
}
