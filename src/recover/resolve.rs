//! A target resolved into the set of transactions that the recovered server shall hold.
//!
//! The set for a moment T is the longest prefix of the path's history before the first transaction that was committed
//! after T. Sealed binlogs are judged by their manifests; only the one in which the stop lies is read, and tails.

use anyhow::anyhow;

use crate::{
    archive::{
        keys::BinlogPlace,
        listing::{Archive, Form, covered_end},
        reader::{Flow, visit},
        records::Snapshot,
        survey::{Fault, Subject},
    },
    binlog::{
        gtid::{Gtid, GtidSet},
        transaction::{Tracker, Transaction},
    },
    store::StoreError,
    support::{
        clock,
        hint::{message, with_hint},
    },
};

use super::target::{Gap, History, PathBinlog, Resolved, Stop, Target, commit_us};

const LESS_WILL_DO: &str = "or accept the last state before that with --latest-possible";

/// Reads as little of the archive as `target` allows.
///
/// # Errors
/// Where the target cannot be reached; unless less will do, and is told in [`Resolved::shortfall`].
pub async fn resolve(archive: &Archive, history: History<'_>, target: &Target) -> anyhow::Result<Resolved> {
    let resolver = Resolver {
        archive,
        history,
        target,
        wanted: match target {
            Target::Position(p) => Some(p.find(history.binlogs, &archive.shard)?),
            _ => None,
        },
        gtids: GtidSet::new(),
        last: None,
        taken: None,
        order: Order::default(),
        read: Vec::new(),
        gaps: Vec::new(),
        undated: GtidSet::new(),
        not_inherited: None,
    };
    resolver.run().await
}

/// In which order the path's binlogs are taken: that of their timelines and of their server, unless one has to wait for others.
#[derive(Default)]
struct Order {
    /// Those before it were met.
    next: usize,
    waiting: Vec<usize>,
    taken: Vec<usize>,
}

struct Resolver<'a> {
    archive: &'a Archive,
    history: History<'a>,
    target: &'a Target,
    /// The binlog that the target names.
    wanted: Option<usize>,
    gtids: GtidSet,
    last: Option<Stop>,
    order: Order,
    /// The binlog that holds the last transaction, where that was taken by its manifest: which one it is, is not known then.
    taken: Option<usize>,
    read: Vec<(usize, GtidSet)>,
    gaps: Vec<Gap>,
    undated: GtidSet,
    /// The last transaction that was met in the binlog that is read, and that no successor inherits.
    not_inherited: Option<Gtid>,
}

