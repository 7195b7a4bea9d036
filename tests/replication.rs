//! The other region: how far it is behind is told, it is kept up with, it recovers alone, and takes over.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mysql_pitr::{
    agent::document::Document,
    archive::{fence::new_fence, keys, listing::Archive},
    recover::window::recoverable,
    replica::{
        Comparer,
        copy::{Copied, Copier},
        take_over::{Other, take_over},
    },
    store::{Put, filesystem::FilesystemStore},
    support::{
        clock::{Moment, WallClock},
        progress::Progress,
    },
};

use crate::support::{
    eventually,
    made::{Made, gtid, gtids},
    minio::{self, Minio},
    moto::{Moto, make_bucket, s3_node},
    mysql::{Server, free_port},
    node::{Node, SHARD, path_text, peak_memory_bytes},
    proxy::Proxy,
    replicator::{Replicator, bucket},
    skipped,
    truth::truth,
};

const MAKE_TABLE: [&str; 2] = [
    "CREATE DATABASE d",
    "CREATE TABLE d.t (id INT PRIMARY KEY AUTO_INCREMENT, v LONGBLOB)",
];
const INSERT: &str = "INSERT INTO d.t (v) VALUES (RANDOM_BYTES(700))";
const FLUSH: &str = "FLUSH LOCAL BINARY LOGS";

/// `[replica]` of a bucket, and where the agent answers.
fn sections(endpoint: &str, url: &str, replication: &str, port: u16) -> String {
    format!(
        "[replica]\nurl = \"{url}\"\nregion = \"eu-west-1\"\nendpoint = \"{endpoint}\"\npath_style = true\n\
         replication = \"{replication}\"\ninterval = \"1s\"\n[http]\nlisten = \"127.0.0.1:{port}\"\n"
    )
}

/// What the agent says, once it answers.
async fn document(node: &Node) -> Option<Document> {
    let output = node.run(&["status", "--json"]).await;
    serde_json::from_slice(&output.stdout).ok()
}

/// Waits for a look that began after this call, and found nothing lacking.
async fn wait_level(node: &Node) {
    let since = Moment::now();
    eventually("the other region has all that home has, and a window", async || {
        is_level(node, since).await
    })
    .await;
}

async fn is_level(node: &Node, since: Moment) -> bool {
    let replica = document(node).await.and_then(|d| d.replica);
    replica.is_some_and(|r| {
        let is_well = r.failing_since.is_none() && r.differing.is_empty() && r.seen_at > Some(since);
        is_well && r.recoverable_from.is_some() && r.behind.is_some_and(|b| b.bytes == 0 && b.seconds == 0.0)
    })
}

async fn metric(port: u16, name: &str) -> Option<f64> {
    let text = reqwest::get(format!("http://127.0.0.1:{port}/metrics"))
        .await
        .ok()?
        .text()
        .await
        .ok()?;
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
    line.map(|value| value.parse().unwrap())
}

/// Everything that the server has executed can be recovered from the node's `[store]`.
async fn wait_recoverable(node: &Node, server: &Server) {
    let wanted = server.gtid_executed().await.to_string();
    eventually("everything is recoverable", async || {
        let plan = node.run(&["recover", "--latest", "--dry-run", "--json"]).await;
        String::from_utf8_lossy(&plan.stdout).contains(&wanted)
    })
    .await;
}

fn log_of(node: &Node) -> String {
    fs::read_to_string(node.dir.path().join("agent.log")).unwrap_or_default()
}

