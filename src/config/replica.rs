//! `[replica]`: the other region's bucket.

use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::{StoreSection, duration};

/// Who brings things from `[store]` to `[replica]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Replication {
    /// The stores do it by themselves.
    #[default]
    Watched,
    /// The agent of the server that is shipped.
    Agent,
}

/// What cannot be said in `[store]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Own {
    #[serde(default)]
    replication: Replication,
    #[serde(default, deserialize_with = "some_duration")]
    interval: Option<Duration>,
}

/// As `[store]`, and how it is kept up with that.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "toml::Table")]
pub struct ReplicaSection {
    pub store: StoreSection,
    pub replication: Replication,
    /// From one look at both buckets to the next.
    pub interval: Duration,
}

/// Each look is a handful of LIST requests.
const INTERVAL_WATCHED: Duration = Duration::from_secs(30);
/// How late a thing is that the agent could have copied at once.
const INTERVAL_AGENT: Duration = Duration::from_secs(5);
const INTERVAL_MIN: Duration = Duration::from_secs(1);

fn some_duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    duration(deserializer).map(Some)
}

/// Serde cannot refuse unknown keys of a section that is made of two.
impl TryFrom<toml::Table> for ReplicaSection {
    type Error = toml::de::Error;

    fn try_from(mut table: toml::Table) -> Result<ReplicaSection, toml::de::Error> {
        let own = ["replication", "interval"].into_iter();
        let own: toml::Table = own.filter_map(|key| table.remove_entry(key)).collect();
        let own: Own = own.try_into()?;
        let by_default = match own.replication {
            Replication::Watched => INTERVAL_WATCHED,
            Replication::Agent => INTERVAL_AGENT,
        };
        Ok(ReplicaSection {
            store: table.try_into()?,
            replication: own.replication,
            interval: own.interval.unwrap_or(by_default),
        })
    }
}

impl ReplicaSection {
    pub(super) fn validate(&self, home: &StoreSection) -> anyhow::Result<()> {
        self.store.validate().context("[replica] is written as [store] is")?;
        if self.interval < INTERVAL_MIN {
            bail!("[replica] interval must be at least 1 s");
        }
        // A bucket of the same name is another one elsewhere.
        if self.store.url == home.url && self.store.options().endpoint == home.options().endpoint {
            bail!("[replica] url is that of [store]: a replica is another bucket");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn parse(lines: &str) -> anyhow::Result<Config> {
        Config::parse(&format!("shard = \"s\"\n[store]\nurl = \"file:///a\"\n[replica]\n{lines}\n"))
    }

    #[test]
    fn it_is_a_store_and_watched_unless_somebody_has_to_copy() {
        let watched = parse("url = \"s3://b\"\nregion = \"eu-west-1\"").unwrap().replica.unwrap();
        assert_eq!(
            (watched.replication, watched.interval),
            (Replication::Watched, INTERVAL_WATCHED)
        );
        assert_eq!(watched.store.options().region.as_deref(), Some("eu-west-1"));
        let agent = parse("url = \"file:///b\"\nreplication = \"agent\"")
            .unwrap()
            .replica
            .unwrap();
        assert_eq!((agent.replication, agent.interval), (Replication::Agent, INTERVAL_AGENT));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (lines, why) in [
            ("url = \"file:///a\"", "is that of [store]"),
            ("url = \"file:///b\"\ninterval = \"10ms\"", "at least 1 s"),
            ("url = \"file:///b\"\nreplication = \"magic\"", "unknown variant `magic`"),
            ("url = \"file:///b\"\nurll = 1", "unknown field `urll`"),
            ("replication = \"agent\"", "missing field `url`"),
        ] {
            let error = format!("{:#}", parse(lines).unwrap_err());
            assert!(error.contains(why), "{lines}: {error}");
        }
    }
}
