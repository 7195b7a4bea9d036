//! What the agent says of itself is true while it ships, while it cannot, and when it is not there.

use std::{fs, net::SocketAddr, time::Duration};

use crate::support::{
    eventually,
    mysql::Server,
    node::{Agent, Node, PATIENCE},
    orchestrator::{FakeOrchestrator, HOST, How},
};
use mysql_pitr::{agent::document::Document, orchestrator::Role};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};

const MAKE_TABLE: [&str; 2] = [
    "CREATE DATABASE d",
    "CREATE TABLE d.t (id INT PRIMARY KEY AUTO_INCREMENT, v LONGBLOB)",
];
const INSERT: &str = "INSERT INTO d.t (v) VALUES (RANDOM_BYTES(700))";
/// Any free port; the log says which.
const HTTP: &str = "[http]\nlisten = \"127.0.0.1:0\"\n";
const ANNOUNCEMENT: &str = "status and metrics at http://";
const EXIT_DEGRADED: Option<i32> = Some(1);
/// Nobody listens there; Orchestrator knows it.
const REPLICA_PORT: u16 = 14412;
const EXIT_NO_AGENT: Option<i32> = Some(2);

/// Where the agent answers.
async fn address(agent: &Agent) -> SocketAddr {
    let announced = || {
        let log = agent.log();
        let (_, rest) = log.split_once(ANNOUNCEMENT)?;
        rest.split_whitespace().next()?.parse().ok()
    };
    eventually("the agent listens", async || announced().is_some()).await;
    announced().unwrap()
}

/// Sends these bytes, and returns everything that comes back until the agent hangs up.
async fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // An agent that has heard enough hangs up while we are still talking.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("the agent hangs up");
    String::from_utf8(answer).unwrap()
}

/// The status code and the body.
async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let answer = exchange(address, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer to {path}: {answer}"));
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    (code, body.to_owned())
}

async fn document(address: SocketAddr) -> Document {
    let (code, body) = get(address, "/v1/status").await;
    assert_eq!(code, 200, "{body}");
    serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}"))
}

/// A sample of Prometheus' text format, parsed strictly: every line is a comment or `name{labels} number`, and every name has a
/// HELP and a TYPE before it.
fn samples(text: &str) -> Vec<(String, f64)> {
    let (mut samples, mut helped, mut typed) = (Vec::new(), Vec::new(), Vec::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            helped.push(rest.split_once(' ').expect("a help has a text").0.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["gauge", "counter"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            typed.push(name.to_owned());
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("`{line}` is no sample"));
            let name = series.split('{').next().unwrap();
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
            assert!(helped.iter().any(|n| n == name) && typed.iter().any(|n| n == name), "{line}");
            assert!(series.ends_with('}') || series == name, "{line}");
            let value: f64 = value.parse().unwrap_or_else(|e| panic!("{line}: {e}"));
            assert!(value.is_finite(), "{line}");
            samples.push((series.to_owned(), value));
        }
    }
    samples
}

async fn metric(address: SocketAddr, series: &str) -> Option<f64> {
    let (code, text) = get(address, "/metrics").await;
    assert_eq!(code, 200);
    samples(&text).into_iter().find(|(s, _)| s == series).map(|(_, v)| v)
}

