//! Recovery: a plan that can be read, then its phases in order. `docs/architecture.md` tells why each is as it is.

mod applier;
mod crash;
pub mod diverged;
mod instance;
mod journal;
mod pace;
pub mod plan;
pub mod rates;
mod replay;
pub mod report;
pub mod resolve;
mod run;
mod run_as;
pub mod summary;
mod tables;
pub mod target;
mod verify;
pub mod volumes;
pub mod window;
mod workdir;

pub use run::{Course, Recovered, Settings, recover};
