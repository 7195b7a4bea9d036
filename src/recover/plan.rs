//! The plan: which snapshot, which binlogs, where to stop. Everything that can be known is known before anything is made.

use anyhow::anyhow;

use crate::{
    archive::{
        listing::{Archive, Form, covered_end},
        path::{Path, PathError, Unfit},
        records::{Provider, Snapshot, SnapshotState},
        survey::{Fault, Subject, Survey},
    },
    binlog::gtid::GtidSet,
    source::Leg,
    support::{
        clock,
        hint::{message, with_hint},
    },
    volume::{disks::Reach, ebs},
};

use super::{
    diverged::{Diverged, diverged},
    resolve::resolve,
    target::{Gap, History, PathBinlog, Resolved, Stop, Target, path_binlogs},
};

/// Why a snapshot that would serve is not taken.
pub(super) const HOLDS_LESS: &str = "it holds less of the target";

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    pub target: Target,
    /// The history of this timeline rather than the current one's.
    pub timeline: Option<u32>,
    /// Transactions in whose places empty ones are to be committed.
    pub skip: GtidSet,
    /// Whether the last recoverable state before the target will do.
    pub latest_possible: bool,
    /// Of the machine that recovers: snapshots of volumes must be there. None where that is not looked at.
    pub reach: Option<Reach>,
}

impl Request {
    pub fn new(target: Target) -> Request {
        Request {
            target,
            timeline: None,
            skip: GtidSet::new(),
            latest_possible: false,
            reach: None,
        }
    }
}

/// Everything that recovery will do, known before it does anything.
#[derive(Debug, Clone)]
pub struct Plan {
    pub target: Target,
    pub path: Path,
    pub snapshot: Snapshot,
    pub passed_over: Vec<PassedOver>,
    /// What the recovered server shall have executed, no GTID more or fewer: the target, and what the snapshot has beside it.
    pub target_gtids: GtidSet,
    /// Which of them are in nobody's history: the snapshot's server, a replica, executed them by itself.
    pub errant: GtidSet,
    /// Which of them are to be empty, and which of these no timeline of the path skipped before.
    pub skipped: GtidSet,
    pub newly_skipped: GtidSet,
    pub legs: Vec<Leg>,
    pub last: Option<Stop>,
    pub first_left_out: Option<Stop>,
    /// Why this is less than what was asked for.
    pub shortfall: Option<String>,
    pub gaps: Vec<Gap>,
    pub diverged: Vec<Diverged>,
    pub warnings: Vec<String>,
}

/// A snapshot that is not taken.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PassedOver {
    pub id: String,
    pub timeline: u32,
    pub reason: String,
}

/// What keeps a plan from being made, and from which of the path's binlogs on, where that is known.
struct Obstacle {
    error: anyhow::Error,
    at: Option<usize>,
}

impl From<anyhow::Error> for Obstacle {
    fn from(error: anyhow::Error) -> Obstacle {
        Obstacle { error, at: None }
    }
}

/// Makes the plan. Changes nothing anywhere.
pub async fn plan(archive: &Archive, request: &Request) -> anyhow::Result<Plan> {
    let mut damaged = Vec::new();
    loop {
        match plan_without(archive, request, &damaged).await {
            Ok(plan) => return Ok(plan),
            Err(e) => match Fault::of_new_damage(&e, &damaged) {
                Some(fault) => damaged.push(fault),
                None => return Err(e),
            },
        }
    }
}

