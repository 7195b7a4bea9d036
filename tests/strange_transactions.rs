//! The demo's story on transactions that it was not made for: XA, tags, foreign GTIDs, commit times that lie.

use std::fmt::Write;

use crate::support::story::Story;
use mysql_pitr::support::clock::{format_utc, parse_rfc3339};
use serde_json::json;
use uuid::Uuid;

async fn xa_recover(server: &crate::support::mysql::Server) -> Vec<String> {
    let rows: Vec<(i64, i64, i64, String)> = server.root().await.rows("XA RECOVER CONVERT XID").await.unwrap();
    let mut xids: Vec<String> = rows
        .into_iter()
        .map(|(format, _, _, data)| format!("{data},{format}"))
        .collect();
    xids.sort();
    xids
}

/// Prepared and committed on both sides of the snapshot, of binlogs and of the target. The report named prepared
/// transactions in a way that XA COMMIT does not take: nothing said where the first of the two parts ends.
#[tokio::test]
async fn xa_transactions_come_back_prepared() {
    let xa = |xid: &str, id: u32| format!("XA START {xid}; INSERT INTO story.x VALUES ({id}); XA END {xid}; XA PREPARE {xid};");
    let before = format!(
        "CREATE TABLE story.x (id INT PRIMARY KEY); {} {}",
        xa("'early'", 1),
        xa("'earliest'", 2)
    );
    let story = Story::begin(&[], &before).await;
    story.run("FLUSH LOCAL BINARY LOGS").await;
    story.run(&xa("'two','parts',7", 3)).await;
    story.run("FLUSH LOCAL BINARY LOGS; XA COMMIT 'early'").await;
    story.run(&xa("X'00ff27',X'0a'", 4)).await;
    let one_phase = "XA START 'one'; INSERT INTO story.x VALUES (5); XA END 'one'; XA COMMIT 'one' ONE PHASE";
    story.run(one_phase).await;
    let middle = story.moment().await;
    let prepared = xa_recover(&story.server).await;
    story
        .run("FLUSH LOCAL BINARY LOGS; XA COMMIT 'two','parts',7; XA ROLLBACK X'00ff27',X'0a'")
        .await;
    story.run(&xa("'late'", 6)).await;
    let last = story.moment().await;

    let (recovered, mut report) = story.recover_to(&middle).await;
    assert_eq!(xa_recover(&recovered).await, prepared);
    let named = report["xa_prepared"].as_array_mut().unwrap();
    named.sort_by_key(|xid| xid.to_string());
    let hex = |text: &str| text.bytes().map(|b| format!("{b:02X}")).collect::<String>();
    let (two, parts, earliest) = (hex("two"), hex("parts"), hex("earliest"));
    let expected = [
        "X'00FF27',X'0A',1".to_owned(),
        format!("X'{earliest}',X'',1"),
        format!("X'{two}',X'{parts}',7"),
    ];
    assert_eq!(json!(named), json!(expected));
    // What is named can be decided.
    recovered
        .execute(&[&format!("XA COMMIT {}", expected[2]), &format!("XA ROLLBACK {}", expected[0])])
        .await;
    let rows: Vec<u32> = recovered
        .root()
        .await
        .rows("SELECT id FROM story.x ORDER BY id")
        .await
        .unwrap();
    assert_eq!(rows, [1, 3, 5]);

    let (recovered, report) = story.recover(&last, &["--latest"]).await;
    let rows: Vec<u32> = recovered
        .root()
        .await
        .rows("SELECT id FROM story.x ORDER BY id")
        .await
        .unwrap();
    assert_eq!(rows, [1, 3, 5]);
    let late = hex("late");
    assert_eq!(report["xa_prepared"].as_array().unwrap().len(), 2);
    assert!(report["xa_prepared"].to_string().contains(&late));
    story.end().await;
}

