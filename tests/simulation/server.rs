//! A server that exists only as its binlogs. It commits, rotates, dies, forgets, and is put back, as a real one may; what it kept is the
//! truth that the archive is compared with.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use mysql_pitr::{
    binlog::{
        event::MAGIC,
        gtid::{Gtid, GtidSet, Tag},
    },
    mysql::query::ServerBinlog,
    support::clock::Clock,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use sha2::{Digest, Sha256};
use tokio::{sync::watch, time::Instant};
use uuid::Uuid;

use crate::support::binlog_writer::BinlogWriter;

/// A day in November 2026.
const EPOCH_US: i64 = 1_795_000_000_000_000;

/// Virtual time, with the steps that an operator or NTP makes.
#[derive(Debug)]
pub struct FakeClock {
    begun: Instant,
    step_us: Mutex<i64>,
}

impl FakeClock {
    pub fn begin() -> Arc<FakeClock> {
        Arc::new(FakeClock {
            begun: Instant::now(),
            step_us: Mutex::default(),
        })
    }

    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    pub fn step(&self, us: i64) {
        *self.step_us.lock().unwrap() += us;
    }
}

impl Clock for FakeClock {
    fn now_us(&self) -> i64 {
        EPOCH_US + self.elapsed().as_micros() as i64 + *self.step_us.lock().unwrap()
    }
}

/// A transaction that the server committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    pub gtid: Gtid,
    pub inode: usize,
    pub start: usize,
    pub end: usize,
    /// Purged before it was in the archive.
    pub is_gap: bool,
}

/// A file, whether or not it still has a name.
pub struct Inode {
    pub name: String,
    /// All that was ever written to it; a crash takes back the end.
    pub ever: Vec<u8>,
    pub bytes: usize,
    /// How long it was whenever the server had left it for another file.
    pub closed_at: BTreeSet<usize>,
    pub next: Option<usize>,
    /// Where its first GTID event ends.
    first_gtid_end: Option<usize>,
    pub previous: GtidSet,
}

impl Inode {
    pub fn fingerprint(&self) -> Option<String> {
        Some(format!("{:x}", Sha256::digest(&self.ever[..self.first_gtid_end?])))
    }

    /// Whether anything before `position` has to be stored: a binlog without a transaction needs no object.
    pub fn needs_storing_before(&self, position: u64) -> bool {
        self.first_gtid_end.is_some_and(|end| end as u64 <= position)
    }

    pub fn has_transactions(&self) -> bool {
        self.first_gtid_end.is_some_and(|end| end <= self.bytes)
    }
}

/// A data folder's copy.
#[derive(Clone)]
pub struct Backup {
    /// Inodes and their lengths.
    folder: Vec<(usize, usize)>,
    history: Vec<Transaction>,
    executed: GtidSet,
    foreign: GtidSet,
}

pub struct State {
    pub uuid: Uuid,
    pub is_up: bool,
    /// Connections of an earlier life are broken.
    pub life: u32,
    pub inodes: Vec<Inode>,
    /// The files that have a name, oldest first; the last one is live.
    pub folder: Vec<usize>,
    pub history: Vec<Transaction>,
    pub executed: GtidSet,
    /// What a clone brought; no binlog names it.
    pub foreign: GtidSet,
    pub streams: BTreeMap<u64, StreamInfo>,
    pub next_stream: u64,
    /// Whatever may rightly begin the history anew.
    pub replaced: u32,
    /// Files from this one on were begun after something was taken back. If they are purged before an agent sees them, nobody can tell
    /// that from a gap.
    pub unseen_from: usize,
    last_commit_us: i64,
    random: SmallRng,
}

/// A connection, as the server's process list would show it.
#[derive(Debug, Clone)]
pub struct StreamInfo {
    pub inode: usize,
    /// Its client's process is gone.
    pub is_dead: Arc<AtomicBool>,
    pub is_reading: bool,
    pub read_at: Instant,
}

pub struct FakeServer {
    state: Mutex<State>,
    pub clock: Arc<FakeClock>,
    /// Told whenever there is something new to read.
    pub changed: watch::Sender<()>,
}

impl fmt::Debug for FakeServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeServer")
    }
}