/// i12: while the store is away what is at risk is told, second by second, and the agent says that it is not well once it has failed
/// for long; when the store is back, nothing is at risk.
#[tokio::test]
async fn i12_data_at_risk_is_told_while_the_store_is_away() {
    let server = Server::start(&[]).await;
    let node = Node::new(&server, HTTP);
    let agent = node.agent();
    let address = address(&agent).await;
    server.execute(&MAKE_TABLE).await;
    node.wait_snapshots(1).await;
    server.execute(&[INSERT]).await;
    node.wait_shipped(&server).await;
    eventually("nothing is at risk", async || {
        document(address)
            .await
            .at_risk
            .is_some_and(|r| r.bytes == 0 && r.seconds == 0.0)
    })
    .await;
    let calm = document(address).await;
    assert_eq!(
        (calm.role, calm.server_writable, calm.timeline),
        (Role::Primary, Some(true), Some(1))
    );
    let live: (String, u64, String, String, String) = server.root().await.one("SHOW BINARY LOG STATUS").await.unwrap();
    let shipped = calm.shipped.unwrap();
    assert_eq!((shipped.binlog, shipped.position), (live.0, live.1));
    assert!(calm.totals.received_bytes > 0 && calm.totals.segments_stored > 0 && calm.totals.stored_bytes > 0);
    assert!(calm.binlog_expire_seconds.is_some());
    eventually("the archive was looked at", async || {
        let view = document(address).await.archive;
        view.is_some_and(|a| a.recoverable_from.is_some() && a.recoverable_until >= a.recoverable_from && a.gaps.is_empty())
    })
    .await;
    assert_eq!(document(address).await.on_path, Some(true));
    assert_eq!(get(address, "/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(metric(address, "mysql_pitr_role{role=\"primary\"}").await, Some(1.0));
    assert_eq!(metric(address, "mysql_pitr_gaps").await, Some(0.0));
    agent.assert_quiet();

    let elsewhere = node.target("elsewhere");
    fs::rename(&node.archive_dir, &elsewhere).unwrap();
    let cut = Instant::now();
    server.execute(&[INSERT, "FLUSH LOCAL BINARY LOGS", INSERT]).await;
    eventually("it is told for three seconds", async || {
        let Some(risk) = document(address).await.at_risk else {
            return false;
        };
        assert!(
            risk.seconds <= cut.elapsed().as_secs_f64() + 1.0,
            "{risk:?} after {:?}",
            cut.elapsed()
        );
        // Two rows, in two binlogs.
        risk.seconds > 3.0 && risk.bytes > 1400
    })
    .await;
    assert!(metric(address, "mysql_pitr_at_risk_seconds").await > Some(3.0));
    let deadline = Instant::now() + 2 * PATIENCE;
    let reason = loop {
        let (code, reason) = get(address, "/healthz").await;
        if code == 503 {
            break reason;
        }
        assert!(Instant::now() < deadline, "still healthy after {:?}", cut.elapsed());
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    assert_eq!(reason.lines().count(), 1, "{reason}");
    assert!(
        reason.contains("nothing was stored for") || reason.contains("shipping has failed for"),
        "{reason}"
    );
    assert!(cut.elapsed() > Duration::from_secs(60), "too early: {reason}");
    assert_eq!(metric(address, "mysql_pitr_healthy").await, Some(0.0));
    assert!(metric(address, "mysql_pitr_store_errors_total").await > Some(0.0));
    assert!(metric(address, "mysql_pitr_rounds_failed_total").await > Some(0.0));
    let url = format!("http://{address}");
    let output = node.run(&["status", "--url", &url]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), EXIT_DEGRADED, "{text}");
    assert!(
        text.contains("at risk") && text.contains("the oldest written") && text.contains("last error"),
        "{text}"
    );

    fs::rename(&elsewhere, &node.archive_dir).unwrap();
    node.wait_shipped(&server).await;
    eventually("all is well again", async || {
        let d = document(address).await;
        d.healthy && d.at_risk.is_some_and(|r| r.bytes == 0) && d.totals.sealed == 1 && d.backlog.binlogs == 0
    })
    .await;
    node.ok(&["status", "--url", &url]).await;
    agent.stop().await;
}

/// Whoever looks for the agent of a lost server is told what the archive has.
#[tokio::test]
async fn without_an_agent_status_tells_what_the_archive_holds() {
    let server = Server::start(&[]).await;
    let node = Node::new(&server, "");
    let agent = node.agent();
    server.execute(&MAKE_TABLE).await;
    node.wait_snapshots(1).await;
    server.execute(&[INSERT]).await;
    node.wait_shipped(&server).await;
    agent.stop().await;
    let output = node.run(&["status"]).await;
    assert_eq!(output.status.code(), EXIT_NO_AGENT);
    let (out, err) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert!(err.contains("[http] listen is \"off\"") && err.contains("hint: "), "{err}");
    assert!(
        out.contains("last binlog  binlog.000001") && out.contains("recoverable  from "),
        "{out}"
    );
    let output = node.run(&["status", "--url", "http://127.0.0.1:1", "--json"]).await;
    assert_eq!(output.status.code(), EXIT_NO_AGENT);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        json["problem"]
            .as_str()
            .unwrap()
            .contains("no agent answers at http://127.0.0.1:1"),
        "{json}"
    );
    assert_eq!(json["archive"]["tip"], 1);

    // What was written while nobody shipped is as old as it is, also for an agent that has just started: its store is gone, so only
    // the state file says how far the archive is.
    server.execute(&[INSERT]).await;
    let written = Instant::now();
    // It has to grow old.
    tokio::time::sleep(Duration::from_secs(3)).await;
    node.reconfigure("listen = \"off\"", "listen = \"127.0.0.1:0\"");
    let store = node.archive_dir.join(crate::support::node::SHARD);
    let elsewhere = node.target("elsewhere");
    fs::rename(&store, &elsewhere).unwrap();
    fs::write(&store, "in the way").unwrap();
    fs::write(node.dir.path().join("agent.log"), "").unwrap();
    let agent = node.agent();
    let address = address(&agent).await;
    eventually("its age is told", async || {
        let risk = document(address).await.at_risk;
        risk.is_some_and(|r| r.bytes > 700 && r.seconds >= written.elapsed().as_secs_f64() - 2.0)
    })
    .await;
    agent.kill().await;
}

