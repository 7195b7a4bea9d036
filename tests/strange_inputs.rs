//! The demo's story on schemas that it was not made for: every type, everything that hangs on tables, DDL of every kind.

use crate::support::{
    mysql::START_TIMEOUT,
    story::{Story, wait_until},
};

const EVERY_TYPE: &str = include_str!("strange_inputs/every_type.sql");
const CHANGES: &str = include_str!("strange_inputs/every_type_changes.sql");
const DDL: &str = include_str!("strange_inputs/ddl.sql");
const ACCOUNTS: &str = include_str!("strange_inputs/accounts.sql");

/// The vector type is younger than some servers.
const VECTORS: &str = "CREATE TABLE vectors (id INT PRIMARY KEY, v VECTOR(2048)); \
    INSERT INTO vectors VALUES (1, TO_VECTOR('[1, -2.5, 3e38]')), (2, NULL); \
    UPDATE vectors SET v = TO_VECTOR('[0]') WHERE id = 1";

/// What a snapshot holds and what is replayed must be the same, so the same things happen in two schemas, one on each side
/// of the snapshot.
#[tokio::test]
async fn every_type_comes_back() {
    let before = format!("CREATE DATABASE cloned; USE cloned; {EVERY_TYPE}");
    let story = Story::begin(&[], &before).await;
    let mut root = story.server.root().await;
    story
        .run(&format!("CREATE DATABASE replayed; USE replayed; {EVERY_TYPE} {ACCOUNTS}"))
        .await;
    let (has_vectors,): (bool,) = root.one("SELECT @@version + 0 >= 9").await.unwrap();
    if has_vectors {
        story.run(&format!("USE replayed; {VECTORS}")).await;
    } else {
        crate::support::skipped("vectors: this server has none");
    }
    for schema in ["cloned", "replayed"] {
        story.run(&format!("USE {schema}; {CHANGES}")).await;
    }
    let middle = story.moment().await;
    story.run("FLUSH LOCAL BINARY LOGS").await;
    for schema in ["replayed", "cloned"] {
        story.run(&format!("USE {schema}; {CHANGES}")).await;
    }
    story
        .run("DROP USER app@'%'; DROP TABLE replayed.grandchildren, cloned.times")
        .await;
    let last = story.moment().await;
    story.recover_to(&middle).await;
    story.recover(&last, &["--latest"]).await;
    story.assert_sealed_are_the_files(1).await;
    story.end().await;
}

/// With native foreign keys, as older servers have them, cascades are not in the binlog: the replica does them itself.
#[tokio::test]
async fn ddl_of_every_kind_comes_back() {
    let native = ["--loose-innodb-native-foreign-keys=ON"];
    let story = Story::begin(
        &native,
        "CREATE DATABASE early; USE early; CREATE TABLE t (id INT PRIMARY KEY)",
    )
    .await;
    story.run(&format!("CREATE DATABASE ddl; USE ddl; {DDL}")).await;
    let before = story.server.gtid_executed().await;
    for fails in [
        "DROP TABLE ddl.a, ddl.never_there",
        "CREATE TABLE ddl.a (id INT)",
        "CREATE TABLE ddl.half AS SELECT id, 1 / 0 AS x, REPEAT('x', id) + 1 AS y FROM ddl.d, ddl.missing",
        "CREATE TABLE ddl.twice (id INT PRIMARY KEY) AS SELECT 1 AS id UNION ALL SELECT 1",
        "INSERT INTO ddl.b VALUES (100, 1), (100, 2)",
        "RENAME TABLE ddl.a TO ddl.b",
        "CREATE USER root@localhost, newcomer@localhost",
        "ALTER TABLE ddl.c ADD CHECK (pk < 0)",
        "DROP VIEW other_schema.v, other_schema.never_there",
    ] {
        let result = story.server.root().await.execute_within(fails, START_TIMEOUT).await;
        assert!(result.is_err(), "`{fails}` should have failed");
    }
    assert_eq!(story.server.gtid_executed().await, before, "what fails takes no GTID");
    let middle = story.moment_by("RENAME TABLE ddl.a TO ddl.old, ddl.b TO ddl.a").await;
    story
        .run("DROP DATABASE ddl; DROP DATABASE other_schema; CREATE DATABASE ddl; CREATE TABLE ddl.a (other INT)")
        .await;
    story.moment().await;
    story.recover_to(&middle).await;
    story.end().await;
}

/// A recovery must not run the events that it brings back: with no binlog, nothing would show the rows that they add. And a
/// replica disables every event that it is told of, which left the recovered server with events that never ran again, and
/// nobody knew.
#[tokio::test]
async fn events_do_not_run_in_a_recovery() {
    let event = |name: &str| {
        format!("CREATE EVENT story.{name} ON SCHEDULE EVERY 1 SECOND DO INSERT INTO story.ticks (who) VALUES ('{name}')")
    };
    let before = format!(
        "CREATE TABLE story.ticks (id INT PRIMARY KEY AUTO_INCREMENT, who TEXT); {}",
        event("cloned")
    );
    let story = Story::begin(&["--event-scheduler=ON"], &before).await;
    story.run(&event("replayed")).await;
    let ticks = "SELECT COUNT(DISTINCT who) FROM story.ticks";
    wait_until(&story.server, ticks, 2).await;
    story.run("SET GLOBAL event_scheduler = OFF").await;
    let still = "SELECT COUNT(*) = 0 FROM performance_schema.threads WHERE name = 'thread/sql/event_worker'";
    wait_until(&story.server, still, 1).await;
    let moment = story.moment().await;
    story.run("SET GLOBAL event_scheduler = ON").await;
    let ticked = format!("SELECT COUNT(*) > {} FROM story.ticks", moment.truth["`story`.`ticks`"].1);
    wait_until(&story.server, &ticked, 1).await;

    let (recovered, report) = story.recover_to(&moment).await;
    let status: Vec<(String, String)> = recovered
        .root()
        .await
        .rows("SELECT event_name, status FROM information_schema.events ORDER BY event_name")
        .await
        .unwrap();
    assert_eq!(status[0], ("cloned".into(), "ENABLED".into()));
    assert_ne!(
        status[1],
        ("replayed".into(), "ENABLED".into()),
        "nothing is to be reported any more"
    );
    assert_eq!(report["events_disabled"], serde_json::json!(["`story`.`replayed`"]));
    story.end().await;
}