impl FakeServer {
    pub fn start(seed: u64, clock: Arc<FakeClock>) -> Arc<FakeServer> {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut foreign = GtidSet::new();
        if random.random_bool(0.3) {
            (1..=9).for_each(|gno| foreign.insert(Gtid::new(Uuid::from_u128(77), Tag::NONE, gno)));
        }
        let mut state = State {
            uuid: Uuid::from_u128(u128::from(seed) << 64 | 1),
            is_up: true,
            life: 0,
            inodes: Vec::new(),
            folder: Vec::new(),
            history: Vec::new(),
            executed: foreign.clone(),
            foreign,
            streams: BTreeMap::new(),
            next_stream: 0,
            replaced: 0,
            unseen_from: 0,
            last_commit_us: 0,
            random,
        };
        state.new_file();
        Arc::new(FakeServer {
            state: Mutex::new(state),
            clock,
            changed: watch::Sender::new(()),
        })
    }

    /// Cloned from this one before its first commit.
    pub fn replica(&self, seed: u64) -> Arc<FakeServer> {
        let replica = FakeServer::start(seed, self.clock.clone());
        let mut state = replica.state();
        state.foreign = self.state().foreign.clone();
        (state.executed, state.folder) = (state.foreign.clone(), Vec::new());
        state.new_file();
        drop(state);
        replica
    }