impl Resolver<'_> {
    async fn run(mut self) -> anyhow::Result<Resolved> {
        while let Some(i) = self.next()? {
            if self.may_be_taken(i) && self.take_sealed(i) {
                continue;
            }
            let stop = match self.read_until_stop(i).await {
                Ok(stop) => stop,
                Err(e) => return self.less(e).await,
            };
            match (self.target, stop) {
                (Target::Gtid { gtid, exclusive: false }, Some(stop)) => {
                    self.gtids.insert(*gtid);
                    if let Some((_, set)) = self.read.last_mut() {
                        set.insert(*gtid);
                    }
                    (self.last, self.taken, self.undated) = (Some(stop), None, GtidSet::new());
                    return self.resolved(None).await;
                }
                (Target::Position(p), stop) if self.wanted == Some(i) => return self.at_position(i, p.position, stop).await,
                (_, Some(stop)) => return self.resolved(Some(stop)).await,
                (Target::Set(set), None) if set.is_subset(&self.gtids) => return self.resolved(None).await,
                (_, None) => {}
            }
        }
        self.at_the_end().await
    }

    /// Whether a sealed binlog's manifest says that the stop does not lie in it.
    fn may_be_taken(&self, i: usize) -> bool {
        let PathBinlog { binlog, inherited } = &self.history.binlogs[i];
        let Form::Sealed(manifest) = &binlog.form else { return false };
        match self.target {
            Target::Latest => true,
            Target::Time(us) => manifest.commit_us_max.is_none_or(|max| max <= *us),
            Target::Gtid { gtid, .. } => !manifest.gtids.contains(gtid),
            Target::Set(set) => {
                let left = set.subtract(&self.gtids).subtract(&inherited.of(&manifest.gtids));
                !left.is_subset(&inherited.of(&binlog.opening.held_before))
            }
            Target::Position(_) => self.wanted != Some(i),
        }
    }

    fn is_stop(&self, i: usize, t: &Transaction, gtids: &GtidSet) -> bool {
        match self.target {
            Target::Latest => false,
            Target::Time(us) => {
                let server = self.history.binlogs[i].binlog.place().server_uuid;
                commit_us(t, server, self.history.path) > *us
            }
            Target::Gtid { gtid, .. } => t.gtid == *gtid,
            Target::Set(set) => set.is_subset(gtids),
            Target::Position(p) => self.wanted == Some(i) && t.end > p.position,
        }
    }

    /// The binlog to be taken next.
    fn next(&mut self) -> anyhow::Result<Option<usize>> {
        let next = self.choose();
        if let Some(i) = next {
            self.order.taken.push(i);
        }
        let waits = |wanted: &usize| self.order.waiting.contains(wanted);
        if let Some(wanted) = self.wanted.filter(waits) {
            let place = self.history.binlogs[wanted].binlog.place();
            let e = anyhow!(
                "what lies before {place} was archived only by its server's successor, beside what the successor committed itself"
            );
            return Err(with_hint(
                e,
                "name the transaction with --target-gtid, in place of its position",
            ));
        }
        Ok(next)
    }

    fn choose(&mut self) -> Option<usize> {
        let binlogs = self.history.binlogs.len();
        if self.order.taken.len() == self.history.until() {
            return None;
        }
        if let Some(at) = self.order.waiting.iter().position(|i| !self.has_to_wait(*i)) {
            return Some(self.order.waiting.remove(at));
        }
        while self.order.next < binlogs {
            let i = self.order.next;
            self.order.next += 1;
            if !self.has_to_wait(i) {
                return Some(i);
            }
            self.order.waiting.push(i);
        }
        (!self.order.waiting.is_empty()).then(|| self.order.waiting.remove(0))
    }

    /// Whether what was executed before binlog `i`, and is in none that was taken, is in a later timeline's: a primary that dies with a
    /// backlog has shipped its live binlog, and what lies before that its successor ships.
    fn has_to_wait(&self, i: usize) -> bool {
        let unseen = self.unseen_before(i);
        if unseen.is_empty() || self.order.taken.is_empty() {
            return false;
        }
        let timelines = self.history.path.timelines();
        let own = self.history.binlogs[i].binlog.opening.timeline;
        let later = timelines.iter().skip_while(|t| t.id != own).skip(1);
        later.into_iter().any(|t| {
            let is_its = |b: &PathBinlog| b.binlog.opening.timeline == t.id;
            let first = self.history.binlogs.iter().find(|b| is_its(b));
            let is_met = !self.history.binlogs[self.order.next.min(self.history.binlogs.len())..]
                .iter()
                .any(is_its);
            let archived_again = |first: &PathBinlog| t.branch_set.subtract(&first.binlog.opening.held_before).intersect(&unseen);
            !is_met && first.is_some_and(|first| !archived_again(first).is_empty())
        })
    }

    /// What binlog `i` says was executed before it, and none that was taken has.
    fn unseen_before(&self, i: usize) -> GtidSet {
        let PathBinlog { binlog, inherited } = &self.history.binlogs[i];
        inherited.of(&binlog.opening.held_before).subtract(&self.gtids)
    }

    /// i8: what a binlog's server had executed before it and none before has is a gap.
    fn enter(&mut self, i: usize) {
        let unseen = self.unseen_before(i);
        if unseen.is_empty() {
            return;
        }
        self.gtids.add(&unseen);
        self.undated.add(&unseen);
        let at = self.order.taken.len() - 1;
        if at > 0 {
            self.gaps.push(Gap {
                gtids: unseen,
                before: self.history.binlogs[i].binlog.place().to_string(),
                at,
            });
        }
    }

    fn take_sealed(&mut self, i: usize) -> bool {
        let PathBinlog { binlog, inherited } = &self.history.binlogs[i];
        let Form::Sealed(manifest) = &binlog.form else { return false };
        self.enter(i);
        let counts = inherited.of(&manifest.gtids);
        if !counts.is_empty() {
            (self.last, self.taken) = (None, Some(i));
            if !counts.is_subset(&self.gtids) {
                self.undated = GtidSet::new();
            }
        }
        self.gtids.add(&counts);
        true
    }

    /// Reads a binlog up to the first transaction that counts and is the stop. What was read before an error counts.
    async fn read_until_stop(&mut self, i: usize) -> anyhow::Result<Option<Stop>> {
        self.enter(i);
        let PathBinlog { binlog, inherited } = &self.history.binlogs[i];
        let mut gtids = std::mem::take(&mut self.gtids);
        let mut tracker = Tracker::default();
        let (mut stopped, mut last, mut here, mut not_inherited) = (None, None, GtidSet::new(), None);
        let result = visit(self.archive, binlog, |piece| {
            let Some(t) = tracker.piece(piece)? else {
                return Ok(Flow::Continue);
            };
            if !inherited.contains(&t.gtid) {
                let is_behind = matches!(self.target, Target::Position(_)) && self.is_stop(i, &t, &gtids);
                if is_behind {
                    return Ok(Flow::Enough);
                }
                not_inherited = Some(t.gtid);
                return Ok(Flow::Continue);
            }
            if gtids.contains(&t.gtid) && !here.contains(&t.gtid) {
                return Ok(Flow::Continue);
            }
            let at = Stop::at(&t, binlog, self.history.path);
            if self.is_stop(i, &t, &gtids) {
                stopped = Some(at);
                return Ok(Flow::Enough);
            }
            here.insert(t.gtid);
            gtids.insert(t.gtid);
            last = Some(at);
            Ok(Flow::Continue)
        })
        .await;
        self.gtids = gtids;
        if last.is_some() {
            (self.last, self.taken, self.undated) = (last, None, GtidSet::new());
        }
        self.read.push((i, here));
        self.not_inherited = not_inherited;
        result.map(|()| stopped)
    }

    async fn at_position(self, i: usize, position: u64, stop: Option<Stop>) -> anyhow::Result<Resolved> {
        let binlog = &self.history.binlogs[i].binlog;
        if let Some(gtid) = self.not_inherited {
            let e = anyhow!(
                "{} at {position} lies behind transaction {gtid}, which no successor of timeline {} inherited",
                binlog.place(),
                binlog.opening.timeline
            );
            let hint = format!("recover that history with --timeline {}", binlog.opening.timeline);
            return Err(with_hint(e, hint));
        }
        let end = binlog.bytes();
        if position <= end {
            return self.resolved(stop).await;
        }
        let place = binlog.place().to_string();
        if matches!(binlog.form, Form::Sealed(_)) {
            let e = anyhow!("there is no position {position} in {place}: it ends at {end}");
            return Err(with_hint(e, "positions are bytes from the beginning of that very binlog"));
        }
        let e = anyhow!("the archive holds {place} only up to {end}, and not the target {position}");
        self.less(with_hint(e, format!("choose a position that was archived, {LESS_WILL_DO}")))
            .await
    }

    /// The history ended before the target.
    async fn at_the_end(mut self) -> anyhow::Result<Resolved> {
        if let Some((_, why)) = self.history.cut {
            let why = why.to_owned();
            return Ok(Resolved {
                shortfall: Some(why),
                ..self.resolved(None).await?
            });
        }
        if let Err(e) = self.ensure_whole().await {
            return self.less(e).await;
        }
        let e = match self.target {
            Target::Latest => {
                self.end_with_a_snapshot();
                return self.resolved(None).await;
            }
            Target::Position(_) => return self.resolved(None).await,
            Target::Time(us) => {
                self.last = self.find_last().await?;
                self.taken = None;
                let e = match &self.last {
                    Some(last) => anyhow!(
                        "the archive ends at {}, before the target {}",
                        clock::format_utc(last.commit_us),
                        clock::format_utc(*us)
                    ),
                    None => anyhow!("the archive holds no transaction yet"),
                };
                with_hint(
                    e,
                    "nothing later is known; use --latest to recover everything that was archived, or --latest-possible beside the target",
                )
            }
            Target::Gtid { gtid, .. } => {
                let e = anyhow!("the archive's path does not hold transaction {gtid}");
                let e = with_hint(
                    e,
                    "`mysql-pitr list` shows what is archived; a transaction that no successor inherited lies on another timeline (--timeline)",
                );
                // Of any other, nobody knows that everything that is here lies before it.
                if self.gtids.last_of(gtid.tsid).is_none_or(|last| last >= gtid.gno) {
                    return Err(e);
                }
                e
            }
            Target::Set(set) => {
                let missing = set.subtract(&self.gtids);
                let e = anyhow!(
                    "the archive's path lacks {} transactions of the target set: {missing}",
                    missing.count()
                );
                let hint = format!(
                    "`mysql-pitr list` shows what is archived; take them out of the set, choose another history with --timeline, {LESS_WILL_DO}"
                );
                with_hint(e, hint)
            }
        };
        self.less(e).await
    }

    /// A snapshot may be newer than everything that was shipped: then the history ends with it. What it may or may not hold must have been
    /// shipped, for nobody else has it.
    fn end_with_a_snapshot(&mut self) {
        let beyond = |s: &Snapshot| s.gtids_before.subtract(&s.errant).subtract(&self.gtids);
        let is_known = |s: &Snapshot| {
            let held = s.gtids_after.as_ref();
            held.is_some_and(|held| held.is_subset(&s.gtids_before.union(&self.gtids)))
        };
        let snapshots = self.history.snapshots.iter().filter(|s| is_known(s));
        let Some((unseen, snapshot)) = snapshots.map(|s| (beyond(s), s)).max_by_key(|(unseen, _)| unseen.count()) else {
            return;
        };
        if unseen.is_empty() {
            return;
        }
        self.gtids.add(&unseen);
        self.undated.add(&unseen);
        // When the last of these was committed nobody knows.
        (self.last, self.taken) = (None, None);
        self.gaps.push(Gap {
            gtids: unseen,
            before: format!("snapshot {}", snapshot.id),
            at: self.order.taken.len(),
        });
    }

    /// Where less will do, what there is is the answer, and the error the reason.
    async fn less(self, e: anyhow::Error) -> anyhow::Result<Resolved> {
        // A store that is away says nothing of the archive.
        let is_transient = e
            .chain()
            .any(|cause| cause.downcast_ref::<StoreError>().is_some_and(StoreError::is_transient));
        // What else holds a sealed binlog has not been looked at yet.
        let is_news = Fault::of_new_damage(&e, self.history.faults).is_some();
        if !self.history.latest_possible || is_transient || is_news {
            return Err(e);
        }
        Ok(Resolved {
            shortfall: Some(message(&e)),
            ..self.resolved(None).await?
        })
    }

    /// i8: what is stored but cannot be reached is a gap, and must not look like the end of the history. Gaps before the last
    /// binlog show in what the next one says was executed before it.
    async fn ensure_whole(&mut self) -> anyhow::Result<()> {
        let url = self.archive.store.url();
        self.last = self.find_last().await?;
        self.taken = None;
        let before = self.last.as_ref().map_or_else(String::new, |s| {
            format!(
                ", or recover what lies before it with --target-gtid {} or --latest-possible",
                s.gtid
            )
        });
        let hint = format!(
            "if it was being shipped at this moment, try again; else restore the object from the other region's bucket{before}"
        );
        let last = self.history.binlogs.last().map(|b| &b.binlog);
        if let Some(binlog) = last
            && let Form::Tail(segments) = &binlog.form
        {
            let end = covered_end(segments);
            if let Some(beyond) = segments.iter().find(|s| s.range.start > end) {
                let e = anyhow!(
                    "{} has a hole: its bytes from {end} on are missing before object {url}/{}",
                    binlog.place(),
                    beyond.key
                );
                return Err(with_hint(e, hint));
            }
        }
        let fault = self.history.faults.iter().find(|f| match &f.subject {
            Subject::Binlog {
                place,
                segments_until,
                holds,
            } => self.may_be_the_end(place, *segments_until, holds.as_ref()),
            _ => false,
        });
        match fault {
            None => Ok(()),
            Some(fault) => Err(with_hint(anyhow!("{}", fault.what), hint)),
        }
    }

    /// Whether a binlog that is at fault may hold what comes after everything that can be read.
    fn may_be_the_end(&self, place: &BinlogPlace, segments_until: u64, holds: Option<&GtidSet>) -> bool {
        let path = self.history.binlogs;
        if segments_until > 0 {
            let lacks = |last: &PathBinlog| holds.is_none_or(|holds| !last.inherited.of(holds).is_subset(&self.gtids));
            return path.last().is_some_and(|last| last.binlog.place() == place && lacks(last));
        }
        let later =
            |b: &PathBinlog| b.binlog.place().server_uuid == place.server_uuid && b.binlog.place().number() > place.number();
        place.server_uuid == self.history.path.last().server_uuid && !path.iter().any(later)
    }

    async fn resolved(mut self, first_left_out: Option<Stop>) -> anyhow::Result<Resolved> {
        let (gtids, left_out) = match self.target {
            Target::Set(set) => (set.intersect(&self.gtids), self.gtids.subtract(set)),
            _ => (self.gtids.clone(), GtidSet::new()),
        };
        Ok(Resolved {
            last: self.find_last().await?,
            gtids,
            binlogs: self.order.taken,
            first_left_out,
            read: self.read,
            gaps: self.gaps,
            undated: self.undated,
            left_out,
            shortfall: None,
        })
    }

    /// The last transaction that is included.
    async fn find_last(&mut self) -> anyhow::Result<Option<Stop>> {
        let Some(i) = self.taken else { return Ok(self.last.take()) };
        let PathBinlog { binlog, inherited } = &self.history.binlogs[i];
        let (mut tracker, mut last) = (Tracker::default(), None);
        visit(self.archive, binlog, |piece| {
            if let Some(t) = tracker.piece(piece)?
                && inherited.contains(&t.gtid)
            {
                last = Some(Stop::at(&t, binlog, self.history.path));
            }
            Ok(Flow::Continue)
        })
        .await?;
        Ok(last)
    }
}
