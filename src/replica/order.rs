//! In which order to copy, so that the replica can be recovered from whenever the copying stops.
//!
//! Pure. The order is that in which home was written, by home's clock alone: every prefix of it is something that home once was, and home
//! can always be recovered from. A binlog that home has whole by now is copied whole, in the place of its first part.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::object::{Kind, Missing};
use crate::archive::keys::BinlogPlace;

const NS_PER_US: i64 = 1000;

/// What is left to copy, in this order.
pub fn order(missing: Vec<Missing>) -> Vec<Missing> {
    let sealed: BTreeSet<BinlogPlace> = missing
        .iter()
        .filter(|m| m.named.kind == Kind::Manifest)
        .filter_map(|m| m.named.place.clone())
        .collect();
    // When the first of a binlog's missing parts was written; and when that of the next one of its server was, before which it comes.
    let mut begins: BTreeMap<(Uuid, i64), (i64, i64)> = BTreeMap::new();
    for (m, place) in missing.iter().filter_map(|m| Some((m, m.named.place.as_ref()?))) {
        // Sealed from a backlog, it may be written after what follows it.
        let opened_us = sealed.contains(place).then_some(place.label_ns / NS_PER_US);
        let at = m.modified_us.unwrap_or_default().min(opened_us.unwrap_or(i64::MAX));
        let (begin, _) = begins.entry((place.server_uuid, place.label_ns)).or_insert((at, i64::MAX));
        *begin = at.min(*begin);
    }
    let mut later: Option<(Uuid, i64)> = None;
    for ((server, _), (begin, next)) in begins.iter_mut().rev() {
        if let Some((_, first)) = later.filter(|(of, _)| of == server) {
            (*begin, *next) = (first.min(*begin), first);
        }
        later = Some((*server, *begin));
    }
    let is_left = |m: &Missing| {
        let is_tail = matches!(m.named.kind, Kind::Opening | Kind::Segment);
        !is_tail || !m.named.place.as_ref().is_some_and(|place| sealed.contains(place))
    };
    let mut left: Vec<Missing> = missing.into_iter().filter(is_left).collect();
    left.sort_by_cached_key(|m| {
        let written = m.modified_us.unwrap_or_default();
        let place = m.named.place.as_ref();
        let begin = place.and_then(|p| begins.get(&(p.server_uuid, p.label_ns)).copied());
        let at = match (m.named.kind, begin) {
            (Kind::Segment, Some((_, next))) => written.min(next),
            (_, Some((begin, _))) => begin,
            (_, None) => written,
        };
        // Of what was written within one tick of a store's clock, a timeline comes last: it rests on its parent's binlogs.
        let class = match m.named.kind {
            Kind::SnapshotData | Kind::SnapshotRecord => 1,
            Kind::Timeline => 2,
            _ => 0,
        };
        let of = place.map(|p| (p.server_uuid, p.label_ns));
        (at, class, of, m.named.kind, m.key.clone())
    });
    left
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::{archive::keys::Shard, replica::object};

    const S: i64 = 1_000_000;
    const A: &str = "aaaaaaaa-830d-11ea-b87b-0ac50996c5a3";
    const B: &str = "bbbbbbbb-830d-11ea-b87b-0ac50996c5a3";

    fn ordered(objects: &[(String, i64)]) -> Vec<String> {
        let shard = Shard::try_from("s".to_owned()).unwrap();
        let missing = objects.iter().map(|(key, s)| Missing {
            named: object::name(&shard, key).unwrap(),
            key: key.clone(),
            size_bytes: 1,
            modified_us: Some(s * S),
            is_outdated: false,
            age_us: 0,
            found: Instant::now(),
        });
        order(missing.collect()).into_iter().map(|m| m.key).collect()
    }

    fn tail(server: &str, second: i64, file: &str) -> String {
        format!("s/segments/{server}/{}_b.{second:06}/{file}", second * S * NS_PER_US)
    }

    fn sealed(server: &str, second: i64) -> [String; 2] {
        let key = format!("s/2026/May/1/{server}/{}_b.{second:06}.zst", second * S * NS_PER_US);
        [key.clone(), format!("{key}.json")]
    }

    #[test]
    fn i3_what_home_was_is_what_the_replica_becomes() {
        let [first, first_manifest] = sealed(A, 10);
        let objects = [
            ("s/timelines/00000002.json".to_owned(), 30),
            (tail(B, 31, "open.json"), 31),
            (tail(B, 31, "0000-0004.zst"), 32),
            // Sealed after the next one was begun, and after the failover.
            (first.clone(), 40),
            (first_manifest.clone(), 40),
            (tail(A, 10, "open.json"), 10),
            (tail(A, 10, "0000-0004.zst"), 11),
            (tail(A, 20, "0000-0004.zst"), 30),
            (tail(A, 20, "open.json"), 20),
            ("s/snapshots/x/datadir.tar".to_owned(), 25),
            ("s/snapshots/x.json".to_owned(), 26),
            ("s/timelines/00000001.json".to_owned(), 1),
        ];
        let expected = [
            "s/timelines/00000001.json".to_owned(),
            first,
            first_manifest,
            tail(A, 20, "open.json"),
            "s/snapshots/x/datadir.tar".to_owned(),
            "s/snapshots/x.json".to_owned(),
            tail(A, 20, "0000-0004.zst"),
            "s/timelines/00000002.json".to_owned(),
            tail(B, 31, "open.json"),
            tail(B, 31, "0000-0004.zst"),
        ];
        assert_eq!(ordered(&objects), expected);
    }

    #[test]
    fn i3_a_binlog_comes_before_what_follows_it_however_late_it_was_sealed() {
        // Its segments are deleted at home, and its label is of a clock that is ahead.
        let [first, manifest] = sealed(A, 50);
        let (next_open, next) = (tail(A, 60, "open.json"), tail(A, 60, "0000-0004.zst"));
        let objects = [
            (next_open.clone(), 20),
            (next.clone(), 21),
            (first.clone(), 70),
            (manifest.clone(), 70),
        ];
        assert_eq!(ordered(&objects), [first, manifest, next_open, next]);
    }

    #[test]
    fn segments_go_in_order_though_written_in_one_second() {
        let keys: Vec<String> = ["0000-0004.zst", "0004-0009.zst", "0009-0020.zst"]
            .map(|file| tail(A, 10, file))
            .into();
        let objects = [
            (keys[2].clone(), 11),
            (keys[0].clone(), 11),
            (keys[1].clone(), 11),
            (tail(A, 10, "open.json"), 11),
        ];
        assert_eq!(ordered(&objects)[1..], keys);
    }
}
