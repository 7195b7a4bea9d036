//! Wall-clock time as the archive writes it: microseconds since 1970-01-01 UTC, as MySQL's GTID events do.

use std::{fmt, sync::Arc};

use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A moment in µs since the epoch, which JSON has as RFC 3339 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub i64);

impl Moment {
    pub fn now() -> Moment {
        Moment(now_us())
    }
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&format_utc(self.0))
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Moment, D::Error> {
        parse_rfc3339(&String::deserialize(deserializer)?)
            .map(Moment)
            .map_err(serde::de::Error::custom)
    }
}

/// Where shipping takes the time of its records from. Waits and deadlines are tokio's.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Microseconds since the epoch.
    fn now_us(&self) -> i64;
}

pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Debug)]
pub struct WallClock;

impl Clock for WallClock {
    fn now_us(&self) -> i64 {
        now_us()
    }
}

pub const US_PER_S: i64 = 1_000_000;
pub const US_PER_MIN: i64 = 60 * US_PER_S;

/// Now, in microseconds since the epoch.
pub fn now_us() -> i64 {
    Timestamp::now().as_microsecond()
}

/// RFC 3339 in UTC with six decimals, e.g. `2026-11-21T10:14:03.120000Z`.
pub fn format_utc(us: i64) -> String {
    match Timestamp::from_microsecond(us) {
        Ok(t) => format!("{t:.6}"),
        Err(_) => format!("{us} µs"),
    }
}

/// Local time with its offset and six decimals, e.g. `2026-11-21 11:14:03.120000 +01:00`.
pub fn format_local(us: i64) -> String {
    match Timestamp::from_microsecond(us) {
        Ok(t) => t
            .to_zoned(TimeZone::system())
            .strftime("%Y-%m-%d %H:%M:%S%.6f %:z")
            .to_string(),
        Err(_) => format!("{us} µs"),
    }
}

/// Parses RFC 3339 with an offset (a time without one is ambiguous, and refused) into microseconds.
pub fn parse_rfc3339(text: &str) -> Result<i64, String> {
    text.parse::<Timestamp>().map(|t| t.as_microsecond()).map_err(|e| {
        format!(
            "`{text}` is not an RFC 3339 time with an offset, such as 2026-11-21T10:14:03.120Z or 2026-11-21T11:14:03+01:00: {e}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_microseconds() {
        let us = parse_rfc3339("2026-11-21T11:14:03.120001+01:00").unwrap();
        assert_eq!(format_utc(us), "2026-11-21T10:14:03.120001Z");
    }

    #[test]
    fn refuses_a_time_without_an_offset() {
        assert!(parse_rfc3339("2026-11-21 10:14:03").unwrap_err().contains("with an offset"));
    }
}
