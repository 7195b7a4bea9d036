//! GTIDs and sets of them, tags included, with the algebra that recovery rests on.

use std::{collections::HashSet, fmt};

use uuid::Uuid;

/// MySQL's own limit on the length of a tag.
pub const TAG_BYTES_MAX: usize = 32;

/// A text or a byte string that is no GTID or GTID set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unreadable GTIDs: {0}")]
pub struct GtidError(pub(super) String);

/// The tag of a GTID (MySQL 8.3 and later); empty for plain GTIDs. At most 32 bytes of `[a-z_][a-z0-9_]*`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    // Zero-padded, so that the derived order is the order of the texts.
    bytes: [u8; TAG_BYTES_MAX],
    len: u8,
}

impl Tag {
    pub const NONE: Tag = Tag {
        bytes: [0; TAG_BYTES_MAX],
        len: 0,
    };

    /// # Errors
    /// Where `text` is too long or holds a character that tags do not have. Upper case is folded.
    pub fn new(text: &str) -> Result<Tag, GtidError> {
        let wrong = || GtidError(format!("`{}` is not a tag", text.escape_debug()));
        let starts_well = text.bytes().next().is_none_or(|b| b.is_ascii_alphabetic() || b == b'_');
        if text.len() > TAG_BYTES_MAX || !starts_well || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(wrong());
        }
        let mut tag = Tag::NONE;
        for (to, from) in tag.bytes.iter_mut().zip(text.bytes()) {
            *to = from.to_ascii_lowercase();
        }
        tag.len = text.len() as u8;
        Ok(tag)
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }

    pub fn is_none(&self) -> bool {
        self.len == 0
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// Where GTIDs come from: a server and, since 8.3, a tag. Each has its own sequence of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tsid {
    pub uuid: Uuid,
    pub tag: Tag,
}

/// One transaction's global identifier. `gno` is at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gtid {
    pub tsid: Tsid,
    pub gno: u64,
}

impl Gtid {
    pub fn new(uuid: Uuid, tag: Tag, gno: u64) -> Gtid {
        Gtid {
            tsid: Tsid { uuid, tag },
            gno,
        }
    }
}

/// Half open: `start..end`, `start < end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interval {
    pub start: u64,
    pub end: u64,
}

/// A set of GTIDs. Equality is equality of sets, whatever order or grouping they were written in.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct GtidSet {
    // Sorted, disjoint and not adjacent; no empty lists. The only form a set has, so `==` may compare it. No map: sets are of few
    // sources, a plan holds tens of thousands of them, and a map's first node has room for eleven.
    pub(super) intervals: Vec<(Tsid, Vec<Interval>)>,
}

impl GtidSet {
    pub fn new() -> GtidSet {
        GtidSet::default()
    }

    pub fn is_empty(&self) -> bool {
        self.intervals.is_empty()
    }

    /// How many GTIDs are in the set.
    pub fn count(&self) -> u64 {
        self.intervals
            .iter()
            .flat_map(|(_, list)| list)
            .fold(0, |n: u64, i| n.saturating_add(i.end - i.start))
    }

    pub fn contains(&self, gtid: &Gtid) -> bool {
        let list = self.of(&gtid.tsid);
        let after = list.partition_point(|i| i.start <= gtid.gno);
        after > 0 && gtid.gno < list[after - 1].end
    }

    fn of(&self, tsid: &Tsid) -> &[Interval] {
        match self.intervals.binary_search_by_key(&tsid, |(t, _)| t) {
            Ok(at) => &self.intervals[at].1,
            Err(_) => &[],
        }
    }

    /// The largest number from `tsid`.
    pub fn last_of(&self, tsid: Tsid) -> Option<u64> {
        self.of(&tsid).last().map(|i| i.end - 1)
    }

    /// The servers that it has transactions of.
    pub fn uuids(&self) -> impl Iterator<Item = Uuid> {
        self.intervals.iter().map(|(tsid, _)| tsid.uuid)
    }

    /// Only what comes from none of these servers.
    pub fn without(&self, uuids: &HashSet<Uuid>) -> GtidSet {
        let others = self.intervals.iter().filter(|(tsid, _)| !uuids.contains(&tsid.uuid));
        GtidSet {
            intervals: others.cloned().collect(),
        }
    }

    pub fn insert(&mut self, gtid: Gtid) {
        self.insert_range(gtid.tsid, gtid.gno, gtid.gno + 1);
    }

