//! Snapshots of volumes, by seed: agents die anywhere, answers are lost or late, EC2 forgets what it has just made. In the end every snapshot
//! is complete in both regions or leaves nothing behind; none is made twice, none is orphaned.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use mysql_pitr::{
    archive::{
        keys,
        listing::Archive,
        records::{Snapshot, SnapshotState, Step},
    },
    binlog::gtid::GtidSet,
    snapshot::{
        take::new_id,
        turn::Turns,
        volumes::{
            is_open,
            onward::{Went, onward},
        },
    },
    store::Put,
    support::{clock::Clock, progress::Progress, retry::seed_jitter},
    volume::{
        cloud::{Cause, Cloud, CloudError, Made, MadeState, OPERATION_TAG, Order, SOURCE_TAG, Subject, Tags, VolumeFacts},
        marks::{self, SHARD_TAG},
    },
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::support::{
    faulty_store::{Faults, FaultyStore},
    memory_store::MemoryStore,
    volume_record::{BEGIN_US, started},
};

const HOME: &str = "eu-west-1";
const AWAY: &str = "eu-central-1";
const SEEDS: u64 = 100;
/// What EC2 made is not found for so long, and a request that was not answered takes effect so late, at most.
const FORGETS_MS: u64 = 5_000;
const LATE_MS: u64 = 60_000;
/// What the ids begin with of copies that others made.
const POLICYS: &str = "snap-policy-";

#[derive(Debug)]
struct SimClock(Instant);

impl Clock for SimClock {
    fn now_us(&self) -> i64 {
        BEGIN_US + i64::try_from(self.0.elapsed().as_micros()).unwrap()
    }
}

#[derive(Debug, Clone)]
struct Ec2Snapshot {
    made: Made,
    /// When it is there, is found, and is done.
    exists_at: Instant,
    found_at: Instant,
    done_at: Instant,
    fails: bool,
}

#[derive(Debug)]
struct World {
    random: SmallRng,
    /// By region.
    snapshots: BTreeMap<String, Vec<Ec2Snapshot>>,
    next: u32,
    /// How many of these others made, by region.
    policys: BTreeMap<String, usize>,
    /// Until then EC2 is not itself.
    troubled_until: Instant,
}

/// EC2, for one shard.
#[derive(Debug, Clone)]
struct FakeEc2(Arc<Mutex<World>>);

enum Fate {
    Served,
    Refused(Cause),
    /// Carried out, and not answered.
    Lost {
        late: Duration,
    },
}

fn error(cause: Cause) -> CloudError {
    CloudError {
        cause,
        error: anyhow::anyhow!("simulated: {cause:?}"),
    }
}

impl FakeEc2 {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    async fn fate(&self) -> Fate {
        let (roll, latency, late) = {
            let mut world = self.world();
            let is_troubled = Instant::now() < world.troubled_until;
            let roll = if is_troubled { world.random.random_range(0..100) } else { 100 };
            let latency = world.random.random_range(1..3_000);
            (roll, latency, world.random.random_range(0..LATE_MS))
        };
        sleep(Duration::from_millis(latency)).await;
        match roll {
            0..8 => Fate::Refused(Cause::Refused),
            8..14 => Fate::Refused(Cause::Throttled),
            14..20 => Fate::Refused(Cause::Unanswered),
            20..30 => Fate::Lost { late: Duration::ZERO },
            30..38 => Fate::Lost {
                late: Duration::from_millis(late),
            },
            _ => Fate::Served,
        }
    }

    fn make(&self, region: &str, volume_id: &str, description: &str, tags: &Tags, late: Duration) -> Made {
        let mut world = self.world();
        world.next += 1;
        let made = Made {
            snapshot_id: format!("snap-{:04}", world.next),
            volume_id: volume_id.to_owned(),
            description: description.to_owned(),
            started_at_us: None,
            state: MadeState::Pending,
            percent: Some(0),
            encrypted: None,
            kms_key: None,
            tags: tags.clone(),
        };
        let exists_at = Instant::now() + late;
        let found_at = exists_at + Duration::from_millis(world.random.random_range(0..FORGETS_MS));
        let done_at = exists_at + Duration::from_secs(world.random.random_range(0..400));
        let fails = world.random.random_ratio(1, 12);
        let number = world.next;
        let is_copied = world.random.random_ratio(1, 4);
        *world.policys.entry(region.to_owned()).or_default() += usize::from(is_copied);
        let there = world.snapshots.entry(region.to_owned()).or_default();
        let ours = Ec2Snapshot {
            made: made.clone(),
            exists_at,
            found_at,
            done_at,
            fails,
        };
        // A lifecycle policy copies it at once, with its tags.
        let mut policys = ours.clone();
        policys.made.snapshot_id = format!("{POLICYS}{number:04}");
        policys.made.volume_id = "vol-ffffffff".to_owned();
        policys.made.description = format!("[Copied {} from {region}]", made.snapshot_id);
        there.extend(is_copied.then_some(policys));
        there.push(ours);
        made
    }

