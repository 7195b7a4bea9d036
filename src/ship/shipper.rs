//! Round after round, until the agent is told to stop.

use std::{future::pending, num::NonZero, path::Path, sync::Arc, thread::available_parallelism, time::Duration};

use anyhow::{Context, bail};
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    time::{Instant, interval, sleep},
};
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::{
    archive::{
        listing::Archive,
        path,
        records::{DESCENT_FILE, Descent, Ending, Reason, Timeline},
    },
    mysql::{
        query::ServerBinlog,
        server::{Server, ServerState, SharedServer},
    },
    support::{
        hint::{message, render},
        retry::Backoff,
    },
};

use super::{
    catalog::Catalog,
    lineage::{Claim, Claimant, claim_timeline, is_primary, settle, warn_if_off_the_path},
    reconcile::{Todo, reconcile},
    round::{Round, Settings, stopped},
    seal::{Sealer, ToSeal},
    sealing::Sealing,
    standing::Standing,
    status::Status,
    tail::Tail,
};

/// How often a round looks whether somebody else claimed a timeline: a LIST.
const LINEAGE_INTERVAL: Duration = Duration::from_secs(15);
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(15);
/// After that a human must look.
const FAILING_TOLERATED: Duration = Duration::from_secs(60);

/// Ships one server's binlogs.
pub struct Shipper {
    pub archive: Archive,
    pub server: SharedServer,
    pub standing: watch::Receiver<Standing>,
    /// Whether the disk that the server writes its binlogs to is nearly full.
    pub short_of_disk: watch::Receiver<bool>,
    pub catalog: Arc<Catalog>,
    pub settings: Settings,
    pub status: watch::Sender<Status>,
    /// Told when the server goes on with a timeline, which may need a snapshot to become recoverable.
    pub snapshot_wanted: Arc<Notify>,
}

