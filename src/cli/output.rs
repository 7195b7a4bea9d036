//! Results on standard output: for people, or as JSON where a machine reads them.

use std::io::{BufWriter, Write};

use serde::Serialize;

/// Prints `result` as one JSON document; ends the process quietly where nobody reads any more.
pub fn json<T: Serialize>(result: &T) -> anyhow::Result<()> {
    // Not made as one text first: a plan may have thousands of binlogs.
    let mut out = BufWriter::new(std::io::stdout().lock());
    match serde_json::to_writer_pretty(&mut out, result) {
        Err(e) if e.is_io() => std::process::exit(0),
        written => written?,
    }
    if writeln!(out).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
    Ok(())
}

/// Prints one line; ends the process quietly where nobody reads any more, as `| head` does.
pub fn line(text: std::fmt::Arguments<'_>) {
    if writeln!(std::io::stdout(), "{text}").is_err() {
        std::process::exit(0);
    }
}

/// `1 transaction`, `2 transactions`.
pub fn count(number: usize, what: &str) -> String {
    if number == 1 {
        format!("1 {what}")
    } else {
        format!("{number} {what}s")
    }
}

/// As `println!`, through [`line()`].
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::output::line(format_args!($($text)*)) };
}
pub(super) use say;
