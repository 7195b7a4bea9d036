//! Takes the shard's snapshots: those that are asked for in the bucket, and one wherever the newest moment cannot be recovered.
//!
//! One server of a shard is entitled to take them (its [`Standing`] says so), and it is not always the one whose agent finds that one
//! is needed: that agent asks in the bucket as anybody else.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, interval},
};
use tracing::{error, info};
use uuid::Uuid;

use crate::{
    archive::{
        gaps::{self, Gap, Holding},
        listing::Archive,
        path::{self, Path},
    },
    mysql::{endpoint::Endpoint, query::Session},
    ship::standing::Standing,
    snapshot::{request, take},
    support::{hint::render, progress::Progress, retry::Backoff},
};

use super::{document::ArchiveView, monitor::SnapshotCounts};

/// Between attempts to make the newest moment recoverable.
fn retry_window() -> Backoff {
    Backoff::new(Duration::from_secs(5), Duration::from_secs(300))
}

/// The task that takes snapshots.
pub(super) struct Snapshots {
    pub counts: Arc<SnapshotCounts>,
    pub archive: Archive,
    pub endpoint: Endpoint,
    pub settings: take::Settings,
    /// Told by the shipper whenever the recoverable window may have ended.
    pub wanted: Arc<Notify>,
    /// What the survey saw: it has read the tails, right behind which there may be a gap.
    pub views: watch::Receiver<Option<ArchiveView>>,
    pub standing: watch::Receiver<Standing>,
}

impl Snapshots {
    pub(super) async fn run(mut self) {
        let mut looks = interval(request::POLL_INTERVAL);
        let (mut seen, mut swept) = (None, false);
        // When to see whether the newest moment can be recovered, if there is a doubt.
        let (mut window_due, mut backoff) = (None, retry_window());
        loop {
            tokio::select! {
                () = self.wanted.notified() => (window_due, backoff) = (Some(Instant::now()), retry_window()),
                Ok(()) = self.views.changed() => {
                    if window_due.is_none() && !self.seen_gaps().is_empty() {
                        (window_due, backoff) = (Some(Instant::now()), retry_window());
                    }
                }
                _ = looks.tick() => {}
            }
            let standing = self.standing.borrow().clone();
            let done = async {
                if !swept {
                    self.sweep().await?;
                    swept = true;
                }
                if window_due.is_some_and(|due| due <= Instant::now()) && standing.ships() {
                    window_due = Some(Instant::now() + backoff.step());
                    if self.window_is_open(&standing, &mut seen).await? {
                        window_due = None;
                    }
                }
                if standing.takes_snapshots {
                    self.requested(&standing, &mut seen).await?;
                }
                anyhow::Ok(())
            };
            if let Err(e) = done.await {
                error!("snapshots: {}", render(&e));
            }
        }
    }

    async fn sweep(&self) -> anyhow::Result<()> {
        take::sweep(&self.archive, &self.settings, self.server_uuid().await?).await
    }

    async fn server_uuid(&self) -> anyhow::Result<Uuid> {
        Session::connect(&self.endpoint).await?.variables().await?.server_uuid()
    }

    /// i8: where a gap, or a new root, keeps the newest moment from being recovered, a snapshot begins the window again. Whether
    /// nothing is left to do.
    async fn window_is_open(&self, standing: &Standing, seen: &mut Option<String>) -> anyhow::Result<bool> {
        let timelines = self.archive.timelines().await?;
        // What a server ships off the path is nobody's to recover.
        let is_own = match path::tip(&timelines) {
            Some(tip) => tip.server_uuid == self.server_uuid().await?,
            None => false,
        };
        if !is_own {
            return Ok(true);
        }
        let path = Path::find(&timelines, None)?;
        let binlogs = self.archive.binlogs().await?;
        let holdings: Vec<Holding> = binlogs.iter().map(Holding::from).collect();
        let snapshots = self.archive.snapshots().await?;
        let window = gaps::window(&path, &snapshots, &gaps::on_path(&path, &holdings));
        let serving = gaps::serving(&path, &snapshots);
        let mut open = self.seen_gaps();
        open.retain(|gap| !serving.iter().any(|s| gap.gtids.is_subset(&s.gtids_before)));
        if window.from_us.is_some() && open.is_empty() {
            return Ok(true);
        }
        open.extend(window.open_gaps().cloned());
        for gap in open {
            error!(
                binlog = %gap.before_binlog, timeline = gap.timeline, gtids = %gap.gtids,
                "the archive has a gap: these transactions were purged before they were shipped; a snapshot follows"
            );
        }
        if standing.takes_snapshots {
            info!("the newest moment cannot be recovered: taking a snapshot");
            self.take(standing, &take::new_id()).await?;
        } else if request::open_requests(&self.archive, seen.as_deref()).await?.is_empty() {
            let id = request::ask(&self.archive).await?;
            info!(
                request = id,
                "the newest moment cannot be recovered: asked the server that takes the snapshots for one"
            );
        }
        Ok(false)
    }

    fn seen_gaps(&self) -> Vec<Gap> {
        let view = self.views.borrow();
        view.iter().flat_map(ArchiveView::open_gaps).cloned().collect()
    }

    async fn requested(&self, standing: &Standing, seen: &mut Option<String>) -> anyhow::Result<()> {
        let requests = request::open_requests(&self.archive, seen.as_deref()).await?;
        if requests.is_empty() || !self.serves_somebody(standing).await? {
            return Ok(());
        }
        for id in requests {
            self.take(standing, &id).await?;
            *seen = Some(id);
        }
        Ok(())
    }

    /// A server that is shipped off the path would take snapshots that no recovery starts from.
    async fn serves_somebody(&self, standing: &Standing) -> anyhow::Result<bool> {
        if !standing.ships() {
            return Ok(true);
        }
        let (timelines, server_uuid) = (self.archive.timelines().await?, self.server_uuid().await?);
        Ok(path::tip(&timelines).is_some_and(|tip| tip.server_uuid == server_uuid))
    }

    async fn take(&self, standing: &Standing, id: &str) -> anyhow::Result<()> {
        let silent = Progress::silent();
        let taken = take::take(&self.archive, &self.endpoint, &self.settings, standing, id, &silent).await;
        let count = if taken.is_ok() {
            &self.counts.complete
        } else {
            &self.counts.failed
        };
        count.fetch_add(1, Ordering::Relaxed);
        taken.map(|_| ())
    }
}
