//! What the archive holds, looked at now and then: gaps, the recoverable window, the newest snapshot.
//!
//! Records are read once and remembered by what gaps need of them. A look costs three listings; it is repeated after a minute,
//! or later where it takes long, so that looking never becomes the work.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};
use tracing::{error, info};
use uuid::Uuid;

use crate::{
    archive::{
        gaps::{self, Holding},
        keys::BinlogPlace,
        listing::{Archive, StoredBinlog},
        path::{self, Path},
        reader::gtids_of,
        survey::Fault,
    },
    binlog::gtid::GtidSet,
    ship::{Status, standing::Standing},
    store::StoreError,
    support::{
        clock::{self, Moment},
        hint::message,
    },
};

use super::document::ArchiveView;

const INTERVAL: Duration = Duration::from_secs(60);
/// While the archive has no history yet, and until the first look succeeded.
const INTERVAL_AT_FIRST: Duration = Duration::from_secs(2);
/// While a tail has not been read that may hide a gap.
const INTERVAL_IN_DOUBT: Duration = Duration::from_secs(5);
/// At most this part of the time is spent on looking.
const REST_PER_LOOK: u32 = 20;

/// A tail, as of the look before.
struct Tail {
    bytes: u64,
    gtids: Option<GtidSet>,
}

/// What was found, and from when on.
#[derive(Debug, Clone)]
pub struct Look {
    pub began: Instant,
    pub view: ArchiveView,
    /// The server of the shard's current timeline.
    pub tip_server: Option<Uuid>,
}

/// What is known of this node's shipping.
struct Shipping {
    status: watch::Receiver<Status>,
    standing: watch::Receiver<Standing>,
}

impl Shipping {
    /// Whether it is not known yet what this node has still to seal.
    fn has_not_begun(&self) -> bool {
        let standing = self.standing.borrow();
        standing.writable.is_none() || standing.ships() && self.status.borrow().timeline.is_none()
    }

    fn backlog(&self) -> BTreeSet<String> {
        self.status.borrow().backlog.keys().cloned().collect()
    }
}

/// Looks, and remembers what it read.
pub struct Surveyor {
    archive: Archive,
    sealed: BTreeMap<BinlogPlace, Holding>,
    tails: BTreeMap<BinlogPlace, Tail>,
    /// Of whoever ships here; None where nobody does.
    shipping: Option<Shipping>,
    /// Whether this is another region's bucket: what has not arrived there yet is no fault, and its tails are too far away to be read.
    is_replica: bool,
    /// Whether there is a tail that the next look may read.
    in_doubt: bool,
}

impl Surveyor {
    /// Beside an agent that ships.
    pub fn new(archive: Archive, status: watch::Receiver<Status>, standing: watch::Receiver<Standing>) -> Surveyor {
        Surveyor {
            shipping: Some(Shipping { status, standing }),
            ..Surveyor::of_the_past(archive)
        }
    }

    /// For one look, while nobody is expected to ship: every tail is read but the newest.
    pub fn of_the_past(archive: Archive) -> Surveyor {
        Surveyor {
            archive,
            sealed: BTreeMap::new(),
            tails: BTreeMap::new(),
            shipping: None,
            is_replica: false,
            in_doubt: false,
        }
    }

    /// Of another region's bucket, which is filled from this one's.
    pub fn of_replica(archive: Archive) -> Surveyor {
        Surveyor {
            is_replica: true,
            ..Surveyor::of_the_past(archive)
        }
    }

    /// Looks again and again, and whenever it is told to by `again`; tells `views`.
    pub async fn run(mut self, views: watch::Sender<Option<Look>>, again: Arc<Notify>) {
        loop {
            let began = Instant::now();
            let rest = match self.look().await {
                Ok(look) => {
                    announce(views.borrow().as_ref().map(|l| &l.view), &look.view);
                    let has_history = look.view.last_binlog.is_some() && look.view.last_snapshot_at.is_some();
                    views.send_replace(Some(look));
                    match (has_history, self.in_doubt) {
                        (false, _) => INTERVAL_AT_FIRST,
                        (true, true) => INTERVAL_IN_DOUBT,
                        (true, false) => INTERVAL,
                    }
                }
                Err(e) => {
                    // Shipping says it loudly when the store is away.
                    info!("the archive cannot be looked at: {}", message(&e));
                    if views.borrow().is_some() {
                        INTERVAL
                    } else {
                        INTERVAL_AT_FIRST
                    }
                }
            };
            let took = began.elapsed();
            tokio::select! {
                () = sleep(rest.max(took * REST_PER_LOOK)) => {}
                // Told again and again, it still rests as long as it looks.
                () = async { sleep(took).await; again.notified().await } => {}
            }
        }
    }

