//! Which transaction an event belongs to, and where transactions begin and end.

use super::{
    event::{EventError, GtidEvent, Header},
    gtid::Gtid,
    splitter::{Piece, SplitError},
};

/// A transaction that was seen from its GTID event to its last event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    pub gtid: Gtid,
    pub immediate_commit_us: i64,
    pub original_commit_us: i64,
    /// `start..end` in its binlog.
    pub start: u64,
    pub end: u64,
}

/// Follows the events of one binlog.
#[derive(Debug, Default)]
pub struct Tracker {
    open: Option<Transaction>,
}

impl Tracker {
    /// The transaction that is complete with this piece, if one is.
    ///
    /// A transaction ends where its GTID event says, or where something that belongs to no transaction begins.
    pub fn piece(&mut self, piece: &Piece<'_>) -> Result<Option<Transaction>, SplitError> {
        let fail = |source: EventError| SplitError::Event {
            position: piece.start,
            source,
        };
        let mut done = None;
        if piece.is_first() && (piece.header.starts_transaction() || piece.header.is_between_transactions()) {
            done = self.open.take().map(|t| Transaction { end: piece.start, ..t });
            if piece.header.starts_transaction() {
                let event = GtidEvent::parse(piece.header.kind, piece.body()).map_err(fail)?;
                self.open = Some(Transaction {
                    gtid: event.gtid,
                    immediate_commit_us: event.immediate_commit_us,
                    original_commit_us: event.original_commit_us,
                    start: piece.start,
                    end: piece.start.saturating_add(event.transaction_bytes),
                });
            }
        }
        if piece.is_last()
            && let Some(open) = self.open.take_if(|t| piece.end() >= t.end)
        {
            debug_assert!(done.is_none(), "a GTID event is not a whole transaction");
            done = Some(open);
        }
        Ok(done)
    }

    /// The transaction that has begun and is not complete.
    pub fn open(&self) -> Option<&Transaction> {
        self.open.as_ref()
    }
}

/// Whether `header` begins something that is not part of the transaction before it.
pub fn is_boundary(header: &Header) -> bool {
    header.starts_transaction() || header.is_between_transactions()
}
