//! What the home region holds and the replica lacks, by what both list.
//!
//! Most looks list only what is recent: the snapshots and timelines, and of each server that may still ship the segments behind a
//! cursor and the folders in which its unsealed binlogs are going to be. Everything is compared when an agent starts, when a timeline
//! appears, and every ten minutes.
//!
//! **Clocks.** Ages are told by home's clock and by this process's monotonic one, never by the replica's. What appears from one look to
//! the next is no older than that, whatever a clock says.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    cutoff::{Cutoff, Records},
    object::{self, Kind, Missing, Named},
    order::order,
};
use crate::{
    archive::{
        codec::Codec,
        keys::{self, BinlogPlace},
        listing::Archive,
    },
    store::ObjectMeta,
};

/// Between two looks at everything; more where that takes long.
const FULL_INTERVAL: Duration = Duration::from_mins(10);
const REST_PER_FULL_LOOK: u32 = 20;
/// Servers whose segments are looked at each time, those that opened a binlog last.
const SERVERS_MAX: usize = 4;
/// Segments before the cursor that are compared again: uploads run side by side, and an agent that died leaves holes among the last ones.
const KEYS_BACK: usize = 64;
/// Stores tell the time in seconds.
const TICK_US: i64 = 2_000_000;
const US_PER_S: f64 = 1e6;

/// How far the replica is behind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Behind {
    /// For how long the oldest thing that it lacks has been at home.
    pub seconds: f64,
    pub bytes: u64,
    /// Sealed binlogs of which it lacks a part.
    pub binlogs: u64,
    pub segments: u64,
    pub snapshots: u64,
    /// Openings and timelines.
    pub records: u64,
}

/// What one look found.
#[derive(Debug, Clone)]
pub struct Look {
    pub began: Instant,
    pub behind: Behind,
    /// Objects of both that are not the same, and why.
    pub differing: Vec<String>,
    /// Whether everything was compared, or a record appeared there: what can be recovered from the replica may be another thing now.
    pub is_news: bool,
}

/// Keys that begin with `prefix` and are greater than `after`.
struct Scope {
    prefix: String,
    after: Option<String>,
}

impl Scope {
    fn has(&self, key: &str) -> bool {
        key.starts_with(&self.prefix) && self.after.as_deref().is_none_or(|after| key > after)
    }
}

type Sizes = BTreeMap<String, u64>;

/// Up to where a server's binlogs are known to be there.
#[derive(Debug, Default)]
struct Server {
    /// Segments up to this key are.
    cursor: Option<String>,
    /// Sealed binlogs up to this label are.
    sealed_label: i64,
    newest_label: i64,
    /// Binlogs behind that label, of which the sealed form is expected.
    open: BTreeSet<BinlogPlace>,
}

/// Compares, and remembers.
pub struct Comparer {
    home: Archive,
    replica: Archive,
    servers: BTreeMap<Uuid, Server>,
    /// Those that the replica holds whole.
    sealed_there: HashSet<BinlogPlace>,
    missing: BTreeMap<String, Missing>,
    differing: BTreeMap<String, String>,
    timelines: BTreeSet<String>,
    same_timelines: HashSet<String>,
    /// Records of snapshots that are the same in both, and when home's was written: those of volumes change, and may keep their size.
    same_records: HashMap<String, Option<i64>>,
    snapshots: Records,
    records_there: Sizes,
    cutoff: Cutoff,
    /// The newest thing at home, by its clock.
    newest_us: Option<i64>,
    last: Option<Instant>,
    full: Option<(Instant, Duration)>,
}

impl Comparer {
    pub fn new(home: Archive, replica: Archive) -> Comparer {
        Comparer {
            home,
            replica,
            servers: BTreeMap::new(),
            sealed_there: HashSet::new(),
            missing: BTreeMap::new(),
            differing: BTreeMap::new(),
            timelines: BTreeSet::new(),
            same_timelines: HashSet::new(),
            same_records: HashMap::new(),
            snapshots: Records::default(),
            records_there: Sizes::new(),
            cutoff: Cutoff::default(),
            newest_us: None,
            last: None,
            full: None,
        }
    }

