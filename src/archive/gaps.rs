//! Gaps: transactions that a binlog says were executed before it, and that nothing in the archive holds. And what is left to
//! recover between them.
//!
//! Pure. A gap blocks only what needs it (i8): a snapshot on the path that holds all of it closes it, and the recoverable
//! window starts again there.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::binlog::gtid::GtidSet;

use super::{
    keys::BinlogPlace,
    listing::{Form, StoredBinlog, order_of},
    path::Path,
    records::Snapshot,
};

/// What has to be known of a stored binlog to find gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    pub place: BinlogPlace,
    pub timeline: u32,
    pub held_before: GtidSet,
    /// None for a tail that nobody read: its segments do not say which transactions they hold.
    pub gtids: Option<GtidSet>,
    pub commit_us_max: Option<i64>,
}

impl From<&StoredBinlog> for Holding {
    fn from(binlog: &StoredBinlog) -> Holding {
        let commit_us_max = match &binlog.form {
            Form::Sealed(manifest) => manifest.commit_us_max,
            Form::Tail(_) => None,
        };
        Holding {
            place: binlog.place().clone(),
            timeline: binlog.opening.timeline,
            held_before: binlog.opening.held_before.clone(),
            gtids: binlog.gtids().cloned(),
            commit_us_max,
        }
    }
}

/// Transactions that the archive lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    pub gtids: GtidSet,
    /// The binlog that says they were executed before it.
    pub before_binlog: String,
    pub server_uuid: Uuid,
    pub timeline: u32,
    /// The first snapshot on the path that holds them all: from there on, nothing needs them.
    pub closed_by: Option<String>,
}

/// What can be recovered without crossing a gap, up to the end of the history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Window {
    /// When the snapshot was complete that the window starts from; None where no snapshot reaches the end of the history.
    pub from_us: Option<i64>,
    pub gaps: Vec<Gap>,
}

impl Window {
    /// What keeps the newest transactions from being recovered.
    pub fn open_gaps(&self) -> impl Iterator<Item = &Gap> {
        self.gaps.iter().filter(|g| g.closed_by.is_none())
    }
}

/// The binlogs of `path` among `holdings`, in the order of its history.
pub fn on_path<'h>(path: &Path, holdings: impl IntoIterator<Item = &'h Holding>) -> Vec<&'h Holding> {
    let mut chosen: Vec<(usize, &Holding)> = holdings
        .into_iter()
        .filter_map(|h| Some((path.timelines().iter().position(|t| t.id == h.timeline)?, h)))
        .collect();
    chosen.sort_by_key(|(at, h)| (*at, order_of(&h.place, &h.held_before)));
    chosen.into_iter().map(|(_, h)| h).collect()
}

/// The snapshots that recovery on `path` may start from, the one that holds least first.
pub fn serving<'s>(path: &Path, snapshots: &'s [Snapshot]) -> Vec<&'s Snapshot> {
    let mut serving: Vec<&Snapshot> = snapshots.iter().filter(|s| path.has(s)).collect();
    serving.sort_by_key(|s| (s.history_count(), s.finished_at_us));
    serving
}

