//! What a binlog is: its fingerprint and what its first events say.

use sha2::{Digest, Sha256};

use crate::{
    archive::{
        keys::BinlogPlace,
        records::{FORMAT_VERSION, Opening},
    },
    binlog::{
        event::{EventError, FormatDescription, HEADER_BYTES, MAGIC, kind, parse_previous_gtids},
        gtid::GtidSet,
        splitter::{Piece, SplitError},
    },
};

/// What the bytes up to the first transaction say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub server_version: String,
    pub previous_gtids: GtidSet,
    /// sha256, hexadecimal, of everything up to and including the first GTID event.
    pub fingerprint: String,
}

impl Identity {
    /// The record that is stored before anything else. `purged`: the server's gtid_purged, which holds what a restored
    /// server has executed and none of its binlogs names.
    pub fn opening(&self, timeline: u32, place: BinlogPlace, purged: &GtidSet) -> Opening {
        Opening {
            format: FORMAT_VERSION,
            timeline,
            place,
            server_version: self.server_version.clone(),
            fingerprint: self.fingerprint.clone(),
            held_before: self.previous_gtids.union(purged),
        }
    }
}

/// Collects an [`Identity`] from a binlog's first events.
#[derive(Debug)]
pub struct Beginning {
    hash: Sha256,
    server_version: String,
    previous_gtids: GtidSet,
}

impl Beginning {
    pub fn new() -> Beginning {
        Beginning {
            hash: Sha256::new_with_prefix(MAGIC),
            server_version: String::new(),
            previous_gtids: GtidSet::new(),
        }
    }

    /// The identity, once the first transaction begins.
    pub fn piece(&mut self, piece: &Piece<'_>) -> Result<Option<Identity>, SplitError> {
        let fail = |source| SplitError::Event {
            position: piece.start,
            source,
        };
        self.hash.update(piece.bytes);
        match piece.header.kind {
            kind::FORMAT_DESCRIPTION => {
                self.server_version = FormatDescription::parse(&piece.bytes[HEADER_BYTES..])
                    .map_err(fail)?
                    .server_version;
            }
            kind::PREVIOUS_GTIDS => self.previous_gtids = parse_previous_gtids(piece.body()).map_err(fail)?,
            kind::ANONYMOUS_GTID => return Err(fail(EventError::Anonymous)),
            _ if piece.is_first() && piece.header.starts_transaction() => {
                return Ok(Some(Identity {
                    server_version: self.server_version.clone(),
                    previous_gtids: self.previous_gtids.clone(),
                    fingerprint: format!("{:x}", self.hash.clone().finalize()),
                }));
            }
            _ => {}
        }
        Ok(None)
    }
}
