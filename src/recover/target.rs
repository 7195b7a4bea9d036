//! What a DBA asks for, resolved into the set of transactions that the recovered server shall hold.
//!
//! The set for a moment T is the longest prefix of the path's history before the first transaction that was committed
//! after T. Sealed binlogs are judged by their manifests; only the one in which the stop lies is read.

use anyhow::bail;
use serde::Serialize;
use uuid::Uuid;

use crate::{
    archive::{
        listing::{Archive, Form, StoredBinlog, covered_end},
        path::{Inherited, Path},
        reader::{Flow, visit},
    },
    binlog::{
        gtid::{Gtid, GtidSet},
        transaction::{Tracker, Transaction},
    },
    support::{clock, hint::with_hint},
};

/// Where recovery shall stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// After the last transaction of the archive.
    Latest,
    /// Before the first transaction that was committed after this moment, µs since the epoch.
    Time(i64),
    Gtid {
        gtid: Gtid,
        /// Before it rather than after it.
        exclusive: bool,
    },
}

/// One binlog on the path, and what of it counts.
#[derive(Debug, Clone)]
pub struct PathBinlog {
    pub binlog: StoredBinlog,
    pub inherited: Inherited,
}

/// A transaction where the replay stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stop {
    pub gtid: Gtid,
    pub commit_us: i64,
    pub binlog: String,
    pub position: u64,
}

impl Stop {
    fn at(t: &Transaction, binlog: &StoredBinlog, path: &Path) -> Stop {
        Stop {
            gtid: t.gtid,
            commit_us: commit_us(t, binlog.place().server_uuid, path),
            binlog: binlog.place().name.clone(),
            position: t.start,
        }
    }
}

/// What a target means in this archive.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What the recovered server shall have executed.
    pub gtids: GtidSet,
    /// How many of the path's binlogs, from the first, hold transactions of it.
    pub binlogs_until: usize,
    /// The last transaction that is included; None where the target lies before the first.
    pub last: Option<Stop>,
    /// The first transaction that is left out.
    pub first_left_out: Option<Stop>,
    /// What the binlogs hold that were read for this, by their index.
    pub read: Vec<(usize, GtidSet)>,
}

/// The path's binlogs in the order of its history.
pub fn path_binlogs(path: &Path, binlogs: Vec<StoredBinlog>) -> Vec<PathBinlog> {
    let mut out: Vec<(usize, PathBinlog)> = Vec::new();
    for binlog in binlogs {
        let Some(at) = path.timelines().iter().position(|t| t.id == binlog.opening.timeline) else {
            continue;
        };
        if let Some(inherited) = path.inherited(binlog.opening.timeline) {
            out.push((at, PathBinlog { binlog, inherited }));
        }
    }
    out.sort_by_key(|(at, b)| (*at, b.binlog.order()));
    out.into_iter().map(|(_, b)| b).collect()
}

/// When a transaction counts as committed: by this server's clock if it was born here, by the clock of its birth if that
/// was another primary of the path, else by this server's. A session may set the original time to anything.
pub fn commit_us(t: &Transaction, server: Uuid, path: &Path) -> i64 {
    let born = t.gtid.tsid.uuid;
    let by_another_primary = born != server && path.timelines().iter().any(|p| p.server_uuid == born);
    if by_another_primary {
        t.original_commit_us
    } else {
        t.immediate_commit_us
    }
}

/// Reads as little of the archive as `target` allows.
pub async fn resolve(archive: &Archive, path: &Path, binlogs: &[PathBinlog], target: &Target) -> anyhow::Result<Resolved> {
    let resolver = Resolver {
        archive,
        path,
        binlogs,
        gtids: GtidSet::new(),
        last: None,
        taken: None,
        read: Vec::new(),
    };
    match target {
        Target::Latest => resolver.latest().await,
        Target::Time(t) => resolver.time(*t).await,
        Target::Gtid { gtid, exclusive } => resolver.gtid(*gtid, *exclusive).await,
    }
}

