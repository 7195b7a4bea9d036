//! From wherever a record is to its end: by whoever took the snapshot, by the same server's next agent, or by the next server that takes the
//! shard's snapshots. Every step may be done again.

use tracing::{info, warn};

use crate::{
    archive::{
        listing::Archive,
        records::{CopyState, RegionalCopy, Snapshot, SnapshotState, Step},
    },
    support::{clock::US_PER_MIN, progress::Progress},
    volume::{
        cloud::{Cloud, Made, MadeState},
        marks,
    },
};

use super::{copy, kept::Kept};

/// What a request made whose answer was lost may turn up for so long; until then it is looked for.
const LATE_US: i64 = 15 * US_PER_MIN;
/// A snapshot that was begun and is not found for so long was deleted by somebody.
const MISSING_US: i64 = 30 * US_PER_MIN;

/// What is to be told of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Went {
    /// There may be more to do at once.
    On(Box<Snapshot>),
    /// EC2 is at it, or it is to be tried again later.
    Waits(Box<Snapshot>),
    /// Nothing is left to be done.
    Ended(Box<Snapshot>),
}

impl Went {
    pub fn record(&self) -> &Snapshot {
        match self {
            Went::On(record) | Went::Waits(record) | Went::Ended(record) => record,
        }
    }

    pub(super) fn on(kept: &Kept) -> Went {
        Went::On(Box::new(kept.record.clone()))
    }

    pub(super) fn waits(kept: &Kept) -> Went {
        Went::Waits(Box::new(kept.record.clone()))
    }

    pub(super) fn ended(kept: &Kept) -> Went {
        Went::Ended(Box::new(kept.record.clone()))
    }
}

/// One step onward with the snapshot of that id. Call it while it is one's turn, and only of snapshots that nobody takes at the moment.
pub async fn onward(archive: &Archive, cloud: &dyn Cloud, id: &str, progress: &Progress) -> anyhow::Result<Went> {
    let mut kept = Kept::read(archive, id).await?;
    let now_us = archive.clock.now_us();
    match (kept.record.state, kept.record.step) {
        (SnapshotState::Started, Some(Step::Started)) => {
            warn!(
                snapshot = id,
                "a snapshot was interrupted before it was known to have been begun in time, and is given up"
            );
            let why = "the agent died before it was known that the snapshot had begun under the lock".to_owned();
            give_up(&mut kept, why, now_us).await?;
            Ok(Went::on(&kept))
        }
        (SnapshotState::Started, Some(_)) => settle(cloud, &mut kept, now_us, progress).await,
        (SnapshotState::Complete, Some(Step::Settled)) => copy::copy(cloud, &mut kept, now_us, progress).await,
        (SnapshotState::Failed, Some(Step::Deleting)) => delete(cloud, &mut kept, now_us).await,
        _ => Ok(Went::ended(&kept)),
    }
}

/// From now on whatever was made of it is deleted.
pub(super) async fn give_up(kept: &mut Kept, failure: String, now_us: i64) -> anyhow::Result<()> {
    kept.change(|s| {
        s.state = SnapshotState::Failed;
        s.step = Some(Step::Deleting);
        s.failure = Some(failure);
        s.finished_at_us = Some(now_us);
    })
    .await
}

