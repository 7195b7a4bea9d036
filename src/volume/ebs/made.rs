//! What EC2 says of snapshots, as [`Made`].

use aws_sdk_ec2::{
    primitives::DateTime,
    types::{Snapshot, SnapshotInfo, SnapshotState, Tag},
};

use super::errors::Call;
use crate::{
    support::clock::US_PER_S,
    volume::cloud::{CloudError, Made, MadeState, Tags},
};

pub(super) fn micros(at: Option<&DateTime>) -> Option<i64> {
    at?.secs().checked_mul(US_PER_S)
}

pub(super) fn begun(info: &SnapshotInfo, call: &Call) -> Result<Made, CloudError> {
    Ok(Made {
        snapshot_id: info.snapshot_id().ok_or_else(|| call.odd("names no snapshot"))?.to_owned(),
        volume_id: info.volume_id().unwrap_or_default().to_owned(),
        description: info.description().unwrap_or_default().to_owned(),
        started_at_us: micros(info.start_time()),
        state: state(info.state(), None),
        percent: percent(info.progress()),
        encrypted: info.encrypted(),
        kms_key: None,
        tags: Tags::new(),
    })
}

pub(super) fn described(snapshot: &Snapshot, call: &Call) -> Result<Made, CloudError> {
    let tag = |t: &Tag| Some((t.key.clone()?, t.value.clone().unwrap_or_default()));
    Ok(Made {
        snapshot_id: snapshot
            .snapshot_id()
            .ok_or_else(|| call.odd("has a snapshot without an id"))?
            .to_owned(),
        volume_id: snapshot.volume_id().unwrap_or_default().to_owned(),
        description: snapshot.description().unwrap_or_default().to_owned(),
        started_at_us: micros(snapshot.start_time()),
        state: state(snapshot.state(), snapshot.state_message()),
        percent: percent(snapshot.progress()),
        encrypted: snapshot.encrypted(),
        kms_key: snapshot.kms_key_id().map(str::to_owned),
        tags: snapshot.tags().iter().filter_map(tag).collect(),
    })
}

pub(super) fn state(state: Option<&SnapshotState>, message: Option<&str>) -> MadeState {
    match state {
        Some(SnapshotState::Completed) => MadeState::Complete,
        Some(SnapshotState::Error) => {
            MadeState::Failed(message.filter(|m| !m.is_empty()).unwrap_or("EC2 does not say why").to_owned())
        }
        _ => MadeState::Pending,
    }
}

/// `42%`
pub(super) fn percent(progress: Option<&str>) -> Option<u8> {
    progress?.trim_end_matches('%').parse().ok()
}
