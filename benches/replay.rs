//! How fast `recover` replays, beside `mysqlbinlog | mysql` and beside a replica of a live source, from the same snapshot's state.

use std::time::Duration;

use mysql_pitr::mysql::query::Session;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    Scale, load,
    machine::{MB, MIB},
    origin::{Origin, Recovery},
    peer,
    report::{Better, Row, Sample},
    support::mysql::Server,
};

const REPETITIONS: usize = 3;
/// The pipe takes minutes, and hardly varies.
const PIPE_REPETITIONS: usize = 1;
const SMALL_TRANSACTIONS: u64 = 40_000;
/// Several of them, as where a server has run for a while.
const SMALL_BINLOGS: &str = "--max-binlog-size=32M";
const AIM_TIMES_DEFAULT: f64 = 18.0;
const AIM_TIMES_EQUAL: f64 = 6.0;
const AIM_TIMES_NATIVE: f64 = 0.95;
const AIM_RSS_MIB: f64 = 128.0;

/// Below MySQL's largest binlog, so that it stays one.
const LARGE_BYTES: u64 = 1_000_000_000;
const LARGE_WRITERS: u64 = 4;
const ROWS_PER_TRANSACTION: u64 = 16;
/// What RANDOM_BYTES gives at most; repeated, so that a binlog compresses as it usually does.
const RANDOM_BYTES: u64 = 1024;
const REPEATED: u64 = 4;
const BLOCKS_PER_ROW: u64 = 16;
const ROW_BYTES: u64 = RANDOM_BYTES * REPEATED * BLOCKS_PER_ROW;

/// Small transactions after a small snapshot.
pub async fn small(scale: Scale) -> Origin {
    let transactions = scale.count(SMALL_TRANSACTIONS);
    Origin::make(&[SMALL_BINLOGS], load::prepare, async |server: &Server| {
        load::write(server, transactions).await;
    })
    .await
}

/// Against statements, with the durability of a server as it comes, and with that of the replay.
pub async fn against_pipe(origin: &mut Origin) -> Vec<Row> {
    let (mut own, mut default, mut equal) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..PIPE_REPETITIONS {
        own.push(origin.recover().await);
        default.push(peer::pipe(origin, &peer::DEFAULT_SETTINGS).await);
        own.push(origin.recover().await);
        equal.push(peer::pipe(origin, &peer::RECOVER_SETTINGS).await);
        own.push(origin.recover().await);
    }
    let row = |name, peer_times: &[Duration], settings: Value, aim_times: f64| {
        let (value, peer_value) = (rate(origin, &replay_s(&own)), rate(origin, &seconds(peer_times)));
        let row = Row::against(
            name,
            (value.median, "transactions/s"),
            (peer::PIPE, peer_value.median),
            Better::Higher,
        );
        let aim_met = row.ratio >= aim_times;
        row.aim(format!("{aim_times} x the peer"), aim_met).details(json!({
            "load": load::writing(), "transactions": origin.transactions(), "binlog_bytes": origin.binlog_bytes(),
            "binlogs": origin.binlogs.len(), "own": details(&own), "peer_s": seconds(peer_times), "peer_settings": settings,
        }))
    };
    vec![
        row(
            "replay_vs_mysqlbinlog",
            &default,
            json!(peer::DEFAULT_SETTINGS),
            AIM_TIMES_DEFAULT,
        ),
        row(
            "replay_vs_mysqlbinlog_equal",
            &equal,
            json!(peer::RECOVER_SETTINGS),
            AIM_TIMES_EQUAL,
        ),
    ]
}

/// Against a replica with the same settings: what MySQL itself can do.
pub async fn against_replica(origin: &mut Origin) -> Row {
    let (own, native) = in_turn(origin).await;
    let (value, peer_value) = (rate(origin, &replay_s(&own)), rate(origin, &seconds(&native)));
    let row = Row::against(
        "replay_vs_native",
        (value.median, "transactions/s"),
        (peer::REPLICA, peer_value.median),
        Better::Higher,
    );
    let aim_met = row.ratio >= AIM_TIMES_NATIVE;
    row.aim(format!("{AIM_TIMES_NATIVE} x the peer"), aim_met).details(json!({
        "load": load::writing(), "transactions": origin.transactions(), "binlog_bytes": origin.binlog_bytes(),
        "binlogs": origin.binlogs.len(), "own": details(&own), "peer_s": Sample::of(seconds(&native)),
        "settings": peer::RECOVER_SETTINGS,
    }))
}

