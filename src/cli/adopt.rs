//! `mysql-pitr adopt`

use anyhow::anyhow;
use serde::Serialize;

use crate::{
    agent,
    archive::{path, records::Timeline},
    config::Config,
    mysql::{query::Session, server::Mysql},
    ship::adopt::{Adoption, adopt},
    support::hint::with_hint,
};

use super::output::{self, say};

/// Declare this node's server to be the shard's primary: recovery follows it from here on.
///
/// Needed where nobody else can say it: a promotion without Orchestrator, a server that was restored by other means, a recovered
/// server that Orchestrator does not know. The running agent takes it up within seconds. What the former primary writes from now on
/// is still shipped, but recovery leaves it out.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Although the server lacks what the shard's current timeline began with: begin a new history, which inherits nothing.
    #[arg(long)]
    anew: bool,
    /// Say what would be done, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  mysql-pitr adopt --dry-run      what would change?
  mysql-pitr adopt                this server was promoted by hand
  mysql-pitr adopt --anew         this server has another history, and is to be the shard's from now on";

/// What was, or would be, claimed.
#[derive(Debug, Serialize)]
struct Outcome {
    claimed: bool,
    /// The timeline, as it lies in the archive; without its final id in a dry run.
    timeline: Timeline,
}

pub async fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let (archive, endpoint) = (agent::archive(config).await?, config.endpoint()?);
    let mut session = Session::connect(&endpoint).await?;
    if !session.is_writable().await? {
        let e = anyhow!("the server at {} is read-only: it is no primary", endpoint.address);
        return Err(with_hint(
            e,
            "make it writable first (SET GLOBAL read_only = OFF), or run this on the primary",
        ));
    }
    session.close().await;
    let adoption = Adoption {
        operator: operator(),
        anew: args.anew,
        dry_run: args.dry_run,
    };
    let tip = path::tip(&archive.timelines().await?).cloned();
    let timeline = adopt(&archive, &Mysql(endpoint), &adoption).await?;
    let outcome = Outcome {
        claimed: !args.dry_run,
        timeline,
    };
    if args.json {
        return output::json(&outcome);
    }
    let timeline = &outcome.timeline;
    let verb = if args.dry_run { "would claim" } else { "claimed" };
    match timeline.parent {
        Some(parent) => say!("{verb} timeline {}, which goes on from timeline {parent}", timeline.id),
        None => say!(
            "{verb} timeline {}, which begins anew: a snapshot follows, and recovery starts there",
            timeline.id
        ),
    }
    if let Some(tip) = tip.filter(|tip| tip.server_uuid != timeline.server_uuid) {
        say!(
            "from here on recovery leaves out what server {} writes (timeline {})",
            tip.server_uuid,
            tip.id
        );
    }
    Ok(())
}

/// Who said it, as far as the system knows.
pub(super) fn operator() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten();
    let user = user.map_or_else(|| nix::unistd::getuid().to_string(), |u| u.name);
    let login = std::env::var("SUDO_USER")
        .ok()
        .filter(|name| !name.is_empty() && *name != user);
    match login {
        Some(login) => format!("operator {login} (as {user})"),
        None => format!("operator {user}"),
    }
}
