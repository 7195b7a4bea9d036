//! One seed: a server that lives through everything, an agent that is killed and started again, a store and a network that fail.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use mysql_pitr::{
    archive::{
        codec::Codec,
        keys::{self, Shard},
        listing::Archive,
        path,
        records::{FORMAT_VERSION, Provider, Snapshot, SnapshotState},
    },
    mysql::server::Server,
    orchestrator::Role,
    ship::{Settings, Shipper, Status, catalog::Catalog, standing::Standing, timeline_of},
    store::{Put, SharedStore},
    support::retry::seed_jitter,
};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tracing::info;

use super::{
    connection::Link,
    oracle::{self, Stored},
    server::{Backup, FakeClock, FakeServer},
};
use crate::support::{
    faulty_store::{Faults, FaultyStore},
    memory_store::MemoryStore,
};

const STEPS: u32 = 30;
/// Nothing is recovered from it.
const SNAPSHOT_DATA: &[u8] = b"data";
/// As the daemon's.
const STOP_PATIENCE: Duration = Duration::from_secs(15);
/// The agent's longest waits: a store's call, its patience with a PUT, the pause between two rounds; then some.
pub const RECOVERS_WITHIN: Duration = Duration::from_secs(150);
/// i12: a connection that is not read for longer keeps the server from purging.
const UNREAD_MAX: Duration = Duration::from_secs(100);
/// i11: four segments, one streamed, one sealed, one record; of the round that ends and the one that begins.
const WRITES_AT_ONCE_MAX: usize = 14;

/// What became of a run.
pub type Outcome = anyhow::Result<()>;

pub struct Agent {
    pub task: JoinHandle<()>,
    /// Its other tasks, and who watches it.
    pub beside: Vec<JoinHandle<()>>,
    pub stop: watch::Sender<bool>,
    pub store: FaultyStore,
    pub link: Link,
}

impl Agent {
    /// The process is gone at once, with its connections and threads.
    pub fn kill(self) {
        self.store.kill();
        self.link.kill();
        self.task.abort();
        self.beside.iter().for_each(JoinHandle::abort);
    }

    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let _ = timeout(STOP_PATIENCE, &mut self.task).await;
        self.kill();
    }
}

pub struct World {
    random: SmallRng,
    clock: Arc<FakeClock>,
    server: Arc<FakeServer>,
    memory: MemoryStore,
    store: FaultyStore,
    link: Link,
    shard: Shard,
    settings: Settings,
    standing: watch::Sender<Standing>,
    state_disk: u32,
    catalog: Arc<Catalog>,
    agent: Option<Agent>,
    backup: Option<Backup>,
    /// What a watcher found to be wrong, first of all.
    fault: Arc<Mutex<Option<String>>>,
}

fn standing(is_writable: bool) -> Standing {
    Standing {
        role: if is_writable { Role::Primary } else { Role::Replica },
        writable: Some(is_writable),
        takes_snapshots: is_writable,
        standalone: true,
        ..Standing::default()
    }
}

/// Lives one seed through.
pub async fn run(seed: u64) -> Outcome {
    seed_jitter(seed);
    let mut world = World::begin(seed);
    world.start_agent();
    for step in 0..STEPS {
        world.step(step).await;
        world.look()?;
    }
    world.heal().await;
    world.check().await
}

impl World {
    fn begin(seed: u64) -> World {
        let mut random = SmallRng::seed_from_u64(seed);
        let clock = FakeClock::begin();
        let server = FakeServer::start(random.random(), clock.clone());
        let memory = MemoryStore::default();
        let settings = some_settings(&mut random);
        info!(target: "sim", ?settings);
        let mut world = World {
            store: FaultyStore::new(Arc::new(memory.clone()), random.random()),
            link: Link::new(server.clone(), random.random()),
            clock,
            server,
            memory,
            shard: "sim".to_owned().try_into().unwrap(),
            settings,
            standing: watch::Sender::new(standing(true)),
            state_disk: 0,
            catalog: Arc::new(Catalog::open(Path::new(":memory:"))),
            agent: None,
            backup: None,
            fault: Arc::default(),
            random,
        };
        world.new_state_file();
        world
    }

    fn archive(&self, store: SharedStore) -> Archive {
        Archive {
            store,
            shard: self.shard.clone(),
            clock: self.clock.clone(),
        }
    }

    /// The archive without a fault.
    fn truth(&self) -> Archive {
        self.archive(Arc::new(self.memory.clone()))
    }

