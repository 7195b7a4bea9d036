//! What agents say of themselves in the bucket, so that whoever asks for something there learns why nobody does it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::orchestrator::Role;

use super::{keys, listing::Archive, records::FORMAT_VERSION};

/// Of so many agents at most it is read; a shard has a handful.
const READ_MAX: usize = 100;

/// An agent's word of itself. Each writes its own, when it starts, when its part in the shard changes, now and then, and when it stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    pub format: u32,
    pub server_uuid: Uuid,
    /// Of the agent.
    pub version: String,
    pub at_us: i64,
    pub is_stopped: bool,
    pub role: Role,
    /// There is no Orchestrator to ask.
    pub standalone: bool,
    /// Whether clients can write to the server; None until it was first reached.
    pub writable: Option<bool>,
    /// Whether the shard's snapshots are this server's to take.
    pub takes_snapshots: bool,
}

impl Presence {
    /// Whether two say the same, apart from when.
    pub fn says_what(&self, other: &Presence) -> bool {
        Presence {
            at_us: other.at_us,
            ..self.clone()
        } == *other
    }
}

/// What the agents of a shard said last. One whose word cannot be read is passed over: it is only for people.
pub async fn presences(archive: &Archive) -> anyhow::Result<Vec<Presence>> {
    let mut presences = Vec::new();
    for object in archive
        .store
        .list(&keys::agents_prefix(&archive.shard), None)
        .await?
        .into_iter()
        .take(READ_MAX)
    {
        if let Ok((presence, _)) = archive.record::<Presence>(&object.key).await
            && presence.format <= FORMAT_VERSION
        {
            presences.push(presence);
        }
    }
    Ok(presences)
}
