//! i1, i3, i10, i12, i13: two real servers under a load that remembers what it saw committed, and whatever can happen to them, to their
//! agents and to the store, in an order that a seed decides. In the end all is well again, and what is recovered is what the surviving
//! history holds: every transaction, none twice, none made up.
//!
//! `make torture ROUNDS=200 SEED=7` is the long run. The seed repeats the order of events and what is written; what the processes are doing
//! at the moment of an event is theirs.

#[path = "../demo/client.rs"]
#[allow(dead_code)]
mod client;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::support::{eventually, mysql::Server, shard::Shard, truth::truth};
use client::Client;
use mysql_pitr::{
    archive::path,
    binlog::gtid::{Gtid, GtidSet},
    mysql::endpoint::Endpoint,
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use sha2::{Digest, Sha256};
use tokio::{sync::watch, task::JoinHandle, time::sleep};

/// In `make test`: with the set-up and the recoveries, two minutes or so.
const ROUNDS: u64 = 7;
/// How long the load may need to meet a new primary, or one that is back.
const LOAD_RETRY: Duration = Duration::from_millis(50);
/// A load that leaves two cores something for four processes beside it.
const LOAD_PACE: Duration = Duration::from_millis(3);
/// Rows that are changed again and again.
const COUNTERS: u64 = 50;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    KillAgent { forgets: bool },
    KillServer,
    CutStore,
    LockStore,
    Rotate,
    SwitchOver,
    FailOver,
    Snapshot,
}

const EVENTS: [(Event, u32); 9] = [
    (Event::KillAgent { forgets: false }, 3),
    (Event::KillAgent { forgets: true }, 2),
    (Event::KillServer, 3),
    (Event::CutStore, 2),
    (Event::LockStore, 1),
    (Event::Rotate, 2),
    (Event::SwitchOver, 2),
    (Event::FailOver, 3),
    (Event::Snapshot, 1),
];

fn setting(name: &str, default: impl FnOnce() -> u64) -> u64 {
    env::var(name).map_or_else(|_| default(), |text| text.parse().unwrap_or_else(|e| panic!("{name}: {e}")))
}

/// What the transaction with this number writes: the seed's, not the moment's.
fn content(seed: u64, number: u64) -> String {
    format!("{:x}", Sha256::digest(format!("{seed} {number}")))
}

/// What the clients saw committed.
#[derive(Default)]
struct Seen {
    /// By number; a number is tried once.
    acknowledged: Mutex<BTreeMap<u64, Gtid>>,
    tried: AtomicU64,
}

impl Seen {
    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }
}

/// Writes to whoever is primary, one transaction after another, whatever comes between.
fn load(seed: u64, seen: Arc<Seen>, primary: watch::Receiver<Endpoint>, stop: watch::Receiver<bool>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut open: Option<Client> = None;
        while !*stop.borrow() {
            sleep(LOAD_PACE).await;
            let Some(client) = &mut open else {
                let endpoint = primary.borrow().clone();
                match Client::connect(&endpoint).await {
                    Ok(client) => open = Some(client),
                    Err(_) => sleep(LOAD_RETRY).await,
                }
                continue;
            };
            let number = seen.tried.fetch_add(1, Ordering::Relaxed) + 1;
            let text = content(seed, number);
            let done = async {
                client.execute("BEGIN").await?;
                client
                    .execute(&format!("INSERT INTO d.log (number, content) VALUES ({number}, '{text}')"))
                    .await?;
                let counter = number % COUNTERS;
                client
                    .execute(&format!(
                        "REPLACE INTO d.counter (id, number, content) VALUES ({counter}, {number}, '{text}')"
                    ))
                    .await?;
                client.execute("COMMIT").await
            };
            match done.await {
                Ok(gtid) => {
                    let gtid = gtid.expect("a commit has a GTID");
                    seen.acknowledged.lock().unwrap().insert(number, gtid);
                }
                // Whether it was committed, the server will know.
                Err(_) => open = None,
            }
        }
    })
}

struct Torture {
    shard: Shard,
    random: StdRng,
    seen: Arc<Seen>,
    primary: watch::Sender<Endpoint>,
    /// Acknowledged by a primary that died with them: no successor holds them.
    lost: BTreeSet<u64>,
    elsewhere: PathBuf,
}

impl Torture {
    async fn commits(&self, more: usize) {
        let wanted = self.seen.count() + more;
        eventually("the load goes on", async || self.seen.count() >= wanted).await;
    }

