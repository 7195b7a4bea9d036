//! Random targets over the archive of one random history: each recovered server equals the truth at that transaction.
//!
//! The history has rows and DDL over tables that come and go, rotations, restarts, snapshots in between, and an agent that
//! is killed. What the server held after every transaction is kept here, outside MySQL. `MYSQL_PITR_SEED` repeats a run;
//! `MYSQL_PITR_TARGETS` sets how many targets are tried.

use std::{collections::BTreeMap, env, fs, rc::Rc, time::Instant};

use crate::support::{
    mysql::Server,
    node::{Agent, Node},
    story::assert_same,
    truth::{Truth, truth},
};
use mysql_pitr::{
    binlog::gtid::GtidSet,
    mysql::query::Session,
    support::clock::{format_utc, now_us, parse_rfc3339},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::Value;

const TRANSACTIONS: usize = 300;
const TABLES_MAX: usize = 6;
const TARGETS_DEFAULT: usize = 4;
/// So small that the server goes on to a new binlog by itself.
const OPTIONS: [&str; 2] = ["--max-binlog-size=12288", "--innodb-flush-log-at-trx-commit=1"];

/// What the server held after one transaction.
struct Point {
    /// The transaction that led here.
    gtid: String,
    gtids: GtidSet,
    truth: Rc<Truth>,
    /// When it was committed: as the archive says, which lies between our looks at the clock before and after.
    commit_us: i64,
    /// In which binlog it lies, as the archive says.
    binlog: String,
    sql: String,
}

/// The history while it is made.
struct History {
    rng: StdRng,
    server: Server,
    node: Node,
    agent: Option<Agent>,
    session: Session,
    tables: Vec<String>,
    tables_made: usize,
    points: Vec<Point>,
    clock_us: BTreeMap<String, (i64, i64)>,
}

#[tokio::test]
async fn random_targets_are_met_exactly() {
    let seed = number_from_env("MYSQL_PITR_SEED").unwrap_or_else(|| rand::rng().random());
    let targets = number_from_env("MYSQL_PITR_TARGETS").map_or(TARGETS_DEFAULT, |n| n as usize);
    println!("MYSQL_PITR_SEED={seed} MYSQL_PITR_TARGETS={targets}");
    let mut history = History::begin(seed).await;
    history.make().await;
    let History {
        mut rng,
        mut server,
        node,
        agent,
        points,
        ..
    } = history;
    node.wait_shipped(&server).await;
    let agent = agent.expect("it runs");
    assert!(!agent.log().contains(" ERROR "), "the agent's log:\n{}", agent.log());
    agent.stop().await;
    server.stop().await;
    let began = Instant::now();
    for i in 0..targets {
        let (arguments, expected) = choose(&mut rng, &points, i);
        let point = &points[expected];
        let what = format!(
            "seed {seed}, target {i}: {arguments:?}, which is after transaction {expected}: {}",
            point.sql
        );
        println!("{what}");
        let name = format!("target{i}");
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (recovered, report) = node.recover(&name, &arguments).await;
        let mut session = recovered.root().await;
        assert_same(&truth(&mut session).await, &point.truth, &what);
        assert_eq!(session.gtid_executed().await.unwrap(), point.gtids, "{what}");
        if report["transactions_replayed"] != 0 {
            assert_eq!(report["recovered_to"], format_utc(point.commit_us), "{what}");
        }
        drop(recovered);
        fs::remove_dir_all(node.target(&name)).unwrap();
    }
    println!("{targets} targets met in {} s", began.elapsed().as_secs());
}

/// A target, and the point that it means. The kinds take turns, so that even a few targets are of every kind.
fn choose(rng: &mut StdRng, points: &[Point], turn: usize) -> (Vec<String>, usize) {
    let last = points.len() - 1;
    // Nothing is known of the time after the last commit.
    let mut at = rng.random_range(1..last);
    if turn % 3 == 1 {
        // The first transaction of a binlog: the one before it lies in another. Left out of the report, once.
        let firsts: Vec<usize> = (1..last).filter(|i| points[*i].binlog != points[i - 1].binlog).collect();
        at = *firsts.choose(rng).unwrap();
    }
    let before = |us: i64| points.iter().position(|p| p.commit_us > us).unwrap() - 1;
    let (commit_us, gtid) = (points[at].commit_us, points[at].gtid.clone());
    match turn % 9 {
        0 | 4 => (vec!["--target-time".into(), format_utc(commit_us)], before(commit_us)),
        1 | 5 => (vec!["--target-time".into(), format_utc(commit_us - 1)], before(commit_us - 1)),
        2 | 6 => (vec!["--target-gtid".into(), gtid], at),
        3 | 7 => (vec!["--target-gtid".into(), gtid, "--exclusive".into()], at - 1),
        _ => (vec!["--latest".into()], last),
    }
}

fn number_from_env(name: &str) -> Option<u64> {
    env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|e| panic!("{name}: {e}")))
}

