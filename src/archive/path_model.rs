//! The timeline rules against a plain oracle: random commits, crashes that take a tail back, failovers, returns, resets and
//! recoveries are played, some of which leave transactions out, and every recovery is compared with the surviving server's own history.

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use uuid::Uuid;

use crate::binlog::gtid::{Gtid, GtidSet, Tag};

use super::{
    examples,
    path::Path,
    records::{Snapshot, Timeline},
};

/// What a transaction did: two transactions may bear one GTID and differ here.
type Content = u64;
/// What a transaction did in whose place an empty one was committed.
const EMPTY: Content = 0;
type History = Vec<(Gtid, Content)>;
/// A server's data: the content of each transaction, and whether it was committed before the last RESET.
type State = BTreeSet<(bool, Gtid, Content)>;

#[derive(Debug, Clone)]
struct Server {
    uuid: Uuid,
    history: History,
    /// How much of `history` lies before the last RESET.
    base: usize,
}

impl Server {
    fn gtids(&self) -> GtidSet {
        self.since_reset().iter().map(|(g, _)| *g).collect()
    }

    fn since_reset(&self) -> &[(Gtid, Content)] {
        &self.history[self.base..]
    }

    fn commit(&mut self, content: Content) {
        let has = self.gtids();
        let free = (1..)
            .map(|gno| Gtid::new(self.uuid, Tag::NONE, gno))
            .find(|g| !has.contains(g));
        self.history.push((free.expect("numbers do not run out"), content));
    }

    fn state(&self) -> State {
        self.history
            .iter()
            .enumerate()
            .map(|(i, (g, c))| (i < self.base, *g, *c))
            .collect()
    }
}

/// The archive as the rules see it: what was shipped under each timeline, and the snapshots with their data.
struct World {
    timelines: Vec<Timeline>,
    shipped: BTreeMap<u32, History>,
    snapshots: Vec<(Snapshot, State)>,
    tip: u32,
    shipped_until: usize,
}

impl World {
    fn claim(&mut self, parent: Option<u32>, server_uuid: Uuid, branch_set: GtidSet) {
        self.claim_skipping(parent, server_uuid, branch_set, GtidSet::new());
    }

    fn claim_skipping(&mut self, parent: Option<u32>, server_uuid: Uuid, branch_set: GtidSet, skipped: GtidSet) {
        self.tip = self.timelines.len() as u32 + 1;
        self.timelines.push(Timeline {
            server_uuid,
            skipped,
            ..examples::timeline(self.tip, parent, branch_set)
        });
        self.shipped_until = 0;
    }

    fn path(&self) -> Path {
        Path::find(&self.timelines, None).expect("there is a tip")
    }

    /// The path's history, as recovery reads it: per timeline what is inherited, nothing twice, and what was skipped empty.
    fn history(&self) -> History {
        let path = self.path();
        let skipped = path.skipped();
        let (mut history, mut seen) = (History::new(), GtidSet::new());
        for timeline in path.timelines() {
            let inherited = path.inherited(timeline.id).expect("it is on the path");
            for (gtid, content) in self.shipped.get(&timeline.id).into_iter().flatten() {
                if inherited.covers(&[*gtid].into_iter().collect()) && !seen.contains(gtid) {
                    history.push((*gtid, if skipped.contains(gtid) { EMPTY } else { *content }));
                    seen.insert(*gtid);
                }
            }
        }
        history
    }

    fn ship(&mut self, server: &Server, count: usize) {
        let until = server.since_reset().len().min(self.shipped_until.saturating_add(count));
        let has: GtidSet = self.history().iter().map(|(g, _)| *g).collect();
        let new = server.since_reset()[..until]
            .iter()
            .filter(|(g, _)| !has.contains(g))
            .copied();
        self.shipped.entry(self.tip).or_default().extend(new);
        self.shipped_until = self.shipped_until.max(until);
    }

