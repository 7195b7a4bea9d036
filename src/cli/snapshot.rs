//! `mysql-pitr snapshot`

use crate::{
    agent,
    archive::{listing::Archive, records::Snapshot},
    config::Config,
    mysql::query::Session,
    ship::catalog::StateLock,
    snapshot::{request, take},
    support::{
        hint::with_hint,
        progress::{Progress, human_bytes},
    },
};

use super::output::{self, say};

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
    let (data, stored) = (human_bytes(snapshot.data_bytes), human_bytes(snapshot.stored_bytes));
    say!("snapshot {} is complete: {data} of data, {stored} stored", snapshot.id);
    Ok(())
}

async fn alone(archive: &Archive, config: &Config, progress: &Progress) -> anyhow::Result<Snapshot> {
    let (endpoint, settings) = (config.endpoint()?, agent::snapshot_settings(config));
    let mut session = Session::connect(&endpoint).await?;
    if !session.is_writable().await? {
        let e = anyhow::anyhow!(
            "the server at {} is read-only: its snapshots would belong to no timeline of its own",
            endpoint.address
        );
        return Err(with_hint(e, "take the snapshot on the primary"));
    }
    let server_uuid = session.variables().await?.server_uuid()?;
    session.close().await;
    take::sweep(archive, &settings, server_uuid).await?;
    take::take(archive, &endpoint, &settings, &take::new_id(), progress).await
}
