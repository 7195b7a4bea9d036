//! The demo's story on binlogs that it was not made for: huge events, encryption, compression, no checksums.

use std::{fs, path::Path, process::Command};

use crate::support::{
    mysql::Server,
    node::peak_memory_bytes,
    story::{Story, assert_holds},
};

/// What neither the agent nor `recover` may exceed, however large an event is.
const MEMORY_BYTES_MAX: u64 = 96 << 20;
const MIB: u64 = 1 << 20;

/// Row events of 64 MB and twice that, of bytes that do not compress and of bytes that compress to nothing. `recover` held
/// the whole of the latter in memory: what a small piece of an object expands to was collected before it was passed on.
#[tokio::test]
async fn a_row_of_64_mb_comes_back_in_little_memory() {
    let big = "CREATE TABLE story.big (id INT PRIMARY KEY, b LONGBLOB)";
    let story = Story::begin(&["--max-binlog-cache-size=1G"], big).await;
    let random = "SET group_concat_max_len = 1 << 30, cte_max_recursion_depth = 1 << 20; INSERT INTO story.big \
        WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 64 * 1024) \
        SELECT 1, GROUP_CONCAT(RANDOM_BYTES(1024) SEPARATOR '') FROM n";
    story.run(random).await;
    let (bytes,): (u64,) = story
        .server
        .root()
        .await
        .one("SELECT LENGTH(b) FROM story.big")
        .await
        .unwrap();
    assert_eq!(bytes, 64 * MIB);
    let middle = story.moment_by("UPDATE story.big SET b = REPEAT('x', 64 << 20)").await;
    story.run("UPDATE story.big SET b = REPEAT('y', 64 << 20)").await;
    story.node.wait_shipped(&story.server).await;
    let to_the_middle = ["--target-gtid", &middle.gtid];
    let (recovered, recover) = story.node.recover_measured("middle", &to_the_middle).await;
    assert_holds(&recovered, &middle, "to the middle").await;
    drop(recovered);

    story.run("FLUSH LOCAL BINARY LOGS").await;
    story.assert_sealed_are_the_files(1).await;
    let agent = peak_memory_bytes(story.agent.pid()).unwrap();
    println!("agent: {} MiB, recover: {} MiB", agent / MIB, recover / MIB);
    assert!(agent <= MEMORY_BYTES_MAX, "the agent took {} MiB", agent / MIB);
    assert!(recover <= MEMORY_BYTES_MAX, "recover took {} MiB", recover / MIB);
    story.end().await;
}

/// The protocol delivers plain events: what is archived is what a stock mysqlbinlog reads.
#[tokio::test]
async fn encrypted_binlogs_come_back() {
    let keyring = |datadir: &Path| {
        let path = datadir.join("keyring");
        fs::write(
            datadir.join("mysqld.my"),
            r#"{"components": "file://component_keyring_file"}"#,
        )
        .unwrap();
        let config = serde_json::json!({"path": path, "read_only": false});
        fs::write(datadir.join("component_keyring_file.cnf"), config.to_string()).unwrap();
    };
    let server = Server::start_prepared(&[], keyring).await;
    let active = "SELECT COUNT(*) FROM performance_schema.keyring_component_status \
        WHERE status_key = 'Component_status' AND status_value = 'Active'";
    if server.root().await.one::<(u64,)>(active).await.unwrap().0 == 0 {
        return crate::support::skipped(
            "binlog_encryption: this mysqld loads no keyring component; scripts/mysql.sh has one that does",
        );
    }
    server.execute(&["SET GLOBAL binlog_encryption = ON"]).await;
    let story = Story::begin_on(server, "CREATE TABLE story.t (id INT PRIMARY KEY, v TEXT)").await;
    for id in 0..20 {
        story
            .run(&format!("INSERT INTO story.t VALUES ({id}, REPEAT('secret', 1000))"))
            .await;
    }
    let middle = story.moment().await;
    story
        .run("ALTER INSTANCE ROTATE BINLOG MASTER KEY; INSERT INTO story.t VALUES (100, 'x')")
        .await;
    story
        .run("FLUSH LOCAL BINARY LOGS; INSERT INTO story.t VALUES (101, 'x')")
        .await;
    let last = story.moment().await;
    story.recover_to(&middle).await;
    story.recover(&last, &["--latest"]).await;
    story.node.wait_sealed(2).await;
    let Some(mysqlbinlog) = std::env::var_os("MYSQL_PITR_MYSQLBINLOG") else {
        crate::support::skipped("comparing encrypted binlogs with mysqlbinlog's output: MYSQL_PITR_MYSQLBINLOG is not set");
        return story.end().await;
    };
    for (binlog, bytes) in story.sealed().await {
        let name = &binlog.place().name;
        let folder = tempfile::tempdir().unwrap();
        let status = Command::new(&mysqlbinlog)
            .args(["--no-defaults", "--read-from-remote-server", "--raw", "--user=root"])
            .arg(format!("--socket={}", story.server.socket.display()))
            .arg(format!("--result-file={}/", folder.path().display()))
            .arg(name)
            .status()
            .unwrap();
        assert!(status.success(), "mysqlbinlog ended with {status}");
        let theirs = fs::read(folder.path().join(name)).unwrap();
        assert!(
            theirs == bytes,
            "{name}: {} bytes archived, {} from mysqlbinlog",
            bytes.len(),
            theirs.len()
        );
        assert!(
            fs::read(story.server.datadir.join(name)).unwrap() != bytes,
            "{name} is not encrypted"
        );
    }
    story.end().await;
}

