//! On which timeline this server's transactions belong, and the claiming of new ones.
//!
//! Only a word from outside (Orchestrator's, an operator's), or descent from a recovery, puts a server in the place of the one
//! that the current timeline names. Without it a server is shipped all the same, so that nothing is lost, on a timeline
//! that is not adopted. Once the word comes, it claims another one, on the current path, and what it wrote meanwhile is shipped again
//! there: what an unadopted timeline holds was never judged by the rules of the path.

use anyhow::{Context, anyhow, bail};
use tracing::{error, info};
use uuid::Uuid;

use crate::{
    archive::{
        keys,
        listing::Archive,
        path::{self, Path, PathError},
        records::{Descent, FORMAT_VERSION, Reason, Timeline},
    },
    binlog::gtid::GtidSet,
    store::Put,
    support::hint::with_hint,
};

/// What decides where a server belongs.
#[derive(Debug, Clone)]
pub struct Claimant<'a> {
    pub server_uuid: Uuid,
    pub gtid_executed: &'a GtidSet,
    /// Where `recover` made this server: what it left in the datadir.
    pub descent: Option<&'a Descent>,
    /// Who says that this server is the shard's primary.
    pub word: Option<&'a Word>,
    /// There is nobody who could say it: a recovered server speaks for itself.
    pub standalone: bool,
}

/// Somebody's word that a server is the shard's primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// Orchestrator's, and where it was asked.
    Orchestrator(String),
    /// An operator's; `anew`: though the server does not descend from the current timeline.
    Operator { name: String, anew: bool },
}

impl Word {
    fn reason(&self) -> Reason {
        match self {
            Word::Orchestrator(_) => Reason::Promotion,
            Word::Operator { .. } => Reason::Adoption,
        }
    }

    fn text(&self) -> &str {
        match self {
            Word::Orchestrator(who) => who,
            Word::Operator { name, .. } => name,
        }
    }
}

/// What a claim is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub parent: Option<u32>,
    pub branch_set: GtidSet,
    pub reason: Reason,
    pub adopted: bool,
    pub confirmed_by: Option<String>,
    /// What of the inherited history the server holds as empty transactions.
    pub skipped: GtidSet,
}

impl Claim {
    /// What a root inherits: nothing.
    pub fn root(reason: Reason, adopted: bool) -> Claim {
        Claim {
            parent: None,
            branch_set: GtidSet::new(),
            reason,
            adopted,
            confirmed_by: None,
            skipped: GtidSet::new(),
        }
    }

    /// The record of a claim that is made now.
    pub fn record(self, id: u32, server_uuid: Uuid, claimed_at_us: i64) -> Timeline {
        Timeline {
            format: FORMAT_VERSION,
            id,
            parent: self.parent,
            server_uuid,
            branch_set: self.branch_set,
            reason: self.reason,
            adopted: self.adopted,
            confirmed_by: self.confirmed_by,
            skipped: self.skipped,
            nonce: Uuid::new_v4(),
            claimed_at_us,
        }
    }
}

/// The number that the next claim gets.
pub fn next_id(timelines: &[Timeline]) -> u32 {
    timelines.iter().map(|t| t.id).max().unwrap_or(0) + 1
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Continue(u32),
    Claim(Claim),
}

/// The rules of who goes on where; pure.
///
/// # Errors
/// Where the timelines contradict each other.
pub fn decide(timelines: &[Timeline], claimant: &Claimant<'_>) -> Result<Decision, PathError> {
    let Some(tip) = path::tip(timelines) else {
        return Ok(Decision::Claim(Claim::root(Reason::FirstStart, true)));
    };
    let confirmed_by = claimant.word.map(|w| w.text().to_owned());
    if let Some(word @ Word::Operator { anew: true, .. }) = claimant.word {
        return Ok(Decision::Claim(Claim {
            confirmed_by,
            ..Claim::root(word.reason(), true)
        }));
    }
    if tip.server_uuid == claimant.server_uuid {
        return Ok(Decision::Continue(tip.id));
    }
    let own = newest_own(timelines, claimant.server_uuid);
    // A recovered server took history back on purpose: what it descends from is not for sets to say.
    if let Some(descent) = claimant.descent.filter(|d| speaks_for(d, claimant))
        && is_first_or_adopts(timelines, own, claimant)?
    {
        return Ok(Decision::Claim(Claim {
            parent: Some(descent.parent),
            branch_set: descent.branch_set.clone(),
            reason: Reason::Recovery,
            adopted: claimant.standalone || claimant.word.is_some(),
            confirmed_by,
            skipped: descent.skipped.clone(),
        }));
    }
    let claim = |parent: u32| {
        Decision::Claim(Claim {
            parent: Some(parent),
            branch_set: claimant.gtid_executed.clone(),
            reason: claimant.word.map_or(Reason::UnknownServer, Word::reason),
            adopted: claimant.word.is_some(),
            confirmed_by,
            skipped: GtidSet::new(),
        })
    };
    let base = base(timelines, tip, claimant)?;
    Ok(match (claimant.word, base, own) {
        (Some(_), Some(base), _) => claim(base.id),
        (None, Some(base), None) => claim(base.id),
        (None, Some(base), Some(own)) if has_replicated_since(own, claimant) => claim(base.id),
        (_, _, Some(own)) => Decision::Continue(own.id),
        (_, None, None) => Decision::Claim(Claim::root(Reason::UnknownServer, false)),
    })
}

