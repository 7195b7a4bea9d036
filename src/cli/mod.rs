//! The command line: one file per command.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::{Parser, Subcommand};

mod adopt;
mod agent;
mod check;
mod generate;
mod list;
mod output;
mod prune;
mod recover;
mod search;
mod snapshot;
mod status;
mod take_over;

use crate::support::hint::OrHint;

const CONFIG_DEFAULT: &str = "/etc/mysql-pitr/mysql-pitr.toml";

/// Ships MySQL binlogs and snapshots to an object store, and recovers a server at any chosen microsecond.
#[derive(Debug, Parser)]
#[command(name = "mysql-pitr", version, after_help = EXAMPLES)]
pub struct Cli {
    /// The configuration file.
    #[arg(long, short, global = true, default_value = CONFIG_DEFAULT, env = "MYSQL_PITR_CONFIG")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  mysql-pitr check                                       is this node fit to be shipped from?
  mysql-pitr agent                                       ship, until stopped
  mysql-pitr snapshot                                    take a snapshot now
  mysql-pitr snapshot --store s3://bucket --shard s      ask for one, from anywhere
  mysql-pitr status                                      is it shipped, and what is at risk?
  mysql-pitr list                                        what is archived, and what is recoverable
  mysql-pitr prune                                       what is too old to be kept?
  mysql-pitr search --statement 'drop table'             find a transaction
  mysql-pitr recover --target-time 2026-11-21T10:14:03.120Z --target-dir /var/lib/mysql";

#[derive(Debug, Subcommand)]
enum Command {
    Agent(agent::Args),
    Snapshot(snapshot::Args),
    Recover(recover::Args),
    Status(status::Args),
    List(list::Args),
    Adopt(adopt::Args),
    TakeOver(take_over::Args),
    Check(check::Args),
    Prune(prune::Args),
    Search(search::Args),
    Completions(generate::CompletionsArgs),
    Man(generate::ManArgs),
}

impl Cli {
    pub async fn run(self) -> anyhow::Result<()> {
        let config = || crate::config::Config::load(&self.config);
        match &self.command {
            // It has an end of its own for signals.
            Command::Agent(args) => agent::run(args, &config()?).await,
            Command::Snapshot(args) => until_interrupted(snapshot::run(args, &snapshot::config(args, config)?)).await,
            // It reports its end, also where a signal is it.
            Command::Recover(args) => recover::run(args, &config()?).await,
            Command::Status(args) => until_interrupted(status::run(args, &config()?)).await,
            Command::List(args) => until_interrupted(list::run(args, &config()?)).await,
            Command::Adopt(args) => until_interrupted(adopt::run(args, &config()?)).await,
            Command::TakeOver(args) => until_interrupted(take_over::run(args, &config()?)).await,
            Command::Check(args) => until_interrupted(check::run(args, &config()?)).await,
            Command::Prune(args) => until_interrupted(prune::run(args, &config()?)).await,
            Command::Search(args) => until_interrupted(search::run(args, &config()?)).await,
            Command::Completions(args) => generate::completions(args),
            Command::Man(args) => generate::man(args),
        }
    }
}

/// Drops the command on a signal, and with it whatever it started or staged.
async fn until_interrupted<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::select! {
        done = command => done,
        signal = crate::agent::wait_for_signal() => {
            signal?;
            Err(anyhow!("interrupted")).hint("nothing was finished; a recovery's target folder does not start, and the same command goes on with it")
        }
    }
}