    /// What the replica lacked at the last look, in the order in which to bring it there.
    pub fn missing(&self) -> Vec<Missing> {
        order(self.missing.values().cloned().collect())
    }

    /// The next look is at everything.
    pub fn forget(&mut self) {
        self.full = None;
    }

    /// Whether both buckets have a timeline of one number that are not the same.
    pub fn has_two_histories(&self) -> bool {
        let prefix = keys::timelines_prefix(&self.home.shard);
        self.differing.keys().any(|key| key.starts_with(&prefix))
    }

    /// # Errors
    /// Where one of the stores does not answer. What was known is still known then.
    pub async fn look(&mut self) -> anyhow::Result<Look> {
        let began = Instant::now();
        let shard = self.home.shard.clone();
        // Snapshots and timelines, by one listing. A replica that is dead is found out by it, before anything grows.
        let scope = Scope {
            prefix: format!("{shard}/"),
            after: Some(format!("{}0", keys::segments_prefix(&shard).trim_end_matches('/'))),
        };
        let (mut home, mut there) = self.both(&scope).await?;
        home.retain(|o| object::name(&shard, &o.key).is_some());
        there.retain(|key, _| object::name(&shard, key).is_some());
        self.cutoff = Cutoff::find(&self.replica, &mut self.snapshots, &home, &there).await?;
        let prefix = keys::timelines_prefix(&shard);
        let timelines: BTreeSet<String> = home
            .iter()
            .map(|o| &o.key)
            .filter(|k| k.starts_with(&prefix))
            .cloned()
            .collect();
        self.compare_timelines(&timelines, &there).await?;
        let rest = |(at, took): (Instant, Duration)| at.elapsed() < FULL_INTERVAL.max(took * REST_PER_FULL_LOOK);
        let is_full = !self.full.is_some_and(rest) || timelines != self.timelines;
        let is_news = is_full || there != self.records_there;
        let mut found = Vec::new();
        if is_full {
            self.differing.retain(|key, _| key.starts_with(&prefix));
        }
        self.notice(&home);
        let changed = self.changed_records(&home, &there).await?;
        for object in &home {
            let Some(named) = object::name(&shard, &object.key) else {
                continue;
            };
            if changed.contains(&object.key) {
                found.push((object.clone(), named, true));
                continue;
            }
            let age_us = self.newest_us.unwrap_or_default() - object.modified_us.unwrap_or_default();
            if named.snapshot.as_ref().is_none_or(|id| !self.cutoff.passes_over(id, age_us)) {
                self.judge(object, named, there.get(&object.key).copied(), &mut found);
            }
        }
        let mut scopes = vec![scope];
        if is_full {
            self.look_at_everything(&mut scopes, &mut found).await?;
        } else {
            let mut servers: Vec<(i64, Uuid)> = self.servers.iter().map(|(uuid, s)| (s.newest_label, *uuid)).collect();
            servers.sort_unstable_by(|a, b| b.cmp(a));
            for (_, server) in servers.into_iter().take(SERVERS_MAX) {
                self.look_at_server(server, &mut scopes, &mut found).await?;
            }
        }
        self.remember(&scopes, found, is_full, began);
        (self.timelines, self.records_there) = (timelines, there);
        if is_full {
            self.full = Some((Instant::now(), began.elapsed()));
        }
        self.last = Some(began);
        Ok(Look {
            began,
            behind: self.behind(),
            differing: self.differing.values().cloned().collect(),
            is_news,
        })
    }

    /// Home first: what the replica then lacks was at home before.
    async fn both(&self, scope: &Scope) -> anyhow::Result<(Vec<ObjectMeta>, Sizes)> {
        let after = scope.after.as_deref();
        let home = self.home.store.list(&scope.prefix, after).await?;
        let there = self.replica.store.list(&scope.prefix, after).await?;
        Ok((home, there.into_iter().map(|o| (o.key, o.size_bytes)).collect()))
    }

    fn notice(&mut self, home: &[ObjectMeta]) {
        self.newest_us = self.newest_us.max(home.iter().filter_map(|o| o.modified_us).max());
    }