/// Whether the server is what was recovered then. One that has replicated since, as a rebuilt replica does, has the history of whom it
/// replicated from.
fn speaks_for(descent: &Descent, claimant: &Claimant<'_>) -> bool {
    let since = claimant.gtid_executed.subtract(&descent.branch_set);
    descent.server_uuid == claimant.server_uuid && since.uuids().all(|uuid| uuid == claimant.server_uuid)
}

fn newest_own(timelines: &[Timeline], server_uuid: Uuid) -> Option<&Timeline> {
    timelines.iter().filter(|t| t.server_uuid == server_uuid).max_by_key(|t| t.id)
}

/// Whether a recovered server has no timeline yet, or one that was not adopted and that it has a word for now.
fn is_first_or_adopts(timelines: &[Timeline], own: Option<&Timeline>, claimant: &Claimant<'_>) -> Result<bool, PathError> {
    let Some(own) = own else { return Ok(true) };
    let path = Path::find(timelines, Some(own.id))?;
    Ok(claimant.word.is_some() && !own.adopted && path.own_line()[0].reason == Reason::Recovery)
}

/// Whether the server has executed other servers' transactions since it claimed `own`: then it was a replica in between, and what
/// it does now does not go on from there.
fn has_replicated_since(own: &Timeline, claimant: &Claimant<'_>) -> bool {
    let since = claimant.gtid_executed.subtract(&own.branch_set);
    own.parent.is_some() && since.uuids().any(|uuid| uuid != claimant.server_uuid)
}

/// The timeline on the current path that the server descends from: it holds what that one began with, and so can have been its
/// replica. Where the primary's own agent was quicker than its successor's, the current timeline is the one that began with the
/// primary's crash, and the successor may lack the last transactions before it: so crashes are gone behind. An operator's
/// word goes behind everything.
fn base<'t>(timelines: &'t [Timeline], tip: &'t Timeline, claimant: &Claimant<'_>) -> Result<Option<&'t Timeline>, PathError> {
    let is_operators = matches!(claimant.word, Some(Word::Operator { .. }));
    if claimant.gtid_executed.is_empty() || !is_operators && goes_on_alone(timelines, tip, claimant)? {
        return Ok(None);
    }
    let mut base = Some(tip);
    while let Some(behind) = base.filter(|b| !b.branch_set.is_subset(claimant.gtid_executed)) {
        let parent = behind.parent.filter(|_| is_operators || behind.reason == Reason::Crash);
        base = timelines.iter().find(|t| Some(t.id) == parent);
    }
    Ok(base)
}

/// Whether the server is a deposed primary that went on by itself. It holds what its successor began with, and more of its own; a
/// server that followed the successor holds transactions of that one: since the successor's claim, or, where it wrote before that and
/// not after, since this server's own last one.
fn goes_on_alone(timelines: &[Timeline], tip: &Timeline, claimant: &Claimant<'_>) -> Result<bool, PathError> {
    let path = Path::find(timelines, Some(tip.id))?;
    let Some(deposed) = newest_own(timelines, claimant.server_uuid).filter(|own| path.holds(own.id)) else {
        return Ok(false);
    };
    let holds_of = |server: Uuid, since: &Timeline| {
        let gtids = claimant.gtid_executed.subtract(&since.branch_set);
        gtids.uuids().any(|uuid| uuid == server)
    };
    let successors = &path.own_line()[0];
    let followed = holds_of(tip.server_uuid, successors) || deposed.parent.is_some() && holds_of(tip.server_uuid, deposed);
    Ok(holds_of(claimant.server_uuid, successors) && !followed)
}

