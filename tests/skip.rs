//! A transaction that is left out: an empty one takes its place on a real server, and the next recovery leaves it out too.

use crate::support::{mysql::Server, node::Node};
use mysql_pitr::archive::records::DESCENT_FILE;

async fn notes(server: &Server) -> Vec<String> {
    let sql = "SELECT note FROM shop.orders ORDER BY id";
    let rows: Vec<(String,)> = server.root().await.rows(sql).await.unwrap();
    rows.into_iter().map(|(note,)| note).collect()
}

/// i7, i13: a DROP and a tagged DELETE are left out, gtid_executed equals the plan all the same, and the snapshot that was taken after them
/// does not bring them back when the recovered server is recovered again.
#[tokio::test]
async fn i13_a_skipped_drop_stays_skipped() {
    let old = Server::start(&[]).await;
    let old_node = Node::new(&old, "");
    let old_agent = old_node.agent();
    old.execute(&[
        "CREATE DATABASE shop",
        "CREATE TABLE shop.orders (id INT PRIMARY KEY AUTO_INCREMENT, note TEXT)",
        "CREATE TABLE shop.other (id INT PRIMARY KEY)",
        "INSERT INTO shop.orders (note) VALUES ('first')",
    ])
    .await;
    old_node.wait_snapshots(1).await;
    old.execute(&[
        "INSERT INTO shop.orders (note) VALUES ('second')",
        "SET gtid_next = 'AUTOMATIC:oops'; DELETE FROM shop.orders WHERE note = 'first'; SET gtid_next = 'AUTOMATIC'",
        "DROP TABLE shop.orders",
        "INSERT INTO shop.other VALUES (1)",
        "FLUSH LOCAL BINARY LOGS",
        "INSERT INTO shop.other VALUES (2)",
    ])
    .await;
    old_node.ok(&["snapshot"]).await;
    old_node.wait_shipped(&old).await;
    let held = old.gtid_executed().await;

    let dropped = old_node.json(&["search", "--statement", "drop table"]).await[0]["gtid"].clone();
    let deleted = format!("{}:oops:1", dropped.as_str().unwrap().split(':').next().unwrap());
    let skip = ["--latest", "--skip-gtid", dropped.as_str().unwrap(), "--skip-gtid", &deleted];
    let plan = old_node.json(&[&["recover", "--dry-run"], &skip[..]].concat()).await;
    assert!(
        plan["warnings"][0]
            .as_str()
            .unwrap()
            .contains("an empty transaction takes its place")
    );
    let (new, report) = old_node.recover("new", &skip).await;
    assert_eq!(new.gtid_executed().await, held);
    assert_eq!(notes(&new).await, ["first", "second"]);
    assert_eq!(report["skipped"], plan["skipped"]);
    let descent = std::fs::read_to_string(old_node.target("new").join(DESCENT_FILE)).unwrap();
    assert!(descent.contains(plan["skipped"].as_str().unwrap()), "{descent}");

    let new_node = old_node.beside(&new);
    let new_agent = new_node.agent();
    new.execute(&["INSERT INTO shop.orders (note) VALUES ('third')"]).await;
    new_node.wait_shipped(&new).await;
    let listing = new_node.json(&["list"]).await;
    assert_eq!(listing["timelines"][1]["skipped"], plan["skipped"]);
    let (again, report) = new_node.recover("again", &["--latest"]).await;
    assert_eq!(notes(&again).await, ["first", "second", "third"]);
    assert_eq!(again.gtid_executed().await, new.gtid_executed().await);
    assert_eq!(report["skipped"], plan["skipped"]);
    new_agent.assert_quiet();
    new_agent.stop().await;
    old_agent.stop().await;
}
