//! Servers that tests start and stop.
// Every test file compiles this for itself and uses a part of it.
#![allow(dead_code)]

pub mod moto;
pub mod mysql;
pub mod node;
pub mod story;
pub mod truth;

/// A skipped test is visible: the test harness holds back what `eprintln!` says.
pub fn skipped(reason: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {reason}");
}
