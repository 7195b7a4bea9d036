//! What the kernel says of processes and of the disk.

use std::{fs, io::Write, os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

use serde_json::{Value, json};
use tokio::{
    process::{Child, Command},
    time::{Instant, timeout},
};

use crate::{
    report::percentile,
    support::{mysql::mysqld, node::peak_memory_bytes},
};

pub const MB: f64 = 1e6;
pub const MIB: f64 = (1u64 << 20) as f64;
/// The unit of times in /proc, on every Linux that this runs on.
const TICKS_PER_S: f64 = 100.0;
/// Short: what a process used in between, and ended, is not known.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    pub cpu_s: f64,
    /// Of the processes that it started and that have ended.
    pub children_cpu_s: f64,
    pub peak_bytes: u64,
}

/// None once the process has ended.
pub fn usage(pid: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; utime, stime, cutime and cstime are the 12th to 15th field after it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some(Usage {
        cpu_s: (ticks(11)? + ticks(12)?) / TICKS_PER_S,
        children_cpu_s: (ticks(13)? + ticks(14)?) / TICKS_PER_S,
        peak_bytes: peak_memory_bytes(pid)?,
    })
}

/// Runs a program to its end, which must be a good one. Returns how long it took, and what it used up to shortly before.
pub async fn run(command: &mut Command) -> (Duration, Usage) {
    let began = Instant::now();
    let mut child = command.kill_on_drop(true).spawn().expect("the program starts");
    let (status, used) = watch(&mut child).await;
    let took = began.elapsed();
    assert!(
        status.success(),
        "{command:?} ended with {status}, signal {:?}",
        status.signal()
    );
    (took, used)
}

async fn watch(child: &mut Child) -> (ExitStatus, Usage) {
    let mut used = Usage::default();
    loop {
        used = child.id().and_then(usage).unwrap_or(used);
        if let Ok(status) = timeout(LOOK_INTERVAL, child.wait()).await {
            return (status.expect("a child can be waited for"), used);
        }
    }
}

/// What is dirty would be written during whatever is measured next.
pub fn settle_disk() {
    nix::unistd::sync();
}

/// The machine, as far as the figures depend on it.
pub async fn describe() -> Value {
    let version = Command::new(mysqld()).arg("--no-defaults").arg("--version").output().await;
    let version = String::from_utf8_lossy(&version.expect("mysqld says its version").stdout).into_owned();
    let version = version.split_once("Ver ").map_or("", |(_, v)| v).trim().to_owned();
    let (p50, p99) = fsync_us();
    json!({
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "memory_gib": memory_gib(),
        "fsync_p50_us": p50,
        "fsync_p99_us": p99,
        "load_average": load_average(),
        "mysqld": version,
    })
}

fn memory_gib() -> f64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let gib = kib.and_then(|k| k.parse::<f64>().ok()).unwrap_or_default() / MIB;
    (gib * 10.0).round() / 10.0
}

/// Over the last minute: others at work disturb what is measured.
fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg")
        .ok()?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// How long an fdatasync of a small write takes where the servers have their data: median and 99th percentile, µs.
fn fsync_us() -> (f64, f64) {
    const WRITES: usize = 300;
    const BYTES: usize = 4096;
    let mut file = tempfile::tempfile().expect("a temporary file");
    let mut times: Vec<f64> = (0..WRITES)
        .map(|_| {
            file.write_all(&[1; BYTES]).expect("a small write");
            let began = Instant::now();
            file.sync_data().expect("fdatasync");
            began.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (percentile(&times, 50.0).round(), percentile(&times, 99.0).round())
}
