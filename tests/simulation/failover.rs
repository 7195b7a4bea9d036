//! One seed with two servers: one is promoted in the other's place, by Orchestrator's word or an operator's, early or late. A deposed one may
//! come back, and be written to.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::ensure;
use mysql_pitr::{
    archive::{keys::Shard, listing::Archive, path},
    orchestrator::Role,
    ship::{
        Settings, Shipper, Status,
        adopt::{Adoption, adopt},
        catalog::Catalog,
        standing::Standing,
    },
    store::SharedStore,
    support::retry::seed_jitter,
};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};
use tracing::info;

use super::{
    connection::Link,
    oracle,
    server::{FakeClock, FakeServer},
    world::{Agent, Outcome, RECOVERS_WITHIN, some_settings, some_weather, take_snapshots},
};
use crate::support::{
    faulty_store::{Faults, FaultyStore},
    memory_store::MemoryStore,
};

const STEPS: u32 = 30;

/// A server and its agent.
struct Node {
    server: Arc<FakeServer>,
    link: Link,
    store: FaultyStore,
    standing: watch::Sender<Standing>,
    catalog: Arc<Catalog>,
    agent: Option<Agent>,
    /// It has transactions that the primary lacks, and replicates no more.
    diverged: bool,
}

fn standing(is_writable: bool, confirmed: bool) -> Standing {
    Standing {
        role: if is_writable { Role::Primary } else { Role::Replica },
        confirmed_by: confirmed.then(|| "orchestrator".to_owned()),
        writable: Some(is_writable),
        takes_snapshots: is_writable,
        ..Standing::default()
    }
}

struct Failovers {
    random: SmallRng,
    clock: Arc<FakeClock>,
    memory: MemoryStore,
    shard: Shard,
    settings: Settings,
    nodes: [Node; 2],
    primary: usize,
}

pub async fn run(seed: u64) -> Outcome {
    seed_jitter(seed);
    let mut world = Failovers::begin(seed);
    for node in 0..2 {
        world.start_agent(node);
    }
    // A server that has executed nothing descends from nobody, and the first primary claims the root before anybody else is confirmed.
    world.commit(0, 1);
    world.replicate(1);
    sleep(Duration::from_secs(5)).await;
    for step in 0..STEPS {
        info!(target: "sim", "step {step}");
        world.step().await;
    }
    world.heal().await?;
    world.check().await
}

impl Failovers {
    fn begin(seed: u64) -> Failovers {
        let mut random = SmallRng::seed_from_u64(seed);
        let clock = FakeClock::begin();
        let memory = MemoryStore::default();
        let first = FakeServer::start(random.random(), clock.clone());
        let second = first.replica(random.random());
        let mut node = |server: Arc<FakeServer>, is_primary| Node {
            link: Link::new(server.clone(), random.random()),
            store: FaultyStore::new(Arc::new(memory.clone()), random.random()),
            standing: watch::Sender::new(standing(is_primary, is_primary)),
            catalog: Arc::new(Catalog::open(Path::new(":memory:"))),
            agent: None,
            diverged: false,
            server,
        };
        let nodes = [node(first, true), node(second, false)];
        let settings = some_settings(&mut random);
        Failovers {
            shard: "sim".to_owned().try_into().unwrap(),
            primary: 0,
            random,
            clock,
            memory,
            settings,
            nodes,
        }
    }

    fn archive(&self, store: SharedStore) -> Archive {
        Archive {
            store,
            shard: self.shard.clone(),
            clock: self.clock.clone(),
        }
    }

    fn truth(&self) -> Archive {
        self.archive(Arc::new(self.memory.clone()))
    }

    fn start_agent(&mut self, node: usize) {
        let (store, link) = (self.nodes[node].store.another(), self.nodes[node].link.another());
        let (stop, stopped) = watch::channel(false);
        // Orchestrator answers at once, and says what it said.
        let (ask_again, orchestrator) = (Arc::new(Notify::new()), self.nodes[node].standing.clone());
        tokio::spawn({
            let asked = ask_again.clone();
            async move {
                loop {
                    asked.notified().await;
                    orchestrator.send_modify(|s| s.confirmed_at = s.confirmed_by.as_ref().map(|_| Instant::now()));
                }
            }
        });
        let shipper = Shipper {
            ask_again: ask_again.clone(),
            archive: self.archive(Arc::new(store.clone())),
            server: Arc::new(link.clone()),
            standing: self.nodes[node].standing.subscribe(),
            catalog: self.nodes[node].catalog.clone(),
            settings: self.settings.clone(),
            status: watch::Sender::new(Status::default()),
            snapshot_wanted: Arc::new(Notify::new()),
            short_of_disk: watch::channel(false).1,
        };
        let snapshots = tokio::spawn(take_snapshots(
            shipper.archive.clone(),
            link.clone(),
            shipper.standing.clone(),
            shipper.snapshot_wanted.clone(),
        ));
        info!(target: "sim", node, "agent: starts");
        self.nodes[node].agent = Some(Agent {
            task: tokio::spawn(async move { shipper.run(stopped).await }),
            beside: vec![snapshots],
            stop,
            store,
            link,
        });
    }

