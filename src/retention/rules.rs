//! Which snapshots stay: the newest of each of the last days, weeks and months that have one. Pure.

use std::{collections::BTreeSet, time::Duration};

use anyhow::bail;
use jiff::{Timestamp, tz::TimeZone};

use crate::archive::records::Snapshot;

/// Segments of a live binlog go into its sealed form within minutes; whoever planned before that reads them for a while.
const SEGMENTS_GRACE_MIN: Duration = Duration::from_mins(10);
/// An upload that is under way has no record yet.
const ORPHANS_GRACE_MIN: Duration = Duration::from_hours(1);

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Days, weeks (from Monday) and months, in UTC, of which the newest snapshot is kept. Those without a snapshot do not count.
    pub daily: usize,
    pub weekly: usize,
    pub monthly: usize,
    /// A timeline that nothing happened on for so long is no history of its own any more.
    pub diverged: Duration,
    /// How long segments stay after their binlog is sealed.
    pub segments_grace: Duration,
    /// How long anything stays that no record speaks of, or that failed, or that is simply new.
    pub orphans_grace: Duration,
}

impl Rules {
    /// # Errors
    /// Where they would delete what is in use, or every snapshot but one.
    pub fn validate(&self) -> anyhow::Result<()> {
        if self.daily + self.weekly + self.monthly == 0 {
            bail!("[retention] keeps no snapshot: daily, weekly and monthly are all 0");
        }
        if self.segments_grace < SEGMENTS_GRACE_MIN {
            bail!("[retention] segments_grace must be at least 10 min");
        }
        if self.orphans_grace < ORPHANS_GRACE_MIN {
            bail!("[retention] orphans_grace must be at least 1 h");
        }
        Ok(())
    }

    /// The ids of those that stay, of the complete snapshots of one history.
    pub fn kept<'s>(&self, snapshots: &[&'s Snapshot]) -> BTreeSet<&'s str> {
        let mut newest_first = snapshots.to_vec();
        newest_first.sort_by_key(|s| std::cmp::Reverse((s.started_at_us, &s.id)));
        let mut kept: BTreeSet<&str> = newest_first.first().map(|s| s.id.as_str()).into_iter().collect();
        let periods: [(usize, Period); 3] = [(self.daily, day), (self.weekly, week), (self.monthly, month)];
        for (count, period) in periods {
            let mut seen = BTreeSet::new();
            for snapshot in &newest_first {
                let of = period(snapshot.started_at_us);
                if seen.len() < count && seen.insert(of) {
                    kept.insert(&snapshot.id);
                }
            }
        }
        kept
    }
}

/// The day, week or month of a moment, as a year and a number in it.
type Period = fn(i64) -> (i16, i16);

fn date(us: i64) -> jiff::civil::Date {
    let at = Timestamp::from_microsecond(us).unwrap_or(Timestamp::UNIX_EPOCH);
    at.to_zoned(TimeZone::UTC).date()
}

fn day(us: i64) -> (i16, i16) {
    (date(us).year(), date(us).day_of_year())
}

fn week(us: i64) -> (i16, i16) {
    let week = date(us).iso_week_date();
    (week.year(), i16::from(week.week()))
}

fn month(us: i64) -> (i16, i16) {
    (date(us).year(), i16::from(date(us).month()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(daily: usize, weekly: usize, monthly: usize) -> Rules {
        Rules {
            daily,
            weekly,
            monthly,
            diverged: Duration::from_hours(1),
            segments_grace: SEGMENTS_GRACE_MIN,
            orphans_grace: ORPHANS_GRACE_MIN,
        }
    }

    fn snapshot(at: &str) -> Snapshot {
        let started_at_us = at.parse::<Timestamp>().unwrap().as_microsecond();
        let record = serde_json::json!({
            "format": 1, "id": at, "state": "complete", "provider": "clone", "timeline": 1, "server_uuid": uuid::Uuid::nil(),
            "server_version": "", "started_at_us": started_at_us, "finished_at_us": started_at_us, "gtids_before": "",
            "gtids_after": "", "variables": {}, "data_key": "", "data_bytes": 0, "stored_bytes": 0, "stored_sha256": "",
        });
        serde_json::from_value(record).unwrap()
    }

    fn kept(rules: &Rules, times: &[&str]) -> Vec<String> {
        let snapshots: Vec<Snapshot> = times.iter().map(|at| snapshot(at)).collect();
        let kept = rules.kept(&snapshots.iter().collect::<Vec<_>>());
        kept.into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn the_newest_of_each_period_stays() {
        let times = [
            "2026-09-30T23:55:00Z",
            "2026-10-31T23:55:00Z",
            "2026-11-15T23:55:00Z",
            "2026-11-19T23:55:00Z",
            "2026-11-20T11:00:00Z",
            "2026-11-20T23:55:00Z",
        ];
        assert_eq!(kept(&rules(1, 0, 0), &times), ["2026-11-20T23:55:00Z"]);
        assert_eq!(
            kept(&rules(2, 0, 0), &times),
            ["2026-11-19T23:55:00Z", "2026-11-20T23:55:00Z"]
        );
        // A Sunday is its week's last day.
        assert_eq!(
            kept(&rules(0, 2, 0), &times),
            ["2026-11-15T23:55:00Z", "2026-11-20T23:55:00Z"]
        );
        assert_eq!(
            kept(&rules(0, 0, 9), &times),
            ["2026-09-30T23:55:00Z", "2026-10-31T23:55:00Z", "2026-11-20T23:55:00Z"]
        );
    }

    proptest! {
        /// One by one: a snapshot stays for a day where it is the day's last and few enough later days have one.
        #[test]
        fn equals_counting(hours in prop::collection::btree_set(0..20_000i64, 0..60), daily in 0..9usize, weekly in 0..6usize, monthly in 0..6usize) {
            const HOUR_US: i64 = 3_600_000_000;
            let texts: Vec<String> = hours.iter().map(|h| Timestamp::from_microsecond(1_767_225_600_000_000 + h * HOUR_US).unwrap().to_string()).collect();
            let snapshots: Vec<Snapshot> = texts.iter().map(|at| snapshot(at)).collect();
            let kept = rules(daily, weekly, monthly).kept(&snapshots.iter().collect::<Vec<_>>());
            for (i, s) in snapshots.iter().enumerate() {
                let later = &snapshots[i + 1..];
                let stays_for = |count: usize, same: &dyn Fn(i64) -> String| {
                    let own = same(s.started_at_us);
                    let others: BTreeSet<String> = later.iter().map(|l| same(l.started_at_us)).collect();
                    !others.contains(&own) && others.len() < count
                };
                let zoned = |us| Timestamp::from_microsecond(us).unwrap().to_zoned(TimeZone::UTC);
                let expected = later.is_empty()
                    || stays_for(daily, &|us| zoned(us).strftime("%F").to_string())
                    || stays_for(weekly, &|us| zoned(us).strftime("%G-%V").to_string())
                    || stays_for(monthly, &|us| zoned(us).strftime("%Y-%m").to_string());
                prop_assert_eq!(kept.contains(s.id.as_str()), expected, "{}", s.id);
            }
        }
    }
}
