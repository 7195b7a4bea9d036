//! The demo: a server is shipped, a table is dropped, and a second server is recovered to the moment just before. `make demo`
//! builds and runs it.

mod answers;
mod client;
mod config;
mod load;
mod proof;
mod report;
mod schema;
mod screen;
mod sockets;
mod stage;
mod story;
mod truth;
mod workload;

use std::process::ExitCode;

use anyhow::anyhow;
use clap::Parser;
use mysql_pitr::support::hint::render;
use tokio::signal::unix::{SignalKind, signal};

use crate::{report::Report, screen::Screen, stage::Stage};

const REPORT: &str = "report.json";

/// Drops a table of a scratch MySQL server, recovers to just before, and proves that nothing is missing or too many.
/// Takes no options; the environment variable MYSQLD names the server program.
#[derive(Parser)]
#[command(name = "mysql-pitr-demo", version)]
struct Cli {}

fn main() -> ExitCode {
    Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let played = runtime.map_err(anyhow::Error::from).and_then(|r| r.block_on(play()));
    match played {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{}", render(&e));
            ExitCode::FAILURE
        }
    }
}

/// Whether all went well.
async fn play() -> anyhow::Result<bool> {
    let mut screen = Screen::new();
    let mut stage = Stage::prepare()?;
    let mut report = Report::default();
    screen.title(
        "mysql-pitr demo: a table is dropped by accident, and a new server gets everything up to that moment",
        &format!("All its files are in {}, made anew each time.", stage.shown("")),
    );
    let told = tokio::select! {
        told = story::tell(&mut stage, &mut screen, &mut report) => told,
        stopped = interrupted() => stopped,
    };
    let report_path = stage.path(REPORT);
    let ways_on = [
        ("the report", stage.shown(REPORT)),
        ("look around", stage.way_to_look_around()),
    ];
    let working = screen.working("stopping the agent and the servers", String::new);
    let stopped = stage.shut_down().await;
    drop(working);
    if let Err(e) = told.and(stopped) {
        screen.broke_off(&render(&e));
        report.fail(render(&e));
    }
    report.demo_ms = u64::try_from(screen.elapsed().as_millis())?;
    report.show(&screen);
    report.write(&report_path)?;
    screen.list(&ways_on);
    Ok(report.ok)
}

/// Ends, as an error, when the demo is asked to stop.
async fn interrupted() -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hang_up = signal(SignalKind::hangup())?;
    let name = tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
        _ = hang_up.recv() => "SIGHUP",
    };
    Err(anyhow!("the demo was stopped by {name}"))
}
