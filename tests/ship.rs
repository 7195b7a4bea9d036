//! What the agent ships equals what the server wrote, whoever dies on the way.

use std::{env, fs, process::Command, sync::Arc, time::Duration};

use crate::support::{
    eventually,
    mysql::Server,
    node::{Node, PATIENCE, SHARD, path_text},
    shipped::{self, assert_the_servers_bytes, decoded, manifests, sealed_path, server_file},
    skipped,
    truth::truth,
};
use mysql_pitr::archive::{
    listing::{Form, covered_end},
    records::{Ending, Reason, SnapshotState, Timeline},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{sync::watch, task::JoinHandle, time::sleep};

const MAKE_TABLE: [&str; 2] = [
    "CREATE DATABASE d",
    "CREATE TABLE d.t (id INT PRIMARY KEY AUTO_INCREMENT, v LONGBLOB)",
];

/// A row that is larger than a segment, and than what is held of one event.
const INSERT_LARGE: &str = "INSERT INTO d.t (v) VALUES (REPEAT(RANDOM_BYTES(1000), 3000))";
const INSERT: &str = "INSERT INTO d.t (v) VALUES (RANDOM_BYTES(700))";

/// i4: in every codec, and whether the server closed a binlog by a rotation, by stopping, or not at all.
#[tokio::test]
async fn i4_sealed_binlogs_are_the_servers_own_bytes() {
    let mut server = Server::start(&[]).await;
    let nodes = ["zstd", "gzip", "none"].map(|codec| {
        let ship = format!("[ship]\nflush_interval = \"100ms\"\nsegment_bytes = \"1MiB\"\ncodec = \"{codec}\"\n");
        Node::new(&server, &ship)
    });
    let agents = nodes.each_ref().map(Node::agent);
    server.execute(&MAKE_TABLE).await;
    for node in &nodes {
        node.wait_shipped(&server).await;
    }
    server
        .execute(&[
            INSERT,
            INSERT_LARGE,
            INSERT,
            "SET SESSION binlog_transaction_compression = ON",
            INSERT_LARGE,
            "FLUSH LOCAL BINARY LOGS",
            INSERT,
        ])
        .await;
    server.restart().await;
    server.execute(&[INSERT, INSERT_LARGE]).await;
    for node in &nodes {
        node.wait_shipped(&server).await;
    }
    let writing = write_until_it_fails(&server).await;
    server.crash().await;
    writing.await.unwrap();
    server.execute(&[INSERT, "FLUSH LOCAL BINARY LOGS"]).await;

    for node in &nodes {
        node.wait_sealed(4).await;
        let manifests = manifests(node).await;
        let endings: Vec<Ending> = manifests.iter().map(|m| m.ending).collect();
        assert_eq!(endings, [Ending::Rotate, Ending::Stop, Ending::Crash, Ending::Rotate]);
        assert!(assert_the_servers_bytes(node, &server).await > 4);
        assert_the_segments_join(node, &server).await;
        assert_mysqlbinlog_reads(node).await;
    }
    for agent in agents {
        agent.stop().await;
    }
}

/// Writes rows until the server dies; returns once it writes.
async fn write_until_it_fails(server: &Server) -> JoinHandle<()> {
    let mut root = server.root().await;
    root.execute(INSERT).await.unwrap();
    tokio::spawn(async move { while root.execute(INSERT).await.is_ok() {} })
}

/// What was shipped live covers the whole binlog.
async fn assert_the_segments_join(node: &Node, server: &Server) {
    for tail in node.archive().tails_where(|_| true).await.unwrap() {
        let Form::Tail(segments) = &tail.form else { continue };
        // The one that the server was killed in, and whatever was sealed at once, was not followed to its end.
        let end = covered_end(segments);
        let (name, file) = (&tail.place().name, server_file(server, &tail.place().name));
        if name.ends_with("000001") {
            assert_eq!(end, file.len() as u64, "{name}");
        }
    }
}

async fn assert_mysqlbinlog_reads(node: &Node) {
    let Some(program) = env::var_os("MYSQL_PITR_MYSQLBINLOG") else {
        skipped("no stock mysqlbinlog (MYSQL_PITR_MYSQLBINLOG) to read what was sealed with");
        return;
    };
    for m in manifests(node).await {
        let path = node.target("whole");
        fs::write(&path, decoded(&sealed_path(node, &m))).unwrap();
        let output = Command::new(&program)
            .args(["--no-defaults", "--verify-binlog-checksum", "--base64-output=DECODE-ROWS"])
            .arg(&path)
            .output()
            .unwrap();
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "mysqlbinlog on {}: {err}", m.opening.place.name);
        let transactions = out.lines().filter(|l| l.contains("GTID_NEXT= '") && !l.contains("AUTOMATIC"));
        assert_eq!(transactions.count() as u64, m.transactions, "{}", m.opening.place.name);
    }
}