/// The timeline on which the server goes on, claimed if need be, and the timelines with it. `is_settled`: it is an error if the server
/// is unknown.
pub async fn settle(archive: &Archive, claimant: &Claimant<'_>, is_settled: bool) -> anyhow::Result<(Timeline, Vec<Timeline>)> {
    let mut timelines = archive.timelines().await?;
    let timeline = match decide(&timelines, claimant)? {
        Decision::Continue(id) => {
            let own = timelines.iter().find(|t| t.id == id);
            own.with_context(|| format!("timeline {id} has vanished from the archive"))?
                .clone()
        }
        Decision::Claim(claim) if is_settled && claim.reason == Reason::UnknownServer => {
            let e = anyhow!("nobody has said yet that this server is the shard's primary");
            return Err(with_hint(
                e,
                "start the agent on it; or, if it was promoted by hand, run `mysql-pitr adopt`",
            ));
        }
        Decision::Claim(claim) => {
            let claimed = claim_timeline(archive, &timelines, claimant.server_uuid, claim).await?;
            timelines.push(claimed.clone());
            claimed
        }
    };
    Ok((timeline, timelines))
}

/// Whether the shard's current timeline is this server's: then so is what it claims after a crash or a RESET.
pub fn is_primary(timelines: &[Timeline], server_uuid: Uuid) -> bool {
    path::tip(timelines).is_some_and(|tip| tip.server_uuid == server_uuid)
}

/// Says why a server's transactions are left out by recovery, and what to do; nothing where they are not.
pub fn warn_if_off_the_path(timelines: &[Timeline], claimant: &Claimant<'_>, own: &Timeline) {
    let Some(tip) = path::tip(timelines).filter(|tip| tip.server_uuid != own.server_uuid) else {
        return;
    };
    let missing = tip.branch_set.subtract(claimant.gtid_executed);
    let why = if !missing.is_empty() {
        format!("it lacks transactions that the current timeline began with: {missing}")
    } else if claimant.word.is_some() {
        "it went on by itself after the current timeline's server took over, and holds nothing that that one wrote since"
            .to_owned()
    } else if claimant.standalone {
        "nobody says that it was promoted".to_owned()
    } else {
        "Orchestrator does not say that it was promoted".to_owned()
    };
    error!(
        timeline = own.id,
        current_timeline = tip.id,
        current_server = %tip.server_uuid,
        server_uuid = %own.server_uuid,
        "this server is not the one that the shard's current timeline names: what it writes is shipped, but recovery leaves it out; {why}; \
         hint: if it is the shard's primary, run `mysql-pitr adopt` on it; if it is not, make it read-only"
    );
}

/// Writes the next timeline. Two claimants race for its number, and one loses.
pub async fn claim_timeline(
    archive: &Archive,
    timelines: &[Timeline],
    server_uuid: Uuid,
    claim: Claim,
) -> anyhow::Result<Timeline> {
    // A store that took over from another region's leaves the numbers alone that were claimed there.
    let id = next_id(timelines).max(archive.timelines_from().await?);
    let record = claim.record(id, server_uuid, archive.clock.now_us());
    let key = keys::timeline_key(&archive.shard, id);
    if !archive.put_record(&key, &record, Put::IfAbsent).await? {
        // The store's client may have met its own success after a lost answer; the nonce tells.
        let (stored, _): (Timeline, _) = archive.record(&key).await?;
        if stored.nonce != record.nonce {
            bail!(
                "timeline {id} was claimed by server {} at the same moment; trying again",
                stored.server_uuid
            );
        }
    }
    info!(timeline = id, reason = ?record.reason, parent = ?record.parent, adopted = record.adopted, "claimed a timeline");
    Ok(record)
}

#[cfg(test)]
mod tests {
    use crate::archive::examples::{self, SERVER as A};

    use super::*;

    const B: Uuid = Uuid::from_u128(2);
    const C: Uuid = Uuid::from_u128(3);

    /// The first `count` transactions of server A.
    fn first(count: u64) -> GtidSet {
        if count == 0 {
            return GtidSet::new();
        }
        format!("{A}:1-{count}").parse().unwrap()
    }

    /// The first `count` transactions of another server.
    fn of(server: Uuid, count: u64) -> GtidSet {
        format!("{server}:1-{count}").parse().unwrap()
    }

