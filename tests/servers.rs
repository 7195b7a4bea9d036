//! The tests against real servers, as one program: they wait more than they work, so they run side by side, and one program is
//! linked once. A file per journey or capability; `cargo test --test servers status::` runs those of one.

mod support;

mod backlog;
mod bad_archive;
mod bad_input;
mod candidate;
mod damaged_seal;
#[cfg(feature = "aws")]
mod ebs;
#[cfg(feature = "aws")]
mod ebs_recover;
#[cfg(feature = "aws")]
mod ebs_refusals;
#[cfg(feature = "aws")]
mod ebs_scenario;
mod ebs_steps;
#[cfg(feature = "aws")]
mod ebs_volumes;
mod exact_targets;
mod failover;
mod freeze;
mod huge_binlog;
mod journey;
mod on_demand;
#[cfg(feature = "aws")]
mod outage;
mod plan;
mod plan_requests;
mod prune;
#[cfg(feature = "aws")]
mod prune_ebs;
mod recover_proof;
mod recover_resume;
mod recover_user;
#[cfg(feature = "aws")]
mod replication;
mod role;
#[cfg(feature = "aws")]
mod s3_features;
#[cfg(feature = "aws")]
mod s3_refusals;
mod schedule;
mod ship;
#[cfg(feature = "aws")]
mod ship_s3;
mod ship_tcp;
mod skip;
mod status;
mod store_conformance;
mod strange_binlogs;
mod strange_inputs;
mod strange_transactions;
mod torture;
