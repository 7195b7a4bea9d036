//! A server whose snapshot and later transactions are archived: what is recovered from the archive, and by other means.

use std::{fs, path::PathBuf, process::Stdio, time::Duration};

use mysql_pitr::{binlog::gtid::GtidSet, mysql::query::ServerBinlog};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::{
    machine::{self, Usage},
    support::{
        mysql::{Server, copy_folder},
        node::{Node, path_text},
    },
};

/// Nobody is interested in how durable the origin is.
const OPTIONS: [&str; 4] = [
    "--sync-binlog=0",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-redo-log-capacity=1G",
    "--innodb-buffer-pool-size=1G",
];
/// For the native replica. Without a password, it needs neither TLS nor the server's key.
pub const REPLICA_USER: &str = "bench_replica";
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// A snapshot of several GB on a slow machine.
const PATIENCE: Duration = Duration::from_secs(900);

pub struct Origin {
    pub server: Server,
    node: Node,
    /// What the snapshot holds, and what it held at the end.
    snapshot: GtidSet,
    all: GtidSet,
    /// Those after the snapshot, closed and archived.
    pub binlogs: Vec<ServerBinlog>,
    base: Option<PathBuf>,
}

/// One `recover --latest`.
#[derive(Debug)]
pub struct Recovery {
    /// From the program's start to its end.
    pub took: Duration,
    pub used: Usage,
    /// `recover --report`'s `recovered`.
    pub report: Value,
}

impl Recovery {
    /// How long one of its phases took.
    pub fn phase_s(&self, name: &str) -> f64 {
        let phases = self.report["phases"].as_array().expect("the report has phases");
        let phase = phases.iter().find(|p| p["name"] == name);
        let ms = phase.and_then(|p| p["ms"].as_u64());
        ms.unwrap_or_else(|| panic!("no phase `{name}` in {phases:?}")) as f64 / 1e3
    }
}

impl Origin {
    /// `prepare` writes what the snapshot is to hold, `change` what is to be replayed. Neither rotates: a binlog without a
    /// transaction would not be sealed.
    pub async fn make(options: &[&str], prepare: impl AsyncFnOnce(&Server), change: impl AsyncFnOnce(&Server)) -> Origin {
        let server = Server::start(&[&OPTIONS, options].concat()).await;
        server
            .execute(&[
                &format!("CREATE USER {REPLICA_USER}@'%' IDENTIFIED BY ''"),
                &format!("GRANT REPLICATION SLAVE ON *.* TO {REPLICA_USER}@'%'"),
            ])
            .await;
        prepare(&server).await;
        let node = Node::new(&server, "");
        let agent = node.agent();
        let snapshot = wait_snapshot(&node).await;
        agent.stop().await;
        server.execute(&["FLUSH BINARY LOGS"]).await;
        let before = server.root().await.binary_logs().await.expect("the server's binlogs").len();
        change(&server).await;
        server.execute(&["FLUSH BINARY LOGS"]).await;
        let mut binlogs = server.root().await.binary_logs().await.expect("the server's binlogs");
        binlogs.pop();
        binlogs.drain(..before - 1);
        let all = server.gtid_executed().await;
        let agent = node.agent();
        wait_sealed(&node, &binlogs).await;
        agent.stop().await;
        Origin {
            server,
            node,
            snapshot,
            all,
            binlogs,
            base: None,
        }
    }

    pub fn binlog_bytes(&self) -> u64 {
        self.binlogs.iter().map(|b| b.bytes).sum()
    }

    /// How many lie behind the snapshot.
    pub fn transactions(&self) -> u64 {
        self.all.subtract(&self.snapshot).count()
    }

    pub fn binlog_files(&self) -> Vec<PathBuf> {
        self.binlogs.iter().map(|b| self.server.datadir.join(&b.name)).collect()
    }

    /// Recovers everything into a folder that is gone afterwards.
    pub async fn recover(&self) -> Recovery {
        let folder = TempDir::new().expect("a temporary folder");
        let (target, report) = (folder.path().join("data"), folder.path().join("report.json"));
        let arguments = [
            "recover",
            "--latest",
            "--target-dir",
            path_text(&target),
            "--report",
            path_text(&report),
        ];
        let mut command = self.node.command(&arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        machine::settle_disk();
        let (took, used) = machine::run(&mut command).await;
        let text = fs::read_to_string(&report).expect("recover wrote its report");
        let report: Value = serde_json::from_str(&text).expect("the report is JSON");
        assert_eq!(report["outcome"], "recovered");
        Recovery {
            took,
            used,
            report: report["recovered"].clone(),
        }
    }

    /// A server on a copy of what the snapshot holds.
    pub async fn restored(&mut self, options: &[&str]) -> Restored {
        let base = match &self.base {
            Some(base) => base.clone(),
            None => {
                let base = self.node.target("base");
                let snapshot = self.snapshot.to_string();
                let arguments = ["recover", "--target-dir", path_text(&base), "--target-gtid-set", &snapshot];
                self.node.ok(&arguments).await;
                self.base.insert(base).clone()
            }
        };
        let folder = TempDir::new().expect("a temporary folder");
        let datadir = folder.path().join("data");
        fs::create_dir(&datadir).expect("a new folder");
        // As for `recover`, whose replay begins while the kernel still writes what was unpacked.
        machine::settle_disk();
        copy_folder(&base, &datadir);
        let server = Server::start_on(&datadir, &[&["--server-id=2"], options].concat()).await;
        assert_eq!(server.gtid_executed().await, self.snapshot);
        Restored {
            server,
            _folder: folder,
            all: self.all.clone(),
        }
    }
}

/// What others start from.
pub struct Restored {
    pub server: Server,
    _folder: TempDir,
    all: GtidSet,
}

impl Restored {
    /// Looks as often as `recover` does until everything is there.
    pub async fn wait_complete(&self) {
        const LOOK_INTERVAL: Duration = Duration::from_millis(100);
        let mut session = self.server.root().await;
        let began = Instant::now();
        while !self
            .all
            .is_subset(&session.gtid_executed().await.expect("what the server executed"))
        {
            assert!(began.elapsed() < PATIENCE, "the replica is not complete within {PATIENCE:?}");
            sleep(LOOK_INTERVAL).await;
        }
        session.close().await;
    }

    /// A clean shutdown of a server that must hold everything.
    pub async fn stop_complete(self) {
        let lacking = self.all.subtract(&self.server.gtid_executed().await);
        assert!(lacking.is_empty(), "these were not applied: {lacking}");
        self.server.stop_for_good().await;
    }
}

/// What the snapshot holds, once it is there.
async fn wait_snapshot(node: &Node) -> GtidSet {
    let began = Instant::now();
    loop {
        let snapshots = node.archive().snapshots().await.expect("the archive can be listed");
        if let Some(held) = snapshots.into_iter().find_map(|s| s.gtids_after) {
            return held;
        }
        assert!(began.elapsed() < PATIENCE, "no snapshot within {PATIENCE:?}");
        sleep(LOOK_INTERVAL).await;
    }
}

async fn wait_sealed(node: &Node, binlogs: &[ServerBinlog]) {
    let (archive, began) = (node.archive(), Instant::now());
    loop {
        let sealed = archive.sealed_index().await.expect("the archive can be listed");
        if binlogs.iter().all(|b| sealed.keys().any(|place| place.name == b.name)) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "not sealed within {PATIENCE:?}");
        sleep(LOOK_INTERVAL).await;
    }
}