impl History {
    async fn begin(seed: u64) -> History {
        let server = Server::start(&OPTIONS).await;
        server.execute(&["CREATE DATABASE h"]).await;
        let node = Node::new(&server, "");
        let agent = Some(node.agent());
        node.wait_snapshots(1).await;
        let session = server.root().await;
        let mut history = History {
            rng: StdRng::seed_from_u64(seed),
            server,
            node,
            agent,
            session,
            tables: Vec::new(),
            tables_made: 0,
            points: Vec::new(),
            clock_us: BTreeMap::new(),
        };
        let create = history.create();
        history.transaction(&create).await;
        history
    }

    async fn make(&mut self) {
        let disruptions = BTreeMap::from_iter(["restart", "kill the agent", "snapshot", "kill the agent", "snapshot"].map(
            |what| {
                // Two at the same place: the later one counts.
                (self.rng.random_range(TRANSACTIONS / 10..TRANSACTIONS * 9 / 10), what)
            },
        ));
        println!("{disruptions:?}");
        for i in 1..TRANSACTIONS {
            if let Some(what) = disruptions.get(&i) {
                self.disrupt(what).await;
            }
            let sql = self.any();
            self.transaction(&sql).await;
        }
        self.note_commit_times().await;
    }

    async fn disrupt(&mut self, what: &str) {
        match what {
            "restart" => {
                self.server.restart().await;
                self.session = self.server.root().await;
            }
            "snapshot" => drop(self.node.ok(&["snapshot"]).await),
            _ => {
                let killed = self.agent.take().expect("it runs");
                killed.kill().await;
                self.agent = Some(self.node.agent());
            }
        }
    }

    /// Runs `sql`, which is one transaction or, where it changes nothing, none.
    async fn transaction(&mut self, sql: &str) {
        let before = self.session.gtid_executed().await.unwrap();
        let began_us = now_us();
        self.session.execute(sql).await.unwrap();
        let ended_us = now_us();
        let gtids = self.session.gtid_executed().await.unwrap();
        let fresh = gtids.subtract(&before);
        if fresh.is_empty() {
            return;
        }
        assert_eq!(fresh.count(), 1, "`{sql}` made the transactions {fresh}");
        self.clock_us.insert(fresh.to_string(), (began_us, ended_us));
        self.points.push(Point {
            gtid: fresh.to_string(),
            gtids,
            truth: Rc::new(truth(&mut self.session).await),
            commit_us: 0,
            binlog: String::new(),
            sql: sql.to_owned(),
        });
    }

    async fn note_commit_times(&mut self) {
        self.node.wait_shipped(&self.server).await;
        let found = self.node.json(&["search"]).await;
        let found: BTreeMap<&str, &Value> = found
            .as_array()
            .unwrap()
            .iter()
            .map(|f| (f["gtid"].as_str().unwrap(), f))
            .collect();
        for point in &mut self.points {
            let found = found[point.gtid.as_str()];
            point.commit_us = parse_rfc3339(found["committed_at"].as_str().unwrap()).unwrap();
            point.binlog = found["binlog"].as_str().unwrap().to_owned();
            let (began_us, ended_us) = self.clock_us[&point.gtid];
            assert!(
                (began_us..=ended_us).contains(&point.commit_us),
                "`{}` was committed at {}, and ran from {} to {}",
                point.sql,
                format_utc(point.commit_us),
                format_utc(began_us),
                format_utc(ended_us)
            );
        }
    }

