//! An operator's word that a server is the shard's primary.

use anyhow::{anyhow, bail};

use crate::{
    archive::{listing::Archive, path, records::Timeline},
    mysql::server::Server,
    support::hint::with_hint,
};

use super::{
    lineage::{Claimant, Decision, Word, claim_timeline, decide, next_id},
    settle::read_descent,
};

/// What the operator says.
#[derive(Debug, Clone)]
pub struct Adoption {
    pub operator: String,
    /// Though the server does not descend from the current timeline.
    pub anew: bool,
    /// Nothing is stored.
    pub dry_run: bool,
}

/// Claims the shard's current timeline for `server`.
///
/// # Errors
/// Where it has it already, or has a history that the archive knows nothing of and `anew` was not said.
pub async fn adopt(archive: &Archive, server: &dyn Server, adoption: &Adoption) -> anyhow::Result<Timeline> {
    archive.ensure_open().await?;
    let state = server.look().await?;
    let descent = read_descent(&state.datadir, archive)?;
    let timelines = archive.timelines().await?;
    let Some(tip) = path::tip(&timelines) else {
        let e = anyhow!("shard {} has no timeline yet: there is nothing to take over", archive.shard);
        return Err(with_hint(e, "start the agent on this server: it claims the first one"));
    };
    if tip.server_uuid == state.server_uuid && !adoption.anew {
        bail!(
            "timeline {} is the shard's current one and this server's already; nothing was changed",
            tip.id
        );
    }
    let word = Word::Operator {
        name: adoption.operator.clone(),
        anew: adoption.anew,
    };
    let claimant = Claimant {
        server_uuid: state.server_uuid,
        gtid_executed: &state.gtid_executed,
        descent: descent.as_ref(),
        word: Some(&word),
        standalone: false,
    };
    match decide(&timelines, &claimant)? {
        Decision::Claim(claim) if claim.adopted => {
            if adoption.dry_run {
                return Ok(claim.record(next_id(&timelines), state.server_uuid, archive.clock.now_us()));
            }
            claim_timeline(archive, &timelines, state.server_uuid, claim).await
        }
        _ => {
            let e = anyhow!(
                "the server has executed nothing that timeline {} of server {} began with",
                tip.id,
                tip.server_uuid
            );
            Err(with_hint(
                e,
                "if it shall be the shard's primary all the same, say --anew: its history begins with its next snapshot",
            ))
        }
    }
}
