//! `mysql-pitr check`

use anyhow::{Context, bail};

use crate::{
    agent,
    archive::listing::Archive,
    config::{Config, Replication},
    mysql::{
        preflight::{self, Check, Verdict},
        query::Session,
    },
    orchestrator::{Client, judge},
    snapshot::volumes,
    store::{Checksums, StoreError, StoreOptions, probe},
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
    checks.extend(replica(config).await);
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
    const CREATING: &str = "conditional PUT";
    const REPLACING: &str = "conditional replace";
    let looked = async {
        let Archive { store, shard, .. } = agent::archive(config).await?;
        let shard = shard.to_string();
        let workarounds = store.workarounds(&shard).await?;
        let creates = probe::creates_once(&store, &shard).await?;
        let replaces = probe::replaces_what_it_saw(&store, &shard).await?;
        anyhow::Ok((store.url().to_owned(), workarounds, creates, replaces))
    };
    let (url, workarounds, creates, replaces) = match looked.await {
        Ok(found) => found,
        Err(e) => {
            let fewer = works_with_fewer_checksums(config, &e).await;
            let hint = match fewer {
                true => "set checksums = \"when_required\" in the [store] section: with it this store works".to_owned(),
                false => hint_of(&e).unwrap_or_else(|| "set [store] url to a store that this node may write".to_owned()),
            };
            return vec![Check::failed(REACHABLE, message(&e), hint)];
        }
    };
    let honoured = |name, honoured: bool, what: &str, hint: &str| match honoured {
        true => Check::ok(name, "honoured"),
        false => Check::failed(name, what.to_owned(), hint),
    };
    let mut checks = vec![
        Check::ok(REACHABLE, url),
        honoured(
            CREATING,
            creates,
            "two writers both created one object",
            "use a store that honours If-None-Match: two primaries could claim one timeline",
        ),
    ];
    if workarounds.is_empty() {
        checks.push(honoured(
            REPLACING,
            replaces,
            "a writer replaced an object that it had not seen, or could not replace one that it had",
            "use a store that honours If-Match",
        ));
    }
    let hint = "nothing has to be done; a store that honours If-Match needs fewer requests";
    checks.extend(workarounds.into_iter().map(|what| Check::warning(REPLACING, what, hint)));
    checks
}

/// Whether the store that refused something does not refuse it without the SDK's checksums.
async fn works_with_fewer_checksums(config: &Config, e: &anyhow::Error) -> bool {
    let refused = e
        .downcast_ref::<StoreError>()
        .is_some_and(|e| matches!(e, StoreError::Refused { .. }));
    let options = config.store.options();
    if !refused || options.checksums == Checksums::WhenRequired {
        return false;
    }
    let fewer = StoreOptions {
        checksums: Checksums::WhenRequired,
        ..options
    };
    let works = async {
        let store = crate::store::open(&config.store.url, &fewer).await?;
        anyhow::Ok(probe::creates_once(&store, &config.shard.to_string()).await?)
    };
    works.await.unwrap_or(false)
}

/// Nothing, where there is no other region.
async fn replica(config: &Config) -> Option<Check> {
    const NAME: &str = "replica";
    let section = config.replica.as_ref()?;
    let looked = async {
        let replica = agent::replica::archive(config).await?.context("there is no [replica]")?;
        let timelines = replica.timelines().await?.len();
        if section.replication == Replication::Agent && !probe::creates_once(&replica.store, &replica.shard.to_string()).await? {
            bail!("two writers both created one object");
        }
        anyhow::Ok(format!("{}, {timelines} timelines there", replica.store.url()))
    };
    Some(match looked.await {
        Ok(what) => Check::ok(NAME, what),
        Err(e) => Check::failed(
            NAME,
            message(&e),
            hint_of(&e).unwrap_or_else(|| "set [replica] url to a store that this node may list and read".to_owned()),
        ),
    })
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