/// The plan, where these sealed binlogs' objects are damaged.
async fn plan_without(archive: &Archive, request: &Request, damaged: &[Fault]) -> anyhow::Result<Plan> {
    let mut survey = archive.survey_without(damaged).await?;
    let path = find_path(archive, &survey, request.timeline)?;
    let all = std::mem::take(&mut survey.binlogs);
    let diverged = diverged(&path, &survey.timelines, &all);
    let binlogs = path_binlogs(&path, all);
    let maker = Maker {
        request,
        survey: &survey,
        path: &path,
        binlogs: &binlogs,
        region: region(request, &survey).await,
    };
    // Only everything can end with a snapshot.
    let snapshots = match request.target {
        Target::Latest => fit_for_all(&path, &survey, &request.skip),
        _ => Vec::new(),
    };
    let (mut cut, mut first): (Option<(usize, String)>, Option<anyhow::Error>) = (None, None);
    loop {
        let history = History {
            cut: cut.as_ref().map(|(until, why)| (*until, why.as_str())),
            latest_possible: request.latest_possible,
            snapshots: &snapshots,
            ..History::new(&path, &binlogs, &survey.faults)
        };
        // Once it goes back from an obstacle, that is what there is to say.
        let resolved = match resolve(archive, history, &request.target).await {
            Ok(resolved) => resolved,
            Err(e) if Fault::of_new_damage(&e, damaged).is_some() => return Err(e),
            Err(e) => return Err(first.unwrap_or(e)),
        };
        match maker.make(resolved) {
            Ok(plan) => return Ok(Plan { diverged, ..plan }),
            Err(Obstacle { error, at: Some(at) }) if request.latest_possible && at > 0 => {
                cut = Some((at, message(&error)));
                first.get_or_insert(error);
            }
            Err(obstacle) => return Err(first.unwrap_or(obstacle.error)),
        }
    }
}

/// The whole snapshots that a recovery of everything may start from.
pub(super) fn fit_for_all<'a>(path: &Path, survey: &'a Survey, skip: &GtidSet) -> Vec<&'a Snapshot> {
    let fits = |s: &&Snapshot| {
        let all = s.gtids_after.clone().unwrap_or_default();
        path.serves(s, &all, skip).is_ok() && survey.fault_of_snapshot(&s.id).is_none()
    };
    survey.snapshots.iter().filter(fits).collect()
}

/// The plan for what the request's target was resolved to.
pub(super) fn assemble(
    request: &Request,
    survey: &Survey,
    path: &Path,
    binlogs: &[PathBinlog],
    resolved: Resolved,
) -> anyhow::Result<Plan> {
    let maker = Maker {
        request,
        survey,
        path,
        binlogs,
        region: Region::Any,
    };
    maker.make(resolved).map_err(|obstacle| obstacle.error)
}

pub(super) fn find_path(archive: &Archive, survey: &Survey, wanted: Option<u32>) -> anyhow::Result<Path> {
    let faulty = |is_it: &dyn Fn(u32) -> bool| {
        let mut faults = survey.faults.iter();
        faults.find(|f| matches!(f.subject, Subject::Timeline(id) if is_it(id)))
    };
    // Which history is the current one is not known where a later timeline cannot be read.
    if wanted.is_none()
        && let Some(fault) = survey.fault_of_tip()
    {
        return Err(fault.error());
    }
    Path::find(&survey.timelines, wanted).map_err(|e| {
        if let PathError::Unknown(id) = e
            && let Some(fault) = faulty(&|faulty| faulty == id)
        {
            return fault.error();
        }
        let where_ = format!("{}/{}", archive.store.url(), archive.shard);
        let hint = match e {
            PathError::Unknown(id) if wanted == Some(id) => "`mysql-pitr list` shows the timelines".to_owned(),
            PathError::Empty if survey.snapshots.is_empty() => "check shard and [store] url in the configuration".to_owned(),
            _ => format!("restore what is missing under {where_}/timelines/ from the other region's bucket"),
        };
        with_hint(
            anyhow!(e).context(format!("there is no history to recover in {where_}")),
            hint,
        )
    })
}

/// Where snapshots of volumes are to be.
enum Region {
    /// That is not looked at.
    Any,
    /// Nobody says where this machine is.
    Unknown,
    In(String),
}

async fn region(request: &Request, survey: &Survey) -> Region {
    let is_needed = survey.snapshots.iter().any(|s| s.provider == Provider::Ebs);
    let Some(reach) = request.reach.as_ref().filter(|_| is_needed) else {
        return Region::Any;
    };
    ebs::region(reach).await.map_or(Region::Unknown, Region::In)
}