    async fn happens(&mut self, event: Event) {
        match event {
            Event::KillAgent { forgets } => {
                let member = if self.random.random_ratio(3, 4) {
                    &mut self.shard.primary
                } else {
                    &mut self.shard.replica
                };
                member.kill_agent().await;
                if forgets {
                    for file in ["state.db", "state.db-wal", "state.db-shm"] {
                        let _ = fs::remove_file(member.node.dir.path().join(file));
                    }
                }
                let away = self.random.random_range(0..400);
                self.commits(away / 4).await;
                if away % 2 == 0 {
                    self.shard.primary.server.execute(&["FLUSH BINARY LOGS"]).await;
                }
                for member in [&mut self.shard.primary, &mut self.shard.replica] {
                    if member.agent.is_none() {
                        member.start_agent();
                    }
                }
            }
            Event::KillServer => {
                if self.random.random() {
                    self.shard.primary.server.crash().await;
                } else {
                    self.shard.replica.server.crash().await;
                }
            }
            Event::CutStore => {
                let archive = &self.shard.primary.node.archive_dir;
                fs::rename(archive, &self.elsewhere).unwrap();
                let more = self.random.random_range(50..300);
                self.commits(more).await;
                fs::rename(&self.elsewhere, archive).unwrap();
            }
            Event::LockStore => {
                // Tests may run as root, whom no permission stops: a file where folders would be does.
                let archive = self.shard.primary.node.archive_dir.clone();
                fs::rename(&archive, &self.elsewhere).unwrap();
                fs::write(&archive, "").unwrap();
                let more = self.random.random_range(50..300);
                self.commits(more).await;
                fs::remove_file(&archive).unwrap();
                fs::rename(&self.elsewhere, &archive).unwrap();
            }
            Event::Rotate => self.shard.primary.server.execute(&["FLUSH BINARY LOGS"]).await,
            Event::Snapshot => {
                self.shard.primary.node.ok(&["snapshot", "--no-wait"]).await;
            }
            Event::SwitchOver => {
                self.shard.switch_over().await;
                self.promoted().await;
            }
            Event::FailOver => self.fail_over().await,
        }
    }

    /// The primary dies; what its replica had not received yet is lost, and the dead one is rebuilt, or, where nothing was lost, follows.
    async fn fail_over(&mut self) {
        if self.random.random() {
            // Something is lost for sure.
            self.shard.replica.server.execute(&["STOP REPLICA IO_THREAD"]).await;
            self.commits(20).await;
        }
        self.shard.primary.server.kill().await;
        self.shard.orchestrator().kill(self.shard.primary.server.port);
        self.shard.replica.server.wait_applied().await;
        self.shard.promote().await;
        self.promoted().await;
        let more = self.random.random_range(20..200);
        self.commits(more).await;

        // Whether it comes back as it was, before somebody sees to it, or not.
        let old = &mut self.shard.replica.server;
        old.read_only = true;
        old.run().await;
        let (had, has) = (old.gtid_executed().await, self.shard.primary.server.gtid_executed().await);
        let errant = had.subtract(&has);
        if errant.is_empty() {
            old.replicate_from(&self.shard.primary.server).await;
        } else {
            let seen = self.seen.acknowledged.lock().unwrap().clone();
            self.lost
                .extend(seen.iter().filter(|(_, g)| errant.contains(g)).map(|(n, _)| *n));
            old.stop().await;
            old.rebuild_from(&self.shard.primary.server).await;
            old.replicate_from(&self.shard.primary.server).await;
        }
        self.shard.tell_orchestrator();
    }

    /// Orchestrator, and the load, learn who is primary now.
    async fn promoted(&self) {
        self.shard.tell_orchestrator();
        self.primary.send_replace(self.shard.primary.server.root_endpoint());
        // A successor that hands over again before anybody knows of it is not to be told from nobody.
        let (uuid, archive) = (self.shard.primary.server.uuid().await, self.shard.primary.node.archive());
        eventually("the new primary has the path", async || {
            let timelines = archive.timelines().await.unwrap();
            path::tip(&timelines).is_some_and(|tip| tip.server_uuid == uuid)
        })
        .await;
        self.commits(1).await;
    }
}

/// The numbers that a server holds, and what it holds under them.
async fn logged(server: &Server) -> BTreeMap<u64, String> {
    let rows: Vec<(u64, String)> = server.root().await.rows("SELECT number, content FROM d.log").await.unwrap();
    rows.into_iter().collect()
}

/// What the counters must say where these transactions, and no others, happened in their order.
fn counters(numbers: impl Iterator<Item = u64>) -> BTreeMap<u64, u64> {
    numbers.map(|number| (number % COUNTERS, number)).collect()
}

