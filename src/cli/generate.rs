//! `mysql-pitr completions` and `mysql-pitr man`

use std::{io::Write, path::PathBuf};

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;

/// Print completions for a shell
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    shell: Shell,
}

/// Write the man pages into a folder
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    folder: PathBuf,
}

pub fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "mysql-pitr", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}

pub fn man(args: &ManArgs) -> anyhow::Result<()> {
    clap_mangen::generate_to(Cli::command(), &args.folder)
        .with_context(|| format!("cannot write man pages into {}", args.folder.display()))
}