    /// What is there, as it stands.
    fn all(&self, region: &str) -> Vec<Made> {
        let world = self.world();
        let now = Instant::now();
        let there = world
            .snapshots
            .get(region)
            .into_iter()
            .flatten()
            .filter(|s| s.exists_at <= now);
        there.map(|s| as_it_stands(s, now)).collect()
    }
}

fn as_it_stands(s: &Ec2Snapshot, now: Instant) -> Made {
    let state = match (now >= s.done_at, s.fails) {
        (false, _) => MadeState::Pending,
        (true, true) => MadeState::Failed("simulated".into()),
        (true, false) => MadeState::Complete,
    };
    Made { state, ..s.made.clone() }
}

#[async_trait]
impl Cloud for FakeEc2 {
    async fn home_region(&self) -> anyhow::Result<String> {
        Ok(HOME.to_owned())
    }

    async fn machine(&self) -> Option<String> {
        None
    }

    async fn facts(&self, _volumes: &[String]) -> Result<Vec<VolumeFacts>, CloudError> {
        Ok(Vec::new())
    }

    async fn order(&self, _volumes: &[VolumeFacts]) -> Result<Order, CloudError> {
        Ok(Order::One("vol-1".into()))
    }

    async fn rehearse(&self, _order: &Order) -> Result<(), CloudError> {
        Ok(())
    }

    async fn create(&self, _order: &Order, subject: &Subject, limit: Duration) -> Result<Vec<Made>, CloudError> {
        let made = async {
            let all = |late| {
                subject
                    .volumes
                    .iter()
                    .map(|v| self.make(HOME, v, &subject.description, &subject.tags, late))
                    .collect()
            };
            match self.fate().await {
                Fate::Refused(cause) => Err(error(cause)),
                Fate::Lost { late } => {
                    let _: Vec<Made> = all(late);
                    Err(error(Cause::Unanswered))
                }
                Fate::Served => Ok(all(Duration::ZERO)),
            }
        };
        timeout(limit, made).await.unwrap_or_else(|_| Err(error(Cause::Unanswered)))
    }

    async fn find(&self, region: &str, operation: &str) -> Result<Vec<Made>, CloudError> {
        if let Fate::Refused(cause) = self.fate().await {
            return Err(error(cause));
        }
        let (world, now) = (self.world(), Instant::now());
        let known = world
            .snapshots
            .get(region)
            .into_iter()
            .flatten()
            .filter(|s| s.found_at <= now);
        let of_it = known.filter(|s| s.made.tags.get(OPERATION_TAG).is_some_and(|o| o == operation));
        Ok(of_it.map(|s| as_it_stands(s, now)).collect())
    }

    async fn copy(&self, snapshot_id: &str, region: &str, tags: &Tags) -> Result<String, CloudError> {
        let source = self.all(HOME).into_iter().find(|m| m.snapshot_id == snapshot_id);
        assert!(
            source.is_some_and(|m| m.state == MadeState::Complete),
            "{snapshot_id} cannot be copied"
        );
        let mut tags = tags.clone();
        tags.insert(SOURCE_TAG.to_owned(), snapshot_id.to_owned());
        let description = marks::copy_description(snapshot_id, HOME);
        let make = |late| self.make(region, "vol-ffffffff", &description, &tags, late);
        match self.fate().await {
            Fate::Refused(cause) => Err(error(cause)),
            Fate::Lost { late } => {
                make(late);
                Err(error(Cause::Unanswered))
            }
            Fate::Served => Ok(make(Duration::ZERO).snapshot_id),
        }
    }

    async fn of_shard(&self, _region: &str, _shard: &str) -> Result<Vec<Made>, CloudError> {
        unreachable!("the agent asks for its operations only")
    }

    async fn named(&self, _region: &str, _snapshot_ids: &[String]) -> Result<Vec<Made>, CloudError> {
        unreachable!("the agent asks for its operations only")
    }

    async fn rehearse_delete(&self, _region: &str, _snapshot_id: &str) -> Result<(), CloudError> {
        unreachable!("the agent deletes at once")
    }

