//! When snapshots are due: a crontab line, a time zone, and a delay that spreads the shards. Pure.
//!
//! Where clocks are set forward, a run whose time of day is skipped happens at that moment; where they are set back, a run happens the first
//! time only. Lines with an open hour (`*`) just go on with the time that goes by.

use std::time::Duration;

use anyhow::anyhow;
use jiff::{Timestamp, tz::TimeZone};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    archive::{
        gaps,
        path::Path,
        records::{Snapshot, SnapshotState},
    },
    support::{clock::US_PER_S, hint::with_hint},
};

use super::crontab::Crontab;

/// Of a digest: a positive number of microseconds, up to two thousand years.
const SPREAD_BYTES: usize = 7;

/// Another server's snapshot that began so long ago is not waited for: its agent may be dead, and nobody else would end its record.
const OTHERS_PATIENCE_US: i64 = 6 * 3600 * US_PER_S;

/// The moment behind which runs are missing: the start of the newest snapshot that can be recovered from, whoever asked for it; where there
/// is none, the beginning of the history.
pub fn served_until(path: &Path, snapshots: &[Snapshot]) -> i64 {
    let newest = gaps::serving(path, snapshots).iter().map(|s| s.started_at_us).max();
    newest.unwrap_or_else(|| path.timelines().iter().map(|t| t.claimed_at_us).min().unwrap_or_default())
}

/// A snapshot that another server is taking.
pub fn under_way(snapshots: &[Snapshot], own: Uuid, now_us: i64) -> Option<&Snapshot> {
    let is_fresh = |s: &&Snapshot| now_us - s.started_at_us < OTHERS_PATIENCE_US;
    let mut others = snapshots
        .iter()
        .filter(|s| s.state == SnapshotState::Started && s.server_uuid != own);
    others.find(is_fresh)
}

/// When snapshots are to be taken.
#[derive(Debug, Clone)]
pub struct Schedule {
    crontab: Crontab,
    zone: TimeZone,
    jitter_us: i64,
}

/// A stretch of time between two changes of the clocks, in seconds since the epoch. Local time is UTC plus `offset`.
struct Stretch {
    offset: i64,
    /// When it began, and the offset before; None where it always was.
    began: Option<(i64, i64)>,
    ends: i64,
}

impl Schedule {
    /// `text` is a crontab line, `zone` an IANA name.
    pub fn parse(text: &str, zone: &str, jitter: Duration) -> anyhow::Result<Schedule> {
        let found = TimeZone::get(zone).map_err(|_| {
            let e = anyhow!("there is no time zone `{zone}`");
            with_hint(e, "write it as in the IANA database: UTC, Europe/Berlin, America/New_York")
        })?;
        Ok(Schedule {
            crontab: Crontab::parse(text)?,
            zone: found,
            jitter_us: i64::try_from(jitter.as_micros()).unwrap_or(i64::MAX),
        })
    }

    /// The first run after a moment, µs. None where no run is left.
    pub fn next_after(&self, moment_us: i64) -> Option<i64> {
        let run = self.next_second_after(moment_us.div_euclid(US_PER_S))?;
        run.checked_mul(US_PER_S)
    }

    /// When the first run after a moment is to start: its time, and a delay of less than the jitter and never up to the run after it. The
    /// same for every agent of a shard, and whenever it is asked.
    pub fn due_after(&self, moment_us: i64, shard: &str) -> Option<i64> {
        let run_us = self.next_after(moment_us)?;
        let room_us = self
            .next_after(run_us)
            .map_or(self.jitter_us, |next| self.jitter_us.min(next - run_us));
        let delay_us = match room_us {
            ..=0 => 0,
            room_us => {
                let digest = Sha256::digest(format!("{shard} {run_us}"));
                let spread = digest
                    .iter()
                    .take(SPREAD_BYTES)
                    .fold(0, |number, byte| number << 8 | i64::from(*byte));
                spread % room_us
            }
        };
        Some(run_us + delay_us)
    }

    fn next_second_after(&self, second: i64) -> Option<i64> {
        let mut floor = second;
        loop {
            let stretch = self.stretch_at(floor.checked_add(1)?)?;
            let mut local_floor = floor + stretch.offset;
            if let Some((began, before)) = stretch.began
                && !self.crontab.every_hour
            {
                let local_end_before = began + before - 1;
                let is_first = floor < began;
                let skipped = || {
                    self.crontab
                        .after(local_end_before)
                        .is_some_and(|run| run < began + stretch.offset)
                };
                if is_first && skipped() {
                    return Some(began);
                }
                local_floor = local_floor.max(local_end_before);
            }
            let run = self.crontab.after(local_floor)? - stretch.offset;
            if run < stretch.ends {
                return Some(run);
            }
            floor = stretch.ends - 1;
        }
    }

