//! Takes the shard's snapshots: those that are asked for in the bucket, those that the schedule wants, and one wherever the newest moment
//! cannot be recovered.
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
        gaps::{self, Holding},
        listing::Archive,
        path::{self, Path, PathError},
    },
    mysql::{endpoint::Endpoint, query::Session},
    ship::standing::Standing,
    snapshot::{
        request,
        schedule::{self, Schedule},
        take,
    },
    support::{clock::Moment, hint::render, progress::Progress, retry::Backoff},
};

use super::monitor::SnapshotCounts;

/// Between attempts to make the newest moment recoverable.
fn retry_window() -> Backoff {
    Backoff::new(Duration::from_secs(5), Duration::from_secs(300))
}

/// What is known of the schedule's next run.
#[derive(Debug, Default)]
struct Agenda {
    /// None where the store has to be asked.
    due_us: Option<i64>,
    /// Set by an attempt, for the case that it fails.
    not_before: Option<Instant>,
    backoff: Option<Backoff>,
}

/// The task that takes snapshots.
pub(super) struct Snapshots {
    pub counts: Arc<SnapshotCounts>,
    pub archive: Archive,
    pub endpoint: Endpoint,
    pub settings: take::Settings,
    /// None where it is switched off.
    pub schedule: Option<Schedule>,
    /// Told by the shipper whenever the recoverable window may have ended.
    pub wanted: Arc<Notify>,
    pub standing: watch::Receiver<Standing>,
}

impl Snapshots {
    pub(super) async fn run(self) {
        let mut looks = interval(request::POLL_INTERVAL);
        let (mut seen, mut swept) = (None, false);
        // When to see whether the newest moment can be recovered, if there is a doubt.
        let (mut window_due, mut backoff) = (None, retry_window());
        let mut agenda = Agenda::default();
        loop {
            tokio::select! {
                () = self.wanted.notified() => (window_due, backoff) = (Some(Instant::now()), retry_window()),
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
                    self.scheduled(&standing, &mut agenda).await?;
                } else {
                    agenda = Agenda::default();
                    self.counts.next_us.store(0, Ordering::Relaxed);
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
        let window = gaps::window(&path, &self.archive.snapshots().await?, &gaps::on_path(&path, &holdings));
        if window.from_us.is_some() {
            return Ok(true);
        }
        for gap in window.open_gaps() {
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

    /// Takes the snapshot that the schedule wants, if it is due. What was missed is made up once: how far the schedule is served the store
    /// says, not this process, so that it does not matter who took the last snapshot, or what for.
    async fn scheduled(&self, standing: &Standing, agenda: &mut Agenda) -> anyhow::Result<()> {
        let Some(schedule) = &self.schedule else { return Ok(()) };
        let now_us = self.archive.clock.now_us();
        if agenda.due_us.is_some_and(|due| now_us < due) || agenda.not_before.is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        let path = match Path::find(&self.archive.timelines().await?, None) {
            Ok(path) => path,
            // Whoever ships first begins the history.
            Err(PathError::Empty) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let snapshots = self.archive.snapshots().await?;
        let due_us = schedule.due_after(schedule::served_until(&path, &snapshots), &self.archive.shard.to_string());
        self.counts.next_us.store(due_us.unwrap_or_default(), Ordering::Relaxed);
        let due_us = due_us.unwrap_or(i64::MAX);
        agenda.due_us = Some(due_us);
        if now_us < due_us {
            return Ok(());
        }
        let retry = agenda.backoff.get_or_insert_with(retry_window).step();
        agenda.not_before = Some(Instant::now() + retry);
        if !self.serves_somebody(standing).await? {
            return Ok(());
        }
        if let Some(other) = schedule::under_way(&snapshots, self.server_uuid().await?, now_us) {
            info!(snapshot = %other.id, server = %other.server_uuid, "a snapshot is due, and waits for the one that another server is taking");
            return Ok(());
        }
        info!(due = %Moment(due_us), "a snapshot is due by the schedule");
        self.take(standing, &take::new_id()).await?;
        *agenda = Agenda::default();
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
