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
        // A GTID event is never a whole transaction, whatever it claims.
        if piece.is_last() && !piece.header.starts_transaction() {
            done = done.or(self.open.take_if(|t| piece.end() >= t.end));
        }
        Ok(done)
    }
}

/// Whether `header` begins something that is not part of the transaction before it.
pub fn is_boundary(header: &Header) -> bool {
    header.starts_transaction() || header.is_between_transactions()
}

#[cfg(test)]
mod tests {
    use crate::binlog::{
        event::{MAGIC, kind},
        splitter::{
            Splitter,
            tests::{event, format_description},
        },
    };

    use super::*;

    /// A GTID event that claims `transaction_bytes` for its whole transaction.
    fn gtid(gno: u64, transaction_bytes: u8) -> Vec<u8> {
        let mut body = vec![1];
        body.extend_from_slice(&[7; 16]);
        body.extend_from_slice(&gno.to_le_bytes());
        body.extend_from_slice(&[0; 17]);
        body.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, transaction_bytes]);
        event(kind::GTID, &body)
    }

    fn transactions(events: &[Vec<u8>]) -> Vec<(u64, u64, u64)> {
        let bytes = [&MAGIC[..], &format_description(), &events.concat()].concat();
        let (mut tracker, mut found) = (Tracker::default(), Vec::new());
        let seen = Splitter::new().push(&bytes, |piece| {
            found.extend(tracker.piece(piece)?.map(|t| (t.gtid.gno, t.start, t.end)));
            Ok::<(), SplitError>(())
        });
        seen.unwrap();
        found
    }

    #[test]
    fn a_transaction_ends_where_its_gtid_event_says() {
        let start = (MAGIC.len() + format_description().len()) as u64;
        let (rows, len) = (event(kind::WRITE_ROWS, &[0; 10]), gtid(1, 0).len() + 33);
        let end = start + len as u64;
        assert_eq!(transactions(&[gtid(1, len as u8), rows.clone()]), [(1, start, end)]);
        // i6: a torn one is none.
        assert_eq!(transactions(&[gtid(1, len as u8 + 1), rows]), []);
    }

    #[test]
    fn a_length_that_lies_ends_no_transaction_early_and_loses_none() {
        let found = transactions(&[
            gtid(1, 1),
            event(kind::XID, &[0; 8]),
            gtid(2, 250),
            event(kind::XID, &[0; 8]),
            event(kind::STOP, &[]),
        ]);
        assert_eq!(found.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2]);
    }
}