/// A store that replicates by itself, late and in no order.
#[tokio::test(flavor = "multi_thread")]
async fn how_far_the_other_region_is_behind_is_told_and_goes_to_zero() {
    let (server, moto, port) = (Server::start(&[]).await, Moto::start(), free_port());
    make_bucket(&moto, "home");
    make_bucket(&moto, "far");
    let (home, far) = (bucket(&moto.endpoint, "home"), bucket(&moto.endpoint, "far"));
    let replicator = Replicator::start(home.clone(), far.clone(), 7);
    let extra = sections(&moto.endpoint, "s3://far", "watched", port);
    let node = s3_node(&server, &moto.endpoint, "s3://home", &extra);
    let agent = node.agent();
    server.execute(&MAKE_TABLE).await;
    wait_level(&node).await;
    let before = document(&node).await.unwrap().replica.unwrap();
    assert_eq!(before.copied_objects, 0, "the store does it");
    assert_eq!(metric(port, "mysql_pitr_replica_behind_seconds").await, Some(0.0));

    replicator.pause(true);
    server.execute(&[INSERT, FLUSH, INSERT, FLUSH, INSERT]).await;
    wait_recoverable(&node, &server).await;
    eventually("what it lacks is told, and how old that is", async || {
        let behind = document(&node).await.and_then(|d| d.replica?.behind).unwrap_or_default();
        behind.binlogs == 2 && behind.segments >= 3 && behind.bytes > 1400 && behind.seconds > 3.0
    })
    .await;
    assert!(metric(port, "mysql_pitr_replica_behind_seconds").await > Some(3.0));
    assert_eq!(metric(port, "mysql_pitr_replica_behind_binlogs").await, Some(2.0));
    assert!(metric(port, "mysql_pitr_replica_behind_bytes").await > Some(1400.0));
    let d = document(&node).await.unwrap();
    let (at_home, there) = (d.archive.unwrap(), d.replica.unwrap());
    assert!(there.recoverable_until < at_home.recoverable_until, "{there:?} {at_home:?}");
    let text = String::from_utf8(node.run(&["status"]).await.stdout).unwrap();
    assert!(
        text.contains("the other region, s3://far") && text.contains("2 binlogs"),
        "{text}"
    );
    let listing = node.json(&["list"]).await;
    let until = |window: &serde_json::Value| window["until"].as_str().unwrap().to_owned();
    assert!(until(&listing["replica"]["window"]) < until(&listing["window"]), "{listing}");

    // Something else lies there in the place of an object of ours.
    let objects = home.list(&format!("{SHARD}/2"), None).await.unwrap();
    let wrong = &objects.last().unwrap().key;
    far.put(wrong, "another".into(), Put::IfAbsent).await.unwrap();
    eventually("it is named", async || {
        let r = document(&node).await.unwrap().replica.unwrap();
        r.differing.len() == 1 && r.differing[0].contains(wrong.as_str()) && r.differing[0].contains("has 7 B")
    })
    .await;
    assert_eq!(node.run(&["status"]).await.status.code(), Some(1));
    far.delete(wrong).await.unwrap();

    replicator.pause(false);
    wait_level(&node).await;
    assert_eq!(metric(port, "mysql_pitr_replica_behind_seconds").await, Some(0.0));
    agent.stop().await;
    // Without an agent, too.
    let alone: serde_json::Value = serde_json::from_slice(&node.run(&["status", "--json"]).await.stdout).unwrap();
    assert_eq!(alone["replica"]["behind"]["bytes"], 0, "{alone}");
    assert!(alone["replica"]["recoverable_from"].is_string(), "{alone}");
}

/// Real replication of buckets, by MinIO: the home server dies, and the other region recovers alone.
#[tokio::test(flavor = "multi_thread")]
async fn what_minio_replicates_is_watched_and_recovers_alone() {
    let Some(binaries) = minio::binaries() else {
        return skipped("replication by MinIO itself: MYSQL_PITR_MINIO is not set (scripts/minio.sh builds it)");
    };
    let (server, port) = (Server::start(&[]).await, free_port());
    let (home, mut far) = (Minio::start(&binaries).await, Minio::start(&binaries).await);
    let client = minio::Client::new(&binaries);
    client.replicate((&home, "home"), (&far, "far"));
    let extra = sections(&far.endpoint, "s3://far", "watched", port);
    let node = s3_node(&server, &home.endpoint, "s3://home", &extra);
    let agent = node.agent();
    server.execute(&MAKE_TABLE).await;
    wait_level(&node).await;
    node.ok(&["check"]).await;

    far.stop();
    server.execute(&[INSERT, FLUSH, INSERT]).await;
    wait_recoverable(&node, &server).await;
    eventually("the silence is told", async || {
        let Some(replica) = document(&node).await.and_then(|d| d.replica) else {
            return false;
        };
        replica.failing_since.is_some() && replica.behind.is_some_and(|b| b.seconds > 3.0)
    })
    .await;
    far.go_on(&binaries).await;
    // MinIO tries again what failed when its scanner comes by, or when it is asked to.
    client.run(&[
        "replicate",
        "resync",
        "start",
        "home/home",
        "--remote-bucket",
        &client.remote_arn("home/home"),
    ]);
    server.execute(&[INSERT]).await;
    wait_recoverable(&node, &server).await;
    wait_level(&node).await;
    let expected = truth(&mut server.root().await).await;
    agent.stop().await;

    drop(home);
    let dr = s3_node(&server, &far.endpoint, "s3://far", "");
    let (recovered, _) = dr.recover("recovered", &["--latest"]).await;
    assert_eq!(truth(&mut recovered.root().await).await, expected);
}

