//! Parses, dispatches, and prints an error chain once.

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser;
use mysql_pitr::{cli::Cli, support::hint::render};
use tracing_subscriber::EnvFilter;

/// glibc raises this by itself to the size of what was freed, and then keeps the holes that parts of uploads leave: a third of
/// the agent's memory in a backlog.
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD_BYTES: libc::c_int = 1 << 20;

fn main() -> ExitCode {
    #[cfg(target_env = "gnu")]
    // SAFETY: no other thread is there yet. A refusal changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES);
    }
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_env("MYSQL_PITR_LOG").unwrap_or_else(|_| EnvFilter::new("info,aws=warn,rustls=warn,hyper=warn")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("error: cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(cli.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}", render(&e));
            ExitCode::FAILURE
        }
    }
}
