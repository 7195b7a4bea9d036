//! Results on standard output: for people, or as JSON where a machine reads them.

use serde::Serialize;

/// Prints `result` as one JSON document.
pub fn json<T: Serialize>(result: &T) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(result)?);
    Ok(())
}
