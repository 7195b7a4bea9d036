//! Round after round, until the agent is told to stop.

use std::{collections::BTreeSet, future::pending, num::NonZero, sync::Arc, thread::available_parallelism, time::Duration};

use anyhow::Context;
use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    time::{Instant, interval, sleep, timeout},
};
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::{
    archive::{
        listing::Archive,
        path,
        records::{Ending, Reason, Timeline},
    },
    mysql::{
        query::ServerBinlog,
        server::{ServerState, SharedServer},
    },
    support::{
        hint::{message, render},
        retry::Backoff,
    },
};

use super::{
    catalog::Catalog,
    lineage::Word,
    round::{Round, Settings, stopped},
    seal::{Sealer, ToSeal},
    sealing::Sealing,
    settle::{Says, settle_and_reconcile},
    standing::Standing,
    status::Status,
    tail::Tail,
};

/// How often a round looks whether somebody else claimed a timeline: a LIST.
const LINEAGE_INTERVAL: Duration = Duration::from_secs(15);
/// How long a round waits for Orchestrator to be asked again.
const WORD_PATIENCE: Duration = Duration::from_secs(5);
/// How long a server that became a replica is still followed, at most.
const DEPOSED_PATIENCE: Duration = Duration::from_secs(600);
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(15);
/// After that a human must look.
const FAILING_TOLERATED: Duration = Duration::from_secs(60);

/// Ships one server's binlogs.
pub struct Shipper {
    pub archive: Archive,
    pub server: SharedServer,
    pub standing: watch::Receiver<Standing>,
    /// Has Orchestrator asked again.
    pub ask_again: Arc<Notify>,
    /// Whether the disk that the server writes its binlogs to is nearly full.
    pub short_of_disk: watch::Receiver<bool>,
    pub catalog: Arc<Catalog>,
    pub settings: Settings,
    pub status: watch::Sender<Status>,
    /// Told when the server goes on with a timeline, which may need a snapshot to become recoverable.
    pub snapshot_wanted: Arc<Notify>,
}

/// What one round leaves to the next.
#[derive(Default)]
struct Remembered {
    /// Faults of the archive that need not be told again.
    told: BTreeSet<String>,
    /// Which timeline of another server was the current one last, and when that was seen first.
    tip_seen: Option<(u32, Instant)>,
}