    fn new_state_file(&mut self) {
        self.state_disk += 1;
        let id = self.server.state().uuid;
        self.catalog = Arc::new(Catalog::open(Path::new(&format!(
            "file:{id}-{}?mode=memory&cache=shared",
            self.state_disk
        ))));
    }

    fn start_agent(&mut self) {
        let (store, link) = (self.store.another(), self.link.another());
        let (stop, stopped) = watch::channel(false);
        let shipper = Shipper {
            archive: self.archive(Arc::new(store.clone())),
            server: Arc::new(link.clone()),
            standing: self.standing.subscribe(),
            catalog: self.catalog.clone(),
            settings: self.settings.clone(),
            status: watch::Sender::new(Status::default()),
            snapshot_wanted: Arc::new(Notify::new()),
            ask_again: Arc::new(Notify::new()),
            short_of_disk: watch::channel(false).1,
        };
        let watching = tokio::spawn(watch_watermark(
            shipper.status.subscribe(),
            self.server.clone(),
            self.memory.clone(),
            self.shard.clone(),
            self.fault.clone(),
        ));
        let snapshots = tokio::spawn(take_snapshots(
            shipper.archive.clone(),
            link.clone(),
            watch::Sender::new(standing(true)).subscribe(),
            shipper.snapshot_wanted.clone(),
        ));
        info!(target: "sim", "agent: starts");
        self.agent = Some(Agent {
            task: tokio::spawn(async move { shipper.run(stopped).await }),
            beside: vec![snapshots, watching],
            stop,
            store,
            link,
        });
    }

    async fn step(&mut self, step: u32) {
        let roll = self.random.random_range(0..100);
        let is_up = self.server.state().is_up;
        let is_writable = self.standing.borrow().is_writable();
        info!(target: "sim", "step {step}");
        match roll {
            _ if !is_up => {
                info!(target: "sim", "server: starts");
                self.server.start_again();
            }
            0..40 if is_writable => {
                let transactions = *[1, 1, 2, 3, 10].choose(&mut self.random).unwrap();
                self.server.commit(transactions);
                info!(target: "sim", "server: committed {transactions}, has {}", self.server.state().executed);
            }
            40..50 => self.server.flush(),
            50..53 => {
                info!(target: "sim", "server: shuts down");
                self.server.shut_down();
                if self.random.random_bool(0.5) {
                    self.backup = Some(self.server.backup());
                    info!(target: "sim", "operator: copies the data folder");
                }
            }
            53..57 => {
                let lost = self.random.random_range(0..4);
                info!(target: "sim", "server: is killed, and loses {lost}");
                let stored = Stored::look(&self.memory, &self.shard);
                self.server.kill(lost, |file| stored.end_of(file));
                info!(target: "sim", "server: has {}", self.server.state().executed);
            }
            57..58 => {
                info!(target: "sim", "server: is killed, and loses a file");
                let stored = Stored::look(&self.memory, &self.shard);
                self.server.kill_losing_a_file(|file| stored.end_of(file));
            }
            58..61 => {
                let stored = Stored::look(&self.memory, &self.shard);
                let files = self.random.random_range(1..6);
                let gone = self.server.purge(files, |file| stored.end_of(file));
                info!(target: "sim", "server: purged {gone}");
            }
            61..63 => {
                info!(target: "sim", "server: RESET");
                self.server.reset();
                if self.random.random_bool(0.3) {
                    self.server.commit(1);
                    self.server.reset();
                }
                self.server.commit(self.random.random_range(0..3));
            }
            63..65 => {
                self.backup = Some(self.server.backup());
                info!(target: "sim", "operator: copies the data folder");
            }
            65..67 => {
                if let Some(backup) = &self.backup {
                    info!(target: "sim", "operator: puts the copy back");
                    self.server.restore(backup);
                    info!(target: "sim", "server: has {}", self.server.state().executed);
                }
            }
            67..76 => self.agent_dies().await,
            76..80 => {
                info!(target: "sim", "server: writable: {}", !is_writable);
                self.standing.send_replace(standing(!is_writable));
            }
            80..90 => self.new_weather(),
            90..92 => {
                let us = self.random.random_range(-3_000_000..3_000_000);
                info!(target: "sim", "the clock steps by {us} µs");
                self.clock.step(us);
            }
            _ => {}
        }
        let ms = match self.random.random_range(0..10) {
            0..4 => self.random.random_range(0..5),
            4..9 => self.random.random_range(0..3000),
            _ => self.random.random_range(3_000..130_000),
        };
        sleep(Duration::from_millis(ms)).await;
    }

