//! Who inherits what: the tree of timelines, and the rule that nothing comes back that a successor did not inherit.
//!
//! Pure. The path of a timeline is its chain of parents. What counts of a timeline on the path is what every later one on
//! the path inherits (its `branch_set`), then the later ones' own transactions. The same holds for what a timeline skipped.

use crate::binlog::gtid::{Gtid, GtidSet};

use super::records::{Reason, Snapshot, SnapshotState, Timeline};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the archive has no timeline yet")]
    Empty,
    #[error("the archive has no timeline {0}")]
    Unknown(u32),
    #[error("timeline {0} is its own ancestor")]
    Circle(u32),
}

/// The timeline that new transactions of the shard belong to: the latest that was adopted.
pub fn tip(timelines: &[Timeline]) -> Option<&Timeline> {
    timelines.iter().filter(|t| t.adopted).max_by_key(|t| t.id)
}

/// A timeline and its ancestors, root first.
#[derive(Debug, Clone)]
pub struct Path {
    timelines: Vec<Timeline>,
}

impl Path {
    /// The path of timeline `id`, or of the tip.
    pub fn find(timelines: &[Timeline], id: Option<u32>) -> Result<Path, PathError> {
        let last = match id {
            Some(id) => id,
            None => tip(timelines).ok_or(PathError::Empty)?.id,
        };
        let mut path = Vec::new();
        let mut next = Some(last);
        while let Some(id) = next {
            let timeline = timelines.iter().find(|t| t.id == id).ok_or(PathError::Unknown(id))?;
            if path.len() == timelines.len() {
                return Err(PathError::Circle(last));
            }
            path.push(timeline.clone());
            next = timeline.parent;
        }
        path.reverse();
        Ok(Path { timelines: path })
    }

    /// Root first.
    pub fn timelines(&self) -> &[Timeline] {
        &self.timelines
    }

    pub fn last(&self) -> &Timeline {
        self.timelines.last().expect("a path has at least one timeline")
    }

    /// The last claim that was no crash, and the crashes of the same server since, oldest first: a binlog that was shipped on one of
    /// them is not shipped again on a later one.
    pub fn own_line(&self) -> &[Timeline] {
        let claimed = self.timelines.iter().rposition(|t| t.reason != Reason::Crash);
        &self.timelines[claimed.unwrap_or(0)..]
    }

    /// Whether timeline `id` is on the path.
    pub fn holds(&self, id: u32) -> bool {
        self.timelines.iter().any(|t| t.id == id)
    }

    /// What of timeline `id`'s transactions is part of the path's history; None if the timeline is not on the path.
    pub fn inherited(&self, id: u32) -> Option<Inherited> {
        let at = self.timelines.iter().position(|t| t.id == id)?;
        let later = self.timelines[at + 1..].iter().map(|t| &t.branch_set);
        Some(match later.cloned().reduce(|a, b| a.intersect(&b)) {
            None => Inherited::All,
            Some(set) => Inherited::Only(set),
        })
    }

    /// What this path's servers hold as empty transactions: what a timeline skipped counts as long as its history does.
    pub fn skipped(&self) -> GtidSet {
        self.skipped_until(self.timelines.len())
    }

    /// What the first `count` timelines skipped.
    fn skipped_until(&self, count: usize) -> GtidSet {
        let mut skipped = GtidSet::new();
        for timeline in &self.timelines[..count] {
            if let Some(inherited) = self.inherited(timeline.id).filter(|_| !timeline.skipped.is_empty()) {
                skipped.add(&inherited.of(&timeline.skipped));
            }
        }
        skipped
    }

    /// Whether some target can be recovered from `snapshot`: whatever it may serve, it serves the set that it holds itself.
    pub fn has(&self, snapshot: &Snapshot) -> bool {
        let held = snapshot.gtids_after.clone().unwrap_or_default();
        self.serves(snapshot, &held, &GtidSet::new()).is_ok()
    }

