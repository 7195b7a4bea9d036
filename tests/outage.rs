//! A store that hangs and a disk that fills up harm no server.

use std::{
    fs,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::support::{
    eventually,
    load::{server_binlogs, write_binlog},
    moto::{Moto, make_bucket, s3_node},
    mysql::Server,
    node::{Agent, Node, path_text, peak_memory_bytes},
    proxy::Proxy,
    skipped,
};
use mysql_pitr::mysql::query::Session;
use tempfile::TempDir;
use tokio::sync::watch;

const BUCKET: &str = "outage-bucket";
const URL: &str = "s3://outage-bucket/mysql";
const MAKE_TABLE: [&str; 2] = [
    "CREATE DATABASE d",
    "CREATE TABLE d.t (id INT PRIMARY KEY AUTO_INCREMENT, v LONGBLOB)",
];
const INSERT: &str = "INSERT INTO d.t (v) VALUES (RANDOM_BYTES(700))";

/// An agent whose archive is in a bucket behind a proxy, with its first snapshot.
async fn shipping(server: &Server, moto: &Moto, ship: &str) -> (Proxy, Node, Agent) {
    let proxy = Proxy::start(&moto.endpoint).await;
    make_bucket(moto, BUCKET);
    let node = s3_node(server, &proxy.endpoint, URL, ship);
    let agent = node.agent();
    server.execute(&MAKE_TABLE).await;
    eventually("the first snapshot", async || {
        let listing = node.json(&["list"]).await;
        listing["snapshots"][0]["state"] == "complete"
    })
    .await;
    (proxy, node, agent)
}

async fn dump_connections(root: &mut Session) -> u64 {
    let sql = "SELECT COUNT(*) FROM performance_schema.processlist WHERE command LIKE 'Binlog Dump%'";
    root.one::<(u64,)>(sql).await.unwrap().0
}

async fn agent_connections(root: &mut Session) -> u64 {
    let sql = "SELECT COUNT(*) FROM performance_schema.processlist WHERE user = 'mysql_pitr'";
    root.one::<(u64,)>(sql).await.unwrap().0
}

fn memory_bytes(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    kib.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

async fn wait_recoverable(node: &Node, server: &Server) {
    let wanted = server.gtid_executed().await.to_string();
    eventually("everything is recoverable", async || {
        let plan = node.run(&["recover", "--latest", "--dry-run", "--json"]).await;
        String::from_utf8_lossy(&plan.stdout).contains(&wanted)
    })
    .await;
}

/// i11, i12: under load, and with rotations: commits go on, the agent hangs up, and neither its memory nor its connections grow.
#[tokio::test(flavor = "multi_thread")]
async fn i12_a_store_that_hangs_slows_and_grows_nothing() {
    const COMMITS: u64 = 1000;
    const GROWTH_MAX: u64 = 24 << 20;
    /// The stream, a worker for each closed binlog, the looks at the server's state and role.
    const CONNECTIONS_MAX: u64 = 10;
    let (server, moto) = (Arc::new(Server::start(&[]).await), Moto::start());
    let (proxy, node, agent) = shipping(&server, &moto, "[ship]\nflush_interval = \"100ms\"\n").await;
    let (stop, stopped) = watch::channel(false);
    let commits = Arc::new(AtomicU64::new(0));
    let load = tokio::spawn({
        let (server, commits) = (server.clone(), commits.clone());
        async move {
            let mut root = server.root().await;
            while !*stopped.borrow() {
                root.execute("INSERT INTO d.t (v) VALUES (REPEAT(RANDOM_BYTES(1000), 20))")
                    .await
                    .unwrap();
                if commits.fetch_add(1, Ordering::Relaxed) % 500 == 0 {
                    root.execute("FLUSH LOCAL BINARY LOGS").await.unwrap();
                }
            }
        }
    });
    let committed = async |more: u64| {
        let wanted = commits.load(Ordering::Relaxed) + more;
        eventually("commits go on", async || commits.load(Ordering::Relaxed) >= wanted).await;
    };
    committed(COMMITS).await;
    let (mut root, before) = (server.root().await, memory_bytes(&agent));
    proxy.hang(true);
    let (mut most_connections, mut most_bytes) = (0, before);
    eventually("the agent hangs up", async || {
        most_connections = most_connections.max(agent_connections(&mut root).await);
        most_bytes = most_bytes.max(memory_bytes(&agent));
        agent.log().contains("is tried again") && dump_connections(&mut root).await == 0
    })
    .await;
    committed(COMMITS).await;
    most_bytes = most_bytes.max(memory_bytes(&agent));
    println!(
        "{} commits; {} MiB before, at most {} MiB; at most {most_connections} connections",
        commits.load(Ordering::Relaxed),
        before >> 20,
        most_bytes >> 20
    );
    assert!(most_bytes < before + GROWTH_MAX, "{before} bytes grew to {most_bytes}");
    assert!(most_connections <= CONNECTIONS_MAX, "{most_connections}");
    stop.send_replace(true);
    load.await.unwrap();
    proxy.hang(false);
    wait_recoverable(&node, &server).await;
    agent.stop().await;
}

/// i11: four uploads in parts beside the live binlog.
#[tokio::test(flavor = "multi_thread")]
async fn i11_a_backlog_into_a_bucket_takes_little_memory() {
    const BINLOGS: usize = 6;
    let (server, moto) = (Server::start(&[]).await, Moto::start());
    let (_proxy, node, agent) = shipping(&server, &moto, "[ship]\nflush_interval = \"100ms\"\n").await;
    agent.stop().await;
    for _ in 0..BINLOGS {
        write_binlog(&server, 64).await;
    }
    let agent = node.agent();
    let mut bytes = 0;
    eventually("the backlog is sealed", async || {
        let listing = node.json(&["list"]).await;
        let sealed = listing["binlogs"].as_array().unwrap().iter().filter(|b| b["sealed"] == true);
        bytes = sealed.clone().map(|b| b["bytes"].as_u64().unwrap_or_default()).sum();
        sealed.count() == BINLOGS
    })
    .await;
    let peak = peak_memory_bytes(agent.pid()).unwrap();
    println!("peak {} MiB for a backlog of {} MiB", peak >> 20, bytes >> 20);
    assert!(peak < 96 << 20, "{} MiB", peak >> 20);
    agent.assert_quiet();
    agent.stop().await;
}

/// A small disk. Dropped, it is unmounted.
struct Disk(TempDir);

impl Disk {
    fn mount(megabytes: u32) -> Option<Disk> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs", path_text(dir.path())])
            .output();
        mounted.is_ok_and(|o| o.status.success()).then(|| Disk(dir))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

/// i8, i12: below the floor of free space the agent keeps the server from purging nothing, names what may become a gap, and goes on
/// once there is room.
#[tokio::test(flavor = "multi_thread")]
async fn i12_a_full_disk_is_worse_than_a_gap_with_a_name() {
    let Some(disk) = Disk::mount(224) else {
        return skipped("a small disk to fill: this user may not mount one");
    };
    let basename = format!("--log-bin={}/binlog", path_text(disk.0.path()));
    let (server, moto) = (Server::start(&[&basename]).await, Moto::start());
    let ship = "[ship]\nflush_interval = \"100ms\"\nfree_space_floor = \"96MiB\"\n";
    let (proxy, node, agent) = shipping(&server, &moto, ship).await;
    let mut root = server.root().await;
    assert!(!agent.log().contains("nearly full"));
    proxy.hang(true);
    for _ in 0..4 {
        write_binlog(&server, 40).await;
    }
    let names = server_binlogs(&server).await;
    let live = names.last().unwrap();
    eventually("the agent hangs up", async || {
        agent.log().contains("nearly full") && dump_connections(&mut root).await == 0
    })
    .await;
    let log = agent.log();
    let named = log.lines().find(|l| l.contains("nearly full")).unwrap();
    assert!(
        named.contains(" ERROR ") && named.contains("binlog.000001 to binlog."),
        "{named}"
    );
    root.execute(&format!("PURGE BINARY LOGS TO '{live}'")).await.unwrap();
    assert_eq!(
        server_binlogs(&server).await,
        [live.as_str()],
        "something kept the server from purging"
    );

    proxy.hang(false);
    server.execute(&[INSERT]).await;
    eventually("the live binlog is shipped", async || {
        let listing = node.json(&["list"]).await;
        let binlogs = listing["binlogs"].as_array().unwrap();
        agent.log().contains("again more than") && binlogs.iter().any(|b| b.to_string().contains(live))
    })
    .await;
    node.ok(&["snapshot"]).await;
    wait_recoverable(&node, &server).await;
    agent.stop().await;
}