    async fn agent_dies(&mut self) {
        let Some(agent) = self.agent.take() else {
            self.start_agent();
            return;
        };
        if self.random.random_bool(0.7) {
            info!(target: "sim", "agent: is killed");
            agent.kill();
        } else {
            info!(target: "sim", "agent: is stopped");
            agent.stop().await;
        }
        match self.random.random_range(0..6) {
            0 => self.new_state_file(),
            1 => {
                info!(target: "sim", "the state disk is full");
                self.catalog = Arc::new(Catalog::open(Path::new("/nonexistent/state.db")));
            }
            _ => {}
        }
        if self.random.random_bool(0.7) {
            self.start_agent();
        }
    }

    fn new_weather(&mut self) {
        let (faults, breaks) = some_weather(&mut self.random);
        self.store.set(faults);
        self.link.set_breaks(breaks);
    }

    /// What must be so at any time.
    fn look(&self) -> Outcome {
        if let Some(fault) = self.fault.lock().unwrap().take() {
            anyhow::bail!(fault);
        }
        for (id, stream) in &self.server.state().streams {
            let unread = stream.read_at.elapsed();
            ensure!(
                stream.is_reading || unread < UNREAD_MAX,
                "i12: stream {id} was not read for {unread:?}"
            );
        }
        let writes = self.store.writing_max();
        ensure!(writes <= WRITES_AT_ONCE_MAX, "i11: {writes} writes at once");
        Ok(())
    }

    /// Faults stop, and the agent has time.
    async fn heal(&mut self) {
        info!(target: "sim", "all faults stop");
        self.store.set(Faults::default());
        self.link.set_breaks(0);
        if !self.server.state().is_up {
            self.server.start_again();
        }
        self.standing.send_replace(standing(true));
        if self.agent.is_none() {
            self.start_agent();
        }
        self.server.commit(1);
        sleep(RECOVERS_WITHIN).await;
    }

    async fn check(&mut self) -> Outcome {
        self.look()?;
        let archive = self.truth();
        let timelines = archive.timelines().await?;
        oracle::timelines_have_causes(&timelines, &self.server)?;
        oracle::no_byte_is_wrong(&archive, &self.memory, &self.server).await?;
        oracle::the_path_is_the_servers_history(&archive, &self.server, &[]).await?;
        oracle::closed_binlogs_are_sealed(&Stored::look(&self.memory, &self.shard), &self.server)?;
        oracle::nothing_was_changed(&self.memory)?;
        ensure!(self.agent.as_ref().is_some_and(|a| !a.task.is_finished()), "the agent died");
        Ok(())
    }
}

pub fn some_settings(random: &mut SmallRng) -> Settings {
    Settings {
        flush_interval: Duration::from_millis(*[100, 1000].choose(random).unwrap()),
        segment_bytes: *[2_000, 65_536, 8 << 20].choose(random).unwrap(),
        backlog_workers: random.random_range(1..=4),
        codec: *[Codec::None, Codec::Gzip, Codec::Zstd].choose(random).unwrap(),
    }
}

/// What the store does, and how many of 1000 reads from the server break.
pub fn some_weather(random: &mut SmallRng) -> (Faults, u32) {
    let calm = Faults {
        latency_ms_max: 20,
        ..Faults::default()
    };
    let faults = match random.random_range(0..6) {
        0 | 1 => Faults {
            before: 50,
            after: 50,
            throttle: 50,
            stale: 100,
            ..calm
        },
        2 => Faults {
            before: 300,
            after: 300,
            hang: 100,
            throttle: 200,
            stale: 500,
            latency_ms_max: 2000,
        },
        3 => Faults { before: 1000, ..calm },
        4 => Faults { hang: 1000, ..calm },
        _ => calm,
    };
    let breaks = *[0, 5, 50, 300].choose(random).unwrap();
    info!(target: "sim", ?faults, breaks, "the weather changes");
    (faults, breaks)
}

/// A watermark's file. The server gives a name again after a RESET, and the agent may go on speaking of the old file for a while: that one's
/// timeline is another.
#[derive(PartialEq, Eq)]
struct Watermarked {
    name: String,
    timeline: Option<u32>,
    namesakes: usize,
    replaced: u32,
}

