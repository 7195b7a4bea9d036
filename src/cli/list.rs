//! `mysql-pitr list`

use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;

use crate::{
    agent,
    archive::{
        gaps::Gap,
        listing::{Archive, Form, StoredBinlog, covered_end},
        path::Path,
        records::{Snapshot, SnapshotState, Timeline},
        survey::Survey,
    },
    config::Config,
    recover::{
        diverged::{Diverged, diverged_read},
        window::{Recoverable, recoverable},
    },
    support::{clock, hint::message, progress::human_bytes},
};

use super::{
    output::{self, say},
    status,
};

/// For a region that may be away.
const REPLICA_PATIENCE: Duration = Duration::from_secs(60);

/// Show what is archived: timelines, snapshots, binlogs, and the recoverable window
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print as JSON.
    #[arg(long)]
    json: bool,
    /// Show what lies off the path instead: transactions that no successor inherited.
    #[arg(long)]
    diverged: bool,
    /// The path of this timeline instead of the current one's.
    #[arg(long, value_name = "N")]
    timeline: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Listing {
    shard: String,
    store: String,
    window: Window,
    gaps: Vec<Gap>,
    timelines: Vec<Timeline>,
    snapshots: Vec<Snapshot>,
    binlogs: Vec<Binlog>,
    /// Objects that are missing or cannot be read.
    faults: Vec<String>,
    /// What the other region's bucket alone can recover, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    replica: Option<Replica>,
}

#[derive(Debug, Serialize)]
struct Replica {
    store: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<Window>,
    gaps: Vec<Gap>,
    faults: Vec<String>,
    /// Why nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

/// Between which moments recovery is possible without crossing a gap, up to the end of the history.
#[derive(Debug, Serialize)]
struct Window {
    from: Option<String>,
    until: Option<String>,
    /// Why the newest moment cannot be recovered.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct Binlog {
    name: String,
    server_uuid: uuid::Uuid,
    timeline: u32,
    on_path: bool,
    sealed: bool,
    bytes: u64,
    stored_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    transactions: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_commit: Option<String>,
}

pub async fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let archive = agent::archive(config).await?;
    let mut survey = archive.survey().await?;
    let path = Path::find(&survey.timelines, args.timeline).ok();
    if args.diverged {
        let path = Path::find(&survey.timelines, args.timeline)?;
        survey.binlogs.sort_by_cached_key(|b| (b.opening.timeline, b.order()));
        let found = diverged_read(&archive, &path, &survey.timelines, &survey.binlogs).await?;
        return show_diverged(args, &found);
    }
    let recoverable = recoverable(&archive, args.timeline, &mut survey).await;
    survey.binlogs.sort_by_cached_key(|b| (b.opening.timeline, b.order()));
    let Survey {
        timelines,
        snapshots,
        binlogs,
        faults,
    } = survey;
    let replica = match agent::replica::archive(config).await? {
        Some(replica) => Some(other_region(&replica, args.timeline).await),
        None => None,
    };
    let (window, gaps) = window(recoverable);
    let binlogs = binlogs.iter().map(|b| describe(b, path.as_ref())).collect();
    let listing = Listing {
        shard: config.shard.to_string(),
        store: archive.store.url().to_owned(),
        window,
        gaps,
        timelines,
        snapshots,
        binlogs,
        faults: faults.iter().map(ToString::to_string).collect(),
        replica,
    };
    if args.json {
        return output::json(&listing);
    }
    print(&listing);
    Ok(())
}

fn window(recoverable: Recoverable) -> (Window, Vec<Gap>) {
    let window = Window {
        from: recoverable.window.from_us.map(clock::format_utc),
        until: recoverable.until_us.map(clock::format_utc),
        problem: recoverable.problem,
    };
    (window, recoverable.window.gaps)
}

/// A region that cannot be reached is no reason not to show this one.
async fn other_region(archive: &Archive, timeline: Option<u32>) -> Replica {
    let store = archive.store.url().to_owned();
    let looked = timeout(REPLICA_PATIENCE, async {
        let mut survey = archive.survey().await?;
        let (window, gaps) = window(recoverable(archive, timeline, &mut survey).await);
        let faults = survey.faults.iter().map(ToString::to_string).collect();
        anyhow::Ok((window, gaps, faults))
    });
    let failure = match looked.await {
        Ok(Ok((window, gaps, faults))) => {
            return Replica {
                store,
                window: Some(window),
                gaps,
                faults,
                failure: None,
            };
        }
        Ok(Err(e)) => message(&e),
        Err(_) => format!("it did not answer within {} s", REPLICA_PATIENCE.as_secs()),
    };
    Replica {
        store,
        window: None,
        gaps: Vec::new(),
        faults: Vec::new(),
        failure: Some(failure),
    }
}

