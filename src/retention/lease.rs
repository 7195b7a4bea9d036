//! The lease of a recovery: while it runs, `prune` leaves what it needs alone.
//!
//! It is written before the plan is made, and protects everything until that is known. It ends by a PUT, not by a deletion: who recovers
//! need not be allowed to delete. A process that dies leaves a lease that expires.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Mutex, task::JoinHandle, time::sleep};
use tracing::warn;
use uuid::Uuid;

use crate::{
    archive::{
        keys,
        listing::Archive,
        records::{FORMAT_VERSION, Lease, LeasedPart},
    },
    store::{Put, Version},
    support::hint::message,
};

/// A dead recovery holds things up for so long.
pub const TERM: Duration = Duration::from_mins(30);
/// Several renewals may fail.
const RENEWAL_INTERVAL: Duration = Duration::from_mins(5);
/// Clocks of machines that share a store differ by less.
pub const SKEW_MAX: Duration = Duration::from_mins(10);

fn us(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Whether somebody may still rely on it.
pub fn is_active(lease: &Lease, now_us: i64) -> bool {
    lease.expires_at_us.saturating_add(us(SKEW_MAX)) > now_us
}

#[derive(Debug)]
struct Written {
    lease: Lease,
    version: Version,
}

/// A lease that is renewed until it is ended or dropped.
#[derive(Debug)]
pub struct Held {
    archive: Archive,
    written: Arc<Mutex<Written>>,
    renewing: JoinHandle<()>,
}

impl Held {
    /// Takes one that protects everything.
    ///
    /// # Errors
    /// Where the store takes no object; a recovery goes on without.
    pub async fn take(archive: &Archive) -> anyhow::Result<Held> {
        let now_us = archive.clock.now_us();
        let lease = Lease {
            format: FORMAT_VERSION,
            id: Uuid::new_v4().to_string(),
            created_at_us: now_us,
            expires_at_us: now_us + us(TERM),
            needs: None,
        };
        let bytes = serde_json::to_vec_pretty(&lease)?;
        let key = keys::lease_key(&archive.shard, &lease.id);
        let version = archive.store.put(&key, bytes.into(), Put::IfAbsent).await?;
        let written = Arc::new(Mutex::new(Written { lease, version }));
        let renewing = tokio::spawn({
            let (archive, written) = (archive.clone(), written.clone());
            async move {
                loop {
                    sleep(RENEWAL_INTERVAL).await;
                    let expires_at_us = archive.clock.now_us() + us(TERM);
                    if let Err(e) = rewrite(&archive, &written, |lease| lease.expires_at_us = expires_at_us).await {
                        warn!("the lease of this recovery could not be renewed: {}", message(&e));
                    }
                }
            }
        });
        Ok(Held {
            archive: archive.clone(),
            written,
            renewing,
        })
    }

    /// From now on it protects this much.
    pub async fn narrow(&self, needs: LeasedPart) -> anyhow::Result<()> {
        rewrite(&self.archive, &self.written, |lease| lease.needs = Some(needs)).await
    }

    /// Nothing is needed any more.
    pub async fn end(self) -> anyhow::Result<()> {
        self.renewing.abort();
        let now_us = self.archive.clock.now_us();
        // Before now by the difference that others allow for.
        rewrite(&self.archive, &self.written, |lease| {
            lease.expires_at_us = now_us - us(SKEW_MAX)
        })
        .await
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

async fn rewrite(archive: &Archive, written: &Mutex<Written>, change: impl FnOnce(&mut Lease)) -> anyhow::Result<()> {
    let mut written = written.lock().await;
    let mut lease = written.lease.clone();
    change(&mut lease);
    let key = keys::lease_key(&archive.shard, &lease.id);
    let bytes = serde_json::to_vec_pretty(&lease)?;
    let version = match archive
        .store
        .put(&key, bytes.into(), Put::IfMatch(written.version.clone()))
        .await
    {
        Ok(version) => version,
        // A write whose answer was lost may have taken effect: the next one goes over that.
        Err(e) => {
            if let Ok((_, version)) = archive.record::<Lease>(&key).await {
                written.version = version;
            }
            return Err(e.into());
        }
    };
    *written = Written { lease, version };
    Ok(())
}