/// i8: a gap that arose while no agent ran has its name in the log, the list, the status and a metric, and is answered by a snapshot
/// without a person; one that cannot be taken is tried again.
#[tokio::test]
async fn i8_a_gap_is_told_and_answered_by_a_snapshot() {
    let server = Server::start(&[]).await;
    let node = Node::new(&server, "");
    let agent = node.agent();
    server.execute(&MAKE_TABLE).await;
    node.wait_snapshots(1).await;
    node.wait_shipped(&server).await;
    agent.stop().await;
    // For a while, no snapshot can be taken.
    const OBSTACLE: [&str; 3] = [
        "SET sql_log_bin = 0",
        "CREATE DATABASE obstacle",
        "CREATE TABLE obstacle.t (id INT) ENGINE = MyISAM",
    ];
    server.execute(&OBSTACLE).await;
    server
        .execute(&[INSERT, "FLUSH LOCAL BINARY LOGS", INSERT, "FLUSH LOCAL BINARY LOGS"])
        .await;
    let live: (String, u64, String, String, String) = server.root().await.one("SHOW BINARY LOG STATUS").await.unwrap();
    server.execute(&[&format!("PURGE BINARY LOGS TO '{}'", live.0), INSERT]).await;
    let uuid = server.gtid_executed().await.to_string().split(':').next().unwrap().to_owned();
    let gap = format!("{uuid}:3-4");

    node.reconfigure("listen = \"off\"", "listen = \"127.0.0.1:0\"");
    let agent = node.agent();
    let address = address(&agent).await;
    eventually("the gap is counted", async || {
        metric(address, "mysql_pitr_gaps").await == Some(1.0)
    })
    .await;
    assert_eq!(metric(address, "mysql_pitr_gap_transactions").await, Some(2.0));
    assert_eq!(metric(address, "mysql_pitr_recoverable_from_timestamp_seconds").await, None);
    let url = format!("http://{address}");
    let output = node.run(&["status", "--url", &url]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), EXIT_DEGRADED, "{text}");
    assert!(text.contains(&gap) && text.contains("OPEN"), "{text}");
    let list = node.json(&["list"]).await;
    assert_eq!(list["gaps"][0]["gtids"], gap.as_str());
    assert!(list["gaps"][0]["closed_by"].is_null(), "{list}");
    assert!(node.ok(&["list"]).await.contains("recoverable only up to a gap"));
    eventually("it is answered, in vain", async || {
        agent.log().contains("taking a snapshot") && agent.log().contains("obstacle.t")
    })
    .await;
    assert!(agent.log().contains("the archive has a gap") && agent.log().contains(&gap));

    server.execute(&["SET sql_log_bin = 0", "DROP DATABASE obstacle"]).await;
    eventually("the gap is closed", async || {
        metric(address, "mysql_pitr_gaps").await == Some(0.0)
    })
    .await;
    assert!(
        metric(address, "mysql_pitr_recoverable_from_timestamp_seconds")
            .await
            .is_some()
    );
    let list = node.json(&["list"]).await;
    assert!(
        list["gaps"][0]["closed_by"].is_string() && list["window"]["from"].is_string(),
        "{list}"
    );
    node.ok(&["status", "--url", &url]).await;
    let complete = metric(address, "mysql_pitr_snapshots_total{result=\"complete\"}").await;
    assert_eq!(complete, Some(1.0), "one snapshot is enough");
    agent.stop().await;
}