fn show_diverged(args: &Args, found: &[Diverged]) -> anyhow::Result<()> {
    if args.json {
        return output::json(&found);
    }
    if found.is_empty() {
        say!("everything that was archived is on the path");
    }
    for d in found {
        let part = if d.on_path {
            "not inherited by its successors"
        } else {
            "off the path"
        };
        say!("timeline {}, server {}, {part}: {}", d.timeline, d.server_uuid, d.gtids);
        for b in &d.binlogs {
            let form = if b.sealed { "sealed  " } else { "segments" };
            let gtids = b.gtids.as_ref().map_or_else(|| "not read".to_owned(), ToString::to_string);
            say!("  {}  {form}  {} stored, {gtids}", b.name, human_bytes(b.stored_bytes));
        }
    }
    Ok(())
}

fn describe(b: &StoredBinlog, path: Option<&Path>) -> Binlog {
    let (bytes, transactions, last) = match &b.form {
        Form::Sealed(m) => (m.bytes, Some(m.transactions), m.commit_us_max),
        Form::Tail(segments) => (covered_end(segments), None, None),
    };
    Binlog {
        name: b.place().name.clone(),
        server_uuid: b.place().server_uuid,
        timeline: b.opening.timeline,
        on_path: path.is_some_and(|p| p.inherited(b.opening.timeline).is_some()),
        sealed: b.gtids().is_some(),
        bytes,
        stored_bytes: b.stored_bytes(),
        transactions,
        last_commit: last.map(clock::format_utc),
    }
}

/// How much a complete snapshot is, and where.
pub(super) fn extent(s: &Snapshot) -> String {
    if s.provider.stores_data() {
        return format!(
            "{} of data, {} stored",
            human_bytes(s.data_bytes),
            human_bytes(s.stored_bytes)
        );
    }
    let gib: u64 = s.volumes.iter().map(|v| u64::from(v.size_gib)).sum();
    let regions = s.volumes.first().map(|v| v.copies.as_slice()).unwrap_or_default();
    let regions = regions.iter().map(|c| {
        let complete = s.volumes.iter().all(|v| v.complete_in(&c.region).is_some());
        let state = if complete { "" } else { " NOT YET" };
        format!("{}{state}", c.region)
    });
    let regions: Vec<String> = regions.collect();
    format!("EBS volumes of {gib} GiB, complete in {}", regions.join(", "))
}

fn print_window(window: &Window, gaps: &[Gap], faults: &[String]) {
    match (&window.from, &window.until) {
        (Some(from), Some(until)) if from > until => say!("recoverable: the state at {until}, nothing was committed since"),
        (Some(from), Some(until)) => say!("recoverable from {from} until {until}"),
        _ if window.problem.is_none() => say!("recoverable: the newest snapshot, which is newer than all that was shipped"),
        _ if gaps.iter().any(|g| g.closed_by.is_none()) => say!("recoverable only up to a gap"),
        _ => say!("nothing is recoverable yet"),
    }
    window.problem.iter().chain(faults).for_each(|what| say!("  {what}"));
}

fn print(l: &Listing) {
    say!("shard {} in {}", l.shard, l.store);
    print_window(&l.window, &l.gaps, &l.faults);
    if let Some(replica) = &l.replica {
        say!("the other region, {}", replica.store);
        match (&replica.window, &replica.failure) {
            (Some(window), _) => print_window(window, &replica.gaps, &replica.faults),
            (None, failure) => say!("  it cannot be looked at: {}", failure.as_deref().unwrap_or_default()),
        }
    }
    if !l.gaps.is_empty() {
        say!("\ngaps");
        l.gaps.iter().for_each(|g| say!("  {}", status::describe(g)));
    }
    say!("\ntimelines");
    for t in &l.timelines {
        let parent = t.parent.map_or("root".to_owned(), |p| format!("child of {p}"));
        let skipped = match t.skipped.is_empty() {
            true => String::new(),
            false => format!(", without {}", t.skipped),
        };
        let adopted = if t.adopted { "" } else { ", NOT ADOPTED: off the path" };
        say!(
            "  {:>3}  {parent}, server {}, {}, since {}{skipped}{adopted}",
            t.id,
            t.server_uuid,
            t.reason,
            clock::format_utc(t.claimed_at_us)
        );
    }
    say!("\nsnapshots");
    for s in &l.snapshots {
        let state = match s.state {
            SnapshotState::Complete => extent(s),
            SnapshotState::Started => "being taken".to_owned(),
            SnapshotState::Failed => format!("FAILED: {}", s.failure.as_deref().unwrap_or_default()),
        };
        let errant = match s.errant.is_empty() {
            true => String::new(),
            false => format!(", ERRANT: {} are in nobody's history", s.errant),
        };
        say!("  {}  timeline {}, {state}{errant}", s.id, s.timeline);
    }
    say!("\nbinlogs");
    for b in &l.binlogs {
        let form = if b.sealed { "sealed  " } else { "segments" };
        let off = if b.on_path { "" } else { ", off the path" };
        let holds = b.transactions.map_or(String::new(), |n| format!(", {n} transactions"));
        say!(
            "  {}  {form}  timeline {}, server {}, {}, {} stored{holds}{off}",
            b.name,
            b.timeline,
            b.server_uuid,
            human_bytes(b.bytes),
            human_bytes(b.stored_bytes)
        );
    }
}
