//! Everything that is known of the running agent, put together when somebody asks.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, task::JoinSet};

use crate::{
    archive::listing::Archive,
    config::Config,
    metrics::Metrics,
    mysql::endpoint::Endpoint,
    ship::{Status, catalog::Catalog, standing::Standing},
    store::counted::Errors,
    support::clock::Moment,
};

use super::{
    document::{ArchiveView, AtRisk, Backlog, CopiesView, Document, LastError, LockView, Shipped, Totals},
    health::complaint,
    http,
    publish::publish,
    replica::Seen,
    sampler::Sampler,
    survey::Look,
};

const US_PER_S: f64 = 1e6;
/// A role is stale when Orchestrator has given no clear answer for so many of its polls.
const POLLS_MISSED: u32 = 3;

/// How the snapshots of this process ended, and when it is to take the next.
#[derive(Debug, Default)]
pub struct SnapshotCounts {
    pub complete: AtomicU64,
    pub failed: AtomicU64,
    /// µs since the epoch; 0 where it takes none by a schedule.
    pub next_us: AtomicI64,
    /// The last lock of the server for one.
    pub lock: Mutex<Option<LockView>>,
    /// What another region lacks.
    pub copies: Mutex<Option<CopiesView>>,
}

/// Nothing is left half done by whoever panics with it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers how the agent stands.
pub struct Monitor {
    shard: String,
    store: String,
    started_at: Moment,
    flush_interval: Duration,
    /// From one question to Orchestrator to the next; None where none is asked.
    poll_interval: Option<Duration>,
    status: watch::Receiver<Status>,
    standing: watch::Receiver<Standing>,
    looks: watch::Receiver<Option<Look>>,
    replica: watch::Receiver<Option<Seen>>,
    sampler: Sampler,
    errors: Errors,
    snapshots: Arc<SnapshotCounts>,
    /// Locked while a text is made, so that no two scrapes bring counters up to date at once.
    metrics: Mutex<Metrics>,
}

/// What the monitor looks at.
pub struct Parts<'p> {
    pub config: &'p Config,
    pub archive: &'p Archive,
    pub endpoint: &'p Endpoint,
    pub poll_interval: Option<Duration>,
    pub status: watch::Receiver<Status>,
    pub standing: watch::Receiver<Standing>,
    pub catalog: &'p Catalog,
    pub errors: Errors,
    pub snapshots: Arc<SnapshotCounts>,
    pub looks: watch::Receiver<Option<Look>>,
    pub replica: watch::Receiver<Option<Seen>>,
}

/// Starts to sample, and to answer where the configuration says so. It ends when what is returned is dropped.
pub async fn start(parts: Parts<'_>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let Some(address) = parts.config.http.listen else {
        return tasks;
    };
    let monitor = Arc::new(Monitor {
        shard: parts.config.shard.to_string(),
        store: parts.archive.store.url().to_owned(),
        started_at: Moment::now(),
        flush_interval: parts.config.ship.flush_interval,
        sampler: Sampler::new(
            parts.endpoint.clone(),
            parts.status.clone(),
            parts.standing.clone(),
            parts.catalog.watermark(),
        ),
        poll_interval: parts.poll_interval,
        standing: parts.standing,
        status: parts.status,
        looks: parts.looks,
        replica: parts.replica,
        errors: parts.errors,
        snapshots: parts.snapshots,
        metrics: Mutex::new(Metrics::new()),
    });
    let sampling = monitor.clone();
    tasks.spawn(async move { sampling.sampler.run().await });
    http::start(address, monitor, &mut tasks).await;
    tasks
}

impl Monitor {
    pub fn document(&self) -> Document {
        // Cloned: whoever ships is not to wait for whoever asks.
        let s = self.status.borrow().clone();
        let archive = self.looks.borrow().as_ref().map(|look| look.view.clone());
        let standing = self.standing.borrow().clone();
        let ships = standing.ships();
        let on_path = s.timeline.zip(archive.as_ref()).and_then(|(own, view)| is_current(own, view));
        let at = Moment::now();
        let own_stored_us = s.durable_at_us.filter(|_| ships && on_path == Some(true));
        let archive = archive.map(|a| with_own(a, own_stored_us));
        let replica = self.replica.borrow().as_ref().map(|seen| seen.view(archive.as_ref()));
        let mut document = Document {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at,
            started_at: self.started_at,
            shard: self.shard.clone(),
            store: self.store.clone(),
            healthy: true,
            unhealthy_because: None,
            role: standing.role,
            standalone: standing.standalone,
            role_age_seconds: standing.age().map(|age| age.as_secs_f64()),
            role_is_stale: self.poll_interval.map(|interval| {
                let running_us = (at.0 - self.started_at.0).max(0).unsigned_abs();
                standing.age().unwrap_or(Duration::from_micros(running_us)) > interval * POLLS_MISSED
            }),
            takes_snapshots: standing.takes_snapshots,
            server_writable: standing.writable,
            confirmed_by: standing.confirmed_by,
            timeline: s.timeline.filter(|_| ships),
            on_path: on_path.filter(|_| ships),
            shipped: s
                .durable
                .filter(|_| ships)
                .map(|(binlog, position)| Shipped { binlog, position }),
            at_risk: self.sampler.risk().map(|risk| AtRisk {
                seconds: risk.age_us as f64 / US_PER_S,
                bytes: risk.bytes,
            }),
            binlog_expire_seconds: self.sampler.expire_seconds(),
            backlog: Backlog {
                binlogs: if ships { s.backlog.len() as u64 } else { 0 },
                bytes: if ships { s.backlog.values().sum() } else { 0 },
            },
            totals: Totals {
                received_bytes: s.received_bytes,
                stored_bytes: s.stored_bytes,
                segments_stored: s.segments_stored,
                sealed: s.sealed,
                snapshots_complete: self.snapshots.complete.load(Ordering::Relaxed),
                snapshots_failed: self.snapshots.failed.load(Ordering::Relaxed),
                store_errors: self.errors.count(),
                rounds_failed: s.rounds_failed,
            },
            next_snapshot_at: Some(self.snapshots.next_us.load(Ordering::Relaxed))
                .filter(|at| *at != 0)
                .map(Moment),
            snapshot_lock: lock(&self.snapshots.lock).clone(),
            snapshot_copies: *lock(&self.snapshots.copies),
            last_stored_at: s.durable_at_us.map(Moment),
            last_seal_at: s.sealed_at_us.map(Moment),
            failing_since: s.failing_since_us.map(Moment),
            last_error: s.last_error.map(|e| LastError {
                at: Moment(e.at_us),
                text: e.text,
            }),
            archive,
            replica,
        };
        document.unhealthy_because = complaint(&document, self.flush_interval);
        document.healthy = document.unhealthy_because.is_none();
        document
    }

    /// In Prometheus' text format.
    pub fn metrics(&self) -> String {
        let metrics = lock(&self.metrics);
        publish(&metrics, &self.document());
        metrics.render()
    }
}

/// Whether `own` is the shard's current timeline; None where it was claimed after the archive was looked at.
fn is_current(own: u32, view: &ArchiveView) -> Option<bool> {
    let was_seen = view.newest_timeline.is_some_and(|newest| own <= newest);
    view.tip.filter(|_| was_seen).map(|tip| own == tip)
}

/// The window ends later than its sealed binlogs do where this agent stored segments since.
fn with_own(mut view: ArchiveView, stored_at_us: Option<i64>) -> ArchiveView {
    if view.recoverable_from.is_some() {
        view.recoverable_until = view.recoverable_until.max(stored_at_us.map(Moment));
    }
    view
}
