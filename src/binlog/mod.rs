//! The binlog format: events and their checksums, a file split event by event, GTID sets.
//!
//! All of it is our own, byte for byte, because the crates' parsers decompress, re-serialise, cut positions to 32 bits or
//! trust lengths that come from the network; see `docs/decisions/`.

pub mod empty;
pub mod event;
pub mod gtid;
mod gtid_codec;
mod gtid_text;
pub mod payload;
pub mod splitter;
pub mod transaction;