    fn snapshot(&mut self, server: &Server) {
        let record = Snapshot {
            id: self.snapshots.len().to_string(),
            server_uuid: server.uuid,
            ..examples::snapshot(self.tip, server.gtids())
        };
        self.snapshots.push((record, server.state()));
    }

    /// What recovery to the first `count` transactions of the path without `skip` gives.
    fn recover(&self, count: usize, skip: &GtidSet) -> Option<State> {
        let history = self.history();
        let target: GtidSet = history[..count].iter().map(|(g, _)| *g).collect();
        let path = self.path();
        let serving = self.snapshots.iter().filter(|(s, _)| path.serves(s, &target, skip).is_ok());
        let (best, data) = serving.max_by_key(|(s, _)| s.gtids_before.count())?;
        let replayed = history[..count].iter().filter(|(g, _)| !best.gtids_before.contains(g));
        let content = |g: &Gtid, c: &Content| if skip.contains(g) { EMPTY } else { *c };
        let replayed = replayed.map(|(g, c)| (false, *g, content(g, c)));
        Some(data.iter().copied().chain(replayed).collect())
    }
}

/// Plays one history; returns how many recoveries were compared.
fn play(seed: u64) -> usize {
    let mut random = StdRng::seed_from_u64(seed);
    let uuid = |n: u128| Uuid::from_u128(n);
    let server = |n| Server {
        uuid: uuid(n),
        history: History::new(),
        base: 0,
    };
    let (mut primary, mut replicas) = (server(1), vec![server(2), server(3)]);
    let mut world = World {
        timelines: vec![],
        shipped: BTreeMap::new(),
        snapshots: vec![],
        tip: 0,
        shipped_until: 0,
    };
    world.claim(None, primary.uuid, GtidSet::new());
    world.snapshot(&primary);
    let (mut content, mut next_uuid, mut compared) = (0, 1000, 0);
    let mut new_content = move || {
        content += 1;
        content
    };
    let rebuild = |replicas: &mut Vec<Server>, primary: &Server, which: &dyn Fn(&Server) -> bool| {
        for replica in replicas.iter_mut().filter(|r| which(r)) {
            *replica = Server {
                uuid: replica.uuid,
                ..primary.clone()
            };
        }
    };
    for _ in 0..random.random_range(10..60) {
        match random.random_range(0..100) {
            0..30 => (0..random.random_range(1..5)).for_each(|_| primary.commit(new_content())),
            30..50 => world.ship(&primary, [1, 2, usize::MAX][random.random_range(0..3)]),
            50..70 => {
                let at = random.random_range(0..replicas.len());
                let has = replicas[at].gtids();
                let lacks: History = primary
                    .since_reset()
                    .iter()
                    .filter(|(g, _)| !has.contains(g))
                    .copied()
                    .collect();
                replicas[at].history.extend(lacks.into_iter().take(random.random_range(0..6)));
            }
            70..76 => world.snapshot(&primary),
            76..82 => {
                let replica = &replicas[random.random_range(0..replicas.len())];
                if replica.gtids().is_subset(&primary.gtids()) {
                    world.snapshot(replica);
                }
            }
            // A failover: only a server that descends from the current timeline may claim.
            82..87 => {
                let at = random.random_range(0..replicas.len());
                if !world.path().last().branch_set.is_subset(&replicas[at].gtids()) {
                    continue;
                }
                let new = replicas.remove(at);
                let old = std::mem::replace(&mut primary, new);
                (0..random.random_range(0..3)).for_each(|_| primary.commit(new_content()));
                world.claim(Some(world.tip), primary.uuid, primary.gtids());
                let returned = if random.random() {
                    Server {
                        uuid: old.uuid,
                        ..primary.clone()
                    }
                } else {
                    old
                };
                let returned_uuid = returned.uuid;
                replicas.push(returned);
                let has = primary.gtids();
                rebuild(&mut replicas, &primary, &|r| {
                    r.uuid != returned_uuid && !r.gtids().is_subset(&has)
                });
            }
            // A crash takes a tail back, and its GTIDs are used again.
            87..91 => {
                let lost = random.random_range(0..=3.min(primary.since_reset().len()));
                if lost == 0 {
                    continue;
                }
                let tail: BTreeSet<(Gtid, Content)> =
                    primary.history.split_off(primary.history.len() - lost).into_iter().collect();
                let held = primary.gtids();
                (0..random.random_range(0..4)).for_each(|_| primary.commit(new_content()));
                rebuild(&mut replicas, &primary, &|r| r.history.iter().any(|t| tail.contains(t)));
                world.claim(Some(world.tip), primary.uuid, held);
            }
            91..92 => {
                primary.base = primary.history.len();
                world.claim(None, primary.uuid, GtidSet::new());
                world.snapshot(&primary);
                rebuild(&mut replicas, &primary, &|_| true);
            }
            // A recovery, and the recovered server goes on.
            92..96 => {
                let history = world.history();
                let count = random.random_range(0..=history.len());
                let skip: GtidSet = match history[..count].choose(&mut random) {
                    Some((gtid, _)) if random.random() => [*gtid].into_iter().collect(),
                    _ => GtidSet::new(),
                };
                let before = primary.history[..primary.base].to_vec();
                let recovered: History = history[..count]
                    .iter()
                    .map(|(g, c)| (*g, if skip.contains(g) { EMPTY } else { *c }))
                    .collect();
                let expected = Server {
                    uuid: primary.uuid,
                    base: before.len(),
                    history: [before.clone(), recovered.clone()].concat(),
                };
                let Some(state) = world.recover(count, &skip) else {
                    continue;
                };
                assert_eq!(state, expected.state(), "seed {seed}: recovery without {skip}");
                next_uuid += 1;
                primary = Server {
                    uuid: uuid(next_uuid),
                    ..expected
                };
                let newly_skipped = skip.subtract(&world.path().skipped());
                world.claim_skipping(Some(world.tip), primary.uuid, primary.gtids(), newly_skipped);
                rebuild(&mut replicas, &primary, &|_| true);
            }
            // A deposed primary's agent goes on shipping under an older timeline.
            _ => {
                let rogue = random.random_range(1..=world.timelines.len() as u32);
                if rogue != world.tip {
                    let gtid = Gtid::new(uuid(1), Tag::NONE, 900 + random.random_range(0..90));
                    world.shipped.entry(rogue).or_default().push((gtid, u64::MAX));
                }
            }
        }
        compared += usize::from(compare(&world, &primary, seed));
    }
    compared
}

/// Nothing shipped is missing, nothing alien is there, and a full recovery gives the primary's own data.
fn compare(world: &World, primary: &Server, seed: u64) -> bool {
    let (own, history) = (primary.since_reset(), world.history());
    let shipped = &own[..world.shipped_until];
    assert!(
        shipped.iter().all(|t| history.contains(t)),
        "seed {seed}: a shipped transaction is missing"
    );
    assert!(history.iter().all(|t| own.contains(t)), "seed {seed}: a ghost is on the path");
    if world.shipped_until == 0 || history.len() != shipped.len() {
        return false;
    }
    let Some(recovered) = world.recover(history.len(), &GtidSet::new()) else {
        return false;
    };
    let part = Server {
        history: primary.history[..primary.base + shipped.len()].to_vec(),
        ..primary.clone()
    };
    assert_eq!(recovered, part.state(), "seed {seed}");
    true
}

/// i13: over many random histories, a recovery holds what the surviving server held, and no ghost.
#[test]
fn i13_recoveries_equal_the_surviving_history() {
    const HISTORIES: u64 = 1500;
    let compared: usize = (0..HISTORIES).map(play).sum();
    assert!(compared > 1000, "only {compared} recoveries were compared");
}
