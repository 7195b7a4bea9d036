//! Recovery: a plan that can be read, then its phases in order. `docs/architecture.md` tells why each is as it is.

pub mod diverged;
mod instance;
pub mod plan;
mod replay;
pub mod resolve;
mod run;
pub mod summary;
pub mod target;
pub mod window;
mod workdir;

pub use run::{Recovered, Settings, recover};