    /// Timelines are claimed in one bucket at a time, else they are two histories under one name. There are few, and they never change.
    async fn compare_timelines(&mut self, home: &BTreeSet<String>, there: &Sizes) -> anyhow::Result<()> {
        for key in home.iter().filter(|key| there.contains_key(*key)) {
            if self.same_timelines.contains(key) || self.differing.contains_key(key) {
                continue;
            }
            let (a, b) = (self.home.store.get(key).await?.0, self.replica.store.get(key).await?.0);
            if a == b {
                self.same_timelines.insert(key.clone());
            } else {
                let what = format!(
                    "object {key} is one timeline in {} and another in {}: both buckets were shipped to",
                    self.home.store.url(),
                    self.replica.store.url()
                );
                self.differing.insert(key.clone(), what);
            }
        }
        Ok(())
    }

    /// The records of snapshots that are of one size in both, and not the same.
    async fn changed_records(&mut self, home: &[ObjectMeta], there: &Sizes) -> anyhow::Result<HashSet<String>> {
        let mut changed = HashSet::new();
        let prefix = keys::snapshots_prefix(&self.home.shard);
        for object in home.iter().filter(|o| keys::snapshot_id(&prefix, &o.key).is_some()) {
            let is_known = self.same_records.get(&object.key) == Some(&object.modified_us);
            if is_known || there.get(&object.key) != Some(&object.size_bytes) {
                continue;
            }
            let (a, b) = (
                self.home.store.get(&object.key).await,
                self.replica.store.get(&object.key).await,
            );
            match (a, b) {
                (Err(e), _) | (_, Err(e)) if e.is_not_found() => {}
                (Err(e), _) | (_, Err(e)) => return Err(e.into()),
                (Ok((a, _)), Ok((b, _))) if a != b => drop(changed.insert(object.key.clone())),
                // Within one tick of the store's clock it may be written again.
                (Ok(_), Ok(_)) if self.newest_us > object.modified_us.map(|at| at + TICK_US) => {
                    self.same_records.insert(object.key.clone(), object.modified_us);
                }
                (Ok(_), Ok(_)) => {}
            }
        }
        Ok(changed)
    }

    async fn look_at_everything(
        &mut self,
        scopes: &mut Vec<Scope>,
        found: &mut Vec<(ObjectMeta, Named, bool)>,
    ) -> anyhow::Result<()> {
        let shard = self.home.shard.clone();
        let sealed = Scope {
            prefix: keys::sealed_prefix(&shard),
            after: None,
        };
        let tails = Scope {
            prefix: keys::segments_prefix(&shard),
            after: None,
        };
        let (home_sealed, sealed_there) = self.both(&sealed).await?;
        self.servers.clear();
        self.sealed_there.clear();
        self.compare_sealed(&home_sealed, &sealed_there, found);
        drop((home_sealed, sealed_there));
        let (home_tails, tails_there) = self.both(&tails).await?;
        self.note_open(&home_tails);
        self.compare_tails(&home_tails, &tails_there, found);
        scopes.extend([sealed, tails]);
        Ok(())
    }

    async fn look_at_server(
        &mut self,
        server: Uuid,
        scopes: &mut Vec<Scope>,
        found: &mut Vec<(ObjectMeta, Named, bool)>,
    ) -> anyhow::Result<()> {
        let shard = self.home.shard.clone();
        let known = self.servers.entry(server).or_default();
        let tails = Scope {
            prefix: format!("{}{server}/", keys::segments_prefix(&shard)),
            after: known.cursor.clone(),
        };
        let home_tails = self.home.store.list(&tails.prefix, tails.after.as_deref()).await?;
        self.note_open(&home_tails);
        let known = self.servers.entry(server).or_default();
        let folder_of = |place: &BinlogPlace| {
            let key = place.sealed_key(&shard, Codec::None);
            key.rsplit_once('/')
                .map(|(folder, _)| format!("{folder}/"))
                .unwrap_or_default()
        };
        let folders: BTreeSet<String> = known.open.iter().map(folder_of).collect();
        let next_label = known.sealed_label.saturating_add(1);
        for folder in folders {
            let sealed = Scope {
                after: Some(format!("{folder}{next_label}")),
                prefix: folder,
            };
            let (home, there) = self.both(&sealed).await?;
            self.compare_sealed(&home, &there, found);
            scopes.push(sealed);
        }
        let there = self.replica.store.list(&tails.prefix, tails.after.as_deref()).await?;
        let there = there.into_iter().map(|o| (o.key, o.size_bytes)).collect();
        self.compare_tails(&home_tails, &there, found);
        scopes.push(tails);
        Ok(())
    }

