//! The daemon: one task that ships, one that takes snapshots, one that watches the server's role, those that watch and answer, and
//! their end.

pub mod document;
mod health;
mod http;
mod monitor;
mod presence;
mod publish;
pub mod replica;
pub mod role;
mod sampler;
mod snapshots;
pub mod survey;
mod volumes;

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
    time::timeout,
};
use tracing::{info, warn};

use self::{
    monitor::{Parts, SnapshotCounts},
    presence::Herald,
    role::RoleWatch,
    snapshots::Snapshots,
    survey::Surveyor,
    volumes::Keeper,
};
use crate::{
    archive::listing::Archive,
    config::Config,
    mysql::{query::Session, server::Mysql},
    ship::{
        Shipper, Status,
        catalog::{Catalog, StateLock},
    },
    snapshot::take,
    store::counted::{Errors, counted},
    support::{
        clock::WallClock,
        hint::{render, with_hint},
    },
};

mod disk;

/// From a signal to the end, whatever the store does.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// The archive and the parts of the configuration that concern it.
pub async fn archive(config: &Config) -> anyhow::Result<Archive> {
    let store = crate::store::open(&config.store.url, &config.store.options()).await?;
    Ok(Archive {
        store,
        shard: config.shard.clone(),
        clock: Arc::new(WallClock),
    })
}

pub fn snapshot_settings(config: &Config) -> anyhow::Result<take::Settings> {
    Ok(take::Settings {
        volumes: config.volumes()?,
        staging_dir: config.snapshot.staging_dir.clone(),
        codec: config.snapshot.codec,
        accept_empty: config.snapshot.accept_empty.clone(),
    })
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    // First of all: a signal that comes while the agent starts is to end it as cleanly as a later one.
    let told_to_stop = signals()?;
    let endpoint = config.endpoint()?;
    let Some(_lock) = StateLock::try_take(&config.state_path)? else {
        let e = anyhow::anyhow!("another mysql-pitr holds the state file {}", config.state_path.display());
        return Err(with_hint(
            e,
            "one agent runs on a node; stop the other, or give this one its own [state] path",
        ));
    };
    let mut archive = archive(config).await?;
    let errors = Errors::default();
    archive.store = counted(archive.store, errors.clone());
    // Only to find mistakes of the configuration at once; whatever may heal is tried again later.
    if let Err(e) = Session::connect(&endpoint).await {
        warn!("the server cannot be reached yet: {}", render(&e));
    }
    let (stop_sender, stop) = watch::channel(false);
    let orchestrator = config.orchestrator()?;
    let poll_interval = orchestrator.as_ref().map(|o| o.poll_interval);
    let roles = RoleWatch::new(endpoint.clone(), orchestrator)?;
    let (disk_sender, short_of_disk) = watch::channel(false);
    let watching_disk = tokio::spawn(disk::watch(
        endpoint.clone(),
        config.ship.free_space_floor.as_u64(),
        disk_sender,
    ));
    let shipper = Arc::new(Shipper {
        archive: archive.clone(),
        server: Arc::new(Mysql(endpoint.clone())),
        standing: roles.subscribe(),
        ask_again: roles.ask_again(),
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
    let counts = Arc::new(SnapshotCounts::default());
    let (look_sender, looks) = watch::channel(None);
    let (replica_sender, replica_seen) = watch::channel(None);
    let mut monitoring = monitor::start(Parts {
        config,
        archive: &archive,
        endpoint: &endpoint,
        poll_interval,
        standing: roles.subscribe(),
        status: shipper.status.subscribe(),
        catalog: &shipper.catalog,
        errors,
        snapshots: counts.clone(),
        looks: looks.clone(),
        replica: replica_seen,
    })
    .await;
    let surveyor = Surveyor::new(archive.clone(), shipper.status.subscribe(), roles.subscribe());
    monitoring.spawn(replica::run(
        config.clone(),
        archive.clone(),
        roles.subscribe(),
        replica_sender,
    ));
    monitoring.spawn(surveyor.run(look_sender, shipper.snapshot_wanted.clone()));
    let herald = Herald {
        archive: archive.clone(),
        endpoint: endpoint.clone(),
        standing: roles.subscribe(),
    };
    let telling = tokio::spawn(herald.run(stop.clone()));
    let settings = snapshot_settings(config)?;
    let keeper = settings.volumes.clone().map(|volumes| {
        let accepted = settings.accept_empty.clone();
        Keeper::new(&archive, &endpoint, volumes, accepted, counts.clone())
    });
    let snapshots = Snapshots {
        counts,
        archive,
        endpoint,
        settings,
        keeper,
        schedule: config.snapshot.schedule()?,
        looks,
        look_again: shipper.snapshot_wanted.clone(),
        standing: roles.subscribe(),
    };
    tokio::spawn({
        let stop = stop.clone();
        async move { roles.run(stop).await }
    });
    let shipping = tokio::spawn({
        let (shipper, stop) = (shipper.clone(), stop.clone());
        async move { shipper.run(stop).await }
    });
    let snapshotting = tokio::spawn(async move { snapshots.run().await });
    told_to_stop.await;
    info!("stopping");
    stop_sender.send_replace(true);
    // A snapshot that is under way is given up: its record stays `started`, and the next start ends it.
    snapshotting.abort();
    watching_disk.abort();
    drop(monitoring);
    let (shipping, _) = tokio::join!(timeout(STOP_PATIENCE, shipping), timeout(STOP_PATIENCE, telling));
    match shipping {
        Ok(joined) => joined.context("the shipping task died"),
        Err(_) => bail!(
            "shipping did not stop within {} s; nothing is lost by that",
            STOP_PATIENCE.as_secs()
        ),
    }
}

/// SIGTERM or SIGINT.
pub async fn wait_for_signal() -> anyhow::Result<()> {
    signals()?.await;
    Ok(())
}

/// From now on these signals end nothing by themselves; the future is ready after the first of them.
fn signals() -> anyhow::Result<impl Future<Output = ()>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}
