//! The rounds of shipping, and what they share.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::{
    archive::{
        codec::Codec,
        keys::BinlogPlace,
        listing::Archive,
        records::{DESCENT_FILE, Descent, Ending, Opening, Reason, Timeline},
    },
    binlog::gtid::GtidSet,
    mysql::{endpoint::Endpoint, query::Session},
    support::{clock, hint::render, retry::Backoff},
};

use super::{
    beginning::Identity,
    catalog::Catalog,
    lineage::{Claim, Claimant, claim_timeline, settle},
    puts::put_once,
    reconcile::{Unsealed, reconcile},
    seal::{ToSeal, identify, seal},
    tail::Tail,
};

/// A replica is looked at this often, so that a promoted one ships within seconds.
const ROLE_INTERVAL: Duration = Duration::from_secs(2);
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(15);
const NS_PER_US: i64 = 1000;

#[derive(Debug, Clone)]
pub struct Settings {
    pub flush_interval: Duration,
    pub segment_bytes: u64,
    pub codec: Codec,
}

/// Where shipping stands.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Whether the server is writable, which in standalone mode makes it the primary.
    pub primary: bool,
    pub timeline: Option<u32>,
    /// The watermark: binlog and position up to which everything is stored.
    pub durable: Option<(String, u64)>,
    pub durable_at_us: Option<i64>,
    pub received_bytes: u64,
    pub segments_stored: u64,
}

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

/// What the parts of one round share.
pub struct Round {
    pub archive: Archive,
    pub endpoint: Endpoint,
    pub catalog: Arc<Catalog>,
    pub settings: Settings,
    pub status: watch::Sender<Status>,
    pub server_uuid: Uuid,
    pub timeline: Timeline,
    /// The server's gtid_purged when the round began.
    pub purged: GtidSet,
    /// A binlog that was killed in the middle lies before the next one that is opened.
    pub crashed: bool,
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
        let mut timeline = settle_server(&self.archive, &mut session).await?;
        let server_uuid = timeline.server_uuid;
        let mut todo = reconcile(&self.archive, &self.endpoint, &mut session, server_uuid, timeline.id).await?;
        if todo.history_was_replaced {
            error!("the server's history begins anew (RESET BINARY LOGS AND GTIDS?): a new root timeline and a snapshot follow");
            let claim = Claim {
                parent: None,
                branch_set: GtidSet::new(),
                reason: Reason::Reset,
                adopted: timeline.adopted,
            };
            timeline = claim_timeline(&self.archive, &self.archive.timelines().await?, server_uuid, claim).await?;
        }
        if timeline.parent.is_none() {
            self.snapshot_wanted.notify_one();
        }
        let mut round = Round {
            archive: self.archive.clone(),
            endpoint: self.endpoint.clone(),
            catalog: self.catalog.clone(),
            settings: self.settings.clone(),
            status: self.status.clone(),
            server_uuid,
            timeline,
            purged: session.gtid_purged().await?,
            crashed: todo.ending_before == Some(Ending::Crash),
        };
        session.close().await;
        let live = todo.binlogs.pop().context("the server has no binlog; is log_bin on?")?;
        for closed in todo.binlogs {
            tokio::select! {
                () = stopped(stop) => return Ok(()),
                done = round.closed(closed) => done?,
            }
        }
        Tail::new(&mut round, &live.file.name, live.known).follow(stop).await
    }
}

impl Round {
    /// A closed binlog that is not sealed yet.
    async fn closed(&mut self, binlog: Unsealed) -> anyhow::Result<()> {
        let Unsealed { file, known } = binlog;
        if let Some((opening, covered)) = &known
            && *covered > file.bytes
        {
            // What was shipped and then lost in the crash stays in the segments, and no later timeline inherits it.
            error!(binlog = %file.name, shipped_bytes = covered, bytes = file.bytes, "a crash took back a part of a binlog that was shipped already");
            self.timeline = self.timeline_of(opening.timeline).await?;
            self.crashed = true;
            return Ok(());
        }
        let opening = match known {
            Some((opening, _)) => {
                if opening.timeline != self.timeline.id {
                    self.timeline = self.timeline_of(opening.timeline).await?;
                }
                opening
            }
            // A binlog without a transaction needs no object.
            None => match identify(&self.endpoint, &file.name).await? {
                Some(identity) => self.open(&file.name, &identity).await?,
                None => return Ok(()),
            },
        };
        let work = ToSeal {
            name: file.name,
            opening,
            expected_bytes: Some(file.bytes),
        };
        let manifest = seal(&self.archive, &self.endpoint, &self.catalog, self.settings.codec, &work).await?;
        self.crashed = manifest.ending == Ending::Crash;
        Ok(())
    }

    async fn timeline_of(&self, id: u32) -> anyhow::Result<Timeline> {
        let timelines = self.archive.timelines().await?;
        timelines
            .into_iter()
            .find(|t| t.id == id)
            .with_context(|| format!("timeline {id}, which a binlog belongs to, is not in the archive"))
    }

    /// Gives a binlog its place: the record that is stored before anything else of it.
    pub async fn open(&mut self, name: &str, identity: &Identity) -> anyhow::Result<Opening> {
        let place = BinlogPlace {
            server_uuid: self.server_uuid,
            label_ns: clock::now_us() * NS_PER_US,
            name: name.to_owned(),
        };
        let mut opening = identity.opening(self.timeline.id, place, &self.purged);
        if self.crashed {
            self.branch_after_crash(&opening.held_before).await?;
            opening.timeline = self.timeline.id;
        }
        let bytes = serde_json::to_vec_pretty(&opening)?;
        put_once(
            &self.archive.store,
            &opening.place.opening_key(&self.archive.shard),
            bytes.into(),
        )
        .await?;
        info!(binlog = name, timeline = opening.timeline, fingerprint = %opening.fingerprint, "opened a binlog in the archive");
        Ok(opening)
    }

    /// i13: whatever can take history back starts a child, whether or not a loss is known.
    async fn branch_after_crash(&mut self, held: &GtidSet) -> anyhow::Result<()> {
        let is_done = self.timeline.reason == Reason::Crash && self.timeline.branch_set == *held;
        if !is_done {
            let claim = Claim {
                parent: Some(self.timeline.id),
                branch_set: held.clone(),
                reason: Reason::Crash,
                adopted: self.timeline.adopted,
            };
            let timelines = self.archive.timelines().await?;
            self.timeline = claim_timeline(&self.archive, &timelines, self.server_uuid, claim).await?;
        }
        self.crashed = false;
        Ok(())
    }
}

/// Resolves once the agent is told to stop.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The sender lives as long as the process; without it there is nothing to wait for either.
    let _ = stop.wait_for(|s| *s).await;
}

/// The timeline on which the server behind `session` goes on, claimed if it has none.
pub async fn settle_server(archive: &Archive, session: &mut Session) -> anyhow::Result<Timeline> {
    let variables = session.variables().await?;
    let descent = read_descent(&variables.datadir(), archive)?;
    settle(
        archive,
        &Claimant {
            server_uuid: variables.server_uuid()?,
            descent: descent.as_ref(),
        },
    )
    .await
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