    /// Binlogs that home holds segments of, and that are expected to be sealed.
    fn note_open(&mut self, home_tails: &[ObjectMeta]) {
        for object in home_tails {
            let Some(place) = object::name(&self.home.shard, &object.key).and_then(|n| n.place) else {
                continue;
            };
            let server = self.servers.entry(place.server_uuid).or_default();
            server.newest_label = server.newest_label.max(place.label_ns);
            if place.label_ns > server.sealed_label {
                server.open.insert(place);
            }
        }
    }

    /// `home` and `there` are the same part of the sealed binlogs on both sides.
    fn compare_sealed(&mut self, home: &[ObjectMeta], there: &Sizes, found: &mut Vec<(ObjectMeta, Named, bool)>) {
        self.notice(home);
        let at_home: HashMap<&str, u64> = home.iter().map(|o| (o.key.as_str(), o.size_bytes)).collect();
        for manifest in there.keys() {
            let Some(place) = keys::parse_manifest_key(manifest) else {
                continue;
            };
            let object = manifest.strip_suffix(keys::MANIFEST_SUFFIX).unwrap_or(manifest);
            let size = there.get(object);
            if size.is_some() && at_home.get(object).is_none_or(|at_home| Some(at_home) == size) {
                self.sealed_there.insert(place);
            }
        }
        let mut in_order: BTreeMap<(Uuid, i64), (BinlogPlace, bool)> = BTreeMap::new();
        for object in home {
            let Some(named) = object::name(&self.home.shard, &object.key) else {
                continue;
            };
            let Some(place) = named.place.clone() else { continue };
            let is_done = self.sealed_there.contains(&place) || self.cutoff.is_before(object.modified_us);
            in_order.insert((place.server_uuid, place.label_ns), (place, is_done));
            if !self.cutoff.is_before(object.modified_us) {
                self.judge(object, named, there.get(&object.key).copied(), found);
            }
        }
        let mut stopped = HashSet::new();
        for ((uuid, label), (place, is_done)) in in_order {
            let server = self.servers.entry(uuid).or_default();
            server.newest_label = server.newest_label.max(label);
            if !is_done {
                stopped.insert(uuid);
                server.open.insert(place);
            } else if !stopped.contains(&uuid) {
                server.sealed_label = server.sealed_label.max(label);
            }
        }
        for server in self.servers.values_mut() {
            let sealed_label = server.sealed_label;
            server.open.retain(|place| place.label_ns > sealed_label);
        }
    }

    /// `home` and `there` are the same part of the segments on both sides.
    fn compare_tails(&mut self, home: &[ObjectMeta], there: &Sizes, found: &mut Vec<(ObjectMeta, Named, bool)>) {
        self.notice(home);
        let named: Vec<(&ObjectMeta, Named)> = home
            .iter()
            .filter_map(|o| Some((o, object::name(&self.home.shard, &o.key)?)))
            .collect();
        let mut written: HashMap<&BinlogPlace, Option<i64>> = HashMap::new();
        for (object, place) in named.iter().filter_map(|(o, n)| Some((o, n.place.as_ref()?))) {
            let last = written.entry(place).or_default();
            *last = object.modified_us.max(*last);
        }
        let mut agreed: HashMap<Uuid, (Vec<&str>, bool)> = HashMap::new();
        for (object, named) in &named {
            let Some(place) = &named.place else { continue };
            let last = written.get(place).copied().flatten();
            let is_needed = !self.sealed_there.contains(place) && !self.cutoff.is_before(last);
            let missed = found.len();
            if is_needed {
                self.judge(object, named.clone(), there.get(&object.key).copied(), found);
            }
            let (keys, is_over) = agreed.entry(place.server_uuid).or_default();
            *is_over |= found.len() > missed;
            if !*is_over {
                keys.push(&object.key);
            }
        }
        for (uuid, (keys, _)) in agreed {
            let behind = keys.len().checked_sub(KEYS_BACK + 1).and_then(|at| keys.get(at));
            if let (Some(cursor), Some(server)) = (behind, self.servers.get_mut(&uuid)) {
                server.cursor = Some((*cursor).to_owned());
            }
        }
    }