    fn timeline(id: u32, parent: Option<u32>, server_uuid: Uuid, branch_set: GtidSet, adopted: bool) -> Timeline {
        Timeline {
            server_uuid,
            adopted,
            ..examples::timeline(id, parent, branch_set)
        }
    }

    fn claimant<'a>(server_uuid: Uuid, gtid_executed: &'a GtidSet, word: Option<&'a Word>) -> Claimant<'a> {
        Claimant {
            server_uuid,
            gtid_executed,
            descent: None,
            word,
            standalone: word.is_none(),
        }
    }

    fn orchestrator() -> Word {
        Word::Orchestrator("orchestrator".into())
    }

    fn operator(anew: bool) -> Word {
        Word::Operator {
            name: "ann".into(),
            anew,
        }
    }

    fn claimed(decision: Result<Decision, PathError>) -> Claim {
        match decision.unwrap() {
            Decision::Claim(claim) => claim,
            Decision::Continue(id) => panic!("goes on with {id}"),
        }
    }

    /// A failover from A to B, claimed with a word.
    fn failed_over() -> Vec<Timeline> {
        vec![timeline(1, None, A, first(0), true), timeline(2, Some(1), B, first(10), true)]
    }

    #[test]
    fn the_first_server_claims_the_root_and_goes_on_with_it() {
        let has = first(5);
        let claim = claimed(decide(&[], &claimant(A, &has, None)));
        assert_eq!(claim, Claim::root(Reason::FirstStart, true));
        let timelines = [timeline(1, None, A, first(0), true)];
        assert_eq!(decide(&timelines, &claimant(A, &has, None)), Ok(Decision::Continue(1)));
    }

    #[test]
    fn a_confirmed_server_that_descends_is_the_next_on_the_path() {
        let (timelines, has, word) = ([timeline(1, None, A, first(0), true)], first(10), orchestrator());
        let claim = claimed(decide(&timelines, &claimant(B, &has, Some(&word))));
        assert_eq!(
            (claim.parent, claim.adopted, claim.reason, claim.branch_set),
            (Some(1), true, Reason::Promotion, has.clone())
        );
        assert_eq!(claim.confirmed_by.as_deref(), Some("orchestrator"));
        assert_eq!(decide(&failed_over(), &claimant(B, &has, None)), Ok(Decision::Continue(2)));
    }

    /// Orchestrator may answer later than the server is written to.
    #[test]
    fn an_unconfirmed_server_ships_off_the_path_and_is_adopted_on_it() {
        let (mut timelines, has) = (vec![timeline(1, None, A, first(0), true)], first(10));
        let claim = claimed(decide(&timelines, &claimant(B, &has, None)));
        assert_eq!(
            (claim.parent, claim.adopted, claim.reason),
            (Some(1), false, Reason::UnknownServer)
        );
        timelines.push(timeline(2, Some(1), B, first(10), false));
        assert_eq!(decide(&timelines, &claimant(B, &has, None)), Ok(Decision::Continue(2)));
        for word in [orchestrator(), operator(false)] {
            let claim = claimed(decide(&timelines, &claimant(B, &has, Some(&word))));
            assert_eq!((claim.parent, claim.adopted, claim.reason), (Some(1), true, word.reason()));
        }
    }

    /// A server that was writable for a moment, long ago, went on as a replica.
    #[test]
    fn a_stale_unconfirmed_timeline_is_not_gone_on_with() {
        let timelines = [
            timeline(1, None, A, first(0), true),
            timeline(2, Some(1), B, first(10), false),
        ];
        let mine = first(10).union(&of(B, 3));
        assert_eq!(decide(&timelines, &claimant(B, &mine, None)), Ok(Decision::Continue(2)));
        let claim = claimed(decide(&timelines, &claimant(B, &first(50), None)));
        assert_eq!((claim.parent, claim.adopted), (Some(1), false));
    }

    #[test]
    fn a_deposed_primary_is_promoted_again_only_if_it_followed_its_successor() {
        let (timelines, word) = (failed_over(), orchestrator());
        let alone = first(12);
        assert_eq!(decide(&timelines, &claimant(A, &alone, None)), Ok(Decision::Continue(1)));
        // Orchestrator's word may be from before the failover, and a split may give it to both.
        assert_eq!(
            decide(&timelines, &claimant(A, &alone, Some(&word))),
            Ok(Decision::Continue(1))
        );
        let followed = first(12).union(&of(B, 3));
        for has in [&followed, &first(10)] {
            let claim = claimed(decide(&timelines, &claimant(A, has, Some(&word))));
            assert_eq!((claim.parent, claim.adopted), (Some(2), true));
        }
        let claim = claimed(decide(&timelines, &claimant(A, &alone, Some(&operator(false)))));
        assert_eq!((claim.parent, claim.adopted), (Some(2), true));
    }

