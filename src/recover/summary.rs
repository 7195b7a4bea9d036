//! The plan for people and machines: what `--dry-run` prints.

use std::fmt;

use serde::Serialize;

use crate::{
    archive::listing::{Form, cover},
    binlog::gtid::GtidSet,
    support::{clock, progress::human_bytes},
};

use super::{
    diverged::Diverged,
    plan::{PassedOver, Plan},
    rates::{Estimate, Rates},
    target::{Gap, Stop},
};

/// So many binlogs are shown from the chain's beginning, and from its end.
const BINLOGS_SHOWN: usize = 10;

#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// What was asked for, in words.
    pub target: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shortfall: Option<String>,
    pub timeline: u32,
    /// From the root on.
    pub path: Vec<u32>,
    pub snapshot: String,
    pub snapshot_timeline: u32,
    pub snapshot_taken_at: String,
    pub snapshot_stored_bytes: u64,
    pub snapshot_data_bytes: u64,
    /// Of EBS volumes: their size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_volumes_gib: Option<u64>,
    pub snapshot_reason: String,
    pub snapshots_passed_over: Vec<PassedOver>,
    /// What of `target_gtids` is in nobody's history.
    #[serde(skip_serializing_if = "GtidSet::is_empty")]
    pub errant: GtidSet,
    pub target_gtids: GtidSet,
    #[serde(skip_serializing_if = "GtidSet::is_empty")]
    pub skipped: GtidSet,
    pub replay_gtids_max: u64,
    pub binlogs: Vec<SummaryBinlog>,
    pub binlog_stored_bytes: u64,
    pub binlog_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_transaction: Option<SummaryStop>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_transaction_left_out: Option<SummaryStop>,
    pub gaps: Vec<Gap>,
    pub diverged: Vec<Diverged>,
    pub estimate: Estimate,
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct SummaryBinlog {
    pub name: String,
    pub server_uuid: uuid::Uuid,
    pub timeline: u32,
    pub sealed: bool,
    /// Objects that are read.
    pub objects: usize,
    pub stored_bytes: u64,
    /// Uncompressed.
    pub bytes: u64,
    /// What is replayed of it, at most.
    pub transactions: u64,
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

impl Plan {
    /// `rates`: what the estimate is made from.
    pub fn summary(&self, rates: &Rates) -> Summary {
        let binlogs: Vec<SummaryBinlog> = self
            .legs
            .iter()
            .map(|leg| SummaryBinlog {
                name: leg.binlog.place().name.clone(),
                server_uuid: leg.binlog.place().server_uuid,
                timeline: leg.binlog.opening.timeline,
                sealed: leg.binlog.gtids().is_some(),
                objects: match &leg.binlog.form {
                    Form::Sealed(_) => 1,
                    Form::Tail(segments) => cover(segments).len(),
                },
                stored_bytes: leg.binlog.stored_bytes(),
                bytes: leg.binlog.bytes(),
                transactions: leg.wanted.count(),
            })
            .collect();
        let replay_gtids_max = self.target_gtids.subtract(&self.snapshot.gtids_before).count();
        let binlog_bytes = binlogs.iter().map(|b| b.bytes).sum();
        let serving = self
            .passed_over
            .iter()
            .filter(|p| p.reason == super::plan::HOLDS_LESS)
            .count();
        let is_of_volumes = !self.snapshot.provider.stores_data();
        let volumes_gib = is_of_volumes.then(|| self.snapshot.volumes.iter().map(|v| u64::from(v.size_gib)).sum());
        let mut estimate = rates.estimate(self.snapshot.data_bytes, replay_gtids_max, binlog_bytes);
        if is_of_volumes {
            estimate
                .basis
                .push_str("; what EC2 takes to make the volumes, and to fetch each block when it is first read, is not in it");
        }
        Summary {
            target: self.target.to_string(),
            shortfall: self.shortfall.clone(),
            timeline: self.path.last().id,
            path: self.path.timelines().iter().map(|t| t.id).collect(),
            snapshot: self.snapshot.id.clone(),
            snapshot_timeline: self.snapshot.timeline,
            snapshot_taken_at: clock::format_utc(self.snapshot.finished_at_us.unwrap_or(self.snapshot.started_at_us)),
            snapshot_stored_bytes: self.snapshot.stored_bytes,
            snapshot_data_bytes: self.snapshot.data_bytes,
            snapshot_volumes_gib: volumes_gib,
            snapshot_reason: format!(
                "it holds {} of the target's {} transactions, {}",
                self.snapshot.history_count(),
                self.target_gtids.subtract(&self.errant).count(),
                match serving {
                    0 => "and is the only one that serves".to_owned(),
                    others => format!("the most of the {} that serve", others + 1),
                }
            ),
            snapshots_passed_over: self.passed_over.clone(),
            target_gtids: self.target_gtids.clone(),
            errant: self.errant.clone(),
            skipped: self.skipped.clone(),
            replay_gtids_max,
            binlog_stored_bytes: binlogs.iter().map(|b| b.stored_bytes).sum(),
            binlog_bytes,
            binlogs,
            last_transaction: self.last.as_ref().map(SummaryStop::from),
            first_transaction_left_out: self.first_left_out.as_ref().map(SummaryStop::from),
            gaps: self.gaps.clone(),
            diverged: self.diverged.clone(),
            estimate,
            warnings: self.warnings.clone(),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "target        {}", self.target)?;
        if let Some(why) = &self.shortfall {
            writeln!(f, "LESS          than the target is recovered: {why}")?;
        }
        let path: Vec<String> = self.path.iter().map(u32::to_string).collect();
        writeln!(f, "timeline      {} (path {})", self.timeline, path.join(" → "))?;
        self.fmt_snapshot(f)?;
        self.fmt_binlogs(f)?;
        self.fmt_stops(f)?;
        for gap in &self.gaps {
            writeln!(f, "gap           {} before {}, held by the snapshot", gap.gtids, gap.before)?;
        }
        for d in &self.diverged {
            let unread = d.binlogs.iter().filter(|b| b.gtids.is_none()).count();
            let gtids = if d.gtids.is_empty() {
                String::new()
            } else {
                format!(": {}", d.gtids)
            };
            let unread = if unread == 0 {
                String::new()
            } else {
                format!(", {unread} not read for this")
            };
            writeln!(
                f,
                "left out      timeline {}, {} binlogs off the path{unread}{gtids}",
                d.timeline,
                d.binlogs.len()
            )?;
        }
        writeln!(f, "estimate      {} s ({})", self.estimate.seconds, self.estimate.basis)?;
        for warning in &self.warnings {
            writeln!(f, "WARNING       {warning}")?;
        }
        if !self.errant.is_empty() {
            writeln!(f, "errant        {}, the snapshot's own", self.errant)?;
        }
        if !self.skipped.is_empty() {
            writeln!(f, "empty         {}", self.skipped)?;
        }
        write!(f, "gtid_executed {}", self.target_gtids)
    }
}

impl Summary {
    fn fmt_snapshot(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "snapshot      {} of timeline {} ({}, complete at {}): {}",
            self.snapshot,
            self.snapshot_timeline,
            self.snapshot_volumes_gib.map_or_else(
                || human_bytes(self.snapshot_stored_bytes),
                |gib| format!("EBS volumes of {gib} GiB")
            ),
            self.snapshot_taken_at,
            self.snapshot_reason
        )?;
        for passed in &self.snapshots_passed_over {
            writeln!(
                f,
                "              not {} of timeline {}: {}",
                passed.id, passed.timeline, passed.reason
            )?;
        }
        Ok(())
    }

    fn fmt_binlogs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "binlogs       {} ({}), at most {} transactions",
            self.binlogs.len(),
            human_bytes(self.binlog_stored_bytes),
            self.replay_gtids_max
        )?;
        let count = self.binlogs.len();
        for (i, b) in self.binlogs.iter().enumerate() {
            if count > 2 * BINLOGS_SHOWN && (BINLOGS_SHOWN..count - BINLOGS_SHOWN).contains(&i) {
                if i == BINLOGS_SHOWN {
                    writeln!(f, "              … {} more, which --json shows", count - 2 * BINLOGS_SHOWN)?;
                }
                continue;
            }
            let form = match (b.sealed, b.objects) {
                (true, _) => "sealed".to_owned(),
                (false, 1) => "1 segment".to_owned(),
                (false, objects) => format!("{objects} segments"),
            };
            writeln!(
                f,
                "              {} of {} on timeline {}, {form}, {}",
                b.name,
                b.server_uuid,
                b.timeline,
                human_bytes(b.stored_bytes)
            )?;
        }
        Ok(())
    }

    fn fmt_stops(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
        Ok(())
    }
}