impl Shipper {
    /// Ships until `stop`; failures are logged and tried again, for as long as it takes.
    pub async fn run(&self, mut stop: watch::Receiver<bool>) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        let mut failing_since = None;
        loop {
            let started = Instant::now();
            let mut standing = self.standing.clone();
            let wait = match self.round(&mut stop).await {
                Ok(()) if *stop.borrow() => return,
                Ok(()) => {
                    failing_since = None;
                    self.status.send_modify(|s| s.failing_since_us = None);
                    tokio::select! {
                        biased;
                        () = stopped(&mut stop) => return,
                        _ = standing.wait_for(Standing::ships) => {}
                    }
                    continue;
                }
                Err(e) => {
                    if started.elapsed() > RETRY_LONGEST {
                        (backoff, failing_since) = (Backoff::new(RETRY_FIRST, RETRY_LONGEST), None);
                    }
                    let since = *failing_since.get_or_insert(started);
                    let text = render(&e);
                    self.status.send_modify(|s| s.fails(message(&e)));
                    if since.elapsed() > FAILING_TOLERATED {
                        error!(
                            "nothing was shipped for {} s, and it is tried again: {text}",
                            since.elapsed().as_secs()
                        );
                    } else {
                        warn!("shipping was interrupted and is tried again: {text}");
                    }
                    backoff.step()
                }
            };
            tokio::select! {
                biased;
                () = stopped(&mut stop) => return,
                () = sleep(wait) => {}
            }
        }
    }

    async fn round(&self, stop: &mut watch::Receiver<bool>) -> anyhow::Result<()> {
        let mut standing = self.standing.clone();
        let known = standing.borrow_and_update().clone();
        if known == Standing::default() {
            // Nobody has looked at the server yet.
            return Ok(());
        }
        let primary = known.ships();
        let mut before = None;
        self.status.send_modify(|s| before = s.primary.replace(primary));
        if before != Some(primary) {
            info!("the server is {}", if primary { "shipped" } else { "not shipped: a replica" });
        }
        if !primary {
            return Ok(());
        }
        let short_of_disk = *self.short_of_disk.borrow();
        let state = self.server.look().await?;
        if short_of_disk {
            // Before anything is asked of the store, which may be why the disk is full.
            self.tell_of_the_gap(&state);
        }
        let seen = standing.borrow_and_update().clone();
        let settled = settle_and_reconcile(&self.archive, &*self.server, &state, &seen).await?;
        let (timeline, mut todo) = (settled.timeline, settled.todo);
        let server_uuid = state.server_uuid;
        // A new root, a gap: whoever takes the snapshots sees whether one is needed.
        self.snapshot_wanted.notify_one();
        let mut round = Round {
            archive: self.archive.clone(),
            server: self.server.clone(),
            catalog: self.catalog.clone(),
            settings: self.settings.clone(),
            status: self.status.clone(),
            snapshot_wanted: self.snapshot_wanted.clone(),
            server_uuid: timeline.server_uuid,
            timeline,
            crashed: todo.ending_before == Some(Ending::Crash),
            vanished_label_ns: todo.vanished_label_ns,
            short_of_disk,
        };
        self.status.send_modify(|s| s.begins(round.timeline.id, &todo.binlogs));
        let live = todo.binlogs.pop().context("the server has no binlog; is log_bin on?")?;
        let closed = tokio::select! {
            biased;
            () = stopped(stop) => return Ok(()),
            placed = round.place_closed(todo.binlogs, &live) => placed?,
        };
        self.status.send_modify(|s| s.keeps_only(&closed));
        if let Some((opening, _)) = &live.known {
            round.resume(opening).await?;
        }
        // A server that becomes read-only stops being shipped as an agent does that is stopped: what was received is stored.
        let (end, mut ended) = watch::channel(false);
        let mut sealing_ended = ended.clone();
        let watching = async {
            tokio::select! {
                biased;
                () = stopped(stop) => {}
                () = self.superseded(&mut standing, &seen, settled.tip, server_uuid) => {}
            }
            end.send_replace(true);
            pending::<()>().await;
        };
        let mut disk = self.short_of_disk.clone();
        let disk_changed = async {
            if disk.wait_for(|short| *short != short_of_disk).await.is_err() {
                pending::<()>().await;
            }
        };
        let (sealing, complete) = self.sealing(closed, short_of_disk);
        tokio::select! {
            biased;
            followed = Tail::new(&mut round, &live.file.name, live.known, complete).follow(&mut ended) => followed,
            sealed = sealing.run(&mut sealing_ended) => sealed,
            // All streams are hung up, and the next round goes by what is so now.
            () = disk_changed => Ok(()),
            () = watching => Ok(()),
        }
    }

    /// Resolves once the round rests on something that is no longer so: the server's standing, or whose the shard's current
    /// timeline is.
    async fn superseded(&self, standing: &mut watch::Receiver<Standing>, seen: &Standing, tip: Option<u32>, server_uuid: Uuid) {
        let mut looks = interval(LINEAGE_INTERVAL);
        loop {
            let changed = async {
                let is_news = |now: &Standing| !now.ships() || now.word().is_some() && now.word() != seen.word();
                standing.wait_for(is_news).await.map(|now| now.ships())
            };
            tokio::select! {
                ships = changed => {
                    if !ships.unwrap_or(true) {
                        info!("the server became a replica");
                    }
                    return;
                }
                _ = looks.tick() => {
                    // A store that does not answer is the uploads' matter.
                    let Ok(timelines) = self.archive.timelines().await else { continue };
                    let now = path::tip(&timelines);
                    let by_this_round = |t: &Timeline| t.server_uuid == server_uuid && t.reason == Reason::Crash;
                    if now.is_some_and(|t| Some(t.id) != tip && !by_this_round(t)) {
                        info!(before = ?tip, now = ?now.map(|t| t.id), "somebody else claimed the shard's current timeline");
                        return;
                    }
                }
            }
        }
    }

    fn tell_of_the_gap(&self, state: &ServerState) {
        let name = |binlog: Option<&ServerBinlog>| binlog.map_or(String::new(), |b| b.name.clone());
        let status = self.status.borrow();
        let followed = status.durable.as_ref().map(|(name, _)| name.clone());
        let first = status.backlog.keys().next().cloned().or(followed);
        let (first, last) = (
            first.unwrap_or_else(|| name(state.binlogs.first())),
            name(state.binlogs.last()),
        );
        error!(
            "the disk of the server's binlogs is nearly full: only the live one is read until there is room; {first} to {last} are not \
             archived whole, and what the server purges of them before it is archived is a gap"
        );
    }

    /// Where the disk is nearly full, closed binlogs are left alone: the server could not purge what is being read.
    fn sealing(&self, closed: Vec<ToSeal>, short_of_disk: bool) -> (Sealing, mpsc::UnboundedSender<ToSeal>) {
        let processors = available_parallelism().map_or(1, NonZero::get);
        let sealer = Sealer {
            archive: self.archive.clone(),
            server: self.server.clone(),
            catalog: self.catalog.clone(),
            codec: self.settings.codec,
            processors: Arc::new(Semaphore::new(processors)),
            read_bytes: Arc::default(),
        };
        let workers = if short_of_disk { 0 } else { self.settings.backlog_workers };
        Sealing::new(sealer, workers, self.status.clone(), closed)
    }
}