async fn assert_counters(server: &Server, numbers: impl Iterator<Item = u64>, seed: u64) {
    let rows: Vec<(u64, u64, String)> = server
        .root()
        .await
        .rows("SELECT id, number, content FROM d.counter")
        .await
        .unwrap();
    assert!(rows.iter().all(|(_, number, text)| *text == content(seed, *number)));
    let found: BTreeMap<u64, u64> = rows.into_iter().map(|(id, number, _)| (id, number)).collect();
    assert_eq!(found, counters(numbers));
}

#[tokio::test(flavor = "multi_thread")]
async fn i10_whatever_happens_every_surviving_transaction_is_recovered_once() {
    let seed = setting("MYSQL_PITR_SEED", rand::random);
    let rounds = setting("MYSQL_PITR_ROUNDS", || ROUNDS);
    println!("SEED={seed} ROUNDS={rounds}");
    let shard = Shard::start(true).await;
    shard
        .primary
        .server
        .execute(&[
            "CREATE TABLE d.log (number BIGINT UNSIGNED PRIMARY KEY, content CHAR(64) NOT NULL)",
            "CREATE TABLE d.counter (id INT PRIMARY KEY, number BIGINT UNSIGNED NOT NULL, content CHAR(64) NOT NULL)",
        ])
        .await;
    let seen = Arc::new(Seen::default());
    let primary = watch::Sender::new(shard.primary.server.root_endpoint());
    let (stop, stopped) = watch::channel(false);
    let writing = load(seed, seen.clone(), primary.subscribe(), stopped);
    let mut torture = Torture {
        elsewhere: shard.primary.node.dir.path().join("elsewhere"),
        shard,
        random: StdRng::seed_from_u64(seed),
        seen: seen.clone(),
        primary,
        lost: BTreeSet::new(),
    };
    for round in 1..=rounds {
        let (event, _) = *EVENTS.choose_weighted(&mut torture.random, |(_, weight)| *weight).unwrap();
        let (before, pause) = (seen.count(), torture.random.random_range(10..150));
        println!("{round}: {event:?}, after {before} commits");
        torture.happens(event).await;
        torture.commits(pause).await;
    }
    stop.send_replace(true);
    writing.await.unwrap();
    let Torture {
        shard, mut random, lost, ..
    } = torture;
    let (server, node) = (&shard.primary.server, &shard.primary.node);
    node.wait_shipped(server).await;

    // Between the clients and the surviving server.
    let acknowledged = seen.acknowledged.lock().unwrap().clone();
    let survived = logged(server).await;
    assert!(
        survived.iter().all(|(number, text)| *text == content(seed, *number)),
        "made up"
    );
    let missing: Vec<&u64> = acknowledged
        .keys()
        .filter(|n| !survived.contains_key(n) && !lost.contains(n))
        .collect();
    assert!(
        missing.is_empty(),
        "the servers themselves lost what they had acknowledged: {missing:?}"
    );
    assert_counters(server, survived.keys().copied(), seed).await;

    // Between that server and what is recovered.
    let executed = server.gtid_executed().await;
    assert_eq!(
        node.archived_gtids().await.unwrap(),
        executed,
        "the path is the surviving history"
    );
    let (latest, _) = node.recover("latest", &["--latest"]).await;
    assert_eq!(latest.gtid_executed().await, executed);
    assert_eq!(truth(&mut latest.root().await).await, truth(&mut server.root().await).await);
    latest.stop_for_good().await;

    // A moment in between. Only what was committed since the window began can be asked for.
    let mut targets: Vec<(u64, Gtid)> = acknowledged.into_iter().filter(|(n, _)| survived.contains_key(n)).collect();
    let from = node.json(&["list"]).await;
    assert!(from["window"]["from"].is_string(), "{from}");
    targets.drain(..targets.len() / 2);
    let (number, gtid) = *targets.choose(&mut random).unwrap();
    println!("target: transaction {number}, {gtid}");
    let (recovered, _) = node.recover("between", &["--target-gtid", &gtid.to_string()]).await;
    let expected: BTreeMap<u64, String> = survived.range(..=number).map(|(n, text)| (*n, text.clone())).collect();
    let found = logged(&recovered).await;
    assert!(
        found == expected,
        "{} transactions, and {} were to be there",
        found.len(),
        expected.len()
    );
    assert_counters(&recovered, expected.keys().copied(), seed).await;
    let has: GtidSet = recovered.gtid_executed().await;
    assert!(has.contains(&gtid) && has.is_subset(&executed));
    println!(
        "{} commits, {} of them on servers that died with them, {} survived",
        seen.count(),
        lost.len(),
        survived.len()
    );
}
