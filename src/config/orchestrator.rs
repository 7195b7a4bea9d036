//! `[orchestrator]`: who knows this server's role.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use crate::{
    orchestrator::{Auth, InstanceKey, Options, Url},
    support::{hint::OrHint, secret::Secret},
};

/// Below this Orchestrator, which itself looks at its servers every few seconds, has nothing new to say.
const POLL_INTERVAL_MIN: Duration = Duration::from_secs(1);
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
/// Longer than this, and the role would be as good as unknown.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// The section as it is written; [`OrchestratorSection::validate`] has passed on every one that a `Config` holds.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OrchestratorSection {
    urls: Vec<String>,
    #[serde(default = "default_poll_interval", deserialize_with = "super::duration")]
    poll_interval: Duration,
    #[serde(default = "default_timeout", deserialize_with = "super::duration")]
    timeout: Duration,
    instance: Option<String>,
    #[serde(default)]
    auth: AuthMode,
    user: Option<String>,
    password_file: Option<PathBuf>,
    header: Option<String>,
    value_file: Option<PathBuf>,
    token_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum AuthMode {
    #[default]
    None,
    Basic,
    Header,
    Token,
}

impl AuthMode {
    fn name(self) -> &'static str {
        match self {
            AuthMode::None => "none",
            AuthMode::Basic => "basic",
            AuthMode::Header => "header",
            AuthMode::Token => "token",
        }
    }
}

fn default_poll_interval() -> Duration {
    Duration::from_secs(5 * 60)
}

fn default_timeout() -> Duration {
    Duration::from_secs(3)
}

impl OrchestratorSection {
    /// Finds every mistake that can be found without reading another file.
    pub(super) fn validate(&self) -> anyhow::Result<()> {
        self.urls()?;
        self.instance()?;
        ensure!(
            self.poll_interval >= POLL_INTERVAL_MIN,
            "[orchestrator] poll_interval must be at least 1 s"
        );
        ensure!(
            (TIMEOUT_MIN..=TIMEOUT_MAX).contains(&self.timeout),
            "[orchestrator] timeout must lie between 100 ms and 60 s"
        );
        let keys = [
            ("user", self.user.is_some(), AuthMode::Basic),
            ("password_file", self.password_file.is_some(), AuthMode::Basic),
            ("header", self.header.is_some(), AuthMode::Header),
            ("value_file", self.value_file.is_some(), AuthMode::Header),
            ("token_file", self.token_file.is_some(), AuthMode::Token),
        ];
        for (key, is_set, mode) in keys {
            let (wants, has) = (mode.name(), self.auth.name());
            ensure!(is_set || mode != self.auth, "[orchestrator] auth = \"{has}\" needs {key}");
            ensure!(
                !is_set || mode == self.auth,
                "[orchestrator] {key} is for auth = \"{wants}\", and auth is \"{has}\""
            );
        }
        Ok(())
    }

    /// With the secrets, read from their files.
    pub(super) fn options(&self) -> anyhow::Result<Options> {
        let secret = |key: &str, file: &Option<PathBuf>| {
            Secret::from_file(&file.clone().unwrap_or_default()).with_context(|| format!("[orchestrator] {key}"))
        };
        let auth = match self.auth {
            AuthMode::None => Auth::None,
            AuthMode::Basic => Auth::Basic {
                user: self.user.clone().unwrap_or_default(),
                password: secret("password_file", &self.password_file)?,
            },
            AuthMode::Header => Auth::Header {
                name: self.header.clone().unwrap_or_default(),
                value: secret("value_file", &self.value_file)?,
            },
            AuthMode::Token => Auth::Token(secret("token_file", &self.token_file)?),
        };
        Ok(Options {
            urls: self.urls()?,
            poll_interval: self.poll_interval,
            timeout: self.timeout,
            instance: self.instance()?,
            auth,
        })
    }

    fn urls(&self) -> anyhow::Result<Vec<Url>> {
        ensure!(!self.urls.is_empty(), "[orchestrator] urls must name at least one node");
        self.urls.iter().map(|text| parse_url(text)).collect()
    }

    fn instance(&self) -> anyhow::Result<Option<InstanceKey>> {
        let parse = |text: &String| {
            text.parse()
                .map_err(anyhow::Error::msg)
                .context("[orchestrator] instance is wrong")
        };
        self.instance.as_ref().map(parse).transpose()
    }
}