    /// Applies the next transactions of `source`.
    pub fn replicate(&self, source: &FakeServer, transactions: usize) {
        let now_us = self.clock.now_us();
        let has = self.state().executed.clone();
        let lacks: Vec<Gtid> = source
            .state()
            .history
            .iter()
            .map(|t| t.gtid)
            .filter(|g| !has.contains(g))
            .collect();
        let mut state = self.state();
        lacks
            .into_iter()
            .take(transactions)
            .for_each(|gtid| state.write(gtid, now_us));
        drop(state);
        self.changed.send_replace(());
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere is told as it was, and not as a second one here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn commit(&self, transactions: usize) {
        let now_us = self.clock.now_us();
        let mut state = self.state();
        (0..transactions).for_each(|_| state.commit(now_us));
        drop(state);
        self.changed.send_replace(());
    }

    pub fn flush(&self) {
        self.state().rotate();
        self.changed.send_replace(());
    }

    pub fn shut_down(&self) {
        let mut state = self.state();
        state.with_live(|file| BinlogWriter(&mut file.ever).stop());
        state.go_down();
        drop(state);
        self.changed.send_replace(());
    }

    /// Takes back the last `lost` transactions, as far as they lie in the newest file.
    pub fn kill(&self, lost: usize, archived: impl Fn(&Inode) -> usize) {
        let mut state = self.state();
        let live = *state.folder.last().unwrap();
        for _ in 0..lost {
            if state.history.last().is_none_or(|t| t.inode != live) {
                break;
            }
            let transaction = state.history.pop().unwrap();
            state.inodes[live].bytes = transaction.start;
        }
        // Where nothing is left that could be recognised, it looks like a RESET.
        let is_known = |i: &usize| state.inodes[*i].has_transactions() && archived(&state.inodes[*i]) > 0;
        if !state.folder.iter().any(is_known) {
            state.replaced += 1;
        }
        state.forget_the_lost();
        state.unseen_from = state.inodes.len();
        state.go_down();
        drop(state);
        self.changed.send_replace(());
    }

    /// The newest file was not on disk at all; its name is given again.
    /// Where it held what no agent saw, a snapshot could hold it too, and nothing would tell.
    pub fn kill_losing_a_file(&self, archived: impl Fn(&Inode) -> usize) {
        let mut state = self.state();
        let is_known = !state.live().has_transactions() || archived(state.live()) > 0;
        if state.folder.len() > 1 && is_known {
            let live = state.folder.pop().unwrap();
            state.history.retain(|t| t.inode != live);
            state.replaced += 1;
        }
        state.forget_the_lost();
        state.unseen_from = state.inodes.len();
        state.go_down();
        drop(state);
        self.changed.send_replace(());
    }

    pub fn start_again(&self) {
        let mut state = self.state();
        state.close_live();
        state.new_file();
        state.is_up = true;
        drop(state);
        self.changed.send_replace(());
    }

    pub fn reset(&self) {
        let mut state = self.state();
        state.folder.clear();
        state.history.clear();
        // What a clone brought is forgotten as well.
        state.foreign = GtidSet::new();
        state.executed = GtidSet::new();
        state.replaced += 1;
        state.unseen_from = state.inodes.len();
        state.new_file();
        drop(state);
        self.changed.send_replace(());
    }

    /// Removes files from the oldest on, but none that a connection reads. `archived` says up to where a file is in the archive.
    pub fn purge(&self, files: usize, archived: impl Fn(&Inode) -> usize) -> usize {
        let mut state = self.state();
        let is_seen = |inode: &usize| *inode >= state.unseen_from && archived(&state.inodes[*inode]) > 0;
        if !state.folder.iter().any(is_seen) {
            return 0;
        }
        let in_use: BTreeSet<usize> = state.streams.values().map(|s| s.inode).collect();
        let may_go = state.folder.len() - 1;
        let gone: Vec<usize> = state
            .folder
            .iter()
            .copied()
            .take(files.min(may_go))
            .take_while(|inode| !in_use.contains(inode))
            .collect();
        for inode in &gone {
            let archived = archived(&state.inodes[*inode]);
            let of_it = state.history.iter_mut().filter(|t| t.inode == *inode);
            of_it.for_each(|t| t.is_gap |= t.end > archived);
        }
        state.folder.drain(..gone.len());
        gone.len()
    }

    pub fn backup(&self) -> Backup {
        let state = self.state();
        Backup {
            folder: state.folder.iter().map(|i| (*i, state.inodes[*i].bytes)).collect(),
            history: state.history.clone(),
            executed: state.executed.clone(),
            foreign: state.foreign.clone(),
        }
    }

    /// Puts the data folder back; the server is down then.
    pub fn restore(&self, backup: &Backup) {
        // Nothing would be recognised, and what a clone brought would be a gap.
        if backup.history.is_empty() {
            return;
        }
        let mut state = self.state();
        state.go_down();
        state.folder.clear();
        for (inode, bytes) in &backup.folder {
            let from = &state.inodes[*inode];
            let copy = Inode {
                name: from.name.clone(),
                ever: from.ever[..*bytes].to_vec(),
                bytes: *bytes,
                closed_at: BTreeSet::from([*bytes]),
                next: None,
                first_gtid_end: from.first_gtid_end.filter(|end| end <= bytes),
                previous: from.previous.clone(),
            };
            state.inodes.push(copy);
            let new = state.inodes.len() - 1;
            if let Some(before) = state.folder.last().copied() {
                state.inodes[before].next = Some(new);
            }
            state.folder.push(new);
        }
        let copies: BTreeMap<usize, usize> = backup.folder.iter().map(|f| f.0).zip(state.folder.iter().copied()).collect();
        state.history = backup.history.clone();
        for t in &mut state.history {
            t.inode = copies.get(&t.inode).copied().unwrap_or(t.inode);
        }
        state.executed = backup.executed.clone();
        state.foreign = backup.foreign.clone();
        state.replaced += 1;
        state.unseen_from = state.inodes.len();
        drop(state);
        self.changed.send_replace(());
    }
}

impl State {
    pub fn live(&self) -> &Inode {
        &self.inodes[*self.folder.last().unwrap()]
    }

    fn with_live(&mut self, write: impl FnOnce(&mut Inode)) {
        let live = *self.folder.last().unwrap();
        write(&mut self.inodes[live]);
        self.inodes[live].bytes = self.inodes[live].ever.len();
    }

    fn number(&self) -> u32 {
        let name = |i: &usize| self.inodes[*i].name.rsplit('.').next().unwrap().parse::<u32>().unwrap();
        self.folder.last().map_or(0, name)
    }

    fn new_file(&mut self) {
        let previous = self.executed.subtract(&self.foreign);
        let mut ever = Vec::new();
        BinlogWriter(&mut ever).begin(&previous);
        let inode = Inode {
            name: format!("binlog.{:06}", self.number() + 1),
            bytes: ever.len(),
            ever,
            closed_at: BTreeSet::new(),
            next: None,
            first_gtid_end: None,
            previous,
        };
        tracing::info!(target: "sim", "server: new file {}", inode.name);
        self.inodes.push(inode);
        let new = self.inodes.len() - 1;
        if let Some(before) = self.folder.last().copied() {
            self.inodes[before].next = Some(new);
        }
        self.folder.push(new);
    }

