//! Whose turn it is to work on the shard's snapshots of volumes.
//!
//! One object in the bucket, written by condition and renewed all the time. Whoever wants the turn watches it: unchanged for a term by its own
//! watch, its holder is dead, whatever anybody's clock says. A holder that could not renew it for most of the term gives up first.
//!
//! It keeps two agents from troubling a server at once. That nothing is made twice or lost does not rest on it: every record is written by
//! condition, too, and what EC2 made is told by its tags.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};
use uuid::Uuid;

use crate::{
    archive::{
        keys,
        listing::Archive,
        records::{FORMAT_VERSION, Turn},
    },
    store::{Put, StoreError, Version},
    support::hint::message,
};

/// A holder that has not been heard of for so long is dead.
pub const TERM: Duration = Duration::from_secs(60);
/// Of a term: several renewals may fail.
const RENEWALS_PER_TERM: u32 = 6;

/// A server's agent, which may want the turn.
#[derive(Debug)]
pub struct Turns {
    archive: Archive,
    term: Duration,
    /// Somebody else's, and since when it was seen unchanged.
    seen: Mutex<Option<(Version, Instant)>>,
}

/// The turn, until it is given back or dropped.
#[derive(Debug)]
pub struct Held {
    archive: Archive,
    written: Arc<Mutex<(Turn, Version)>>,
    renewing: JoinHandle<()>,
    lost: watch::Receiver<bool>,
}

impl Turns {
    pub fn new(archive: Archive, term: Duration) -> Turns {
        Turns {
            archive,
            term,
            seen: Mutex::new(None),
        }
    }

    /// Takes the turn; None while it is another server's. That of this server's former agent is taken over at once: one agent runs per server.
    pub async fn take(&self, server_uuid: Uuid) -> anyhow::Result<Option<Held>> {
        let key = keys::snapshot_turn_key(&self.archive.shard);
        let turn = Turn {
            format: FORMAT_VERSION,
            server_uuid,
            nonce: Uuid::new_v4(),
            renewals: 0,
            free: false,
        };
        let condition = match self.archive.record::<Turn>(&key).await {
            Err(e) if e.downcast_ref::<StoreError>().is_some_and(StoreError::is_not_found) => Put::IfAbsent,
            Err(e) => return Err(e),
            Ok((other, version)) if other.free || other.server_uuid == server_uuid => Put::IfMatch(version),
            Ok((other, version)) => {
                let mut seen = self.seen.lock().await;
                match &*seen {
                    Some((unchanged, since)) if *unchanged == version => {
                        if since.elapsed() < self.term {
                            return Ok(None);
                        }
                        info!(server = %other.server_uuid, "the agent that worked on the shard's snapshots is gone: taking over");
                        Put::IfMatch(version)
                    }
                    _ => {
                        *seen = Some((version, Instant::now()));
                        return Ok(None);
                    }
                }
            }
        };
        let begun = Instant::now();
        let version = write(&self.archive, &turn, condition).await?;
        Ok(version.map(|version| self.hold(turn, version, begun)))
    }

    fn hold(&self, turn: Turn, version: Version, begun: Instant) -> Held {
        let written = Arc::new(Mutex::new((turn, version)));
        let (tell, lost) = watch::channel(false);
        let renewing = tokio::spawn({
            let (archive, written, term) = (self.archive.clone(), written.clone(), self.term);
            async move {
                let pause = term / RENEWALS_PER_TERM;
                let mut renewed = begun;
                // Others wait for all of the term.
                while renewed.elapsed() + pause < term {
                    sleep(pause).await;
                    let begun = Instant::now();
                    let renewal = renew(&archive, &written, |turn| turn.renewals += 1);
                    match timeout(term.saturating_sub(renewed.elapsed()), renewal).await {
                        Ok(Ok(true)) => renewed = begun,
                        Ok(Ok(false)) | Err(_) => break,
                        Ok(Err(e)) => warn!("the turn at the shard's snapshots could not be renewed: {}", message(&e)),
                    }
                }
                tell.send_replace(true);
            }
        });
        Held {
            archive: self.archive.clone(),
            written,
            renewing,
            lost,
        }
    }
}

impl Held {
    /// Ready once the turn is somebody else's, or may be.
    pub async fn lost(&self) {
        let mut lost = self.lost.clone();
        // The sender says so before it goes.
        let _ = lost.wait_for(|lost| *lost).await;
    }

    /// Lets the next one have it at once.
    pub async fn give_back(self) {
        self.renewing.abort();
        if let Err(e) = renew(&self.archive, &self.written, |turn| turn.free = true).await {
            warn!(
                "the turn at the shard's snapshots could not be given back, and ends by itself: {}",
                message(&e)
            );
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

/// Whether it is still one's own.
async fn renew(archive: &Archive, written: &Mutex<(Turn, Version)>, change: impl FnOnce(&mut Turn)) -> anyhow::Result<bool> {
    let mut written = written.lock().await;
    let mut turn = written.0.clone();
    change(&mut turn);
    let version = write(archive, &turn, Put::IfMatch(written.1.clone())).await?;
    Ok(match version {
        Some(version) => {
            *written = (turn, version);
            true
        }
        None => false,
    })
}

/// The version that was written, or that an attempt wrote whose answer was lost; None where the turn is somebody else's.
async fn write(archive: &Archive, turn: &Turn, condition: Put) -> anyhow::Result<Option<Version>> {
    let key = keys::snapshot_turn_key(&archive.shard);
    let bytes = serde_json::to_vec_pretty(turn)?;
    match archive.store.put(&key, bytes.into(), condition).await {
        Ok(version) => Ok(Some(version)),
        Err(e) => match archive.record::<Turn>(&key).await {
            Ok((there, version)) if there.nonce == turn.nonce => Ok(Some(version)),
            Ok(_) if !e.is_transient() => Ok(None),
            _ => Err(e.into()),
        },
    }
}
