//! Snapshots: asked for, taken, recorded.

pub mod errant;
pub mod request;
pub mod take;
