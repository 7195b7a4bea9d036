//! What may go: old snapshots, the binlogs before those that stay, and what nobody needs any more. Never what a recovery that is under way
//! needs.

pub mod apply;
pub mod holdings;
pub mod in_ec2;
pub mod lease;
pub mod plan;
pub mod rules;
#[cfg(test)]
mod volumes_tests;
