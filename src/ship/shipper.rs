//! Round after round, until the agent is told to stop.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};
use tracing::{error, warn};

use crate::{
    archive::{
        listing::Archive,
        records::{DESCENT_FILE, Descent, Ending, Reason, Timeline},
    },
    binlog::gtid::GtidSet,
    mysql::{endpoint::Endpoint, query::Session},
    support::{hint::render, retry::Backoff},
};

use super::{
    catalog::Catalog,
    lineage::{Claim, Claimant, claim_timeline, settle},
    reconcile::{Todo, reconcile},
    round::{Round, Settings, Status, stopped},
    tail::Tail,
};

/// A replica is looked at this often, so that a promoted one ships within seconds.
const ROLE_INTERVAL: Duration = Duration::from_secs(2);
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(15);

/// Ships one server's binlogs.
pub struct Shipper {
    pub archive: Archive,
    pub endpoint: Endpoint,
    pub catalog: Arc<Catalog>,
    pub settings: Settings,
    pub status: watch::Sender<Status>,
    /// Told when a new root needs a snapshot to become recoverable.
    pub snapshot_wanted: Arc<Notify>,
}

impl Shipper {
    /// Ships until `stop`; failures are logged and tried again, for as long as it takes.
    pub async fn run(&self, mut stop: watch::Receiver<bool>) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
        loop {
            let started = tokio::time::Instant::now();
            let wait = match self.round(&mut stop).await {
                Ok(()) if *stop.borrow() => return,
                Ok(()) => ROLE_INTERVAL,
                Err(e) => {
                    if started.elapsed() > RETRY_LONGEST {
                        backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
                    }
                    warn!("shipping was interrupted and is tried again: {}", render(&e));
                    backoff.step()
                }
            };
            tokio::select! {
                () = stopped(&mut stop) => return,
                () = sleep(wait) => {}
            }
        }
    }

    async fn round(&self, stop: &mut watch::Receiver<bool>) -> anyhow::Result<()> {
        let mut session = Session::connect(&self.endpoint).await?;
        let primary = session.is_writable().await?;
        self.status.send_modify(|s| s.primary = primary);
        if !primary {
            session.close().await;
            return Ok(());
        }
        let (timeline, mut todo) = settle_and_reconcile(&self.archive, &self.endpoint, &mut session).await?;
        if timeline.parent.is_none() {
            self.snapshot_wanted.notify_one();
        }
        let mut round = Round {
            archive: self.archive.clone(),
            endpoint: self.endpoint.clone(),
            catalog: self.catalog.clone(),
            settings: self.settings.clone(),
            status: self.status.clone(),
            server_uuid: timeline.server_uuid,
            timeline,
            purged: session.gtid_purged().await?,
            crashed: todo.ending_before == Some(Ending::Crash),
            vanished_label_ns: todo.vanished_label_ns,
        };
        session.close().await;
        let live = todo.binlogs.pop().context("the server has no binlog; is log_bin on?")?;
        for closed in todo.binlogs {
            tokio::select! {
                () = stopped(stop) => return Ok(()),
                done = round.closed(closed) => done?,
            }
        }
        if let Some((opening, _)) = &live.known {
            round.resume(opening).await?;
        }
        Tail::new(&mut round, &live.file.name, live.known).follow(stop).await
    }
}

/// The timeline on which the server behind `session` goes on, claimed if it has none, or if its history is not the one that was
/// shipped.
pub async fn settle_server(archive: &Archive, endpoint: &Endpoint, session: &mut Session) -> anyhow::Result<Timeline> {
    Ok(settle_and_reconcile(archive, endpoint, session).await?.0)
}

async fn settle_and_reconcile(archive: &Archive, endpoint: &Endpoint, session: &mut Session) -> anyhow::Result<(Timeline, Todo)> {
    let variables = session.variables().await?;
    let server_uuid = variables.server_uuid()?;
    let descent = read_descent(&variables.datadir(), archive)?;
    let claimant = Claimant {
        server_uuid,
        descent: descent.as_ref(),
    };
    let timeline = settle(archive, &claimant).await?;
    let todo = reconcile(archive, endpoint, session, server_uuid, timeline.id).await?;
    if !todo.history_was_replaced {
        return Ok((timeline, todo));
    }
    error!("the server's history begins anew (RESET BINARY LOGS AND GTIDS?): a new root timeline and a snapshot follow");
    let claim = Claim {
        parent: None,
        branch_set: GtidSet::new(),
        reason: Reason::Reset,
        adopted: timeline.adopted,
    };
    let root = claim_timeline(archive, &archive.timelines().await?, server_uuid, claim).await?;
    // What the old history left behind is none of the root's business.
    let todo = reconcile(archive, endpoint, session, server_uuid, root.id).await?;
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
