//! What retention deletes, nobody misses: whatever it was in the middle of when it died, and whoever recovers meanwhile.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc, time::Duration};

use crate::support::{
    made::{Made, at, gtid, gtids},
    mysql::Server,
    node::Node,
};
use async_trait::async_trait;
use bytes::Bytes;
use mysql_pitr::{
    archive::{
        codec::Codec,
        keys,
        listing::{Archive, Form},
        records::{FORMAT_VERSION, Lease, LeasedPart, Request as SnapshotRequest, Snapshot, SnapshotState},
    },
    binlog::gtid::{Gtid, GtidSet},
    recover::{
        plan::{Plan, Request, plan as recovery_plan},
        target::Target,
    },
    retention::{
        apply::{Applied, apply},
        holdings::Holdings,
        lease::Held,
        plan::{Kind, plan},
        rules::Rules,
    },
    store::{ObjectMeta, ObjectReader, Put, SharedStore, Store, StoreError, Upload, Version},
    support::{
        clock::{US_PER_S, now_us},
        progress::Progress,
    },
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

const HOUR_S: i64 = 3600;
const DAY_US: i64 = 24 * HOUR_S * US_PER_S;

/// The moment at which a made archive is pruned: all its files are older than every grace.
fn later() -> i64 {
    now_us() + 2 * DAY_US
}

fn rules(random: &mut SmallRng) -> Rules {
    Rules {
        daily: random.random_range(1..4),
        weekly: random.random_range(0..3),
        monthly: random.random_range(0..2),
        diverged: Duration::from_hours(if random.random_bool(0.5) { 24 } else { 24 * 3650 }),
        segments_grace: Duration::from_hours(1),
        orphans_grace: Duration::from_hours(24),
    }
}

/// `first..=last` of a server, one each seven hours.
fn run(of: u128, first: u64, last: u64) -> Vec<(Gtid, i64)> {
    (first..=last).map(|n| (gtid(of, n), n as i64 * 7 * HOUR_S)).collect()
}

/// A history that may have a failover in it, with binlogs of any length, snapshots anywhere, and leftovers.
struct World {
    made: Made,
    /// Of the current history, in order.
    history: Vec<Gtid>,
}

impl World {
    fn random(random: &mut SmallRng) -> World {
        let made = Made::new();
        made.timeline(1, None, 1, GtidSet::new(), GtidSet::new());
        let (end, mut number) = (random.random_range(8..40), 0);
        let mut ship = |timeline: u32, of: u128, first: u64, last: u64, before: &GtidSet, random: &mut SmallRng| {
            let mut next = first;
            while next <= last {
                let until = (next + random.random_range(0..6)).min(last);
                let held = before.union(&gtids(of, first, next - 1));
                number += 1;
                let holds = run(of, next, until);
                if until < last || random.random_bool(0.5) {
                    made.sealed(timeline, of, number, held.clone(), &holds);
                    if random.random_bool(0.5) {
                        made.tail(timeline, of, number, held, &holds);
                    }
                } else {
                    made.tail(timeline, of, number, held, &holds);
                }
                next = until + 1;
            }
        };
        ship(1, 1, 1, end, &GtidSet::new(), random);
        let mut history: Vec<Gtid> = (1..=end).map(|n| gtid(1, n)).collect();
        let mut ends = vec![(1, 1, end, GtidSet::new())];
        if random.random_bool(0.5) {
            let (branch, second_end) = (random.random_range(1..=end), end + random.random_range(2..30));
            made.timeline(2, Some(1), 2, gtids(1, 1, branch), GtidSet::new());
            // The second server's numbers go on where time is.
            let before = gtids(1, 1, branch);
            let first = end + 1;
            ship(2, 2, first, second_end, &before, random);
            history.truncate(branch as usize);
            history.extend((first..=second_end).map(|n| gtid(2, n)));
            ends.push((2, 2, second_end, before));
        }
        for i in 0..random.random_range(1..9) {
            let (timeline, of, last, before) = ends[random.random_range(0..ends.len())].clone();
            let first = if of == 1 { 1 } else { end + 1 };
            let upto = random.random_range(first..=last);
            let held = before.union(&gtids(of, if of == 1 { 1 } else { first }, upto));
            made.snapshot(&format!("s{upto:03}-{i}"), timeline, of, held, upto as i64 * 7 * HOUR_S + 60);
        }
        World { made, history }
    }

    async fn recovery(&self, target: Target) -> anyhow::Result<Plan> {
        self.made.plan(&Request::new(target)).await
    }

    fn targets(&self) -> Vec<Target> {
        let mut targets = vec![Target::Latest];
        for gtid in &self.history {
            targets.push(Target::Gtid {
                gtid: *gtid,
                exclusive: false,
            });
            targets.push(Target::Time(at(gtid.gno as i64 * 7 * HOUR_S + HOUR_S)));
        }
        targets
    }
}

/// Every object that a recovery by this plan reads.
fn objects_of(made: &Made, plan: &Plan) -> BTreeSet<String> {
    let shard = &made.archive.shard;
    let mut keys: BTreeSet<String> = [plan.snapshot.data_key.clone()].into();
    for leg in &plan.legs {
        match &leg.binlog.form {
            Form::Sealed(manifest) => _ = keys.insert(leg.binlog.place().sealed_key(shard, manifest.codec)),
            Form::Tail(segments) => keys.extend(segments.iter().map(|s| s.key.clone())),
        }
    }
    keys
}

async fn put_lease(made: &Made, needs: Option<LeasedPart>, expires_at_us: i64) -> String {
    let lease = Lease {
        format: FORMAT_VERSION,
        id: format!("{:016x}", rand::random::<u64>()),
        created_at_us: expires_at_us - DAY_US,
        expires_at_us,
        needs,
    };
    let key = keys::lease_key(&made.archive.shard, &lease.id);
    assert!(made.archive.put_record(&key, &lease, Put::IfAbsent).await.unwrap());
    key
}

/// One world: whatever could be recovered inside the window that stays can be recovered after each single deletion, to the same set; what a
/// recovery under a lease reads stays; nothing ever looks whole and is not; and nothing is left to be deleted at the end.
async fn play(seed: u64) -> usize {
    let random = &mut SmallRng::seed_from_u64(seed);
    let world = World::random(random);
    let (made, rules, now) = (&world.made, rules(random), later());
    let mut before: Vec<(Target, Plan)> = Vec::new();
    for target in world.targets() {
        if let Ok(plan) = world.recovery(target.clone()).await {
            before.push((target, plan));
        }
    }
    let mut leased = BTreeSet::new();
    let mut active = None;
    if !before.is_empty() && random.random_bool(0.5) {
        let plan = &before[random.random_range(0..before.len())].1;
        leased = objects_of(made, plan);
        let needs = LeasedPart {
            snapshot: plan.snapshot.id.clone(),
            timeline: plan.path.last().id,
            oldest_binlog: None,
        };
        active = Some(put_lease(made, Some(needs), now + 1).await);
    }
    let ended = put_lease(made, None, now - 3 * DAY_US).await;

    let holdings = Holdings::of(&made.archive).await.unwrap();
    assert!(holdings.survey.faults.is_empty());
    let planned = plan(&made.archive.shard, &holdings, &rules, now).unwrap();
    let current = &planned.histories[0];
    let kept: Vec<&Snapshot> = holdings
        .survey
        .snapshots
        .iter()
        .filter(|s| current.snapshots.contains(&s.id))
        .collect();
    let oldest = kept.iter().min_by_key(|s| s.gtids_before.count());
    let inside = |plan: &Plan| oldest.is_some_and(|s| s.gtids_before.is_subset(&plan.target_gtids));
    before.retain(|(target, plan)| match target {
        Target::Time(us) => inside(plan) && oldest.is_some_and(|s| s.finished_at_us.unwrap() <= *us),
        // A transaction is named by the binlog that holds it: what the oldest snapshot holds can be had by time or by set.
        Target::Gtid { gtid, .. } => inside(plan) && oldest.is_some_and(|s| !s.gtids_before.contains(gtid)),
        _ => inside(plan),
    });

    let deleted: Vec<&String> = planned.deletions.iter().flat_map(|d| &d.keys).collect();
    let unique: BTreeSet<&String> = deleted.iter().copied().collect();
    assert_eq!(unique.len(), deleted.len(), "seed {seed}: named twice");
    assert!(unique.contains(&ended) && active.is_none_or(|key| !unique.contains(&key)));
    for key in &deleted {
        assert!(!key.contains("/timelines/") && !leased.contains(*key), "seed {seed}: {key}");
        fs::remove_file(made.dir.path().join(key)).unwrap();
        let survey = made.archive.survey().await.unwrap();
        assert!(survey.faults.is_empty(), "seed {seed}: after {key}: {:?}", survey.faults);
        for _ in 0..3.min(before.len()) {
            let (target, plan) = &before[random.random_range(0..before.len())];
            let again = world.recovery(target.clone()).await;
            let again = again.unwrap_or_else(|e| panic!("seed {seed}: after {key}: {target:?}: {e:#}"));
            assert_eq!(again.target_gtids, plan.target_gtids, "seed {seed}: {target:?}");
        }
    }
    for (target, plan) in &before {
        let again = world.recovery(target.clone()).await;
        let again = again.unwrap_or_else(|e| panic!("seed {seed}: at the end: {target:?}: {e:#}"));
        assert_eq!(again.target_gtids, plan.target_gtids, "seed {seed}: {target:?}");
        for key in objects_of(made, &again) {
            assert!(made.dir.path().join(&key).exists(), "seed {seed}: {key}");
        }
    }
    let holdings = Holdings::of(&made.archive).await.unwrap();
    let again = plan(&made.archive.shard, &holdings, &rules, now).unwrap();
    assert!(again.deletions.is_empty(), "seed {seed}: {:?}", again.deletions);
    deleted.len()
}

#[tokio::test]
async fn what_stays_recoverable_is_so_after_every_single_deletion() {
    const WORLDS: u64 = 60;
    let mut deleted = 0;
    for seed in 0..WORLDS {
        deleted += play(seed).await;
    }
    assert!(deleted > 500, "only {deleted} objects were deleted");
}

/// One server, snapshots of 1 to 5 and of 1 to 25, sealed binlogs of ten.
fn simple() -> Made {
    let made = Made::new();
    made.timeline(1, None, 1, GtidSet::new(), GtidSet::new());
    made.snapshot("a", 1, 1, gtids(1, 1, 5), 40 * HOUR_S);
    made.snapshot("b", 1, 1, gtids(1, 1, 25), 190 * HOUR_S);
    for (number, first) in [(1, 1), (2, 11), (3, 21), (4, 31)] {
        made.sealed(1, 1, number, gtids(1, 1, first - 1), &run(1, first, first + 9));
    }
    made
}

fn one_day() -> Rules {
    Rules {
        daily: 1,
        weekly: 0,
        monthly: 0,
        diverged: Duration::from_hours(24),
        segments_grace: Duration::from_hours(1),
        orphans_grace: Duration::from_hours(24),
    }
}

async fn names(made: &Made) -> Vec<(Kind, String)> {
    let holdings = Holdings::of(&made.archive).await.unwrap();
    let plan = plan(&made.archive.shard, &holdings, &one_day(), later()).unwrap();
    plan.deletions.into_iter().map(|d| (d.kind, d.name)).collect()
}

#[tokio::test]
async fn leftovers_go_and_what_is_unfinished_or_damaged_stays() {
    let made = simple();
    let shard = made.archive.shard.clone();
    let binlogs = ["binlog.000001", "binlog.000002"];
    let found = names(&made).await;
    assert_eq!(found[0], (Kind::Snapshot, "a".to_owned()));
    assert!(
        found[1..]
            .iter()
            .zip(binlogs)
            .all(|((kind, name), binlog)| *kind == Kind::Binlog && name.starts_with(binlog))
    );
    assert_eq!(found.len(), 3, "{found:?}");

    // A request goes before its snapshot, else it would be answered again.
    let request = SnapshotRequest {
        format: FORMAT_VERSION,
        id: "a".to_owned(),
        requested_at_us: at(0),
    };
    let key = keys::request_key(&shard, "a");
    assert!(made.archive.put_record(&key, &request, Put::IfAbsent).await.unwrap());
    let holdings = Holdings::of(&made.archive).await.unwrap();
    let planned = plan(&shard, &holdings, &one_day(), later()).unwrap();
    assert_eq!(planned.deletions[0].keys[..2], [key, keys::snapshot_key(&shard, "a")]);

    // Data without a record: of a snapshot, and of a sealed binlog that later ones follow.
    let orphan = keys::snapshot_data_key(&shard, "gone", Codec::Zstd);
    made.archive.store.put(&orphan, "x".into(), Put::IfAbsent).await.unwrap();
    let sealed = made.sealed(1, 1, 3, GtidSet::new(), &run(1, 21, 30));
    made.remove(&format!("{sealed}.json"));
    let found = names(&made).await;
    assert!(
        found.contains(&(Kind::Orphan, orphan)) && found.contains(&(Kind::Orphan, sealed)),
        "{found:?}"
    );

    // Without its data the newest snapshot counts for nothing: the older one stays.
    let made = simple();
    made.remove(&keys::snapshot_data_key(&made.archive.shard, "b", Codec::Zstd));
    assert!(names(&made).await.is_empty());
    // A timeline that cannot be read may be anything.
    let made = simple();
    made.damage(&keys::timeline_key(&made.archive.shard, 1));
    let holdings = Holdings::of(&made.archive).await.unwrap();
    assert!(plan(&made.archive.shard, &holdings, &one_day(), later()).is_err());
    // A recovery that has not said what it needs may need anything.
    let made = simple();
    put_lease(&made, None, later() + DAY_US).await;
    let holdings = Holdings::of(&made.archive).await.unwrap();
    let planned = plan(&made.archive.shard, &holdings, &one_day(), later()).unwrap();
    assert!(planned.deletions.is_empty() && planned.held_up.is_some());
    // What is new is left alone, whatever the rules say.
    let made = simple();
    made.snapshot("c", 1, 1, gtids(1, 1, 27), 195 * HOUR_S);
    let holdings = Holdings::of(&made.archive).await.unwrap();
    let planned = plan(&made.archive.shard, &holdings, &one_day(), at(200 * HOUR_S)).unwrap();
    let gone: Vec<&str> = planned
        .deletions
        .iter()
        .filter(|d| d.kind == Kind::Snapshot)
        .map(|d| d.name.as_str())
        .collect();
    assert_eq!(gone, ["a"]);
}

/// A store whose objects under one prefix are locked.
#[derive(Debug)]
struct Locked {
    store: SharedStore,
    prefix: String,
}

#[async_trait]
impl Store for Locked {
    fn url(&self) -> &str {
        self.store.url()
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: Put) -> Result<Version, StoreError> {
        self.store.put(key, bytes, condition).await
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        self.store.upload(key).await
    }

    async fn get(&self, key: &str) -> Result<(Bytes, Version), StoreError> {
        self.store.get(key).await
    }

    async fn read(&self, key: &str, from: u64) -> Result<ObjectReader, StoreError> {
        self.store.read(key, from).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<ObjectMeta>, StoreError> {
        self.store.list(prefix, start_after).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        if key.starts_with(&self.prefix) {
            return Err(StoreError::Refused {
                url: self.url().to_owned(),
                operation: format!("delete {key}"),
                reason: "AccessDenied".to_owned(),
            });
        }
        self.store.delete(key).await
    }
}

/// What is locked stays, with what it needs; the rest goes, and a recovery that begins meanwhile ends the run.
#[tokio::test]
async fn what_the_store_locks_stays_with_what_it_needs() {
    let made = simple();
    made.tail(1, 1, 4, gtids(1, 1, 30), &run(1, 31, 40));
    let shard = made.archive.shard.clone();
    let holdings = Holdings::of(&made.archive).await.unwrap();
    let planned = plan(&shard, &holdings, &one_day(), later()).unwrap();
    let mut archive = made.archive.clone();
    archive.store = Arc::new(Locked {
        store: made.archive.store.clone(),
        prefix: keys::snapshots_prefix(&shard),
    });
    let mut applied = Applied::default();
    apply(&archive, &planned, None, &mut applied, &Progress::silent())
        .await
        .unwrap();
    let refused: Vec<&str> = applied.refused.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(refused, ["a"]);
    let left: Vec<(Kind, String)> = names(&made).await;
    assert_eq!(
        left.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(),
        [Kind::Snapshot, Kind::Binlog, Kind::Binlog]
    );
    assert!(applied.objects_deleted > 0, "the segments of the sealed binlog go");
    made.plan(&Request::new(Target::Set(gtids(1, 1, 12)))).await.unwrap();

    let lease = Held::take(&made.archive).await.unwrap();
    let mut applied = Applied::default();
    let e = apply(&made.archive, &planned, None, &mut applied, &Progress::silent())
        .await
        .unwrap_err();
    assert!(format!("{e:#}").contains("began meanwhile"), "{e:#}");
    assert_eq!(applied.objects_deleted, 0);
    lease.end().await.unwrap();
    apply(&made.archive, &planned, None, &mut applied, &Progress::silent())
        .await
        .unwrap();
    assert!(names(&made).await.iter().all(|(kind, _)| *kind == Kind::Lease));
}

/// Makes an archive look as if all of it were three days older.
fn age(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            age(&path);
            continue;
        }
        if path.parent().is_some_and(|p| p.ends_with("snapshots")) {
            let mut record: Snapshot = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            record.started_at_us -= 3 * DAY_US;
            record.finished_at_us = record.finished_at_us.map(|at| at - 3 * DAY_US);
            assert_eq!(record.state, SnapshotState::Complete);
            fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
        }
        let file = fs::File::options().append(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::now() - Duration::from_hours(72))
            .unwrap();
    }
}

