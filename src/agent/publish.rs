//! From what the agent says of itself to metrics.

use crate::{
    metrics::{Metrics, set_total},
    orchestrator::Role,
    support::clock::Moment,
};

use super::document::Document;

const US_PER_S: f64 = 1e6;

fn seconds(at: Option<Moment>) -> Option<f64> {
    at.map(|at| at.0 as f64 / US_PER_S)
}

fn flag(is_so: Option<bool>) -> Option<f64> {
    is_so.map(|so| if so { 1.0 } else { 0.0 })
}

pub fn publish(metrics: &Metrics, d: &Document) {
    for role in Role::ALL {
        metrics.role.with_label_values(&[role.label()]).set(i64::from(role == d.role));
    }
    metrics.role_age.set(d.role_age_seconds);
    metrics.role_stale.set(flag(d.role_is_stale));
    metrics
        .confirmed
        .set(flag((!d.standalone).then_some(d.confirmed_by.is_some())));
    metrics.takes_snapshots.set(if d.takes_snapshots { 1.0 } else { 0.0 });
    metrics.server_writable.set(flag(d.server_writable));
    metrics.timeline.set(d.timeline.map(f64::from));
    metrics.on_path.set(flag(d.on_path));
    metrics.healthy.set(if d.healthy { 1.0 } else { 0.0 });
    metrics.at_risk_seconds.set(d.at_risk.as_ref().map(|r| r.seconds));
    metrics.at_risk_bytes.set(d.at_risk.as_ref().map(|r| r.bytes as f64));
    metrics.binlog_expire_seconds.set(d.binlog_expire_seconds.map(|s| s as f64));
    metrics.durable_position.set(d.shipped.as_ref().map(|s| s.position as f64));
    metrics.last_stored.set(seconds(d.last_stored_at));
    metrics.backlog_binlogs.set(d.backlog.binlogs as f64);
    metrics.backlog_bytes.set(d.backlog.bytes as f64);
    metrics.last_seal.set(seconds(d.last_seal_at));
    metrics
        .last_error
        .set(d.last_error.as_ref().and_then(|e| seconds(Some(e.at))));
    let archive = d.archive.as_ref();
    metrics.gaps.set(archive.map(|a| a.open_gaps().count() as f64));
    metrics
        .gap_transactions
        .set(archive.map(|a| a.open_gaps().map(|g| g.gtids.count()).sum::<u64>() as f64));
    metrics
        .recoverable_from
        .set(seconds(archive.and_then(|a| a.recoverable_from)));
    metrics
        .recoverable_until
        .set(seconds(archive.and_then(|a| a.recoverable_until)));
    metrics.archive_seen.set(seconds(archive.map(|a| a.seen_at)));
    metrics.archive_faults.set(archive.map(|a| a.faults.len() as f64));
    metrics
        .snapshot_last_success
        .set(seconds(archive.and_then(|a| a.last_snapshot_at)));
    metrics.snapshot_next.set(seconds(d.next_snapshot_at));
    let replica = d.replica.as_ref();
    let behind = replica.and_then(|r| r.behind.as_ref());
    metrics.replica_behind_seconds.set(behind.map(|b| b.seconds));
    for (metric, count) in [
        (&metrics.replica_behind_bytes, behind.map(|b| b.bytes)),
        (&metrics.replica_behind_binlogs, behind.map(|b| b.binlogs)),
        (&metrics.replica_behind_segments, behind.map(|b| b.segments)),
        (&metrics.replica_behind_snapshots, behind.map(|b| b.snapshots)),
        (&metrics.replica_behind_records, behind.map(|b| b.records)),
        (
            &metrics.replica_differing,
            behind.and(replica).map(|r| r.differing.len() as u64),
        ),
    ] {
        metric.set(count.map(|n| n as f64));
    }
    metrics.replica_seen.set(seconds(replica.and_then(|r| r.seen_at)));
    metrics
        .replica_recoverable_from
        .set(seconds(replica.and_then(|r| r.recoverable_from)));
    metrics
        .replica_recoverable_until
        .set(seconds(replica.and_then(|r| r.recoverable_until)));
    metrics.snapshot_lock.set(d.snapshot_lock.as_ref().map(|l| l.seconds));
    for (part, seconds) in d.snapshot_lock.iter().flat_map(|l| &l.parts) {
        metrics.snapshot_lock_parts.with_label_values(&[part.as_str()]).set(*seconds);
    }
    metrics
        .snapshot_copies_pending
        .set(d.snapshot_copies.map(|c| c.pending as f64));
    metrics.snapshot_copies_failed.set(d.snapshot_copies.map(|c| c.failed as f64));
    let t = &d.totals;
    for (counter, total) in [
        (&metrics.replica_copied_bytes, replica.map_or(0, |r| r.copied_bytes)),
        (&metrics.received_bytes, t.received_bytes),
        (&metrics.segments_stored, t.segments_stored),
        (&metrics.stored_bytes, t.stored_bytes),
        (&metrics.sealed, t.sealed),
        (&metrics.store_errors, t.store_errors),
        (&metrics.rounds_failed, t.rounds_failed),
        (&metrics.snapshots.with_label_values(&["complete"]), t.snapshots_complete),
        (&metrics.snapshots.with_label_values(&["failed"]), t.snapshots_failed),
    ] {
        set_total(counter, total);
    }
}
