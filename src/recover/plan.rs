//! The plan: which snapshot, which binlogs, where to stop; what `--dry-run` prints.

use anyhow::anyhow;
use serde::Serialize;

use crate::{
    archive::{
        listing::Archive,
        path::{Path, PathError},
        records::{Snapshot, SnapshotState, Timeline},
    },
    binlog::gtid::GtidSet,
    source::Leg,
    support::{clock, hint::with_hint, progress::human_bytes},
};

use super::target::{PathBinlog, Resolved, Stop, Target, path_binlogs, resolve};

/// Everything that recovery will do, known before it does anything.
#[derive(Debug, Clone)]
pub struct Plan {
    pub path: Path,
    pub snapshot: Snapshot,
    /// What the recovered server shall have executed, no GTID more or fewer.
    pub target_gtids: GtidSet,
    pub legs: Vec<Leg>,
    pub last: Option<Stop>,
    pub first_left_out: Option<Stop>,
}

/// The plan for people and machines.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub timeline: u32,
    pub snapshot: String,
    pub snapshot_taken_at: String,
    pub snapshot_stored_bytes: u64,
    pub snapshot_data_bytes: u64,
    pub target_gtids: GtidSet,
    pub replay_gtids_max: u64,
    pub binlogs: Vec<SummaryBinlog>,
    pub binlog_stored_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_transaction: Option<SummaryStop>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_transaction_left_out: Option<SummaryStop>,
}