/// A server against the archive.
struct Settled {
    timeline: Timeline,
    todo: Todo,
    /// The shard's current timeline then.
    tip: Option<u32>,
}

/// The timeline that the server's data belong to. A primary's is claimed if it has none, or if its history is not the one that was
/// shipped; a replica's is the shard's current one.
pub async fn timeline_of(archive: &Archive, server: &dyn Server, standing: &Standing) -> anyhow::Result<Timeline> {
    let state = server.look().await?;
    if standing.ships() {
        return Ok(settle_and_reconcile(archive, server, &state, standing).await?.timeline);
    }
    let timelines = archive.timelines().await?;
    let tip = path::tip(&timelines).context("the archive has no timeline yet: the primary's agent claims the first")?;
    let missing = tip.branch_set.subtract(&state.gtid_executed);
    if !missing.is_empty() {
        bail!(
            "this replica does not belong to the shard's current timeline {}: it lacks {missing}, with which that one began",
            tip.id
        );
    }
    Ok(tip.clone())
}

async fn settle_and_reconcile(
    archive: &Archive,
    server: &dyn Server,
    state: &ServerState,
    standing: &Standing,
) -> anyhow::Result<Settled> {
    let (descent, word) = (read_descent(&state.datadir, archive)?, standing.word());
    let claimant = Claimant {
        server_uuid: state.server_uuid,
        gtid_executed: &state.gtid_executed,
        descent: descent.as_ref(),
        word: word.as_ref(),
        standalone: standing.standalone,
    };
    // A claim is made on what the decision was based on: whoever decides the same at the same moment collides with it.
    let (mut timeline, mut timelines) = settle(archive, &claimant).await?;
    let mut todo = reconcile(archive, server, state, &timelines, &timeline).await?;
    if todo.history_was_replaced {
        error!("the server's history begins anew (RESET BINARY LOGS AND GTIDS?): a new root timeline and a snapshot follow");
        let claim = Claim::root(Reason::Reset, is_primary(&timelines, state.server_uuid));
        timeline = claim_timeline(archive, &timelines, state.server_uuid, claim).await?;
        timelines.push(timeline.clone());
        // What the old history left behind is none of the root's business.
        todo = reconcile(archive, server, state, &timelines, &timeline).await?;
    } else if let Some(older) = timelines.iter().find(|t| Some(t.id) == todo.went_back_to) {
        timeline = older.clone();
    }
    warn_if_off_the_path(&timelines, &claimant, &timeline);
    let tip = path::tip(&timelines).map(|t| t.id);
    Ok(Settled { timeline, todo, tip })
}

/// What `recover` left in the datadir, if this server comes from it.
fn read_descent(datadir: &Path, archive: &Archive) -> anyhow::Result<Option<Descent>> {
    let path = datadir.join(DESCENT_FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        // A server that was never recovered has no such file; one that was may not be mistaken for it.
        Err(e) => return Err(e).with_context(|| format!("cannot see whether {} is there", path.display())),
    };
    let descent: Descent = serde_json::from_slice(&bytes).with_context(|| format!("{} is unreadable", path.display()))?;
    Ok((descent.shard == archive.shard.to_string()).then_some(descent))
}
