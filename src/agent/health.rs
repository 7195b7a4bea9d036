//! Whether the agent does what its role asks of it.

use std::time::Duration;

use crate::{orchestrator::Role, support::clock::US_PER_S};

use super::document::Document;

/// A store or a server may be away for so long before anybody has to know; also the longest time for which data may be at risk
/// while nothing is stored.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// With a long flush_interval, so many of them.
const FLUSHES_MISSED: u32 = 5;

/// None where all is well, else why not, in one line.
pub fn complaint(d: &Document, flush_interval: Duration) -> Option<String> {
    let patience = PATIENCE.max(flush_interval * FLUSHES_MISSED);
    let is_over = |us: i64| Duration::from_micros(us.max(0).unsigned_abs()) > patience;
    if let Some(since) = d.failing_since.filter(|since| is_over(d.at.0 - since.0)) {
        let seconds = (d.at.0 - since.0) / US_PER_S;
        let why = d.last_error.as_ref().map_or("", |e| e.text.as_str());
        let why = why.lines().next().unwrap_or_default();
        return Some(format!("shipping has failed for {seconds} s: {why}"));
    }
    if d.role == Role::Unknown && is_over(d.at.0 - d.started_at.0) {
        return Some("nobody has said yet what this node's role is".to_owned());
    }
    let risk = d.at_risk.as_ref().filter(|r| r.seconds > patience.as_secs_f64())?;
    // While a backlog is worked off, data is at risk and things are well.
    let progress = d.last_stored_at.max(d.last_seal_at).unwrap_or(d.started_at).max(d.started_at);
    is_over(d.at.0 - progress.0).then(|| {
        format!(
            "nothing was stored for {} s, and {} bytes are at risk, the oldest for {:.0} s",
            (d.at.0 - progress.0) / US_PER_S,
            risk.bytes,
            risk.seconds
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        agent::document::{AtRisk, Backlog, LastError, Totals},
        support::clock::Moment,
    };

    fn at(s: i64) -> Moment {
        Moment(s * US_PER_S)
    }

    /// A primary that started at 0 and is looked at after `now` seconds.
    fn document(now: i64) -> Document {
        Document {
            version: String::new(),
            at: at(now),
            started_at: at(0),
            shard: String::new(),
            store: String::new(),
            healthy: true,
            unhealthy_because: None,
            role: Role::Primary,
            standalone: true,
            confirmed_by: None,
            role_age_seconds: None,
            role_is_stale: None,
            takes_snapshots: true,
            server_writable: Some(true),
            timeline: Some(1),
            on_path: Some(true),
            shipped: None,
            at_risk: None,
            binlog_expire_seconds: None,
            backlog: Backlog { binlogs: 0, bytes: 0 },
            totals: Totals {
                received_bytes: 0,
                stored_bytes: 0,
                segments_stored: 0,
                sealed: 0,
                snapshots_complete: 0,
                snapshots_failed: 0,
                store_errors: 0,
                rounds_failed: 0,
            },
            last_stored_at: None,
            next_snapshot_at: None,
            snapshot_lock: None,
            snapshot_copies: None,
            last_seal_at: None,
            failing_since: None,
            last_error: None,
            archive: None,
            replica: None,
        }
    }

    fn says(d: &Document) -> Option<String> {
        complaint(d, Duration::from_secs(1))
    }

    #[test]
    fn data_at_risk_is_a_complaint_only_while_nothing_is_stored() {
        let mut d = document(1000);
        let risk = |seconds: f64| Some(AtRisk { seconds, bytes: 7 });
        d.at_risk = risk(59.0);
        assert_eq!(says(&d), None, "not long enough");
        d.at_risk = risk(500.0);
        assert!(
            says(&d)
                .unwrap()
                .contains("nothing was stored for 1000 s, and 7 bytes are at risk")
        );
        d.last_stored_at = Some(at(990));
        assert_eq!(says(&d), None, "a backlog is being worked off");
        d.last_stored_at = Some(at(900));
        assert!(says(&d).is_some());
        d.last_seal_at = Some(at(970));
        assert_eq!(says(&d), None, "by whole binlogs, too");
        // Whoever flushes every five minutes is given the time.
        d.last_seal_at = None;
        assert_eq!(complaint(&d, Duration::from_secs(300)), None);
    }

    #[test]
    fn an_idle_primary_and_a_replica_are_well() {
        let mut d = document(100_000);
        d.at_risk = Some(AtRisk { seconds: 0.0, bytes: 0 });
        assert_eq!(says(&d), None);
        d.role = Role::Replica;
        d.at_risk = None;
        assert_eq!(says(&d), None);
    }

    #[test]
    fn failing_for_long_is_a_complaint_whatever_the_role() {
        let mut d = document(100);
        d.failing_since = Some(at(41));
        assert_eq!(says(&d), None);
        d.failing_since = Some(at(39));
        d.last_error = Some(LastError {
            at: at(99),
            text: "the store is gone\nand more".into(),
        });
        assert_eq!(says(&d).unwrap(), "shipping has failed for 61 s: the store is gone");
    }

    /// It does what its role asks. Whose history counts is for an operator to say; `status` and an alert tell them.
    #[test]
    fn a_server_off_the_path_and_a_stale_role_are_no_complaint() {
        let mut d = document(100_000);
        (d.on_path, d.role_is_stale) = (Some(false), Some(true));
        assert_eq!(says(&d), None);
    }

    #[test]
    fn a_role_that_nobody_learns_is_a_complaint() {
        let mut d = document(10);
        d.role = Role::Unknown;
        assert_eq!(says(&d), None);
        d.at = at(61);
        assert!(says(&d).is_some());
    }
}
