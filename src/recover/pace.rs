//! How fast a replay goes, and how long it will take.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::support::{clock, progress::human_bytes};

/// The rate is that of so long ago until now: one large transaction does not make it nonsense, and a change shows soon.
const WINDOW: Duration = Duration::from_secs(30);
/// Looks closer together than that are one: the memory is bounded.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);

pub struct Pace {
    total: u64,
    /// When the last transaction of the plan was committed at its server, in µs.
    until_us: Option<i64>,
    samples: VecDeque<(Instant, u64)>,
}

/// How far it is.
#[derive(Debug, Clone, Copy)]
pub struct Position {
    pub transactions: u64,
    /// Uncompressed, as sent.
    pub bytes: u64,
    /// The commit time of the last transaction that was applied.
    pub applied_us: Option<i64>,
}

impl Pace {
    pub fn new(total: u64, until_us: Option<i64>) -> Pace {
        Pace {
            total,
            until_us,
            samples: VecDeque::new(),
        }
    }

    pub fn look(&mut self, now: Instant, transactions: u64) {
        if self.samples.back().is_some_and(|(at, _)| now - *at < SAMPLE_INTERVAL) {
            return;
        }
        self.samples.push_back((now, transactions));
        while self.samples.len() > 2 && self.samples.front().is_some_and(|(at, _)| now - *at > WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Transactions per second; None before anything is known.
    fn rate(&self) -> Option<f64> {
        let ((from, before), (to, after)) = (self.samples.front()?, self.samples.back()?);
        let seconds = (*to - *from).as_secs_f64();
        (seconds > 0.0).then(|| after.saturating_sub(*before) as f64 / seconds)
    }

    pub fn tell(&self, at: Position) -> String {
        const PERCENT: f64 = 100.0;
        let mut parts = Vec::new();
        match (at.applied_us, self.until_us) {
            (Some(applied), Some(until)) => parts.push(format!(
                "{} of {}",
                short(clock::format_utc(applied)),
                short(clock::format_utc(until))
            )),
            (Some(applied), None) => parts.push(short(clock::format_utc(applied))),
            (None, _) => {}
        }
        let percent = at.transactions as f64 / self.total.max(1) as f64 * PERCENT;
        parts.push(format!("{percent:.0} %"));
        parts.push(format!("{} of {} transactions", at.transactions, self.total));
        parts.push(human_bytes(at.bytes));
        if let Some(rate) = self.rate() {
            parts.push(format!("{rate:.0}/s"));
            let left = self.total.saturating_sub(at.transactions) as f64 / rate;
            if let Ok(left) = Duration::try_from_secs_f64(left) {
                parts.push(format!("{} left", rough(left)));
            }
        }
        parts.join(", ")
    }
}

/// `2026-11-21T10:14:03.120456Z` as `2026-11-21 10:14:03.120`.
fn short(utc: String) -> String {
    const BYTES: usize = "2026-11-21T10:14:03.120".len();
    utc.get(..BYTES).map_or(utc.clone(), |text| text.replace('T', " "))
}

/// In the two largest units: nobody believes in more.
fn rough(duration: Duration) -> String {
    let s = duration.as_secs();
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_where_it_is_and_how_long_it_takes() {
        let start = Instant::now();
        let until = clock::parse_rfc3339("2026-11-20T10:15:00Z").unwrap();
        let mut pace = Pace::new(4000, Some(until));
        let mut at = Position {
            transactions: 0,
            bytes: 0,
            applied_us: None,
        };
        pace.look(start, 0);
        assert_eq!(pace.tell(at), "0 %, 0 of 4000 transactions, 0 B");
        for second in 1..=100u64 {
            // Slow at first; the last half minute counts.
            at.transactions = if second < 60 { second } else { 60 + (second - 60) * 20 };
            pace.look(start + Duration::from_secs(second), at.transactions);
        }
        at.bytes = 3 << 20;
        at.applied_us = Some(until - 56_880_000);
        assert_eq!(
            pace.tell(at),
            "2026-11-20 10:14:03.120 of 2026-11-20 10:15:00.000, 22 %, 860 of 4000 transactions, 3.0 MiB, 20/s, 2 min 37 s left"
        );
        assert!(pace.samples.len() < 70);
    }

    #[test]
    fn a_standstill_has_no_end() {
        let start = Instant::now();
        let mut pace = Pace::new(10, None);
        pace.look(start, 1);
        pace.look(start + Duration::from_secs(5), 1);
        let at = Position {
            transactions: 1,
            bytes: 0,
            applied_us: None,
        };
        assert_eq!(pace.tell(at), "10 %, 1 of 10 transactions, 0 B, 0/s");
    }
}
