//! `mysql-pitr prune`

use anyhow::anyhow;
use serde::Serialize;

use crate::{
    agent,
    config::Config,
    retention::{
        apply::{Applied, apply},
        holdings::Holdings,
        plan::{Kind, Plan, plan},
    },
    support::{
        hint::{OrHint, message},
        progress::{Progress, human_bytes},
    },
};

use super::output::{self, count, say};

/// Delete what no rule of `[retention]` keeps: old snapshots, the binlogs before those that stay, and leftovers
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Delete. Without it the plan is shown and nothing is done.
    #[arg(long)]
    yes: bool,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  mysql-pitr prune           what would go, and why
  mysql-pitr prune --yes     let it go";

#[derive(Serialize)]
struct Answer<'a> {
    plan: &'a Plan,
    #[serde(skip_serializing_if = "Option::is_none")]
    applied: Option<&'a Applied>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

pub async fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let archive = agent::archive(config).await?;
    let progress = Progress::new(args.json);
    progress.phase("planning");
    let mut holdings = Holdings::of(&archive).await?;
    if let Some(replica) = agent::replica::archive(config).await? {
        holdings = holdings.beside(&replica).await;
    }
    let cloud = match holdings.concerns_ec2().then(|| config.ec2()) {
        None => None,
        Some(Ok(cloud)) => {
            holdings = holdings.in_ec2(&archive, cloud.as_ref()).await;
            Some(cloud)
        }
        Some(Err(e)) => {
            holdings.ec2 = Err(message(&e));
            None
        }
    };
    let unseen = holdings.ec2.as_ref().err().filter(|_| holdings.concerns_ec2()).cloned();
    let plan = plan(&archive.shard, &holdings, &config.retention, archive.clock.now_us())?;
    drop(holdings);
    if !args.json {
        print(&plan);
    }
    let (mut applied, mut done) = (Applied::default(), Ok(()));
    if args.yes && plan.held_up.is_none() {
        done = apply(&archive, &plan, cloud.as_deref(), &mut applied, &progress).await;
    }
    drop(progress);
    if args.json {
        output::json(&Answer {
            plan: &plan,
            applied: args.yes.then_some(&applied),
            failure: done.as_ref().err().map(message),
        })?;
    } else if args.yes {
        let in_ec2 = match applied.ec2_snapshots_deleted {
            0 => String::new(),
            some => format!(" and {}", count(some, "EC2 snapshot")),
        };
        say!("deleted {}{in_ec2}", count(applied.objects_deleted, "object"));
        applied
            .locked
            .iter()
            .for_each(|k| say!("  LOCKED   {}: {} is locked: {}", k.name, k.key, k.reason));
        applied
            .refused
            .iter()
            .for_each(|r| say!("  REFUSED  {}: {}", r.name, r.reason));
    } else if !plan.deletions.is_empty() {
        say!("nothing was done; --yes deletes");
    }
    done?;
    if !applied.refused.is_empty() {
        let refused = count(applied.refused.len(), "deletion");
        return Err(anyhow!("refused: {refused}"))
            .hint("each says why; see whether these credentials may delete, and run it again");
    }
    match unseen.filter(|_| args.yes) {
        None => Ok(()),
        Some(why) => Err(anyhow!(
            "snapshots of EBS volumes stay, for it cannot be seen what EC2 has of them: {why}"
        ))
        .hint("let this host see the snapshots of the archive's region: [ebs] region, AWS credentials, ec2:DescribeSnapshots"),
    }
}

fn print(plan: &Plan) {
    for history in &plan.histories {
        let what = if history.current { "current history" } else { "other history" };
        let from = history.from.map_or("nothing is recoverable yet".to_owned(), |from| {
            format!("recoverable from {from} on")
        });
        say!(
            "{what} (timeline {}): {} and {} stay, {from}",
            history.timeline,
            count(history.snapshots.len(), "snapshot"),
            count(history.binlogs, "binlog"),
        );
    }
    plan.leases
        .iter()
        .for_each(|id| say!("recovery {id} is under way: what it needs stays"));
    plan.warnings.iter().for_each(|what| say!("at fault, and stays: {what}"));
    if let Some(why) = &plan.held_up {
        say!("nothing may go: {why}");
        return;
    }
    if plan.deletions.is_empty() {
        say!("there is nothing to delete");
        return;
    }
    say!("to be deleted, in this order:");
    for deletion in &plan.deletions {
        let kind = match deletion.kind {
            Kind::Request => "request",
            Kind::Snapshot => "snapshot",
            Kind::Volumes => "volumes",
            Kind::Binlog => "binlog",
            Kind::Segments => "segments",
            Kind::Orphan => "orphan",
            Kind::Lease => "lease",
        };
        let in_ec2 = deletion.ec2.as_ref().map_or(String::new(), |part| {
            format!("; in {} {}", part.region, part.snapshot_ids.join(", "))
        });
        say!(
            "  {kind:<9} {} ({}, {}{in_ec2}): {}",
            deletion.name,
            count(deletion.keys.len(), "object"),
            human_bytes(deletion.bytes),
            deletion.reason
        );
    }
    let objects = plan.deletions.iter().map(|d| d.keys.len()).sum();
    let in_ec2 = plan
        .deletions
        .iter()
        .filter_map(|d| d.ec2.as_ref())
        .map(|part| part.snapshot_ids.len())
        .sum();
    let in_ec2 = match in_ec2 {
        0 => String::new(),
        some => format!(", {}", count(some, "EC2 snapshot")),
    };
    say!("in all {}, {}{in_ec2}", count(objects, "object"), human_bytes(plan.bytes()));
}