#[tokio::test]
async fn tagged_gtids_come_back() {
    let tagged = |tag: &str, id: u32| {
        format!("SET gtid_next = 'AUTOMATIC:{tag}'; INSERT INTO story.t VALUES ({id}, '{tag}'); SET gtid_next = AUTOMATIC;")
    };
    let before = format!(
        "CREATE TABLE story.t (id INT PRIMARY KEY, tag TEXT); {} {}",
        tagged("blue", 1),
        tagged("a_tag_of_32_bytes_is_the_longest", 2)
    );
    let story = Story::begin(&[], &before).await;
    let (uuid,): (String,) = story.server.root().await.one("SELECT @@server_uuid").await.unwrap();
    let other = Uuid::new_v4();
    let explicit = |gtid: &str, id: u32| {
        format!("SET gtid_next = '{gtid}'; INSERT INTO story.t VALUES ({id}, 'explicit'); SET gtid_next = AUTOMATIC;")
    };
    story.run(&tagged("blue", 3)).await;
    story.run(&explicit(&format!("{uuid}:red:500"), 4)).await;
    story.run(&explicit(&format!("{other}:green:7"), 5)).await;
    story.run(&explicit(&format!("{other}:9"), 6)).await;
    story.run("FLUSH LOCAL BINARY LOGS").await;
    story.run(&tagged("red", 7)).await;
    story.run(&explicit(&format!("{uuid}:red:300"), 8)).await;
    let middle = story.moment_by(&tagged("blue", 9)).await;
    assert!(middle.gtid.contains(":blue:"), "{}", middle.gtid);
    story.run("INSERT INTO story.t VALUES (10, NULL)").await;
    let next = story.moment_by(&tagged("red", 11)).await;
    story.run(&format!("FLUSH LOCAL BINARY LOGS; {}", tagged("blue", 12))).await;
    story.recover_to(&middle).await;
    story.recover(&next, &["--target-gtid", &next.gtid]).await;
    story.assert_sealed_are_the_files(2).await;
    story.end().await;
}

/// A set of a thousand sources, with holes, in Previous_gtids events and in the replica's wish.
#[tokio::test]
async fn a_thousand_foreign_uuids_come_back() {
    const SOURCES: u32 = 1000;
    let story = Story::begin(
        &["--sync-binlog=0", "--innodb-flush-log-at-trx-commit=0"],
        "CREATE TABLE story.t (id INT PRIMARY KEY AUTO_INCREMENT, gno INT)",
    )
    .await;
    let inject = async |gnos: &[u32]| {
        let mut sql = String::new();
        for source in 0..SOURCES {
            let uuid = Uuid::from_u128(0x1111_2222_3333_4444_5555_0000_0000_0000 + u128::from(source) * 7919);
            for gno in gnos {
                let work = if source % 10 == 0 {
                    format!("INSERT INTO story.t (gno) VALUES ({gno})")
                } else {
                    "DO 0".into()
                };
                write!(sql, "SET gtid_next = '{uuid}:{gno}'; BEGIN; {work}; COMMIT;").unwrap();
            }
        }
        story.run(&sql).await;
    };
    inject(&[3, 1]).await;
    story.run("FLUSH LOCAL BINARY LOGS").await;
    inject(&[9]).await;
    let middle = story.moment().await;
    inject(&[2]).await;
    let foreign = format!("{}:5", Uuid::from_u128(7));
    let last = story
        .moment_by(&format!(
            "SET gtid_next = '{foreign}'; INSERT INTO story.t VALUES (); SET gtid_next = AUTOMATIC"
        ))
        .await;
    assert_eq!(last.gtid, foreign);
    story.recover_to(&middle).await;
    story.recover(&last, &["--latest"]).await;
    story.end().await;
}

/// A session may set the original commit time to anything: with it believed, a transaction of today would count as one of
/// 1970, and come back where it should not, or the other way round.
#[tokio::test]
async fn forged_commit_times_fool_nobody() {
    let story = Story::begin(&[], "CREATE TABLE story.t (id INT PRIMARY KEY)").await;
    let forged = |us: i64, id: u32| {
        format!(
            "SET original_commit_timestamp = {us}; INSERT INTO story.t VALUES ({id}); SET original_commit_timestamp = DEFAULT;"
        )
    };
    let in_a_year = parse_rfc3339("2036-01-01T00:00:00Z").unwrap();
    let first = story.moment().await;
    story.run(&forged(1, 1)).await;
    story.run(&forged(in_a_year, 2)).await;
    let foreign = format!("SET gtid_next = '{}:1'; {}", Uuid::from_u128(99), forged(2, 3));
    story.run(&foreign).await;
    let second = story.moment().await;
    story.run(&format!("FLUSH LOCAL BINARY LOGS; {}", forged(3, 4))).await;
    story.moment().await;
    story.node.wait_shipped(&story.server).await;

    let (one, two) = (story.commit_time(&first).await, story.commit_time(&second).await);
    let (recovered, report) = story.recover(&first, &["--target-time", &one]).await;
    assert_eq!(report["recovered_to"], one);
    drop(recovered);
    let (_, report) = story.recover(&second, &["--target-time", &two]).await;
    assert_eq!(report["recovered_to"], two);
    let just_before = format_utc(parse_rfc3339(&two).unwrap() - 1);
    let plan = story
        .node
        .json(&["recover", "--dry-run", "--target-time", &just_before])
        .await;
    assert_eq!(plan["first_transaction_left_out"]["gtid"], second.gtid);
    story.end().await;
}