/// i1, i4, i10: an agent that is killed again and again while the server is busy, and loses its catalog now and then, has shipped
/// everything in the end, once, and nothing wrong.
#[tokio::test]
async fn i10_an_agent_killed_at_any_moment_converges() {
    const KILLS: u32 = 14;
    let seed = env::var("MYSQL_PITR_SEED").map_or_else(|_| rand::random(), |text| text.parse().unwrap());
    println!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let server = Arc::new(Server::start(&[]).await);
    let node = Node::new(&server, "[ship]\nflush_interval = \"50ms\"\nsegment_bytes = \"64KiB\"\n");
    server.execute(&MAKE_TABLE).await;
    let (stop, stopped) = watch::channel(false);
    let load = tokio::spawn(write_steadily(server.clone(), random.random(), stopped));
    for _ in 0..KILLS {
        let (agent, before) = (node.agent(), objects(&node));
        // Also while it starts, and between two objects.
        let (wanted, later_us) = (random.random_range(0..6), random.random_range(0..20_000));
        eventually("the agent goes on storing", async || objects(&node) >= before + wanted).await;
        sleep(Duration::from_micros(later_us)).await;
        agent.kill().await;
        if random.random() {
            for file in ["state.db", "state.db-wal", "state.db-shm"] {
                let _ = fs::remove_file(node.dir.path().join(file));
            }
        }
    }
    stop.send_replace(true);
    let rotations = load.await.unwrap();
    let agent = node.agent();
    server.execute(&[INSERT, "FLUSH LOCAL BINARY LOGS"]).await;
    node.wait_shipped(&server).await;
    node.wait_sealed(rotations + 1).await;
    assert!(assert_the_servers_bytes(&node, &server).await > 0);
    assert_eq!(manifests(&node).await.len(), rotations + 1);
    assert_eq!(node.archive().timelines().await.unwrap().len(), 1);
    agent.stop().await;
}

/// Rows of all sizes, and a rotation after each so many; returns the number of rotations.
async fn write_steadily(server: Arc<Server>, seed: u64, stopped: watch::Receiver<bool>) -> usize {
    let (mut random, mut root, mut rotations) = (StdRng::seed_from_u64(seed), server.root().await, 0);
    while !*stopped.borrow() {
        let len = [100, 5_000, 90_000, 300_000][random.random_range(0..4)];
        let sql = format!("INSERT INTO d.t (v) VALUES (REPEAT(RANDOM_BYTES(50), {}))", len / 50);
        root.execute(&sql).await.unwrap();
        if random.random_ratio(1, 40) {
            root.execute("FLUSH LOCAL BINARY LOGS").await.unwrap();
            root.execute(INSERT).await.unwrap();
            rotations += 1;
        }
        // A busy server, not the fastest one: the test compares all of it.
        sleep(Duration::from_millis(2)).await;
    }
    rotations
}

/// Objects in the archive, whatever they are.
/// But for what the agent says of itself.
fn objects(node: &Node) -> usize {
    let shard = node.archive_dir.join(SHARD);
    shipped::objects(&shard).len() - shipped::objects(&shard.join("agents")).len()
}

/// i3: SIGTERM cuts and stores what was received, long before the next flush is due.
#[tokio::test]
async fn i3_a_stopped_agent_stores_what_it_received() {
    let server = Server::start(&[]).await;
    let node = Node::new(&server, "[ship]\nflush_interval = \"1h\"\nsegment_bytes = \"64KiB\"\n");
    let agent = node.agent();
    node.wait_snapshots(1).await;
    server.execute(&MAKE_TABLE).await;
    // The rows fill the segment, which is cut behind them; the commit that follows them is left for the next one.
    server
        .execute(&["INSERT INTO d.t (v) VALUES (REPEAT(RANDOM_BYTES(1000), 100))"])
        .await;
    eventually("the first segment is there", async || segments(&node).await > 0).await;
    assert_ne!(node.archived_gtids().await.unwrap(), server.gtid_executed().await);
    agent.stop().await;
    assert_eq!(node.archived_gtids().await.unwrap(), server.gtid_executed().await);
    assert_eq!(assert_the_servers_bytes(&node, &server).await, 2);

    let agent = node.agent();
    server.execute(&[INSERT, "FLUSH LOCAL BINARY LOGS"]).await;
    node.wait_sealed(1).await;
    assert_the_servers_bytes(&node, &server).await;
    agent.assert_quiet();
    agent.stop().await;
}