/// i3, i10, i11, i12: the agent writes both: while the other bucket is silent home is shipped to as ever, killed in the middle it goes on,
/// and the other region recovers the same truth with home dead.
#[tokio::test(flavor = "multi_thread")]
async fn i12_the_other_region_recovers_alone_from_what_the_agent_copied() {
    const GROWTH_MAX: u64 = 48 << 20;
    let (server, moto, far, port) = (Server::start(&[]).await, Moto::start(), Moto::start(), free_port());
    let proxy = Proxy::start(&far.endpoint).await;
    make_bucket(&moto, "home");
    make_bucket(&far, "far");
    let extra = sections(&proxy.endpoint, "s3://far/mysql", "agent", port);
    let node = s3_node(&server, &moto.endpoint, "s3://home/mysql", &extra);
    let agent = node.agent();
    server.execute(&MAKE_TABLE).await;
    wait_level(&node).await;
    let said = node.ok(&["check"]).await;
    assert!(said.contains("OK       replica"), "{said}");

    proxy.hang(true);
    let before = peak_memory_bytes(agent.pid()).unwrap();
    // More than what is copied whole.
    for _ in 0..10 {
        let random: Vec<&str> = vec!["RANDOM_BYTES(1024)"; 1024];
        let sql = format!("INSERT INTO d.t (v) VALUES (CONCAT({}))", random.join(","));
        server.execute(&[&sql]).await;
    }
    server.execute(&[FLUSH, INSERT, FLUSH, INSERT]).await;
    wait_recoverable(&node, &server).await;
    eventually("the silence is told", async || {
        let Some(replica) = document(&node).await.and_then(|d| d.replica) else {
            return false;
        };
        replica.behind.is_some_and(|b| b.seconds > 5.0)
    })
    .await;
    let d = document(&node).await.unwrap();
    assert!(d.healthy && d.totals.rounds_failed == 0, "{d:?}");
    let peak = peak_memory_bytes(agent.pid()).unwrap();
    println!("{} MiB before, at most {} MiB", before >> 20, peak >> 20);
    assert!(peak < before + GROWTH_MAX, "{before} bytes grew to {peak}");
    agent.kill().await;

    proxy.hang(false);
    let agent = node.agent();
    eventually("it has begun to copy", async || {
        let copied = document(&node).await.and_then(|d| d.replica).map(|r| r.copied_objects);
        copied.is_some_and(|n| n > 0)
    })
    .await;
    agent.kill().await;
    let agent = node.agent();
    server.execute(&[INSERT]).await;
    wait_recoverable(&node, &server).await;
    wait_level(&node).await;
    let (wanted, expected) = (
        server.gtid_executed().await.to_string(),
        truth(&mut server.root().await).await,
    );
    agent.stop().await;
    let copied = bucket(&far.endpoint, "far").list("", None).await.unwrap();
    assert!(
        copied
            .iter()
            .all(|o| !o.key.contains("/leases/") && !o.key.contains("/requests/"))
    );

    // The home region is gone, and its endpoint answers nobody.
    drop(moto);
    let dr = s3_node(&server, &far.endpoint, "s3://far/mysql", "");
    let (recovered, report) = dr.recover("recovered", &["--latest"]).await;
    assert_eq!(truth(&mut recovered.root().await).await, expected);
    assert_eq!(report["gtid_executed"], wanted);
    let listing = dr.json(&["list"]).await;
    assert!(
        listing["window"]["until"].is_string() && listing["faults"] == serde_json::json!([]),
        "{listing}"
    );
    assert!(dr.ok(&["search", "--table", "d.t"]).await.contains("d.t"));
}

