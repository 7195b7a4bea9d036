//! Carries a plan out. Dying anywhere leaves what the next plan finds and ends.

use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::{
    archive::listing::Archive,
    store::StoreError,
    support::{hint::with_hint, progress::Progress, retry::Backoff},
};

use super::{
    holdings::leases,
    lease,
    plan::{Kind, Plan},
};

/// How often to look whether a recovery began meanwhile.
const LEASES_INTERVAL: Duration = Duration::from_secs(5);
/// Of one object whose deletion failed.
const ATTEMPTS: usize = 5;

/// What was done.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Applied {
    pub objects_deleted: usize,
    /// What the store did not let go: Object Lock, a legal hold, no permission.
    pub refused: Vec<Refused>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Refused {
    pub name: String,
    pub key: String,
    pub reason: String,
}

/// Deletes what `plan` says, in its order. Of what the store refuses to delete the rest stays as well, and of snapshots also the binlogs.
///
/// # Errors
/// Where the store fails, or a recovery begins meanwhile. What was deleted until then is in `applied`.
pub async fn apply(archive: &Archive, plan: &Plan, applied: &mut Applied, progress: &Progress) -> anyhow::Result<()> {
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
        for key in &deletion.keys {
            match delete(archive, key).await {
                Ok(()) => applied.objects_deleted += 1,
                Err(e @ StoreError::Refused { .. }) => {
                    snapshot_stays |= deletion.kind == Kind::Snapshot;
                    applied.refused.push(Refused {
                        name: deletion.name.clone(),
                        key: key.clone(),
                        reason: e.to_string(),
                    });
                    break;
                }
                Err(e) => return Err(e.into()),
            }
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
