//! What a DBA asks for, in the words of the command line, and what it means in an archive.

use std::sync::Arc;

use anyhow::bail;
use serde::Serialize;
use uuid::Uuid;

use crate::{
    archive::{
        keys::Shard,
        listing::{Form, StoredBinlog},
        path::{Inherited, Path},
        records::Snapshot,
        survey::Fault,
    },
    binlog::{
        gtid::{Gtid, GtidSet},
        transaction::Transaction,
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
    /// At exactly this set.
    Set(GtidSet),
    /// After the last transaction that ends at or before a position.
    Position(Position),
}

/// A position in a binlog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// As the server calls it, or the key of one of its objects in the store.
    pub binlog: String,
    /// Bytes from the file's beginning.
    pub position: u64,
    /// Whose binlog, where several servers of the path have one of that name.
    pub server: Option<Uuid>,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Latest => f.write_str("everything that was archived"),
            Target::Time(us) => write!(f, "{} ({})", clock::format_utc(*us), clock::format_local(*us)),
            Target::Gtid { gtid, exclusive: false } => write!(f, "after transaction {gtid}"),
            Target::Gtid { gtid, exclusive: true } => write!(f, "before transaction {gtid}"),
            Target::Set(set) => write!(f, "the transactions {set}"),
            Target::Position(p) => write!(f, "{} at {}", p.binlog, p.position),
        }
    }
}

/// One binlog on the path, and what of it counts.
#[derive(Debug, Clone)]
pub struct PathBinlog {
    pub binlog: Arc<StoredBinlog>,
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
    pub(super) fn at(t: &Transaction, binlog: &StoredBinlog, path: &Path) -> Stop {
        Stop {
            gtid: t.gtid,
            commit_us: commit_us(t, binlog.place().server_uuid, path),
            binlog: binlog.place().name.clone(),
            position: t.start,
        }
    }
}

/// Transactions that were executed and that no archived binlog of the path has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    pub gtids: GtidSet,
    /// The binlog that begins behind it, or the snapshot that holds it.
    pub before: String,
    /// How many binlogs come before it.
    #[serde(skip)]
    pub at: usize,
}

/// What a target means in this archive.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What the recovered server shall have executed.
    pub gtids: GtidSet,
    /// Which of the path's binlogs hold transactions of it, in the order in which these happened.
    pub binlogs: Vec<usize>,
    /// The last transaction that is included; None where the target lies before the first.
    pub last: Option<Stop>,
    /// The first transaction that is left out.
    pub first_left_out: Option<Stop>,
    /// What the binlogs hold that were read for this, by their index.
    pub read: Vec<(usize, GtidSet)>,
    /// What no binlog has, up to the stop.
    pub gaps: Vec<Gap>,
    /// Included transactions of which no binlog tells when they were committed, and behind which there is none of which one does.
    pub undated: GtidSet,
    /// Transactions of the path that lie before the last one that is included, and are left out.
    pub left_out: GtidSet,
    /// Why this is less than what was asked for.
    pub shortfall: Option<String>,
}

/// What there is to resolve a target in.
#[derive(Debug, Clone, Copy)]
pub struct History<'a> {
    pub path: &'a Path,
    pub binlogs: &'a [PathBinlog],
    pub faults: &'a [Fault],
    /// Those that everything that was archived may be recovered from.
    pub snapshots: &'a [&'a Snapshot],
    /// Only so many of the binlogs can be recovered from, and why.
    pub cut: Option<(usize, &'a str)>,
    /// Whether less than the target will do.
    pub latest_possible: bool,
}