/// The gaps of `path`, oldest first, and where the window starts that ends with the history.
pub fn window(path: &Path, snapshots: &[Snapshot], binlogs: &[&Holding]) -> Window {
    let snapshots = serving(path, snapshots);
    let inherited = |h: &Holding, set: &GtidSet| path.inherited(h.timeline).map(|i| i.of(set)).unwrap_or_default();
    // What lies before the first snapshot, or before the first binlog, nobody can need.
    let mut held = match (snapshots.first(), binlogs.first()) {
        (Some(snapshot), _) => snapshot.gtids_before.clone(),
        (None, Some(binlog)) => inherited(binlog, &binlog.held_before),
        (None, None) => GtidSet::new(),
    };
    for binlog in binlogs {
        if let Some(gtids) = &binlog.gtids {
            held.add(&inherited(binlog, gtids));
        }
    }
    let mut gaps: Vec<Gap> = Vec::new();
    let mut unread: Option<&Holding> = None;
    for binlog in binlogs {
        let said = inherited(binlog, &binlog.held_before);
        // Nobody knows what a tail holds that was not read: perhaps all that was executed since it began.
        if let Some(tail) = unread.take() {
            held.add(&said.subtract(&tail.held_before));
        }
        let gtids = said.subtract(&held);
        if !gtids.is_empty() {
            held.add(&gtids);
            let closes = |s: &&&Snapshot| gtids.is_subset(&s.gtids_before);
            gaps.push(Gap {
                before_binlog: binlog.place.name.clone(),
                server_uuid: binlog.place.server_uuid,
                timeline: binlog.timeline,
                closed_by: snapshots.iter().find(closes).map(|s| s.id.clone()),
                gtids,
            });
        }
        unread = binlog.gtids.is_none().then_some(binlog);
    }
    let reaches_the_end = |s: &&&Snapshot| gaps.iter().all(|g| g.gtids.is_subset(&s.gtids_before));
    let from_us = snapshots
        .iter()
        .filter(reaches_the_end)
        .filter_map(|s| s.finished_at_us)
        .min();
    Window { from_us, gaps }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        archive::examples::{self, SERVER, timeline},
        binlog::gtid::{Gtid, Tag},
    };

    fn set(numbers: impl IntoIterator<Item = u64>) -> GtidSet {
        numbers.into_iter().map(|n| Gtid::new(SERVER, Tag::NONE, n)).collect()
    }

    fn snapshot(timeline: u32, upto: u64) -> Snapshot {
        Snapshot {
            id: format!("s{upto}"),
            finished_at_us: Some(upto.cast_signed()),
            ..examples::snapshot(timeline, set(1..=upto))
        }
    }

    fn holding(timeline: u32, number: u64, first: u64, last: u64) -> Holding {
        Holding {
            place: BinlogPlace {
                server_uuid: SERVER,
                label_ns: i64::from(timeline),
                name: format!("b.{number:06}"),
            },
            timeline,
            held_before: set(1..first),
            gtids: Some(set(first..=last)),
            commit_us_max: None,
        }
    }

    fn root() -> Path {
        Path::find(&[timeline(1, None, GtidSet::new())], None).unwrap()
    }

    #[test]
    fn a_snapshot_behind_a_gap_closes_it_and_starts_the_window_again() {
        let (path, binlogs) = (root(), [holding(1, 1, 3, 10), holding(1, 4, 21, 30)]);
        let binlogs: Vec<&Holding> = binlogs.iter().collect();
        let open = window(&path, &[snapshot(1, 5)], &binlogs);
        assert_eq!((open.from_us, open.gaps.len()), (None, 1));
        let gap = &open.gaps[0];
        assert_eq!(
            (&gap.gtids, gap.before_binlog.as_str(), &gap.closed_by),
            (&set(11..=20), "b.000004", &None)
        );

        let half = window(&path, &[snapshot(1, 5), snapshot(1, 15)], &binlogs);
        assert_eq!(
            (half.from_us, half.open_gaps().count()),
            (None, 1),
            "a part of it is not enough"
        );

        let closed = window(&path, &[snapshot(1, 5), snapshot(1, 25)], &binlogs);
        assert_eq!((closed.from_us, closed.open_gaps().count()), (Some(25), 0));
        assert_eq!(closed.gaps[0].closed_by.as_deref(), Some("s25"));
    }

    #[test]
    fn what_a_successor_does_not_inherit_is_no_gap() {
        let timelines = [timeline(1, None, GtidSet::new()), timeline(2, Some(1), set(1..=8))];
        let path = Path::find(&timelines, None).unwrap();
        // Timeline 1 lost 9 and 10 in a crash; its third binlog, off the history, says that they were executed.
        let all = [holding(1, 1, 1, 8), holding(1, 3, 11, 12), holding(2, 4, 9, 9)];
        let binlogs = on_path(&path, &all);
        assert_eq!(binlogs.len(), 3);
        assert!(window(&path, &[snapshot(1, 2)], &binlogs).gaps.is_empty());
    }

    #[test]
    fn an_unread_tail_is_given_the_benefit_of_the_doubt_and_a_read_one_is_not() {
        let path = root();
        let mut all = [holding(1, 1, 1, 5), holding(1, 2, 6, 9), holding(1, 3, 15, 20)];
        all[1].gtids = None;
        let gaps = |all: &[Holding]| window(&path, &[snapshot(1, 2)], &all.iter().collect::<Vec<_>>()).gaps;
        assert!(gaps(&all).is_empty());
        all[1].gtids = Some(set(6..=9));
        assert_eq!(gaps(&all)[0].gtids, set(10..=14));
    }

    /// One history of transactions 1, 2, 3 …, cut into binlogs of which some were lost before they were archived, and snapshots.
    fn history() -> impl Strategy<Value = (Vec<(u64, bool)>, BTreeSet<u64>)> {
        let binlogs = prop::collection::vec((0..6u64, prop::bool::weighted(0.7)), 1..12);
        (binlogs, prop::collection::btree_set(0..60u64, 0..5))
    }

    proptest! {
        /// Against sets of plain numbers: what is named is what a kept binlog says was executed, no kept binlog holds, and the
        /// first snapshot lacks; each once; and the window starts at the first snapshot from which the end can be reached.
        #[test]
        fn equals_plain_sets((binlogs, snapshots) in history()) {
            let (mut next, mut kept, mut lost, mut said) = (1, Vec::new(), BTreeSet::new(), BTreeSet::new());
            for (i, (transactions, is_kept)) in binlogs.iter().enumerate() {
                if *is_kept {
                    said.extend(1..next);
                    kept.push(holding(1, i as u64, next, next + transactions - 1));
                    if *transactions == 0 {
                        kept.last_mut().unwrap().gtids = Some(GtidSet::new());
                    }
                } else {
                    lost.extend(next..next + transactions);
                }
                next += transactions;
            }
            let snapshots: Vec<u64> = snapshots.into_iter().filter(|upto| *upto < next).collect();
            let records: Vec<Snapshot> = snapshots.iter().map(|upto| snapshot(1, *upto)).collect();
            let window = window(&root(), &records, &kept.iter().collect::<Vec<_>>());

            let before = match (snapshots.first(), kept.first()) {
                (Some(first), _) => *first,
                (None, Some(first)) => first.held_before.count(),
                (None, None) => 0,
            };
            let missing: BTreeSet<u64> = lost.intersection(&said).copied().filter(|n| *n > before).collect();
            let mut named = GtidSet::new();
            for gap in &window.gaps {
                prop_assert!(named.intersect(&gap.gtids).is_empty(), "named twice");
                named.add(&gap.gtids);
                let last = missing.iter().copied().filter(|n| gap.gtids.contains(&Gtid::new(SERVER, Tag::NONE, *n))).max();
                let closing = snapshots.iter().find(|upto| Some(**upto) >= last);
                prop_assert_eq!(&gap.closed_by, &closing.map(|upto| format!("s{upto}")));
            }
            prop_assert_eq!(named, set(missing.iter().copied()));
            let reaching = snapshots.iter().find(|upto| missing.iter().all(|n| n <= *upto));
            prop_assert_eq!(window.from_us, reaching.map(|upto| upto.cast_signed()));
        }

        /// A tail that was not read never makes a gap of what it may hold, and hides none but the one right behind it.
        #[test]
        fn an_unread_tail_accuses_nobody((binlogs, _) in history(), at in any::<prop::sample::Index>()) {
            let (mut next, mut kept) = (1, Vec::new());
            for (i, (transactions, _)) in binlogs.iter().enumerate() {
                kept.push(holding(1, i as u64, next, next + transactions.max(&1) - 1));
                next += transactions.max(&1);
            }
            let tail = at.index(kept.len());
            kept[tail].gtids = None;
            prop_assert!(window(&root(), &[snapshot(1, 0)], &kept.iter().collect::<Vec<_>>()).gaps.is_empty());
        }
    }
}
