//! Where shipping stands, told by its parts to whoever watches.

use std::collections::BTreeMap;

use crate::{archive::records::Manifest, support::clock};

use super::{at_risk::Position, reconcile::Unsealed, seal::ToSeal};

/// Where shipping stands. Totals count from the start of the process.
#[derive(Debug, Clone, Default)]
pub struct Status {
    pub timeline: Option<u32>,
    /// The watermark: binlog and position up to which everything is stored, or needs no storing because it holds no transaction.
    pub durable: Option<(String, u64)>,
    /// When the last segment was stored.
    pub durable_at_us: Option<i64>,
    pub received_bytes: u64,
    pub segments_stored: u64,
    /// Of segments and sealed binlogs, as they lie in the store.
    pub stored_bytes: u64,
    pub sealed: u64,
    pub sealed_at_us: Option<i64>,
    /// Closed binlogs that are not sealed yet, by name, with their bytes.
    pub backlog: BTreeMap<String, u64>,
    /// Of these the ones that are not stored in any form up to their ends, oldest first, and up to where they are.
    lacking: Vec<(String, u64)>,
    /// How far the live binlog is stored.
    live: Option<(String, u64)>,
    pub rounds_failed: u64,
    /// Since when round after round has failed without anything in between that went well.
    pub failing_since_us: Option<i64>,
    pub last_error: Option<Failure>,
}

/// What went wrong, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub at_us: i64,
    pub text: String,
}

impl Status {
    /// A round begins with this to ship.
    pub fn begins(&mut self, timeline: u32, todo: &[Unsealed]) {
        let closed = todo.split_last().map_or(&[][..], |(_live, closed)| closed);
        self.backlog = closed.iter().map(|b| (b.file.name.clone(), b.file.bytes)).collect();
        let covered = |b: &Unsealed| b.known.as_ref().map_or(0, |(_, covered)| *covered);
        // What was passed without storing it, for it held no transaction, the archive does not show.
        let known = self
            .lacking
            .iter()
            .chain(&self.live)
            .filter(|_| self.timeline == Some(timeline));
        let passed = |b: &Unsealed| {
            let at = known.clone().find(|(name, _)| *name == b.file.name);
            at.map_or(0, |(_, position)| *position).min(b.file.bytes)
        };
        let stored = |b: &Unsealed| (b.file.name.clone(), covered(b).max(passed(b)));
        let live = todo.last().map(stored);
        let lacking = closed.iter().filter(|b| covered(b) < b.file.bytes).map(stored).collect();
        (self.lacking, self.live) = (lacking, live);
        self.timeline = Some(timeline);
        self.find_watermark();
    }

    fn find_watermark(&mut self) {
        self.durable = self.lacking.first().or(self.live.as_ref()).cloned();
    }

    /// Bytes came, or a sign of life: the stream stands.
    pub fn receives(&mut self, bytes: u64) {
        self.received_bytes += bytes;
        self.failing_since_us = None;
    }

    /// Everything of the live binlog before this place is stored, or holds no transaction. Never goes back.
    pub fn reaches(&mut self, name: &str, position: u64) {
        let at = |(name, position): &(String, u64)| Position::of(name, *position);
        let new = (name.to_owned(), position);
        if self.live.as_ref().is_none_or(|old| at(old) < at(&new)) {
            self.live = Some(new);
        }
        self.find_watermark();
    }

    pub fn segment_stored(&mut self, timeline: u32, name: &str, end: u64, stored_bytes: u64) {
        self.timeline = Some(timeline);
        self.reaches(name, end);
        self.durable_at_us = Some(clock::now_us());
        self.segments_stored += 1;
        self.stored_bytes += stored_bytes;
        self.failing_since_us = None;
    }

    /// The server went on: this binlog waits to be sealed.
    pub fn closes(&mut self, name: &str, bytes: u64) {
        self.backlog.insert(name.to_owned(), bytes);
    }

    /// Whether everything before this place is stored.
    pub fn has_stored(&self, name: &str, position: u64) -> bool {
        let durable = self.durable.as_ref();
        durable.is_some_and(|(durable, at)| Position::of(durable, *at) >= Position::of(name, position))
    }

    /// The closed binlogs have their places, and the live one its timeline. Of the closed ones these are left to be sealed: one without a transaction needs no object.
    pub fn placed(&mut self, timeline: u32, left: &[ToSeal]) {
        self.timeline = Some(timeline);
        let is_left = |name: &str| left.iter().any(|work| work.file.name == name);
        self.backlog.retain(|name, _| is_left(name));
        self.lacking.retain(|(name, _)| is_left(name));
        self.find_watermark();
    }

    /// A closed binlog is done with, sealed or not.
    pub fn passes(&mut self, name: &str) {
        self.backlog.remove(name);
        self.lacking.retain(|(lacking, _)| lacking != name);
        self.find_watermark();
    }

    pub fn sealed(&mut self, manifest: &Manifest) {
        self.sealed += 1;
        self.sealed_at_us = Some(clock::now_us());
        self.stored_bytes += manifest.stored_bytes;
        self.failing_since_us = None;
    }

    pub fn fails(&mut self, text: String) {
        let at_us = clock::now_us();
        self.rounds_failed += 1;
        self.failing_since_us.get_or_insert(at_us);
        self.last_error = Some(Failure { at_us, text });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        archive::{keys::BinlogPlace, records::Opening},
        binlog::gtid::GtidSet,
        mysql::query::ServerBinlog,
    };

    fn unsealed(name: &str, bytes: u64, covered: Option<u64>) -> Unsealed {
        let opening = Opening {
            format: 1,
            timeline: 1,
            place: BinlogPlace {
                server_uuid: uuid::Uuid::nil(),
                label_ns: 1,
                name: name.into(),
            },
            server_version: String::new(),
            fingerprint: String::new(),
            held_before: GtidSet::new(),
        };
        Unsealed {
            file: ServerBinlog {
                name: name.into(),
                bytes,
            },
            known: covered.map(|c| (opening, c)),
        }
    }

    #[test]
    fn the_watermark_of_a_new_round_is_where_the_archive_lacks_something_first() {
        let mut status = Status::default();
        let todo = [
            unsealed("b.000001", 900, Some(900)),
            unsealed("b.000002", 500, Some(300)),
            unsealed("b.000003", 197, None),
        ];
        status.begins(1, &todo);
        assert_eq!(status.durable, Some(("b.000002".into(), 300)));
        assert_eq!(status.backlog.len(), 2);
        status.passes("b.000001");
        status.segment_stored(1, "b.000003", 400, 1);
        assert_eq!(status.durable, Some(("b.000002".into(), 300)), "the live one is ahead");
        status.passes("b.000002");
        assert_eq!(
            (status.durable.clone(), status.backlog.len()),
            (Some(("b.000003".into(), 400)), 0)
        );
        status.reaches("b.000004", 197);
        assert_eq!(status.durable, Some(("b.000004".into(), 197)));
    }

    #[test]
    fn failing_lasts_until_something_goes_well() {
        let mut status = Status::default();
        status.fails("one".into());
        let since = status.failing_since_us;
        status.fails("two".into());
        assert_eq!((status.failing_since_us, status.rounds_failed), (since, 2));
        status.receives(0);
        assert_eq!(status.failing_since_us, None);
        assert_eq!(status.last_error.unwrap().text, "two");
    }
}
