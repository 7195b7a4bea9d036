//! `mysql-pitr snapshot`

use crate::{
    agent,
    archive::{
        listing::Archive,
        records::{Snapshot, Step},
    },
    config::Config,
    mysql::{endpoint::Endpoint, query::Session},
    ship::{catalog::StateLock, standing::Standing},
    snapshot::{
        request, take,
        turn::Turns,
        volumes::{self, take::Job},
    },
    support::{hint::with_hint, progress::Progress},
};

use tokio::sync::watch;
use uuid::Uuid;

use super::{
    list::extent,
    output::{self, say},
};

/// Take a snapshot now: by the agent that is entitled, which is asked in the bucket; on a node without an agent, alone
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Of this shard, by its agents. Needs no server and no agent here, only the right to write into the store.
    #[arg(long, value_name = "NAME")]
    shard: Option<String>,
    /// Where the shard's archive is, in place of a configuration file: s3://bucket[/prefix] or file:///path. Region and keys come
    /// from the AWS configuration.
    #[arg(long, value_name = "URL", requires = "shard")]
    store: Option<String>,
    /// Only ask for it: print the request's name and do not wait.
    #[arg(long)]
    no_wait: bool,
    /// Print the snapshot's record as JSON.
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  mysql-pitr snapshot
  mysql-pitr snapshot --shard shop-1 --config /etc/mysql-pitr/mysql-pitr.toml
  mysql-pitr snapshot --shard shop-1 --store s3://example-backups/mysql --no-wait";

/// The configuration that the arguments ask for.
pub fn config(args: &Args, file: impl FnOnce() -> anyhow::Result<Config>) -> anyhow::Result<Config> {
    match (&args.shard, &args.store) {
        (Some(shard), Some(url)) => Config::of_store(shard, url),
        (Some(shard), None) => file()?.with_shard(shard),
        (None, _) => file(),
    }
}

pub async fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let archive = agent::archive(config).await?;
    let progress = Progress::new(args.json);
    let is_remote = args.shard.is_some() || !config.has_server();
    if is_remote && archive.timelines().await?.is_empty() {
        let e = anyhow::anyhow!("there is nothing of shard `{}` in {}", config.shard, archive.store.url());
        return Err(with_hint(
            e,
            "correct the name; a new shard begins when an agent first ships it",
        ));
    }
    let lock = match is_remote || args.no_wait {
        true => None,
        false => StateLock::try_take(&config.state_path)?,
    };
    let snapshot = match lock {
        Some(_lock) => alone(&archive, config, &progress).await?,
        None => {
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
    let (endpoint, settings) = (config.endpoint()?, agent::snapshot_settings(config)?);
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
    if let Some(volumes) = &settings.volumes {
        return of_volumes(archive, &endpoint, &settings, volumes, standing, server_uuid, progress).await;
    }
    take::take(archive, &endpoint, &settings, &standing, &take::new_id(), progress).await
}

/// Waits for copies in another region, too: there is no agent that would.
async fn of_volumes(
    archive: &Archive,
    endpoint: &Endpoint,
    settings: &take::Settings,
    volumes: &volumes::Settings,
    standing: Standing,
    server_uuid: Uuid,
    progress: &Progress,
) -> anyhow::Result<Snapshot> {
    let turns = Turns::new(archive.clone(), volumes.term);
    let Some(turn) = turns.take(server_uuid).await? else {
        let e = anyhow::anyhow!("another server's agent works on the shard's snapshots");
        return Err(with_hint(e, "wait for it, or ask it for a snapshot: --no-wait"));
    };
    // Nobody asks Orchestrator again: the sender is gone.
    let (_, roles) = watch::channel(standing);
    let id = take::new_id();
    let job = Job {
        archive,
        endpoint,
        settings: volumes,
        accept_empty: &settings.accept_empty,
        roles,
        turn: &turn,
        id: &id,
        origin: "command",
        progress,
    };
    let taken = async {
        volumes::take::take(&job).await?;
        let is_over = |s: &Snapshot| s.step == Some(Step::Copied) || volumes::outstanding([s]).failed > 0;
        volumes::take::follow(&job, &id, is_over).await
    };
    let taken = taken.await;
    turn.give_back().await;
    taken
}
