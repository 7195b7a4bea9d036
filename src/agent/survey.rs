//! What the archive holds, looked at now and then: gaps, the recoverable window, the newest snapshot.
//!
//! Records are read once and remembered by what gaps need of them. A look costs three listings; it is repeated after a minute,
//! or later where it takes long, so that looking never becomes the work.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use crate::{
    archive::{
        gaps::{self, Holding},
        keys::BinlogPlace,
        listing::{Archive, StoredBinlog},
        path::{self, Path},
        reader::{Flow, visit},
    },
    binlog::{gtid::GtidSet, transaction::Tracker},
    ship::Status,
    support::{
        clock::{self, Moment},
        hint::message,
    },
};

use super::document::ArchiveView;

const INTERVAL: Duration = Duration::from_secs(60);
/// While the archive has no history yet, until the first look succeeded, and where the next one will know more.
const INTERVAL_AT_FIRST: Duration = Duration::from_secs(2);
/// At most this part of the time is spent on looking.
const REST_PER_LOOK: u32 = 20;

/// A tail, as of the look before.
struct Tail {
    bytes: u64,
    gtids: Option<GtidSet>,
}

/// Looks, and remembers what it read.
pub struct Surveyor {
    archive: Archive,
    sealed: BTreeMap<BinlogPlace, Holding>,
    tails: BTreeMap<BinlogPlace, Tail>,
    /// Whether the last look met a tail for the first time, behind which there may be a gap.
    has_new_tail: bool,
    /// Of whoever ships here; None where nobody does.
    status: Option<watch::Receiver<Status>>,
}

impl Surveyor {
    /// Beside an agent that ships.
    pub fn new(archive: Archive, status: watch::Receiver<Status>) -> Surveyor {
        Surveyor {
            status: Some(status),
            ..Surveyor::of_the_past(archive)
        }
    }

    /// For one look, while nobody is expected to ship: every tail is read but the newest.
    pub fn of_the_past(archive: Archive) -> Surveyor {
        Surveyor {
            archive,
            sealed: BTreeMap::new(),
            tails: BTreeMap::new(),
            has_new_tail: false,
            status: None,
        }
    }

    /// Looks again and again, and tells `views`.
    pub async fn run(mut self, views: watch::Sender<Option<ArchiveView>>) {
        loop {
            let began = Instant::now();
            let rest = match self.look().await {
                Ok(view) => {
                    self.announce(views.borrow().as_ref(), &view);
                    let has_history = view.last_binlog.is_some() && view.last_snapshot_at.is_some();
                    views.send_replace(Some(view));
                    if has_history && !self.has_new_tail {
                        INTERVAL
                    } else {
                        INTERVAL_AT_FIRST
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
            sleep(rest.max(began.elapsed() * REST_PER_LOOK)).await;
        }
    }

    fn announce(&self, before: Option<&ArchiveView>, now: &ArchiveView) {
        for gap in now.open_gaps() {
            if !before.is_some_and(|b| b.open_gaps().any(|g| g.gtids == gap.gtids)) {
                warn!(gtids = %gap.gtids, before = %gap.before_binlog, timeline = gap.timeline, "the archive has a gap; take a snapshot, and the recoverable window starts again there");
            }
        }
    }

    /// # Errors
    /// Where the store or a record cannot be read.
    pub async fn look(&mut self) -> anyhow::Result<ArchiveView> {
        let timelines = self.archive.timelines().await?;
        let snapshots = self.archive.snapshots().await?;
        let Ok(path) = Path::find(&timelines, None) else {
            return Ok(ArchiveView {
                seen_at: Moment::now(),
                tip: path::tip(&timelines).map(|t| t.id),
                last_binlog: None,
                last_snapshot_at: None,
                recoverable_from: None,
                recoverable_until: None,
                gaps: Vec::new(),
            });
        };
        let index = self.archive.sealed_index().await?;
        self.sealed.retain(|place, _| index.contains_key(place));
        let new = index.iter().filter(|(place, _)| !self.sealed.contains_key(place));
        for binlog in self.archive.sealed(new.map(|(_, key)| key)).await? {
            self.sealed.insert(binlog.place().clone(), Holding::from(&binlog));
        }
        let tails = self.archive.tails_where(|place| !index.contains_key(place)).await?;
        let holdings = self.with_contents(&path, tails).await?;
        let all = self.sealed.values().chain(&holdings);
        let binlogs = gaps::on_path(&path, all);
        let window = gaps::window(&path, &snapshots, &binlogs);
        let last_snapshot_us = gaps::serving(&path, &snapshots).iter().filter_map(|s| s.finished_at_us).max();
        let now_us = clock::now_us();
        // A session may have set a commit time to anything.
        let last_commit_us = binlogs.iter().filter_map(|b| b.commit_us_max).max().map(|us| us.min(now_us));
        Ok(ArchiveView {
            seen_at: Moment(now_us),
            tip: Some(path.last().id),
            last_binlog: binlogs.last().map(|b| b.place.name.clone()),
            last_snapshot_at: last_snapshot_us.map(Moment),
            recoverable_from: window.from_us.map(Moment),
            recoverable_until: window.from_us.and(last_commit_us.max(window.from_us)).map(Moment),
            gaps: window.gaps,
        })
    }

    /// The tails, with what they hold where that matters and can be known: the newest one's transactions nobody needs to know, and one
    /// that is being shipped or sealed is not worth reading. One that has lain there unchanged since the look before is read, once.
    async fn with_contents(&mut self, path: &Path, tails: Vec<StoredBinlog>) -> anyhow::Result<Vec<Holding>> {
        let mut holdings: Vec<Holding> = tails.iter().map(Holding::from).collect();
        let newest = gaps::on_path(path, self.sealed.values().chain(&holdings))
            .last()
            .map(|h| h.place.clone());
        let mut known = BTreeMap::new();
        self.has_new_tail = false;
        for (tail, holding) in tails.iter().zip(&mut holdings) {
            let bytes = tail.bytes();
            let seen = self.tails.remove(tail.place());
            let is_new = seen.is_none();
            let before = seen.filter(|t| t.bytes == bytes);
            let is_settled = match &self.status {
                None => true,
                Some(status) => before.is_some() && !status.borrow().backlog.contains_key(&tail.place().name),
            };
            let matters = newest.as_ref() != Some(tail.place()) && path.inherited(holding.timeline).is_some();
            self.has_new_tail |= is_new && matters;
            holding.gtids = match before.and_then(|t| t.gtids) {
                None if is_settled && matters => Some(contents(&self.archive, tail).await?),
                gtids => gtids,
            };
            let gtids = holding.gtids.clone();
            known.insert(tail.place().clone(), Tail { bytes, gtids });
        }
        self.tails = known;
        Ok(holdings)
    }
}

/// The transactions of a binlog, by reading it.
async fn contents(archive: &Archive, binlog: &StoredBinlog) -> anyhow::Result<GtidSet> {
    let (mut tracker, mut gtids) = (Tracker::default(), GtidSet::new());
    visit(archive, binlog, |piece| {
        if let Some(t) = tracker.piece(piece)? {
            gtids.insert(t.gtid);
        }
        Ok(Flow::Continue)
    })
    .await?;
    Ok(gtids)
}