async fn settle(cloud: &dyn Cloud, kept: &mut Kept, now_us: i64, progress: &Progress) -> anyhow::Result<Went> {
    let id = kept.record.id.clone();
    let home = cloud.home_region().await?;
    let found = cloud.find(&home, &id).await?;
    let mut settled = kept.record.clone();
    let mut failure = None;
    let mut shown = Vec::new();
    for volume in &mut settled.volumes {
        let volume_id = volume.volume_id.clone();
        let Some(copy) = volume.copies.first_mut().filter(|c| c.region == home) else {
            // Whoever took it was configured for another region.
            anyhow::bail!("snapshot {id} is not of the region {home}, where this agent's volumes are");
        };
        let of_ours = |m: &&Made| Some(&m.snapshot_id) == copy.snapshot_id.as_ref();
        match found.iter().find(of_ours) {
            None if now_us - settled.started_at_us > MISSING_US => {
                failure.get_or_insert(format!("the snapshot of {volume_id} is gone: somebody deleted it"));
            }
            None => shown.push(format!("{volume_id} not seen yet")),
            Some(made) => {
                learn(copy, made);
                match &made.state {
                    MadeState::Failed(why) => {
                        failure.get_or_insert(format!("EC2 failed to make the snapshot of {volume_id}: {why}"));
                    }
                    MadeState::Complete => shown.push(format!("{volume_id} 100 %")),
                    MadeState::Pending => shown.push(format!("{volume_id} {} %", made.percent.unwrap_or_default())),
                }
            }
        }
    }
    if let Some(failure) = failure {
        warn!(snapshot = %id, "{failure}");
        give_up(kept, failure, now_us).await?;
        return Ok(Went::on(kept));
    }
    progress.update(|| shown.join(", "));
    let is_whole = |s: &Snapshot| s.volumes.iter().all(|v| v.complete_in(&home).is_some());
    if !is_whole(&settled) {
        return Ok(Went::waits(kept));
    }
    // What it made and is no part of it: volumes that could not be left out.
    delete_all(cloud, &home, own(kept, &found).filter(|m| !is_named(&settled, m))).await?;
    settled.state = SnapshotState::Complete;
    settled.step = Some(Step::Settled);
    kept.change(|s| *s = settled).await?;
    info!(snapshot = %id, region = %home, "the snapshot is complete");
    Ok(Went::on(kept))
}

async fn delete(cloud: &dyn Cloud, kept: &mut Kept, now_us: i64) -> anyhow::Result<Went> {
    let id = kept.record.id.clone();
    let mut regions: Vec<String> = vec![cloud.home_region().await?];
    let copies = kept.record.volumes.iter().flat_map(|v| &v.copies);
    regions.extend(copies.filter(|c| c.tried_at_us.is_some()).map(|c| c.region.clone()));
    regions.sort();
    regions.dedup();
    let mut left = false;
    for region in regions {
        let found = cloud.find(&region, &id).await?;
        left |= own(kept, &found).next().is_some();
        delete_all(cloud, &region, own(kept, &found)).await?;
    }
    let is_late = now_us - kept.record.finished_at_us.unwrap_or_default() > LATE_US;
    if left || !is_late {
        return Ok(Went::waits(kept));
    }
    kept.change(|s| s.step = Some(Step::Deleted)).await?;
    Ok(Went::ended(kept))
}

pub(super) async fn delete_all<'m>(cloud: &dyn Cloud, region: &str, made: impl Iterator<Item = &'m Made>) -> anyhow::Result<()> {
    for made in made {
        info!(snapshot = %made.snapshot_id, region, "deleting an EC2 snapshot that is part of nothing");
        cloud.delete(region, &made.snapshot_id).await?;
    }
    Ok(())
}

/// Of what bears its tag, that which its own requests made: copies of others bear it, too, and are theirs.
pub(super) fn own<'m>(kept: &Kept, found: &'m [Made]) -> impl Iterator<Item = &'m Made> {
    let (shard, id) = (kept.archive.shard.to_string(), kept.record.id.clone());
    found.iter().filter(move |made| marks::is_own(made, &shard, &id))
}

pub(super) fn is_named(record: &Snapshot, made: &Made) -> bool {
    let mut copies = record.volumes.iter().flat_map(|v| &v.copies);
    copies.any(|c| c.snapshot_id.as_ref() == Some(&made.snapshot_id))
}

/// What EC2 says of a snapshot that exists.
pub(super) fn learn(copy: &mut RegionalCopy, made: &Made) {
    copy.snapshot_id = Some(made.snapshot_id.clone());
    copy.encrypted = made.encrypted.or(copy.encrypted);
    copy.kms_key = made.kms_key.clone().or_else(|| copy.kms_key.take());
    (copy.state, copy.failure) = match &made.state {
        MadeState::Pending => (CopyState::Pending, None),
        MadeState::Complete => (CopyState::Complete, None),
        MadeState::Failed(why) => (CopyState::Failed, Some(why.clone())),
    };
}
