//! The journey over S3: shipped, snapshot and recovered through a bucket.

use crate::support::{
    eventually,
    golden::assert_error,
    moto::{Moto, http, make_bucket, s3_node},
    mysql::Server,
    node::Node,
    truth::truth,
};

const BUCKET: &str = "dr-bucket";

/// i4, i6, i7: the archive is in a bucket, under a prefix.
#[tokio::test]
async fn i7_a_server_comes_back_from_a_bucket() {
    let (server, moto) = (Server::start(&[]).await, Moto::start());
    make_bucket(&moto, BUCKET);
    let node = s3_node(&server, &moto.endpoint, &format!("s3://{BUCKET}/mysql/pitr"), "");
    let agent = node.agent();
    server
        .execute(&[
            "CREATE DATABASE d",
            "CREATE TABLE d.t (id INT PRIMARY KEY AUTO_INCREMENT, v LONGBLOB)",
        ])
        .await;
    eventually("the first snapshot", async || {
        let listing = node.json(&["list"]).await;
        listing["snapshots"][0]["state"] == "complete"
    })
    .await;
    node.ok(&["check"]).await;
    // More than one part of a multipart upload, incompressible.
    for _ in 0..10 {
        let random: Vec<&str> = vec!["RANDOM_BYTES(1024)"; 1024];
        server
            .execute(&[&format!("INSERT INTO d.t (v) VALUES (CONCAT({}))", random.join(","))])
            .await;
    }
    server
        .execute(&["FLUSH LOCAL BINARY LOGS", "INSERT INTO d.t (v) VALUES ('the last')"])
        .await;
    let (wanted, expected) = (
        server.gtid_executed().await.to_string(),
        truth(&mut server.root().await).await,
    );
    eventually("the binlog is sealed and everything shipped", async || {
        let listing = node.json(&["list"]).await;
        let plan = node.run(&["recover", "--latest", "--dry-run", "--json"]).await;
        listing["binlogs"][0]["sealed"] == true && String::from_utf8_lossy(&plan.stdout).contains(&wanted)
    })
    .await;
    let listing = node.json(&["list"]).await;
    assert!(listing["binlogs"][0]["stored_bytes"].as_u64().unwrap() > 9 << 20, "{listing}");

    let (recovered, report) = node.recover("recovered", &["--latest"]).await;
    assert_eq!(truth(&mut recovered.root().await).await, expected);
    assert_eq!(report["gtid_executed"], wanted);
    agent.assert_quiet();
    agent.stop().await;

    refusals(&server, &moto, node).await;
}

/// Nobody has to guess what is wrong with the bucket.
async fn refusals(server: &Server, moto: &Moto, node: Node) {
    const LATEST: [&str; 3] = ["recover", "--latest", "--dry-run"];
    let elsewhere = s3_node(server, &moto.endpoint, "s3://no-such-bucket", "");
    for (case, command) in [("recover", &LATEST[..]), ("snapshot", &["snapshot"]), ("list", &["list"])] {
        let said = elsewhere.fails(command).await;
        assert_error(&format!("{case}: the bucket is not there"), &said, &names(moto));
    }
    // From here on moto looks at the keys, and knows none.
    http(moto, "POST", "/moto-api/reset-auth", "0");
    let said = node.fails(&LATEST).await;
    assert!(!said.contains("nobody-prints-this") && !said.contains("AKIDTEST"), "{said}");
    assert_error("recover: the bucket's keys are wrong", &said, &names(moto));
}

fn names(moto: &Moto) -> [(&str, &str); 1] {
    [(&moto.endpoint, "ENDPOINT")]
}
