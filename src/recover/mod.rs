//! Recovery: a plan that can be read, then its phases in order. `docs/architecture.md` tells why each is as it is.

mod applier;
mod instance;
mod journal;
mod pace;
pub mod plan;
mod replay;
pub mod report;
mod run;
mod run_as;
mod tables;
pub mod target;
mod verify;
mod workdir;

pub use run::{Course, Recovered, Settings, recover};
