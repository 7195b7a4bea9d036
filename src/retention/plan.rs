//! What may go, and in which order. Pure: it is shown before anything is done.
//!
//! A **history** is the path of the shard's current timeline, or of any other on which something happened lately. Each keeps the snapshots that
//! the rules name, and all binlogs from the first on that holds more than all of these do. What no history keeps may go.
//!
//! **The order.** Snapshots go before the binlogs that only they need, so that no snapshot is there without its binlogs; of each the record
//! goes before the data, so that nothing looks whole and is not: data without a record does not exist for anybody but the next run of this. A
//! request goes before the snapshot that answered it, else it would be answered again. What lies in EC2 has an order of its own (`plan/volumes.rs`).

mod volumes;

pub use volumes::Ec2Part;

use std::collections::BTreeSet;

use anyhow::Context;
use serde::Serialize;
use uuid::Uuid;

use crate::{
    archive::{
        keys::{self, BinlogPlace, Shard, TailKey},
        listing::{Form, StoredBinlog},
        path::{Path, PathError},
        records::{LeasedPart, Provider, Snapshot, SnapshotState, Timeline},
        survey::Subject,
    },
    binlog::gtid::GtidSet,
    support::clock::Moment,
};

use super::{holdings::Holdings, lease, rules::Rules};

/// What belongs together and goes in the order of its keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deletion {
    pub kind: Kind,
    /// For people: a snapshot's id, a binlog and its server, an object's key.
    pub name: String,
    pub reason: &'static str,
    pub keys: Vec<String>,
    /// As stored.
    pub bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ec2: Option<Ec2Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Request,
    Snapshot,
    /// What lies in EC2 of a snapshot whose record is put aside.
    Volumes,
    Binlog,
    /// Of a binlog that is sealed.
    Segments,
    Orphan,
    Lease,
}

/// A history, and what it keeps.
#[derive(Debug, Clone, Serialize)]
pub struct History {
    pub timeline: u32,
    pub current: bool,
    pub snapshots: Vec<String>,
    pub binlogs: usize,
    /// When the oldest of its snapshots was complete: targets from then on stay recoverable.
    pub from: Option<Moment>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub histories: Vec<History>,
    /// In this order.
    pub deletions: Vec<Deletion>,
    /// Recoveries that are under way, by their leases.
    pub leases: Vec<String>,
    /// Why nothing may go at all.
    pub held_up: Option<String>,
    /// What is at fault in the archive, and stays for a person to look at.
    pub warnings: Vec<String>,
}

impl Plan {
    pub fn bytes(&self) -> u64 {
        self.deletions.iter().map(|d| d.bytes).sum()
    }
}

/// # Errors
/// Where it cannot be told what is a history: a timeline's record is missing or cannot be read.
pub fn plan(shard: &Shard, holdings: &Holdings, rules: &Rules, now_us: i64) -> anyhow::Result<Plan> {
    let survey = &holdings.survey;
    if let Some(fault) = survey.faults.iter().find(|f| matches!(f.subject, Subject::Timeline(_))) {
        return Err(fault.error().context("nothing may go while a timeline cannot be read"));
    }
    let mut planner = Planner {
        shard,
        holdings,
        rules,
        now_us,
        snapshots: BTreeSet::new(),
        binlogs: BTreeSet::new(),
        leased: BTreeSet::new(),
    };
    let mut plan = Plan {
        histories: Vec::new(),
        deletions: Vec::new(),
        leases: Vec::new(),
        held_up: None,
        warnings: survey
            .faults
            .iter()
            .map(|f| f.what.clone())
            .chain(
                holdings
                    .elsewhere
                    .iter()
                    .flat_map(|e| &e.unknown)
                    .map(|why| format!("segments stay, for it cannot be seen what the other region holds: {why}")),
            )
            .collect(),
    };
    let tip = match Path::find(&survey.timelines, None) {
        Ok(tip) => tip,
        Err(PathError::Empty) => {
            plan.held_up = Some("the archive has no history yet".to_owned());
            return Ok(plan);
        }
        Err(e) => return Err(e).context("nothing may go while the history is not known"),
    };
    planner.keep_newest(tip.last());
    plan.histories.push(planner.keep_history(&tip, true));
    for timeline in &survey.timelines {
        if timeline.id != tip.last().id && planner.is_young(timeline.id) {
            let path = Path::find(&survey.timelines, Some(timeline.id)).context("nothing may go while a history is not known")?;
            plan.histories.push(planner.keep_history(&path, false));
        }
    }
    for lease in holdings.leases.iter().filter(|l| lease::is_active(l, now_us)) {
        plan.leases.push(lease.id.clone());
        let known = lease.needs.as_ref().is_some_and(|needs| planner.keep_leased(needs));
        if !known {
            let why = match &lease.needs {
                None => "has not said yet what it needs".to_owned(),
                Some(needs) => format!("needs snapshot {}, of which no record can be read", needs.snapshot),
            };
            plan.held_up = Some(format!("recovery {} is under way and {why}", lease.id));
            return Ok(plan);
        }
    }
    plan.deletions = planner.deletions();
    plan.warnings.extend(planner.volume_warnings());
    Ok(plan)
}

