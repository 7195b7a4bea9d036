//! One round of shipping: what its parts share, and the steps that more than one of them takes.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use tokio::sync::{Notify, watch};
use tracing::{error, info};
use uuid::Uuid;

use crate::{
    archive::{
        codec::Codec,
        keys::{BinlogPlace, is_binlog_name},
        listing::Archive,
        records::{Ending, Opening, Reason, Timeline},
    },
    binlog::gtid::GtidSet,
    mysql::server::SharedServer,
};

use super::{
    beginning::Identity,
    catalog::Catalog,
    ending::ending,
    lineage::{Claim, claim_timeline, is_primary},
    puts::{PATIENCE, PATIENCE_SHORT_OF_DISK, put_once},
    reconcile::Unsealed,
    seal::{ToSeal, identify, is_fault_of_the_binlog},
    sealing::report_left_out,
    status::Status,
};

const NS_PER_US: i64 = 1000;

#[derive(Debug, Clone)]
pub struct Settings {
    pub flush_interval: Duration,
    pub segment_bytes: u64,
    pub codec: Codec,
    /// Closed binlogs that are sealed at a time.
    pub backlog_workers: usize,
}

/// What the parts of one round share.
pub struct Round {
    pub archive: Archive,
    pub server: SharedServer,
    pub catalog: Arc<Catalog>,
    pub settings: Settings,
    pub status: watch::Sender<Status>,
    pub server_uuid: Uuid,
    pub timeline: Timeline,
    /// The newest timeline of the server. Where it goes on from an older one, that one's child was claimed by an agent that died.
    pub newest: u32,
    /// A binlog that was killed in the middle lies before the next one that is opened.
    pub crashed: bool,
    /// As in [`super::Shipper`].
    pub snapshot_wanted: Arc<Notify>,
    /// As in [`super::reconcile::Todo`]: history may have been taken back here, too.
    pub vanished_label_ns: Option<i64>,
    /// The disk that the server writes its binlogs to is nearly full.
    pub short_of_disk: bool,
    /// Whether this round gave a binlog its place.
    pub has_opened: bool,
}

