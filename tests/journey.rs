//! The main journey on real servers: ship, snapshot, recover, go on, recover across the branch.

use crate::support::{mysql::Server, node::Node, truth::truth};

/// i4, i6, i7: a server is recovered to the transaction before a DROP, from a sealed binlog and from segments.
#[tokio::test]
async fn a_dropped_table_comes_back() {
    let server = Server::start(&[]).await;
    let node = Node::new(&server, "");
    let agent = node.agent();
    server
        .execute(&[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.orders (id INT PRIMARY KEY AUTO_INCREMENT, note TEXT)",
        ])
        .await;
    server
        .execute(&["INSERT INTO shop.orders (note) VALUES ('before the snapshot')"])
        .await;
    node.wait_snapshots(1).await;
    node.ok(&["snapshot"]).await;
    server
        .execute(&[
            "INSERT INTO shop.orders (note) VALUES ('after the snapshot')",
            "FLUSH LOCAL BINARY LOGS",
        ])
        .await;
    node.wait_sealed(1).await;
    server
        .execute(&["INSERT INTO shop.orders (note) VALUES ('in the live binlog')"])
        .await;
    let expected = truth(&mut server.root().await).await;
    server
        .execute(&["DROP TABLE shop.orders", "CREATE TABLE shop.other (id INT PRIMARY KEY)"])
        .await;
    node.wait_shipped(&server).await;

    let found = node.json(&["search", "--statement", "drop table"]).await;
    let gtid = found[0]["gtid"].as_str().unwrap();
    let (recovered, report) = node.recover("recovered", &["--target-gtid", gtid, "--exclusive"]).await;
    assert_eq!(truth(&mut recovered.root().await).await, expected);
    assert_eq!(
        recovered.gtid_executed().await.to_string(),
        report["gtid_executed"].as_str().unwrap()
    );
    agent.assert_quiet();
    agent.stop().await;
}

/// i13: a recovered server goes on under an agent of its own as a child timeline; the next recovery crosses the branch, and
/// nothing that the old server did after the branch comes back.
#[tokio::test]
async fn a_recovered_server_goes_on_and_is_recovered_again() {
    let old = Server::start(&[]).await;
    let old_node = Node::new(&old, "");
    let old_agent = old_node.agent();
    old.execute(&[
        "CREATE DATABASE d",
        "CREATE TABLE d.t (id INT PRIMARY KEY, who TEXT)",
        "INSERT INTO d.t VALUES (1, 'old')",
    ])
    .await;
    old_node.wait_snapshots(1).await;
    old.execute(&["INSERT INTO d.t VALUES (2, 'old')"]).await;
    let branch = old.gtid_executed().await;
    old.execute(&["INSERT INTO d.t VALUES (3, 'ghost')"]).await;
    old_node.wait_shipped(&old).await;

    let last = branch.to_string();
    let (uuid, gno) = (last.split(':').next().unwrap(), last.rsplit('-').next().unwrap());
    let (new, _) = old_node.recover("new", &["--target-gtid", &format!("{uuid}:{gno}")]).await;
    assert_eq!(new.gtid_executed().await, branch);
    let new_node = old_node.beside(&new);
    let new_agent = new_node.agent();
    new.execute(&[
        "INSERT INTO d.t VALUES (4, 'new')",
        "FLUSH LOCAL BINARY LOGS",
        "INSERT INTO d.t VALUES (5, 'new')",
    ])
    .await;
    new_node.wait_shipped(&new).await;
    // The old server is still there and still shipped, off the path.
    old.execute(&["INSERT INTO d.t VALUES (6, 'ghost')"]).await;

    let listing = new_node.json(&["list"]).await;
    assert_eq!(listing["timelines"][1]["parent"], 1);
    assert_eq!(listing["timelines"][1]["reason"], "recovery");
    let (again, report) = new_node.recover("again", &["--latest"]).await;
    let rows: Vec<(u32, String)> = again.root().await.rows("SELECT id, who FROM d.t ORDER BY id").await.unwrap();
    let expected = [(1, "old"), (2, "old"), (4, "new"), (5, "new")].map(|(id, who)| (id, who.to_owned()));
    assert_eq!(rows, expected);
    assert_eq!(again.gtid_executed().await, new.gtid_executed().await);
    assert_eq!(report["transactions_replayed"], 3);
    new_agent.assert_quiet();
    new_agent.stop().await;
    old_agent.stop().await;
}