impl Shipper {
    /// Ships until `stop`; failures are logged and tried again, for as long as it takes.
    pub async fn run(&self, mut stop: watch::Receiver<bool>) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        let mut failing_since = None;
        let mut remembered = Remembered::default();
        loop {
            let started = Instant::now();
            let mut standing = self.standing.clone();
            let wait = match self.round(&mut stop, &mut remembered).await {
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

    async fn round(&self, stop: &mut watch::Receiver<bool>, remembered: &mut Remembered) -> anyhow::Result<()> {
        let mut standing = self.standing.clone();
        let known = standing.borrow_and_update().clone();
        if !known.ships() {
            return Ok(());
        }
        let short_of_disk = *self.short_of_disk.borrow();
        let state = self.server.look().await?;
        if short_of_disk {
            // Before anything is asked of the store, which may be why the disk is full.
            self.tell_of_the_gap(&state);
        }
        let word = self
            .fresh_word(&mut standing, state.server_uuid, &mut remembered.tip_seen)
            .await?;
        let had_word = word.is_some();
        let is_standalone = standing.borrow_and_update().standalone;
        let says = Says {
            word,
            is_standalone,
            is_settled: false,
        };
        let settled = settle_and_reconcile(&self.archive, &*self.server, &state, &says).await?;
        let (timeline, mut todo) = (settled.timeline, settled.todo);
        for fault in &todo.faults {
            if remembered.told.insert(fault.what.clone()) {
                error!(
                    hint = fault.hint,
                    "a record of the archive cannot be read, and shipping goes on as if it were not there: {}", fault.what
                );
            }
        }
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
            newest: timeline.id,
            timeline,
            crashed: todo.ending_before == Some(Ending::Crash),
            vanished_label_ns: todo.vanished_label_ns,
            short_of_disk,
            has_opened: false,
        };
        self.status.send_modify(|s| s.begins(round.timeline.id, &todo.binlogs));
        let live = todo.binlogs.pop().context("the server has no binlog; is log_bin on?")?;
        // A server that becomes a replica stops being shipped as an agent does that is stopped: what was received is stored.
        let (end, mut ended) = watch::channel(false);
        let mut sealing_ended = ended.clone();
        let watching = async {
            let mut superseded = standing.clone();
            tokio::select! {
                biased;
                () = stopped(stop) => {}
                () = self.deposed(&mut standing) => {}
                () = new_word(&mut superseded, had_word) => {}
                () = self.tip_changes(settled.tip, server_uuid) => {}
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
        let following = async {
            let closed = tokio::select! {
                biased;
                () = stopped(&mut ended) => return Ok(()),
                placed = round.place_closed(todo.binlogs, &live) => placed?,
            };
            self.status.send_modify(|s| s.placed(round.timeline.id, &closed));
            if let Some((opening, _)) = &live.known {
                round.resume(opening).await?;
            }
            let (sealing, complete) = self.sealing(closed, short_of_disk);
            tokio::select! {
                biased;
                followed = Tail::new(&mut round, &live.file.name, live.known, complete).follow(&mut ended) => followed,
                sealed = sealing.run(&mut sealing_ended) => sealed,
            }
        };
        tokio::select! {
            biased;
            followed = following => followed,
            // All streams are hung up, and the next round goes by what is so now.
            () = disk_changed => Ok(()),
            () = watching => Ok(()),
        }
    }

    /// Who says that the server is the shard's primary. Where the current timeline is another server's, a word counts that was asked for
    /// after this agent saw that: an older one may be from before a failover.
    async fn fresh_word(
        &self,
        standing: &mut watch::Receiver<Standing>,
        server_uuid: Uuid,
        tip_seen: &mut Option<(u32, Instant)>,
    ) -> anyhow::Result<Option<Word>> {
        let Some(word) = standing.borrow_and_update().word() else {
            return Ok(None);
        };
        let timelines = self.archive.timelines().await?;
        let Some(tip) = path::tip(&timelines).filter(|t| t.server_uuid != server_uuid) else {
            return Ok(Some(word));
        };
        let seen_at = match *tip_seen {
            Some((id, at)) if id == tip.id => at,
            _ => tip_seen.insert((tip.id, Instant::now())).1,
        };
        if standing.borrow().confirmed_at.is_some_and(|at| at > seen_at) {
            return Ok(Some(word));
        }
        self.ask_again.notify_one();
        let is_answer = |now: &Standing| now.confirmed_by.is_none() || now.confirmed_at.is_some_and(|at| at > seen_at);
        let answer = timeout(WORD_PATIENCE, standing.wait_for(is_answer)).await;
        Ok(answer.ok().and_then(|now| now.ok().and_then(|now| now.word())))
    }

    /// Resolves once the server is a replica, and what it had committed by then is stored: the store may be slow, and the server
    /// about to be shut down for good.
    async fn deposed(&self, standing: &mut watch::Receiver<Standing>) {
        if standing.wait_for(|now| !now.ships()).await.is_err() {
            return pending().await;
        }
        info!("the server became a replica: it is shipped up to here");
        let Ok(state) = self.server.look().await else { return };
        let Some(end) = state.binlogs.last() else { return };
        let mut status = self.status.subscribe();
        let is_stored = status.wait_for(|s| s.backlog.is_empty() && s.has_stored(&end.name, end.bytes));
        if timeout(DEPOSED_PATIENCE, is_stored).await.is_err() {
            warn!(
                binlog = end.name,
                "the server became a replica, and what it had committed was not stored within {} s: it is left to its successor to ship",
                DEPOSED_PATIENCE.as_secs()
            );
        }
    }

    /// Resolves once somebody else claimed the shard's current timeline, or an operator did for this server; or once nobody ships to this
    /// store any more.
    async fn tip_changes(&self, tip: Option<u32>, server_uuid: Uuid) {
        let mut looks = interval(LINEAGE_INTERVAL);
        loop {
            looks.tick().await;
            // A store that does not answer is the uploads' matter.
            if self.archive.standing_fence().await.is_ok_and(|fence| fence.is_some()) {
                info!("the store was left behind for another: it is shipped to up to here");
                return;
            }
            let Ok(timelines) = self.archive.timelines().await else {
                continue;
            };
            let by_this_round = |t: &Timeline| t.server_uuid == server_uuid && t.reason == Reason::Crash;
            if let Some(now) = path::tip(&timelines).filter(|t| Some(t.id) != tip && !by_this_round(t)) {
                info!(before = ?tip, now = now.id, server_uuid = %now.server_uuid, "the shard's current timeline is another one");
                return;
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

/// Resolves once somebody says that the server is the shard's primary, where nobody did.
async fn new_word(standing: &mut watch::Receiver<Standing>, had_word: bool) {
    if had_word || standing.wait_for(|now| now.word().is_some()).await.is_err() {
        pending().await
    }
}
