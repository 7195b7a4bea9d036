//! What would be lost if the server were lost now: what it has written and the archive lacks, in bytes and in seconds.
//!
//! Pure. Somebody samples how far the server has written, once a second, independently of shipping; so the answer is right also
//! while the stream is cut or the store is dead. A sample that lies beyond the watermark was written at the latest when it was
//! taken: its age is how long that has been at risk.

use std::collections::{BTreeMap, VecDeque};

use crate::archive::keys::binlog_number;

/// Samples kept. At one a second that is exact for 17 minutes of what is not stored; more of it is kept more coarsely (below).
const SAMPLES_MAX: usize = 1024;

/// A place in the server's binlogs; they are ordered by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub file: u64,
    pub bytes: u64,
}

impl Position {
    const START: Position = Position { file: 0, bytes: 0 };

    /// From a binlog's name, which ends in its number.
    pub fn of(name: &str, bytes: u64) -> Option<Position> {
        let file = binlog_number(name)?;
        Some(Position { file, bytes })
    }
}

/// Data that the archive lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Risk {
    /// How long the oldest of it has been written, µs.
    pub age_us: i64,
    pub bytes: u64,
}

/// At this time the server had written up to here, and perhaps for a while before.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at_us: i64,
    upto: Position,
}

/// How far the server has written, over time. Times are µs of any clock that does not go back.
#[derive(Debug, Default)]
pub struct AtRisk {
    /// Both grow from front to back.
    samples: VecDeque<Sample>,
    /// What is written within so many µs becomes one sample; 0 until there are too many.
    spacing_us: i64,
    /// Of the server's binlogs, by number.
    sizes: BTreeMap<u64, u64>,
    /// Where the server was when it was first looked at: what counts where no watermark is known.
    first: Option<Position>,
    /// A watermark that belongs to a history which the server no longer has.
    foreign: Option<Position>,
}

impl AtRisk {
    /// The server has written up to `upto`. `watermark` is what it was *before* the server was asked: one that lies beyond the
    /// answer is of another history (RESET BINARY LOGS AND GTIDS), of which nothing counts.
    pub fn sample(&mut self, at_us: i64, upto: Position, watermark: Option<Position>) {
        let went_back = self.samples.back().is_some_and(|last| upto < last.upto);
        let is_foreign = watermark.is_some_and(|w| upto < w);
        if went_back || is_foreign {
            *self = AtRisk {
                foreign: watermark,
                ..AtRisk::default()
            };
        }
        self.first.get_or_insert(upto);
        let size = self.sizes.entry(upto.file).or_default();
        *size = upto.bytes.max(*size);
        self.forget(self.effective(watermark));
        match self.samples.back_mut() {
            Some(last) if last.upto == upto => {}
            Some(last) if at_us - last.at_us < self.spacing_us => last.upto = upto,
            _ => self.samples.push_back(Sample { at_us, upto }),
        }
        if self.samples.len() > SAMPLES_MAX {
            self.thin_out();
        }
    }

    /// The server's binlogs, whole: number and bytes.
    pub fn files(&mut self, sizes: impl IntoIterator<Item = (u64, u64)>) {
        let newest = self.samples.back().map(|s| s.upto);
        self.sizes = sizes.into_iter().collect();
        if let Some(newest) = newest {
            let size = self.sizes.entry(newest.file).or_default();
            *size = newest.bytes.max(*size);
        }
    }

    /// What lies beyond the watermark was there before the first sample: since this moment.
    pub fn known_since(&mut self, at_us: i64) {
        if let Some(first) = self.samples.front_mut() {
            first.at_us = first.at_us.min(at_us);
        }
    }

    /// Whether nobody has looked yet.
    pub fn is_unknown(&self) -> bool {
        self.samples.is_empty()
    }

    /// Whether anything that is known was written beyond the watermark.
    pub fn is_beyond(&self, watermark: Option<Position>) -> bool {
        let watermark = self.effective(watermark);
        self.samples.back().is_some_and(|s| s.upto > watermark)
    }

    pub fn risk(&self, now_us: i64, watermark: Option<Position>) -> Risk {
        let watermark = self.effective(watermark);
        let oldest = self.samples.partition_point(|s| s.upto <= watermark);
        let (Some(oldest), Some(newest)) = (self.samples.get(oldest), self.samples.back()) else {
            return Risk::default();
        };
        Risk {
            age_us: (now_us - oldest.at_us).max(0),
            bytes: self.bytes_between(watermark, newest.upto),
        }
    }

    fn effective(&self, watermark: Option<Position>) -> Position {
        match watermark {
            Some(_) if watermark == self.foreign => Position::START,
            Some(known) => known,
            None => self.first.unwrap_or(Position::START),
        }
    }

    fn bytes_between(&self, from: Position, to: Position) -> u64 {
        let size = |file: u64| self.sizes.get(&file).copied().unwrap_or(0);
        if from.file == to.file {
            return to.bytes.saturating_sub(from.bytes);
        }
        let between: u64 = self.sizes.range(from.file + 1..to.file).map(|(_, bytes)| bytes).sum();
        size(from.file).saturating_sub(from.bytes) + between + to.bytes
    }

    /// Drops what is stored, but for the newest sample.
    fn forget(&mut self, watermark: Position) {
        let stored = self.samples.partition_point(|s| s.upto <= watermark);
        self.samples.drain(..stored.min(self.samples.len().saturating_sub(1)));
        if self.samples.len() < SAMPLES_MAX / 4 {
            self.spacing_us = 0;
        }
    }

