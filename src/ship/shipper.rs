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
    mysql::{
        endpoint::Endpoint,
        query::{Session, Variables},
    },
    support::{
        hint::{render, with_hint},
        retry::Backoff,
    },
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
/// After that a human must look.
const FAILING_TOLERATED: Duration = Duration::from_secs(60);

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
        let mut failing_since = None;
        loop {
            let started = Instant::now();
            let wait = match self.round(&mut stop).await {
                Ok(()) if *stop.borrow() => return,
                Ok(()) => {
                    failing_since = None;
                    ROLE_INTERVAL
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
                () = stopped(&mut stop) => return,
                () = sleep(wait) => {}
            }
        }
    }

    async fn round(&self, stop: &mut watch::Receiver<bool>) -> anyhow::Result<()> {
        let mut session = Session::connect(&self.endpoint).await?;
        let primary = session.is_writable().await?;
        let mut before = None;
        self.status.send_modify(|s| before = s.primary.replace(primary));
        if before != Some(primary) {
            info!(
                "the server is {}",
                if primary {
                    "writable, and shipped"
                } else {
                    "read-only, and not shipped"
                }
            );
        }
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
        // A server that becomes read-only stops being shipped as an agent does that is stopped: what was received is stored.
        let (end, mut ended) = watch::channel(false);
        let watching = async {
            tokio::select! {
                () = stopped(stop) => {}
                () = self.demoted() => info!("the server became read-only"),
            }
            end.send_replace(true);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            followed = Tail::new(&mut round, &live.file.name, live.known).follow(&mut ended) => followed,
            () = watching => Ok(()),
        }
    }

    /// Resolves once the server says that it is read-only. That it says nothing is the stream's matter.
    async fn demoted(&self) {
        loop {
            sleep(ROLE_INTERVAL).await;
            let looked = async { Session::connect(&self.endpoint).await?.is_writable().await };
            if matches!(looked.await, Ok(false)) {
                return;
            }
        }
    }
}

/// The timeline on which the server behind `session` goes on, claimed if it has none, or if its history is not the one that was
/// shipped.
pub async fn settle_server(archive: &Archive, endpoint: &Endpoint, session: &mut Session) -> anyhow::Result<Timeline> {
    Ok(settle_and_reconcile(archive, endpoint, session).await?.0)
}

async fn settle_and_reconcile(archive: &Archive, endpoint: &Endpoint, session: &mut Session) -> anyhow::Result<(Timeline, Todo)> {
    let variables = session.variables().await?;
    ensure_shippable(&variables)?;
    let server_uuid = variables.server_uuid()?;
    let descent = read_descent(&variables.datadir(), archive)?;
    let claimant = Claimant {
        server_uuid,
        descent: descent.as_ref(),
    };
    let timeline = settle(archive, &claimant).await?;
    // A claim is made on what the decision was based on: whoever decides the same at the same moment collides with it.
    let timelines = archive.timelines().await?;
    let todo = reconcile(archive, endpoint, session, server_uuid, &timeline).await?;
    if !todo.history_was_replaced {
        return Ok((timeline, todo));
    }
    error!("the server's history begins anew (RESET BINARY LOGS AND GTIDS?): a new root timeline and a snapshot follow");
    let claim = Claim {
        parent: None,
        branch_set: GtidSet::new(),
        reason: Reason::Reset,
        adopted: timeline.adopted,
        skipped: GtidSet::new(),
    };
    let root = claim_timeline(archive, &timelines, server_uuid, claim).await?;
    // What the old history left behind is none of the root's business.
    let todo = reconcile(archive, endpoint, session, server_uuid, &root).await?;
    Ok((root, todo))
}

/// Without these nothing is claimed: there would be nothing to ship under the claim.
fn ensure_shippable(variables: &Variables) -> anyhow::Result<()> {
    for (name, needed) in [
        ("log_bin", "start mysqld with --log-bin"),
        ("gtid_mode", "set gtid_mode=ON and enforce_gtid_consistency=ON"),
    ] {
        if !variables.is_on(&[name]) {
            let value = variables.get(&[name]).unwrap_or("not there");
            return Err(with_hint(
                anyhow::anyhow!("the server cannot be shipped from: its {name} is {value}"),
                needed,
            ));
        }
    }
    Ok(())
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
