//! The server's binlogs into the archive: the live one as segments, closed ones whole.
//!
//! One round: look at what the server has and what the archive has, seal what is closed and not sealed, then follow the
//! live binlog until something goes wrong or ends. Whatever happens, the next round starts from the archive and the server
//! again; nothing that only this process knows is needed. Killed anywhere, it converges: openings, segments, sealed
//! objects and manifests are written once under keys that the next round finds again by the binlog's fingerprint.

pub mod adopt;
pub mod at_risk;
mod beginning;
pub mod catalog;
mod cutter;
mod lineage;
mod puts;
mod reconcile;
mod round;
mod seal;
mod shipper;
pub mod standing;
mod status;
mod tail;

pub use round::Settings;
pub use shipper::{Shipper, timeline_of};
pub use status::Status;