struct Planner<'a> {
    shard: &'a Shard,
    holdings: &'a Holdings,
    rules: &'a Rules,
    now_us: i64,
    /// What stays.
    snapshots: BTreeSet<&'a str>,
    binlogs: BTreeSet<&'a BinlogPlace>,
    /// Of these the segments stay, too: whoever recovers may read them.
    leased: BTreeSet<&'a BinlogPlace>,
}

fn us(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl<'a> Planner<'a> {
    /// An agent looks from its server's newest binlog back until it meets one that is sealed, and would ship all of them again where none is.
    fn keep_newest(&mut self, tip: &Timeline) {
        let survey = &self.holdings.survey;
        let ships = survey.timelines.iter().filter(|t| t.id == tip.id || self.is_young(t.id));
        let servers: BTreeSet<Uuid> = ships.map(|t| t.server_uuid).collect();
        for server in servers {
            let own = || survey.binlogs.iter().filter(|b| b.place().server_uuid == server);
            let sealed = own().filter(|b| b.gtids().is_some()).map(|b| b.place().label_ns);
            let newest_sealed_ns = sealed.max().unwrap_or(i64::MIN);
            self.binlogs.extend(
                own()
                    .map(StoredBinlog::place)
                    .filter(|place| place.label_ns >= newest_sealed_ns),
            );
        }
    }

    fn is_older(&self, at_us: Option<i64>, than: std::time::Duration) -> bool {
        at_us.is_some_and(|at| at.saturating_add(us(than)) < self.now_us)
    }

    fn modified_us(&self, key: &str) -> Option<i64> {
        self.holdings.objects.get(key).and_then(|o| o.modified_us)
    }

    /// Whether something happened on a timeline lately.
    fn is_young(&self, id: u32) -> bool {
        let survey = &self.holdings.survey;
        let mut signs: Vec<Option<i64>> = Vec::new();
        signs.extend(survey.timelines.iter().filter(|t| t.id == id).map(|t| Some(t.claimed_at_us)));
        signs.extend(
            survey
                .snapshots
                .iter()
                .filter(|s| s.timeline == id)
                .map(|s| Some(s.started_at_us)),
        );
        for binlog in survey.binlogs.iter().filter(|b| b.opening.timeline == id) {
            signs.push(match &binlog.form {
                Form::Sealed(manifest) => manifest.commit_us_max,
                Form::Tail(segments) => segments.iter().filter_map(|s| self.modified_us(&s.key)).max(),
            });
        }
        !self.is_older(signs.into_iter().flatten().max(), self.rules.diverged)
    }

    /// The binlogs of `path` in the order of its history.
    fn on_path(&self, path: &Path) -> Vec<&'a StoredBinlog> {
        let at = |b: &StoredBinlog| path.timelines().iter().position(|t| t.id == b.opening.timeline);
        let mut chosen: Vec<(usize, &StoredBinlog)> = self
            .holdings
            .survey
            .binlogs
            .iter()
            .filter_map(|b| Some((at(b)?, b)))
            .collect();
        chosen.sort_by_key(|(at, b)| (*at, b.order()));
        chosen.into_iter().map(|(_, b)| b).collect()
    }

    /// Those of `path` from the first on that may hold more than `held`.
    fn needed(&self, path: &Path, held: &GtidSet) -> Vec<&'a StoredBinlog> {
        let binlogs = self.on_path(path);
        let of = |b: &StoredBinlog, set: &GtidSet| path.inherited(b.opening.timeline).map(|i| i.of(set)).unwrap_or_default();
        let is_expendable = |at: &usize| match binlogs[*at].gtids() {
            Some(gtids) => of(binlogs[*at], gtids).is_subset(held),
            // Only what came after it says what it holds, at most.
            None => binlogs
                .get(at + 1)
                .is_some_and(|next| of(next, &next.opening.held_before).is_subset(held)),
        };
        let first = (0..binlogs.len()).find(|at| !is_expendable(at)).unwrap_or(binlogs.len());
        binlogs[first..].to_vec()
    }

    fn keep_history(&mut self, path: &Path, current: bool) -> History {
        let survey = &self.holdings.survey;
        let serving: Vec<&'a Snapshot> = survey
            .snapshots
            .iter()
            .filter(|s| path.has(s) && survey.fault_of_snapshot(&s.id).is_none())
            .collect();
        // What this region's EC2 does not have takes nobody's place.
        let usable: Vec<&Snapshot> = serving.iter().filter(|s| self.is_usable(s)).copied().collect();
        let ids: BTreeSet<&str> = &self.rules.kept(&serving) | &self.rules.kept(&usable);
        let is_new = |s: &Snapshot| !self.is_older(s.finished_at_us, self.rules.orphans_grace);
        let is_kept = |s: &Snapshot| ids.contains(s.id.as_str()) || is_new(s);
        let stuck: Vec<&Snapshot> = serving.iter().filter(|s| !is_kept(s) && self.is_stuck(s)).copied().collect();
        let kept: Vec<&'a Snapshot> = serving.into_iter().filter(|s| is_kept(s)).collect();
        // Nothing is held by all of none: then every binlog stays.
        let held = kept
            .iter()
            .chain(&stuck)
            .map(|s| s.gtids_before.clone())
            .reduce(|a, b| a.intersect(&b))
            .unwrap_or_default();
        let needed = if kept.is_empty() {
            self.on_path(path)
        } else {
            self.needed(path, &held)
        };
        self.snapshots.extend(kept.iter().map(|s| s.id.as_str()));
        self.binlogs.extend(needed.iter().map(|b| b.place()));
        History {
            timeline: path.last().id,
            current,
            snapshots: kept.iter().map(|s| s.id.clone()).collect(),
            binlogs: needed.len(),
            from: kept.iter().filter_map(|s| s.finished_at_us).min().map(Moment),
        }
    }

    /// Whether it is known what that is.
    fn keep_leased(&mut self, needs: &LeasedPart) -> bool {
        let survey = &self.holdings.survey;
        let snapshot = survey.snapshots.iter().find(|s| s.id == needs.snapshot);
        let (Some(snapshot), Ok(path)) = (snapshot, Path::find(&survey.timelines, Some(needs.timeline))) else {
            return false;
        };
        let needed = self.needed(&path, &snapshot.gtids_before);
        self.snapshots.insert(&snapshot.id);
        self.binlogs.extend(needed.iter().map(|b| b.place()));
        self.leased.extend(needed.iter().map(|b| b.place()));
        true
    }

    fn deletions(&self) -> Vec<Deletion> {
        let mut deletions = self.begun();
        deletions.extend(self.old_snapshots());
        deletions.extend(self.answered_requests(&deletions));
        deletions.extend(self.linked_requests());
        deletions.extend(self.old_binlogs());
        deletions.extend(self.sealed_segments());
        deletions.extend(self.orphans());
        deletions.extend(self.ended_leases());
        deletions
    }

    /// What of these keys was there.
    fn deletion(&self, kind: Kind, name: String, reason: &'static str, keys: Vec<String>) -> Option<Deletion> {
        let objects = &self.holdings.objects;
        let keys: Vec<String> = keys.into_iter().filter(|key| objects.contains_key(key)).collect();
        let bytes = keys.iter().filter_map(|key| objects.get(key)).map(|o| o.size_bytes).sum();
        (!keys.is_empty()).then_some(Deletion {
            kind,
            name,
            reason,
            keys,
            bytes,
            ec2: None,
        })
    }

    fn under(&self, prefix: &str) -> Vec<String> {
        let objects = self.holdings.objects.range(prefix.to_owned()..);
        objects
            .map(|(key, _)| key.clone())
            .take_while(|key| key.starts_with(prefix))
            .collect()
    }

    fn has_timeline(&self, id: u32) -> bool {
        self.holdings.survey.timelines.iter().any(|t| t.id == id)
    }

    fn old_snapshots(&self) -> Vec<Deletion> {
        let survey = &self.holdings.survey;
        let old = survey.snapshots.iter().filter_map(|s| {
            let whole = survey.fault_of_snapshot(&s.id).is_none();
            let settled = self.is_older(s.finished_at_us, self.rules.orphans_grace);
            let reason = match s.state {
                _ if self.snapshots.contains(s.id.as_str()) || !settled || !whole || !self.has_timeline(s.timeline) => {
                    return None;
                }
                SnapshotState::Started => return None,
                SnapshotState::Failed => "it failed",
                SnapshotState::Complete => "no rule keeps it",
            };
            let record = keys::snapshot_key(self.shard, &s.id);
            let mut ordered = vec![keys::request_key(self.shard, &s.id), record];
            ordered.extend(self.under(&format!("{}{}/", keys::snapshots_prefix(self.shard), s.id)));
            match s.provider {
                Provider::Clone => self.deletion(Kind::Snapshot, s.id.clone(), reason, ordered),
                Provider::Ebs => self.old_volumes(s, reason, ordered),
            }
        });
        old.collect()
    }

    fn answered_requests(&self, snapshots: &[Deletion]) -> Vec<Deletion> {
        let ended = |s: &&Snapshot| {
            s.state != SnapshotState::Started
                && self.is_older(s.finished_at_us, self.rules.orphans_grace)
                && !snapshots.iter().any(|d| d.name == s.id)
        };
        let answers = self.holdings.survey.snapshots.iter().filter(ended);
        answers
            .filter_map(|s| {
                self.deletion(
                    Kind::Request,
                    s.id.clone(),
                    "it was answered",
                    vec![keys::request_key(self.shard, &s.id)],
                )
            })
            .collect()
    }

    /// Segments from the last to the first, then the opening: whatever is left is a binlog's beginning.
    fn tail_keys(&self, place: &BinlogPlace) -> Vec<String> {
        let keys = self.under(&place.segments_prefix(self.shard));
        let (openings, mut tail): (Vec<String>, Vec<String>) = keys
            .into_iter()
            .filter(|key| keys::parse_tail_key(self.shard, key).is_some())
            .partition(|key| matches!(keys::parse_tail_key(self.shard, key), Some(TailKey::Opening(_))));
        tail.reverse();
        tail.extend(openings);
        tail
    }

    /// Requests that the snapshot of another one answers; the request goes first, else it would be open again.
    fn linked_requests(&self) -> Vec<Deletion> {
        let prefix = keys::requests_prefix(self.shard);
        let links = self.under(&prefix).into_iter().filter_map(|key| {
            let request = key.strip_prefix(&prefix)?.split_once('/')?.0.to_owned();
            self.is_older(self.modified_us(&key), self.rules.orphans_grace)
                .then_some((request, key))
        });
        links
            .filter_map(|(request, link)| {
                let keys = vec![keys::request_key(self.shard, &request), link];
                self.deletion(Kind::Request, request, "another request's snapshot answered it", keys)
            })
            .collect()
    }

    fn old_binlogs(&self) -> Vec<Deletion> {
        let survey = &self.holdings.survey;
        let mut old: Vec<&StoredBinlog> = survey
            .binlogs
            .iter()
            .filter(|b| !self.binlogs.contains(b.place()) && self.has_timeline(b.opening.timeline))
            .filter(|b| survey.fault_of_binlog(b.place()).is_none())
            .collect();
        old.sort_by_key(|b| (b.opening.timeline, b.order()));
        let deletions = old.into_iter().filter_map(|b| {
            // Segments first: without its manifest a binlog is read from them.
            let mut keys = self.tail_keys(b.place());
            if let Form::Sealed(manifest) = &b.form {
                keys.push(b.place().manifest_key(self.shard, manifest.codec));
                keys.push(b.place().sealed_key(self.shard, manifest.codec));
            }
            self.deletion(Kind::Binlog, b.place().to_string(), "no snapshot that stays needs it", keys)
        });
        deletions.collect()
    }

    /// The survey has seen that the sealed objects have the size that their manifests say.
    fn sealed_segments(&self) -> Vec<Deletion> {
        let survey = &self.holdings.survey;
        let sealed = survey.binlogs.iter().filter_map(|b| match &b.form {
            Form::Sealed(manifest) => Some((b.place(), b.place().manifest_key(self.shard, manifest.codec))),
            Form::Tail(_) => None,
        });
        sealed
            .filter(|(place, _)| self.binlogs.contains(place) && !self.leased.contains(place))
            .filter(|(place, _)| survey.fault_of_binlog(place).is_none())
            .filter(|(_, manifest)| self.is_older(self.modified_us(manifest), self.rules.segments_grace))
            .filter(|(_, manifest)| self.is_sealed_elsewhere(manifest))
            .filter_map(|(place, _)| {
                self.deletion(
                    Kind::Segments,
                    place.to_string(),
                    "its binlog is sealed",
                    self.tail_keys(place),
                )
            })
            .collect()
    }

    /// Whether the other region, where there is one, can do without the segments, too.
    fn is_sealed_elsewhere(&self, manifest: &str) -> bool {
        let Some(elsewhere) = &self.holdings.elsewhere else {
            return true;
        };
        let size = |key: &str| self.holdings.objects.get(key).map(|o| o.size_bytes);
        let both = [manifest, manifest.strip_suffix(keys::MANIFEST_SUFFIX).unwrap_or(manifest)];
        both.iter()
            .all(|key| size(key).is_some() && elsewhere.objects.get(*key).copied() == size(key))
    }

    /// Data without a record, and openings of old binlogs without a segment.
    fn orphans(&self) -> Vec<Deletion> {
        let objects = &self.holdings.objects;
        let snapshots_prefix = keys::snapshots_prefix(self.shard);
        let sealed_prefix = keys::sealed_prefix(self.shard);
        let mut orphans = Vec::new();
        for key in objects
            .keys()
            .filter(|key| self.is_older(self.modified_us(key), self.rules.orphans_grace))
        {
            let reason = if let Some((id, _)) = key.strip_prefix(&snapshots_prefix).and_then(|rest| rest.split_once('/')) {
                let is_orphan = !objects.contains_key(&keys::snapshot_key(self.shard, id));
                is_orphan.then_some("it is data of a snapshot without a record")
            } else if let Some(place) = keys::parse_sealed_key(key).filter(|_| key.starts_with(&sealed_prefix)) {
                let has_manifest = objects.contains_key(&format!("{key}{}", keys::MANIFEST_SUFFIX));
                (!has_manifest && self.is_passed(&place)).then_some("it is a sealed binlog without a manifest")
            } else if let Some(TailKey::Opening(place)) = keys::parse_tail_key(self.shard, key) {
                let has_segments = self.under(&place.segments_prefix(self.shard)).len() > 1;
                let is_sealed = self
                    .holdings
                    .survey
                    .binlogs
                    .iter()
                    .any(|b| *b.place() == place && b.gtids().is_some());
                (!has_segments && !is_sealed && self.is_passed(&place))
                    .then_some("it opens an old binlog of which nothing was stored")
            } else {
                None
            };
            orphans.extend(reason.and_then(|reason| self.deletion(Kind::Orphan, key.clone(), reason, vec![key.clone()])));
        }
        orphans
    }

    /// Whether a later binlog of the same server is sealed: binlogs are sealed in order, so that no agent comes back to this one.
    fn is_passed(&self, place: &BinlogPlace) -> bool {
        let mut sealed = self
            .holdings
            .survey
            .binlogs
            .iter()
            .filter(|b| b.gtids().is_some())
            .map(StoredBinlog::place);
        sealed.any(|later| later.server_uuid == place.server_uuid && later.label_ns > place.label_ns)
            && !self.leased.contains(place)
    }

    fn ended_leases(&self) -> Vec<Deletion> {
        let ended = self
            .holdings
            .leases
            .iter()
            .filter(|l| self.is_older(Some(l.expires_at_us), self.rules.orphans_grace));
        ended
            .filter_map(|l| {
                self.deletion(
                    Kind::Lease,
                    l.id.clone(),
                    "its recovery has ended",
                    vec![keys::lease_key(self.shard, &l.id)],
                )
            })
            .collect()
    }
}
