//! `mysql-pitr status`

use std::{fmt::Display, time::Duration};

use anyhow::{Context, anyhow, bail};

use crate::{
    agent::{
        self,
        document::{ArchiveView, Document, ReplicaView},
        replica,
        survey::Surveyor,
    },
    archive::gaps::Gap,
    config::Config,
    replica::Behind,
    support::{
        clock::Moment,
        hint::{OrHint, message, with_hint},
        progress::human_bytes,
    },
};

use super::output::{self, count, say};

/// Show how the agent on this node stands: what is shipped, what is at risk, what can be recovered
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print as JSON: what the agent answers at /v1/status.
    #[arg(long)]
    json: bool,
    /// Where the agent answers, if not where the configuration says.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

const EXAMPLES: &str = "\
Exit status:
  0  the agent runs and all is well
  1  the agent says that something is wrong: it is not healthy, ships off the path, the archive has an open gap or a
     record that cannot be read, or the other region's bucket holds something else (also any error of this command itself)
  2  no agent answers; what the archive tells is shown

Examples:
  mysql-pitr status
  mysql-pitr status --json | jq .at_risk
  mysql-pitr status --url http://10.0.0.11:9823";

/// The agent answers from memory, on the same machine.
const PATIENCE: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: usize = 16 << 20;
const EXIT_DEGRADED: i32 = 1;
const EXIT_NO_AGENT: i32 = 2;
const US_PER_S: f64 = 1e6;

pub async fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    match ask(args, config).await {
        Ok(document) => {
            if args.json {
                output::json(&document)?;
            } else {
                print(&document);
            }
            if is_degraded(&document) {
                std::process::exit(EXIT_DEGRADED);
            }
            Ok(())
        }
        Err(e) => {
            without_agent(args, config, &e).await?;
            std::process::exit(EXIT_NO_AGENT);
        }
    }
}

fn is_degraded(d: &Document) -> bool {
    let has_gap = d.archive.as_ref().is_some_and(|a| a.open_gaps().next().is_some());
    let is_damaged = d.archive.as_ref().is_some_and(|a| !a.faults.is_empty());
    let differs = d.replica.as_ref().is_some_and(|r| !r.differing.is_empty());
    !d.healthy || differs || d.on_path == Some(false) || has_gap || is_damaged
}

async fn ask(args: &Args, config: &Config) -> anyhow::Result<Document> {
    let base = match (&args.url, config.http.listen) {
        (Some(url), _) => url.trim_end_matches('/').to_owned(),
        (None, Some(address)) => format!("http://{address}"),
        (None, None) => {
            let e = anyhow!("no agent can be asked: [http] listen is \"off\"");
            return Err(with_hint(e, "give it an address, or name another agent with --url"));
        }
    };
    let answer = fetch(&format!("{base}/v1/status")).await;
    answer
        .with_context(|| format!("no agent answers at {base}"))
        .hint("see whether it runs (systemctl status mysql-pitr), and what it says about [http] listen when it starts")
}

async fn fetch(url: &str) -> anyhow::Result<Document> {
    // What is on this machine is never behind a proxy.
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
    let mut response = client.get(url).send().await.map_err(reqwest::Error::without_url)?;
    if !response.status().is_success() {
        bail!("it answers {}", response.status());
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > ANSWER_BYTES_MAX {
            bail!("its answer has more than {}", human_bytes(ANSWER_BYTES_MAX as u64));
        }
    }
    serde_json::from_slice(&bytes).context("its answer is not that of this version's agent")
}

/// What the archive alone tells.
async fn without_agent(args: &Args, config: &Config, problem: &anyhow::Error) -> anyhow::Result<()> {
    let archive = agent::archive(config).await?;
    let view = Surveyor::of_the_past(archive.clone()).look().await?.view;
    let replica = replica::look_once(config, &archive, &view).await?;
    if args.json {
        return output::json(&serde_json::json!({ "problem": message(problem), "archive": view, "replica": replica }));
    }
    eprintln!("{}", crate::support::hint::render(problem));
    say!("what {} holds of {}:", archive.store.url(), config.shard);
    if let Some(tip) = view.tip {
        row("timeline", tip);
    }
    row("last binlog", view.last_binlog.as_deref().unwrap_or("none"));
    print_archive(&view, Moment::now());
    if let Some(replica) = replica {
        print_replica(&replica, Moment::now());
    }
    Ok(())
}

fn row(name: &str, what: impl Display) {
    say!("  {name:<12} {what}");
}

