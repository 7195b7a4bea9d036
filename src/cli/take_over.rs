//! `mysql-pitr take-over`

use std::time::Duration;

use anyhow::Context;

use crate::{
    agent,
    config::Config,
    replica::take_over::{Other, take_over},
    support::{hint::OrHint, progress::Progress},
};

use super::{
    adopt::operator,
    output::{self, say},
};

/// Go on in this region: from now on the shard is shipped to `[store]`, and no longer to `[replica]`.
///
/// Run it with the configuration of the region that takes over: its `[store]` is that region's bucket, its `[replica]` the one that is left
/// behind. A fence around that one keeps its agents from shipping and claiming; what it holds is waited for. The way back is the same
/// command with the other region's configuration.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The other region's bucket cannot be reached, and nobody ships there: your word. What this one lacks of it is left out.
    #[arg(long)]
    other_is_dead: bool,
    /// How long the other region's agents are given to notice the fence.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    settle: u64,
    /// How long to wait for what this region's bucket lacks.
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    wait: u64,
    /// Print the fence as JSON.
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  mysql-pitr -c dr.toml take-over                     a planned move: nothing is lost
  mysql-pitr -c dr.toml take-over --other-is-dead     the home region is gone";

pub async fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let ours = agent::archive(config).await?;
    let section = config
        .replica
        .as_ref()
        .context("the configuration names no store to take over from")
        .hint("name the bucket that is to be left behind in [replica]")?;
    let opened;
    let other = if args.other_is_dead {
        Other::Dead(section.store.url.trim_end_matches('/'))
    } else {
        opened = agent::replica::archive(config)
            .await?
            .context("the configuration has no [replica]")?;
        Other::Fenced {
            archive: &opened,
            settle: Duration::from_secs(args.settle),
            patience: Duration::from_secs(args.wait.max(args.settle)),
        }
    };
    let progress = Progress::new(args.json);
    let fence = take_over(&ours, other, operator(), &progress).await?;
    drop(progress);
    if args.json {
        return output::json(&fence);
    }
    say!("{} took over from {}", ours.store.url(), fence.store);
    say!("new timelines begin with number {}", fence.timelines_from);
    if args.other_is_dead {
        say!(
            "the other store is not fenced: its agents learn of this only where their [replica] is {}",
            ours.store.url()
        );
    }
    say!("now start the agents with this store: their [store] is {}", ours.store.url());
    Ok(())
}
