//! What the agent knows of this server's part in the shard.

use super::lineage::Word;

/// At the last look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    pub is_writable: bool,
    pub is_primary: bool,
    /// Who says that this server is the shard's living, writable primary; None where nobody does.
    pub confirmed_by: Option<String>,
    pub takes_snapshots: bool,
    /// There is nobody who could say it.
    pub standalone: bool,
}

impl Standing {
    /// Shipping twice is harmless; not shipping loses data.
    pub fn ships(&self) -> bool {
        self.is_writable || self.is_primary
    }

    pub fn word(&self) -> Option<Word> {
        self.confirmed_by.clone().map(Word::Orchestrator)
    }
}
