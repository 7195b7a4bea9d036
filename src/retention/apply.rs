//! Carries a plan out. Dying anywhere leaves what the next plan finds and ends.

mod volumes;

use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::{StreamExt, stream};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::{
    archive::listing::Archive,
    store::StoreError,
    support::{hint::with_hint, progress::Progress, retry::Backoff},
    volume::cloud::Cloud,
};

use super::{
    holdings::leases,
    lease,
    plan::{Kind, Plan},
};

/// How often to look whether a recovery began meanwhile.
const LEASES_INTERVAL: Duration = Duration::from_secs(5);
/// A DELETE takes tens of milliseconds and a busy day leaves 86,400 segments. (S3 charges nothing for a DELETE, and one with a thousand
/// keys has no order, and no answer that every store gives alike.)
const SEGMENTS_AT_A_TIME: usize = 16;
/// Of one object whose deletion failed.
const ATTEMPTS: usize = 5;

/// What was done.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Applied {
    pub objects_deleted: usize,
    pub ec2_snapshots_deleted: usize,
    /// What a retention, a legal hold or an image keeps for now. A later run deletes it.
    pub locked: Vec<Kept>,
    /// What the store or EC2 did not let go for any other reason, and what EC2 did not answer.
    pub refused: Vec<Kept>,
}

/// What stays, and the rest of its deletion with it.
#[derive(Debug, Clone, Serialize)]
pub struct Kept {
    pub name: String,
    /// An object's, or the id of a snapshot in EC2.
    pub key: String,
    pub reason: String,
}

/// Deletes what `plan` says, in its order; many segments of one sealed binlog at a time. Of what the store keeps the rest stays as well,
/// and of snapshots also the binlogs. `cloud`: the EC2 that the plan has seen; None where it has seen none.
///
/// # Errors
/// Where the store fails, or a recovery begins meanwhile. What was deleted until then is in `applied`.
pub async fn apply(
    archive: &Archive,
    plan: &Plan,
    cloud: Option<&dyn Cloud>,
    applied: &mut Applied,
    progress: &Progress,
) -> anyhow::Result<()> {
    if let Some(why) = &plan.held_up {
        bail!("nothing may go: {why}");
    }
    progress.phase("deleting");
    let mut looked_at: Option<Instant> = None;
    let mut snapshot_stays = false;
    for deletion in &plan.deletions {
        if looked_at.is_none_or(|at| at.elapsed() >= LEASES_INTERVAL) {
            ensure_no_new_lease(archive, plan).await?;
            looked_at = Some(Instant::now());
        }
        // A snapshot that stays would look as if one could go on from it.
        if deletion.kind == Kind::Binlog && snapshot_stays {
            continue;
        }
        let in_ec2 = deletion.ec2.as_ref().zip(cloud);
        if let Some((part, cloud)) = in_ec2
            && !volumes::prepare(archive, cloud, deletion, part, applied).await?
        {
            snapshot_stays |= deletion.kind == Kind::Snapshot;
            continue;
        }
        if in_ec2.is_some() {
            ensure_no_new_lease(archive, plan).await?;
        }
        let mut something_stays = false;
        // Whatever of them is left, the sealed binlog is read in their place.
        let at_a_time = if deletion.kind == Kind::Segments {
            SEGMENTS_AT_A_TIME
        } else {
            1
        };
        let mut ends = stream::iter(&deletion.keys)
            .map(|key| async move { (key, delete(archive, key).await) })
            .buffered(at_a_time);
        while let Some((key, end)) = ends.next().await {
            let kept = |reason: String| Kept {
                name: deletion.name.clone(),
                key: key.clone(),
                reason,
            };
            let stays = end.is_err();
            match end {
                Ok(()) => applied.objects_deleted += 1,
                Err(StoreError::Locked { lock, .. }) => {
                    snapshot_stays |= deletion.kind == Kind::Snapshot;
                    applied.locked.push(kept(lock));
                }
                Err(e @ StoreError::Refused { .. }) => {
                    snapshot_stays |= deletion.kind == Kind::Snapshot;
                    applied.refused.push(kept(e.to_string()));
                }
                Err(e) => return Err(e.into()),
            }
            something_stays |= stays;
            if stays && deletion.kind != Kind::Segments {
                break;
            }
        }
        drop(ends);
        if let Some((part, cloud)) = in_ec2.filter(|_| !something_stays) {
            // Whoever found the record took a lease before: from here on nobody finds it.
            ensure_no_new_lease(archive, plan).await?;
            volumes::delete(archive, cloud, deletion, part, applied).await?;
        }
        progress.update(|| format!("{} objects", applied.objects_deleted));
    }
    Ok(())
}

async fn ensure_no_new_lease(archive: &Archive, plan: &Plan) -> anyhow::Result<()> {
    let now_us = archive.clock.now_us();
    let leases = leases(archive).await.context("cannot see whether a recovery is under way")?;
    let new = leases
        .iter()
        .find(|l| lease::is_active(l, now_us) && !plan.leases.contains(&l.id));
    match new {
        None => Ok(()),
        Some(lease) => Err(with_hint(
            anyhow::anyhow!("recovery {} began meanwhile", lease.id),
            "run it again: it leaves alone what the recovery needs",
        )),
    }
}

async fn delete(archive: &Archive, key: &str) -> Result<(), StoreError> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut attempt = 1;
    loop {
        match archive.store.delete(key).await {
            Err(e) if e.is_transient() && attempt < ATTEMPTS => sleep(backoff.step()).await,
            done => return done,
        }
        attempt += 1;
    }
}