fn folder(path: &Path) -> Archive {
    fs::create_dir_all(path).unwrap();
    Archive {
        store: Arc::new(FilesystemStore::open(path).unwrap()),
        shard: SHARD.to_owned().try_into().unwrap(),
        clock: Arc::new(WallClock),
    }
}

/// i3: a binlog, a snapshot, a crash and what came after it: however much of it was copied, the other region can be recovered from.
#[tokio::test(flavor = "multi_thread")]
async fn i3_the_other_region_is_recoverable_whenever_the_copying_stops() {
    let mut server = Server::start(&[]).await;
    let node = Node::new(&server, "");
    let agent = node.agent();
    server.execute(&MAKE_TABLE).await;
    node.wait_snapshots(1).await;
    server.execute(&[INSERT, FLUSH, INSERT, FLUSH]).await;
    node.wait_sealed(2).await;
    node.ok(&["snapshot"]).await;
    server.execute(&[INSERT]).await;
    node.wait_shipped(&server).await;
    server.crash().await;
    server.execute(&[INSERT, FLUSH, INSERT]).await;
    node.wait_shipped(&server).await;
    node.wait_sealed(4).await;
    agent.stop().await;

    let (home, far) = (node.archive(), folder(&node.target("far")));
    assert!(home.timelines().await.unwrap().len() > 1, "a crash begins a timeline");
    let mut comparer = Comparer::new(home.clone(), far.clone());
    let lacking = comparer.look().await.unwrap().behind;
    assert!(lacking.binlogs == 4 && lacking.snapshots == 2, "{lacking:?}");
    let missing = comparer.missing();
    let copier = Copier {
        home: home.clone(),
        replica: far.clone(),
    };
    let (mut copied, mut was_recoverable, mut best) = (Copied::default(), false, 0);
    for one in &missing {
        assert!(copier.copy(std::slice::from_ref(one), &mut copied).await.unwrap());
        let mut survey = far.survey().await.unwrap();
        assert!(survey.faults.is_empty(), "after {}: {:?}", one.key, survey.faults);
        let now = recoverable(&far, None, &mut survey).await;
        let is_recoverable = now.problem.is_none();
        assert!(is_recoverable || !was_recoverable, "after {}: {:?}", one.key, now.problem);
        assert!(now.until_us.is_none_or(|until| until >= best), "after {}", one.key);
        (was_recoverable, best) = (is_recoverable, now.until_us.unwrap_or(best));
    }
    assert!(was_recoverable);
    comparer.forget();
    let level = comparer.look().await.unwrap();
    assert_eq!((level.behind.bytes, level.behind.seconds), (0, 0.0), "{level:?}");
    assert_eq!(copied.objects as usize, missing.len());
    let (mut at_home, mut there) = (home.survey().await.unwrap(), far.survey().await.unwrap());
    assert_eq!(
        recoverable(&home, None, &mut at_home).await.until_us,
        recoverable(&far, None, &mut there).await.until_us
    );
    // Segments of a binlog that is sealed there nobody needs there.
    assert!(there.binlogs.iter().filter(|b| b.gtids().is_some()).count() >= 4);
}