/// One binlog of large events, against a replica; and the memory that `recover` takes for it.
pub async fn large(scale: Scale) -> Vec<Row> {
    let mut origin = large_origin(scale).await;
    assert_eq!(origin.binlogs.len(), 1, "{:?}", origin.binlogs);
    let (own, native) = in_turn(&mut origin).await;
    let mb_per_s = |times: Vec<f64>| Sample::of(times.iter().map(|s| origin.binlog_bytes() as f64 / MB / s).collect());
    let (value, peer_value) = (mb_per_s(replay_s(&own)).median, mb_per_s(seconds(&native)).median);
    let row = Row::against("replay_large", (value, "MB/s"), (peer::REPLICA, peer_value), Better::Higher);
    let aim_met = row.ratio >= AIM_TIMES_NATIVE;
    let speed = row.aim(format!("{AIM_TIMES_NATIVE} x the peer"), aim_met).details(json!({
        "row_bytes": ROW_BYTES, "rows_per_transaction": ROWS_PER_TRANSACTION, "binlog_bytes": origin.binlog_bytes(),
        "own": details(&own), "peer_s": Sample::of(seconds(&native)), "settings": peer::RECOVER_SETTINGS,
    }));
    let peak_mib = own.iter().map(|r| r.used.peak_bytes).max().unwrap_or_default() as f64 / MIB;
    let memory = Row::against("replay_large_rss", (peak_mib, "MiB"), ("aim", AIM_RSS_MIB), Better::Lower)
        .aim(format!("at most {AIM_RSS_MIB} MiB"), peak_mib <= AIM_RSS_MIB);
    vec![speed, memory]
}

async fn large_origin(scale: Scale) -> Origin {
    let rows = scale.bytes(LARGE_BYTES) / ROW_BYTES;
    let change = async |server: &Server| write_large(server, rows).await;
    Origin::make(&["--max-binlog-size=1G"], create_large, change).await
}

async fn in_turn(origin: &mut Origin) -> (Vec<Recovery>, Vec<Duration>) {
    let (mut own, mut native) = (Vec::new(), Vec::new());
    for _ in 0..REPETITIONS {
        own.push(origin.recover().await);
        native.push(peer::replicate(origin).await);
    }
    (own, native)
}

fn replay_s(own: &[Recovery]) -> Vec<f64> {
    own.iter().map(|r| r.phase_s("replay")).collect()
}

fn seconds(times: &[Duration]) -> Vec<f64> {
    times.iter().map(Duration::as_secs_f64).collect()
}

fn rate(origin: &Origin, times_s: &[f64]) -> Sample {
    Sample::of(times_s.iter().map(|s| origin.transactions() as f64 / s).collect())
}

fn details(own: &[Recovery]) -> Value {
    json!({
        "replay_s": Sample::of(replay_s(own)),
        "cpu_s": own.iter().map(|r| r.used.cpu_s).collect::<Vec<_>>(),
        "servers_cpu_s": own.iter().map(|r| r.used.children_cpu_s).collect::<Vec<_>>(),
        "peak_rss_mib": own.iter().map(|r| r.used.peak_bytes >> 20).max(),
        "phases": own.last().map(|r| &r.report["phases"]),
    })
}

async fn create_large(server: &Server) {
    server.execute(&["CREATE DATABASE large"]).await;
    for writer in 0..LARGE_WRITERS {
        let create = format!("CREATE TABLE large.t{writer} (id BIGINT PRIMARY KEY AUTO_INCREMENT, v LONGBLOB NOT NULL)");
        server.execute(&[&create]).await;
    }
}

async fn write_large(server: &Server, rows: u64) {
    let mut writers = JoinSet::new();
    for writer in 0..LARGE_WRITERS {
        let session = server.root().await;
        writers.spawn(write_rows(session, writer, rows / LARGE_WRITERS));
    }
    writers.join_all().await;
}

async fn write_rows(mut session: Session, writer: u64, rows: u64) {
    let block = format!("REPEAT(RANDOM_BYTES({RANDOM_BYTES}), {REPEATED})");
    let row = format!("(CONCAT({}))", vec![block; BLOCKS_PER_ROW as usize].join(","));
    let transaction = format!(
        "INSERT INTO large.t{writer} (v) VALUES {}",
        vec![row; ROWS_PER_TRANSACTION as usize].join(",")
    );
    for _ in 0..rows / ROWS_PER_TRANSACTION {
        session.execute(&transaction).await.expect("the rows are inserted");
    }
}