/// What Orchestrator says of this node is told, and how old it is; a server off the path is told to whoever looks, and what to do.
#[tokio::test]
async fn the_role_is_told_with_who_says_it_and_how_old_that_is() {
    let server = Server::start(&[]).await;
    let fake = FakeOrchestrator::start(&[server.port, REPLICA_PORT]).await;
    let orchestrator = format!(
        "[orchestrator]\nurls = [\"{}\"]\ninstance = \"{HOST}:{}\"\npoll_interval = \"1s\"\ntimeout = \"500ms\"\n",
        fake.url(),
        server.port
    );
    let node = Node::new(&server, &format!("{HTTP}{orchestrator}"));
    let agent = node.agent();
    let at = address(&agent).await;
    eventually("it is confirmed", async || document(at).await.confirmed_by.is_some()).await;
    let d = document(at).await;
    assert_eq!(
        (d.role, d.server_writable, d.takes_snapshots, d.role_is_stale, d.standalone),
        (Role::Primary, Some(true), true, Some(false), false)
    );
    assert!(d.role_age_seconds.is_some_and(|s| s < 3.0), "{d:?}");
    for (name, value) in [("primary_confirmed", 1.0), ("takes_snapshots", 1.0), ("role_stale", 0.0)] {
        assert_eq!(metric(at, &format!("mysql_pitr_{name}")).await, Some(value), "{name}");
    }
    let url = format!("http://{at}");
    eventually("status is well", async || {
        node.run(&["status", "--url", &url]).await.status.success()
    })
    .await;
    assert!(
        node.ok(&["status", "--url", &url])
            .await
            .contains("confirmed as the primary by Orchestrator at http://127.0.0.1")
    );
    fake.misbehave(How::NoLeader);
    eventually("it is stale", async || metric(at, "mysql_pitr_role_stale").await == Some(1.0)).await;
    let d = document(at).await;
    assert_eq!((d.role, d.confirmed_by), (Role::Primary, None), "the last clear role stands");
    assert!(d.role_age_seconds.is_some_and(|s| s > 3.0));
    agent.stop().await;

    let other = Server::start(&[]).await;
    let beside = node.beside(&other);
    beside.reconfigure("listen = \"off\"", "listen = \"127.0.0.1:0\"");
    let agent = beside.agent();
    let at = address(&agent).await;
    other.execute(&MAKE_TABLE).await;
    eventually("it is off the path", async || {
        metric(at, "mysql_pitr_on_path").await == Some(0.0)
    })
    .await;
    let output = beside.run(&["status", "--url", &format!("http://{at}")]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), EXIT_DEGRADED, "{text}");
    assert!(text.contains("OFF THE PATH") && text.contains("mysql-pitr adopt"), "{text}");
    assert_eq!(get(at, "/healthz").await.0, 200, "a restart would not help");
    assert_eq!(metric(at, "mysql_pitr_primary_confirmed").await, None, "nobody is asked");
    agent.stop().await;
}

