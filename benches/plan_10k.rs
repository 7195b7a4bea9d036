//! A plan over an archive of thousands of binlogs: time and memory of `recover --dry-run`.

use std::{fs, process::Stdio};

use mysql_pitr::binlog::gtid::Gtid;
use serde_json::json;
use tokio::process::Command;

use crate::{
    Scale,
    machine::{self, MIB},
    report::{Better, Row, Sample},
    support::{
        made::{Made, gtid, gtids},
        node::{SHARD, path_text},
    },
};

const REPETITIONS: usize = 3;
const MANIFESTS: u64 = 10_000;
const TRANSACTIONS_PER_BINLOG: u64 = 3;
const SERVER: u128 = 1;
const AIM_S: f64 = 3.0;
const AIM_MIB: f64 = 64.0;

pub async fn run(scale: Scale) -> Vec<Row> {
    let manifests = scale.count(MANIFESTS);
    let made = archive(manifests);
    let config = made.dir.path().join("mysql-pitr.toml");
    let text = format!(
        "shard = \"{SHARD}\"\n[store]\nurl = \"file://{}\"\n[mysql]\nsocket = \"/nowhere\"\nuser = \"nobody\"\n",
        made.dir.path().display()
    );
    fs::write(&config, text).expect("a configuration");
    let (mut times_s, mut peak_bytes) = (Vec::new(), 0);
    for _ in 0..REPETITIONS {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mysql-pitr"));
        command
            .args(["--config", path_text(&config), "recover", "--latest", "--dry-run"])
            .env("MYSQL_PITR_MYSQL_PASSWORD", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let (took, used) = machine::run(&mut command).await;
        times_s.push(took.as_secs_f64());
        peak_bytes = peak_bytes.max(used.peak_bytes);
    }
    let (time, peak_mib) = (Sample::of(times_s), peak_bytes as f64 / MIB);
    let details = json!({"manifests": manifests, "s": time, "store": "a folder"});
    vec![
        Row::against("plan_10k", (time.median, "s"), ("aim", AIM_S), Better::Lower)
            .aim(format!("at most {AIM_S} s"), time.median <= AIM_S)
            .details(details.clone()),
        Row::against("plan_10k_rss", (peak_mib, "MiB"), ("aim", AIM_MIB), Better::Lower)
            .aim(format!("at most {AIM_MIB} MiB"), peak_mib <= AIM_MIB)
            .details(details),
    ]
}

/// A snapshot, and binlogs of one server, one after the other.
fn archive(manifests: u64) -> Made {
    let (made, nothing) = (Made::new(), || gtids(SERVER, 1, 0));
    made.timeline(1, None, SERVER, nothing(), nothing());
    made.snapshot("a", 1, SERVER, gtids(SERVER, 1, TRANSACTIONS_PER_BINLOG), 0);
    for number in 0..manifests {
        let first = number * TRANSACTIONS_PER_BINLOG + 1;
        let holds: Vec<(Gtid, i64)> = (first..first + TRANSACTIONS_PER_BINLOG)
            .map(|gno| (gtid(SERVER, gno), gno as i64))
            .collect();
        made.sealed(1, SERVER, number as u32 + 1, gtids(SERVER, 1, first - 1), &holds);
    }
    made
}
