//! Looking into the archive without recovering anything.

pub mod search;
