//! An archive whose snapshots are of volumes, and lie in EC2.

use std::{collections::BTreeMap, time::Duration};

use mysql_pitr::{
    archive::{
        keys,
        records::{CopyState, FORMAT_VERSION, Provider, RegionalCopy, Snapshot, SnapshotState, Step, VolumeSnapshot},
    },
    binlog::gtid::GtidSet,
    store::Put,
    volume::{
        cloud::{Cloud, OPERATION_TAG, Order, Subject},
        marks,
    },
};

use super::{
    ebs_stage::{AWAY, HOME},
    made::{Made, at, gtid, gtids, server},
    node::SHARD,
};

const HOUR_S: i64 = 3600;

/// Of `volumes`, each with its snapshots in both regions; complete, and by its age to be pruned by anybody.
fn record(id: &str, second: i64, held: GtidSet, volumes: &[[String; 2]]) -> Snapshot {
    let copy = |region: &str, id: &String| RegionalCopy {
        region: region.to_owned(),
        snapshot_id: Some(id.clone()),
        state: CopyState::Complete,
        failure: None,
        encrypted: None,
        kms_key: None,
        tried_at_us: None,
    };
    let volume = |(n, [home, away]): (usize, &[String; 2])| VolumeSnapshot {
        volume_id: format!("vol-{n}"),
        mount_point: format!("/data{n}").into(),
        filesystem: "xfs".to_owned(),
        partition: None,
        size_gib: 8,
        holds: Vec::new(),
        copies: vec![copy(HOME, home), copy(AWAY, away)],
    };
    Snapshot {
        format: FORMAT_VERSION,
        id: id.to_owned(),
        state: SnapshotState::Complete,
        provider: Provider::Ebs,
        timeline: 1,
        server_uuid: server(1),
        server_version: "9.7.4".to_owned(),
        started_at_us: at(second),
        finished_at_us: Some(at(second)),
        gtids_before: held.clone(),
        gtids_after: Some(held),
        errant: GtidSet::new(),
        variables: BTreeMap::new(),
        data_key: String::new(),
        data_bytes: 0,
        stored_bytes: 0,
        stored_sha256: String::new(),
        failure: None,
        step: Some(Step::Copied),
        volumes: volumes.iter().enumerate().map(volume).collect(),
        locked_us: None,
    }
}

/// As an agent tells EC2.
pub fn subject(made: &Made, id: &str, volume: &str) -> Subject {
    let record = format!("{}/{}", made.archive.store.url(), keys::snapshot_key(&made.archive.shard, id));
    let tags = [(marks::SHARD_TAG, SHARD), (OPERATION_TAG, id), (marks::RECORD_TAG, &record)];
    Subject {
        volumes: vec![volume.to_owned()],
        tags: tags.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        description: marks::description(SHARD, id),
    }
}

/// Two snapshots of two volumes, days apart, made in `ec2`; four sealed binlogs, of which the first snapshot alone needs the first two.
pub async fn archive_in(ec2: &dyn Cloud, volumes: &[String; 2], [first, second]: [&str; 2]) -> Made {
    let made = Made::new();
    made.timeline(1, None, 1, GtidSet::new(), GtidSet::new());
    for (number, first) in [(1, 1), (2, 11), (3, 21), (4, 31)] {
        let holds: Vec<_> = (first..first + 10).map(|n| (gtid(1, n), n as i64 * 7 * HOUR_S)).collect();
        made.sealed(1, 1, number, gtids(1, 1, first - 1), &holds);
    }
    for (id, last, second) in [(first, 5, 40 * HOUR_S), (second, 25, 190 * HOUR_S)] {
        let mut ids = Vec::new();
        for volume in volumes {
            let subject = subject(&made, id, volume);
            let order = Order::One(volume.clone());
            let home = ec2
                .create(&order, &subject, Duration::from_secs(30))
                .await
                .unwrap()
                .remove(0)
                .snapshot_id;
            let away = ec2.copy(&home, AWAY, &subject.tags).await.unwrap();
            ids.push([home, away]);
        }
        let record = record(id, second, gtids(1, 1, last), &ids);
        let key = keys::snapshot_key(&made.archive.shard, id);
        assert!(made.archive.put_record(&key, &record, Put::IfAbsent).await.unwrap());
    }
    made
}