/// A planned move to the other region and back: one of the buckets is shipped to, and what is in the other comes along.
#[tokio::test(flavor = "multi_thread")]
async fn a_shard_moves_to_the_other_region_and_back_behind_fences() {
    const TAKE_OVER: [&str; 5] = ["take-over", "--settle", "1", "--wait", "60"];
    let server = Server::start(&[]).await;
    let node = Node::new(&server, "");
    let far = node.target("far");
    fs::create_dir(&far).unwrap();
    let replica = |path: &Path| {
        format!(
            "\n[replica]\nurl = \"file://{}\"\nreplication = \"agent\"\ninterval = \"1s\"\n",
            path_text(path)
        )
    };
    let away = Node::new(&server, &replica(&node.archive_dir));
    away.reconfigure(
        &format!("[store]\nurl = \"file://{}\"", path_text(&away.archive_dir)),
        &format!("[store]\nurl = \"file://{}\"", path_text(&far)),
    );
    let text = fs::read_to_string(&node.config).unwrap();
    fs::write(&node.config, text + &replica(&far)).unwrap();

    let agent = node.agent();
    server.execute(&MAKE_TABLE).await;
    node.wait_snapshots(1).await;
    server.execute(&[INSERT]).await;
    node.wait_shipped(&server).await;
    away.ok(&TAKE_OVER).await;
    eventually("the agent at home gives way", async || {
        agent.log().contains("was left behind at")
    })
    .await;
    let refused = node.fails(&["adopt", "--anew"]).await;
    assert!(
        refused.contains("was left behind") && refused.contains("take-over"),
        "{refused}"
    );

    let there = away.agent();
    server.execute(&[INSERT, FLUSH, INSERT]).await;
    wait_recoverable(&away, &server).await;
    assert!(is_fenced(&node.archive()).await && !is_fenced(&folder(&far)).await);
    // What is written there comes home, by the agent there.
    wait_recoverable(&node, &server).await;

    node.ok(&TAKE_OVER).await;
    there.stop().await;
    server.execute(&[INSERT]).await;
    wait_recoverable(&node, &server).await;
    assert!(!is_fenced(&node.archive()).await && is_fenced(&folder(&far)).await);
    let survey = node.archive().survey().await.unwrap();
    assert!(survey.faults.is_empty() && survey.timelines.len() == 1, "{survey:?}");
    agent.stop().await;
    assert!(!log_of(&node).contains("panicked") && !log_of(&away).contains("panicked"));
}

async fn is_fenced(archive: &Archive) -> bool {
    archive.standing_fence().await.unwrap().is_some()
}

/// A home region that is dead cannot be fenced: the operator's word counts, its late claims collide with nothing, and it learns of it once it
/// is seen again.
#[tokio::test]
async fn a_home_region_that_was_dead_is_fenced_when_it_comes_back() {
    let home = Made::new();
    home.timeline(1, None, 1, gtids(1, 1, 0), gtids(1, 1, 0));
    let dir = tempfile::tempdir().unwrap();
    let far = folder(dir.path());
    let mut comparer = Comparer::new(home.archive.clone(), far.clone());
    comparer.look().await.unwrap();
    let copier = Copier {
        home: home.archive.clone(),
        replica: far.clone(),
    };
    copier.copy(&comparer.missing(), &mut Copied::default()).await.unwrap();

    let url = home.archive.store.url().to_owned();
    let silent = Progress::silent();
    let fence = take_over(&far, Other::Dead(&url), "operator x".into(), &silent)
        .await
        .unwrap();
    assert_eq!((fence.timelines_from, far.timelines_from().await.unwrap()), (101, 101));
    // Home claimed once more before it died, and the other region as well.
    home.timeline(2, Some(1), 1, gtids(1, 1, 5), gtids(1, 1, 0));
    far.ensure_open().await.unwrap();
    home.archive.ensure_open().await.unwrap();
    let again = take_over(&far, Other::Dead(&url), "operator x".into(), &silent)
        .await
        .unwrap();
    assert_eq!(again.timelines_from, 101, "said twice, it is said once");

    home.archive.hear_of_fence(&far).await.unwrap();
    let said = home.archive.ensure_open().await.unwrap_err().to_string();
    assert!(
        mysql_pitr::support::hint::message(&home.archive.ensure_open().await.unwrap_err()).contains("operator x"),
        "{said}"
    );
    // Taken back: what is still said elsewhere of the earlier fence is old.
    home.archive.lift_fence(&url, far.clock.now_us()).await.unwrap();
    home.archive.hear_of_fence(&far).await.unwrap();
    home.archive.ensure_open().await.unwrap();
    // Said anew, it counts.
    far.lift_fence(&url, far.clock.now_us()).await.unwrap();
    far.set_fence(&new_fence(&url, "operator y".into(), far.clock.now_us(), 0))
        .await
        .unwrap();
    home.archive.hear_of_fence(&far).await.unwrap();
    assert!(is_fenced(&home.archive).await);
}