impl Round {
    /// Gives every closed binlog its place, oldest first, and so its timeline: one that follows a crash starts a child. `live` is what
    /// comes after them. Returns what can be sealed; nothing of it was read but beginnings and ends.
    pub async fn place_closed(&mut self, closed: Vec<Unsealed>, live: &Unsealed) -> anyhow::Result<Vec<ToSeal>> {
        let mut works = Vec::new();
        let mut closed = closed.into_iter().peekable();
        while let Some(binlog) = closed.next() {
            let name = binlog.file.name.clone();
            match self.place(binlog, closed.peek().unwrap_or(live)).await {
                Ok(work) => works.extend(work),
                Err(e) if is_fault_of_the_binlog(&e) => {
                    report_left_out(&name, &e);
                    // Nobody knows how it ends.
                    self.crashed = true;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(works)
    }

    async fn place(&mut self, binlog: Unsealed, successor: &Unsealed) -> anyhow::Result<Option<ToSeal>> {
        let Unsealed { file, known } = binlog;
        let opening = match known {
            Some((opening, covered)) => {
                self.resume(&opening).await?;
                if covered > file.bytes {
                    // What was lost stays in the segments, and no later timeline inherits it.
                    error!(binlog = %file.name, shipped_bytes = covered, bytes = file.bytes, "a crash took back a part of a binlog that was shipped already");
                    self.crashed = true;
                    return Ok(None);
                }
                opening
            }
            // A binlog without a transaction needs no object.
            None => match identify(&*self.server, &file.name).await? {
                Some(identity) => self.open(&file.name, &identity).await?,
                None => return Ok(None),
            },
        };
        // Where the successor has its place already, this was judged then.
        self.crashed = successor.known.is_none() && ending(&*self.server, &file, &successor.file.name).await? == Ending::Crash;
        Ok(Some(ToSeal { file, opening }))
    }

    /// How long the store may keep a stream from being read.
    pub fn patience(&self) -> Duration {
        if self.short_of_disk {
            PATIENCE_SHORT_OF_DISK
        } else {
            PATIENCE
        }
    }

    /// Goes on with a binlog that has its place already: whatever lay before it was judged then.
    pub async fn resume(&mut self, opening: &Opening) -> anyhow::Result<()> {
        if opening.timeline != self.timeline.id {
            self.timeline = self.timeline_of(opening.timeline).await?;
        }
        self.crashed = false;
        self.vanished_label_ns = self.vanished_label_ns.filter(|label| *label > opening.place.label_ns);
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
        // A part of a key.
        if !is_binlog_name(name) {
            bail!(
                "the server names a binlog `{}`, which cannot be archived under that name",
                name.escape_debug()
            );
        }
        let place = BinlogPlace {
            server_uuid: self.server_uuid,
            label_ns: self.archive.clock.now_us() * NS_PER_US,
            name: name.to_owned(),
        };
        // Not what it was when the round began: a RESET since then forgets what a clone or a recovery brought.
        let purged = self.server.look().await?.gtid_purged;
        let mut opening = identity.opening(self.timeline.id, place, &purged);
        let is_behind = self.timeline.id != self.newest;
        let branches = self.crashed || is_behind || self.vanished_label_ns.is_some();
        if branches {
            self.branch_after_crash(&opening.held_before).await?;
            opening.timeline = self.timeline.id;
        }
        let bytes = serde_json::to_vec_pretty(&opening)?;
        put_once(
            &self.archive.store,
            &opening.place.opening_key(&self.archive.shard),
            bytes.into(),
            self.patience(),
        )
        .await?;
        info!(binlog = name, timeline = opening.timeline, fingerprint = %opening.fingerprint, "opened a binlog in the archive");
        // Before the first one of a round there may be a gap, and a child may inherit none of its parent's snapshots.
        if !std::mem::replace(&mut self.has_opened, true) || branches {
            self.snapshot_wanted.notify_one();
        }
        Ok(opening)
    }

    /// i13: whatever can take history back starts a child, whether or not a loss is known.
    async fn branch_after_crash(&mut self, held: &GtidSet) -> anyhow::Result<()> {
        let timelines = self.archive.timelines().await?;
        self.timeline = match self.unused_child(&timelines, held).await? {
            Some(child) => child,
            None => {
                let claim = Claim {
                    parent: Some(self.timeline.id),
                    branch_set: held.clone(),
                    reason: Reason::Crash,
                    // A deposed primary's crash is its own business.
                    adopted: is_primary(&timelines, self.server_uuid),
                    confirmed_by: None,
                    skipped: GtidSet::new(),
                };
                claim_timeline(&self.archive, &timelines, self.server_uuid, claim).await?
            }
        };
        self.newest = self.timeline.id;
        (self.crashed, self.vanished_label_ns) = (false, None);
        Ok(())
    }

    /// The child that was claimed already, by an agent that died before it stored anything on it. Once a binlog is there, another
    /// crash may have taken back all of that, and is not told by what was held before.
    async fn unused_child(&self, timelines: &[Timeline], held: &GtidSet) -> anyhow::Result<Option<Timeline>> {
        let is_its = |t: &&Timeline| {
            let here = t.id == self.timeline.id || t.parent == Some(self.timeline.id);
            here && t.server_uuid == self.server_uuid && t.reason == Reason::Crash && t.branch_set == *held
        };
        let is_childless = |t: &&Timeline| timelines.iter().all(|other| other.parent != Some(t.id));
        let Some(child) = timelines.iter().rev().find(|t| is_its(t) && is_childless(t)) else {
            return Ok(None);
        };
        let index = self.archive.sealed_index().await?;
        let is_own = |place: &BinlogPlace| place.server_uuid == self.server_uuid;
        let own = index.iter().filter(|(place, _)| is_own(place)).map(|(_, key)| key);
        let (sealed, faults) = self.archive.readable_sealed(own).await?;
        let (tails, tail_faults) = self.archive.readable_tails(is_own).await?;
        // One that cannot be read may be of this timeline.
        let is_used = !faults.is_empty() || !tail_faults.is_empty();
        let is_used = is_used || sealed.iter().chain(&tails).any(|b| b.opening.timeline == child.id);
        // A snapshot may hold what was taken back since.
        let (snapshots, snapshot_faults) = self.archive.readable_snapshots().await?;
        let is_used = is_used || !snapshot_faults.is_empty() || snapshots.iter().any(|s| s.timeline == child.id);
        Ok((!is_used).then(|| child.clone()))
    }
}

/// Resolves once the agent is told to stop.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The sender lives as long as the process; without it there is nothing to wait for either.
    let _ = stop.wait_for(|s| *s).await;
}
