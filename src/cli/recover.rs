//! `mysql-pitr recover`

use std::{path::PathBuf, time::Instant};

use clap::ArgGroup;
use uuid::Uuid;

use crate::{
    agent,
    archive::records::LeasedPart,
    binlog::gtid::{Gtid, GtidSet},
    config::Config,
    recover::{
        Course, Recovered, Settings,
        plan::{Request, plan},
        rates::{self, Rates},
        recover,
        report::{ArchivePlace, Report},
        target::{Flags, Target, parse_position},
        volumes,
    },
    retention::lease::Held,
    support::{
        clock::{now_us, parse_rfc3339},
        hint::message,
        progress::Progress,
    },
};

use super::{
    output::{self, say},
    until_interrupted,
};

const US_PER_MS: u64 = 1000;

/// Make a server's data folder that holds exactly the transactions up to a chosen moment
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, group(ArgGroup::new("target").required(true)))]
pub struct Args {
    /// Stop before the first transaction that was committed after this moment: RFC 3339 with an offset, to the microsecond.
    #[arg(long, value_name = "TIME", value_parser = parse_rfc3339, group = "target")]
    target_time: Option<i64>,
    /// Stop after this transaction.
    #[arg(long, value_name = "GTID", group = "target")]
    target_gtid: Option<Gtid>,
    /// Stop before the transaction that --target-gtid names.
    #[arg(long, requires = "target_gtid")]
    exclusive: bool,
    /// Recover everything that was archived.
    #[arg(long, group = "target")]
    latest: bool,
    /// Recover exactly this set of transactions.
    #[arg(long, value_name = "SET", group = "target")]
    target_gtid_set: Option<GtidSet>,
    /// Stop after the last transaction that ends at or before this position. FILE is a binlog, or the key of its object.
    #[arg(long, value_name = "FILE:POS", value_parser = parse_position, group = "target")]
    target_position: Option<(String, u64)>,
    /// Whose binlog --target-position means, where several servers have one of that name.
    #[arg(long, value_name = "UUID", requires = "target_position")]
    server: Option<Uuid>,
    /// Leave this transaction out and commit an empty one in its place; may be given several times.
    #[arg(long, value_name = "GTID")]
    skip_gtid: Vec<Gtid>,
    /// Where the target cannot be reached, recover the last state before it that can.
    #[arg(long)]
    latest_possible: bool,
    /// The new server's data folder: empty, or not there yet.
    #[arg(long, value_name = "DIR", required_unless_present = "dry_run")]
    target_dir: Option<PathBuf>,
    /// Take the history of this timeline instead of the current one's.
    #[arg(long, value_name = "N")]
    timeline: Option<u32>,
    /// Throw away what an interrupted recovery left in the target folder, and begin with the snapshot.
    #[arg(long)]
    restart: bool,
    /// Where the recovery fails, leave the EBS volumes that it made: the same command then goes on with them.
    #[arg(long)]
    keep_volume: bool,
    /// Read and check every table before the server is handed over: CHECK TABLE, row counts and checksums.
    #[arg(long, value_name = "WHAT")]
    verify: Option<Verify>,
    /// Write a report as JSON into this file, also where the recovery fails.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Only show the plan.
    #[arg(long)]
    dry_run: bool,
    /// Print the plan or the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Verify {
    Tables,
}

const EXAMPLES: &str = "\
Examples:
  mysql-pitr recover --target-time 2026-11-21T10:14:03.120Z --target-dir /var/lib/mysql
  mysql-pitr recover --target-gtid 3e11fa47-71ca-11e1-9e33-c80aa9429562:23 --exclusive --target-dir /srv/restored
  mysql-pitr recover --latest --skip-gtid 3e11fa47-71ca-11e1-9e33-c80aa9429562:23 --target-dir /srv/restored
  mysql-pitr recover --target-position binlog.000042:1337 --dry-run
  mysql-pitr recover --latest --dry-run";

impl Args {
    fn request(&self, config: &Config) -> anyhow::Result<Request> {
        let flags = Flags {
            latest: self.latest,
            time: self.target_time,
            gtid: self.target_gtid,
            exclusive: self.exclusive,
            set: self.target_gtid_set.clone(),
            position: self.target_position.clone(),
            server: self.server,
        };
        Ok(Request {
            target: flags.target()?,
            timeline: self.timeline,
            skip: self.skip_gtid.iter().copied().collect(),
            latest_possible: self.latest_possible,
            reach: Some(config.recover.volume.reach()),
        })
    }
}

pub async fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let Some(target_dir) = args.target_dir.clone().filter(|_| !args.dry_run) else {
        return until_interrupted(show_plan(args, config)).await;
    };
    let mut report = Report::begin(std::env::args());
    write_report(args, &report)?;
    let mut course = Course::new(Instant::now());
    let attempt = attempt(args, config, target_dir, &mut course, &mut report);
    match until_interrupted(attempt).await {
        Ok(recovered) => {
            report.succeeded(&recovered);
            if args.json {
                output::json(&recovered)?;
            } else {
                print(&recovered);
            }
            write_report(args, &report)
        }
        Err(e) => {
            report.failed(&e, &course);
            // What the recovery failed at is worth more than what its report failed at.
            if let Err(e) = write_report(args, &report) {
                eprintln!("{}", message(&e));
            }
            Err(e)
        }
    }
}

fn rates_path(config: &Config) -> PathBuf {
    config.state_path.with_file_name(rates::FILE)
}

