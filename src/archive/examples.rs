//! Records of a small shard, for unit tests, which say of them only what they are about.

use uuid::Uuid;

use crate::binlog::gtid::GtidSet;

use super::records::{FORMAT_VERSION, Provider, Reason, Snapshot, SnapshotState, Timeline};

/// The shard's first primary.
pub const SERVER: Uuid = Uuid::from_u128(1);

/// An adopted one of [`SERVER`].
pub fn timeline(id: u32, parent: Option<u32>, branch_set: GtidSet) -> Timeline {
    Timeline {
        format: FORMAT_VERSION,
        id,
        parent,
        server_uuid: SERVER,
        branch_set,
        reason: Reason::FirstStart,
        adopted: true,
        confirmed_by: None,
        nonce: Uuid::nil(),
        claimed_at_us: 0,
        skipped: GtidSet::new(),
    }
}

/// A complete one of [`SERVER`], during which nothing was committed.
pub fn snapshot(timeline: u32, held: GtidSet) -> Snapshot {
    Snapshot {
        format: FORMAT_VERSION,
        id: String::new(),
        state: SnapshotState::Complete,
        provider: Provider::Clone,
        timeline,
        server_uuid: SERVER,
        server_version: String::new(),
        started_at_us: 0,
        finished_at_us: Some(0),
        gtids_before: held.clone(),
        gtids_after: Some(held),
        errant: GtidSet::new(),
        variables: Default::default(),
        data_key: String::new(),
        data_bytes: 0,
        stored_bytes: 0,
        stored_sha256: String::new(),
        failure: None,
        step: None,
        volumes: Vec::new(),
        locked_us: None,
    }
}
