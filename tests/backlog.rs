//! After an outage: closed binlogs are stored beside the live one, in order, whoever dies on the way; and a server is never harmed by
//! a store that is away or a disk that fills up.

use std::{
    env, fs,
    path::Path,
    time::{Duration, Instant},
};

use crate::support::{
    eventually,
    load::{server_binlogs, write_binlog},
    mysql::Server,
    node::{Node, PATIENCE, peak_memory_bytes},
    shipped::{self, assert_the_servers_bytes, manifests},
    skipped,
};
use mysql_pitr::archive::{
    listing::{Form, covered_end},
    records::{Ending, Reason},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::sleep;

const MAKE_TABLE: [&str; 2] = [
    "CREATE DATABASE d",
    "CREATE TABLE d.t (id INT PRIMARY KEY AUTO_INCREMENT, v LONGBLOB)",
];
const INSERT: &str = "INSERT INTO d.t (v) VALUES (RANDOM_BYTES(700))";
const ROTATE: &str = "FLUSH LOCAL BINARY LOGS";
const SHIP: &str = "[ship]\nflush_interval = \"100ms\"\n";

/// Shipped, then stopped: what comes next is a backlog.
async fn shipped_once(server: &Server, node: &Node) {
    let agent = node.agent();
    server.execute(&MAKE_TABLE).await;
    node.wait_snapshots(1).await;
    node.wait_shipped(server).await;
    agent.stop().await;
}

async fn sealed_names(node: &Node) -> Vec<String> {
    manifests(node).await.into_iter().map(|m| m.opening.place.name).collect()
}

/// i3: what is sealed at any moment is a beginning of the server's binlogs.
async fn assert_sealed_in_order(node: &Node, server: &Server) -> usize {
    let (sealed, all) = (sealed_names(node).await, server_binlogs(server).await);
    assert_eq!(sealed, all[..sealed.len()], "sealed out of order");
    sealed.len()
}

/// i3, i11: live transactions are durable while the backlog is still being sealed, in little memory.
#[tokio::test(flavor = "multi_thread")]
async fn i3_live_transactions_do_not_wait_for_a_backlog() {
    const BINLOGS: usize = 8;
    let server = Server::start(&[]).await;
    let node = Node::new(&server, SHIP);
    shipped_once(&server, &node).await;
    for _ in 0..BINLOGS {
        write_binlog(&server, 40).await;
    }
    let agent = node.agent();
    server.execute(&[INSERT]).await;
    let first = commit_to_stored(&server, &node).await;
    let sealed = sealed_names(&node).await.len();
    assert!(sealed < BINLOGS, "the live binlog came after {sealed} sealed ones");
    let mut beside = Vec::new();
    while sealed_names(&node).await.len() < BINLOGS {
        beside.push(commit_to_stored(&server, &node).await);
    }
    let mut alone = Vec::new();
    let mut sealed = 0;
    eventually("the backlog is sealed", async || {
        sealed = assert_sealed_in_order(&node, &server).await;
        sealed == BINLOGS
    })
    .await;
    for _ in 0..20 {
        alone.push(commit_to_stored(&server, &node).await);
    }
    beside.sort();
    alone.sort();
    let summary = |l: &[Duration]| format!("{} commits, median {:?}, most {:?}", l.len(), l.get(l.len() / 2), l.last());
    println!(
        "commit to stored: the first {first:?}; beside the backlog {}; alone {}",
        summary(&beside),
        summary(&alone)
    );
    node.wait_shipped(&server).await;
    let peak = peak_memory_bytes(agent.pid()).unwrap();
    println!("peak {} MiB", peak >> 20);
    assert!(peak < 96 << 20, "{} MiB", peak >> 20);
    assert_the_servers_bytes(&node, &server).await;
    agent.assert_quiet();
    agent.stop().await;
}

/// Commits a transaction, and waits until a segment with it is in the archive.
async fn commit_to_stored(server: &Server, node: &Node) -> Duration {
    let mut root = server.root().await;
    root.execute(INSERT).await.unwrap();
    let committed = Instant::now();
    let live = root.binary_logs().await.unwrap().pop().unwrap();
    while committed.elapsed() < PATIENCE {
        let tails = node.archive().tails_where(|p| p.name == live.name).await.unwrap();
        if tails
            .iter()
            .any(|t| matches!(&t.form, Form::Tail(s) if covered_end(s) >= live.bytes))
        {
            return committed.elapsed();
        }
        sleep(Duration::from_millis(2)).await;
    }
    panic!("not stored within {PATIENCE:?}");
}

/// i3, i10: an agent that is killed again and again in the middle of a backlog seals every binlog once, in order.
#[tokio::test(flavor = "multi_thread")]
async fn i10_an_agent_killed_in_a_backlog_converges() {
    const BINLOGS: usize = 10;
    const KILLS: usize = 8;
    let seed = env::var("MYSQL_PITR_SEED").map_or_else(|_| rand::random(), |text| text.parse().unwrap());
    println!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let server = Server::start(&[]).await;
    let node = Node::new(&server, "[ship]\nflush_interval = \"50ms\"\nbacklog_workers = 3\n");
    shipped_once(&server, &node).await;
    for _ in 0..BINLOGS {
        let megabytes = [0, 8, 24][random.random_range(0..3)];
        write_binlog(&server, megabytes).await;
    }
    for _ in 0..KILLS {
        let agent = node.agent();
        let (before, wanted) = (objects(&node), random.random_range(0..8));
        let (deadline, later_us) = (Instant::now() + Duration::from_secs(2), random.random_range(0..150_000));
        while objects(&node) < before + wanted && Instant::now() < deadline {
            sleep(Duration::from_millis(2)).await;
        }
        sleep(Duration::from_micros(later_us)).await;
        agent.kill().await;
        assert_sealed_in_order(&node, &server).await;
        server.execute(&[INSERT]).await;
        if random.random() {
            fs::remove_file(node.state_path()).unwrap();
        }
    }
    let agent = node.agent();
    server.execute(&[INSERT, ROTATE]).await;
    node.wait_sealed(BINLOGS + 1).await;
    node.wait_shipped(&server).await;
    assert_eq!(assert_sealed_in_order(&node, &server).await, BINLOGS + 1);
    assert_the_servers_bytes(&node, &server).await;
    assert_eq!(node.archive().timelines().await.unwrap().len(), 1);
    agent.assert_quiet();
    agent.stop().await;
}

fn objects(node: &Node) -> usize {
    shipped::objects(&node.archive_dir)
        .iter()
        .filter(|p| !p.to_string_lossy().contains("/.tmp/"))
        .count()
}

/// i13: whatever a binlog of the backlog ended with, what follows it is on the right timeline; with and without checksums,
/// encrypted and not.
#[tokio::test]
async fn i13_a_backlog_with_crashes_has_the_right_timelines() {
    for (options, encrypted) in [(&[][..], false), (&["--binlog-checksum=NONE"], false), (&[], true)] {
        let mut server = Server::start_prepared(options, |datadir| {
            if encrypted {
                make_keyring(datadir);
            }
        })
        .await;
        if encrypted && !encrypt(&server).await {
            skipped("binlog_encryption: this mysqld loads no keyring component");
            continue;
        }
        let node = Node::new(&server, SHIP);
        shipped_once(&server, &node).await;
        server.execute(&[INSERT, ROTATE, INSERT]).await;
        server.restart().await;
        server.execute(&[INSERT, ROTATE, INSERT]).await;
        server.crash().await;
        let inherited = [server.gtid_executed().await];
        server.execute(&[INSERT, ROTATE, INSERT]).await;
        server.crash().await;
        let inherited = [inherited[0].clone(), server.gtid_executed().await];
        server.execute(&[INSERT, ROTATE, INSERT]).await;

        let agent = node.agent();
        node.wait_sealed(7).await;
        node.wait_shipped(&server).await;
        let manifests = manifests(&node).await;
        let found: Vec<(Ending, u32)> = manifests.iter().map(|m| (m.ending, m.opening.timeline)).collect();
        let expected = [
            (Ending::Rotate, 1),
            (Ending::Stop, 1),
            (Ending::Rotate, 1),
            (Ending::Crash, 1),
            (Ending::Rotate, 2),
            (Ending::Crash, 2),
            (Ending::Rotate, 3),
        ];
        assert_eq!(found, expected, "{options:?}");
        let timelines = node.archive().timelines().await.unwrap();
        assert_eq!(timelines.len(), 3, "{options:?}: {timelines:?}");
        for (i, child) in timelines[1..].iter().enumerate() {
            assert_eq!((child.parent, child.reason), (Some(i as u32 + 1), Reason::Crash));
            assert_eq!(child.branch_set, inherited[i], "{options:?}");
        }
        if !encrypted {
            assert_the_servers_bytes(&node, &server).await;
        }
        agent.stop().await;
    }
}

/// A keyring that needs nothing but a file.
fn make_keyring(datadir: &Path) {
    let manifest = r#"{"components": "file://component_keyring_file"}"#;
    fs::write(datadir.join("mysqld.my"), manifest).unwrap();
    let config = serde_json::json!({"path": datadir.join("keyring"), "read_only": false});
    fs::write(datadir.join("component_keyring_file.cnf"), config.to_string()).unwrap();
}

/// Every binlog from here on; false where there is no keyring.
async fn encrypt(server: &Server) -> bool {
    let active = "SELECT COUNT(*) FROM performance_schema.keyring_component_status \
        WHERE status_key = 'Component_status' AND status_value = 'Active'";
    let has_keyring = server.root().await.one::<(u64,)>(active).await.unwrap().0 > 0;
    if has_keyring {
        server.execute(&["SET PERSIST binlog_encryption = ON"]).await;
    }
    has_keyring
}

/// i10: SIGTERM in a backlog ends the agent at once, and the next one goes on.
#[tokio::test(flavor = "multi_thread")]
async fn i10_an_agent_is_stopped_at_once_in_a_backlog() {
    let server = Server::start(&[]).await;
    let node = Node::new(&server, SHIP);
    shipped_once(&server, &node).await;
    for _ in 0..4 {
        write_binlog(&server, 96).await;
    }
    let agent = node.agent();
    eventually("uploads are under way", async || {
        let temps = fs::read_dir(node.archive_dir.join(".tmp")).into_iter().flatten().flatten();
        temps.filter(|t| t.metadata().is_ok_and(|m| m.len() > 0)).count() >= 2
    })
    .await;
    let stopped = Instant::now();
    agent.stop().await;
    let took = stopped.elapsed();
    println!("stopped within {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    let sealed = assert_sealed_in_order(&node, &server).await;
    assert!(sealed < 4, "it was stopped too late to show anything");
    let agent = node.agent();
    node.wait_sealed(4).await;
    assert_the_servers_bytes(&node, &server).await;
    agent.assert_quiet();
    agent.stop().await;
}
