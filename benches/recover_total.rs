//! From the command to a folder that a server starts on, with data and binlogs of a usual size.

use mysql_pitr::mysql::query::Session;
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    PATIENCE, Scale, fill,
    origin::Origin,
    report::{Better, Row},
    support::mysql::Server,
};

const DATA_BYTES: u64 = 5_000_000_000;
const BINLOG_BYTES: u64 = 1_000_000_000;
/// Several, with `max_binlog_size` such as people choose it.
const BINLOGS: &str = "--max-binlog-size=256M";
const TABLES: u64 = 4;
const ROWS_PER_INSERT: u64 = 8_000;
/// Half of what a row holds compresses away.
const ROW_BYTES: u64 = 1_000;
const RANDOM_BYTES: u64 = ROW_BYTES / 2;

pub async fn run(scale: Scale) -> Row {
    let rows = scale.bytes(DATA_BYTES) / ROW_BYTES;
    let change = async |server: &Server| fill::fill(server, scale.bytes(BINLOG_BYTES)).await;
    let origin = Origin::make(&[BINLOGS], async |server: &Server| write_data(server, rows).await, change).await;
    let recovery = origin.recover().await;
    let seconds = recovery.took.as_secs_f64();
    Row::against("recover_total", (seconds, "s"), ("no peer", seconds), Better::Lower)
        .aim("published with its phases", true)
        .details(json!({
            "data_bytes": rows * ROW_BYTES, "binlog_bytes": origin.binlog_bytes(), "binlogs": origin.binlogs.len(),
            "transactions": origin.transactions(), "rows": fill::DESCRIPTION, "phases": recovery.report["phases"],
            "cpu_s": recovery.used.cpu_s, "servers_cpu_s": recovery.used.children_cpu_s,
            "peak_rss_mib": recovery.used.peak_bytes >> 20,
        }))
}

/// Not logged: only the snapshot has it.
async fn write_data(server: &Server, rows: u64) {
    server.execute(&["CREATE DATABASE old"]).await;
    let mut writers = JoinSet::new();
    for table in 0..TABLES {
        let session = server.root().await;
        writers.spawn(write_table(session, table, rows / TABLES));
    }
    writers.join_all().await;
}

async fn write_table(mut session: Session, table: u64, rows: u64) {
    let create = format!("CREATE TABLE old.t{table} (id BIGINT PRIMARY KEY AUTO_INCREMENT, v VARBINARY({ROW_BYTES}) NOT NULL)");
    let settings = format!("SET SESSION sql_log_bin = 0, cte_max_recursion_depth = {ROWS_PER_INSERT}");
    for sql in [create, settings] {
        session.execute(&sql).await.expect("a table");
    }
    let insert = format!(
        "INSERT INTO old.t{table} (v) WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {ROWS_PER_INSERT}) \
         SELECT REPEAT(RANDOM_BYTES({RANDOM_BYTES}), 2) FROM n"
    );
    for _ in 0..rows / ROWS_PER_INSERT {
        session.execute_within(&insert, PATIENCE).await.expect("rows");
    }
}
