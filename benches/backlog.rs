//! A server with closed binlogs that its agent has not seen, as after an outage.

use std::{fs, path::Path, time::Duration};

use mysql_pitr::mysql::query::ServerBinlog;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::{
    Scale, fill,
    machine::{self, Usage},
    peer,
    support::{mysql::Server, node::Node},
};

const BYTES: u64 = 2 << 30;
/// The server's own `max_binlog_size`: several files, so that there is something to do side by side.
const BINLOG_SIZE: &str = "--max-binlog-size=256M";
/// Nobody is interested in how durable the backlog's origin is.
const OPTIONS: [&str; 5] = [
    BINLOG_SIZE,
    "--sync-binlog=0",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-redo-log-capacity=1G",
    "--innodb-buffer-pool-size=512M",
];
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// For a slow disk and a slow codec.
const PATIENCE: Duration = Duration::from_secs(900);

/// The server, and an archive that ends where the backlog begins.
pub struct Backlog {
    server: Server,
    /// Never started: every measurement begins with a copy.
    origin: Node,
    binlogs: Vec<ServerBinlog>,
}

/// One side of one repetition.
#[derive(Debug)]
pub struct Run {
    pub took: Duration,
    pub used: Usage,
    pub stored_bytes: u64,
}

impl Backlog {
    pub async fn prepare(scale: Scale) -> Backlog {
        let server = Server::start(&OPTIONS).await;
        let origin = Node::new(&server, "[ship]\ncodec = \"zstd\"\n");
        let agent = origin.agent();
        origin.wait_snapshots(1).await;
        server
            .execute(&["CREATE DATABASE before_the_outage", "FLUSH BINARY LOGS"])
            .await;
        origin.wait_sealed(1).await;
        agent.stop().await;
        let seen = server.root().await.binary_logs().await.expect("the server's binlogs").len();
        fill::fill(&server, scale.bytes(BYTES)).await;
        server.execute(&["FLUSH BINARY LOGS"]).await;
        let mut binlogs = server.root().await.binary_logs().await.expect("the server's binlogs");
        // The first that is not sealed was open during the outage; the last one still is.
        binlogs.pop();
        binlogs.drain(..seen - 1);
        Backlog { server, origin, binlogs }
    }

    pub fn bytes(&self) -> u64 {
        self.binlogs.iter().map(|b| b.bytes).sum()
    }

    pub fn files(&self) -> usize {
        self.binlogs.len()
    }

    /// An agent starts, and seals everything.
    pub async fn ship(&self, codec: &str) -> Run {
        let node = self.origin.copy();
        node.reconfigure("\"zstd\"", &format!("\"{codec}\""));
        let (archive, sealed_before) = (node.archive(), 1);
        machine::settle_disk();
        let began = Instant::now();
        let agent = node.agent();
        while archive.sealed_index().await.expect("the archive can be listed").len() < self.files() + sealed_before {
            assert!(began.elapsed() < PATIENCE, "not sealed within {PATIENCE:?}:\n{}", agent.log());
            sleep(LOOK_INTERVAL).await;
        }
        let took = began.elapsed();
        let used = machine::usage(agent.pid()).expect("the agent runs");
        agent.assert_quiet();
        agent.stop().await;
        let (bytes, stored_bytes) = sums(&node).await;
        assert!(bytes >= self.bytes(), "{bytes} of {} bytes were sealed", self.bytes());
        Run {
            took,
            used,
            stored_bytes,
        }
    }

    /// mysqlbinlog copies the same binlogs.
    pub async fn copy_by_peer(&self) -> Run {
        let folder = TempDir::new().expect("a temporary folder");
        let names: Vec<String> = self.binlogs.iter().map(|b| b.name.clone()).collect();
        machine::settle_disk();
        let (took, used) = machine::run(&mut peer::copy(&self.server, folder.path(), &names)).await;
        let stored_bytes = folder_bytes(folder.path());
        assert_eq!(stored_bytes, self.bytes(), "mysqlbinlog copied other bytes than there are");
        Run {
            took,
            used,
            stored_bytes,
        }
    }
}

/// Of all sealed binlogs: their bytes, and what they take in the archive.
async fn sums(node: &Node) -> (u64, u64) {
    let listing: Value = node.json(&["list"]).await;
    let sealed: Vec<&Value> = listing["binlogs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|b| b["sealed"] == true)
        .collect();
    let sum = |field: &str| sealed.iter().filter_map(|b| b[field].as_u64()).sum();
    (sum("bytes"), sum("stored_bytes"))
}

fn folder_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).expect("the folder can be listed");
    entries.map(|e| e.and_then(|e| e.metadata()).map_or(0, |m| m.len())).sum()
}