    /// Makes one sample of each two: the earlier time and the further place stay, so that an age is overstated rather than
    /// understated.
    fn thin_out(&mut self) {
        let all: Vec<Sample> = self.samples.drain(..).collect();
        self.samples = all
            .chunks(2)
            .map(|pair| Sample {
                at_us: pair[0].at_us,
                upto: pair[pair.len() - 1].upto,
            })
            .collect();
        if let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) {
            self.spacing_us = (last.at_us - first.at_us) / (SAMPLES_MAX as i64 / 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND_US: i64 = 1_000_000;

    fn at(file: u64, bytes: u64) -> Position {
        Position { file, bytes }
    }

    #[test]
    fn files_are_ordered_by_number() {
        assert!(Position::of("binlog.1000000", 4) > Position::of("binlog.999999", 900));
        assert_eq!(Position::of("a.b.000042", 7), Some(at(42, 7)));
        assert_eq!(Position::of("binlog.index", 7), None);
    }

    /// A dead store: nothing moves the watermark, and both figures grow, over hours, in bounded memory.
    #[test]
    fn an_outage_of_a_day_is_told_within_a_percent() {
        let mut risk = AtRisk::default();
        let watermark = Some(at(1, 0));
        const DAY_S: i64 = 86_400;
        for s in 1..=DAY_S {
            risk.sample(s * SECOND_US, at(1, 100 * s.cast_unsigned()), watermark);
            assert!(risk.samples.len() <= SAMPLES_MAX);
        }
        let now = DAY_S * SECOND_US;
        assert_eq!(
            risk.risk(now, watermark),
            Risk {
                age_us: now - SECOND_US,
                bytes: 100 * DAY_S.cast_unsigned()
            }
        );
        // The store is back, and half of it shipped: what is left is half a day old.
        let half = risk.risk(now, Some(at(1, 50 * DAY_S.cast_unsigned()))).age_us;
        let exact = now / 2;
        assert!((exact - SECOND_US..exact + exact / 100).contains(&half), "{half} for {exact}");
        assert_eq!(risk.risk(now, Some(at(1, 100 * DAY_S.cast_unsigned()))), Risk::default());
    }

    #[test]
    fn after_a_reset_the_old_watermark_counts_for_nothing() {
        let mut risk = AtRisk::default();
        let old = Some(at(7, 500));
        risk.sample(SECOND_US, at(7, 500), old);
        assert_eq!(risk.risk(SECOND_US, old), Risk::default());
        risk.sample(2 * SECOND_US, at(1, 300), old);
        assert_eq!(
            risk.risk(3 * SECOND_US, old),
            Risk {
                age_us: SECOND_US,
                bytes: 300
            }
        );
        assert_eq!(risk.risk(3 * SECOND_US, Some(at(1, 300))), Risk::default());
    }

    #[test]
    fn without_a_watermark_counts_what_was_written_since_the_first_look() {
        let mut risk = AtRisk::default();
        risk.sample(SECOND_US, at(7, 500), None);
        assert_eq!(risk.risk(9 * SECOND_US, None), Risk::default());
        risk.sample(2 * SECOND_US, at(7, 600), None);
        assert_eq!(
            risk.risk(9 * SECOND_US, None),
            Risk {
                age_us: 7 * SECOND_US,
                bytes: 100
            }
        );
    }

    #[test]
    fn what_was_written_before_the_agent_started_keeps_its_age() {
        let mut risk = AtRisk::default();
        let watermark = Some(at(3, 100));
        risk.sample(0, at(5, 50), watermark);
        risk.files([(3, 400), (4, 1000), (5, 40)]);
        risk.known_since(-60 * SECOND_US);
        assert_eq!(
            risk.risk(SECOND_US, watermark),
            Risk {
                age_us: 61 * SECOND_US,
                bytes: 300 + 1000 + 50
            }
        );
    }

    /// One step of a server's life between two samples: bytes written, whether a new file begins, and how far of it all is stored.
    #[derive(Debug, Clone)]
    struct Step {
        written: u64,
        rotates: bool,
        stored_percent: u64,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = (0..500u64, prop::bool::weighted(0.1), 0..=100u64).prop_map(|(written, rotates, stored_percent)| Step {
            written,
            rotates,
            stored_percent,
        });
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        /// Against a plain list of everything that was ever written: bytes are exact, and seconds are the age of the first
        /// sample that saw what is not stored.
        #[test]
        fn equals_a_list_of_everything_written(steps in steps()) {
            let mut risk = AtRisk::default();
            // Where each byte of the history lies, and when it was first seen.
            let (mut bytes, mut seen): (Vec<Position>, Vec<i64>) = (Vec::new(), Vec::new());
            let (mut here, mut stored) = (at(1, 0), 0);
            for (i, step) in steps.iter().enumerate() {
                if step.rotates {
                    here = at(here.file + 1, 0);
                }
                for _ in 0..step.written {
                    here.bytes += 1;
                    bytes.push(here);
                }
                let now = SECOND_US * i64::try_from(i).unwrap();
                let watermark = |stored: usize| if stored == 0 { at(1, 0) } else { bytes[stored - 1] };
                risk.sample(now, here, Some(watermark(stored)));
                seen.resize(bytes.len(), now);
                // Never back.
                stored += (bytes.len() - stored) * usize::try_from(step.stored_percent).unwrap() / 100;
                let got = risk.risk(now + 5, Some(watermark(stored)));
                prop_assert_eq!(got.bytes, (bytes.len() - stored) as u64);
                match seen.get(stored) {
                    Some(first) => prop_assert_eq!(got.age_us, now + 5 - first),
                    None if here == watermark(stored) => prop_assert_eq!(got, Risk::default()),
                    // A new file without a byte.
                    None => prop_assert_eq!(got.bytes, 0),
                }
            }
        }
    }
}
