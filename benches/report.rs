//! What was measured: a list for programs, and a table for people.

use std::{fs, path::Path};

use serde::Serialize;
use serde_json::{Value, json};

/// How a number is better.
#[derive(Debug, Clone, Copy)]
pub enum Better {
    Higher,
    Lower,
}

/// One line of the report.
#[derive(Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    /// What `peer_value` was measured on in the same run; `aim` where no program does the same.
    pub peer: &'static str,
    pub peer_value: f64,
    /// How many times better than the peer.
    pub ratio: f64,
    /// What was wanted, in words.
    pub aim: String,
    pub aim_met: bool,
    pub details: Value,
}

impl Row {
    /// A line against a peer. The aim is judged by `aim_met`.
    pub fn against(
        name: &str,
        (value, unit): (f64, &'static str),
        (peer, peer_value): (&'static str, f64),
        better: Better,
    ) -> Row {
        let ratio = match better {
            Better::Higher => value / peer_value,
            Better::Lower => peer_value / value,
        };
        Row {
            name: name.into(),
            value,
            unit,
            peer,
            peer_value,
            ratio,
            aim: String::new(),
            aim_met: true,
            details: json!({}),
        }
    }

    pub fn aim(self, aim: impl Into<String>, aim_met: bool) -> Row {
        Row {
            aim: aim.into(),
            aim_met,
            ..self
        }
    }

    pub fn details(self, details: Value) -> Row {
        Row { details, ..self }
    }
}

/// Several repetitions of one measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub runs: Vec<f64>,
}

impl Sample {
    pub fn of(runs: Vec<f64>) -> Sample {
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        Sample {
            median: percentile(&sorted, 50.0),
            min: percentile(&sorted, 0.0),
            max: percentile(&sorted, 100.0),
            runs,
        }
    }
}

/// Of what is sorted already: the value that `percent` of them do not exceed. 0 where there are none.
pub fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// Writes the list. Each line carries the machine in its details, so that it can be read alone.
pub fn write(path: &Path, rows: &mut [Row], machine: &Value) {
    for row in rows.iter_mut() {
        row.details["machine"] = machine.clone();
    }
    fs::create_dir_all(path.parent().expect("a file in a folder")).expect("the report's folder can be made");
    let text = serde_json::to_string_pretty(rows).expect("rows are JSON");
    fs::write(path, text).expect("the report can be written");
}

pub fn print(rows: &[Row]) {
    println!(
        "\n{:<26} {:>10} {:<8} {:>10} {:<30} {:>7}  {:<6} aim",
        "name", "value", "unit", "peer", "", "ratio", ""
    );
    for row in rows {
        println!(
            "{:<26} {:>10.1} {:<8} {:>10.1} {:<30} {:>6.2}x  {:<6} {}",
            row.name,
            row.value,
            row.unit,
            row.peer_value,
            row.peer,
            row.ratio,
            if row.aim_met { "met" } else { "MISSED" },
            row.aim
        );
    }
}
