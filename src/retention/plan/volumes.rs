//! Snapshots of volumes: what of them lies in EC2, and in which order it goes with its records.
//!
//! Each region is pruned by itself, by the leases in its own bucket: what lies in other regions stays. A record is put aside before the
//! snapshots that it names are deleted, and goes after them: no recovery finds it any more, and the next run does.

use std::time::Duration;

use crate::{
    archive::{
        keys,
        records::{CopyState, Provider, Snapshot, SnapshotState, Step},
    },
    support::clock::Moment,
    volume::{cloud::Made, marks},
};

use super::{
    super::{in_ec2::InEc2, lease},
    Deletion, Kind, Planner,
};

/// A copy that nobody has tried to make for so long is not waited for: whoever made it is gone. Nor one that has failed for so long.
const COPY_ABANDONED: Duration = Duration::from_hours(7 * 24);

/// What of a deletion lies in EC2. It goes after the keys.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Ec2Part {
    pub region: String,
    /// All of them bear the tags of one operation.
    pub snapshot_ids: Vec<String>,
    pub operation: String,
    /// Where the record lies before they go, and until they are gone, and the record.
    #[serde(skip)]
    pub aside: (String, Box<Snapshot>),
}

impl<'a> Planner<'a> {
    fn ec2(&self) -> Option<&'a InEc2> {
        self.holdings.ec2.as_ref().ok()
    }

    /// Whether a recovery in this region could begin with it, as far as that is known.
    pub(super) fn is_usable(&self, snapshot: &Snapshot) -> bool {
        snapshot.provider.stores_data() || self.ec2().is_some_and(|ec2| ec2.is_whole(snapshot))
    }

    /// Whether it stays, with what it needs, though no rule keeps it.
    pub(super) fn is_stuck(&self, snapshot: &Snapshot) -> bool {
        snapshot.provider == Provider::Ebs
            && match self.ec2() {
                None => true,
                Some(ec2) => ec2.is_whole(snapshot) && self.why_stays(snapshot, ec2).is_some(),
            }
    }

    /// Why a snapshot of volumes, that no rule keeps, stays.
    fn why_stays(&self, snapshot: &Snapshot, ec2: &InEc2) -> Option<String> {
        if let Some(alien) = ec2.alien(snapshot) {
            return Some(format!("{alien} in {} bears the tags of something else", ec2.region));
        }
        if snapshot.state != SnapshotState::Complete {
            return None;
        }
        if self.is_leased_elsewhere() {
            return Some("a recovery may be under way that reads the other region's bucket".to_owned());
        }
        self.awaited_copy(snapshot)
            .map(|region| format!("its copy to {region} is not complete"))
            .or_else(|| self.would_be_orphaned(snapshot, ec2))
    }

    /// What such a recovery needs is said in its lease there, which need not be readable here.
    fn is_leased_elsewhere(&self) -> bool {
        let leased_at_us = self.holdings.elsewhere.as_ref().and_then(|e| e.leased_at_us);
        leased_at_us.is_some() && !self.is_older(leased_at_us, lease::TERM + lease::SKEW_MAX)
    }

    /// The region of a copy that somebody is at.
    fn awaited_copy<'s>(&self, snapshot: &'s Snapshot) -> Option<&'s str> {
        if snapshot.step == Some(Step::Copied) {
            return None;
        }
        let mut copies = snapshot.volumes.iter().flat_map(|v| &v.copies);
        let missing = copies.find(|c| {
            let is_failing = c.state == CopyState::Failed;
            let tried_us = c.tried_at_us.filter(|_| !is_failing).max(snapshot.finished_at_us);
            c.state != CopyState::Complete && !self.is_older(tried_us, COPY_ABANDONED)
        });
        missing.map(|c| c.region.as_str())
    }

    /// Without the record here nobody would find its snapshots in another region, unless the bucket there has it, too.
    fn would_be_orphaned(&self, snapshot: &Snapshot, ec2: &InEc2) -> Option<String> {
        let region = ec2.region.as_str();
        let copies = || snapshot.volumes.iter().flat_map(|v| &v.copies);
        let other = copies().find(|c| c.region != region && c.snapshot_id.is_some())?;
        if !copies().any(|c| c.region == region) {
            return Some(format!(
                "it has nothing in {region}: its snapshots in {} are pruned with another bucket",
                other.region
            ));
        }
        let origin = copies().next().map(|c| c.region.as_str());
        if origin != Some(region) {
            // The bucket that the record was written to has it, unless that is this one.
            let here = format!("{}/{}", self.holdings.url, keys::snapshot_key(self.shard, &snapshot.id));
            let other = &other.region;
            return ec2
                .is_recorded_at(snapshot, &here)
                .then(|| format!("this is the bucket of {other}: the one that its record was copied to is pruned for {region}"));
        }
        let other = &other.region;
        let Some(elsewhere) = &self.holdings.elsewhere else {
            return Some(format!(
                "its snapshots in {other} would be orphaned: [replica] has to name the bucket that holds its record there"
            ));
        };
        if elsewhere.unknown.is_some() {
            return Some(format!("it cannot be seen whether the bucket of {other} holds its record"));
        }
        let prefix = keys::snapshots_prefix(self.shard);
        let newest = elsewhere
            .objects
            .keys()
            .filter_map(|key| keys::snapshot_id(&prefix, key))
            .max();
        let is_there = elsewhere.objects.contains_key(&keys::snapshot_key(self.shard, &snapshot.id));
        // An older one was there, and was pruned by the rules of that region.
        let was_there = newest.is_some_and(|newest| newest > snapshot.id);
        (!is_there && !was_there).then(|| format!("the bucket of {other} does not hold its record yet"))
    }

    /// That of a snapshot that no rule keeps. None where it stays.
    pub(super) fn old_volumes(&self, snapshot: &Snapshot, reason: &'static str, keys: Vec<String>) -> Option<Deletion> {
        let Some(ec2) = self.ec2() else {
            // Whoever gave it up has deleted everything.
            let is_nothing_left = snapshot.state == SnapshotState::Failed && snapshot.step == Some(Step::Deleted);
            return is_nothing_left
                .then(|| self.deletion(Kind::Snapshot, snapshot.id.clone(), reason, keys))
                .flatten();
        };
        if self.why_stays(snapshot, ec2).is_some() {
            return None;
        }
        let deletion = self.deletion(Kind::Snapshot, snapshot.id.clone(), reason, keys)?;
        Some(Deletion {
            ec2: self.part(snapshot, ec2),
            ..deletion
        })
    }

    fn part(&self, snapshot: &Snapshot, ec2: &InEc2) -> Option<Ec2Part> {
        let snapshot_ids = ec2.parts(snapshot);
        (!snapshot_ids.is_empty()).then(|| Ec2Part {
            region: ec2.region.clone(),
            snapshot_ids,
            operation: snapshot.id.clone(),
            aside: (
                keys::pruned_key(self.shard, &ec2.region, &snapshot.id),
                Box::new(snapshot.clone()),
            ),
        })
    }

    fn has_record(&self, id: &str) -> bool {
        let survey = &self.holdings.survey;
        survey.snapshots.iter().any(|s| s.id == id) || survey.fault_of_snapshot(id).is_some()
    }

    /// Records that are put aside, by region and id.
    fn asides(&self) -> impl Iterator<Item = (&'a str, &'a str, &'a String, &'a Snapshot)> {
        let shard = self.shard;
        self.holdings.aside.iter().filter_map(move |(key, record)| {
            let (region, id) = keys::parse_pruned_key(shard, key)?;
            (id == record.id).then_some((region, id, key, record))
        })
    }

    /// What an earlier run has begun, and what came of one in the other region with the rest of its bucket.
    pub(super) fn begun(&self) -> Vec<Deletion> {
        let Some(ec2) = self.ec2() else { return Vec::new() };
        let begun = self.asides().filter_map(|(region, id, key, record)| {
            if region != ec2.region {
                let mut copies = record.volumes.iter().flat_map(|v| &v.copies);
                let is_the_others = copies.any(|c| c.region == ec2.region);
                let is_old = self.is_older(self.modified_us(key), self.rules.orphans_grace);
                let reason = "the other region's prune put it aside there";
                return (is_the_others && is_old)
                    .then(|| self.deletion(Kind::Orphan, key.clone(), reason, vec![key.clone()]))
                    .flatten();
            }
            if self.has_record(id) || ec2.alien(record).is_some() || self.is_leased_elsewhere() {
                return None;
            }
            let deletion = self.deletion(Kind::Volumes, id.to_owned(), "its record is put aside", vec![key.clone()])?;
            match self.part(record, ec2) {
                // Its key is the last to go.
                Some(part) => Some(Deletion {
                    keys: Vec::new(),
                    ec2: Some(part),
                    ..deletion
                }),
                None => Some(deletion),
            }
        });
        begun.collect()
    }

    /// Snapshots that bear the shard's tag, and of which nothing here speaks.
    fn strays(&self) -> Vec<(&'a Made, &'a str)> {
        let Some(ec2) = self.ec2() else { return Vec::new() };
        let is_known = |operation: &str| {
            self.has_record(operation) || self.asides().any(|(region, id, ..)| region == ec2.region && id == operation)
        };
        // A fresh one may be older than its record here.
        let strays = ec2
            .strays(is_known)
            .filter(|(m, _)| self.is_older(m.started_at_us, self.rules.orphans_grace));
        strays.collect()
    }

    /// What a person has to know of a stray, to decide. A record that is missing is no reason to delete: somebody may have moved it away, and
    /// an age since it was made says nothing of that.
    fn about_stray(&self, made: &Made, operation: &str) -> String {
        let key = keys::snapshot_key(self.shard, operation);
        if !marks::is_own(made, &self.shard.to_string(), operation) {
            return "no request of mysql-pitr made it".to_owned();
        }
        match &self.holdings.elsewhere {
            Some(elsewhere) if elsewhere.objects.contains_key(&key) => "the other region's bucket holds its record".to_owned(),
            _ => format!("by its tags the record is {}", marks::record(made).unwrap_or("nowhere")),
        }
    }

    /// What of the snapshots of volumes stays for a person to look at, and why.
    pub(super) fn volume_warnings(&self) -> Vec<String> {
        let mut warnings = self.holdings.aside_faults.clone();
        let ebs = || self.holdings.survey.snapshots.iter().filter(|s| s.provider == Provider::Ebs);
        let ec2 = match &self.holdings.ec2 {
            Ok(ec2) => ec2,
            Err(why) if self.holdings.concerns_ec2() => {
                warnings.push(format!(
                    "snapshots of EBS volumes stay, with what they need: it cannot be seen what EC2 has of them: {why}"
                ));
                return warnings;
            }
            Err(_) => return warnings,
        };
        let region = &ec2.region;
        let is_settled =
            |s: &Snapshot| s.state != SnapshotState::Started && self.is_older(s.finished_at_us, self.rules.orphans_grace);
        for s in ebs().filter(|s| is_settled(s)) {
            if self.snapshots.contains(s.id.as_str()) {
                let is_said_whole = s.volumes.iter().all(|v| v.complete_in(region).is_some());
                if is_said_whole && !ec2.is_whole(s) {
                    warnings.push(format!(
                        "EC2 in {region} does not have all of snapshot {}: it serves no recovery there",
                        s.id
                    ));
                }
            } else if let Some(why) = self.why_stays(s, ec2) {
                warnings.push(format!("no rule keeps snapshot {}, and it stays: {why}", s.id));
            }
        }
        for (_, id, _, record) in self.asides().filter(|(of, ..)| of == region) {
            if let Some(alien) = ec2.alien(record).filter(|_| !self.has_record(id)) {
                warnings.push(format!(
                    "snapshot {id} was pruned, and {alien} in {region} stays: it bears the tags of something else"
                ));
            }
        }
        for (made, operation) in self.strays() {
            let since = made
                .started_at_us
                .map(|at| format!(" since {}", Moment(at)))
                .unwrap_or_default();
            warnings.push(format!(
                "no record here speaks of {} in {region}, of snapshot {operation}{since}, and it stays: {}",
                made.snapshot_id,
                self.about_stray(made, operation)
            ));
        }
        warnings
    }
}