    async fn delete(&self, region: &str, snapshot_id: &str) -> Result<(), CloudError> {
        let fate = self.fate().await;
        if let Fate::Refused(cause) = fate {
            return Err(error(cause));
        }
        let mut world = self.world();
        world
            .snapshots
            .entry(region.to_owned())
            .or_default()
            .retain(|s| s.made.snapshot_id != snapshot_id);
        match fate {
            Fate::Served => Ok(()),
            _ => Err(error(Cause::Unanswered)),
        }
    }
}

/// As the agent that takes one does, up to the thaw; it may die anywhere.
async fn begin(archive: &Archive, ec2: &FakeEc2, id: &str) -> anyhow::Result<()> {
    let key = keys::snapshot_key(&archive.shard, id);
    let mut record = started(id, &["vol-1", "vol-2"], &[HOME, AWAY]);
    archive.put_record(&key, &record, Put::IfAbsent).await?;
    let (_, version) = archive.record::<Snapshot>(&key).await?;
    let tags =
        Tags::from([(SHARD_TAG, archive.shard.to_string()), (OPERATION_TAG, id.to_owned())].map(|(k, v)| (k.to_owned(), v)));
    let subject = Subject {
        volumes: record.volumes.iter().map(|v| v.volume_id.clone()).collect(),
        tags,
        description: marks::description(&archive.shard.to_string(), id),
    };
    // What is not answered in time is left to whoever goes on: as if the agent had died.
    let made = ec2
        .create(&Order::One("vol-1".into()), &subject, Duration::from_secs(2))
        .await?;
    record.step = Some(Step::Created);
    record.gtids_after = Some(GtidSet::new());
    for (volume, made) in record.volumes.iter_mut().zip(&made) {
        volume.copies[0].snapshot_id = Some(made.snapshot_id.clone());
    }
    archive.put_record(&key, &record, Put::IfMatch(version)).await?;
    Ok(())
}

/// One agent's life.
async fn agent(archive: &Archive, ec2: &FakeEc2, server: Uuid, id: &str) {
    let turns = Turns::new(archive.clone(), Duration::from_secs(60));
    loop {
        sleep(Duration::from_secs(5)).await;
        let Ok(Some(turn)) = turns.take(server).await else { continue };
        let work = async { while let Ok(Went::On(_)) = onward(archive, ec2, id, &Progress::silent()).await {} };
        tokio::select! {
            () = work => {}
            () = turn.lost() => {}
        }
        turn.give_back().await;
    }
}