#[derive(Debug, Clone, Serialize)]
pub struct SummaryBinlog {
    pub name: String,
    pub server_uuid: uuid::Uuid,
    pub timeline: u32,
    pub sealed: bool,
    pub stored_bytes: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct SummaryStop {
    #[serde(flatten)]
    pub stop: Stop,
    pub committed_at: String,
    pub committed_at_local: String,
}

impl From<&Stop> for SummaryStop {
    fn from(stop: &Stop) -> SummaryStop {
        SummaryStop {
            stop: stop.clone(),
            committed_at: clock::format_utc(stop.commit_us),
            committed_at_local: clock::format_local(stop.commit_us),
        }
    }
}

/// Makes the plan for `target` on timeline `timeline`'s path, or the current one's. Changes nothing anywhere.
pub async fn plan(archive: &Archive, timeline: Option<u32>, target: &Target) -> anyhow::Result<Plan> {
    let timelines = archive.timelines().await?;
    let snapshots = archive.snapshots().await?;
    let path = find_path(archive, &timelines, &snapshots, timeline)?;
    let binlogs = path_binlogs(&path, archive.binlogs().await?);
    let resolved = resolve(archive, &path, &binlogs, target).await?;
    assemble(path, &snapshots, &binlogs, resolved, target)
}

pub(super) fn find_path(
    archive: &Archive,
    timelines: &[Timeline],
    snapshots: &[Snapshot],
    timeline: Option<u32>,
) -> anyhow::Result<Path> {
    Path::find(timelines, timeline).map_err(|e| {
        let where_ = format!("{}/{}", archive.store.url(), archive.shard);
        let hint = match e {
            PathError::Unknown(id) if timeline == Some(id) => "`mysql-pitr list` shows the timelines".to_owned(),
            PathError::Empty if snapshots.is_empty() => "check shard and [store] url in the configuration".to_owned(),
            _ => format!("restore what is missing under {where_}/timelines/ from the other region's bucket"),
        };
        with_hint(
            anyhow!(e).context(format!("there is no history to recover in {where_}")),
            hint,
        )
    })
}

/// The plan for what `target` was resolved to.
pub(super) fn assemble(
    path: Path,
    snapshots: &[Snapshot],
    binlogs: &[PathBinlog],
    resolved: Resolved,
    target: &Target,
) -> anyhow::Result<Plan> {
    let snapshot = choose(&path, snapshots, &resolved)?;
    ensure_not_later(target, &resolved, &snapshot)?;
    let missing_from_snapshot = resolved.gtids.subtract(&snapshot.gtids_before);
    let mut legs = Vec::new();
    let mut covered = GtidSet::new();
    for (i, b) in binlogs.iter().enumerate().take(resolved.binlogs_until) {
        let read = resolved.read.iter().find(|(at, _)| *at == i).map(|(_, set)| set);
        let Some(holds) = read.or(b.binlog.gtids()) else { continue };
        let wanted = b.inherited.of(holds).intersect(&missing_from_snapshot);
        if !wanted.is_empty() {
            covered.add(&wanted);
            legs.push(Leg {
                binlog: b.binlog.clone(),
                wanted,
            });
        }
    }
    let gap = missing_from_snapshot.subtract(&covered);
    if !gap.is_empty() {
        let e = anyhow!(
            "the archive has a gap: it lacks {} transactions between snapshot {} and the target: {gap}",
            gap.count(),
            snapshot.id
        );
        return Err(with_hint(
            e,
            "recover to a moment before the gap, or to one after the next snapshot",
        ));
    }
    Ok(Plan {
        path,
        snapshot,
        target_gtids: resolved.gtids,
        legs,
        last: resolved.last,
        first_left_out: resolved.first_left_out,
    })
}

/// The snapshot that holds most of the target, of those that hold nothing else.
fn choose(path: &Path, snapshots: &[Snapshot], resolved: &Resolved) -> anyhow::Result<Snapshot> {
    let serving = snapshots.iter().filter(|s| path.serves(s, &resolved.gtids));
    if let Some(best) = serving.max_by_key(|s| (s.gtids_before.count(), s.started_at_us)) {
        return Ok(best.clone());
    }
    let complete = snapshots.iter().filter(|s| s.state == SnapshotState::Complete);
    let on_path = complete.clone().filter(|s| path.inherited(s.timeline).is_some());
    let Some(first) = on_path.min_by_key(|s| s.started_at_us) else {
        let e = anyhow!(
            "there is no complete snapshot on the path of timeline {} to start from",
            path.last().id
        );
        let hint = match complete.max_by_key(|s| s.started_at_us) {
            Some(other) => format!(
                "take one with `mysql-pitr snapshot`, or choose another history: --timeline {} has one",
                other.timeline
            ),
            None => "take one with `mysql-pitr snapshot`".to_owned(),
        };
        return Err(with_hint(e, hint));
    };
    let taken = clock::format_utc(first.finished_at_us.unwrap_or(first.started_at_us));
    let e = anyhow!("the target lies before every snapshot on its path; the first of them was complete at {taken}");
    Err(with_hint(
        e,
        "choose a later target, or with --timeline the history of before; `mysql-pitr list` shows what there is",
    ))
}

/// A snapshot's transactions have no commit time. Where the path has no transaction before the wanted moment, only the moment
/// at which the snapshot was complete says that it is not a later state.
fn ensure_not_later(target: &Target, resolved: &Resolved, snapshot: &Snapshot) -> anyhow::Result<()> {
    let Target::Time(wanted_us) = target else { return Ok(()) };
    let complete_us = snapshot.finished_at_us.unwrap_or(i64::MAX);
    if resolved.last.is_some() || complete_us <= *wanted_us {
        return Ok(());
    }
    let (wanted, complete) = (clock::format_utc(*wanted_us), clock::format_utc(complete_us));
    let e = anyhow!(
        "this history knows nothing of {wanted}: its first snapshot was complete at {complete}, and no transaction is older"
    );
    Err(with_hint(
        e,
        "choose a later target, or with --timeline the history of before; `mysql-pitr list` shows what there is",
    ))
}

impl Plan {
    pub fn summary(&self) -> Summary {
        let binlogs: Vec<SummaryBinlog> = self
            .legs
            .iter()
            .map(|leg| SummaryBinlog {
                name: leg.binlog.place().name.clone(),
                server_uuid: leg.binlog.place().server_uuid,
                timeline: leg.binlog.opening.timeline,
                sealed: leg.binlog.gtids().is_some(),
                stored_bytes: leg.binlog.stored_bytes(),
            })
            .collect();
        Summary {
            timeline: self.path.last().id,
            snapshot: self.snapshot.id.clone(),
            snapshot_taken_at: clock::format_utc(self.snapshot.finished_at_us.unwrap_or(self.snapshot.started_at_us)),
            snapshot_stored_bytes: self.snapshot.stored_bytes,
            snapshot_data_bytes: self.snapshot.data_bytes,
            target_gtids: self.target_gtids.clone(),
            replay_gtids_max: self.target_gtids.subtract(&self.snapshot.gtids_before).count(),
            binlog_stored_bytes: binlogs.iter().map(|b| b.stored_bytes).sum(),
            binlogs,
            last_transaction: self.last.as_ref().map(SummaryStop::from),
            first_transaction_left_out: self.first_left_out.as_ref().map(SummaryStop::from),
        }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "timeline      {}", self.timeline)?;
        writeln!(
            f,
            "snapshot      {} ({}, complete at {})",
            self.snapshot,
            human_bytes(self.snapshot_stored_bytes),
            self.snapshot_taken_at
        )?;
        writeln!(
            f,
            "binlogs       {} ({}), at most {} transactions",
            self.binlogs.len(),
            human_bytes(self.binlog_stored_bytes),
            self.replay_gtids_max
        )?;
        for b in &self.binlogs {
            let form = if b.sealed { "sealed" } else { "segments" };
            writeln!(
                f,
                "              {} of {} on timeline {}, {form}, {}",
                b.name,
                b.server_uuid,
                b.timeline,
                human_bytes(b.stored_bytes)
            )?;
        }
        for (what, stop) in [
            ("ends after", &self.last_transaction),
            ("ends before", &self.first_transaction_left_out),
        ] {
            if let Some(SummaryStop {
                stop,
                committed_at,
                committed_at_local,
            }) = stop
            {
                writeln!(
                    f,
                    "{what:<13} {}\n{:<13} committed at {committed_at} ({committed_at_local}), {} at {}",
                    stop.gtid, "", stop.binlog, stop.position
                )?;
            }
        }
        write!(f, "gtid_executed {}", self.target_gtids)
    }
}
