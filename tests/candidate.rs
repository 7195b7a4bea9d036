//! A snapshot that a candidate takes holds the primary's history: from a replica that replicates only, and what it executed by itself
//! is named, carried, and part of what a recovery is compared with.

use crate::support::{
    eventually,
    mysql::{PASSWORD, Server},
    node::{Node, path_text},
    orchestrator::{FakeOrchestrator, HOST},
};
use mysql_pitr::binlog::gtid::GtidSet;

const CONTENT: &str = "SELECT COALESCE(GROUP_CONCAT(v ORDER BY id), '') FROM d.t";

fn node(server: &Server, fake: &FakeOrchestrator) -> Node {
    let (url, port) = (fake.url(), server.port);
    Node::new(
        server,
        &format!("[orchestrator]\nurls = [\"{url}\"]\ninstance = \"{HOST}:{port}\"\n"),
    )
}

async fn content(server: &Server) -> String {
    let (text,): (String,) = server.root().await.one(CONTENT).await.unwrap();
    text
}

#[tokio::test]
async fn i7_errant_transactions_of_a_candidate_are_named_and_planned() {
    let primary = Server::start(&[]).await;
    let replica = Server::start(&["--read-only=ON", "--server-id=2"]).await;
    let fake = FakeOrchestrator::start(&[primary.port, replica.port]).await;
    fake.candidate(replica.port, true);
    let (shipping, candidate) = (node(&primary, &fake), node(&replica, &fake));
    candidate.reconfigure(path_text(&candidate.archive_dir), path_text(&shipping.archive_dir));
    let agent = shipping.agent();
    primary
        .execute(&[
            "CREATE DATABASE d",
            "CREATE TABLE d.t (id INT PRIMARY KEY AUTO_INCREMENT, v VARCHAR(20))",
            "INSERT INTO d.t (v) VALUES ('one')",
        ])
        .await;
    shipping.wait_shipped(&primary).await;

    // It could be anybody's.
    let e = candidate.fails(&["snapshot"]).await;
    assert!(
        e.contains("read-only and replicates from nobody") && e.contains("hint: "),
        "{e}"
    );
    let source = format!(
        "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = {}, SOURCE_USER = 'replica', SOURCE_PASSWORD = '{PASSWORD}', \
         SOURCE_AUTO_POSITION = 1, GET_SOURCE_PUBLIC_KEY = 1",
        primary.port
    );
    replica
        .execute(&[
            "CREATE DATABASE errant",
            "CREATE TABLE errant.t (id INT PRIMARY KEY)",
            &source,
            "START REPLICA",
        ])
        .await;
    let errant = async || replica.gtid_executed().await.subtract(&primary.gtid_executed().await);
    eventually("it replicates", async || {
        primary.gtid_executed().await.is_subset(&replica.gtid_executed().await)
    })
    .await;
    assert_eq!(errant().await.count(), 2);
    replica.execute(&["STOP REPLICA SQL_THREAD"]).await;
    let e = candidate.fails(&["snapshot"]).await;
    assert!(e.contains("the receiver runs, the applier does not run"), "{e}");
    replica.execute(&["START REPLICA"]).await;

    let text = candidate.ok(&["snapshot"]).await;
    let named = errant().await.to_string();
    assert!(text.contains(&format!("in nobody's history: {named}")), "{text}");
    let list = shipping.json(&["list"]).await;
    let snapshots = list["snapshots"].as_array().unwrap();
    let complete = snapshots.iter().find(|s| s["state"] == "complete").unwrap();
    assert_eq!(complete["errant"], named.as_str());
    assert!(shipping.ok(&["list"]).await.contains(&format!("ERRANT: {named}")));

    primary.execute(&["INSERT INTO d.t (v) VALUES ('two'), ('three')"]).await;
    shipping.wait_shipped(&primary).await;
    agent.stop().await;
    let planned: GtidSet = primary.gtid_executed().await.union(&errant().await);
    let plan = shipping.json(&["recover", "--latest", "--dry-run"]).await;
    assert_eq!(plan["errant"], named.as_str());
    assert_eq!(plan["target_gtids"], planned.to_string().as_str());
    assert!(plan["warnings"].to_string().contains(&named), "{plan}");
    let (recovered, _) = shipping.recover("recovered", &["--latest"]).await;
    assert_eq!(recovered.gtid_executed().await, planned);
    assert_eq!(content(&recovered).await, content(&primary).await);
    assert_eq!(content(&recovered).await, "one,two,three");
}