/// Hostile and clumsy clients cost the agent nothing, and keep nobody else from being answered for long.
#[tokio::test]
async fn hostile_requests_do_no_harm() {
    let server = Server::start(&[]).await;
    let node = Node::new(&server, HTTP);
    let agent = node.agent();
    let address = address(&agent).await;
    let huge = format!("GET /metrics HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(8 << 20));
    let answer = exchange(address, huge.as_bytes()).await;
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "X: a\r\n".repeat(10_000));
    assert!(!exchange(address, many.as_bytes()).await.starts_with("HTTP/1.1 200"));
    for garbage in [
        &b"\0\x16\x03\x01 what"[..],
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"\r\n\r\n\r\n\r\n",
    ] {
        exchange(address, garbage).await;
    }
    assert_eq!(get(address, "/../../etc/passwd").await.0, 404);
    let post = b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nx";
    assert!(exchange(address, post).await.starts_with("HTTP/1.1 405"));

    // More slow clients than connections: each is hung up on after its time, and others are answered then.
    let mut slow = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /met").await.unwrap();
        slow.push(stream);
    }
    let began = Instant::now();
    assert_eq!(get(address, "/healthz").await.0, 200);
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    assert!(!samples(&get(address, "/metrics").await.1).is_empty());
    server.execute(&MAKE_TABLE).await;
    node.wait_shipped(&server).await;
    agent.assert_quiet();
    agent.stop().await;
}

/// Shipping matters more than metrics.
#[tokio::test]
async fn a_port_that_is_taken_keeps_nobody_from_shipping() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let server = Server::start(&[]).await;
    let node = Node::new(&server, &format!("[http]\nlisten = \"{address}\"\n"));
    let agent = node.agent();
    server.execute(&MAKE_TABLE).await;
    node.wait_shipped(&server).await;
    let log = agent.log();
    let loud: Vec<&str> = log
        .lines()
        .filter(|l| l.contains(" ERROR ") || l.contains(" WARN "))
        .collect();
    assert!(
        loud.len() == 1 && loud[0].contains(&format!("cannot listen on {address}")),
        "{log}"
    );
    agent.stop().await;
}

/// Who watches snapshots learns when the next one is due, and nothing where none is.
#[tokio::test]
async fn the_next_scheduled_snapshot_is_told() {
    const NEXT: &str = "mysql_pitr_snapshot_next_timestamp_seconds";
    let server = Server::start(&[]).await;
    let node = Node::new(&server, HTTP);
    let agent = node.agent();
    let unscheduled = address(&agent).await;
    server.execute(&MAKE_TABLE).await;
    node.wait_snapshots(1).await;
    assert_eq!(metric(unscheduled, NEXT).await, None);
    agent.stop().await;

    node.reconfigure(
        "schedule = \"off\"",
        "schedule = \"0 0 0 1 1 * 2090\"\ntimezone = \"Asia/Kathmandu\"",
    );
    fs::remove_file(node.dir.path().join("agent.log")).unwrap();
    let agent = node.agent();
    let scheduled = address(&agent).await;
    // 2090-01-01T00:00:00+05:45
    eventually("it is told", async || metric(scheduled, NEXT).await == Some(3_786_891_300.0)).await;
    let told = document(scheduled).await.next_snapshot_at.unwrap();
    assert_eq!(told.to_string(), "2089-12-31T18:15:00.000000Z");
    agent.assert_quiet();
}
