//! A snapshot is asked for from anywhere that can write into the store, and whoever asks learns why nobody takes it.

use std::process::{Output, Stdio};

use mysql_pitr::{
    archive::{presence::presences, records::SnapshotState},
    snapshot::request::Requests,
};
use tokio::process::Command;

use crate::support::{
    eventually,
    golden::assert_error,
    mysql::Server,
    node::{Node, SHARD, path_text},
};

/// On a machine without a configuration and a server.
async fn elsewhere(node: &Node, arguments: &[&str]) -> Output {
    let store = format!("file://{}", path_text(&node.archive_dir));
    let mut command = Command::new(env!("CARGO_BIN_EXE_mysql-pitr"));
    command
        .args(["--config", "/nonexistent", "snapshot", "--store", &store])
        .args(arguments);
    command.stdin(Stdio::null()).output().await.unwrap()
}

async fn shipping() -> (Server, Node) {
    let server = Server::start(&[]).await;
    let node = Node::new(&server, "");
    let agent = node.agent();
    server
        .execute(&["CREATE DATABASE shop", "CREATE TABLE shop.t (id INT PRIMARY KEY)"])
        .await;
    node.wait_snapshots(1).await;
    agent.stop().await;
    (server, node)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn requests_of_an_outage_are_answered_by_one_snapshot() {
    let (_server, node) = shipping().await;
    let before = node.archive().snapshots().await.unwrap().len();
    let mut asked = Vec::new();
    for _ in 0..3 {
        let output = elsewhere(&node, &["--shard", SHARD, "--no-wait"]).await;
        assert!(output.status.success(), "{}", text(&output.stderr));
        asked.push(text(&output.stdout).trim().to_owned());
    }
    assert_eq!(Requests::default().open(&node.archive()).await.unwrap(), asked);

    let agent = node.agent();
    // Another shard's configuration will do, if the shard is named.
    let waiting = elsewhere(&node, &["--shard", SHARD, "--json"]).await;
    assert!(waiting.status.success(), "{}", text(&waiting.stderr));
    let snapshot: serde_json::Value = serde_json::from_slice(&waiting.stdout).unwrap();
    assert_eq!(snapshot["state"], "complete");
    node.wait_snapshots(before + 1).await;
    eventually("all requests are answered", async || {
        Requests::default().open(&node.archive()).await.unwrap().is_empty()
    })
    .await;
    // The last one came before the agent looked, or after.
    let taken = node.archive().snapshots().await.unwrap();
    assert!((before + 1..=before + 2).contains(&taken.len()), "{taken:?}");
    assert!(taken.iter().all(|s| s.state == SnapshotState::Complete));
    agent.assert_quiet();
    agent.stop().await;
}

#[tokio::test]
async fn whoever_asks_in_vain_learns_why() {
    let (server, node) = shipping().await;
    let output = elsewhere(&node, &["--shard", "no-such-shard"]).await;
    let archive_dir = path_text(&node.archive_dir).to_owned();
    let names = [(archive_dir.as_str(), "/ARCHIVE")];
    assert_error("snapshot: the shard is not there", &text(&output.stderr), &names);
    let is_stopped = presences(&node.archive()).await.unwrap();
    assert!(is_stopped.len() == 1 && is_stopped[0].is_stopped, "{is_stopped:?}");

    server.execute(&["SET GLOBAL super_read_only = ON"]).await;
    let agent = node.agent();
    eventually("the agent says that its server is read-only", async || {
        let said = presences(&node.archive()).await.unwrap();
        said.iter().any(|p| !p.is_stopped && p.writable == Some(false))
    })
    .await;
    let output = elsewhere(&node, &["--shard", SHARD]).await;
    let said = text(&output.stderr);
    assert!(
        said.contains("no agent that runs takes the shard's snapshots: server") && said.contains("and read-only, said its agent"),
        "{said}"
    );
    assert!(said.contains("hint: ") && said.contains("the request stays"), "{said}");
    agent.stop().await;
}