impl<'a> History<'a> {
    /// All that the binlogs hold of it, and nothing less than the target.
    pub fn new(path: &'a Path, binlogs: &'a [PathBinlog], faults: &'a [Fault]) -> History<'a> {
        History {
            path,
            binlogs,
            faults,
            snapshots: &[],
            cut: None,
            latest_possible: false,
        }
    }

    pub(super) fn until(&self) -> usize {
        self.cut.map_or(self.binlogs.len(), |(until, _)| until)
    }
}

/// The path's binlogs in the order of its history.
pub fn path_binlogs(path: &Path, binlogs: Vec<StoredBinlog>) -> Vec<PathBinlog> {
    let mut out: Vec<(usize, PathBinlog)> = Vec::new();
    for binlog in binlogs {
        let Some(at) = path.timelines().iter().position(|t| t.id == binlog.opening.timeline) else {
            continue;
        };
        if let Some(inherited) = path.inherited(binlog.opening.timeline) {
            let binlog = Arc::new(binlog);
            out.push((at, PathBinlog { binlog, inherited }));
        }
    }
    out.sort_by_cached_key(|(at, b)| (*at, b.binlog.order()));
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

impl Position {
    /// Which of the path's binlogs is meant.
    ///
    /// # Errors
    /// Where none is, or more than one; the candidates are named.
    pub(super) fn find(&self, binlogs: &[PathBinlog], shard: &Shard) -> anyhow::Result<usize> {
        let candidates: Vec<usize> = (0..binlogs.len())
            .filter(|i| self.names(&binlogs[*i].binlog, shard))
            .collect();
        match candidates[..] {
            [one] => Ok(one),
            [] => {
                let of = self.server.map_or_else(String::new, |uuid| format!(" of server {uuid}"));
                let e = anyhow::anyhow!("the archive's path has no binlog {}{of}", self.binlog);
                Err(with_hint(
                    e,
                    "`mysql-pitr list` shows what is archived; a binlog of another timeline is reached with --timeline",
                ))
            }
            _ => {
                let list: Vec<String> = candidates.iter().map(|i| candidate(&binlogs[*i].binlog, shard)).collect();
                let e = anyhow::anyhow!(
                    "{} binlogs of the path bear the name {}: {}",
                    list.len(),
                    self.binlog,
                    list.join("; ")
                );
                Err(with_hint(
                    e,
                    "choose one with --server, or name its object's key in place of the file",
                ))
            }
        }
    }

    fn names(&self, binlog: &StoredBinlog, shard: &Shard) -> bool {
        let place = binlog.place();
        let by_name = place.name == self.binlog;
        let by_key = || {
            let key = main_key(binlog, shard);
            let manifest = self.binlog.strip_suffix(".json");
            self.binlog == key || manifest == Some(&key) || self.binlog.starts_with(&place.segments_prefix(shard))
        };
        (by_name || by_key()) && self.server.is_none_or(|uuid| uuid == place.server_uuid)
    }
}

/// The key of the object, or of the folder of segments, that holds a binlog.
pub(super) fn main_key(binlog: &StoredBinlog, shard: &Shard) -> String {
    match &binlog.form {
        Form::Sealed(manifest) => binlog.place().sealed_key(shard, manifest.codec),
        Form::Tail(_) => binlog.place().segments_prefix(shard),
    }
}

fn candidate(binlog: &StoredBinlog, shard: &Shard) -> String {
    format!(
        "that of server {} on timeline {}, {}",
        binlog.place().server_uuid,
        binlog.opening.timeline,
        main_key(binlog, shard)
    )
}

/// A target as the command line has it.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    pub latest: bool,
    pub time: Option<i64>,
    pub gtid: Option<Gtid>,
    pub exclusive: bool,
    pub set: Option<GtidSet>,
    /// FILE:POS
    pub position: Option<(String, u64)>,
    pub server: Option<Uuid>,
}

impl Flags {
    /// # Errors
    /// Where they contradict each other.
    pub fn target(self) -> anyhow::Result<Target> {
        let exclusive = self.exclusive;
        let mut targets: Vec<Target> = Vec::new();
        targets.extend(self.latest.then_some(Target::Latest));
        targets.extend(self.time.map(Target::Time));
        targets.extend(self.gtid.map(|gtid| Target::Gtid { gtid, exclusive }));
        targets.extend(self.set.map(Target::Set));
        targets.extend(self.position.map(|(binlog, position)| {
            Target::Position(Position {
                binlog,
                position,
                server: self.server,
            })
        }));
        match (targets.pop(), targets.is_empty()) {
            (Some(target), true) => Ok(target),
            _ => {
                bail!("exactly one of --latest, --target-time, --target-gtid, --target-gtid-set and --target-position is needed")
            }
        }
    }
}

/// `FILE:POS`.
pub fn parse_position(text: &str) -> Result<(String, u64), String> {
    let parsed = text
        .rsplit_once(':')
        .and_then(|(file, position)| Some((file, position.parse().ok()?)))
        .filter(|(file, _)| !file.is_empty());
    match parsed {
        Some((file, position)) => Ok((file.to_owned(), position)),
        None => Err(format!("`{text}` is not of the form FILE:POS, such as binlog.000042:1337")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_from_the_right() {
        assert_eq!(
            parse_position("s/2026/a:b/binlog.000001:4"),
            Ok(("s/2026/a:b/binlog.000001".into(), 4))
        );
        for wrong in ["binlog.000001", "binlog.000001:", ":4", "binlog.000001:-1"] {
            assert!(parse_position(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn there_is_exactly_one_target() {
        let both = Flags {
            latest: true,
            time: Some(1),
            ..Flags::default()
        };
        assert!(both.target().is_err() && Flags::default().target().is_err());
    }
}
