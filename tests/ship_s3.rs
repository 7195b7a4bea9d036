//! The journey over S3: shipped, snapshot and recovered through a bucket.
#![cfg(feature = "aws")]

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use support::{
    eventually,
    golden::assert_error,
    moto::Moto,
    mysql::Server,
    node::{Node, path_text},
    truth::truth,
};

const BUCKET: &str = "dr-bucket";

/// A node whose archive is `url` at moto's server.
fn s3_node(server: &Server, moto: &Moto, url: &str) -> Node {
    let mut node = Node::new(server, "");
    let folder = format!("url = \"file://{}\"", path_text(&node.archive_dir));
    let s3 = format!(
        "url = \"{url}\"\nregion = \"eu-west-1\"\nendpoint = \"{}\"\npath_style = true",
        moto.endpoint
    );
    node.reconfigure(&folder, &s3);
    let environment = [
        ("AWS_ACCESS_KEY_ID", "AKIDTEST"),
        ("AWS_SECRET_ACCESS_KEY", "nobody-prints-this"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
    ];
    node.environment = environment.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    node
}

/// Asks moto's own interface, or its S3 without a signature, which it takes.
fn http(moto: &Moto, method: &str, path: &str, body: &str) {
    let address = moto.endpoint.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{method} {path}: {answer}");
}

/// i4, i6, i7: the archive is in a bucket, under a prefix.
#[tokio::test]
async fn i7_a_server_comes_back_from_a_bucket() {
    let (server, moto) = (Server::start(&[]).await, Moto::start());
    let place = "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                 <LocationConstraint>eu-west-1</LocationConstraint></CreateBucketConfiguration>";
    http(&moto, "PUT", &format!("/{BUCKET}"), place);
    let node = s3_node(&server, &moto, &format!("s3://{BUCKET}/mysql/pitr"));
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
    let elsewhere = s3_node(server, moto, "s3://no-such-bucket");
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