impl Region {
    /// Why a snapshot cannot be had.
    fn lacks(&self, snapshot: &Snapshot) -> Option<String> {
        let region = match self {
            _ if snapshot.provider.stores_data() => return None,
            Region::Any => return None,
            Region::Unknown => {
                return Some("it is of EBS volumes, and nobody says in which AWS region this machine is".to_owned());
            }
            Region::In(region) => region,
        };
        let missing = snapshot.volumes.iter().find(|v| v.complete_in(region).is_none())?;
        let (volume, copy) = (&missing.volume_id, missing.copies.iter().find(|c| c.region == *region));
        Some(match copy {
            Some(copy) => match &copy.failure {
                Some(why) => format!("its copy of volume {volume} in {region} failed: {why}"),
                None => format!("its copy of volume {volume} in {region} is not complete"),
            },
            None => {
                let regions: Vec<&str> = missing.copies.iter().map(|c| c.region.as_str()).collect();
                format!(
                    "it has no copy of volume {volume} in {region}, only in {}",
                    regions.join(", ")
                )
            }
        })
    }
}

struct Maker<'a> {
    request: &'a Request,
    survey: &'a Survey,
    path: &'a Path,
    binlogs: &'a [PathBinlog],
    region: Region,
}

impl Maker<'_> {
    fn make(&self, resolved: Resolved) -> Result<Plan, Obstacle> {
        let skip = &self.request.skip;
        let alien = skip.subtract(&resolved.gtids);
        if !alien.is_empty() {
            let e = anyhow!("transactions cannot be left out that the target does not hold: {alien}");
            return Err(with_hint(e, "choose a target behind them, or check the GTIDs of --skip-gtid").into());
        }
        let (snapshot, passed_over) = self.choose(&resolved)?;
        self.ensure_not_later(&resolved, &snapshot)?;
        let legs = self.legs(&resolved, &snapshot)?;
        let skipped = self.path.skipped().union(skip).intersect(&resolved.gtids);
        let newly_skipped = skip.subtract(&self.path.skipped());
        let errant = snapshot.errant.subtract(&resolved.gtids);
        Ok(Plan {
            target: self.request.target.clone(),
            path: self.path.clone(),
            warnings: self.warnings(&resolved, &newly_skipped, &snapshot, &legs),
            snapshot,
            passed_over,
            target_gtids: resolved.gtids.union(&errant),
            errant,
            skipped,
            newly_skipped,
            legs,
            last: resolved.last,
            first_left_out: resolved.first_left_out,
            shortfall: resolved.shortfall,
            gaps: resolved.gaps,
            diverged: Vec::new(),
        })
    }

    /// What is replayed, binlog by binlog.
    fn legs(&self, resolved: &Resolved, snapshot: &Snapshot) -> Result<Vec<Leg>, Obstacle> {
        let (mut legs, mut left) = (Vec::new(), resolved.gtids.subtract(&snapshot.gtids_before));
        for (at, i) in resolved.binlogs.iter().copied().enumerate() {
            let b = &self.binlogs[i];
            let read = resolved.read.iter().find(|(read, _)| *read == i).map(|(_, set)| set);
            let Some(holds) = read.or(b.binlog.gtids()) else { continue };
            let wanted = b.inherited.of(holds).intersect(&left);
            if wanted.is_empty() {
                continue;
            }
            let is_sealed = matches!(b.binlog.form, Form::Sealed(_));
            if let Some(fault) = self.survey.fault_of_binlog(b.binlog.place()).filter(|_| is_sealed) {
                let error = fault.error();
                return Err(Obstacle { error, at: Some(at) });
            }
            left = left.subtract(&wanted);
            legs.push(Leg {
                binlog: b.binlog.clone(),
                wanted,
            });
        }
        if left.is_empty() {
            return Ok(legs);
        }
        let at = resolved
            .gaps
            .iter()
            .find(|g| !g.gtids.intersect(&left).is_empty())
            .map(|g| g.at);
        let e = anyhow!(
            "the archive has a gap: it lacks {} transactions between snapshot {} and the target: {left}{}",
            left.count(),
            snapshot.id,
            self.cause_of_gap(resolved, at)
        );
        let hint = "recover to a moment before the gap (--latest-possible finds the last one), or to one after the next snapshot";
        Err(Obstacle {
            error: with_hint(e, hint),
            at,
        })
    }

    /// The objects that may hold what is missing behind the first `at` binlogs.
    fn cause_of_gap(&self, resolved: &Resolved, at: Option<usize>) -> String {
        let mut causes: Vec<String> = Vec::new();
        let before = at.and_then(|at| resolved.binlogs[..at].last());
        if let Some(before) = before.map(|i| &self.binlogs[*i])
            && let Form::Tail(segments) = &before.binlog.form
        {
            let end = covered_end(segments);
            if let Some(beyond) = segments.iter().find(|s| s.range.start > end) {
                causes.push(format!(
                    "{} lacks its bytes from {end} on before object {}",
                    before.binlog.place(),
                    beyond.key
                ));
            }
        }
        let faults = self
            .survey
            .faults
            .iter()
            .filter(|f| matches!(f.subject, Subject::Binlog { .. }));
        causes.extend(faults.map(|f| f.what.clone()));
        if causes.is_empty() {
            String::new()
        } else {
            format!(" ({})", causes.join("; "))
        }
    }

    /// The snapshot that holds most of the target, of those that hold nothing else; and why not the others.
    fn choose(&self, resolved: &Resolved) -> anyhow::Result<(Snapshot, Vec<PassedOver>)> {
        let fitness: Vec<(&Snapshot, Result<(), Unfit>)> = self
            .survey
            .snapshots
            .iter()
            .map(|s| (s, self.path.serves(s, &resolved.gtids, &self.request.skip)))
            .collect();
        let whole = |s: &Snapshot| self.survey.fault_of_snapshot(&s.id).is_none();
        let serving = fitness.iter().filter(|(_, fit)| fit.is_ok()).map(|(s, _)| *s);
        let best = serving
            .clone()
            .filter(|s| whole(s) && self.region.lacks(s).is_none())
            .max_by_key(|s| (s.history_count(), s.started_at_us));
        let Some(best) = best else {
            let nearest = serving.max_by_key(|s| s.history_count());
            let fault = nearest.and_then(|s| self.survey.fault_of_snapshot(&s.id));
            let elsewhere = nearest.and_then(|s| Some((s, self.region.lacks(s)?)));
            return Err(match (fault, elsewhere) {
                (Some(fault), _) => fault.error(),
                (None, Some((snapshot, why))) => {
                    let e = anyhow!(
                        "no snapshot that serves the target can be had here; the nearest is {}: {why}",
                        snapshot.id
                    );
                    with_hint(
                        e,
                        "wait for the copy, or recover in the region that has one: `mysql-pitr list` says which",
                    )
                }
                (None, None) => self.nothing_serves(&fitness),
            });
        };
        let mut passed_over = Vec::new();
        for (snapshot, fit) in fitness {
            let reason = match fit {
                Err(unfit) => unfit.to_string(),
                Ok(()) => match self.survey.fault_of_snapshot(&snapshot.id) {
                    Some(fault) => fault.what.clone(),
                    None => self.region.lacks(snapshot).unwrap_or_else(|| HOLDS_LESS.to_owned()),
                },
            };
            if snapshot.id != best.id {
                passed_over.push(PassedOver {
                    id: snapshot.id.clone(),
                    timeline: snapshot.timeline,
                    reason,
                });
            }
        }
        Ok((best.clone(), passed_over))
    }

    fn nothing_serves(&self, fitness: &[(&Snapshot, Result<(), Unfit>)]) -> anyhow::Error {
        // A record that cannot be read may be the one that serves.
        let mut faults = self.survey.faults.iter();
        if let Some(fault) = faults.find(|f| matches!(f.subject, Subject::Snapshot(_))) {
            return fault.error();
        }
        let complete = || fitness.iter().filter(|(s, _)| s.state == SnapshotState::Complete);
        let on_path = || complete().filter(|(s, _)| self.path.inherited(s.timeline).is_some());
        let Some((first, _)) = on_path().min_by_key(|(s, _)| s.started_at_us) else {
            let e = anyhow!(
                "there is no complete snapshot on the path of timeline {} to start from",
                self.path.last().id
            );
            let hint = match complete().max_by_key(|(s, _)| s.started_at_us) {
                Some((other, _)) => format!(
                    "take one with `mysql-pitr snapshot`, or choose another history: --timeline {} has one",
                    other.timeline
                ),
                None => "take one with `mysql-pitr snapshot`".to_owned(),
            };
            return with_hint(e, hint);
        };
        let held = fitness.iter().find_map(|(s, fit)| match fit {
            Err(Unfit::HoldsSkipped(held)) => Some((s, held)),
            _ => None,
        });
        if let Some((snapshot, held)) = held {
            let e = anyhow!(
                "transactions cannot be left out that every snapshot within the target holds already; {} holds {held}",
                snapshot.id
            );
            return with_hint(e, "recover to a moment before them, or bring back by hand what they undid");
        }
        let beyond = fitness.iter().filter_map(|(_, fit)| match fit {
            Err(Unfit::BeyondTarget(beyond)) => Some(beyond),
            _ => None,
        });
        if let (Target::Set(_), Some(beyond)) = (&self.request.target, beyond.min_by_key(|b| b.count())) {
            let e = anyhow!("the target set lacks transactions that every snapshot on its path holds; of the nearest: {beyond}");
            return with_hint(e, "add them to the set, or choose the history of before with --timeline");
        }
        let taken = clock::format_utc(first.finished_at_us.unwrap_or(first.started_at_us));
        with_hint(
            anyhow!("the target lies before every snapshot on its path; the first of them was complete at {taken}"),
            "choose a later target, or with --timeline the history of before; `mysql-pitr list` shows what there is",
        )
    }

    /// A snapshot's transactions have no commit time, and neither have those in a gap. Where nothing that was committed by the wanted
    /// moment follows them, only a snapshot that holds them and was complete by then says that they are not a later state.
    fn ensure_not_later(&self, resolved: &Resolved, snapshot: &Snapshot) -> Result<(), Obstacle> {
        let Target::Time(wanted_us) = self.request.target else {
            return Ok(());
        };
        if resolved.last.is_some() && resolved.undated.is_empty() {
            return Ok(());
        }
        let was_by_then = |s: &&Snapshot| {
            s.finished_at_us.is_some_and(|us| us <= wanted_us)
                && resolved.undated.is_subset(&s.gtids_before)
                && self.path.serves(s, &resolved.gtids, &self.request.skip).is_ok()
        };
        if self.survey.snapshots.iter().any(|s| was_by_then(&s)) {
            return Ok(());
        }
        let wanted = clock::format_utc(wanted_us);
        let complete = clock::format_utc(snapshot.finished_at_us.unwrap_or(i64::MAX));
        let Some(last) = &resolved.last else {
            let e = anyhow!(
                "this history knows nothing of {wanted}: its first snapshot was complete at {complete}, and no transaction is older"
            );
            let hint = "choose a later target, or with --timeline the history of before; `mysql-pitr list` shows what there is";
            return Err(with_hint(e, hint).into());
        };
        let e = anyhow!(
            "the archive has a gap at {wanted}: of {} transactions after {} nothing says when they were committed: {}",
            resolved.undated.count(),
            clock::format_utc(last.commit_us),
            resolved.undated
        );
        let hint = format!(
            "choose a moment up to {} or after {complete}; --latest-possible takes the former",
            clock::format_utc(last.commit_us)
        );
        let at = resolved
            .gaps
            .iter()
            .find(|g| !g.gtids.intersect(&resolved.undated).is_empty());
        Err(Obstacle {
            error: with_hint(e, hint),
            at: at.map(|g| g.at),
        })
    }

    fn warnings(&self, resolved: &Resolved, newly_skipped: &GtidSet, snapshot: &Snapshot, legs: &[Leg]) -> Vec<String> {
        let mut warnings = Vec::new();
        let errant = snapshot.errant.subtract(&resolved.gtids);
        if !errant.is_empty() {
            warnings.push(format!(
                "snapshot {} was taken of a replica that had executed transactions by itself; the recovered server has them too, and no \
                 other server of the shard: {errant}",
                snapshot.id
            ));
        }
        if !newly_skipped.is_empty() {
            warnings.push(format!(
                "{newly_skipped} is left out: an empty transaction takes its place. What came later may depend on it, and then either stops the \
                 replay with an error or changes other rows than it did"
            ));
        }
        if !resolved.left_out.is_empty() {
            warnings.push(format!(
                "the target set was never the state of a server: it leaves out {} in the middle of the history. What came later may depend on \
                 it",
                resolved.left_out
            ));
        }
        for fault in &self.survey.faults {
            let is_used = match &fault.subject {
                Subject::Binlog { place, .. } => legs.iter().any(|leg| leg.binlog.place() == place),
                Subject::Snapshot(id) => *id == snapshot.id,
                Subject::Timeline(_) => false,
            };
            if is_used {
                warnings.push(fault.to_string());
            } else {
                warnings.push(format!("not needed for this target: {}", fault.what));
            }
        }
        warnings
    }
}