/// Both buckets were shipped to: nothing is copied over the one history or the other, and nobody takes over.
#[tokio::test]
async fn two_histories_under_one_name_are_told_and_left_alone() {
    let (home, far) = (Made::new(), Made::new());
    for (made, server) in [(&home, 1), (&far, 2)] {
        made.timeline(1, None, server, gtids(1, 1, 0), gtids(1, 1, 0));
    }
    let mut comparer = Comparer::new(home.archive.clone(), far.archive.clone());
    let look = comparer.look().await.unwrap();
    assert!(
        comparer.has_two_histories() && look.differing[0].contains("both buckets were shipped to"),
        "{look:?}"
    );
    let other = Other::Fenced {
        archive: &home.archive,
        settle: Duration::ZERO,
        patience: Duration::ZERO,
    };
    let refused = take_over(&far.archive, other, "operator x".into(), &Progress::silent())
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("both stores were shipped to"), "{refused:#}");
    assert!(far.archive.timelines_from().await.unwrap() == 0, "it did not take over");
}

/// The record of a snapshot of volumes is rewritten, and may keep its size: it is behind until the other region has the last one.
#[tokio::test]
async fn a_record_that_changes_and_keeps_its_size_is_brought_up_to_date() {
    let home = Made::new();
    home.timeline(1, None, 1, gtids(1, 1, 0), gtids(1, 1, 0));
    home.snapshot("a", 1, 1, gtids(1, 1, 5), 3600);
    let dir = tempfile::tempdir().unwrap();
    let far = folder(dir.path());
    let copier = Copier {
        home: home.archive.clone(),
        replica: far.clone(),
    };
    let mut comparer = Comparer::new(home.archive.clone(), far.clone());
    comparer.look().await.unwrap();
    copier.copy(&comparer.missing(), &mut Copied::default()).await.unwrap();
    assert_eq!(comparer.look().await.unwrap().behind.snapshots, 0);

    let path = home.dir.path().join(keys::snapshot_key(&home.archive.shard, "a"));
    let text = fs::read_to_string(&path).unwrap();
    let changed = text.replace("\"server_version\": \"9.7.4\"", "\"server_version\": \"9.7.5\"");
    assert!(text != changed && text.len() == changed.len());
    fs::write(&path, &changed).unwrap();
    assert_eq!(comparer.look().await.unwrap().behind.snapshots, 1);
    copier.copy(&comparer.missing(), &mut Copied::default()).await.unwrap();
    assert_eq!(comparer.look().await.unwrap().behind.snapshots, 0);
    let there = fs::read_to_string(dir.path().join(keys::snapshot_key(&far.shard, "a"))).unwrap();
    assert_eq!(there, changed);
}

/// What the other region's own rules have deleted is not behind, and does not come back.
#[tokio::test]
async fn what_was_deleted_there_by_its_own_rules_is_not_lacking() {
    const HOUR_S: i64 = 3600;
    let (home, far) = (Made::new(), Made::new());
    let old = SystemTime::now() - Duration::from_hours(100);
    home.timeline(1, None, 1, gtids(1, 1, 0), gtids(1, 1, 0));
    home.snapshot("a", 1, 1, gtids(1, 1, 5), HOUR_S);
    let first = home.sealed(1, 1, 1, gtids(1, 1, 0), &[(gtid(1, 1), 1)]);
    for key in [
        first.clone(),
        format!("{first}.json"),
        keys::snapshot_key(&home.archive.shard, "a"),
    ] {
        fs::File::options()
            .append(true)
            .open(home.dir.path().join(key))
            .unwrap()
            .set_modified(old)
            .unwrap();
    }
    for made in [&home, &far] {
        made.snapshot("b", 1, 1, gtids(1, 1, 25), 90 * HOUR_S);
    }
    far.timeline(1, None, 1, gtids(1, 1, 0), gtids(1, 1, 0));
    let mut comparer = Comparer::new(home.archive.clone(), far.archive.clone());
    let look = comparer.look().await.unwrap();
    assert_eq!(
        (look.behind.bytes, comparer.missing().len()),
        (0, 0),
        "{:?}",
        comparer.missing()
    );
    let second = home.sealed(1, 1, 2, gtids(1, 1, 30), &[(gtid(1, 31), 100 * HOUR_S)]);
    comparer.forget();
    let look = comparer.look().await.unwrap();
    assert_eq!(look.behind.binlogs, 1);
    assert_eq!(comparer.missing()[0].key, second);
}
