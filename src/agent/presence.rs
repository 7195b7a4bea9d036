//! Says in the bucket that this agent is there, and what its part in the shard is.

use std::time::Duration;

use bytes::Bytes;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::debug;

use crate::{
    archive::{keys, listing::Archive, presence::Presence, records::FORMAT_VERSION},
    mysql::{endpoint::Endpoint, query::Session},
    ship::standing::Standing,
    store::{Put, Version},
    support::hint::message,
};

/// A small PUT each, and it is only for people.
const INTERVAL: Duration = Duration::from_mins(10);
/// Before the first word, where nothing changes, and after a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// The last word may take so much of the time that an end has.
const LAST_WORD_PATIENCE: Duration = Duration::from_secs(3);

pub(super) struct Herald {
    pub archive: Archive,
    pub endpoint: Endpoint,
    pub standing: watch::Receiver<Standing>,
}

/// What was written, and as which version.
struct Written {
    presence: Presence,
    version: Version,
}

impl Herald {
    /// Until `stop` is true; then it says so.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut written: Option<Written> = None;
        // Before that the part is known, mostly.
        let mut pause = RETRY_INTERVAL;
        loop {
            let is_due = tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                // Its sender lives as long as the agent.
                Ok(()) = self.standing.changed() => false,
                () = sleep(pause) => true,
            };
            pause = match self.say(&mut written, is_due).await {
                Ok(()) => INTERVAL,
                Err(e) => {
                    debug!("the agent could not say in the bucket that it is there: {}", message(&e));
                    RETRY_INTERVAL
                }
            };
        }
        if let Some(Written { mut presence, version }) = written {
            (presence.is_stopped, presence.at_us) = (true, self.archive.clock.now_us());
            let _ = timeout(LAST_WORD_PATIENCE, self.put(presence, Some(version))).await;
        }
    }

    /// Writes how the agent stands, if that is news or `is_due`.
    async fn say(&self, written: &mut Option<Written>, is_due: bool) -> anyhow::Result<()> {
        let standing = self.standing.borrow().clone();
        let server_uuid = match written {
            Some(written) => written.presence.server_uuid,
            None => Session::connect(&self.endpoint).await?.variables().await?.server_uuid()?,
        };
        let presence = Presence {
            format: FORMAT_VERSION,
            server_uuid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at_us: self.archive.clock.now_us(),
            is_stopped: false,
            role: standing.role,
            standalone: standing.standalone,
            writable: standing.writable,
            takes_snapshots: standing.takes_snapshots,
        };
        if !is_due && written.as_ref().is_some_and(|w| w.presence.says_what(&presence)) {
            return Ok(());
        }
        let version = written.as_ref().map(|w| w.version.clone());
        match self.put(presence.clone(), version).await {
            Ok(version) => *written = Some(Written { presence, version }),
            Err(e) => {
                // The next word goes over what is there then.
                *written = None;
                return Err(e);
            }
        }
        Ok(())
    }

    /// Writes over `version`; where there is none, over what another process of this server left.
    async fn put(&self, presence: Presence, version: Option<Version>) -> anyhow::Result<Version> {
        let store = &self.archive.store;
        let key = keys::agent_key(&self.archive.shard, presence.server_uuid);
        let bytes = Bytes::from(serde_json::to_vec_pretty(&presence)?);
        let over = match version {
            Some(version) => version,
            None => match store.put(&key, bytes.clone(), Put::IfAbsent).await {
                Ok(version) => return Ok(version),
                Err(e) if e.is_already_exists() => store.get(&key).await?.1,
                Err(e) => return Err(e.into()),
            },
        };
        Ok(store.put(&key, bytes, Put::IfMatch(over)).await?)
    }
}
