//! `mysql-pitr recover`

use std::{path::PathBuf, time::Instant};

use clap::ArgGroup;

use crate::{
    agent,
    binlog::gtid::Gtid,
    config::Config,
    recover::{Recovered, Settings, plan::plan, recover, target::from_flags},
    support::{clock::parse_rfc3339, progress::Progress},
};

use super::output::{self, say};

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
    /// The new server's data folder: empty, or not there yet.
    #[arg(long, value_name = "DIR", required_unless_present = "dry_run")]
    target_dir: Option<PathBuf>,
    /// Take the history of this timeline instead of the current one's.
    #[arg(long, value_name = "N")]
    timeline: Option<u32>,
    /// Only show the plan.
    #[arg(long)]
    dry_run: bool,
    /// Print the plan or the result as JSON.
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  mysql-pitr recover --target-time 2026-11-21T10:14:03.120Z --target-dir /var/lib/mysql
  mysql-pitr recover --target-gtid 3e11fa47-71ca-11e1-9e33-c80aa9429562:23 --exclusive --target-dir /srv/restored
  mysql-pitr recover --latest --dry-run";

pub async fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let began = Instant::now();
    let target = from_flags(args.latest, args.target_time, args.target_gtid, args.exclusive)?;
    let archive = agent::archive(config).await?;
    let progress = Progress::new(args.json);
    progress.phase("planning");
    let plan = plan(&archive, args.timeline, &target).await?;
    let summary = plan.summary();
    let Some(target_dir) = args.target_dir.clone().filter(|_| !args.dry_run) else {
        drop(progress);
        if args.json {
            return output::json(&summary);
        }
        say!("{summary}");
        return Ok(());
    };
    if !args.json {
        eprintln!("{summary}");
    }
    let section = &config.recover;
    let settings = Settings {
        mysqld: section.mysqld.clone(),
        user: section.user.clone(),
        workers: section.workers,
        target_dir,
    };
    let recovered = recover(&archive, &plan, &settings, &progress, began).await?;
    drop(progress);
    if args.json {
        return output::json(&recovered);
    }
    print(&recovered);
    Ok(())
}

fn print(r: &Recovered) {
    const MS_PER_S: f64 = 1000.0;
    say!("recovered {}", r.target_dir.display());
    if let Some(time) = &r.recovered_to {
        say!("  to            {time} (commit of the last transaction)");
    }
    say!("  transactions  {} replayed", r.transactions_replayed);
    say!("  gtid_executed {}", r.gtid_executed);
    say!("  server_uuid   {} (new)", r.server_uuid);
    let phases: Vec<String> = r
        .phases
        .iter()
        .map(|p| format!("{} {:.1} s", p.name, p.ms as f64 / MS_PER_S))
        .collect();
    say!("  RTO           {:.1} s ({})", r.rto_ms as f64 / MS_PER_S, phases.join(", "));
    for xa in &r.xa_prepared {
        say!("  XA prepared   {xa}: commit it or roll it back");
    }
    for event in &r.events_disabled {
        say!("  disabled      event {event}: the replay disabled it; ALTER EVENT … ENABLE if it shall run");
    }
    say!("start mysqld on it with your own configuration; its accounts and passwords are those of the recovered moment");
}