    /// # Errors
    /// Where the store or a timeline cannot be read.
    pub async fn look(&mut self) -> anyhow::Result<Look> {
        let (began, seen_at) = (Instant::now(), Moment::now());
        let timelines = self.archive.timelines().await?;
        let tip = path::tip(&timelines);
        let mut look = Look {
            began,
            view: ArchiveView {
                seen_at,
                tip: tip.map(|t| t.id),
                newest_timeline: timelines.iter().map(|t| t.id).max(),
                last_binlog: None,
                last_snapshot_at: None,
                errant: GtidSet::new(),
                recoverable_from: None,
                recoverable_until: None,
                gaps: Vec::new(),
                faults: Vec::new(),
            },
            tip_server: tip.map(|t| t.server_uuid),
        };
        if tip.is_none() {
            return Ok(look);
        }
        let path = Path::find(&timelines, None)?;
        let (snapshots, mut faults) = self.archive.readable_snapshots().await?;
        // Before the listings: what is sealed while they are made is no hole in them.
        let backlog = self.shipping.as_ref().map(Shipping::backlog).unwrap_or_default();
        let index = match self.is_replica {
            true => self.archive.sealed_index_of_whole().await?,
            false => self.archive.sealed_index().await?,
        };
        self.sealed.retain(|place, _| index.contains_key(place));
        let new = index.iter().filter(|(place, _)| !self.sealed.contains_key(place));
        let (new, sealed_faults) = self.archive.readable_sealed(new.map(|(_, key)| key)).await?;
        for binlog in new {
            self.sealed.insert(binlog.place().clone(), Holding::from(&binlog));
        }
        // Segments stand in for a manifest that cannot be read.
        let is_unsealed = |place: &BinlogPlace| !self.sealed.contains_key(place);
        let (tails, tail_faults) = self.archive.readable_tails(is_unsealed).await?;
        faults.extend(sealed_faults.into_iter().chain(tail_faults));
        let holdings = self.with_contents(&path, tails, backlog, &mut faults).await?;
        let all = self.sealed.values().chain(&holdings);
        let binlogs = gaps::on_path(&path, all);
        let window = gaps::window(&path, &snapshots, &binlogs);
        let last_snapshot_us = gaps::serving(&path, &snapshots).iter().filter_map(|s| s.finished_at_us).max();
        let now_us = clock::now_us();
        // A session may have set a commit time to anything.
        let last_commit_us = binlogs.iter().filter_map(|b| b.commit_us_max).max().map(|us| us.min(now_us));
        look.view.last_binlog = binlogs.last().map(|b| b.place.name.clone());
        look.view.last_snapshot_at = last_snapshot_us.map(Moment);
        look.view.errant = gaps::serving(&path, &snapshots)
            .last()
            .map(|s| s.errant.clone())
            .unwrap_or_default();
        look.view.recoverable_from = window.from_us.map(Moment);
        look.view.recoverable_until = window.from_us.and(last_commit_us.max(window.from_us)).map(Moment);
        look.view.gaps = window.gaps;
        look.view.faults = faults.into_iter().map(|f| f.what).collect();
        Ok(look)
    }

    /// The tails, with what they hold where that matters and can be known: the newest one's transactions nobody needs to know, and one
    /// that is being shipped or sealed is not worth reading. One that has lain there unchanged since the look before is read, once.
    async fn with_contents(
        &mut self,
        path: &Path,
        tails: Vec<StoredBinlog>,
        mut backlog: BTreeSet<String>,
        faults: &mut Vec<Fault>,
    ) -> anyhow::Result<Vec<Holding>> {
        let mut holdings: Vec<Holding> = tails.iter().map(Holding::from).collect();
        let newest = gaps::on_path(path, self.sealed.values().chain(&holdings))
            .last()
            .map(|h| h.place.clone());
        let mut known = BTreeMap::new();
        self.in_doubt = false;
        let has_not_begun = self.shipping.as_ref().is_some_and(Shipping::has_not_begun);
        backlog.extend(self.shipping.as_ref().map(Shipping::backlog).unwrap_or_default());
        for (tail, holding) in tails.iter().zip(&mut holdings) {
            let bytes = tail.bytes();
            let before = self.tails.remove(tail.place()).filter(|t| t.bytes == bytes);
            let is_being_sealed = backlog.contains(&tail.place().name);
            let is_settled = self.shipping.is_none() || before.is_some() && !has_not_begun;
            let matters = !self.is_replica
                && newest.as_ref() != Some(tail.place())
                && path.inherited(holding.timeline).is_some()
                && !is_being_sealed;
            holding.gtids = before.and_then(|t| t.gtids);
            if holding.gtids.is_none() && matters {
                if is_settled {
                    holding.gtids = contents(&self.archive, tail, faults).await?;
                } else {
                    self.in_doubt = true;
                }
            }
            let gtids = holding.gtids.clone();
            known.insert(tail.place().clone(), Tail { bytes, gtids });
        }
        self.tails = known;
        Ok(holdings)
    }
}

fn announce(before: Option<&ArchiveView>, now: &ArchiveView) {
    for gap in now.open_gaps() {
        if !before.is_some_and(|b| b.open_gaps().any(|g| g.gtids == gap.gtids)) {
            error!(
                gtids = %gap.gtids, before = %gap.before_binlog, timeline = gap.timeline,
                "the archive has a gap: it lacks transactions that were executed; the next snapshot on the path closes it, and the recoverable \
                 window starts again there"
            );
        }
    }
    for fault in &now.faults {
        if !before.is_some_and(|b| b.faults.contains(fault)) {
            error!("the archive is damaged: {fault}");
        }
    }
}

/// The transactions of a binlog, by reading it; None where it is damaged.
///
/// # Errors
/// Where the store fails.
async fn contents(archive: &Archive, binlog: &StoredBinlog, faults: &mut Vec<Fault>) -> anyhow::Result<Option<GtidSet>> {
    match gtids_of(archive, binlog).await {
        Ok(gtids) => Ok(Some(gtids)),
        Err(e) if e.downcast_ref::<StoreError>().is_some_and(|e| !e.is_not_found()) => Err(e),
        Err(e) => {
            faults.push(Fault::of_binlog(binlog.place().clone(), &e));
            Ok(None)
        }
    }
}
