//! What an operator can do about an error, carried along with it and printed once, at the edge.

use std::fmt;

/// Begins a hint's text. An error chain shows its inner layers as texts only, and no message begins with this character.
const MARK: char = '\u{1f}';

/// A layer in an error chain that says what to do, not what happened.
#[derive(Debug)]
struct Hint(String);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MARK}{}", self.0)
    }
}

/// Attaches what can be done to the error of a `Result`.
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
    match hint_of(error) {
        Some(hint) => format!("error: {}\n hint: {hint}", message(error)),
        None => format!("error: {}", message(error)),
    }
}

/// What happened, without what to do about it. A layer that repeats its cause, as many crates' errors do, says it once.
pub fn message(error: &anyhow::Error) -> String {
    let mut layers: Vec<String> = Vec::new();
    for text in error.chain().map(ToString::to_string).filter(|text| !text.starts_with(MARK)) {
        if !layers.last().is_some_and(|outer| outer.contains(&text)) {
            layers.push(text);
        }
    }
    layers.join(": ")
}

/// The outermost hint.
pub fn hint_of(error: &anyhow::Error) -> Option<String> {
    error
        .chain()
        .map(ToString::to_string)
        .find_map(|text| text.strip_prefix(MARK).map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn of_two_hints_the_outer_one_counts_and_neither_is_part_of_the_message() {
        let e: anyhow::Result<()> = Err(anyhow!("access denied"))
            .hint("grant it")
            .context("cannot clone")
            .hint("run check");
        assert_eq!(
            render(&e.unwrap_err()),
            "error: cannot clone: access denied\n hint: run check"
        );
    }

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
