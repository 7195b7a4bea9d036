//! A load at a fixed rate: several clients, each of them sysbench's `oltp_write_only` over rows of its own.

use std::{
    fmt::Write,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use mysql_pitr::binlog::gtid::Gtid;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at},
};

use crate::{client::Client, report::percentile, support::mysql::Server};

/// More than the cores, so that commits meet in the binlog as they do on a busy server.
const CLIENTS: u64 = 8;
const TRANSACTIONS_PER_S: u64 = 500;
const ROWS_PER_CLIENT: u64 = 5_000;
const ROWS_PER_INSERT: u64 = 500;
/// sysbench's `c` and `pad`: groups of eleven digits.
const C_GROUPS: usize = 10;
const PAD_GROUPS: usize = 5;

/// A transaction that the server acknowledged.
#[derive(Debug, Clone, Copy)]
pub struct Commit {
    pub gtid: Gtid,
    /// When COMMIT was sent, and when its answer was there.
    pub sent: Instant,
    pub returned: Instant,
}

/// sysbench's table, filled.
pub async fn prepare(server: &Server) {
    let mut rng = StdRng::seed_from_u64(0);
    let mut statements = vec![
        "CREATE DATABASE sbtest".to_owned(),
        "CREATE TABLE sbtest.sbtest1 (id INT PRIMARY KEY, k INT NOT NULL, c CHAR(120) NOT NULL, pad CHAR(60) NOT NULL, KEY (k))"
            .to_owned(),
    ];
    let rows = CLIENTS * ROWS_PER_CLIENT;
    for first in (0..rows).step_by(ROWS_PER_INSERT as usize) {
        let values: Vec<String> = (first..first + ROWS_PER_INSERT).map(|id| row(&mut rng, id)).collect();
        statements.push(format!("INSERT INTO sbtest.sbtest1 VALUES {}", values.join(",")));
    }
    let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
    server.execute(&statements).await;
}

/// How often [`run`] ran: each time with other values, since one that is there already would change nothing, and not be logged.
static RUNS: AtomicU64 = AtomicU64::new(0);

/// Runs for `duration`. A transaction that comes late does not make the next ones late.
pub async fn run(server: &Server, duration: Duration) -> Vec<Commit> {
    let period = Duration::from_secs(CLIENTS) / TRANSACTIONS_PER_S as u32;
    let begin = Instant::now() + period;
    let first_seed = 1 + RUNS.fetch_add(1, Ordering::Relaxed) * CLIENTS;
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let mut client = Client::connect(&server.root_endpoint()).await.expect("a client connects");
        clients.spawn(async move {
            let mut rng = StdRng::seed_from_u64(first_seed + number);
            let mut commits = Vec::new();
            let mut ticks = interval_at(begin + period * number as u32 / CLIENTS as u32, period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            while ticks.tick().await < begin + duration {
                commits.push(transaction(&mut client, &mut rng, number).await);
            }
            commits
        });
    }
    clients.join_all().await.concat()
}

/// Runs so many transactions, as fast as they go.
pub async fn write(server: &Server, transactions: u64) {
    let first_seed = 1 + RUNS.fetch_add(1, Ordering::Relaxed) * CLIENTS;
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let mut client = Client::connect(&server.root_endpoint()).await.expect("a client connects");
        clients.spawn(async move {
            let mut rng = StdRng::seed_from_u64(first_seed + number);
            for _ in 0..transactions / CLIENTS {
                transaction(&mut client, &mut rng, number).await;
            }
        });
    }
    clients.join_all().await;
}

/// As sysbench has it: a change of an indexed column, one of another column, and a row that is deleted and comes back.
async fn transaction(client: &mut Client, rng: &mut StdRng, number: u64) -> Commit {
    let mut id = || number * ROWS_PER_CLIENT + rng.random_range(0..ROWS_PER_CLIENT);
    let (indexed, other, replaced) = (id(), id(), id());
    let statements = [
        "BEGIN".to_owned(),
        format!("UPDATE sbtest.sbtest1 SET k = k + 1 WHERE id = {indexed}"),
        format!("UPDATE sbtest.sbtest1 SET c = '{}' WHERE id = {other}", digits(rng, C_GROUPS)),
        format!("DELETE FROM sbtest.sbtest1 WHERE id = {replaced}"),
        format!("INSERT INTO sbtest.sbtest1 VALUES {}", row(rng, replaced)),
    ];
    for sql in &statements {
        client.execute(sql).await.expect("a statement of the load");
    }
    let sent = Instant::now();
    let gtid = client.execute("COMMIT").await.expect("a commit of the load");
    Commit {
        gtid: gtid.expect("the server says which GTID a commit got"),
        sent,
        returned: Instant::now(),
    }
}

fn row(rng: &mut StdRng, id: u64) -> String {
    let k = rng.random_range(0..CLIENTS * ROWS_PER_CLIENT);
    format!("({id}, {k}, '{}', '{}')", digits(rng, C_GROUPS), digits(rng, PAD_GROUPS))
}

fn digits(rng: &mut StdRng, groups: usize) -> String {
    const GROUP: u64 = 100_000_000_000;
    let mut text = String::new();
    for at in 0..groups {
        let dash = if at == 0 { "" } else { "-" };
        let _ = write!(text, "{dash}{:011}", rng.random_range(0..GROUP));
    }
    text
}

/// How long COMMIT took, ms, sorted.
pub fn commit_ms(commits: &[Commit]) -> Vec<f64> {
    sorted_ms(commits.iter().map(|c| c.returned - c.sent))
}

pub fn sorted_ms(times: impl Iterator<Item = Duration>) -> Vec<f64> {
    let mut ms: Vec<f64> = times.map(|t| t.as_secs_f64() * 1e3).collect();
    ms.sort_by(f64::total_cmp);
    ms
}

/// Percentiles of sorted times, for the details.
pub fn spread_ms(ms: &[f64]) -> Value {
    json!({
        "p50_ms": percentile(ms, 50.0), "p90_ms": percentile(ms, 90.0), "p99_ms": percentile(ms, 99.0),
        "max_ms": percentile(ms, 100.0), "count": ms.len(),
    })
}

const TRANSACTION: &str = "sysbench oltp_write_only";

/// For the details: of [`run`], and of [`write()`].
pub fn description() -> Value {
    json!({"clients": CLIENTS, "transactions_per_s": TRANSACTIONS_PER_S, "transaction": TRANSACTION})
}

pub fn writing() -> Value {
    json!({"clients": CLIENTS, "rows": CLIENTS * ROWS_PER_CLIENT, "transaction": TRANSACTION})
}