    /// There and back on a quiet shard: all that the one in between wrote, it wrote before it had claimed its timeline.
    #[test]
    fn a_primary_that_followed_a_successor_which_wrote_early_is_promoted_again() {
        let mut timelines = failed_over();
        let in_between = first(12).union(&of(B, 5));
        timelines.push(timeline(3, Some(2), A, first(10).union(&of(B, 3)), true));
        timelines.push(timeline(4, Some(3), B, in_between.clone(), true));
        let (has, word) = (first(14).union(&in_between), orchestrator());
        let claim = claimed(decide(&timelines, &claimant(A, &has, Some(&word))));
        assert_eq!((claim.parent, claim.adopted), (Some(4), true));
    }

    #[test]
    fn an_alien_needs_an_operators_word() {
        let (timelines, has) = (failed_over(), first(9));
        for word in [None, Some(orchestrator())] {
            let claim = claimed(decide(&timelines, &claimant(C, &has, word.as_ref())));
            assert_eq!(claim, Claim::root(Reason::UnknownServer, false));
        }
        let word = operator(false);
        let claim = claimed(decide(&timelines, &claimant(C, &has, Some(&word))));
        assert_eq!((claim.parent, claim.adopted), (Some(1), true));
        let word = operator(true);
        let claim = claimed(decide(&timelines, &claimant(C, &has, Some(&word))));
        assert_eq!((claim.parent, claim.adopted, claim.reason), (None, true, Reason::Adoption));
    }

    /// The old primary's agent claimed the child of the crash before anybody was promoted, and it was writable for a moment.
    #[test]
    fn a_promoted_server_goes_behind_the_crash_whose_last_transactions_it_lacks() {
        let crashed = Timeline {
            reason: Reason::Crash,
            ..timeline(2, Some(1), A, first(10), true)
        };
        let (timelines, word) = ([timeline(1, None, A, first(0), true), crashed], orchestrator());
        for (count, parent) in [(9, 1), (10, 2)] {
            let has = first(count);
            let claim = claimed(decide(&timelines, &claimant(B, &has, Some(&word))));
            assert_eq!((claim.parent, claim.adopted), (Some(parent), true));
        }
    }

    /// Where Orchestrator is asked, a drill that somebody starts an agent on must not take the path.
    #[test]
    fn a_recovered_server_claims_a_child_once_and_needs_a_word_where_there_is_somebody_to_say_it() {
        let (mut timelines, has) = (vec![timeline(1, None, A, first(0), true)], first(3));
        let descent = Descent {
            format: 1,
            shard: "s".into(),
            parent: 1,
            server_uuid: B,
            branch_set: first(3),
            skipped: first(1),
        };
        let recovered = |word, standalone| Claimant {
            descent: Some(&descent),
            standalone,
            ..claimant(B, &has, word)
        };
        let word = orchestrator();
        for (word, standalone, adopted) in [(None, true, true), (None, false, false), (Some(&word), false, true)] {
            let claim = claimed(decide(&timelines, &recovered(word, standalone)));
            assert_eq!(
                (claim.parent, claim.adopted, claim.reason),
                (Some(1), adopted, Reason::Recovery)
            );
            assert_eq!(claim.skipped, descent.skipped);
        }
        // Rebuilt by a recovery, it followed the primary, and is promoted.
        let followed = first(7);
        let replica = Claimant {
            gtid_executed: &followed,
            ..recovered(Some(&word), false)
        };
        let claim = claimed(decide(&timelines, &replica));
        assert_eq!((claim.reason, claim.branch_set), (Reason::Promotion, followed.clone()));
        // Meanwhile the old primary went on, on a new timeline; the recovered server lacks what it began with, and is adopted all the same.
        timelines.push(Timeline {
            reason: Reason::Recovery,
            ..timeline(2, Some(1), B, first(3), false)
        });
        timelines.push(timeline(3, Some(1), A, first(8), true));
        assert_eq!(decide(&timelines, &recovered(None, false)), Ok(Decision::Continue(2)));
        let claim = claimed(decide(&timelines, &recovered(Some(&word), false)));
        assert_eq!((claim.parent, claim.adopted), (Some(1), true));
        assert_eq!((&claim.branch_set, &claim.skipped), (&descent.branch_set, &descent.skipped));
    }
}
