//! `mysql-pitr check`

use anyhow::{Context, bail};

use crate::{
    agent,
    archive::listing::Archive,
    config::Config,
    mysql::{
        preflight::{self, Check, Verdict},
        query::Session,
    },
    orchestrator::{Client, judge},
    snapshot::volumes,
    store::probe,
    support::{
        hint::{hint_of, message},
        progress::human_bytes,
    },
};

use super::output::{self, say};

/// See whether this node is fit to be shipped from: one line per question, with what to do
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

/// The state file is small; a disk with less than this is about to be full.
const STATE_FREE_BYTES_MIN: u64 = 64 << 20;

pub async fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let mut checks = server(config).await;
    checks.extend(store(config).await);
    checks.extend(orchestrator(config).await);
    checks.push(disk(config));
    if args.json {
        output::json(&checks)?;
    } else {
        checks.iter().for_each(print);
    }
    match checks.iter().filter(|c| c.verdict == Verdict::Failed).count() {
        0 => Ok(()),
        failed => bail!("{failed} of {} checks failed", checks.len()),
    }
}

async fn server(config: &Config) -> Vec<Check> {
    let looked = async {
        let mut session = Session::connect(&config.endpoint()?).await?;
        let mut checks = preflight::server(&mut session).await?;
        checks.extend(match config.volumes()? {
            Some(volumes) => volumes::checks::checks(&volumes, &mut session).await?,
            None => preflight::clone_plugin(&mut session, &config.snapshot.staging_dir).await?,
        });
        anyhow::Ok(checks)
    };
    looked.await.unwrap_or_else(|e| {
        vec![Check::failed(
            "server",
            message(&e),
            hint_of(&e).unwrap_or_else(|| "everything else about the server is unknown until it answers".to_owned()),
        )]
    })
}

async fn store(config: &Config) -> Vec<Check> {
    const REACHABLE: &str = "store";
    const CONDITIONAL: &str = "conditional PUT";
    let looked = async {
        let Archive { store, shard, .. } = agent::archive(config).await?;
        let honoured = probe::conditional_put(&store, &shard.to_string()).await?;
        anyhow::Ok((store.url().to_owned(), honoured))
    };
    match looked.await {
        Err(e) => vec![Check::failed(
            REACHABLE,
            message(&e),
            hint_of(&e).unwrap_or_else(|| "set [store] url to a store that this node may write".to_owned()),
        )],
        Ok((url, true)) => vec![Check::ok(REACHABLE, url), Check::ok(CONDITIONAL, "honoured")],
        Ok((url, false)) => vec![
            Check::ok(REACHABLE, url),
            Check::failed(
                CONDITIONAL,
                "two writers both created one object",
                "use a store that honours If-None-Match: two primaries could claim one timeline",
            ),
        ],
    }
}

/// Nothing, where there is no Orchestrator.
async fn orchestrator(config: &Config) -> Option<Check> {
    const NAME: &str = "orchestrator";
    let looked = async {
        let Some(options) = config.orchestrator()? else {
            return Ok(None);
        };
        let client = Client::new(&options)?;
        let us = match options.instance {
            Some(us) => us,
            None => agent::role::own_name(&mut Session::connect(&config.endpoint()?).await?).await?,
        };
        let view = client.view(&us).await?;
        let verdict = judge(&view.instances, &us).with_context(|| format!("Orchestrator at {} does not list {us}", view.url))?;
        anyhow::Ok(Some((view.url, us, verdict)))
    };
    match looked.await {
        Ok(None) => None,
        Ok(Some((url, us, verdict))) => Some(match &verdict.unclear {
            Some(why) => Check::warning(
                NAME,
                format!("{url} does not tell the role of {us}: {why}"),
                "resolve it in Orchestrator; until then nobody is confirmed as the primary",
            ),
            None => Check::ok(
                NAME,
                format!("{us} is {} in cluster {}, says {url}", verdict.role, verdict.cluster),
            ),
        }),
        Err(e) => Some(Check::failed(
            NAME,
            message(&e),
            hint_of(&e).unwrap_or_else(|| "correct the [orchestrator] section".to_owned()),
        )),
    }
}

fn disk(config: &Config) -> Check {
    const NAME: &str = "state disk";
    let folder = config.state_path.parent().unwrap_or(std::path::Path::new("/"));
    match preflight::free_bytes(folder) {
        Err(e) => Check::failed(
            NAME,
            format!("{}: {}", folder.display(), message(&e)),
            "create the folder, owned by the user that runs mysql-pitr",
        ),
        Ok(free) if free < STATE_FREE_BYTES_MIN => Check::warning(
            NAME,
            format!("{} free in {}", human_bytes(free), folder.display()),
            "free some space",
        ),
        Ok(free) => Check::ok(NAME, format!("{} free in {}", human_bytes(free), folder.display())),
    }
}

fn print(check: &Check) {
    let verdict = match check.verdict {
        Verdict::Ok => "OK",
        Verdict::Warning => "WARNING",
        Verdict::Failed => "FAILED",
    };
    say!("{verdict:<8} {:<20} {}", check.name, check.detail);
    if let Some(hint) = &check.hint {
        say!("{:<29} → {hint}", "");
    }
}
