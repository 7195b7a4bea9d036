//! What shipping costs the machine under a load of fixed rate, beside mysqlbinlog attached to the same load, and beside nobody.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Child;

use crate::{
    Scale, load,
    machine::{self, usage},
    peer,
    report::{Better, Row, Sample, percentile},
    support::{
        eventually,
        mysql::Server,
        node::{Agent, Node},
    },
};

const REPETITIONS: usize = 3;
const DURATION: Duration = Duration::from_secs(20);
const AIM_TIMES: f64 = 2.0;
const GB: f64 = 1e9;
/// Small, so that several binlogs are sealed; and the server measures what its dump threads use.
const OPTIONS: [&str; 2] = [
    "--max-binlog-size=4M",
    "--performance-schema-consumer-events-statements-cpu=ON",
];

/// What is attached to the server.
enum Side {
    Agent(Agent),
    Peer(Child, TempDir),
    Nobody,
}

const SIDES: [&str; 3] = ["agent", "peer", "nobody"];

#[derive(Debug)]
struct Found {
    /// Of the program, and of the server's threads that read binlogs for it.
    program_cpu_s: f64,
    dump_cpu_s: f64,
    binlog_bytes: u64,
    commit_ms: Vec<f64>,
}

impl Found {
    fn cpu_s_per_gb(&self) -> f64 {
        (self.program_cpu_s + self.dump_cpu_s) / (self.binlog_bytes as f64 / GB)
    }
}

pub async fn run(scale: Scale) -> Vec<Row> {
    let server = Server::start(&OPTIONS).await;
    load::prepare(&server).await;
    let node = Node::new(&server, "[ship]\nflush_interval = \"1s\"\n");
    // The first snapshot is nothing that is to be measured.
    let agent = node.agent();
    node.wait_snapshots(1).await;
    agent.stop().await;
    let mut found: [Vec<Found>; SIDES.len()] = Default::default();
    for _ in 0..REPETITIONS {
        for (side, found) in SIDES.iter().zip(&mut found) {
            found.push(measure(&server, &node, side, scale.duration(DURATION)).await);
        }
    }
    vec![row(&found)]
}

async fn measure(server: &Server, node: &Node, side: &str, duration: Duration) -> Found {
    if side == "agent" {
        // What the other sides let pass, so that it does not count.
        let catching_up = Side::Agent(node.agent());
        catching_up.wait_caught_up(server, node).await;
        catching_up.detach(server).await;
    }
    rotate(server).await;
    machine::settle_disk();
    let (name, _) = newest(server).await;
    let dump_before = dump_cpu_s(server).await;
    let attached = match side {
        "agent" => Side::Agent(node.agent()),
        "peer" => {
            let folder = TempDir::new().expect("a temporary folder");
            let child = peer::follow(server, folder.path(), &name)
                .spawn()
                .expect("mysqlbinlog starts");
            Side::Peer(child, folder)
        }
        _ => Side::Nobody,
    };
    attached.wait_caught_up(server, node).await;
    // Nor does starting up.
    let (program_before, bytes_before) = (attached.cpu_s(), bytes_from(server, &name).await);
    let commits = load::run(server, duration).await;
    rotate(server).await;
    attached.wait_caught_up(server, node).await;
    let binlog_bytes = bytes_from(server, &name).await - bytes_before;
    let program_cpu_s = attached.cpu_s() - program_before;
    attached.detach(server).await;
    Found {
        program_cpu_s,
        dump_cpu_s: dump_cpu_s(server).await - dump_before,
        binlog_bytes,
        commit_ms: load::commit_ms(&commits),
    }
}

impl Side {
    fn cpu_s(&self) -> f64 {
        match self {
            Side::Agent(agent) => usage(agent.pid()).expect("the agent runs").cpu_s,
            Side::Peer(child, _) => child.id().and_then(usage).expect("mysqlbinlog runs").cpu_s,
            Side::Nobody => 0.0,
        }
    }

