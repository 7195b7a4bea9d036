//! What of an archive another region needs, read off its keys.

use tokio::time::Instant;

use crate::archive::keys::{self, BinlogPlace, Shard, TailKey};

/// What an object is. In the order in which those of one binlog, or of one snapshot, mean nothing without those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Opening,
    Segment,
    Sealed,
    Manifest,
    SnapshotData,
    SnapshotRecord,
    Timeline,
}

/// An object that the replica is to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    pub kind: Kind,
    /// Of a binlog's object.
    pub place: Option<BinlogPlace>,
    /// Of a snapshot's object.
    pub snapshot: Option<String>,
}

/// What lies under `key`. None for what belongs to one bucket alone (requests, leases, fences, probes) and for what is nothing of ours.
pub fn name(shard: &Shard, key: &str) -> Option<Named> {
    let of_binlog = |kind, place| Named {
        kind,
        place: Some(place),
        snapshot: None,
    };
    if key.starts_with(&keys::segments_prefix(shard)) {
        return keys::parse_tail_key(shard, key).map(|tail| match tail {
            TailKey::Opening(place) => of_binlog(Kind::Opening, place),
            TailKey::Segment(place, _) => of_binlog(Kind::Segment, place),
        });
    }
    if key.starts_with(&keys::sealed_prefix(shard)) {
        let manifest = keys::parse_manifest_key(key).map(|place| of_binlog(Kind::Manifest, place));
        return manifest.or_else(|| keys::parse_sealed_key(key).map(|place| of_binlog(Kind::Sealed, place)));
    }
    let snapshots = keys::snapshots_prefix(shard);
    if let Some(rest) = key.strip_prefix(&snapshots) {
        let (kind, id) = match keys::snapshot_id(&snapshots, key) {
            Some(id) => (Kind::SnapshotRecord, id),
            None => (Kind::SnapshotData, rest.split_once('/')?.0.to_owned()),
        };
        return Some(Named {
            kind,
            place: None,
            snapshot: Some(id),
        });
    }
    key.starts_with(&keys::timelines_prefix(shard)).then_some(Named {
        kind: Kind::Timeline,
        place: None,
        snapshot: None,
    })
}

/// An object that the home region holds and the replica lacks.
#[derive(Debug, Clone)]
pub struct Missing {
    pub key: String,
    pub named: Named,
    /// As stored at home.
    pub size_bytes: u64,
    /// By the home store's clock.
    pub modified_us: Option<i64>,
    /// The replica holds an earlier state of it.
    pub is_outdated: bool,
    /// How old it was, by what is known, when it was found missing.
    pub(super) age_us: i64,
    pub(super) found: Instant,
}

impl Missing {
    /// For how long it has been at home, and not there.
    pub fn age_us(&self, now: Instant) -> i64 {
        let since = now.saturating_duration_since(self.found).as_micros();
        self.age_us.saturating_add(i64::try_from(since).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_one_bucket_alone_is_nobody_elses() {
        let shard = Shard::try_from("s".to_owned()).unwrap();
        let uuid = "9d74852a-830d-11ea-b87b-0ac50996c5a3";
        let kind = |key: &str| name(&shard, key).map(|n| n.kind);
        assert_eq!(kind(&format!("s/segments/{uuid}/1_b.1/open.json")), Some(Kind::Opening));
        assert_eq!(kind(&format!("s/segments/{uuid}/1_b.1/0-4.zst")), Some(Kind::Segment));
        assert_eq!(kind(&format!("s/2026/November/1/{uuid}/1_b.1.zst")), Some(Kind::Sealed));
        assert_eq!(
            kind(&format!("s/2026/November/1/{uuid}/1_b.1.zst.json")),
            Some(Kind::Manifest)
        );
        assert_eq!(kind("s/snapshots/a.json"), Some(Kind::SnapshotRecord));
        assert_eq!(kind("s/snapshots/a/datadir.tar.zst"), Some(Kind::SnapshotData));
        assert_eq!(kind("s/timelines/00000001.json"), Some(Kind::Timeline));
        for own in [
            "s/leases/recover-1.json",
            "s/requests/a.json",
            "s/fences/a.json",
            "s/probes/a",
            "s/alien",
            "t/x",
        ] {
            assert_eq!(kind(own), None, "{own}");
        }
    }
}