    /// Whether recovery to `target` without the transactions `skip` may start from `snapshot`, or why not.
    ///
    /// A snapshot knows which transactions it holds, not whether it holds them as empty ones. It does where its own timeline or one
    /// before skipped them; else it must not hold what a later timeline, or `skip`, leaves out.
    pub fn serves(&self, snapshot: &Snapshot, target: &GtidSet, skip: &GtidSet) -> Result<(), Unfit> {
        let Some(held) = snapshot
            .gtids_after
            .as_ref()
            .filter(|_| snapshot.state == SnapshotState::Complete)
        else {
            return Err(Unfit::NotComplete);
        };
        let Some(at) = self.timelines.iter().position(|t| t.id == snapshot.timeline) else {
            return Err(Unfit::OffPath);
        };
        // What is in nobody's history no successor can inherit, and no target asks for.
        let historical = held.subtract(&snapshot.errant);
        if let Some(Inherited::Only(only)) = self.inherited(snapshot.timeline)
            && !historical.is_subset(&only)
        {
            return Err(Unfit::NotInherited(historical.subtract(&only)));
        }
        let beyond = historical.subtract(target);
        if !beyond.is_empty() {
            return Err(Unfit::BeyondTarget(beyond));
        }
        let must_lack = self.skipped().union(skip).subtract(&self.skipped_until(at + 1));
        let content = held.intersect(&must_lack);
        if content.is_empty() {
            Ok(())
        } else {
            Err(Unfit::HoldsSkipped(content))
        }
    }
}

/// Why a snapshot cannot serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("it is not complete")]
    NotComplete,
    #[error("its timeline is not on the path")]
    OffPath,
    #[error("it holds what the path does not inherit: {0}")]
    NotInherited(GtidSet),
    #[error("it holds more than the target: {0}")]
    BeyondTarget(GtidSet),
    #[error("it holds what is to be left out: {0}")]
    HoldsSkipped(GtidSet),
}

/// The part of a timeline that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inherited {
    All,
    Only(GtidSet),
}

impl Inherited {
    pub fn of(&self, set: &GtidSet) -> GtidSet {
        match self {
            Inherited::All => set.clone(),
            Inherited::Only(only) => set.intersect(only),
        }
    }

    pub fn contains(&self, gtid: &Gtid) -> bool {
        match self {
            Inherited::All => true,
            Inherited::Only(only) => only.contains(gtid),
        }
    }

    pub fn covers(&self, set: &GtidSet) -> bool {
        match self {
            Inherited::All => true,
            Inherited::Only(only) => set.is_subset(only),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::{
        archive::examples::{self, SERVER as PRIMARY, timeline},
        binlog::gtid::Tag,
    };

    const REPLICA: Uuid = Uuid::from_u128(2);

    fn set(server: Uuid, numbers: impl IntoIterator<Item = u64>) -> GtidSet {
        numbers.into_iter().map(|n| Gtid::new(server, Tag::NONE, n)).collect()
    }

    fn snapshot(held: GtidSet, errant: GtidSet) -> Snapshot {
        Snapshot {
            server_uuid: REPLICA,
            errant,
            ..examples::snapshot(1, held)
        }
    }

    proptest! {
        /// A snapshot serves what it would serve without its errant transactions; undeclared ones keep it from serving anything.
        #[test]
        fn errant_transactions_are_asked_of_nobody(
            held in 0..20u64, own in 0..3u64, inherited in 0..20u64, target in 0..20u64, skip in 1..20u64,
        ) {
            let path = Path::find(&[timeline(1, None, GtidSet::new()), timeline(2, Some(1), set(PRIMARY, 1..=inherited))], None).unwrap();
            let (history, errant) = (set(PRIMARY, 1..=held), set(REPLICA, 1..=own));
            let (target, skip) = (set(PRIMARY, 1..=target), set(PRIMARY, [skip]));
            let serves = |s: &Snapshot| path.serves(s, &target, &skip);
            let pure = snapshot(history.clone(), GtidSet::new());
            let declared = snapshot(history.union(&errant), errant.clone());
            prop_assert_eq!(serves(&declared), serves(&pure));
            prop_assert_eq!(declared.history_count(), held);
            prop_assert_eq!(path.has(&declared), path.has(&pure));
            let undeclared = snapshot(history.union(&errant), GtidSet::new());
            prop_assert!(errant.is_empty() || matches!(serves(&undeclared), Err(Unfit::NotInherited(_))));
        }
    }
}
