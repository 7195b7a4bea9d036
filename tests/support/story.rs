//! A server under an agent, what it held at chosen moments, and whether a recovery brings that back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use mysql_pitr::{
    archive::{listing::StoredBinlog, reader::Portions},
    binlog::gtid::GtidSet,
};
use serde_json::Value;

use super::{
    mysql::{START_TIMEOUT, Server},
    node::{Agent, Node},
    truth::{Objects, Truth, objects, truth},
};

/// What the server held right after one transaction.
pub struct Moment {
    /// The transaction's GTID.
    pub gtid: String,
    pub gtids: GtidSet,
    pub truth: Truth,
    pub objects: Objects,
}

pub struct Story {
    pub server: Server,
    pub node: Node,
    pub agent: Agent,
}

impl Story {
    /// A new server with `options`, on which `before` (SQL) happens before the first snapshot.
    pub async fn begin(options: &[&str], before: &str) -> Story {
        Story::begin_on(Server::start(options).await, before).await
    }

    pub async fn begin_on(server: Server, before: &str) -> Story {
        let sql = format!("CREATE DATABASE story; CREATE TABLE story.moment (id INT PRIMARY KEY AUTO_INCREMENT); {before}");
        server.execute(&[&sql]).await;
        let node = Node::new(&server, "");
        let agent = node.agent();
        node.wait_snapshots(1).await;
        Story { server, node, agent }
    }

    /// Any number of statements, in a session of their own, which has ended when this returns: the server may log the end of
    /// its temporary tables after the client has gone.
    pub async fn run(&self, sql: &str) {
        run(&self.server, sql).await;
    }

    /// Something of one transaction happens, so that there is a moment to come back to.
    pub async fn moment(&self) -> Moment {
        self.moment_by("INSERT INTO story.moment VALUES ()").await
    }

    /// What the server holds after `sql`, which must be one transaction.
    pub async fn moment_by(&self, sql: &str) -> Moment {
        moment_on(&self.server, sql).await
    }

    /// When the archive says that `moment`'s transaction was committed.
    pub async fn commit_time(&self, moment: &Moment) -> String {
        let found = self.node.json(&["search", "--table", "story.moment"]).await;
        let found = found.as_array().unwrap().iter().find(|f| f["gtid"] == moment.gtid);
        found.unwrap()["committed_at"].as_str().unwrap().to_owned()
    }

    /// Recovers to `moment` by its GTID.
    pub async fn recover_to(&self, moment: &Moment) -> (Server, Value) {
        self.recover(moment, &["--target-gtid", &moment.gtid]).await
    }

    /// Recovers with `arguments`, which must lead to `moment`.
    pub async fn recover(&self, moment: &Moment, arguments: &[&str]) -> (Server, Value) {
        self.node.wait_shipped(&self.server).await;
        let name = format!("recovered{}", arguments.join("").replace(['/', ':'], "-"));
        let (recovered, report) = self.node.recover(&name, arguments).await;
        assert_holds(&recovered, moment, &arguments.join(" ")).await;
        assert_eq!(report["gtid_executed"].as_str().unwrap(), moment.gtids.to_string());
        (recovered, report)
    }

    /// The plain bytes of every sealed binlog.
    pub async fn sealed(&self) -> Vec<(StoredBinlog, Vec<u8>)> {
        let archive = self.node.archive();
        let mut sealed = Vec::new();
        for binlog in archive.binlogs().await.unwrap() {
            if binlog.gtids().is_some() {
                let mut portions = Portions::of(&archive, &binlog);
                let mut bytes = Vec::new();
                while let Some(portion) = portions.next().await.unwrap() {
                    bytes.extend_from_slice(&portion);
                }
                sealed.push((binlog, bytes));
            }
        }
        sealed
    }

    /// i4: every sealed binlog equals the server's file; there are at least `count`.
    pub async fn assert_sealed_are_the_files(&self, count: usize) {
        self.node.wait_sealed(count).await;
        for (binlog, bytes) in self.sealed().await {
            let name = &binlog.place().name;
            let file = fs::read(self.server.datadir.join(name)).unwrap();
            assert!(
                file == bytes,
                "{name}: {} bytes in the archive, {} in the file",
                bytes.len(),
                file.len()
            );
        }
    }

    /// The agent had nothing to complain of.
    pub async fn end(self) {
        self.agent.assert_quiet();
        self.agent.stop().await;
    }
}

async fn run(server: &Server, sql: &str) {
    let mut session = server.root().await;
    let (id,): (u64,) = session.one("SELECT CONNECTION_ID()").await.unwrap();
    session.execute_within(sql, START_TIMEOUT).await.unwrap();
    session.close().await;
    let has_ended = format!("SELECT COUNT(*) = 0 FROM performance_schema.threads WHERE processlist_id = {id}");
    wait_until(server, &has_ended, 1).await;
}

/// What `server` holds after `sql`, which must be one transaction.
pub async fn moment_on(server: &Server, sql: &str) -> Moment {
    let before = server.gtid_executed().await;
    run(server, sql).await;
    let mut session = server.root().await;
    let gtids = session.gtid_executed().await.unwrap();
    let fresh = gtids.subtract(&before);
    assert_eq!(fresh.count(), 1, "`{sql}` made the transactions {fresh}");
    Moment {
        gtid: fresh.to_string(),
        truth: truth(&mut session).await,
        objects: objects(&mut session).await,
        gtids,
    }
}

/// Shows what differs, and nothing else.
pub fn assert_same<T: PartialEq + std::fmt::Debug>(is: &BTreeMap<String, T>, should_be: &BTreeMap<String, T>, what: &str) {
    let names: BTreeSet<&String> = is.keys().chain(should_be.keys()).collect();
    let different = names.into_iter().filter(|name| is.get(*name) != should_be.get(*name));
    let shown: Vec<String> = different
        .map(|name| {
            format!(
                "{name}:\n  is        {:?}\n  should be {:?}",
                is.get(name),
                should_be.get(name)
            )
        })
        .collect();
    assert!(shown.is_empty(), "{what}:\n{}", shown.join("\n"));
}

pub async fn assert_holds(server: &Server, moment: &Moment, what: &str) {
    let mut session = server.root().await;
    assert_same(
        &truth(&mut session).await,
        &moment.truth,
        &format!("tables after recover {what}"),
    );
    assert_same(
        &objects(&mut session).await,
        &moment.objects,
        &format!("objects after recover {what}"),
    );
    assert_eq!(
        session.gtid_executed().await.unwrap(),
        moment.gtids,
        "GTIDs after recover {what}"
    );
}

/// Waits for what the server itself does in its own time: until `sql`, which asks for one number, gives at least `least`.
pub async fn wait_until(server: &Server, sql: &str, least: u64) {
    let deadline = tokio::time::Instant::now() + START_TIMEOUT;
    let mut session = server.root().await;
    loop {
        let (number,): (u64,) = session.one(sql).await.unwrap();
        if number >= least {
            return;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "`{sql}` gives {number}, wanted {least}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