fn write_report(args: &Args, report: &Report) -> anyhow::Result<()> {
    args.report.as_ref().map_or(Ok(()), |path| report.write(path))
}

async fn show_plan(args: &Args, config: &Config) -> anyhow::Result<()> {
    let request = args.request(config)?;
    let archive = agent::archive(config).await?;
    let progress = Progress::new(args.json);
    progress.phase("planning");
    let rates = Rates::read(&rates_path(config), &config.shard);
    let summary = plan(&archive, &request).await?.summary(&rates);
    drop(progress);
    if args.json {
        return output::json(&summary);
    }
    say!("{summary}");
    Ok(())
}

async fn attempt(
    args: &Args,
    config: &Config,
    target_dir: PathBuf,
    course: &mut Course,
    report: &mut Report,
) -> anyhow::Result<Recovered> {
    let began_us = now_us();
    let request = args.request(config)?;
    let archive = agent::archive(config).await?;
    report.archive = Some(ArchivePlace::of(&archive));
    let progress = Progress::new(args.json);
    progress.phase("planning");
    let mut warn = |what: &str, e: &anyhow::Error| {
        let text = format!("{what}; see to it that nobody prunes the archive meanwhile: {}", message(e));
        progress.note(&text);
        course.warnings.push(text);
    };
    // Before the plan: what that finds is to stay.
    let lease = Held::take(&archive).await;
    let lease = lease.inspect_err(|e| warn("this recovery takes no lease", e)).ok();
    let plan = match plan(&archive, &request).await {
        Ok(plan) => plan,
        Err(e) => {
            if let Some(lease) = lease {
                // It expires by itself.
                let _ = lease.end().await;
            }
            return Err(e);
        }
    };
    if let Some(lease) = &lease {
        let needs = LeasedPart {
            snapshot: plan.snapshot.id.clone(),
            timeline: plan.path.last().id,
            oldest_binlog: plan.legs.first().and_then(|leg| leg.binlog.key_at(&archive.shard, 0)),
        };
        // It goes on protecting everything.
        if let Err(e) = lease.narrow(needs).await {
            progress.note(&format!("this recovery holds up every prune while it runs: {}", message(&e)));
        }
    }
    let mut rates = Rates::read(&rates_path(config), &config.shard);
    let summary = plan.summary(&rates);
    if !args.json {
        progress.note(&summary.to_string());
    }
    report.plan = Some(summary);
    let section = &config.recover;
    let (device_dir, device_timeout) = section.volume.devices();
    let settings = Settings {
        mysqld: section.mysqld.clone(),
        user: section.user.clone(),
        workers: section.workers,
        target_dir,
        restart: args.restart,
        verify_tables: args.verify == Some(Verify::Tables),
        volumes: volumes::Settings {
            reach: section.volume.reach(),
            shape: section.volume.shape(),
            device_dir,
            device_timeout,
            keep: args.keep_volume,
        },
    };
    // One that fails keeps its lease until that expires: the same command goes on with what was done.
    let mut recovered = recover(&archive, &plan, &settings, &progress, course).await?;
    rates.learn(&plan, &recovered);
    rates.write(&rates_path(config));
    if let Some(lease) = lease
        && let Err(e) = lease.end().await
    {
        progress.note(&format!(
            "the lease of this recovery could not be ended, and expires by itself: {}",
            message(&e)
        ));
    }
    if request.target == Target::Latest {
        let last = plan.last.as_ref().map(|stop| stop.commit_us);
        recovered.rpo_ms = last.map(|us| began_us.saturating_sub(us).max(0) as u64 / US_PER_MS);
    }
    Ok(recovered)
}

fn print(r: &Recovered) {
    const MS_PER_S: f64 = 1000.0;
    say!("recovered {}", r.target_dir.display());
    if let Some(volume) = &r.volume {
        let (id, device) = (&volume.volume_id, volume.device.display());
        say!(
            "  volume        {id} ({device}, {}), mounted there until the machine restarts",
            volume.filesystem
        );
    }
    if let Some(time) = &r.recovered_to {
        say!("  to            {time} (commit of the last transaction)");
    }
    if let Some(why) = &r.shortfall {
        say!("  LESS          than the target: {why}");
    }
    say!("  transactions  {} replayed", r.transactions_replayed);
    if !r.skipped.is_empty() {
        say!("  left out      {}, empty now", r.skipped);
    }
    if let Some(rpo_ms) = r.rpo_ms {
        say!("  RPO           {:.1} s before this command began", rpo_ms as f64 / MS_PER_S);
    }
    say!("  gtid_executed {}", r.gtid_executed);
    say!("  server_uuid   {} (new)", r.server_uuid);
    let phases: Vec<String> = r
        .phases
        .iter()
        .map(|p| format!("{} {:.1} s", p.name, p.ms as f64 / MS_PER_S))
        .collect();
    say!("  RTO           {:.1} s ({})", r.rto_ms as f64 / MS_PER_S, phases.join(", "));
    if let Some(tables) = &r.tables {
        let rows: u64 = tables.iter().map(|t| t.rows).sum();
        say!("  tables        {} sound, {rows} rows", tables.len());
    }
    for xa in &r.xa_prepared {
        say!("  XA prepared   {xa}: commit it or roll it back");
    }
    for event in &r.events_disabled {
        say!("  disabled      event {event}: the replay disabled it; ALTER EVENT … ENABLE if it shall run");
    }
    say!("start mysqld on it with your own configuration; its accounts and passwords are those of the recovered moment");
}
