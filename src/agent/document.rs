//! What an agent says of itself: `/v1/status`, `mysql-pitr status`, and the source of the metrics.

use serde::{Deserialize, Serialize};

use crate::{archive::gaps::Gap, support::clock::Moment};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Primary,
    CandidatePrimary,
    Replica,
    Unknown,
}

impl Role {
    pub const ALL: [Role; 4] = [Role::Primary, Role::CandidatePrimary, Role::Replica, Role::Unknown];

    /// As in JSON, and as the metrics' label.
    pub fn label(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::CandidatePrimary => "candidate_primary",
            Role::Replica => "replica",
            Role::Unknown => "unknown",
        }
    }
}

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
    pub role: Role,
    /// How old Orchestrator's last answer is; null where none was asked.
    pub role_age_seconds: Option<f64>,
    pub server_writable: Option<bool>,
    pub timeline: Option<u32>,
    pub on_path: Option<bool>,
    pub shipped: Option<Shipped>,
    /// Null where this node does not ship.
    pub at_risk: Option<AtRisk>,
    pub binlog_expire_seconds: Option<u64>,
    pub backlog: Backlog,
    pub totals: Totals,
    /// When the schedule wants this node's next snapshot; null where it takes none by a schedule.
    pub next_snapshot_at: Option<Moment>,
    pub last_stored_at: Option<Moment>,
    pub last_seal_at: Option<Moment>,
    pub failing_since: Option<Moment>,
    pub last_error: Option<LastError>,
    /// Null until the store was looked at.
    pub archive: Option<ArchiveView>,
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
    /// The newest binlog on its path.
    pub last_binlog: Option<String>,
    pub last_snapshot_at: Option<Moment>,
    /// Begin and end of the recoverable window that ends with the history.
    pub recoverable_from: Option<Moment>,
    pub recoverable_until: Option<Moment>,
    pub gaps: Vec<Gap>,
}

impl ArchiveView {
    pub fn open_gaps(&self) -> impl Iterator<Item = &Gap> {
        self.gaps.iter().filter(|g| g.closed_by.is_none())
    }
}