    fn any(&mut self) -> String {
        match self.rng.random_range(0..100) {
            0..4 if self.tables.len() < TABLES_MAX => self.create(),
            4..6 if self.tables.len() < TABLES_MAX => self.create_from(),
            6..9 if self.tables.len() > 1 => self.drop(),
            9..17 => self.alter(),
            17..19 => format!("TRUNCATE h.{}", self.table()),
            19..22 => self.rename(),
            22..55 => self.insert(),
            55..75 => self.update(),
            75..85 => format!(
                "DELETE FROM h.{} ORDER BY id LIMIT {}",
                self.table(),
                self.rng.random_range(1..5)
            ),
            _ => self.several(),
        }
    }

    fn table(&mut self) -> String {
        self.tables.choose(&mut self.rng).unwrap().clone()
    }

    fn new_name(&mut self) -> String {
        self.tables_made += 1;
        let name = format!("t{}", self.tables_made);
        self.tables.push(name.clone());
        name
    }

    fn create(&mut self) -> String {
        format!(
            "CREATE TABLE h.{} (id INT PRIMARY KEY AUTO_INCREMENT, n BIGINT, s VARCHAR(200), j JSON, d DATETIME(6))",
            self.new_name()
        )
    }

    fn create_from(&mut self) -> String {
        let from = self.table();
        format!(
            "CREATE TABLE h.{} (PRIMARY KEY (id)) AS SELECT id, n, s, j, d FROM h.{from}",
            self.new_name()
        )
    }

    fn drop(&mut self) -> String {
        let at = self.rng.random_range(0..self.tables.len());
        format!("DROP TABLE h.{}", self.tables.swap_remove(at))
    }

    fn alter(&mut self) -> String {
        let (table, number) = (self.table(), self.points.len());
        let change = match self.rng.random_range(0..4) {
            0 => format!("ADD COLUMN c{number} INT DEFAULT {number}"),
            1 => format!("ADD INDEX i{number} (n, s(10))"),
            2 => format!("COMMENT = 'at {number}'"),
            _ => "MODIFY s VARCHAR(200) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin".into(),
        };
        format!("ALTER TABLE h.{table} {change}")
    }

    fn rename(&mut self) -> String {
        let at = self.rng.random_range(0..self.tables.len());
        let from = self.tables.swap_remove(at);
        format!("RENAME TABLE h.{from} TO h.{}", self.new_name())
    }

    fn insert(&mut self) -> String {
        let rows: Vec<String> = (0..self.rng.random_range(1..8))
            .map(|_| {
                let n: i32 = self.rng.random();
                format!(
                    "({n}, REPEAT('{}', {}), JSON_OBJECT('n', {n}), NOW(6))",
                    n & 15,
                    self.rng.random_range(0..13)
                )
            })
            .collect();
        let table = self.table();
        format!(
            "INSERT INTO h.{table} (id, n, s, j, d) SELECT {} + ROW_NUMBER() OVER (), v.* FROM (VALUES {}) v (n, s, j, d) \
             ON DUPLICATE KEY UPDATE n = h.{table}.n + 1",
            self.rng.random_range(0..300),
            rows.iter().map(|r| format!("ROW{r}")).collect::<Vec<_>>().join(", ")
        )
    }

    fn update(&mut self) -> String {
        let (table, k) = (self.table(), self.rng.random_range(2..9));
        format!(
            "UPDATE h.{table} SET n = n + {k}, s = CONCAT(LEFT(s, 150), '{k}'), j = JSON_SET(j, '$.k', {k}) WHERE id % {k} = 0"
        )
    }

    /// One transaction of several statements, a part of which may be rolled back.
    fn several(&mut self) -> String {
        let mut sql = "START TRANSACTION; ".to_owned();
        for _ in 0..self.rng.random_range(1..5) {
            let statement = if self.rng.random() { self.insert() } else { self.update() };
            sql += &match self.rng.random_range(0..5) {
                0 => format!("SAVEPOINT s; {statement}; ROLLBACK TO s; "),
                _ => statement + "; ",
            };
        }
        sql + if self.rng.random_bool(0.1) { "ROLLBACK" } else { "COMMIT" }
    }
}
