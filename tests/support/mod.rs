//! Servers that tests start and stop.
// Every test file compiles this for itself and uses a part of it.
#![allow(dead_code)]

use std::time::Duration;

use jiff::{Timestamp, tz::TimeZone};
use tokio::time::{Instant, sleep};

pub mod binlog_writer;
#[cfg(feature = "aws")]
pub mod ebs;
#[cfg(feature = "aws")]
pub mod ebs_archive;
#[cfg(feature = "aws")]
pub mod ebs_stage;
#[cfg(feature = "aws")]
pub mod ec2_world;
pub mod faulty_store;
#[cfg(feature = "aws")]
pub mod front;
pub mod golden;
pub mod load;
pub mod made;
pub mod memory_store;
#[cfg(feature = "aws")]
pub mod minio;
#[cfg(feature = "aws")]
pub mod mortal;
pub mod moto;
pub mod mysql;
pub mod node;
pub mod orchestrator;
pub mod proxy;
#[cfg(feature = "aws")]
pub mod replicator;
#[cfg(feature = "aws")]
pub mod s3_proxy;
pub mod shard;
pub mod shipped;
pub mod story;
pub mod truth;
pub mod volume_record;

/// A crontab line that is one second of one year.
pub fn only_at(us: i64) -> String {
    let at = Timestamp::from_microsecond(us).unwrap().to_zoned(TimeZone::UTC);
    at.strftime("%-S %-M %-H %-d %-m * %Y").to_string()
}

/// A skipped test is visible: the test harness holds back what `eprintln!` says.
pub fn skipped(reason: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {reason}");
}

/// Waits until `is_so`, for as long as a healthy agent on a busy machine may take.
pub async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    const LOOK_INTERVAL: Duration = Duration::from_millis(50);
    let deadline = Instant::now() + node::PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "not within {:?}: {what}", node::PATIENCE);
        sleep(LOOK_INTERVAL).await;
    }
}