async fn segments(node: &Node) -> usize {
    let tails = node.archive().tails_where(|_| true).await.unwrap();
    let count = |form: &Form| if let Form::Tail(s) = form { s.len() } else { 0 };
    tails.iter().map(|t| count(&t.form)).sum()
}

async fn timelines(node: &Node) -> Vec<Timeline> {
    node.archive().timelines().await.unwrap()
}

/// i13: a crash starts a child that says what it inherits, a clean restart does not, and recovery crosses the branch.
#[tokio::test]
async fn i13_a_crash_starts_a_child_and_a_restart_does_not() {
    let mut server = Server::start(&[]).await;
    let node = Node::new(&server, "");
    let agent = node.agent();
    server.execute(&MAKE_TABLE).await;
    node.wait_snapshots(1).await;
    server.execute(&[INSERT]).await;
    server.restart().await;
    server.execute(&[INSERT]).await;
    node.wait_shipped(&server).await;
    assert_eq!(timelines(&node).await.len(), 1, "a clean restart takes nothing back");

    server.crash().await;
    let inherited = server.gtid_executed().await;
    server.execute(&[INSERT, INSERT]).await;
    eventually("the crash started a child", async || timelines(&node).await.len() == 2).await;
    node.wait_shipped(&server).await;
    let child = timelines(&node).await.remove(1);
    assert_eq!((child.parent, child.reason, child.adopted), (Some(1), Reason::Crash, true));
    assert_eq!(child.branch_set, inherited);

    let expected = truth(&mut server.root().await).await;
    let (recovered, _) = node.recover("recovered", &["--latest"]).await;
    assert_eq!(truth(&mut recovered.root().await).await, expected);
    assert_eq!(recovered.gtid_executed().await, server.gtid_executed().await);
    agent.stop().await;
}

/// i5, i13: RESET BINARY LOGS AND GTIDS begins a root with a snapshot of its own; the same names and GTIDs then mean other
/// transactions, and the new ones are what recovery gives.
#[tokio::test]
async fn i13_a_reset_begins_a_root() {
    const RESET: &str = "RESET BINARY LOGS AND GTIDS";
    let server = Server::start(&[]).await;
    let node = Node::new(&server, "");
    let agent = node.agent();
    server.execute(&MAKE_TABLE).await;
    server.execute(&[INSERT, INSERT, INSERT]).await;
    node.wait_snapshots(1).await;
    node.wait_shipped(&server).await;

    server.execute(&[RESET, "CREATE TABLE d.once (id INT PRIMARY KEY)"]).await;
    wait_root_with(&node, 2, "create table d.once").await;

    // Twice within a second: nothing but the content tells the first binlogs apart.
    server
        .execute(&[
            RESET,
            "CREATE TABLE d.twice (id INT PRIMARY KEY)",
            RESET,
            "CREATE TABLE d.thrice (id INT PRIMARY KEY)",
        ])
        .await;
    wait_root_with(&node, 3, "create table d.thrice").await;

    server.execute(&[INSERT, "DROP TABLE d.once"]).await;
    node.wait_shipped(&server).await;
    let expected = truth(&mut server.root().await).await;
    let (recovered, _) = node.recover("recovered", &["--latest"]).await;
    assert_eq!(truth(&mut recovered.root().await).await, expected);
    assert_eq!(recovered.gtid_executed().await, server.gtid_executed().await);
    agent.stop().await;
}

/// Waits until there are that many roots at least, the last of them holds `statement`, and has a snapshot.
async fn wait_root_with(node: &Node, roots_min: usize, statement: &str) {
    let what = format!("a root with a snapshot and `{statement}`");
    eventually(&what, async || {
        let timelines = timelines(node).await;
        let Some(tip) = timelines.last().filter(|_| timelines.len() >= roots_min) else {
            return false;
        };
        assert_eq!((tip.parent, tip.reason), (None, Reason::Reset));
        let snapshots = node.archive().snapshots().await.unwrap();
        let has_snapshot = snapshots
            .iter()
            .any(|s| s.timeline == tip.id && s.state == SnapshotState::Complete);
        let output = node.run(&["search", "--json", "--statement", statement]).await;
        has_snapshot && String::from_utf8_lossy(&output.stdout).contains("\"gtid\"")
    })
    .await;
}

