//! What `mysql-pitr … --json` answers, as far as the demo asks.

use serde::Deserialize;

/// One line of `check`.
#[derive(Debug, Deserialize)]
pub struct Check {
    pub name: String,
    pub verdict: String,
    pub detail: String,
    pub hint: Option<String>,
}

impl Check {
    pub fn is_ok(&self) -> bool {
        self.verdict == "OK"
    }
}

/// `list`.
#[derive(Debug, Deserialize)]
pub struct Listing {
    pub snapshots: Vec<Snapshot>,
    pub binlogs: Vec<Binlog>,
}

#[derive(Debug, Deserialize)]
pub struct Snapshot {
    pub state: String,
}

impl Snapshot {
    pub fn is_complete(&self) -> bool {
        self.state == "complete"
    }
}

#[derive(Debug, Deserialize)]
pub struct Binlog {
    pub name: String,
    pub sealed: bool,
    pub bytes: u64,
    pub stored_bytes: u64,
    pub transactions: Option<u64>,
}

/// One transaction of `search`.
#[derive(Debug, Deserialize)]
pub struct Found {
    pub gtid: String,
    pub committed_at: String,
}

/// `recover`.
#[derive(Debug, Deserialize)]
pub struct Recovered {
    pub recovered_to: Option<String>,
    pub transactions_replayed: u64,
    pub phases: Vec<Phase>,
}

#[derive(Debug, Deserialize)]
pub struct Phase {
    pub name: String,
    pub ms: u64,
}