/// A real archive: what a recovery under a lease needs stays until the lease ends; what is left recovers to the server's own state.
#[tokio::test]
async fn a_recovery_under_a_lease_keeps_what_it_needs() {
    let server = Server::start(&[]).await;
    let node = Node::new(&server, "[retention]\ndaily = 1\nweekly = 0\nmonthly = 0\n");
    let agent = node.agent();
    server
        .execute(&[
            "CREATE DATABASE shop",
            "CREATE TABLE shop.t (id INT PRIMARY KEY AUTO_INCREMENT)",
        ])
        .await;
    node.wait_snapshots(1).await;
    for sealed in 1..4 {
        server
            .execute(&["INSERT INTO shop.t VALUES ()", "FLUSH LOCAL BINARY LOGS"])
            .await;
        node.wait_sealed(sealed).await;
    }
    let early = server.gtid_executed().await;
    server
        .execute(&[
            "INSERT INTO shop.t VALUES ()",
            "FLUSH LOCAL BINARY LOGS",
            "INSERT INTO shop.t VALUES ()",
        ])
        .await;
    node.wait_sealed(4).await;
    node.ok(&["snapshot"]).await;
    server.execute(&["INSERT INTO shop.t VALUES ()"]).await;
    node.wait_shipped(&server).await;
    agent.stop().await;
    age(&node.archive_dir);

    let archive = node.archive();
    let early_request = Request::new(Target::Set(early.clone()));
    let lease = Held::take(&archive).await.unwrap();
    let shown = node.json(&["prune"]).await;
    assert!(shown["plan"]["held_up"].is_string(), "{shown}");
    let planned = recovery_plan(&archive, &early_request).await.unwrap();
    let needs = LeasedPart {
        snapshot: planned.snapshot.id.clone(),
        timeline: 1,
        oldest_binlog: None,
    };
    lease.narrow(needs).await.unwrap();
    let done = node.json(&["prune", "--yes"]).await;
    assert_eq!(done["applied"]["refused"], serde_json::json!([]), "{done}");
    let (recovered, _) = node.recover("early", &["--target-gtid-set", &early.to_string()]).await;
    assert_eq!(recovered.gtid_executed().await, early);
    // That recovery's own lease has ended, and holds nothing up.
    lease.end().await.unwrap();

    let done = node.json(&["prune", "--yes"]).await;
    let kinds: Vec<&str> = done["plan"]["deletions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["kind"].as_str().unwrap())
        .collect();
    assert!(kinds.contains(&"snapshot") && kinds.contains(&"binlog"), "{done}");
    let refusal = node
        .fails(&["recover", "--dry-run", "--target-gtid-set", &early.to_string()])
        .await;
    assert!(refusal.contains("the target set lacks transactions"), "{refusal}");
    let (latest, _) = node.recover("latest", &["--latest"]).await;
    assert_eq!(latest.gtid_executed().await, server.gtid_executed().await);
    assert_eq!(node.json(&["list"]).await["gaps"], serde_json::json!([]));

    // The agent goes on with what is left, and stores nothing a second time.
    let agent = node.agent();
    server
        .execute(&[
            "INSERT INTO shop.t VALUES ()",
            "FLUSH LOCAL BINARY LOGS",
            "INSERT INTO shop.t VALUES ()",
        ])
        .await;
    node.wait_shipped(&server).await;
    agent.assert_quiet();
    // The one that was kept as the newest sealed is not that any more; those that went before it were not shipped again.
    let again = node.json(&["prune"]).await;
    let names = again["plan"]["deletions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["name"].as_str().unwrap());
    assert!(names.clone().all(|name| name.starts_with("binlog.000004 ")), "{again}");
}

/// Segments are the second chance of a binlog until it is sealed in every bucket: this region's, and the other one's.
#[tokio::test]
async fn segments_stay_until_the_other_region_has_the_sealed_binlog() {
    let (made, far) = (simple(), Made::new());
    made.tail(1, 1, 4, gtids(1, 1, 30), &run(1, 31, 40));
    let shard = made.archive.shard.clone();
    let segments = async |replica: &Archive| {
        let holdings = Holdings::of(&made.archive).await.unwrap().beside(replica).await;
        let planned = plan(&shard, &holdings, &one_day(), later()).unwrap();
        let gone = planned.deletions.iter().filter(|d| d.kind == Kind::Segments).count();
        (gone, planned.warnings)
    };
    assert_eq!(segments(&far.archive).await, (0, Vec::new()), "the other region has nothing");
    let sealed = far.sealed(1, 1, 4, gtids(1, 1, 30), &run(1, 31, 40));
    assert_eq!(segments(&far.archive).await.0, 1);
    far.damage(&sealed);
    assert_eq!(segments(&far.archive).await.0, 0, "it is not the same");
    far.sealed(1, 1, 4, gtids(1, 1, 30), &run(1, 31, 40));
    far.remove(&format!("{sealed}.json"));
    assert_eq!(segments(&far.archive).await.0, 0, "without its manifest it does not exist");

    // Its disk is not mounted.
    fs::remove_dir_all(far.dir.path()).unwrap();
    let (gone, warnings) = segments(&far.archive).await;
    assert!(
        gone == 0 && warnings.len() == 1 && warnings[0].contains("segments stay"),
        "{warnings:?}"
    );
}
