//! Round after round, until the agent is told to stop.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};
use tracing::{error, info, warn};

use crate::{
    archive::{
        listing::Archive,
        records::{DESCENT_FILE, Descent, Ending, Reason, Timeline},
    },
    binlog::gtid::GtidSet,
    mysql::server::{Server, ServerState, SharedServer},
    support::{hint::render, retry::Backoff},
};

use super::{
    catalog::Catalog,
    lineage::{Claim, Claimant, claim_timeline, settle},
    reconcile::{Todo, reconcile},
    round::{Round, Settings, Status, stopped},
    standing::Standing,
    tail::Tail,
};

const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(15);
/// After that a human must look.
const FAILING_TOLERATED: Duration = Duration::from_secs(60);

/// Ships one server's binlogs.
pub struct Shipper {
    pub archive: Archive,
    pub server: SharedServer,
    pub standing: watch::Receiver<Standing>,
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
        let primary = standing.borrow_and_update().ships();
        let mut before = None;
        self.status.send_modify(|s| before = s.primary.replace(primary));
        if before != Some(primary) {
            info!("the server is {}", if primary { "shipped" } else { "not shipped: a replica" });
        }
        if !primary {
            return Ok(());
        }
        let state = self.server.look().await?;
        let (timeline, mut todo) = settle_and_reconcile(&self.archive, &*self.server, &state).await?;
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
        };
        let live = todo.binlogs.pop().context("the server has no binlog; is log_bin on?")?;
        for closed in todo.binlogs {
            tokio::select! {
                biased;
                () = stopped(stop) => return Ok(()),
                done = round.closed(closed) => done?,
            }
        }
        if let Some((opening, _)) = &live.known {
            round.resume(opening).await?;
        }
        // A server that becomes read-only stops being shipped as an agent does that is stopped: what was received is stored.
        let (end, mut ended) = watch::channel(false);
        let watching = async {
            tokio::select! {
                biased;
                () = stopped(stop) => {}
                _ = standing.wait_for(|s| !s.ships()) => info!("the server became a replica"),
            }
            end.send_replace(true);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            followed = Tail::new(&mut round, &live.file.name, live.known).follow(&mut ended) => followed,
            () = watching => Ok(()),
        }
    }
}

/// The timeline on which the server goes on, claimed if it has none, or if its history is not the one that was shipped.
pub async fn settle_server(archive: &Archive, server: &dyn Server) -> anyhow::Result<Timeline> {
    let state = server.look().await?;
    Ok(settle_and_reconcile(archive, server, &state).await?.0)
}

async fn settle_and_reconcile(archive: &Archive, server: &dyn Server, state: &ServerState) -> anyhow::Result<(Timeline, Todo)> {
    let descent = read_descent(&state.datadir, archive)?;
    let claimant = Claimant {
        server_uuid: state.server_uuid,
        descent: descent.as_ref(),
    };
    let timeline = settle(archive, &claimant).await?;
    // A claim is made on what the decision was based on: whoever decides the same at the same moment collides with it.
    let timelines = archive.timelines().await?;
    let todo = reconcile(archive, server, state, &timelines, &timeline).await?;
    if !todo.history_was_replaced {
        let older = timelines.into_iter().find(|t| Some(t.id) == todo.went_back_to);
        return Ok((older.unwrap_or(timeline), todo));
    }
    error!("the server's history begins anew (RESET BINARY LOGS AND GTIDS?): a new root timeline and a snapshot follow");
    let claim = Claim {
        parent: None,
        branch_set: GtidSet::new(),
        reason: Reason::Reset,
        adopted: timeline.adopted,
    };
    let root = claim_timeline(archive, &timelines, state.server_uuid, claim).await?;
    // What the old history left behind is none of the root's business.
    let todo = reconcile(archive, server, state, &archive.timelines().await?, &root).await?;
    Ok((root, todo))
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
