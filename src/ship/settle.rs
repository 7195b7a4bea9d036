//! A server against the archive: on which timeline it goes on, and what is to be shipped.

use std::path::Path as FilePath;

use anyhow::{Context, bail};
use tracing::error;

use crate::{
    archive::{
        listing::Archive,
        path,
        records::{DESCENT_FILE, Descent, Reason, Timeline},
    },
    mysql::server::{Server, ServerState},
};

use super::{
    lineage::{Claim, Claimant, Word, claim_timeline, is_primary, settle, warn_if_off_the_path},
    reconcile::{Todo, reconcile},
    standing::Standing,
};

/// A server against the archive.
pub struct Settled {
    pub timeline: Timeline,
    pub todo: Todo,
    /// The shard's current timeline then.
    pub tip: Option<u32>,
}

/// What is said of the server.
#[derive(Debug, Clone)]
pub struct Says {
    /// That it is the shard's primary.
    pub word: Option<Word>,
    /// There is nobody to say that.
    pub is_standalone: bool,
    /// An unknown server gets no timeline by this.
    pub is_settled: bool,
}

/// The timeline that the server's data belong to. A primary's is claimed if it has none, or if its history is not the one that was
/// shipped; a replica's is the shard's current one.
pub async fn timeline_of(archive: &Archive, server: &dyn Server, standing: &Standing) -> anyhow::Result<Timeline> {
    let state = server.look().await?;
    if standing.ships() {
        // Who takes over is the shipper's to settle, by what is said of the server then.
        let says = Says {
            word: None,
            is_standalone: standing.standalone,
            is_settled: true,
        };
        return Ok(settle_and_reconcile(archive, server, &state, &says).await?.timeline);
    }
    archive.ensure_open().await?;
    let timelines = archive.timelines().await?;
    let tip = path::tip(&timelines).context("the archive has no timeline yet: the primary's agent claims the first")?;
    let missing = tip.branch_set.subtract(&state.gtid_executed);
    if !missing.is_empty() {
        bail!(
            "this replica does not belong to the shard's current timeline {}: it lacks {missing}, with which that one began",
            tip.id
        );
    }
    Ok(tip.clone())
}

/// The timeline on which a primary goes on, claimed if it has none, or if its history is not the one that was shipped.
pub async fn settle_and_reconcile(
    archive: &Archive,
    server: &dyn Server,
    state: &ServerState,
    says: &Says,
) -> anyhow::Result<Settled> {
    archive.ensure_open().await?;
    let descent = read_descent(&state.datadir, archive)?;
    let claimant = Claimant {
        server_uuid: state.server_uuid,
        gtid_executed: &state.gtid_executed,
        descent: descent.as_ref(),
        word: says.word.as_ref(),
        standalone: says.is_standalone,
    };
    // A claim is made on what the decision was based on: whoever decides the same at the same moment collides with it.
    let (mut timeline, mut timelines) = settle(archive, &claimant, says.is_settled).await?;
    let mut todo = reconcile(archive, server, state, &timelines, &timeline).await?;
    if todo.history_was_replaced {
        error!("the server's history begins anew (RESET BINARY LOGS AND GTIDS?): a new root timeline and a snapshot follow");
        let claim = Claim::root(Reason::Reset, is_primary(&timelines, state.server_uuid));
        timeline = claim_timeline(archive, &timelines, state.server_uuid, claim).await?;
        timelines.push(timeline.clone());
        // What the old history left behind is none of the root's business.
        todo = reconcile(archive, server, state, &timelines, &timeline).await?;
    } else if let Some(older) = timelines.iter().find(|t| Some(t.id) == todo.went_back_to) {
        timeline = older.clone();
    }
    warn_if_off_the_path(&timelines, &claimant, &timeline);
    let tip = path::tip(&timelines).map(|t| t.id);
    Ok(Settled { timeline, todo, tip })
}

/// What `recover` left in the datadir, if this server comes from it.
pub fn read_descent(datadir: &FilePath, archive: &Archive) -> anyhow::Result<Option<Descent>> {
    let path = datadir.join(DESCENT_FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        // A server that was never recovered has no such file; one that was may not be mistaken for it.
        Err(e) => return Err(e).with_context(|| format!("cannot see whether {} is there", path.display())),
    };
    let descent: Descent = serde_json::from_slice(&bytes).with_context(|| format!("{} is unreadable", path.display()))?;
    Ok((descent.shard == archive.shard.to_string()).then_some(descent))
}
