//! What EC2 has of a shard's snapshots of volumes, in one region: the one that the archive's bucket is pruned for.

use std::collections::BTreeMap;

use anyhow::anyhow;

use crate::{
    archive::{
        keys::Shard,
        records::{Provider, Snapshot, SnapshotState},
    },
    support::hint::with_hint,
    volume::{
        cloud::{Cloud, Made, MadeState},
        marks,
    },
};

/// One look at a region.
#[derive(Debug, Clone)]
pub struct InEc2 {
    pub region: String,
    shard: String,
    /// Whatever bears the shard's tag, and whatever a record names, by id.
    found: BTreeMap<String, Made>,
}

/// The ids that a record names in a region.
pub(super) fn named<'s>(snapshot: &'s Snapshot, region: &str) -> impl Iterator<Item = &'s str> {
    let copies = snapshot.volumes.iter().flat_map(|v| &v.copies);
    copies
        .filter(move |c| c.region == region)
        .filter_map(|c| c.snapshot_id.as_deref())
}

impl InEc2 {
    /// # Errors
    /// Where EC2 does not answer, or may not be asked, or has nothing at all of what complete records name there: then it is another account's.
    pub async fn look<'s>(
        cloud: &dyn Cloud,
        shard: &Shard,
        records: &'s [Snapshot],
        aside: impl Iterator<Item = &'s Snapshot>,
    ) -> anyhow::Result<InEc2> {
        let region = cloud.home_region().await?;
        let shard = shard.to_string();
        let mut made = cloud.of_shard(&region, &shard).await?;
        let unlisted: Vec<String> = records
            .iter()
            .chain(aside)
            .filter(|s| s.provider == Provider::Ebs)
            .flat_map(|s| named(s, &region))
            .filter(|id| !made.iter().any(|m| m.snapshot_id == *id))
            .map(str::to_owned)
            .collect();
        if !unlisted.is_empty() {
            made.extend(cloud.named(&region, &unlisted).await?);
        }
        let complete = records.iter().filter(|s| s.state == SnapshotState::Complete);
        let expected: Vec<&str> = complete.flat_map(|s| named(s, &region)).collect();
        if !expected.is_empty() && !made.iter().any(|m| expected.contains(&m.snapshot_id.as_str())) {
            let e = anyhow!("EC2 in {region} has none of the snapshots that the records name there");
            return Err(with_hint(e, "see that these are the account and the region of the archive"));
        }
        Ok(InEc2::of(region, shard, made))
    }

    pub(super) fn of(region: String, shard: String, made: Vec<Made>) -> InEc2 {
        let found = made.into_iter().map(|m| (m.snapshot_id.clone(), m)).collect();
        InEc2 { region, shard, found }
    }

    /// Whether a recovery in this region could be made from it.
    pub fn is_whole(&self, snapshot: &Snapshot) -> bool {
        let is_there = |id: &str| {
            let made = self.found.get(id);
            made.is_some_and(|m| m.state == MadeState::Complete && marks::bears(m, &self.shard, &snapshot.id))
        };
        let mut volumes = snapshot.volumes.iter();
        !snapshot.volumes.is_empty() && volumes.all(|v| v.complete_in(&self.region).is_some_and(is_there))
    }

    /// Of what the record names, that which is there and bears the tags of something else.
    pub fn alien<'s>(&self, snapshot: &'s Snapshot) -> Option<&'s str> {
        named(snapshot, &self.region).find(|id| {
            let made = self.found.get(*id);
            made.is_some_and(|m| !marks::bears(m, &self.shard, &snapshot.id))
        })
    }

    /// The ids of what belongs to it: what the record names, and what else its own requests made.
    pub fn parts(&self, snapshot: &Snapshot) -> Vec<String> {
        let is_named = |m: &Made| named(snapshot, &self.region).any(|id| id == m.snapshot_id);
        let parts = self
            .found
            .values()
            .filter(|m| marks::is_own(m, &self.shard, &snapshot.id) || is_named(m) && marks::bears(m, &self.shard, &snapshot.id));
        parts.map(|m| m.snapshot_id.clone()).collect()
    }

    /// Whether its record was written to this place, by the tags of what is there.
    pub fn is_recorded_at(&self, snapshot: &Snapshot, place: &str) -> bool {
        let mut parts = self.parts(snapshot).into_iter();
        parts.any(|id| self.found.get(&id).and_then(marks::record) == Some(place))
    }

    /// What bears the shard's tag and no operation of which `is_known`.
    pub fn strays(&self, is_known: impl Fn(&str) -> bool) -> impl Iterator<Item = (&Made, &str)> {
        let of_shard = self
            .found
            .values()
            .filter_map(|m| Some((m, marks::operation(m, &self.shard)?)));
        of_shard.filter(move |(_, operation)| !is_known(operation))
    }
}