async fn run(seed: u64) -> SnapshotState {
    seed_jitter(seed);
    let mut random = SmallRng::seed_from_u64(seed);
    let begin_at = Instant::now();
    let store = FaultyStore::new(Arc::new(MemoryStore::default()), seed);
    let archive_of = |store: FaultyStore| Archive {
        store: Arc::new(store),
        shard: "s".to_owned().try_into().unwrap(),
        clock: Arc::new(SimClock(begin_at)),
    };
    let ec2 = FakeEc2(Arc::new(Mutex::new(World {
        random: SmallRng::seed_from_u64(seed ^ 0x5eed),
        snapshots: BTreeMap::new(),
        next: 0,
        policys: BTreeMap::new(),
        troubled_until: begin_at + Duration::from_secs(random.random_range(0..3_000)),
    })));
    store.set(Faults {
        before: 30,
        after: 30,
        hang: 5,
        throttle: 20,
        stale: 0,
        latency_ms_max: 300,
    });
    let id = new_id();
    let taker = store.another();
    let life = Duration::from_millis(random.random_range(0..6_000));
    let _ = timeout(life, begin(&archive_of(taker.clone()), &ec2, &id)).await;
    taker.kill();
    let watcher = archive_of(store.another());
    let key = keys::snapshot_key(&watcher.shard, &id);
    // Several agents, one after the other and at the same time; each dies soon, the last one lives.
    for _ in 0..random.random_range(0..6) {
        let (one, other) = (store.another(), store.another());
        let lives = [0, 1].map(|_| Duration::from_millis(random.random_range(0..200_000)));
        let (first, second) = (archive_of(one.clone()), archive_of(other.clone()));
        let _ = tokio::join!(
            timeout(lives[0], agent(&first, &ec2, Uuid::from_u128(1), &id)),
            timeout(lives[1], agent(&second, &ec2, Uuid::from_u128(2), &id))
        );
        one.kill();
        other.kill();
    }
    store.set(Faults::default());
    let exists = watcher.record::<Snapshot>(&key).await.is_ok();
    let last = archive_of(store.another());
    let settled = async {
        let is_settled = async || !exists || !is_open(&watcher.record::<Snapshot>(&key).await.unwrap().0);
        while !is_settled().await {
            sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        () = agent(&last, &ec2, Uuid::from_u128(3), &id) => unreachable!("an agent goes on"),
        done = timeout(Duration::from_hours(24), settled) => done.unwrap_or_else(|_| panic!("seed {seed}: still open")),
    }
    // What is late is there by now.
    sleep(Duration::from_millis(LATE_MS + FORGETS_MS)).await;
    let ours = |region: &str| ec2.all(region).into_iter().filter(|m| !m.snapshot_id.starts_with(POLICYS));
    let left = |region: &str| -> Vec<String> { ours(region).map(|m| m.snapshot_id).collect() };
    let policys = ec2.world().policys.clone();
    for (region, count) in &policys {
        let there = ec2.all(region).len() - left(region).len();
        assert_eq!(there, *count, "seed {seed}, {region}: what others copied is theirs");
    }
    if !exists {
        assert_eq!(
            (left(HOME), left(AWAY)),
            (Vec::new(), Vec::new()),
            "seed {seed}: nobody knows of these"
        );
        return SnapshotState::Failed;
    }
    let (record, _) = watcher.record::<Snapshot>(&key).await.unwrap();
    let named = |region: &str| -> Vec<String> {
        let copies = record.volumes.iter().flat_map(|v| &v.copies).filter(|c| c.region == region);
        let mut ids: Vec<String> = copies.filter_map(|c| c.snapshot_id.clone()).collect();
        ids.sort();
        ids
    };
    match record.state {
        SnapshotState::Complete => {
            for region in [HOME, AWAY] {
                let mut there = left(region);
                there.sort();
                assert_eq!(there, named(region), "seed {seed}, {region}: {record:?}");
                assert_eq!(there.len(), 2, "seed {seed}, {region}");
                assert!(ours(region).all(|m| m.state == MadeState::Complete), "seed {seed}");
                assert!(record.volumes.iter().all(|v| v.complete_in(region).is_some()), "seed {seed}");
            }
        }
        SnapshotState::Failed => {
            assert_eq!(
                (left(HOME), left(AWAY)),
                (Vec::new(), Vec::new()),
                "seed {seed}: orphans of {record:?}"
            );
        }
        SnapshotState::Started => panic!("seed {seed}: {record:?}"),
    }
    record.state
}

#[tokio::test(start_paused = true)]
async fn none_is_made_twice_and_none_is_orphaned() {
    let mut ends = BTreeMap::new();
    for seed in 0..SEEDS {
        *ends.entry(format!("{:?}", run(seed).await)).or_insert(0u32) += 1;
    }
    // The seeds go both ways.
    assert!(
        ends.get("Complete").is_some_and(|n| *n > 10) && ends.get("Failed").is_some_and(|n| *n > 10),
        "{ends:?}"
    );
}

/// A turn is taken over from whoever is silent for a term, and not before; given back, it is free at once.
#[tokio::test(start_paused = true)]
async fn a_turn_ends_with_its_holder() {
    let archive = Archive {
        store: Arc::new(MemoryStore::default()),
        shard: "s".to_owned().try_into().unwrap(),
        clock: Arc::new(SimClock(Instant::now())),
    };
    let term = Duration::from_secs(60);
    let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let turns = |_| Turns::new(archive.clone(), term);
    let (of_a, of_b, of_next_a) = (turns(()), turns(()), turns(()));
    let held = of_a.take(a).await.unwrap().unwrap();
    let wait = async |turns: &Turns, server| {
        let begun = Instant::now();
        loop {
            match turns.take(server).await.unwrap() {
                Some(held) => return (held, begun.elapsed()),
                None => sleep(Duration::from_secs(1)).await,
            }
        }
    };
    // Renewed, it stays.
    assert!(timeout(term * 5, wait(&of_b, b)).await.is_err());
    drop(held);
    let (held, waited) = wait(&of_b, b).await;
    assert!(waited >= term * 5 / 6 && waited < term * 2, "{waited:?}");
    held.give_back().await;
    let held = of_a.take(a).await.unwrap().expect("it is free");
    // The server's next agent needs not wait: its former one is dead.
    let next = of_next_a.take(a).await.unwrap().expect("it is the same server's");
    timeout(term, held.lost()).await.expect("the former one notices");
    drop(next);
}