/// i13: a RESET while no agent runs is noticed by whoever looks next: a snapshot of the new history never belongs to the old one.
#[tokio::test]
async fn i13_a_reset_without_an_agent_is_noticed_by_the_snapshot() {
    let server = Server::start(&[]).await;
    let node = Node::new(&server, "");
    let agent = node.agent();
    server.execute(&MAKE_TABLE).await;
    server.execute(&[INSERT, INSERT]).await;
    node.wait_snapshots(1).await;
    node.wait_shipped(&server).await;
    agent.stop().await;

    server.execute(&["RESET BINARY LOGS AND GTIDS"]).await;
    server.execute(&[INSERT, INSERT, INSERT, INSERT, INSERT, INSERT]).await;
    let snapshot = node.json(&["snapshot"]).await;
    let agent = node.agent();
    server.execute(&[INSERT]).await;
    eventually("the new history is shipped", async || {
        timelines(&node).await.len() == 2 && node.archived_gtids().await.is_ok_and(|g| g.count() == 7)
    })
    .await;
    assert_eq!(snapshot["timeline"], 2);
    let plan = node.json(&["recover", "--latest", "--dry-run"]).await;
    assert_eq!(plan["timeline"], 2);
    // The old history is still what it was.
    let plan = node.json(&["recover", "--latest", "--dry-run", "--timeline", "1"]).await;
    assert_ne!(plan["snapshot"], snapshot["id"]);
    agent.stop().await;
}

/// i8: what the server purged before the agent saw it is a gap with a name; it stands in the way of nothing before it, and a later
/// snapshot heals it.
#[tokio::test]
async fn i8_binlogs_purged_before_they_were_shipped_are_a_gap_with_a_name() {
    let server = Server::start(&[]).await;
    let node = Node::new(&server, "");
    let agent = node.agent();
    server.execute(&MAKE_TABLE).await;
    node.wait_snapshots(1).await;
    server.execute(&[INSERT]).await;
    node.wait_shipped(&server).await;
    let before = last_gtid(&server).await;
    agent.stop().await;

    server
        .execute(&[INSERT, "FLUSH LOCAL BINARY LOGS", INSERT, "FLUSH LOCAL BINARY LOGS"])
        .await;
    let live: (String, u64, String, String, String) = server.root().await.one("SHOW BINARY LOG STATUS").await.unwrap();
    server.execute(&[&format!("PURGE BINARY LOGS TO '{}'", live.0), INSERT]).await;
    let agent = node.agent();
    let archived_last = last_gtid(&server).await;
    eventually("the last transaction is shipped", async || {
        let output = node.run(&["recover", "--dry-run", "--target-gtid", &archived_last]).await;
        String::from_utf8_lossy(&output.stderr).contains("the archive has a gap")
    })
    .await;
    let uuid = archived_last.split(':').next().unwrap();
    let error = node.fails(&["recover", "--latest", "--dry-run"]).await;
    assert!(
        error.contains("lacks 2 transactions between snapshot") && error.contains(&format!("{uuid}:4-5")),
        "{error}"
    );
    // The binlog that was purged half shipped may have been lost in a crash, for all that the archive knows: a child, no root.
    assert!(
        timelines(&node).await.iter().all(|t| t.reason != Reason::Reset),
        "a gap is no reset"
    );
    node.ok(&["recover", "--dry-run", "--target-gtid", &before]).await;
    node.ok(&["snapshot"]).await;
    node.ok(&["recover", "--dry-run", "--latest"]).await;
    agent.stop().await;
}

/// The newest transaction of a server that nobody else ever wrote to.
async fn last_gtid(server: &Server) -> String {
    let set = server.gtid_executed().await.to_string();
    let (uuid, numbers) = set.split_once(':').unwrap();
    format!("{uuid}:{}", numbers.rsplit('-').next().unwrap())
}

