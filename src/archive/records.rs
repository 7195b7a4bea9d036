//! The archive's JSON objects. Times are µs since the epoch, UTC; GTID sets are MySQL's own texts.

use std::{collections::BTreeMap, fmt, path::PathBuf};

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

/// A snapshot's record. Its state changes from `Started` to `Complete` or `Failed`, once; that of a snapshot of volumes is rewritten for
/// every step.
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
    /// When it was complete or had failed. Of volumes: when the lock ended under which it was begun; what came later is not in it.
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
    /// Empty where the data are not in the archive's store.
    pub data_key: String,
    pub data_bytes: u64,
    pub stored_bytes: u64,
    /// Of the stored object, hexadecimal; empty until complete, and where there is none.
    pub stored_sha256: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// How far it is; None for a clone, which only its own agent could go on with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
    /// What it consists of where it is one of volumes: nothing of it lies in the archive's store then. Empty for a clone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeSnapshot>,
    /// How long the server was locked, µs; None where it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked_us: Option<u64>,
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
    /// MySQL's clone plugin; the data are one object of the archive's store.
    Clone,
    /// Snapshots of the EBS volumes that hold the server's files; the data lie in EC2.
    Ebs,
}

impl Provider {
    /// Whether the data are an object of the archive's store.
    pub fn stores_data(self) -> bool {
        self == Provider::Clone
    }
}

/// How far a snapshot of volumes is. Stored before what it tells of is begun, so that any agent can go on where one died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Snapshots may exist under the record's tag, and none of them counts.
    Started,
    /// The snapshots that the record names were begun under the lock, and are what it will consist of.
    Created,
    /// They are complete in the home region; copies may be missing.
    Settled,
    /// Complete in every region.
    Copied,
    /// Given up: what bears the record's tag is deleted, also what turns up late.
    Deleting,
    /// Given up, and nothing is left.
    Deleted,
}

/// The snapshot of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSnapshot {
    /// Of the home region, e.g. `vol-0123456789abcdef0`.
    pub volume_id: String,
    /// Where the server had its file system.
    pub mount_point: PathBuf,
    /// Its type, e.g. `xfs`.
    pub filesystem: String,
    /// Of the disk, where the file system is not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    pub size_gib: u32,
    /// The server's folders on it, as absolute paths.
    pub holds: Vec<HeldFolder>,
    /// The home region's first.
    pub copies: Vec<RegionalCopy>,
}

impl VolumeSnapshot {
    /// The snapshot's id in a region, where it is complete there.
    pub fn complete_in(&self, region: &str) -> Option<&str> {
        let complete = |c: &&RegionalCopy| c.region == region && c.state == CopyState::Complete;
        self.copies.iter().find(complete)?.snapshot_id.as_deref()
    }
}

/// A folder of the server's files.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HeldFolder {
    pub role: FolderRole,
    pub path: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FolderRole {
    Datadir,
    /// The system tablespace, where it is outside the datadir.
    System,
    Redo,
    Undo,
    Binlog,
    /// The doublewrite files, where they are outside the datadir.
    Doublewrite,
    /// Tablespaces may lie there (innodb_directories).
    Tablespaces,
}

impl fmt::Display for FolderRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FolderRole::Datadir => "datadir",
            FolderRole::System => "system tablespace",
            FolderRole::Redo => "redo log",
            FolderRole::Undo => "undo tablespaces",
            FolderRole::Binlog => "binlogs",
            FolderRole::Doublewrite => "doublewrite files",
            FolderRole::Tablespaces => "tablespaces",
        })
    }
}

/// A volume's snapshot in one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionalCopy {
    pub region: String,
    /// None until EC2 has answered.
    pub snapshot_id: Option<String>,
    pub state: CopyState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// None where EC2 has not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms_key: Option<String>,
    /// When it was last tried to make it, µs; for copies only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried_at_us: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyState {
    Pending,
    Complete,
    Failed,
}

/// Asks whichever agent is entitled to take a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub format: u32,
    pub id: String,
    pub requested_at_us: i64,
}

/// Who works on the shard's snapshots of volumes. An agent whose turn it is writes this anew all the time; one that does not is dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    pub format: u32,
    pub server_uuid: Uuid,
    /// Made up by the agent, to recognise its own turn after a lost answer.
    pub nonce: Uuid,
    pub renewals: u64,
    /// It was given back: whoever comes next has it.
    pub free: bool,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_from_before_volumes_are_read_and_written_as_they_were() {
        let gtids = "00000000-0000-0000-0000-000000000001:1-5";
        let old = serde_json::json!({
            "format": 1, "id": "s", "state": "complete", "provider": "clone", "timeline": 1, "server_uuid": Uuid::nil(),
            "server_version": "9.7.4", "started_at_us": 1, "finished_at_us": 2, "gtids_before": gtids, "gtids_after": gtids,
            "variables": {}, "data_key": "s/data", "data_bytes": 3, "stored_bytes": 4, "stored_sha256": "ab",
        });
        let read: Snapshot = serde_json::from_value(old.clone()).unwrap();
        assert!(read.volumes.is_empty() && read.step.is_none() && read.provider.stores_data());
        assert_eq!(serde_json::to_value(&read).unwrap(), old);
    }

    #[test]
    fn a_copy_counts_where_it_is_complete() {
        let copy = |region: &str, state| RegionalCopy {
            region: region.to_owned(),
            snapshot_id: Some(format!("snap-{region}")),
            state,
            failure: None,
            encrypted: None,
            kms_key: None,
            tried_at_us: None,
        };
        let volume = VolumeSnapshot {
            volume_id: "vol-1".to_owned(),
            mount_point: "/data".into(),
            filesystem: "xfs".to_owned(),
            partition: None,
            size_gib: 8,
            holds: vec![HeldFolder {
                role: FolderRole::Datadir,
                path: "/data/mysql".into(),
            }],
            copies: vec![
                copy("eu-west-1", CopyState::Complete),
                copy("eu-central-1", CopyState::Pending),
            ],
        };
        assert_eq!(volume.complete_in("eu-west-1"), Some("snap-eu-west-1"));
        assert_eq!(volume.complete_in("eu-central-1"), None);
        assert_eq!(volume.complete_in("us-east-1"), None);
        let text = serde_json::to_string(&volume).unwrap();
        assert!(
            text.contains(r#""role":"datadir""#) && text.contains(r#""state":"pending""#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<VolumeSnapshot>(&text).unwrap(), volume);
    }
}
