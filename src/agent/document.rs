//! What an agent says of itself: `/v1/status`, `mysql-pitr status`, and the source of the metrics.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    archive::gaps::Gap, binlog::gtid::GtidSet, config::Replication, orchestrator::Role, replica::Behind, support::clock::Moment,
};

/// Everything, at one moment. What nobody knows is null.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Document {
    pub version: String,
    pub at: Moment,
    pub started_at: Moment,
    pub shard: String,
    pub store: String,
    pub healthy: bool,
    /// Why not.
    pub unhealthy_because: Option<String>,
    /// Orchestrator's last clear word, checked against the server's own state; without Orchestrator that state alone.
    pub role: Role,
    /// There is no Orchestrator to ask.
    pub standalone: bool,
    /// Who says that this server is the shard's living, writable primary; null where nobody does.
    pub confirmed_by: Option<String>,
    /// How old Orchestrator's last clear answer is; null before the first, and where none is asked.
    pub role_age_seconds: Option<f64>,
    /// Whether Orchestrator has given no clear answer for too long; null where none is asked.
    pub role_is_stale: Option<bool>,
    /// Whether the shard's snapshots are this server's to take.
    pub takes_snapshots: bool,
    /// Null until the server was reached.
    pub server_writable: Option<bool>,
    pub timeline: Option<u32>,
    /// Whether what is written here belongs to the shard's current history. Null until the archive was looked at.
    pub on_path: Option<bool>,
    pub shipped: Option<Shipped>,
    /// Null where this node does not ship.
    pub at_risk: Option<AtRisk>,
    pub binlog_expire_seconds: Option<u64>,
    pub backlog: Backlog,
    pub totals: Totals,
    /// When the schedule wants this node's next snapshot; null where it takes none by a schedule.
    pub next_snapshot_at: Option<Moment>,
    /// How long the server was last locked for a snapshot; null where this process locked it for none.
    #[serde(default)]
    pub snapshot_lock: Option<LockView>,
    /// Copies of snapshots in another region; null where this node does not see to them.
    #[serde(default)]
    pub snapshot_copies: Option<CopiesView>,
    pub last_stored_at: Option<Moment>,
    pub last_seal_at: Option<Moment>,
    pub failing_since: Option<Moment>,
    pub last_error: Option<LastError>,
    /// Null until the store was looked at.
    pub archive: Option<ArchiveView>,
    /// The other region's bucket; null where the configuration has none.
    #[serde(default)]
    pub replica: Option<ReplicaView>,
}

/// A lock of the server, for a snapshot of its volumes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LockView {
    pub seconds: f64,
    /// By what was done.
    pub parts: BTreeMap<String, f64>,
}

/// Copies of complete snapshots that the other region lacks.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct CopiesView {
    pub pending: u64,
    /// They are tried again.
    pub failed: u64,
}

/// Up to where everything is in the archive.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Shipped {
    pub binlog: String,
    pub position: u64,
}

/// What would be lost with the server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AtRisk {
    pub seconds: f64,
    pub bytes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Backlog {
    pub binlogs: u64,
    pub bytes: u64,
}

/// Since the agent started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Totals {
    pub received_bytes: u64,
    pub stored_bytes: u64,
    pub segments_stored: u64,
    pub sealed: u64,
    pub snapshots_complete: u64,
    pub snapshots_failed: u64,
    pub store_errors: u64,
    pub rounds_failed: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastError {
    pub at: Moment,
    pub text: String,
}

/// What the archive holds, as far as its records tell.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ArchiveView {
    pub seen_at: Moment,
    /// The shard's current timeline.
    pub tip: Option<u32>,
    /// The newest of all, on the path or not.
    pub newest_timeline: Option<u32>,
    /// The newest binlog on its path.
    pub last_binlog: Option<String>,
    pub last_snapshot_at: Option<Moment>,
    /// What the snapshot that holds most has of its server's own transactions, which are in nobody's history.
    pub errant: GtidSet,
    /// Begin and end of the recoverable window that ends with the history.
    pub recoverable_from: Option<Moment>,
    pub recoverable_until: Option<Moment>,
    pub gaps: Vec<Gap>,
    /// Objects that are missing or cannot be read.
    pub faults: Vec<String>,
}

/// How the other region's bucket stands beside the home region's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReplicaView {
    pub store: String,
    pub replication: Replication,
    /// When both buckets were last seen.
    pub seen_at: Option<Moment>,
    /// Null until they were.
    pub behind: Option<Behind>,
    /// Objects that are not the same in both.
    pub differing: Vec<String>,
    /// By this agent, since it started.
    pub copied_objects: u64,
    pub copied_bytes: u64,
    /// What can be recovered from the replica alone.
    pub recoverable_from: Option<Moment>,
    pub recoverable_until: Option<Moment>,
    pub gaps: Vec<Gap>,
    pub faults: Vec<String>,
    pub failing_since: Option<Moment>,
    pub last_error: Option<String>,
}

impl ArchiveView {
    pub fn open_gaps(&self) -> impl Iterator<Item = &Gap> {
        self.gaps.iter().filter(|g| g.closed_by.is_none())
    }
}
