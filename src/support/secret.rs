//! Passwords: read from a file or the environment, never printed.

use std::{fmt, path::Path};

use anyhow::Context;

use super::hint::OrHint;

/// A secret text whose `Debug` says nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// A fresh random secret: 32 hexadecimal digits (122 random bits), all that SOURCE_PASSWORD takes.
    pub fn random() -> Self {
        Secret(uuid::Uuid::new_v4().simple().to_string())
    }

    /// The first line of a file, without its line end.
    pub fn from_file(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the password file {}", path.display()))
            .hint("create it with mode 0600, owned by the user that runs mysql-pitr")?;
        Ok(Secret(text.lines().next().unwrap_or_default().to_owned()))
    }

    /// The text itself; the caller passes it on to a protocol, and nowhere else.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_the_text() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret(…)");
    }
}
