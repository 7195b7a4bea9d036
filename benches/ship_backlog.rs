//! How fast a backlog is shipped, beside how fast mysqlbinlog copies the same binlogs.

use serde_json::{Value, json};

use crate::{
    backlog::{Backlog, Run},
    fill,
    machine::MB,
    peer,
    report::{Better, Row, Sample},
};

const REPETITIONS: usize = 3;
const DEFAULT_CODEC: &str = "zstd";
const CODECS: [&str; 3] = [DEFAULT_CODEC, "none", "gzip"];
const AIM_TIMES: f64 = 2.0;

pub async fn run(backlog: &Backlog) -> Vec<Row> {
    let mut shipped: [Vec<Run>; CODECS.len()] = Default::default();
    let mut copied = Vec::new();
    for _ in 0..REPETITIONS {
        for (codec, runs) in CODECS.iter().zip(&mut shipped) {
            runs.push(backlog.ship(codec).await);
        }
        copied.push(backlog.copy_by_peer().await);
    }
    let rate = |runs: &[Run]| {
        Sample::of(
            runs.iter()
                .map(|r| backlog.bytes() as f64 / MB / r.took.as_secs_f64())
                .collect(),
        )
    };
    let details = |runs: &[Run]| -> Value {
        let cpu: Vec<f64> = runs.iter().map(|r| r.used.cpu_s / (backlog.bytes() as f64 / 1e9)).collect();
        json!({
            "mb_per_s": rate(runs),
            "cpu_s_per_gb": Sample::of(cpu),
            "peak_rss_mib": runs.iter().map(|r| r.used.peak_bytes >> 20).max(),
            "stored_bytes": runs.last().map(|r| r.stored_bytes),
        })
    };
    let (value, peer_value) = (rate(&shipped[0]).median, rate(&copied).median);
    let mut all = json!({
        "bytes": backlog.bytes(), "binlogs": backlog.files(), "rows": fill::DESCRIPTION, "codec": DEFAULT_CODEC,
        "peer": details(&copied),
    });
    for (codec, runs) in CODECS.iter().zip(&shipped) {
        all[*codec] = details(runs);
    }
    let row = Row::against("ship_backlog", (value, "MB/s"), (peer::COPY, peer_value), Better::Higher);
    let aim_met = row.ratio >= AIM_TIMES;
    vec![row.aim(format!("{AIM_TIMES} x the peer"), aim_met).details(all)]
}
