//! `mysql-pitr snapshot`

use crate::{
    agent,
    archive::{listing::Archive, records::Snapshot},
    config::Config,
    mysql::query::Session,
    ship::catalog::StateLock,
    snapshot::{request, take},
    support::{hint::with_hint, progress::Progress},
};

use super::{
    list::extent,
    output::{self, say},
};

/// Take a snapshot now: by the agent that runs on this node, or alone where none runs
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only ask for it: print its name and do not wait.
    #[arg(long)]
    no_wait: bool,
    /// Print the snapshot's record as JSON.
    #[arg(long)]
    json: bool,
}

pub async fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let archive = agent::archive(config).await?;
    let progress = Progress::new(args.json);
    let snapshot = match StateLock::try_take(&config.state_path)? {
        Some(_lock) if !args.no_wait => alone(&archive, config, &progress).await?,
        _ => {
            let id = request::ask(&archive).await?;
            if args.no_wait {
                say!("{id}");
                return Ok(());
            }
            request::wait(&archive, &id, &progress).await?
        }
    };
    drop(progress);
    if args.json {
        return output::json(&snapshot);
    }
    say!("snapshot {} is complete: {}", snapshot.id, extent(&snapshot));
    if !snapshot.errant.is_empty() {
        say!(
            "it holds transactions that its server, a replica, executed by itself and that are in nobody's history: {}",
            snapshot.errant
        );
    }
    Ok(())
}

async fn alone(archive: &Archive, config: &Config, progress: &Progress) -> anyhow::Result<Snapshot> {
    let (endpoint, settings) = (config.endpoint()?, agent::snapshot_settings(config));
    let standing = agent::role::look_once(&endpoint, config.orchestrator()?).await?;
    if !standing.takes_snapshots {
        let e = anyhow::anyhow!("the shard's snapshots are not for the server at {} to take", endpoint.address);
        let hint = if standing.standalone {
            "it is read-only: take the snapshot on the primary"
        } else {
            "ask the agent that is entitled: start this node's agent, or use --no-wait"
        };
        return Err(with_hint(e, hint));
    }
    let server_uuid = Session::connect(&endpoint).await?.variables().await?.server_uuid()?;
    take::sweep(archive, &settings, server_uuid).await?;
    take::take(archive, &endpoint, &settings, &standing, &take::new_id(), progress).await
}
