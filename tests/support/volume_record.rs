//! The record of a snapshot of volumes that was just begun, and a clock that starts there.

use std::collections::BTreeMap;

use mysql_pitr::{
    archive::records::{CopyState, Provider, RegionalCopy, Snapshot, SnapshotState, Step, VolumeSnapshot},
    binlog::gtid::GtidSet,
};
use uuid::Uuid;

pub const BEGIN_US: i64 = 1_795_261_490_000_000;

/// Of `volumes`, to be complete in `regions`, of which the first is their own.
pub fn started(id: &str, volumes: &[&str], regions: &[&str]) -> Snapshot {
    let copy = |region: &&str| RegionalCopy {
        region: (*region).to_owned(),
        snapshot_id: None,
        state: CopyState::Pending,
        failure: None,
        encrypted: None,
        kms_key: None,
        tried_at_us: None,
    };
    let volume = |volume_id: &&str| VolumeSnapshot {
        volume_id: (*volume_id).to_owned(),
        mount_point: "/data".into(),
        filesystem: "xfs".to_owned(),
        partition: None,
        size_gib: 8,
        holds: Vec::new(),
        copies: regions.iter().map(copy).collect(),
    };
    Snapshot {
        format: 1,
        id: id.to_owned(),
        state: SnapshotState::Started,
        provider: Provider::Ebs,
        timeline: 1,
        server_uuid: Uuid::from_u128(1),
        server_version: String::new(),
        started_at_us: BEGIN_US,
        finished_at_us: None,
        gtids_before: GtidSet::new(),
        gtids_after: None,
        errant: GtidSet::new(),
        variables: BTreeMap::new(),
        data_key: String::new(),
        data_bytes: 0,
        stored_bytes: 0,
        stored_sha256: String::new(),
        failure: None,
        step: Some(Step::Started),
        volumes: volumes.iter().map(volume).collect(),
        locked_us: None,
    }
}
