//! What the agent knows of its server's part in the shard.

use std::time::Duration;

use tokio::time::Instant;

use crate::orchestrator::Role;

use super::lineage::Word;

/// What is known at the last look. [`Standing::default`] is what is known before the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Orchestrator's last clear word, checked against the server's own state.
    pub role: Role,
    /// Who says that this server is the shard's living, writable primary, by what Orchestrator answered last and the server has not
    /// contradicted since. None where nobody does: standalone, at a split, and as soon as Orchestrator cannot be asked.
    pub confirmed_by: Option<String>,
    /// Whether clients can write to the server; None until it was first reached.
    pub writable: Option<bool>,
    /// Whether the shard's snapshots are this server's to take.
    pub takes_snapshots: bool,
    /// When Orchestrator last gave a clear answer. None without Orchestrator, and before its first.
    pub answered_at: Option<Instant>,
    /// When Orchestrator was asked for what it confirmed.
    pub confirmed_at: Option<Instant>,
    /// There is no Orchestrator to ask.
    pub standalone: bool,
}

impl Standing {
    /// Whether the server is shipped. Shipping twice is harmless, not shipping is not: either reason will do.
    pub fn ships(&self) -> bool {
        self.is_writable() || self.role == Role::Primary
    }

    /// Whether clients are known to be able to write to the server.
    pub fn is_writable(&self) -> bool {
        self.writable == Some(true)
    }

    /// Who says that the server is the shard's primary.
    pub fn word(&self) -> Option<Word> {
        self.confirmed_by.clone().map(Word::Orchestrator)
    }

    /// How old the role is. None where nobody ever gave one.
    pub fn age(&self) -> Option<Duration> {
        self.answered_at.map(|at| at.elapsed())
    }
}

impl Default for Standing {
    fn default() -> Self {
        Standing {
            role: Role::Unknown,
            confirmed_by: None,
            writable: None,
            takes_snapshots: false,
            answered_at: None,
            confirmed_at: None,
            standalone: false,
        }
    }
}