    async fn step(&mut self) {
        let (node, primary) = (self.random.random_range(0..2), self.primary);
        let count = *[1, 1, 2, 3, 10].choose(&mut self.random).unwrap();
        match self.random.random_range(0..100) {
            0..35 => self.commit(primary, count),
            35..42 if self.nodes[1 - primary].standing.borrow().is_writable() => {
                self.nodes[1 - primary].diverged = true;
                self.commit(1 - primary, count);
            }
            42..57 => self.replicate(count),
            57..65 => self.nodes[node].server.flush(),
            65..70 => self.crash(node),
            70..77 => self.agent_dies(node).await,
            77..84 => {
                let (faults, breaks) = some_weather(&mut self.random);
                self.nodes[node].store.set(faults);
                self.nodes[node].link.set_breaks(breaks);
            }
            84..92 => self.promote(),
            92..96 => self.set(primary, standing(true, true)),
            _ => {}
        }
        let ms = match self.random.random_range(0..10) {
            0..4 => self.random.random_range(0..5),
            4..9 => self.random.random_range(0..3000),
            _ => self.random.random_range(3_000..60_000),
        };
        sleep(Duration::from_millis(ms)).await;
    }

    fn set(&self, node: usize, standing: Standing) {
        info!(target: "sim", node, ?standing, "the word changes");
        self.nodes[node].standing.send_replace(standing);
    }

    fn commit(&self, node: usize, transactions: usize) {
        let server = &self.nodes[node].server;
        server.commit(transactions);
        info!(target: "sim", node, "server: committed {transactions}, has {}", server.state().executed);
    }

    fn replicate(&self, transactions: usize) {
        let (from, to) = (&self.nodes[self.primary], &self.nodes[1 - self.primary]);
        if !to.diverged && !to.standing.borrow().is_writable() {
            to.server.replicate(&from.server, transactions);
            info!(target: "sim", node = 1 - self.primary, "server: replicated, has {}", to.server.state().executed);
        }
    }

    /// Nothing is taken back: what is given out again as something else, and fails over before an agent saw it, cannot be told apart.
    fn crash(&self, node: usize) {
        info!(target: "sim", node, "server: is killed");
        self.nodes[node].server.kill(0, |_| 1);
        self.nodes[node].server.start_again();
    }

    async fn agent_dies(&mut self, node: usize) {
        let Some(agent) = self.nodes[node].agent.take() else {
            self.start_agent(node);
            return;
        };
        if self.random.random_bool(0.7) {
            info!(target: "sim", node, "agent: is killed");
            agent.kill();
        } else {
            info!(target: "sim", node, "agent: is stopped");
            agent.stop().await;
        }
        if self.random.random_range(0..4) == 0 {
            self.nodes[node].catalog = Arc::new(Catalog::open(Path::new(":memory:")));
        }
        if self.random.random_bool(0.7) {
            self.start_agent(node);
        }
    }

    /// The other server takes over: after a switchover that loses nothing, or because the primary is dead, or only seems so.
    fn promote(&mut self) {
        let (old, new) = (self.primary, 1 - self.primary);
        let planned =
            !self.nodes[new].diverged && !self.nodes[new].standing.borrow().is_writable() && self.random.random_bool(0.4);
        if planned {
            self.replicate(usize::MAX);
        }
        let has = self.nodes[new].server.state().executed.clone();
        // What the new one lacks is its loss; the old one keeps it, and so cannot follow.
        self.nodes[old].diverged = !self.nodes[old].server.state().executed.is_subset(&has);
        self.nodes[new].diverged = false;
        let comes_back_writable = !planned && self.random.random_bool(0.5);
        info!(target: "sim", new, planned, comes_back_writable, "a promotion; the new primary has {has}");
        self.set(old, standing(comes_back_writable, false));
        let confirmed = self.random.random_bool(0.6);
        self.set(new, standing(true, confirmed));
        self.primary = new;
        if !planned && self.random.random_bool(0.5) {
            self.crash(old);
        }
    }

    /// Faults stop, and whoever was promoted last is confirmed.
    async fn heal(&mut self) -> Outcome {
        info!(target: "sim", "all faults stop");
        for node in 0..2 {
            self.nodes[node].store.set(Faults::default());
            self.nodes[node].link.set_breaks(0);
            if self.nodes[node].agent.is_none() {
                self.start_agent(node);
            }
        }
        self.set(self.primary, standing(true, true));
        self.commit(self.primary, 1);
        sleep(RECOVERS_WITHIN).await;
        let (archive, primary) = (self.truth(), &self.nodes[self.primary]);
        let timelines = archive.timelines().await?;
        let (tip, state) = (
            path::tip(&timelines).expect("the first one was claimed"),
            primary.server.state().executed.clone(),
        );
        if tip.server_uuid == primary.server.state().uuid {
            return Ok(());
        }
        let path = path::Path::find(&timelines, None)?;
        let (own, since) = (primary.server.state().uuid, state.subtract(&path.own_line()[0].branch_set));
        // A deposed primary that went on by itself needs an operator's word.
        let is_alone = path.timelines().iter().any(|t| t.server_uuid == own)
            && since.uuids().any(|uuid| uuid == own)
            && since.uuids().all(|uuid| uuid != tip.server_uuid);
        ensure!(
            is_alone || !tip.branch_set.is_subset(&state),
            "the confirmed server {state} holds what timeline {} began with, and did not claim its successor",
            tip.id
        );
        info!(target: "sim", "operator: adopts");
        let adoption = Adoption {
            operator: "ann".to_owned(),
            anew: false,
            dry_run: false,
        };
        adopt(&archive, &primary.link.another(), &adoption).await?;
        sleep(RECOVERS_WITHIN).await;
        Ok(())
    }

    async fn check(&mut self) -> Outcome {
        let (archive, primary, other) = (self.truth(), &self.nodes[self.primary], &self.nodes[1 - self.primary]);
        oracle::the_path_is_the_servers_history(&archive, &primary.server, &[&other.server]).await?;
        oracle::nothing_was_changed(&self.memory)?;
        for node in &self.nodes {
            ensure!(node.agent.as_ref().is_some_and(|a| !a.task.is_finished()), "an agent died");
        }
        Ok(())
    }
}
