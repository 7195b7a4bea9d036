//! The archive's JSON objects. Times are µs since the epoch, UTC; GTID sets are MySQL's own texts.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::binlog::gtid::GtidSet;

use super::{codec::Codec, keys::BinlogPlace};

/// Written into every record; a reader refuses what is newer than itself.
pub const FORMAT_VERSION: u32 = 1;

/// Says what a binlog is, before anything else of it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    pub format: u32,
    pub timeline: u32,
    #[serde(flatten)]
    pub place: BinlogPlace,
    pub server_version: String,
    /// sha256, hexadecimal, of the binlog's bytes up to and including its first GTID event.
    pub fingerprint: String,
    /// What the server had executed when the binlog began: its Previous_gtids, and what was only in the server's table
    /// (gtid_purged): a restored server's binlogs never name that.
    pub held_before: GtidSet,
}

/// How a binlog ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    Rotate,
    Stop,
    /// Neither: the server was killed. History may have been taken back here.
    Crash,
}

/// A whole binlog in the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    #[serde(flatten)]
    pub opening: Opening,
    pub codec: Codec,
    /// The binlog, uncompressed.
    pub bytes: u64,
    pub stored_bytes: u64,
    /// Of the uncompressed bytes, hexadecimal.
    pub sha256: String,
    pub gtids: GtidSet,
    pub transactions: u64,
    /// None where there is no transaction.
    pub commit_us_min: Option<i64>,
    /// No transaction's commit time, original or immediate, is later.
    pub commit_us_max: Option<i64>,
    /// `schema.table` to the number of row events; the first [`TABLES_MAX`] of them.
    pub tables: BTreeMap<String, u64>,
    /// XA transactions that the binlog leaves prepared.
    pub xa_prepared: Vec<String>,
    pub ending: Ending,
}

/// A manifest names at most so many tables.
pub const TABLES_MAX: usize = 10_000;

/// Who was primary, from which GTID set on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    pub format: u32,
    pub id: u32,
    /// None for a root, which inherits nothing.
    pub parent: Option<u32>,
    pub server_uuid: Uuid,
    /// What of the parent's history this one inherits; no meaning in a root.
    pub branch_set: GtidSet,
    pub reason: Reason,
    /// Whether it is part of the shard's history, or was shipped only so that nothing is lost.
    pub adopted: bool,
    /// Who said that the server is the shard's primary, where the claim rests on somebody's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_by: Option<String>,
    /// Made up by whoever claims, to recognise its own claim after a lost answer.
    pub nonce: Uuid,
    pub claimed_at_us: i64,
    /// Transactions of the inherited history in whose place this server has empty ones (`recover --skip-gtid`).
    #[serde(default, skip_serializing_if = "GtidSet::is_empty")]
    pub skipped: GtidSet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    FirstStart,
    Reset,
    Crash,
    Recovery,
    /// Orchestrator confirmed that the server was promoted.
    Promotion,
    /// An operator's word: `mysql-pitr adopt`.
    Adoption,
    UnknownServer,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::FirstStart => "first start",
            Reason::Reset => "reset",
            Reason::Crash => "crash",
            Reason::Recovery => "recovery",
            Reason::Promotion => "promotion",
            Reason::Adoption => "adoption",
            Reason::UnknownServer => "unknown server",
        })
    }
}

/// A snapshot's record; it changes from `Started` to `Complete` or `Failed`, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub format: u32,
    pub id: String,
    pub state: SnapshotState,
    pub provider: Provider,
    pub timeline: u32,
    pub server_uuid: Uuid,
    pub server_version: String,
    pub started_at_us: i64,
    pub finished_at_us: Option<i64>,
    /// The snapshot holds at least this …
    pub gtids_before: GtidSet,
    /// … and at most that. None until it was taken.
    pub gtids_after: Option<GtidSet>,
    /// What of these is in nobody's history: the server it was taken of, a replica, executed them by itself. The data hold all of it.
    #[serde(default, skip_serializing_if = "GtidSet::is_empty")]
    pub errant: GtidSet,
    /// Startup variables without which the data does not start.
    pub variables: BTreeMap<String, String>,
    pub data_key: String,
    pub data_bytes: u64,
    pub stored_bytes: u64,
    /// Of the stored object, hexadecimal; empty until complete.
    pub stored_sha256: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl Snapshot {
    /// How many transactions of the shard's history it holds at least.
    pub fn history_count(&self) -> u64 {
        self.gtids_before.subtract(&self.errant).count()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotState {
    Started,
    Complete,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    Clone,
}

/// Asks whichever agent is entitled to take a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub format: u32,
    pub id: String,
    pub requested_at_us: i64,
}

/// What a recovery that is under way needs: `prune` leaves it alone until the lease ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub format: u32,
    pub id: String,
    pub created_at_us: i64,
    /// Put off while the recovery runs; the moment of its end once it has ended.
    pub expires_at_us: i64,
    /// None while the recovery plans: until then it may need anything.
    pub needs: Option<LeasedPart>,
}

/// A snapshot, and all binlogs of a timeline's path that hold more than it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeasedPart {
    pub snapshot: String,
    pub timeline: u32,
    /// The key of the first binlog that is replayed; for people.
    pub oldest_binlog: Option<String>,
}

/// What `recover` leaves in the new server's data folder: the timeline that the server's agent is to claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descent {
    pub format: u32,
    pub shard: String,
    pub parent: u32,
    pub server_uuid: Uuid,
    pub branch_set: GtidSet,
    /// Becomes the timeline's `skipped`.
    #[serde(default, skip_serializing_if = "GtidSet::is_empty")]
    pub skipped: GtidSet,
}

/// The name of the [`Descent`] file in a data folder.
pub const DESCENT_FILE: &str = "mysql-pitr-descent.json";