    /// Waits until everything that the server has written is there: sealed, where it is closed.
    async fn wait_caught_up(&self, server: &Server, node: &Node) {
        match self {
            Side::Agent(_) => {
                node.wait_shipped(server).await;
                let binlogs = server.root().await.binary_logs().await.expect("the server's binlogs");
                eventually("the closed binlogs are sealed", async || {
                    let sealed = node.archive().sealed_index().await.expect("the archive can be listed");
                    let is_sealed = |name: &str| sealed.keys().any(|place| place.name == name);
                    binlogs[..binlogs.len() - 1].iter().all(|b| is_sealed(&b.name))
                })
                .await;
            }
            Side::Peer(_, folder) => {
                let (name, bytes) = newest(server).await;
                eventually("mysqlbinlog has copied everything", async || {
                    file_bytes(&folder.path().join(&name)) == bytes
                })
                .await;
            }
            Side::Nobody => {}
        }
    }

    /// Ends the program, and waits until the server has noticed: only then does it say what its threads used.
    async fn detach(self, server: &Server) {
        match self {
            Side::Agent(agent) => {
                agent.assert_quiet();
                agent.stop().await;
            }
            Side::Peer(mut child, _) => child.kill().await.expect("mysqlbinlog is killed"),
            Side::Nobody => return,
        }
        // A dump thread notices that its client has gone when it sends the next time.
        let mut session = server.root().await;
        eventually("the server's dump threads end", async || {
            session
                .execute("CREATE DATABASE IF NOT EXISTS noticed")
                .await
                .expect("a statement");
            let sql = "SELECT COUNT(*) FROM performance_schema.threads WHERE processlist_command LIKE 'Binlog Dump%'";
            session.one::<(u64,)>(sql).await.expect("the server's threads").0 == 0
        })
        .await;
    }
}

/// A binlog without a transaction would not be sealed.
async fn rotate(server: &Server) {
    server
        .execute(&["CREATE DATABASE IF NOT EXISTS noticed", "FLUSH BINARY LOGS"])
        .await;
}

/// The live binlog: its name, and how long it is.
async fn newest(server: &Server) -> (String, u64) {
    let binlogs = server.root().await.binary_logs().await.expect("the server's binlogs");
    let live = binlogs.last().expect("the server has a binlog");
    (live.name.clone(), live.bytes)
}

/// The bytes of binlog `first` and of those after it.
async fn bytes_from(server: &Server, first: &str) -> u64 {
    let binlogs = server.root().await.binary_logs().await.expect("the server's binlogs");
    binlogs.iter().skip_while(|b| b.name != first).map(|b| b.bytes).sum()
}

fn file_bytes(path: &Path) -> u64 {
    path.metadata().map_or(0, |m| m.len())
}

/// What the server's threads have used in dumps that have ended.
async fn dump_cpu_s(server: &Server) -> f64 {
    const PS_PER_S: f64 = 1e12;
    let sql = "SELECT CAST(SUM(sum_cpu_time) AS UNSIGNED) FROM performance_schema.events_statements_summary_global_by_event_name \
               WHERE event_name LIKE 'statement/com/Binlog Dump%'";
    let (ps,): (u64,) = server.root().await.one(sql).await.expect("the server's statements");
    ps as f64 / PS_PER_S
}

fn row(found: &[Vec<Found>]) -> Row {
    let cost = |found: &[Found]| Sample::of(found.iter().map(Found::cpu_s_per_gb).collect());
    let p99 = |found: &[Found]| Sample::of(found.iter().map(|f| percentile(&f.commit_ms, 99.0)).collect());
    let details = |found: &[Found]| -> Value {
        json!({
            "cpu_s_per_gb": cost(found),
            "program_cpu_s": found.iter().map(|f| f.program_cpu_s).collect::<Vec<_>>(),
            "dump_cpu_s": found.iter().map(|f| f.dump_cpu_s).collect::<Vec<_>>(),
            "binlog_bytes": found.iter().map(|f| f.binlog_bytes).collect::<Vec<_>>(),
            "commit_p99_ms": p99(found),
            "commit": found.iter().map(|f| load::spread_ms(&f.commit_ms)).collect::<Vec<_>>(),
        })
    };
    let mut all = json!({"load": load::description(), "codec": "zstd", "sealing": "included"});
    for (side, found) in SIDES.iter().zip(found) {
        all[*side] = details(found);
    }
    let (value, peer_value) = (cost(&found[0]).median, cost(&found[1]).median);
    let row = Row::against(
        "ship_overhead",
        (value, "CPU s/GB"),
        (peer::FOLLOW, peer_value),
        Better::Lower,
    );
    let aim_met = value <= AIM_TIMES * peer_value;
    row.aim(format!("at most {AIM_TIMES} x the peer"), aim_met).details(all)
}
