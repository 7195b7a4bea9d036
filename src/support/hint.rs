//! What an operator can do about an error, carried along with it and printed once, at the edge.

use std::fmt;

/// A layer in an error chain that says what to do, not what happened.
#[derive(Debug)]
pub struct Hint(String);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Attaches a [`Hint`] to the error of a `Result`.
pub trait OrHint<T> {
    /// `hint` is a whole sentence in the imperative, without a full stop.
    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> OrHint<T> for Result<T, E> {
    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|e| with_hint(e, hint))
    }
}

/// The error `e` with a hint.
pub fn with_hint(e: impl Into<anyhow::Error>, hint: impl Into<String>) -> anyhow::Error {
    e.into().context(Hint(hint.into()))
}

/// The error chain in one line, outermost first, then the outermost hint on a line of its own.
pub fn render(error: &anyhow::Error) -> String {
    let hint = error.downcast_ref::<Hint>().map(Hint::to_string);
    let mut layers: Vec<String> = Vec::new();
    for layer in error.chain() {
        let text = layer.to_string();
        let said_already = layers.last().is_some_and(|l| l.ends_with(&text));
        if Some(&text) != hint.as_ref() && !said_already {
            layers.push(text);
        }
    }
    let mut out = format!("error: {}", layers.join(": "));
    if let Some(hint) = hint {
        out.push_str("\n hint: ");
        out.push_str(&hint);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn renders_chain_then_hint() {
        let e: anyhow::Result<()> = Err(anyhow!("connection refused")).context("cannot reach mysqld at /s");
        let e = e.hint("start mysqld").context("preflight").unwrap_err();
        assert_eq!(
            render(&e),
            "error: preflight: cannot reach mysqld at /s: connection refused\n hint: start mysqld"
        );
    }
}
