//! The daemon: one task that ships, one that takes snapshots, and their end.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
    time::{Instant, interval, timeout},
};
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::{
    archive::{
        listing::Archive,
        path,
        records::{Snapshot, SnapshotState},
    },
    config::Config,
    mysql::{endpoint::Endpoint, query::Session, server::Mysql},
    ship::{
        Shipper, Status,
        catalog::{Catalog, StateLock},
        standing::Standing,
    },
    snapshot::{request, take},
    support::{
        hint::{render, with_hint},
        progress::Progress,
        retry::Backoff,
    },
};

mod disk;

/// From a signal to the end, whatever the store does.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// A replica is looked at this often, so that a promoted one ships within seconds.
const ROLE_INTERVAL: Duration = Duration::from_secs(1);

/// The archive and the parts of the configuration that concern it.
pub async fn archive(config: &Config) -> anyhow::Result<Archive> {
    let store = crate::store::open(&config.store.url, &config.store.options()).await?;
    Ok(Archive {
        store,
        shard: config.shard.clone(),
    })
}

pub fn snapshot_settings(config: &Config) -> take::Settings {
    take::Settings {
        staging_dir: config.snapshot.staging_dir.clone(),
        codec: config.snapshot.codec,
        accept_empty: config.snapshot.accept_empty.clone(),
    }
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    let endpoint = config.endpoint()?;
    let Some(_lock) = StateLock::try_take(&config.state_path)? else {
        let e = anyhow::anyhow!("another mysql-pitr holds the state file {}", config.state_path.display());
        return Err(with_hint(
            e,
            "one agent runs on a node; stop the other, or give this one its own [state] path",
        ));
    };
    let archive = archive(config).await?;
    // Only to find mistakes of the configuration at once; whatever may heal is tried again later.
    if let Err(e) = Session::connect(&endpoint).await {
        warn!("the server cannot be reached yet: {}", render(&e));
    }
    let (stop_sender, stop) = watch::channel(false);
    let (standing_sender, standing) = watch::channel(Standing::default());
    let watching = tokio::spawn(watch_role(endpoint.clone(), standing_sender));
    let (disk_sender, short_of_disk) = watch::channel(false);
    let watching_disk = tokio::spawn(disk::watch(
        endpoint.clone(),
        config.ship.free_space_floor.as_u64(),
        disk_sender,
    ));
    let shipper = Arc::new(Shipper {
        archive: archive.clone(),
        server: Arc::new(Mysql(endpoint.clone())),
        standing,
        short_of_disk,
        catalog: Arc::new(Catalog::open(&config.state_path)),
        settings: crate::ship::Settings {
            flush_interval: config.ship.flush_interval,
            segment_bytes: config.ship.segment_bytes.as_u64(),
            codec: config.ship.codec,
            backlog_workers: config.ship.backlog_workers,
        },
        status: watch::channel(Status::default()).0,
        snapshot_wanted: Arc::new(Notify::new()),
    });
    info!(shard = %config.shard, store = archive.store.url(), server = %endpoint.address, "the agent runs");
    let snapshots = Snapshots {
        archive,
        endpoint,
        settings: snapshot_settings(config),
        wanted: shipper.snapshot_wanted.clone(),
        status: shipper.status.subscribe(),
    };
    let shipping = tokio::spawn({
        let (shipper, stop) = (shipper.clone(), stop.clone());
        async move { shipper.run(stop).await }
    });
    let snapshotting = tokio::spawn(async move { snapshots.run().await });
    wait_for_signal().await?;
    info!("stopping");
    stop_sender.send_replace(true);
    // A snapshot that is under way is given up: its record stays `started`, and the next start ends it.
    snapshotting.abort();
    watching.abort();
    watching_disk.abort();
    match timeout(STOP_PATIENCE, shipping).await {
        Ok(joined) => joined.context("the shipping task died"),
        Err(_) => bail!(
            "shipping did not stop within {} s; nothing is lost by that",
            STOP_PATIENCE.as_secs()
        ),
    }
}

/// Without Orchestrator the server is primary when it is writable.
async fn watch_role(endpoint: Endpoint, standing: watch::Sender<Standing>) {
    let mut looks = interval(ROLE_INTERVAL);
    loop {
        looks.tick().await;
        let looked = async { Session::connect(&endpoint).await?.is_writable().await };
        // That the server says nothing is the stream's matter.
        if let Ok(is_writable) = looked.await {
            let seen = Standing {
                is_writable,
                is_primary: is_writable,
                confirmed_by: None,
                takes_snapshots: is_writable,
            };
            standing.send_if_modified(|s| std::mem::replace(s, seen.clone()) != seen);
        }
    }
}

/// SIGTERM or SIGINT.
pub async fn wait_for_signal() -> anyhow::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

/// Between attempts at the first snapshot of a root.
fn retry_first() -> Backoff {
    Backoff::new(Duration::from_secs(5), Duration::from_secs(300))
}

/// Takes the snapshots that are asked for in the bucket, and the first one of every root timeline.
struct Snapshots {
    archive: Archive,
    endpoint: Endpoint,
    settings: take::Settings,
    wanted: Arc<Notify>,
    status: watch::Receiver<Status>,
}

impl Snapshots {
    async fn run(self) {
        let mut looks = interval(request::POLL_INTERVAL);
        let (mut seen, mut swept) = (None, false);
        // When to try the root's first snapshot, if one is wanted.
        let (mut first_due, mut backoff) = (None, retry_first());
        loop {
            tokio::select! {
                () = self.wanted.notified() => (first_due, backoff) = (Some(Instant::now()), retry_first()),
                _ = looks.tick() => {}
            }
            if self.status.borrow().primary != Some(true) {
                continue;
            }
            let done = async {
                if !swept {
                    self.sweep().await?;
                    swept = true;
                }
                if first_due.is_some_and(|due| due <= Instant::now()) {
                    // Until it succeeds, nothing is recoverable.
                    first_due = Some(Instant::now() + backoff.step());
                    self.first_of_root().await?;
                    first_due = None;
                }
                self.requested(&mut seen).await
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

    /// The shard's current timeline, if this server is the one that it names: only its snapshots serve anybody.
    async fn own_tip(&self) -> anyhow::Result<Option<u32>> {
        let (timelines, server_uuid) = (self.archive.timelines().await?, self.server_uuid().await?);
        Ok(path::tip(&timelines)
            .filter(|tip| tip.server_uuid == server_uuid)
            .map(|tip| tip.id))
    }

    /// A root inherits nothing, so that it is recoverable only from a snapshot of its own on.
    async fn first_of_root(&self) -> anyhow::Result<()> {
        let Some(tip) = self.own_tip().await? else { return Ok(()) };
        let is_its_own = |s: &Snapshot| s.timeline == tip && s.state == SnapshotState::Complete;
        if self.archive.snapshots().await?.iter().any(is_its_own) {
            return Ok(());
        }
        self.take(&take::new_id()).await
    }

    async fn requested(&self, seen: &mut Option<String>) -> anyhow::Result<()> {
        let requests = request::open_requests(&self.archive, seen.as_deref()).await?;
        if requests.is_empty() || self.own_tip().await?.is_none() {
            return Ok(());
        }
        for id in requests {
            self.take(&id).await?;
            *seen = Some(id);
        }
        Ok(())
    }

    async fn take(&self, id: &str) -> anyhow::Result<()> {
        take::take(&self.archive, &self.endpoint, &self.settings, id, &Progress::silent())
            .await
            .map(|_| ())
    }
}
