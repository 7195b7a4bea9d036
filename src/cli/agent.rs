//! `mysql-pitr agent`

use crate::{agent, config::Config};

/// Ship this node's binlogs, and take the snapshots that are asked for, until stopped
#[derive(Debug, clap::Args)]
pub struct Args {}

pub async fn run(_args: &Args, config: &Config) -> anyhow::Result<()> {
    agent::run(config).await
}
