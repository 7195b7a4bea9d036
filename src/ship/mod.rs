//! The server's binlogs into the archive: the live one as segments, closed ones whole.
//!
//! One round: look at what the server has and what the archive has, give what is closed and not sealed its place, then follow
//! the live binlog while closed ones are sealed beside it, until something goes wrong or ends. Whatever happens, the next round starts from the archive and the server
//! again; nothing that only this process knows is needed. Killed anywhere, it converges: openings, segments, sealed
//! objects and manifests are written once under keys that the next round finds again by the binlog's fingerprint.

pub mod adopt;
pub mod at_risk;
mod beginning;
pub mod catalog;
mod cutter;
mod ending;
mod lineage;
mod puts;
mod reconcile;
mod round;
mod seal;
mod sealing;
mod settle;
mod shipper;
pub mod standing;
mod status;
mod tail;

pub use lineage::is_primary;
pub use round::Settings;
pub use settle::timeline_of;
pub use shipper::Shipper;
pub use status::Status;
