//! Snapshots: asked for, taken, recorded.

pub mod request;
pub mod take;