/// i3: what the agent says is durable, is, and it never takes that back.
async fn watch_watermark(
    mut status: watch::Receiver<Status>,
    server: Arc<FakeServer>,
    store: MemoryStore,
    shard: Shard,
    fault: Arc<Mutex<Option<String>>>,
) {
    let mut last: Option<(Watermarked, u64)> = None;
    while status.changed().await.is_ok() {
        let (timeline, durable) = {
            let status = status.borrow_and_update();
            (status.timeline, status.durable.clone())
        };
        let Some((name, position)) = durable else {
            continue;
        };
        if last.as_ref().is_some_and(|(of, at)| (&of.name, *at) == (&name, position)) {
            continue;
        }
        let end = Stored::look(&store, &shard).end_of_name(&name);
        let mut wrong = None;
        let state = server.state();
        let mut files = state.inodes.iter().filter(|i| i.name == name);
        if end < position && files.all(|i| i.needs_storing_before(position)) {
            wrong = Some(format!(
                "i3: {name} is said to be stored up to {position}, and is up to {end}"
            ));
        }
        // Of what a crash took back nothing is stored for the server any more, and of what needs no storing nothing is lost.
        let file = state.find(&name).map(|inode| &state.inodes[inode]);
        let is_kept = |at: u64| file.is_some_and(|f| at <= f.bytes as u64 && f.needs_storing_before(at));
        let of = Watermarked {
            namesakes: state.inodes.iter().filter(|i| i.name == name).count(),
            replaced: state.replaced,
            timeline,
            name,
        };
        if let Some((before, at)) = &last
            && *before == of
            && position < *at
            && is_kept(*at)
        {
            let name = &of.name;
            wrong = Some(format!("i3: the watermark of {name} went back from {at} to {position}"));
        }
        drop(state);
        if let Some(wrong) = wrong {
            fault.lock().unwrap().get_or_insert(wrong);
        }
        last = Some((of, position));
    }
}

/// Stands in for the agent's other task: a path without a snapshot gets one.
pub async fn take_snapshots(archive: Archive, link: Link, standing: watch::Receiver<Standing>, wanted: Arc<Notify>) {
    loop {
        wanted.notified().await;
        while let Err(e) = take_first(&archive, &link, &standing).await {
            info!(target: "sim", "snapshots: {e:#}");
            sleep(Duration::from_secs(5)).await;
        }
    }
}

async fn take_first(archive: &Archive, link: &Link, standing: &watch::Receiver<Standing>) -> anyhow::Result<()> {
    let state = link.look().await?;
    let timelines = archive.timelines().await?;
    let Some(tip) = path::tip(&timelines).filter(|t| t.server_uuid == state.server_uuid) else {
        return Ok(());
    };
    let path = path::Path::find(&timelines, Some(tip.id))?;
    if archive.snapshots().await?.iter().any(|s| path.has(s)) {
        return Ok(());
    }
    let seen = standing.borrow().clone();
    let timeline = timeline_of(archive, link, &seen).await?.id;
    let gtids = link.look().await?.gtid_executed;
    let replaced = link.server.state().replaced;
    // What `take` does not notice either: a RESET between those two looks.
    ensure!(
        timeline_of(archive, link, &seen).await?.id == timeline,
        "the timeline changed meanwhile"
    );
    ensure!(replaced == link.server.state().replaced, "the history changed meanwhile");
    let id = format!("snapshot-{timeline:08}-{:020}", archive.clock.now_us());
    let record = Snapshot {
        format: FORMAT_VERSION,
        id: id.clone(),
        state: SnapshotState::Complete,
        provider: Provider::Clone,
        timeline,
        server_uuid: state.server_uuid,
        server_version: String::new(),
        started_at_us: archive.clock.now_us(),
        finished_at_us: Some(archive.clock.now_us()),
        gtids_before: gtids.clone(),
        gtids_after: Some(gtids),
        errant: Default::default(),
        variables: std::collections::BTreeMap::new(),
        data_key: keys::snapshot_data_key(&archive.shard, &id, Codec::None),
        data_bytes: SNAPSHOT_DATA.len() as u64,
        stored_bytes: SNAPSHOT_DATA.len() as u64,
        stored_sha256: String::new(),
        failure: None,
        step: None,
        volumes: Vec::new(),
        locked_us: None,
    };
    archive
        .store
        .put(&record.data_key, Bytes::from_static(SNAPSHOT_DATA), Put::IfAbsent)
        .await?;
    archive
        .put_record(&keys::snapshot_key(&archive.shard, &id), &record, Put::IfAbsent)
        .await
        .context("cannot store a snapshot")?;
    info!(target: "sim", "snapshots: took {id} with {}", record.gtids_before);
    Ok(())
}