fn parse_url(text: &str) -> anyhow::Result<Url> {
    // What cannot be parsed is not repeated: it may hold a password.
    let url = Url::parse(text)
        .context("[orchestrator] urls: one is no URL")
        .hint("write it as http://host:3000 or https://host")?;
    if !url.username().is_empty() || url.password().is_some() {
        bail!("[orchestrator] urls: no user and no password belong into a URL, which is logged; use auth = \"basic\"");
    }
    ensure!(
        ["http", "https"].contains(&url.scheme()),
        "[orchestrator] urls: `{url}` is neither http nor https"
    );
    ensure!(
        url.query().is_none() && url.fragment().is_none(),
        "[orchestrator] urls: `{url}` must end with its path"
    );
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn parse(section: &str) -> anyhow::Result<Config> {
        Config::parse(&format!(
            "shard = \"s\"\n[store]\nurl = \"file:///a\"\n[orchestrator]\n{section}"
        ))
    }

    #[test]
    fn one_url_is_enough() {
        let config = parse("urls = [\"http://10.0.0.1:3000\"]").unwrap();
        let options = config.orchestrator().unwrap().unwrap();
        assert_eq!(options.poll_interval, Duration::from_secs(300));
        assert_eq!(options.timeout, Duration::from_secs(3));
        assert_eq!((options.instance, options.auth), (None, Auth::None));
        assert_eq!(options.urls[0].as_str(), "http://10.0.0.1:3000/");
    }

    #[test]
    fn no_section_is_no_orchestrator() {
        let config = Config::parse("shard = \"s\"\n[store]\nurl = \"file:///a\"\n").unwrap();
        assert!(config.orchestrator().unwrap().is_none());
    }

    #[test]
    fn secrets_come_from_files() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "hunter2\n").unwrap();
        let path = file.path().display();
        let auth = |keys: &str| {
            let config = parse(&format!("urls = [\"https://o/prefix/\"]\ninstance = \"db-1:3306\"\n{keys}")).unwrap();
            config.orchestrator().unwrap().unwrap().auth
        };
        let password = Secret::new("hunter2");
        assert_eq!(
            auth(&format!("auth = \"basic\"\nuser = \"u\"\npassword_file = \"{path}\"")),
            Auth::Basic {
                user: "u".into(),
                password: password.clone()
            }
        );
        assert_eq!(
            auth(&format!("auth = \"header\"\nheader = \"X-User\"\nvalue_file = \"{path}\"")),
            Auth::Header {
                name: "X-User".into(),
                value: password.clone()
            }
        );
        assert_eq!(
            auth(&format!("auth = \"token\"\ntoken_file = \"{path}\"")),
            Auth::Token(password)
        );
    }

    #[test]
    fn mistakes_are_named() {
        let url = "urls = [\"http://o:3000\"]\n";
        for (section, expected) in [
            ("urls = []".to_owned(), "at least one node"),
            ("urls = [\"o:3000\"]".to_owned(), "neither http nor https"),
            ("urls = [\"3000\"]".to_owned(), "one is no URL"),
            ("urls = [\"ftp://o\"]".to_owned(), "neither http nor https"),
            ("urls = [\"http://o/?a=1\"]".to_owned(), "must end with its path"),
            ("urls = [\"http://me:hunter2@o\"]".to_owned(), "use auth = \"basic\""),
            (format!("{url}poll_interval = \"10ms\""), "at least 1 s"),
            (format!("{url}timeout = \"1h\""), "between 100 ms and 60 s"),
            (format!("{url}instance = \"db-1\""), "write it as host:port"),
            (format!("{url}auth = \"oauth\""), "unknown variant `oauth`"),
            (
                format!("{url}auth = \"basic\"\nuser = \"u\""),
                "auth = \"basic\" needs password_file",
            ),
            (format!("{url}auth = \"token\""), "auth = \"token\" needs token_file"),
            (
                format!("{url}user = \"u\""),
                "user is for auth = \"basic\", and auth is \"none\"",
            ),
            (format!("{url}pol_interval = \"1s\""), "unknown field `pol_interval`"),
        ] {
            let error = format!("{:#}", parse(&section).unwrap_err());
            assert!(error.contains(expected), "{section}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
