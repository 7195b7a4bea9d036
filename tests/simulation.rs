//! The shipper in a world where everything that can fail does, by seed, in virtual time: a server that exists only as its binlogs, a store
//! and a network that fail, an agent that is killed at any await. In the end the archive's path is the server's history, byte for byte.
//!
//! `MYSQL_PITR_SEEDS=100000` tries more; `MYSQL_PITR_SEED=7` replays one and tells everything that happened.

use std::{
    env,
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use tracing_subscriber::fmt::{MakeWriter, format::Writer, time::FormatTime};

mod support;

#[path = "simulation/connection.rs"]
mod connection;
#[path = "simulation/failover.rs"]
mod failover;
#[path = "simulation/oracle.rs"]
mod oracle;
#[path = "simulation/server.rs"]
mod server;
#[path = "simulation/world.rs"]
mod world;

const SEEDS: u64 = 1000;
/// Which events are told is known to `tracing` for the whole process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());
/// Told of a failing seed.
const STORY_LINES: usize = 200;

/// What a run says, in memory.
#[derive(Debug, Clone, Default)]
struct Story(Arc<Mutex<Vec<u8>>>);

impl Write for Story {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Story {
    type Writer = Story;

    fn make_writer(&'a self) -> Story {
        self.clone()
    }
}

/// Tells virtual time.
struct Virtual(tokio::time::Instant);

impl FormatTime for Virtual {
    fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
        write!(w, "{:9.3}", self.0.elapsed().as_secs_f64())
    }
}

/// The two kinds of worlds.
#[derive(Debug, Clone, Copy)]
enum Kind {
    OneServer,
    Failovers,
}

/// What was wrong with `seed`, if something was.
fn run(kind: Kind, seed: u64, story: Option<&Story>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let ended = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let _told = story.map(|story| {
                let subscriber = tracing_subscriber::fmt()
                    .with_ansi(false)
                    .with_max_level(tracing::Level::DEBUG)
                    .with_timer(Virtual(tokio::time::Instant::now()))
                    .with_writer(story.clone())
                    .finish();
                tracing::subscriber::set_default(subscriber)
            });
            match kind {
                Kind::OneServer => world::run(seed).await,
                Kind::Failovers => failover::run(seed).await,
            }
        })
    }));
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => Err(format!("{e:#}")),
        Err(panic) => Err(panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_default()),
    }
}

/// As [`run`], with everything that happened.
fn tell(kind: Kind, seed: u64) -> (Result<(), String>, String) {
    let story = Story::default();
    let ended = run(kind, seed, Some(&story));
    let text = String::from_utf8(story.0.lock().unwrap().clone()).unwrap();
    (ended, text)
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable)
        .ok()
        .map(|v| v.parse().unwrap_or_else(|_| panic!("{variable}={v} is no number")))
}

#[test]
fn whatever_happens_the_archive_is_the_servers_history() {
    try_all(Kind::OneServer);
}

#[test]
fn whoever_is_promoted_the_path_is_the_last_ones_history() {
    try_all(Kind::Failovers);
}

fn try_all(kind: Kind) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(seed) = number("MYSQL_PITR_SEED") {
        let (ended, story) = tell(kind, seed);
        println!("{story}");
        assert_eq!(ended, Ok(()), "seed {seed}");
        return;
    }
    let seeds = number("MYSQL_PITR_SEEDS").unwrap_or(SEEDS);
    let (next, failures) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    if let Err(fault) = run(kind, seed, None) {
                        failures.lock().unwrap().push((seed, fault));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    if let Some((seed, fault)) = failures.first() {
        let (_, story) = tell(kind, *seed);
        let lines: Vec<&str> = story.lines().collect();
        println!("{}", lines[lines.len().saturating_sub(STORY_LINES)..].join("\n"));
        let all: Vec<String> = failures.iter().map(|(seed, fault)| format!("seed {seed}: {fault}")).collect();
        panic!(
            "{} of {seeds} seeds failed; MYSQL_PITR_SEED={seed} replays the first ({fault}):\n{}",
            failures.len(),
            all.join("\n")
        );
    }
}

/// A seed that cannot be replayed would be worth little.
#[test]
fn a_seed_is_the_same_story_every_time() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for (kind, seed) in [Kind::OneServer, Kind::Failovers]
        .into_iter()
        .flat_map(|kind| (0..5).map(move |seed| (kind, seed)))
    {
        let ((_, once), (_, again)) = (tell(kind, seed), tell(kind, seed));
        let differs = once.lines().zip(again.lines()).find(|(a, b)| a != b);
        assert_eq!(differs, None, "{kind:?}, seed {seed}");
        assert_eq!(once.lines().count(), again.lines().count(), "{kind:?}, seed {seed}");
    }
}
