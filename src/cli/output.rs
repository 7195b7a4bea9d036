//! Results on standard output: for people, or as JSON where a machine reads them.

use std::io::Write;

use serde::Serialize;

/// Prints `result` as one JSON document.
pub fn json<T: Serialize>(result: &T) -> anyhow::Result<()> {
    line(format_args!("{}", serde_json::to_string_pretty(result)?));
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
