//! On which timeline this server's transactions belong, and the claiming of new ones.

use anyhow::bail;
use tracing::{error, info};
use uuid::Uuid;

use crate::{
    archive::{
        keys,
        listing::Archive,
        path::{self, Path},
        records::{Descent, FORMAT_VERSION, Reason, Timeline},
    },
    binlog::gtid::GtidSet,
    store::Put,
    support::clock,
};

/// What decides where a server belongs.
pub struct Claimant<'a> {
    pub server_uuid: Uuid,
    /// Where `recover` made this server: what it left in the datadir.
    pub descent: Option<&'a Descent>,
}

/// What a claim is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub parent: Option<u32>,
    pub branch_set: GtidSet,
    pub reason: Reason,
    pub adopted: bool,
    /// What of the inherited history the server holds as empty transactions.
    pub skipped: GtidSet,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Continue(u32),
    Claim(Claim),
}

/// The rules of who goes on where; pure.
pub fn decide(timelines: &[Timeline], claimant: &Claimant<'_>) -> Decision {
    let own = timelines
        .iter()
        .filter(|t| t.server_uuid == claimant.server_uuid)
        .max_by_key(|t| t.id);
    if let Some(own) = own {
        return Decision::Continue(own.id);
    }
    if let Some(descent) = claimant.descent.filter(|d| d.server_uuid == claimant.server_uuid) {
        return Decision::Claim(Claim {
            parent: Some(descent.parent),
            branch_set: descent.branch_set.clone(),
            reason: Reason::Recovery,
            adopted: true,
            skipped: descent.skipped.clone(),
        });
    }
    let first = path::tip(timelines).is_none();
    let reason = if first { Reason::FirstStart } else { Reason::UnknownServer };
    Decision::Claim(Claim {
        parent: None,
        branch_set: GtidSet::new(),
        reason,
        adopted: first,
        skipped: GtidSet::new(),
    })
}

/// The timeline on which the server goes on, claimed if need be.
pub async fn settle(archive: &Archive, claimant: &Claimant<'_>) -> anyhow::Result<Timeline> {
    let timelines = archive.timelines().await?;
    let timeline = match decide(&timelines, claimant) {
        Decision::Continue(id) => {
            let Some(timeline) = timelines.iter().find(|t| t.id == id) else {
                bail!("timeline {id} has vanished from the archive")
            };
            timeline.clone()
        }
        Decision::Claim(claim) => claim_timeline(archive, &timelines, claimant.server_uuid, claim).await?,
    };
    warn_if_off_the_path(archive, &timeline).await?;
    Ok(timeline)
}

async fn warn_if_off_the_path(archive: &Archive, own: &Timeline) -> anyhow::Result<()> {
    let timelines = archive.timelines().await?;
    let on_path = Path::find(&timelines, None).is_ok_and(|p| p.last().id == own.id);
    if !on_path {
        error!(
            timeline = own.id,
            server_uuid = %own.server_uuid,
            "this server is not the one that the shard's current timeline names: its transactions are shipped, but recovery leaves them out"
        );
    }
    Ok(())
}

/// Writes the next timeline. Two claimants race for its number, and one loses.
pub async fn claim_timeline(
    archive: &Archive,
    timelines: &[Timeline],
    server_uuid: Uuid,
    claim: Claim,
) -> anyhow::Result<Timeline> {
    let id = timelines.iter().map(|t| t.id).max().unwrap_or(0) + 1;
    let record = Timeline {
        format: FORMAT_VERSION,
        id,
        parent: claim.parent,
        server_uuid,
        branch_set: claim.branch_set,
        reason: claim.reason,
        adopted: claim.adopted,
        nonce: Uuid::new_v4(),
        claimed_at_us: clock::now_us(),
        skipped: claim.skipped,
    };
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
    use super::*;

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);

    fn timeline(id: u32, server_uuid: Uuid) -> Timeline {
        Timeline {
            format: FORMAT_VERSION,
            id,
            parent: id.checked_sub(1).filter(|p| *p > 0),
            server_uuid,
            branch_set: GtidSet::new(),
            reason: Reason::FirstStart,
            adopted: true,
            nonce: Uuid::nil(),
            claimed_at_us: 0,
            skipped: GtidSet::new(),
        }
    }

    #[test]
    fn the_first_server_claims_the_root_and_goes_on_with_it() {
        let claimant = Claimant {
            server_uuid: A,
            descent: None,
        };
        assert!(matches!(
            decide(&[], &claimant),
            Decision::Claim(Claim {
                parent: None,
                adopted: true,
                reason: Reason::FirstStart,
                ..
            })
        ));
        assert_eq!(decide(&[timeline(1, A)], &claimant), Decision::Continue(1));
    }

    #[test]
    fn an_unknown_server_ships_off_the_path() {
        let claimant = Claimant {
            server_uuid: B,
            descent: None,
        };
        assert!(matches!(
            decide(&[timeline(1, A)], &claimant),
            Decision::Claim(Claim { adopted: false, .. })
        ));
    }

    #[test]
    fn a_recovered_server_claims_a_child_once() {
        let descent = Descent {
            format: 1,
            shard: "s".into(),
            parent: 1,
            server_uuid: B,
            branch_set: GtidSet::new(),
            skipped: "00000000-0000-0000-0000-000000000001:7".parse().unwrap(),
        };
        let claimant = Claimant {
            server_uuid: B,
            descent: Some(&descent),
        };
        let Decision::Claim(claim) = decide(&[timeline(1, A)], &claimant) else {
            panic!("no claim")
        };
        assert_eq!((claim.parent, claim.adopted), (Some(1), true));
        assert_eq!(claim.skipped, descent.skipped);
        assert_eq!(decide(&[timeline(1, A), timeline(2, B)], &claimant), Decision::Continue(2));
    }
}
