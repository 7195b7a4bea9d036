//! `mysql-pitr search`

use crate::{
    agent,
    config::Config,
    inspect::search::{Outcome, Question, search},
    support::{clock::parse_rfc3339, progress::Progress},
};

use super::output::{self, count, say};

/// Find transactions in the archive by what they say, what they touch, or when they were committed
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A part of a statement's text, in any case: DDL, and the statements behind rows where the server logs them.
    #[arg(long, value_name = "TEXT")]
    statement: Option<String>,
    /// A table that rows were changed in.
    #[arg(long, value_name = "SCHEMA.TABLE")]
    table: Option<String>,
    /// Committed at this moment or later (RFC 3339).
    #[arg(long, value_name = "TIME", value_parser = parse_rfc3339)]
    since: Option<i64>,
    /// Committed at this moment or earlier (RFC 3339).
    #[arg(long, value_name = "TIME", value_parser = parse_rfc3339)]
    until: Option<i64>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  mysql-pitr search --statement 'drop table'
  mysql-pitr search --table shop.orders --since 2026-11-21T10:00:00Z --json";

pub async fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let archive = agent::archive(config).await?;
    let question = Question {
        statement: args.statement.clone(),
        table: args.table.clone(),
        since_us: args.since,
        until_us: args.until,
    };
    let progress = Progress::new(args.json);
    let Outcome { found, warnings } = search(&archive, &question, &progress).await?;
    drop(progress);
    for what in &warnings {
        eprintln!("warning: {what}");
    }
    if args.json {
        return output::json(&found);
    }
    for f in &found {
        say!("{}  {}  {} at {}", f.committed_at, f.gtid, f.binlog, f.position);
        f.statements.iter().for_each(|s| say!("    {s}"));
        if !f.tables.is_empty() {
            say!("    rows of {}", f.tables.join(", "));
        }
    }
    say!("{} found", count(found.len(), "transaction"));
    Ok(())
}
