//! How long after a commit returned the segment that holds it is stored in an S3 server on loopback.

use std::{collections::BTreeMap, time::Duration};

use mysql_pitr::{
    archive::keys::{Shard, TailKey, parse_tail_key},
    binlog::{
        gtid::Gtid,
        splitter::{SplitError, Splitter},
        transaction::Tracker,
    },
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    Scale,
    load::{self, Commit},
    report::{Better, Row, Sample, percentile},
    s3::S3,
    support::{
        mysql::Server,
        node::{Node, SHARD},
        shipped::server_file,
    },
};

const REPETITIONS: usize = 3;
const DURATION: Duration = Duration::from_secs(20);
/// Until clients, server and agent are at work.
const WARM_UP: Duration = Duration::from_secs(3);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// One flush interval, and what is wanted of it.
struct Case {
    name: &'static str,
    flush_interval: &'static str,
    aim_ms: f64,
}

const CASES: [Case; 2] = [
    Case {
        name: "ship_lag_p99_100ms",
        flush_interval: "100ms",
        aim_ms: 250.0,
    },
    Case {
        name: "ship_lag_p99_1s",
        flush_interval: "1s",
        aim_ms: 1300.0,
    },
];

/// What one repetition found, ms, sorted.
struct Found {
    lag: Vec<f64>,
    commit: Vec<f64>,
    put: Vec<f64>,
    segments: usize,
}

pub async fn run(scale: Scale) -> Vec<Row> {
    let (server, s3) = (Server::start(&[]).await, S3::start().await);
    load::prepare(&server).await;
    let node = |case: &Case| {
        let mut node = Node::new(&server, &format!("[ship]\nflush_interval = \"{}\"\n", case.flush_interval));
        s3.serve(&mut node, case.name);
        node
    };
    let nodes: Vec<Node> = CASES.iter().map(node).collect();
    let mut found: [Vec<Found>; CASES.len()] = Default::default();
    for _ in 0..REPETITIONS {
        for ((case, node), found) in CASES.iter().zip(&nodes).zip(&mut found) {
            found.push(measure(&server, &s3, node, case.name, scale.duration(DURATION)).await);
        }
    }
    CASES.iter().zip(&found).map(|(case, found)| row(case, found)).collect()
}

async fn measure(server: &Server, s3: &S3, node: &Node, prefix: &str, duration: Duration) -> Found {
    let agent = node.agent();
    wait_complete_snapshot(node).await;
    // What was written while another archive's agent ran is caught up with.
    durable(server, s3, prefix, load::run(server, WARM_UP).await).await;
    let began = Instant::now();
    let commits = load::run(server, duration).await;
    let commit = load::commit_ms(&commits);
    let lag = durable(server, s3, prefix, commits).await;
    agent.assert_quiet();
    agent.stop().await;
    let mut puts = s3.stored(prefix);
    puts.retain(|(key, stored)| stored.begun > began && matches!(parse_tail_key(&shard(), key), Some(TailKey::Segment(..))));
    Found {
        lag: load::sorted_ms(lag.into_iter()),
        commit,
        put: load::sorted_ms(puts.iter().map(|(_, stored)| stored.done - stored.begun)),
        segments: puts.len(),
    }
}

async fn wait_complete_snapshot(node: &Node) {
    crate::support::eventually("the first snapshot", async || {
        node.json(&["list"]).await["snapshots"][0]["state"] == "complete"
    })
    .await;
}

/// Waits until every commit is stored. Returns how long after its return each one was; zero where it was before.
async fn durable(server: &Server, s3: &S3, prefix: &str, commits: Vec<Commit>) -> Vec<Duration> {
    let deadline = Instant::now() + crate::PATIENCE;
    let ends = ends(server).await;
    let end_of = |c: &Commit| ends.get(&c.gtid).expect("a commit is in the server's binlog");
    loop {
        let stored = stored_up_to(s3, prefix);
        let lags: Option<Vec<Duration>> = commits
            .iter()
            .map(|c| {
                let (binlog, end) = end_of(c);
                let steps = stored.get(binlog)?;
                let step = steps.partition_point(|(covered, _)| covered < end);
                Some(steps.get(step)?.1.saturating_duration_since(c.returned))
            })
            .collect();
        if let Some(lags) = lags {
            return lags;
        }
        assert!(
            Instant::now() < deadline,
            "the last commits were not stored within {:?}",
            crate::PATIENCE
        );
        sleep(LOOK_INTERVAL).await;
    }
}

fn shard() -> Shard {
    SHARD.to_owned().try_into().expect("a shard's name")
}

/// For each binlog, in order: up to where it is stored without a hole, and since when.
fn stored_up_to(s3: &S3, prefix: &str) -> BTreeMap<String, Vec<(u64, Instant)>> {
    let mut segments: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for (key, stored) in s3.stored(prefix) {
        if let Some(TailKey::Segment(place, range)) = parse_tail_key(&shard(), &key) {
            segments.entry(place.name).or_default().push((range, stored.done));
        }
    }
    let steps = |mut segments: Vec<(mysql_pitr::archive::keys::SegmentRange, Instant)>| {
        segments.sort();
        let (mut steps, mut covered, mut since) = (Vec::new(), 0, None);
        for (range, done) in segments {
            if range.start > covered {
                break;
            }
            covered = covered.max(range.end);
            since = since.max(Some(done));
            steps.extend(since.map(|since| (covered, since)));
        }
        steps
    };
    segments.into_iter().map(|(name, segments)| (name, steps(segments))).collect()
}

/// In which binlog, and where in it, each transaction ends.
async fn ends(server: &Server) -> BTreeMap<Gtid, (String, u64)> {
    let mut ends = BTreeMap::new();
    for binlog in server.root().await.binary_logs().await.expect("the server's binlogs") {
        let bytes = server_file(server, &binlog.name);
        let (mut splitter, mut tracker) = (Splitter::new(), Tracker::default());
        let read = splitter.push(&bytes, |piece| {
            if let Some(t) = tracker.piece(piece)? {
                ends.insert(t.gtid, (binlog.name.clone(), t.end));
            }
            Ok::<(), SplitError>(())
        });
        read.expect("the server's binlog can be read");
    }
    ends
}

fn row(case: &Case, found: &[Found]) -> Row {
    let p99 = Sample::of(found.iter().map(|f| percentile(&f.lag, 99.0)).collect());
    let spread = |of: fn(&Found) -> &Vec<f64>| found.iter().map(|f| load::spread_ms(of(f))).collect::<Vec<_>>();
    let details = json!({
        "p99_ms": p99, "flush_interval": case.flush_interval, "load": load::description(),
        "lag": spread(|f| &f.lag), "commit": spread(|f| &f.commit), "put": spread(|f| &f.put),
        "segments": found.iter().map(|f| f.segments).collect::<Vec<_>>(),
        "s3_server": "s3s-fs in the bench's own process, on the same cores; it writes and renames a file, without fsync",
    });
    Row::against(case.name, (p99.median, "ms"), ("aim", case.aim_ms), Better::Lower)
        .aim(format!("at most {} ms", case.aim_ms), p99.median <= case.aim_ms)
        .details(details)
}