struct Resolver<'a> {
    archive: &'a Archive,
    path: &'a Path,
    binlogs: &'a [PathBinlog],
    gtids: GtidSet,
    last: Option<Stop>,
    /// The binlog that holds the last transaction, where that was taken by its manifest: which one it is, is not known then.
    taken: Option<usize>,
    read: Vec<(usize, GtidSet)>,
}

impl Resolver<'_> {
    async fn latest(mut self) -> anyhow::Result<Resolved> {
        for i in 0..self.binlogs.len() {
            let is_last = i + 1 == self.binlogs.len();
            if is_last || !self.take_sealed(i, i64::MAX) {
                self.read_until(i, |_| false).await?;
            }
        }
        self.ensure_whole().await?;
        let all = self.binlogs.len();
        self.resolved(all, None).await
    }

    async fn time(mut self, target_us: i64) -> anyhow::Result<Resolved> {
        for i in 0..self.binlogs.len() {
            let is_last = i + 1 == self.binlogs.len();
            if !is_last && self.take_sealed(i, target_us) {
                continue;
            }
            let (server, path) = (self.binlogs[i].binlog.place().server_uuid, self.path);
            if let Some(stop) = self.read_until(i, |t| commit_us(t, server, path) > target_us).await? {
                return self.resolved(i + 1, Some(stop)).await;
            }
        }
        self.ensure_whole().await?;
        let until = self.find_last().await?.map(|s| clock::format_utc(s.commit_us));
        let e = match until {
            Some(until) => anyhow::anyhow!(
                "the archive ends at {until}, before the target {}",
                clock::format_utc(target_us)
            ),
            None => anyhow::anyhow!("the archive holds no transaction yet"),
        };
        Err(with_hint(
            e,
            "nothing later is known; use --latest to recover everything that was archived",
        ))
    }

    async fn gtid(mut self, gtid: Gtid, exclusive: bool) -> anyhow::Result<Resolved> {
        for i in 0..self.binlogs.len() {
            let sealed_without = self.binlogs[i].binlog.gtids().is_some_and(|set| !set.contains(&gtid));
            if sealed_without && self.take_sealed(i, i64::MAX) {
                continue;
            }
            let Some(stop) = self.read_until(i, |t| t.gtid == gtid).await? else {
                continue;
            };
            if exclusive {
                return self.resolved(i + 1, Some(stop)).await;
            }
            self.gtids.insert(gtid);
            if let Some((_, set)) = self.read.last_mut() {
                set.insert(gtid);
            }
            (self.last, self.taken) = (Some(stop), None);
            return self.resolved(i + 1, None).await;
        }
        self.ensure_whole().await?;
        let e = anyhow::anyhow!("the archive's path does not hold transaction {gtid}");
        Err(with_hint(
            e,
            "`mysql-pitr list` shows what is archived; a transaction that no successor inherited lies on another timeline (--timeline)",
        ))
    }

    /// i8: what is stored but cannot be reached is a gap, and must not look like the end of the history. Gaps before the last
    /// binlog show in what the next one says was executed before it.
    async fn ensure_whole(&mut self) -> anyhow::Result<()> {
        let url = self.archive.store.url();
        self.last = self.find_last().await?;
        self.taken = None;
        let before = self.last.as_ref().map_or_else(String::new, |s| {
            format!(", or recover what lies before it with --target-gtid {}", s.gtid)
        });
        let hint = format!(
            "if it was being shipped at this moment, try again; else restore the object from the other region's bucket{before}"
        );
        if let Some(PathBinlog { binlog, .. }) = self.binlogs.last()
            && let Form::Tail(segments) = &binlog.form
        {
            let end = covered_end(segments);
            if let Some(beyond) = segments.iter().find(|s| s.range.start > end) {
                let e = anyhow::anyhow!(
                    "{} has a hole: its bytes from {end} on are missing before object {url}/{}",
                    binlog.place(),
                    beyond.key
                );
                return Err(with_hint(e, hint));
            }
        }
        let server_uuid = self.path.last().server_uuid;
        let unopened = self.archive.unopened().await?;
        match unopened.iter().find(|place| place.server_uuid == server_uuid) {
            None => Ok(()),
            Some(place) => {
                let key = place.opening_key(&self.archive.shard);
                let e = anyhow::anyhow!("there is no object {url}/{key}, without which the segments beside it cannot be placed");
                Err(with_hint(e, hint))
            }
        }
    }

    /// Takes a sealed binlog by its manifest if nothing in it can be committed after `until_us`.
    fn take_sealed(&mut self, i: usize, until_us: i64) -> bool {
        let PathBinlog { binlog, inherited } = &self.binlogs[i];
        let Form::Sealed(manifest) = &binlog.form else { return false };
        if manifest.commit_us_max.is_some_and(|max| max > until_us) {
            return false;
        }
        let counts = inherited.of(&manifest.gtids);
        if !counts.is_empty() {
            (self.last, self.taken) = (None, Some(i));
        }
        self.gtids.add(&inherited.of(&binlog.opening.held_before));
        self.gtids.add(&counts);
        true
    }

    /// Reads a binlog up to the first transaction that counts and that `stop` names.
    async fn read_until(&mut self, i: usize, stop: impl Fn(&Transaction) -> bool) -> anyhow::Result<Option<Stop>> {
        let PathBinlog { binlog, inherited } = &self.binlogs[i];
        let path = self.path;
        self.gtids.add(&inherited.of(&binlog.opening.held_before));
        let mut tracker = Tracker::default();
        let (mut stopped, mut last, mut here) = (None, None, GtidSet::new());
        let gtids = &mut self.gtids;
        visit(self.archive, binlog, |piece| {
            let Some(t) = tracker.piece(piece)? else {
                return Ok(Flow::Continue);
            };
            if !inherited.contains(&t.gtid) || (gtids.contains(&t.gtid) && !here.contains(&t.gtid)) {
                return Ok(Flow::Continue);
            }
            let at = Stop::at(&t, binlog, path);
            if stop(&t) {
                stopped = Some(at);
                return Ok(Flow::Enough);
            }
            here.insert(t.gtid);
            gtids.insert(t.gtid);
            last = Some(at);
            Ok(Flow::Continue)
        })
        .await?;
        if last.is_some() {
            (self.last, self.taken) = (last, None);
        }
        self.read.push((i, here));
        Ok(stopped)
    }

    async fn resolved(mut self, binlogs_until: usize, first_left_out: Option<Stop>) -> anyhow::Result<Resolved> {
        Ok(Resolved {
            last: self.find_last().await?,
            gtids: self.gtids,
            binlogs_until,
            first_left_out,
            read: self.read,
        })
    }

    /// The last transaction that is included.
    async fn find_last(&mut self) -> anyhow::Result<Option<Stop>> {
        let Some(i) = self.taken else { return Ok(self.last.take()) };
        let PathBinlog { binlog, inherited } = &self.binlogs[i];
        let (mut tracker, mut last) = (Tracker::default(), None);
        visit(self.archive, binlog, |piece| {
            if let Some(t) = tracker.piece(piece)?
                && inherited.contains(&t.gtid)
            {
                last = Some(Stop::at(&t, binlog, self.path));
            }
            Ok(Flow::Continue)
        })
        .await?;
        Ok(last)
    }
}

/// # Errors
/// Where the flags of a command line contradict each other.
pub fn from_flags(latest: bool, time: Option<i64>, gtid: Option<Gtid>, exclusive: bool) -> anyhow::Result<Target> {
    match (latest, time, gtid) {
        (true, None, None) => Ok(Target::Latest),
        (false, Some(us), None) => Ok(Target::Time(us)),
        (false, None, Some(gtid)) => Ok(Target::Gtid { gtid, exclusive }),
        _ => bail!("exactly one of --latest, --target-time and --target-gtid is needed"),
    }
}