    /// `size`: in the replica.
    fn judge(&mut self, object: &ObjectMeta, named: Named, size: Option<u64>, found: &mut Vec<(ObjectMeta, Named, bool)>) {
        let is_timeline = named.kind == Kind::Timeline;
        if !is_timeline {
            self.differing.remove(&object.key);
        }
        match size {
            // By what they say: [`Comparer::compare_timelines`].
            Some(size) if size == object.size_bytes || is_timeline => {}
            // The only one that changes.
            Some(_) if named.kind == Kind::SnapshotRecord => found.push((object.clone(), named, true)),
            Some(size) => {
                let what = format!(
                    "object {}/{} has {size} B, and {} B in {}",
                    self.replica.store.url(),
                    object.key,
                    object.size_bytes,
                    self.home.store.url()
                );
                self.differing.insert(object.key.clone(), what);
            }
            None => found.push((object.clone(), named, false)),
        }
    }

    /// `found` is all that is missing within `scopes`.
    fn remember(&mut self, scopes: &[Scope], found: Vec<(ObjectMeta, Named, bool)>, is_full: bool, began: Instant) {
        let before = std::mem::take(&mut self.missing);
        let now_us = self.home.clock.now_us();
        // What a look at recent things meets for the first time was not there at the look before.
        let at_most_us = self
            .last
            .filter(|_| !is_full)
            .map(|last| i64::try_from((began - last).as_micros()).unwrap_or(i64::MAX));
        for (object, named, is_outdated) in found {
            let (age_us, found) = match before.get(&object.key) {
                Some(known) => (known.age_us, known.found),
                None => {
                    let age_us = age_us(object.modified_us, self.newest_us, now_us);
                    (age_us.min(at_most_us.unwrap_or(i64::MAX)), began)
                }
            };
            let missing = Missing {
                named,
                size_bytes: object.size_bytes,
                modified_us: object.modified_us,
                is_outdated,
                age_us,
                found,
                key: object.key,
            };
            self.missing.insert(missing.key.clone(), missing);
        }
        if !is_full {
            let untouched = before.into_iter().filter(|(key, _)| !scopes.iter().any(|s| s.has(key)));
            self.missing.extend(untouched);
        }
    }

    fn behind(&self) -> Behind {
        let now = Instant::now();
        let all = || self.missing.values();
        let of_kinds = |kinds: &[Kind]| all().filter(|m| kinds.contains(&m.named.kind)).count() as u64;
        let binlogs: BTreeSet<&BinlogPlace> = all()
            .filter(|m| matches!(m.named.kind, Kind::Sealed | Kind::Manifest))
            .filter_map(|m| m.named.place.as_ref())
            .collect();
        let snapshots: BTreeSet<&String> = all().filter_map(|m| m.named.snapshot.as_ref()).collect();
        Behind {
            seconds: all().map(|m| m.age_us(now)).max().unwrap_or_default() as f64 / US_PER_S,
            bytes: all().map(|m| m.size_bytes).sum(),
            binlogs: binlogs.len() as u64,
            segments: of_kinds(&[Kind::Segment]),
            snapshots: snapshots.len() as u64,
            records: of_kinds(&[Kind::Opening, Kind::Timeline]),
        }
    }
}

/// How old an object is at least by home's clock, which is not before the newest thing there; and by this machine's, where that one can
/// be right.
fn age_us(modified_us: Option<i64>, newest_us: Option<i64>, now_us: i64) -> i64 {
    let (Some(modified_us), Some(newest_us)) = (modified_us, newest_us) else {
        return 0;
    };
    newest_us.max(now_us) - modified_us.min(newest_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_never_negative_and_grows_with_what_home_went_on_to_store() {
        assert_eq!(age_us(None, Some(5), 100), 0);
        assert_eq!(age_us(Some(10), Some(30), 100), 90);
        assert_eq!(age_us(Some(10), Some(30), 3), 20, "this machine's clock is behind");
        assert_eq!(age_us(Some(10), Some(10), 3), 0);
    }
}