/// A replica is left alone, and shipped from seconds after it was promoted.
#[tokio::test]
async fn a_replica_is_shipped_once_it_is_writable() {
    let server = Server::start(&["--read-only=ON"]).await;
    let node = Node::new(&server, "");
    let agent = node.agent();
    server.execute(&MAKE_TABLE).await;
    eventually("the agent looked", async || agent.log().contains("it is read-only")).await;
    assert_eq!(objects(&node), 0, "a replica has no business in the archive");
    server.execute(&["SET GLOBAL read_only = OFF"]).await;
    let promoted = std::time::Instant::now();
    node.wait_shipped(&server).await;
    let took = promoted.elapsed();
    assert!(took < PATIENCE / 4, "promoted, and shipped only after {took:?}");
    agent.assert_quiet();
    agent.stop().await;
}

/// i12: a store that is away for a while blocks no commit and keeps no binlog from being purged, and nothing is lost.
#[tokio::test]
async fn i12_a_store_that_vanishes_blocks_nothing() {
    let server = Server::start(&[]).await;
    let node = Node::new(&server, "");
    let agent = node.agent();
    server.execute(&MAKE_TABLE).await;
    node.wait_snapshots(1).await;
    node.wait_shipped(&server).await;

    let elsewhere = node.target("elsewhere");
    fs::rename(&node.archive_dir, &elsewhere).unwrap();
    server.execute(&[INSERT, "FLUSH LOCAL BINARY LOGS", INSERT_LARGE]).await;
    let mut root = server.root().await;
    // As long as a dump connection reads a binlog, the server cannot purge it.
    eventually("the agent hangs up", async || {
        let sql = "SELECT COUNT(*) FROM performance_schema.processlist WHERE command LIKE 'Binlog Dump%'";
        agent.log().contains("its folder is gone") && root.one::<(u64,)>(sql).await.unwrap().0 == 0
    })
    .await;
    server.execute(&[INSERT, INSERT, "FLUSH LOCAL BINARY LOGS"]).await;
    assert!(!node.archive_dir.exists(), "a store that is gone is not made anew");

    fs::rename(&elsewhere, &node.archive_dir).unwrap();
    node.wait_shipped(&server).await;
    node.wait_sealed(2).await;
    assert_the_servers_bytes(&node, &server).await;
    agent.stop().await;
}

/// One record that cannot be read stops nothing: it is told once, shipping, snapshots and search go on, and what it said of a binlog is
/// found in the segments.
#[tokio::test]
async fn a_corrupt_record_does_not_stop_the_agent() {
    let server = Server::start(&[]).await;
    let node = Node::new(&server, "");
    let agent = node.agent();
    server.execute(&MAKE_TABLE).await;
    node.wait_snapshots(1).await;
    server
        .execute(&[INSERT, "FLUSH LOCAL BINARY LOGS", INSERT, "FLUSH LOCAL BINARY LOGS"])
        .await;
    node.wait_sealed(2).await;
    agent.stop().await;
    let damage = |name: &str| {
        let objects = shipped::objects(&node.archive_dir);
        let path = objects.iter().find(|p| path_text(p).ends_with(name)).unwrap();
        fs::write(path, "{\"format\": 1, ").unwrap();
    };
    // The older one, and the one that a round looks back to.
    damage("_binlog.000001.zst.json");
    damage("_binlog.000002.zst.json");
    fs::write(node.dir.path().join("agent.log"), "").unwrap();
    let agent = node.agent();
    server.execute(&[INSERT, "FLUSH LOCAL BINARY LOGS", INSERT]).await;
    node.wait_shipped(&server).await;
    eventually("the next binlog is sealed", async || {
        let objects = shipped::objects(&node.archive_dir);
        objects.iter().any(|p| path_text(p).ends_with("_binlog.000003.zst.json"))
    })
    .await;
    let told = |what: &str| {
        agent
            .log()
            .lines()
            .filter(|l| l.contains("shipping goes on") && l.contains(what))
            .count()
    };
    assert_eq!((told("binlog.000001"), told("binlog.000002")), (1, 1), "{}", agent.log());
    assert_eq!(node.archive().timelines().await.unwrap().len(), 1, "nothing was taken back");
    let requested = node.json(&["snapshot"]).await;
    assert_eq!(requested["state"], "complete");
    assert!(agent.log().contains("the archive is damaged: "), "{}", agent.log());
    let output = node.run(&["search", "--table", "d.t", "--json"]).await;
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found.as_array().unwrap().len(), 4, "{found}");
    let warnings = String::from_utf8(output.stderr).unwrap();
    assert!(
        warnings.contains("binlog.000001") && warnings.contains("is read from its segments instead"),
        "{warnings}"
    );
    agent.stop().await;
}