    /// Adds `start..end`; nothing where that is empty.
    pub(super) fn insert_range(&mut self, tsid: Tsid, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let at = match self.intervals.binary_search_by_key(&&tsid, |(t, _)| t) {
            Ok(at) => at,
            Err(at) => {
                // Most sets never get a second source.
                if self.intervals.is_empty() {
                    self.intervals.reserve_exact(1);
                }
                self.intervals.insert(at, (tsid, Vec::new()));
                at
            }
        };
        let list = &mut self.intervals[at].1;
        // Transactions mostly arrive in order: the last interval grows.
        if let Some(last) = list.last_mut()
            && start >= last.start
            && start <= last.end
        {
            last.end = last.end.max(end);
            return;
        }
        let from = list.partition_point(|i| i.end < start);
        let to = list.partition_point(|i| i.start <= end);
        let merged = list[from..to].iter().fold(Interval { start, end }, |m, i| Interval {
            start: m.start.min(i.start),
            end: m.end.max(i.end),
        });
        list.splice(from..to, [merged]);
    }

    pub fn union(&self, other: &GtidSet) -> GtidSet {
        let mut out = self.clone();
        out.add(other);
        out
    }

    /// Adds all of `other`.
    pub fn add(&mut self, other: &GtidSet) {
        for (tsid, list) in &other.intervals {
            for i in list {
                self.insert_range(*tsid, i.start, i.end);
            }
        }
    }

    /// What is in `self` and not in `other`.
    pub fn subtract(&self, other: &GtidSet) -> GtidSet {
        let mut out = GtidSet::new();
        for (tsid, list) in &self.intervals {
            let holes = other.of(tsid);
            for i in list {
                let mut start = i.start;
                for hole in &holes[holes.partition_point(|h| h.end <= i.start)..] {
                    if hole.start >= i.end {
                        break;
                    }
                    out.insert_range(*tsid, start, hole.start);
                    start = hole.end;
                }
                out.insert_range(*tsid, start, i.end);
            }
        }
        out
    }

    pub fn intersect(&self, other: &GtidSet) -> GtidSet {
        self.subtract(&self.subtract(other))
    }

    pub fn is_subset(&self, other: &GtidSet) -> bool {
        self.subtract(other).is_empty()
    }
}

impl FromIterator<Gtid> for GtidSet {
    fn from_iter<I: IntoIterator<Item = Gtid>>(gtids: I) -> GtidSet {
        let mut set = GtidSet::new();
        gtids.into_iter().for_each(|g| set.insert(g));
        set
    }
}

impl fmt::Debug for GtidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GtidSet({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const UUIDS: [Uuid; 2] = [Uuid::from_u128(1), Uuid::from_u128(2)];

    fn gtid() -> impl Strategy<Value = Gtid> {
        (0..2usize, 0..3usize, 1..40u64).prop_map(|(u, t, gno)| {
            Gtid::new(
                UUIDS[u],
                [Tag::NONE, Tag::new("a").unwrap(), Tag::new("a_b").unwrap()][t],
                gno,
            )
        })
    }

    fn gtids() -> impl Strategy<Value = Vec<Gtid>> {
        prop::collection::vec(gtid(), 0..60)
    }

    fn of(gtids: &BTreeSet<Gtid>) -> GtidSet {
        gtids.iter().copied().collect()
    }

    proptest! {
        /// The algebra equals that of plain sets of GTIDs.
        #[test]
        fn algebra_is_that_of_sets(a in gtids(), b in gtids()) {
            let (sa, sb): (GtidSet, GtidSet) = (a.iter().copied().collect(), b.iter().copied().collect());
            let (ma, mb): (BTreeSet<Gtid>, BTreeSet<Gtid>) = (a.into_iter().collect(), b.into_iter().collect());
            prop_assert_eq!(&sa, &of(&ma));
            prop_assert_eq!(sa.count(), ma.len() as u64);
            prop_assert_eq!(sa.union(&sb), of(&(&ma | &mb)));
            prop_assert_eq!(sa.subtract(&sb), of(&(&ma - &mb)));
            prop_assert_eq!(sa.intersect(&sb), of(&(&ma & &mb)));
            prop_assert_eq!(sa.is_subset(&sb), ma.is_subset(&mb));
            let known: HashSet<Uuid> = sb.uuids().collect();
            prop_assert_eq!(sa.without(&known), ma.iter().copied().filter(|g| !mb.iter().any(|h| h.tsid.uuid == g.tsid.uuid)).collect());
            for g in ma.iter().chain(&mb) {
                prop_assert_eq!(sa.contains(g), ma.contains(g));
            }
        }

        #[test]
        fn text_and_bytes_round_trip(a in gtids()) {
            let set: GtidSet = a.into_iter().collect();
            prop_assert_eq!(&set.to_string().parse::<GtidSet>().unwrap(), &set);
            prop_assert_eq!(&GtidSet::decode(&set.encode()).unwrap(), &set);
        }

        /// Hostile bytes and texts are errors, not panics.
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[0-9a-f:,\\- _]{0,80}") {
            let _ = GtidSet::decode(&bytes);
            let _ = text.parse::<GtidSet>();
            let _ = text.parse::<Gtid>();
        }
    }
}