    fn close_live(&mut self) {
        let live = *self.folder.last().unwrap();
        let bytes = self.inodes[live].bytes;
        self.inodes[live].closed_at.insert(bytes);
    }

    fn rotate(&mut self) {
        let next = format!("binlog.{:06}", self.number() + 1);
        self.with_live(|file| BinlogWriter(&mut file.ever).rotate(&next));
        self.close_live();
        self.new_file();
    }

    fn go_down(&mut self) {
        self.is_up = false;
        self.life += 1;
    }

    fn commit(&mut self, now_us: i64) {
        let next = (1..).map(|gno| Gtid::new(self.uuid, Tag::NONE, gno));
        let free = self.history.last().map_or(1, |t| t.gtid.gno);
        let gtid = next.skip(free as usize - 1).find(|g| !self.executed.contains(g)).unwrap();
        self.write(gtid, now_us);
    }

    fn write(&mut self, gtid: Gtid, now_us: i64) {
        let commit_us = now_us.max(self.last_commit_us + 1);
        self.last_commit_us = commit_us;
        let random = &mut self.random;
        let rows: Vec<Vec<u8>> = (0..random.random_range(1..4))
            .map(|_| {
                let bytes = match random.random_range(0..1000) {
                    0..900 => random.random_range(8..400),
                    900..985 => random.random_range(400..20_000),
                    985..997 => random.random_range(20_000..200_000),
                    _ => random.random_range(1_100_000..1_600_000),
                };
                let word: u64 = random.random();
                word.to_le_bytes().iter().copied().cycle().take(bytes).collect()
            })
            .collect();
        let (live, at) = (*self.folder.last().unwrap(), self.live().ever.len());
        self.with_live(|file| {
            let mut writer = BinlogWriter(&mut file.ever);
            writer.transaction(gtid, commit_us, &rows);
        });
        let file = &mut self.inodes[live];
        let gtid_end = at + u32::from_le_bytes(file.ever[at + 9..at + 13].try_into().unwrap()) as usize;
        file.first_gtid_end.get_or_insert(gtid_end);
        self.executed.insert(gtid);
        self.history.push(Transaction {
            gtid,
            inode: live,
            start: at,
            end: self.inodes[live].bytes,
            is_gap: false,
        });
    }

    /// After transactions were taken back.
    fn forget_the_lost(&mut self) {
        self.executed = self.foreign.clone();
        self.history.iter().for_each(|t| self.executed.insert(t.gtid));
    }

    pub fn purged(&self) -> GtidSet {
        self.foreign.union(&self.inodes[self.folder[0]].previous)
    }

    pub fn binlogs(&self) -> Vec<ServerBinlog> {
        let file = |i: &usize| ServerBinlog {
            name: self.inodes[*i].name.clone(),
            bytes: self.inodes[*i].bytes as u64,
        };
        self.folder.iter().map(file).collect()
    }

    pub fn find(&self, name: &str) -> Option<usize> {
        self.folder.iter().copied().find(|i| self.inodes[*i].name == name)
    }

    pub fn bytes_of(&self, t: &Transaction) -> &[u8] {
        &self.inodes[t.inode].ever[t.start..t.end]
    }

    /// Whether this server has this very transaction.
    pub fn committed(&self, gtid: Gtid, bytes: &[u8]) -> bool {
        self.history.iter().any(|t| t.gtid == gtid && self.bytes_of(t) == bytes)
    }

    /// Whether an event begins, or will, at `position`.
    pub fn is_boundary(&self, inode: usize, position: usize) -> bool {
        let mut at = MAGIC.len();
        while at < position {
            let Some(end) = self.event_end(inode, at) else { break };
            at = end;
        }
        at == position
    }

    /// The event at `position`, if it was written.
    pub fn event_end(&self, inode: usize, position: usize) -> Option<usize> {
        let file = &self.inodes[inode];
        debug_assert!(position >= MAGIC.len());
        let header = file.ever[..file.bytes].get(position..position + 13)?;
        Some(position + u32::from_le_bytes(header[9..13].try_into().unwrap()) as usize)
    }
}
