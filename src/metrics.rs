//! What Prometheus is told. `docs/metrics.md` says what each metric means and what to do about it.
//!
//! Figures that nobody knows are absent, never zero and never NaN: an alert that compares sees no series then, and
//! `absent()` sees that.

use prometheus::{Encoder, Gauge, GaugeVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// A figure that may be unknown.
pub struct Maybe(GaugeVec);

impl Maybe {
    pub fn set(&self, value: Option<f64>) {
        // A family without a child is not rendered.
        self.0.reset();
        if let Some(value) = value {
            self.0.with_label_values::<&str>(&[]).set(value);
        }
    }
}

/// All metrics, in a registry of their own.
pub struct Metrics {
    registry: Registry,
    pub role: IntGaugeVec,
    pub role_age: Maybe,
    pub role_stale: Maybe,
    pub confirmed: Maybe,
    pub takes_snapshots: Gauge,
    pub server_writable: Maybe,
    pub timeline: Maybe,
    pub on_path: Maybe,
    pub healthy: Gauge,
    pub at_risk_seconds: Maybe,
    pub at_risk_bytes: Maybe,
    pub binlog_expire_seconds: Maybe,
    pub received_bytes: IntCounter,
    pub segments_stored: IntCounter,
    pub stored_bytes: IntCounter,
    pub durable_position: Maybe,
    pub last_stored: Maybe,
    pub backlog_binlogs: Gauge,
    pub backlog_bytes: Gauge,
    pub sealed: IntCounter,
    pub last_seal: Maybe,
    pub gaps: Maybe,
    pub gap_transactions: Maybe,
    pub recoverable_from: Maybe,
    pub recoverable_until: Maybe,
    pub archive_seen: Maybe,
    pub archive_faults: Maybe,
    pub snapshot_last_success: Maybe,
    pub snapshot_next: Maybe,
    pub snapshots: IntCounterVec,
    pub snapshot_lock: Maybe,
    pub snapshot_lock_parts: GaugeVec,
    pub snapshot_copies_pending: Maybe,
    pub snapshot_copies_failed: Maybe,
    pub store_errors: IntCounter,
    pub rounds_failed: IntCounter,
    pub last_error: Maybe,
    pub replica_behind_seconds: Maybe,
    pub replica_behind_bytes: Maybe,
    pub replica_behind_binlogs: Maybe,
    pub replica_behind_segments: Maybe,
    pub replica_behind_snapshots: Maybe,
    pub replica_behind_records: Maybe,
    pub replica_differing: Maybe,
    pub replica_seen: Maybe,
    pub replica_recoverable_from: Maybe,
    pub replica_recoverable_until: Maybe,
    pub replica_copied_bytes: IntCounter,
}

/// Collects what is registered.
struct Builder(Registry);

impl Builder {
    fn add<C: prometheus::core::Collector + Clone + 'static>(&self, collector: prometheus::Result<C>) -> C {
        let collector = collector.expect("the names are constant and right");
        let registered = self.0.register(Box::new(collector.clone()));
        registered.expect("no name occurs twice");
        collector
    }

    fn maybe(&self, name: &str, help: &str) -> Maybe {
        Maybe(self.add(GaugeVec::new(Opts::new(name, help), &[])))
    }

    fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.add(Gauge::new(name, help))
    }

    fn total(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    pub fn new() -> Metrics {
        let b = Builder(Registry::new());
        let info = Opts::new("mysql_pitr_build_info", "Always 1; the version is a label.");
        b.add(IntGaugeVec::new(info, &["version"]))
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        let role = Opts::new("mysql_pitr_role", "1 for the role that the node has, 0 for the others.");
        let taken = Opts::new(
            "mysql_pitr_snapshots_total",
            "Snapshots that this agent took or failed to take, by result.",
        );
        let parts = Opts::new(
            "mysql_pitr_snapshot_lock_part_seconds",
            "How long each part of that took, the wait for the lock included.",
        );
        Metrics {
            role: b.add(IntGaugeVec::new(role, &["role"])),
            role_age: b.maybe(
                "mysql_pitr_role_age_seconds",
                "How long ago Orchestrator last said what the role is.",
            ),
            role_stale: b.maybe(
                "mysql_pitr_role_stale",
                "Whether Orchestrator has not said for three poll intervals what the role is.",
            ),
            confirmed: b.maybe(
                "mysql_pitr_primary_confirmed",
                "Whether Orchestrator confirms this server as the shard's living, writable primary.",
            ),
            takes_snapshots: b.gauge(
                "mysql_pitr_takes_snapshots",
                "Whether the shard's snapshots are this server's to take.",
            ),
            server_writable: b.maybe("mysql_pitr_server_writable", "Whether the server takes writes."),
            timeline: b.maybe("mysql_pitr_timeline", "The timeline that this server is shipped on."),
            on_path: b.maybe(
                "mysql_pitr_on_path",
                "Whether what is shipped is part of the shard's current history.",
            ),
            healthy: b.gauge("mysql_pitr_healthy", "What /healthz says: 1 for 200, 0 for 503."),
            at_risk_seconds: b.maybe(
                "mysql_pitr_at_risk_seconds",
                "Age of the oldest data that the server has and the archive lacks.",
            ),
            at_risk_bytes: b.maybe(
                "mysql_pitr_at_risk_bytes",
                "Binlog that the server has written and the archive lacks.",
            ),
            binlog_expire_seconds: b.maybe(
                "mysql_pitr_binlog_expire_seconds",
                "The server's binlog_expire_logs_seconds; absent where it keeps binlogs for ever.",
            ),
            received_bytes: b.total("mysql_pitr_received_bytes_total", "Binlog received from the live stream."),
            segments_stored: b.total("mysql_pitr_segments_stored_total", "Segments stored."),
            stored_bytes: b.total(
                "mysql_pitr_stored_bytes_total",
                "Bytes of segments and sealed binlogs stored, compressed.",
            ),
            durable_position: b.maybe(
                "mysql_pitr_durable_position_bytes",
                "Position in the newest shipped binlog up to which everything is stored.",
            ),
            last_stored: b.maybe(
                "mysql_pitr_last_stored_timestamp_seconds",
                "When the last segment was stored.",
            ),
            backlog_binlogs: b.gauge("mysql_pitr_backlog_binlogs", "Closed binlogs that are not sealed yet."),
            backlog_bytes: b.gauge("mysql_pitr_backlog_bytes", "Their bytes."),
            sealed: b.total("mysql_pitr_sealed_total", "Binlogs sealed."),
            last_seal: b.maybe("mysql_pitr_last_seal_timestamp_seconds", "When the last binlog was sealed."),
            gaps: b.maybe(
                "mysql_pitr_gaps",
                "Gaps that keep the newest transactions from being recovered, because no snapshot holds them.",
            ),
            gap_transactions: b.maybe("mysql_pitr_gap_transactions", "Transactions missing in those gaps."),
            recoverable_from: b.maybe(
                "mysql_pitr_recoverable_from_timestamp_seconds",
                "Begin of the recoverable window that ends with the history.",
            ),
            recoverable_until: b.maybe("mysql_pitr_recoverable_until_timestamp_seconds", "End of that window."),
            archive_seen: b.maybe(
                "mysql_pitr_archive_seen_timestamp_seconds",
                "When gaps, window and snapshots were last looked at in the store.",
            ),
            archive_faults: b.maybe("mysql_pitr_archive_faults", "Records of the archive that cannot be read."),
            snapshot_last_success: b.maybe(
                "mysql_pitr_snapshot_last_success_timestamp_seconds",
                "When the newest snapshot on the path was complete, whoever took it.",
            ),
            snapshot_next: b.maybe(
                "mysql_pitr_snapshot_next_timestamp_seconds",
                "When the schedule wants the next snapshot of this node; past while it is due and not taken.",
            ),
            snapshots: b.add(IntCounterVec::new(taken, &["result"])),
            snapshot_lock: b.maybe(
                "mysql_pitr_snapshot_lock_seconds",
                "How long the server was last locked for a snapshot of its volumes.",
            ),
            snapshot_lock_parts: b.add(GaugeVec::new(parts, &["part"])),
            snapshot_copies_pending: b.maybe(
                "mysql_pitr_snapshot_copies_pending",
                "Copies of complete snapshots that are on their way to the other region.",
            ),
            snapshot_copies_failed: b.maybe(
                "mysql_pitr_snapshot_copies_failed",
                "Copies of complete snapshots that the other region lacks because they failed; they are tried again.",
            ),
            store_errors: b.total(
                "mysql_pitr_store_errors_total",
                "Calls to the store that failed, those that were repeated included.",
            ),
            rounds_failed: b.total(
                "mysql_pitr_rounds_failed_total",
                "Times that shipping broke off and began again.",
            ),
            last_error: b.maybe("mysql_pitr_last_error_timestamp_seconds", "When shipping last broke off."),
            replica_behind_seconds: b.maybe(
                "mysql_pitr_replica_behind_seconds",
                "For how long the oldest thing that the other region's bucket lacks has been in this one's.",
            ),
            replica_behind_bytes: b.maybe("mysql_pitr_replica_behind_bytes", "What it lacks."),
            replica_behind_binlogs: b.maybe(
                "mysql_pitr_replica_behind_binlogs",
                "Sealed binlogs that it lacks, or lacks a part of.",
            ),
            replica_behind_segments: b.maybe("mysql_pitr_replica_behind_segments", "Segments that it lacks."),
            replica_behind_snapshots: b.maybe(
                "mysql_pitr_replica_behind_snapshots",
                "Snapshots that it lacks, or lacks a part of.",
            ),
            replica_behind_records: b.maybe(
                "mysql_pitr_replica_behind_records",
                "Timelines, and openings of binlogs, that it lacks.",
            ),
            replica_differing: b.maybe(
                "mysql_pitr_replica_differing",
                "Objects that are not the same in both regions' buckets.",
            ),
            replica_seen: b.maybe(
                "mysql_pitr_replica_seen_timestamp_seconds",
                "When both regions' buckets were last compared.",
            ),
            replica_recoverable_from: b.maybe(
                "mysql_pitr_replica_recoverable_from_timestamp_seconds",
                "Begin of the window that the other region's bucket alone can recover.",
            ),
            replica_recoverable_until: b.maybe(
                "mysql_pitr_replica_recoverable_until_timestamp_seconds",
                "End of that window.",
            ),
            replica_copied_bytes: b.total(
                "mysql_pitr_replica_copied_bytes_total",
                "Copied to the other region's bucket by this agent.",
            ),
            registry: b.0,
        }
    }

    /// In Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("a vector takes everything");
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// Brings a counter to a total that is counted elsewhere, and only grows.
pub fn set_total(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_is_absent() {
        let metrics = Metrics::new();
        assert!(!metrics.render().contains("mysql_pitr_at_risk_seconds"));
        metrics.at_risk_seconds.set(Some(1.5));
        assert!(metrics.render().contains("\nmysql_pitr_at_risk_seconds 1.5\n"));
        metrics.at_risk_seconds.set(None);
        assert!(!metrics.render().contains("mysql_pitr_at_risk_seconds"));
    }

    #[test]
    fn totals_never_fall() {
        let metrics = Metrics::new();
        for total in [5, 3, 7] {
            set_total(&metrics.sealed, total);
        }
        assert_eq!(metrics.sealed.get(), 7);
    }
}