fn print(d: &Document) {
    say!("{} in {}, agent {} since {}", d.shard, d.store, d.version, d.started_at);
    row("health", d.unhealthy_because.as_deref().unwrap_or("ok"));
    let writable = match d.server_writable {
        Some(true) => "writable",
        Some(false) => "read-only",
        None => "not seen yet",
    };
    row("role", format_args!("{} (the server is {writable})", d.role));
    row("", word(d));
    if d.takes_snapshots {
        row("", "the shard's snapshots are taken here");
    }
    if let Some(timeline) = d.timeline {
        let path = match d.on_path {
            Some(true) => "on the path",
            Some(false) => {
                "OFF THE PATH: not part of the shard's current history; if this is the shard's primary, run `mysql-pitr adopt` here, and if \
                 it is not, make it read-only"
            }
            None => "not known yet whether on the path",
        };
        row("timeline", format_args!("{timeline}, {path}"));
    }
    if let Some(shipped) = &d.shipped {
        row(
            "shipped to",
            format_args!("{} at {}{}", shipped.binlog, shipped.position, ago(d.last_stored_at, d.at)),
        );
    }
    if let Some(risk) = &d.at_risk {
        let what = match risk.bytes {
            0 => "nothing".to_owned(),
            bytes => format!("{}, the oldest written {:.1} s ago", human_bytes(bytes), risk.seconds),
        };
        row("at risk", what);
    }
    let backlog = usize::try_from(d.backlog.binlogs).unwrap_or(usize::MAX);
    match backlog {
        0 => row("backlog", "none"),
        n => row(
            "backlog",
            format_args!("{} to seal, {}", count(n, "binlog"), human_bytes(d.backlog.bytes)),
        ),
    }
    if let Some(at) = d.last_seal_at {
        row("last seal", format_args!("{at}{}", ago(Some(at), d.at)));
    }
    if let Some(at) = d.next_snapshot_at {
        row("next", format_args!("snapshot at {at}, by the schedule"));
    }
    if let Some(archive) = &d.archive {
        print_archive(archive, d.at);
    }
    if let Some(replica) = &d.replica {
        print_replica(replica, d.at);
    }
    if let Some(error) = &d.last_error {
        row(
            "last error",
            format_args!("{}{}: {}", error.at, ago(Some(error.at), d.at), error.text),
        );
    }
}

/// Who says what the role is, and how old that is.
fn word(d: &Document) -> String {
    if d.standalone {
        return "by the server's own word: no Orchestrator is asked".to_owned();
    }
    let age = match d.role_age_seconds {
        Some(s) => format!("Orchestrator's last clear answer came {s:.0} s ago"),
        None => "Orchestrator has given no clear answer yet".to_owned(),
    };
    let stale = if d.role_is_stale == Some(true) { ": STALE" } else { "" };
    let confirmed = match (&d.confirmed_by, d.server_writable) {
        (Some(by), _) => format!("confirmed as the primary by {by}; "),
        (None, Some(true)) => "confirmed as the primary by nobody; ".to_owned(),
        (None, _) => String::new(),
    };
    format!("{confirmed}{age}{stale}")
}

fn print_replica(r: &ReplicaView, now: Moment) {
    say!("the other region, {}{}:", r.store, ago(r.seen_at, now));
    if let Some(error) = &r.last_error
        && let Some(since) = r.failing_since
    {
        row("failing", format_args!("since {since}: {error}"));
    }
    match &r.behind {
        Some(behind) => row("behind", in_words(behind)),
        None => row("behind", "not seen yet"),
    }
    match (r.recoverable_from, r.recoverable_until) {
        (Some(from), Some(until)) => row("recoverable", format_args!("from {from} until {until}")),
        _ => row("recoverable", "not up to now"),
    }
    r.gaps
        .iter()
        .filter(|g| g.closed_by.is_none())
        .for_each(|g| row("gap", describe(g)));
    r.faults.iter().for_each(|f| row("fault", f));
    r.differing.iter().for_each(|d| row("DIFFERS", d));
}

fn in_words(behind: &Behind) -> String {
    let counts = [
        (behind.binlogs, "binlog"),
        (behind.segments, "segment"),
        (behind.snapshots, "snapshot"),
        (behind.records, "record"),
    ];
    let lacking = counts.iter().filter(|(n, _)| *n > 0);
    let lacking: Vec<String> = lacking
        .map(|(n, what)| count(usize::try_from(*n).unwrap_or(usize::MAX), what))
        .collect();
    if lacking.is_empty() && behind.seconds == 0.0 {
        return "by nothing".to_owned();
    }
    let what = format!("{}, {}", human_bytes(behind.bytes), lacking.join(", "));
    format!("by {:.0} s: {}", behind.seconds, what.trim_end_matches([',', ' ']))
}

fn print_archive(a: &ArchiveView, now: Moment) {
    match a.last_snapshot_at {
        Some(at) => row("snapshot", format_args!("{at}{}", ago(Some(at), now))),
        None => row("snapshot", "none on the path"),
    }
    if !a.errant.is_empty() {
        row(
            "",
            format_args!("ERRANT: it holds {}, which are in nobody's history", a.errant),
        );
    }
    match (a.recoverable_from, a.recoverable_until) {
        (Some(from), Some(until)) => row("recoverable", format_args!("from {from} until {until}")),
        _ => row("recoverable", "not up to now"),
    }
    a.open_gaps().for_each(|g| row("gap", describe(g)));
    a.faults.iter().for_each(|f| row("fault", f));
}

/// A gap in one line.
pub fn describe(gap: &Gap) -> String {
    let lost = count(usize::try_from(gap.gtids.count()).unwrap_or(usize::MAX), "transaction");
    let closed = match &gap.closed_by {
        Some(snapshot) => format!("closed by snapshot {snapshot}"),
        None => "OPEN: take a snapshot".to_owned(),
    };
    format!(
        "{}: {lost} before {} on timeline {}, {closed}",
        gap.gtids, gap.before_binlog, gap.timeline
    )
}

fn ago(at: Option<Moment>, now: Moment) -> String {
    at.map_or(String::new(), |at| {
        format!(" ({:.1} s ago)", (now.0 - at.0) as f64 / US_PER_S)
    })
}
