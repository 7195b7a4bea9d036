//! `make bench`: what shipping and recovering cost and how fast they are, measured against real MySQL servers, in turn with what
//! people use today.
//!
//! Each bench is a function that gives lines of the report; a new one is a line in [`BENCHES`] and an arm in `Suite::run`.

mod backlog;
mod fill;
mod load;
mod machine;
mod origin;
mod peer;
mod plan_10k;
mod recover_total;
mod replay;
mod report;
mod s3;
mod ship_backlog;
mod ship_lag;
mod ship_overhead;
mod ship_rss;

// What the tests and the demo start servers, agents and clients with.
#[path = "../demo/client.rs"]
mod client;
#[path = "../tests/support/mod.rs"]
mod support;

use std::{env, path::Path, process::ExitCode, time::Duration};

use backlog::Backlog;
use origin::Origin;
use report::Row;

/// All of them, in the order in which they run.
const BENCHES: [&str; 12] = [
    "ship_lag_p99",
    "ship_overhead",
    "ship_backlog",
    "ship_rss_backlog",
    "ship_rss_transaction",
    "ship_rss_compressed",
    "ship_rss_event",
    "replay_vs_mysqlbinlog",
    "replay_vs_native",
    "replay_large",
    "recover_total",
    "plan_10k",
];
const REPORT: &str = "target/bench/report.json";
/// Makes everything smaller, to try something out: 0.1 is a tenth of the bytes and of the time.
const SCALE_VARIABLE: &str = "BENCH_SCALE";
/// For a single thing that the server or the agent does, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// How large everything is, 1 being what the published figures were measured with.
#[derive(Debug, Clone, Copy)]
pub struct Scale(f64);

impl Scale {
    fn from_environment() -> Scale {
        let text = env::var(SCALE_VARIABLE).unwrap_or_else(|_| "1".into());
        let scale = text.parse().ok().filter(|s| *s > 0.0);
        Scale(scale.unwrap_or_else(|| panic!("{SCALE_VARIABLE} is `{text}`, which is no positive number")))
    }

    pub fn count(self, count: u64) -> u64 {
        (count as f64 * self.0) as u64
    }

    pub fn bytes(self, bytes: u64) -> u64 {
        self.count(bytes)
    }

    pub fn duration(self, duration: Duration) -> Duration {
        duration.mul_f64(self.0)
    }
}

/// What several benches share.
struct Suite {
    scale: Scale,
    backlog: Option<Backlog>,
    small: Option<Origin>,
}

impl Suite {
    async fn backlog(&mut self) -> &Backlog {
        if self.backlog.is_none() {
            self.backlog = Some(Backlog::prepare(self.scale).await);
        }
        self.backlog.as_ref().expect("it was just prepared")
    }

    /// Small transactions behind a snapshot.
    async fn small(&mut self) -> &mut Origin {
        if self.small.is_none() {
            self.small = Some(replay::small(self.scale).await);
        }
        self.small.as_mut().expect("it was just made")
    }

    async fn run(&mut self, name: &str) -> Vec<Row> {
        match name {
            "ship_lag_p99" => ship_lag::run(self.scale).await,
            "ship_overhead" => ship_overhead::run(self.scale).await,
            "ship_backlog" => ship_backlog::run(self.backlog().await).await,
            "ship_rss_backlog" => vec![ship_rss::backlog(self.backlog().await).await],
            "replay_vs_mysqlbinlog" => replay::against_pipe(self.small().await).await,
            "replay_vs_native" => vec![replay::against_replica(self.small().await).await],
            "replay_large" => {
                self.small = None;
                replay::large(self.scale).await
            }
            "recover_total" => vec![recover_total::run(self.scale).await],
            "plan_10k" => plan_10k::run(self.scale).await,
            other => vec![ship_rss::case(other, self.scale).await],
        }
    }
}

fn main() -> ExitCode {
    // cargo says `--bench` to every bench.
    let wanted: Vec<String> = env::args().skip(1).filter(|a| a != "--bench").collect();
    if let Some(unknown) = wanted.iter().find(|w| !BENCHES.iter().any(|b| b.starts_with(w.as_str()))) {
        eprintln!("there is no bench `{unknown}`; there are: {}", BENCHES.join(", "));
        return ExitCode::FAILURE;
    }
    let is_wanted = |name: &&&str| wanted.is_empty() || wanted.iter().any(|w| name.starts_with(w.as_str()));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("a runtime").block_on(run(BENCHES.iter().filter(is_wanted)));
    ExitCode::SUCCESS
}

async fn run(names: impl Iterator<Item = &&'static str>) {
    let machine = machine::describe().await;
    println!("the machine: {machine}");
    let mut suite = Suite {
        scale: Scale::from_environment(),
        backlog: None,
        small: None,
    };
    let mut rows = Vec::new();
    for name in names {
        println!("{name} ...");
        rows.extend(suite.run(name).await);
        // After each: what was measured is not lost where a later one fails.
        report::write(Path::new(REPORT), &mut rows, &machine);
    }
    report::print(&rows);
    println!("\nthe report is in {REPORT}");
}