#[tokio::test]
async fn compressed_transactions_come_back() {
    let story = Story::begin(
        &["--binlog-transaction-compression=ON"],
        "CREATE TABLE story.t (id INT PRIMARY KEY AUTO_INCREMENT, v LONGTEXT)",
    )
    .await;
    story.run("INSERT INTO story.t (v) VALUES (REPEAT('abc', 1000)), ('x')").await;
    story
        .run("INSERT INTO story.t (v) SELECT UUID() FROM information_schema.columns LIMIT 2000")
        .await;
    // A payload that is itself a large event, and one that holds a large event.
    story
        .run("INSERT INTO story.t (v) SELECT HEX(RANDOM_BYTES(1024)) FROM information_schema.columns LIMIT 3000")
        .await;
    story.run("INSERT INTO story.t (v) VALUES (REPEAT('z', 20000000))").await;
    story.run("FLUSH LOCAL BINARY LOGS").await;
    let middle = story.moment_by("UPDATE story.t SET v = CONCAT(v, 'y') WHERE id < 1000").await;
    story
        .run("SET SESSION binlog_transaction_compression = OFF; DELETE FROM story.t LIMIT 100")
        .await;
    story.run("ALTER TABLE story.t ADD COLUMN w INT").await;
    let last = story.moment().await;
    story.recover_to(&middle).await;
    story.recover(&last, &["--latest"]).await;
    story.assert_sealed_are_the_files(1).await;
    let (binlog, _) = story.sealed().await.into_iter().next().unwrap();
    let inside = story.node.json(&["search", "--table", "story.t"]).await;
    assert_eq!(inside.as_array().unwrap().len(), 6, "{}: {inside}", binlog.place());
    story.end().await;
}

#[tokio::test]
async fn binlogs_without_checksums_come_back() {
    let story = Story::begin(
        &["--binlog-checksum=NONE"],
        "CREATE TABLE story.t (id INT PRIMARY KEY AUTO_INCREMENT, v LONGBLOB)",
    )
    .await;
    let work = "INSERT INTO story.t (v) VALUES (RANDOM_BYTES(900)); INSERT INTO story.t (v) VALUES (REPEAT('z', 5000000))";
    story.run(work).await;
    // Each of these begins a new binlog.
    story.run(&format!("SET GLOBAL binlog_checksum = CRC32; {work}")).await;
    let middle = story.moment().await;
    story
        .run(&format!(
            "{work}; SET GLOBAL binlog_checksum = NONE; {work}; FLUSH LOCAL BINARY LOGS; {work}"
        ))
        .await;
    story.agent.stop().await;
    let agent = story.node.agent();
    let story = Story { agent, ..story };
    story.run(work).await;
    let last = story.moment().await;
    story.recover_to(&middle).await;
    story.recover(&last, &["--latest"]).await;
    story.assert_sealed_are_the_files(3).await;
    story.end().await;
}