    fn stretch_at(&self, second: i64) -> Option<Stretch> {
        let at = Timestamp::from_second(second).ok()?;
        let offset = |at| i64::from(self.zone.to_offset(at).seconds());
        let next_second = Timestamp::from_second(second.checked_add(1)?).ok()?;
        let began = self.zone.preceding(next_second).next().map(|t| t.timestamp().as_second());
        let began = match began {
            Some(began) => Some((began, offset(Timestamp::from_second(began - 1).ok()?))),
            None => None,
        };
        Some(Stretch {
            offset: offset(at),
            began,
            ends: self.zone.following(at).next().map_or(i64::MAX, |t| t.timestamp().as_second()),
        })
    }
}

#[cfg(test)]
mod tests {
    use jiff::civil::DateTime;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        archive::{
            examples,
            records::{SnapshotState::*, Timeline},
        },
        binlog::gtid::GtidSet,
        support::hint::message,
    };

    fn schedule(text: &str, zone: &str) -> Schedule {
        Schedule::parse(text, zone, Duration::ZERO).unwrap()
    }

    fn us(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_microsecond()
    }

    /// The next runs after a moment.
    fn runs(schedule: &Schedule, after: &str, count: usize) -> Vec<String> {
        let first = schedule.next_after(us(after));
        let runs = std::iter::successors(first, |run| schedule.next_after(*run)).take(count);
        runs.map(|run| Timestamp::from_microsecond(run).unwrap().to_string())
            .collect()
    }

    #[test]
    fn monday_is_1() {
        let monday = ["2026-11-23T00:00:00Z", "2026-11-30T00:00:00Z"];
        for text in ["0 0 * * 1", "0 0 * * mon", "0 0 0 * * Mon", "0 0 0 * * 1 2026-2027"] {
            assert_eq!(runs(&schedule(text, "UTC"), "2026-11-21T12:00:00Z", 2), monday, "{text}");
        }
        let sunday = ["2026-11-22T00:00:00Z"];
        for text in ["0 0 * * 0", "0 0 * * 7", "@weekly"] {
            assert_eq!(runs(&schedule(text, "UTC"), "2026-11-21T12:00:00Z", 1), sunday, "{text}");
        }
    }

    #[test]
    fn either_day_will_do_where_both_are_restricted() {
        let either = runs(&schedule("30 4 1,15 * 5", "UTC"), "2026-05-01T04:30:00Z", 4);
        assert_eq!(
            either,
            [
                "2026-05-08T04:30:00Z",
                "2026-05-15T04:30:00Z",
                "2026-05-22T04:30:00Z",
                "2026-05-29T04:30:00Z"
            ]
        );
        let fifteenth = runs(&schedule("30 4 15 * 1", "UTC"), "2026-05-12T00:00:00Z", 2);
        assert_eq!(fifteenth, ["2026-05-15T04:30:00Z", "2026-05-18T04:30:00Z"]);
        // A star leaves only the other.
        let both = runs(&schedule("0 0 */2 * 1", "UTC"), "2026-11-21T00:00:00Z", 2);
        assert_eq!(both, ["2026-11-23T00:00:00Z", "2026-12-07T00:00:00Z"]);
    }

    #[test]
    fn a_day_has_one_run_when_the_clocks_change() {
        let berlin = schedule("30 2 * * *", "Europe/Berlin");
        // 2026-03-29: from 02:00 to 03:00.
        let spring = runs(&berlin, "2026-03-28T00:00:00Z", 3);
        assert_eq!(
            spring,
            ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]
        );
        // 2026-10-25: from 03:00 back to 02:00.
        let autumn = runs(&berlin, "2026-10-24T12:00:00Z", 2);
        assert_eq!(autumn, ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
        // Asked between the two half past two.
        assert_eq!(runs(&berlin, "2026-10-25T01:10:00Z", 1), ["2026-10-26T01:30:00Z"]);
        let hourly = runs(&schedule("@hourly", "Europe/Berlin"), "2026-10-24T23:30:00Z", 3);
        assert_eq!(
            hourly,
            ["2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"]
        );
    }

    #[test]
    fn seconds_leap_days_and_ends() {
        let seconds = runs(&schedule("*/20 * * * * *", "UTC"), "2026-11-21T12:00:00.5Z", 3);
        assert_eq!(
            seconds,
            ["2026-11-21T12:00:20Z", "2026-11-21T12:00:40Z", "2026-11-21T12:01:00Z"]
        );
        let leap = runs(&schedule("0 12 29 2 *", "UTC"), "2026-11-21T12:00:00Z", 1);
        assert_eq!(leap, ["2028-02-29T12:00:00Z"]);
        assert!(runs(&schedule("0 0 0 1 1 * 2026", "UTC"), "2026-11-21T12:00:00Z", 1).is_empty());
        assert_eq!(
            runs(&schedule("55 23 * * *", "Asia/Kathmandu"), "2026-11-21T12:00:00Z", 1),
            ["2026-11-21T18:10:00Z"]
        );
    }

    #[test]
    fn a_zone_that_does_not_exist_is_named() {
        let e = Schedule::parse("@daily", "Europe/Atlantis", Duration::ZERO).unwrap_err();
        assert_eq!(message(&e), "there is no time zone `Europe/Atlantis`");
    }

    fn snapshot(timeline: u32, state: SnapshotState, started_at_us: i64) -> Snapshot {
        Snapshot {
            state,
            server_uuid: Uuid::nil(),
            started_at_us,
            ..examples::snapshot(timeline, GtidSet::new())
        }
    }

    #[test]
    fn any_complete_snapshot_of_the_history_serves_the_schedule() {
        let timeline = |id: u32, claimed_at_us: i64| Timeline {
            claimed_at_us,
            ..examples::timeline(id, None, GtidSet::new())
        };
        let path = Path::find(&[timeline(1, 10), timeline(2, 20)], None).unwrap();
        let other_history = snapshot(1, Complete, 90);
        let unfinished = [snapshot(2, Started, 80), snapshot(2, Failed, 70), other_history];
        assert_eq!(served_until(&path, &unfinished), 20);
        let finished = [snapshot(2, Complete, 50), snapshot(2, Complete, 40)];
        assert_eq!(served_until(&path, &[&unfinished[..], &finished[..]].concat()), 50);
    }

    #[test]
    fn anothers_snapshot_is_waited_for_but_not_for_ever() {
        let (other, began) = (Uuid::from_u128(7), 1000 * US_PER_S);
        let snapshots = [snapshot(1, Complete, began), snapshot(1, Started, began)];
        assert!(under_way(&snapshots, other, began + US_PER_S).is_some());
        assert!(
            under_way(&snapshots, Uuid::nil(), began + US_PER_S).is_none(),
            "one's own is not waited for"
        );
        assert!(under_way(&snapshots, other, began + OTHERS_PATIENCE_US).is_none());
        assert!(under_way(&snapshots[..1], other, began + US_PER_S).is_none());
    }

    proptest! {
        #[test]
        fn the_delay_is_below_the_jitter_and_before_the_next_run(
            after in 0..4_000_000_000i64, jitter_s in 0..20_000u64, shard in "[a-z]{1,8}", text in prop::sample::select(vec!["@hourly", "55 23 * * *", "*/5 * * * * *"])
        ) {
            let schedule = Schedule::parse(text, "UTC", Duration::from_secs(jitter_s)).unwrap();
            let after = after * US_PER_S;
            let (run, due) = (schedule.next_after(after).unwrap(), schedule.due_after(after, &shard).unwrap());
            prop_assert!(run <= due && due < schedule.next_after(run).unwrap());
            prop_assert!(due - run < (jitter_s.cast_signed() * US_PER_S).max(1));
            prop_assert_eq!(schedule.due_after(after, &shard), Some(due));
        }
    }

    #[test]
    fn jitter_spreads_shards() {
        let schedule = Schedule::parse("@daily", "UTC", Duration::from_hours(1)).unwrap();
        let due: std::collections::BTreeSet<_> = (0..50).map(|n| schedule.due_after(0, &format!("s{n}"))).collect();
        assert!(due.len() > 45, "{due:?}");
    }

    /// One field: as text, and as the values that it allows.
    type Field = (String, Vec<bool>);

    fn field(min: usize, max: usize) -> impl Strategy<Value = Field> {
        let item = (min..=max, min..=max, 1..6usize, 0..3u8).prop_map(|(a, b, step, kind)| {
            let (first, last) = (a.min(b), a.max(b));
            match kind {
                0 => (first.to_string(), vec![first]),
                1 => (format!("{first}-{last}"), (first..=last).collect()),
                _ => (format!("{first}-{last}/{step}"), (first..=last).step_by(step).collect()),
            }
        });
        let allowed = move |values: &[usize]| (0..=max).map(|v| values.contains(&v)).collect::<Vec<bool>>();
        prop_oneof![
            Just(("*".to_owned(), vec![true; max + 1])),
            (1..6usize).prop_map(move |step| (format!("*/{step}"), allowed(&(min..=max).step_by(step).collect::<Vec<_>>()))),
            prop::collection::vec(item, 1..4).prop_map(move |items| {
                let texts: Vec<&str> = items.iter().map(|(text, _)| text.as_str()).collect();
                let values: Vec<usize> = items.iter().flat_map(|(_, values)| values.clone()).collect();
                (texts.join(","), allowed(&values))
            }),
        ]
    }

    /// Minute by minute, as the manual of crontab has it.
    struct Oracle {
        fields: [Field; 5],
        zone: TimeZone,
    }

    impl Oracle {
        fn matches(&self, at: DateTime) -> bool {
            let [minute, hour, day, month, weekday] = &self.fields;
            let has = |field: &Field, value: i8| field.1[usize::try_from(value).unwrap()];
            let number = at.weekday().to_sunday_zero_offset();
            let weekday_fits = has(weekday, number) || number == 0 && has(weekday, 7);
            let days = match day.0.starts_with('*') || weekday.0.starts_with('*') {
                true => has(day, at.day()) && weekday_fits,
                false => has(day, at.day()) || weekday_fits,
            };
            has(minute, at.minute()) && has(hour, at.hour()) && has(month, at.month()) && days
        }

        fn runs_at(&self, at: Timestamp) -> bool {
            let local = |at: Timestamp| self.zone.to_datetime(at);
            if self.fields[1].0.starts_with('*') {
                return self.matches(local(at));
            }
            let first = self.zone.to_ambiguous_timestamp(local(at)).earlier().unwrap();
            if self.matches(local(at)) && first == at {
                return true;
            }
            let minute = Duration::from_secs(60);
            let mut skipped = local(at - minute) + minute;
            while skipped < local(at) {
                if self.matches(skipped) {
                    return true;
                }
                skipped += minute;
            }
            false
        }
    }

    const ZONES: [&str; 5] = [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
    ];
    const HORIZON_MINUTES: i64 = 4 * 24 * 60;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn equals_minute_by_minute(
            minute in field(0, 59), hour in field(0, 23), day in field(1, 31), month in field(1, 12), weekday in field(0, 7),
            zone in prop::sample::select(ZONES.to_vec()), from in 1_700_000_000..2_000_000_000i64, near_change in any::<bool>(),
        ) {
            let zone_of_it = TimeZone::get(zone).unwrap();
            let mut from = Timestamp::from_second(from).unwrap();
            if near_change && let Some(change) = zone_of_it.following(from).next() {
                from = change.timestamp() - Duration::from_secs(from.as_second().unsigned_abs() % 100_000);
            }
            let text = [&minute, &hour, &day, &month, &weekday].map(|f| f.0.clone()).join(" ");
            let Ok(schedule) = Schedule::parse(&text, zone, Duration::ZERO) else {
                // Nothing but dates that do not exist.
                prop_assert!(!day.0.starts_with('*'), "{text}");
                return Ok(());
            };
            let oracle = Oracle { fields: [minute, hour, day, month, weekday], zone: zone_of_it };
            let first = from.as_second().div_euclid(60) + 1;
            let minutes = (first..first + HORIZON_MINUTES).map(|m| Timestamp::from_second(m * 60).unwrap());
            let expected: Vec<i64> = minutes.filter(|m| oracle.runs_at(*m)).map(|m| m.as_microsecond()).take(40).collect();
            let found = std::iter::successors(schedule.next_after(from.as_microsecond()), |run| schedule.next_after(*run));
            let found: Vec<i64> = found.take_while(|run| *run < (first + HORIZON_MINUTES) * 60 * US_PER_S).take(40).collect();
            prop_assert_eq!(found, expected, "{} in {}", text, zone);
        }
    }
}
