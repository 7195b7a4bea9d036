//! `[ebs]`: the volumes that hold the server's files, and where their snapshots go.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use serde::Deserialize;

use super::{Config, duration};
use crate::{
    mysql::freeze::{Limits, Lock},
    snapshot::volumes::Settings,
    volume::{
        cloud::Cloud,
        ebs::{EbsOptions, Named, open},
    },
};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct EbsSection {
    region: Option<String>,
    endpoint: Option<String>,
    /// `vol-0123`, or `/mount/point=vol-0123`.
    volumes: Vec<String>,
    #[serde(deserialize_with = "duration")]
    lock_wait: Duration,
    #[serde(deserialize_with = "duration")]
    lock_hold: Duration,
    #[serde(deserialize_with = "duration")]
    lock_patience: Duration,
    #[serde(deserialize_with = "duration")]
    create_timeout: Duration,
    dr_region: Option<String>,
    dr_kms_key: Option<String>,
    tags: BTreeMap<String, String>,
}

impl Default for EbsSection {
    fn default() -> Self {
        EbsSection {
            region: None,
            endpoint: None,
            volumes: Vec::new(),
            lock_wait: Duration::from_secs(3),
            lock_hold: Duration::from_secs(10),
            lock_patience: Duration::from_mins(10),
            create_timeout: Duration::from_secs(5),
            dr_region: None,
            dr_kms_key: None,
            tags: BTreeMap::new(),
        }
    }
}

/// MySQL counts in seconds.
const SECONDS_MIN: Duration = Duration::from_secs(1);
/// A server that is locked for longer is down.
const HOLD_MAX: Duration = Duration::from_mins(5);
/// Without those of mysql-pitr's own: EC2 takes 50.
const TAGS_MAX: usize = 40;

impl EbsSection {
    pub(super) fn validate(&self) -> anyhow::Result<()> {
        for (name, value) in [("lock_wait", self.lock_wait), ("create_timeout", self.create_timeout)] {
            if value < SECONDS_MIN {
                bail!("[ebs] {name} must be at least 1 s");
            }
        }
        if self.lock_hold <= self.create_timeout + SECONDS_MIN || self.lock_hold > HOLD_MAX {
            bail!("[ebs] lock_hold must be longer than create_timeout by more than a second, and at most 5 min");
        }
        if self.lock_wait > HOLD_MAX {
            bail!("[ebs] lock_wait must be at most 5 min: writers wait as long");
        }
        if self.dr_kms_key.is_some() && self.dr_region.is_none() {
            bail!("[ebs] dr_kms_key is for copies: it needs dr_region");
        }
        if self.dr_region.is_some() && self.dr_region == self.region {
            bail!("[ebs] dr_region must be another region than region");
        }
        let is_reserved = |key: &&String| ["aws:", "mysql-pitr:"].iter().any(|prefix| key.starts_with(prefix));
        if let Some(key) = self.tags.keys().find(is_reserved) {
            bail!("[ebs] tags may not have the key `{key}`: it is reserved");
        }
        if self.tags.len() > TAGS_MAX {
            bail!("[ebs] tags has more than {TAGS_MAX} entries");
        }
        self.named().map(drop)
    }

    fn named(&self) -> anyhow::Result<Vec<Named>> {
        let named = self.volumes.iter().map(|text| Named::parse(text).map_err(anyhow::Error::msg));
        named.collect::<Result<_, _>>().context("[ebs] volumes is wrong")
    }

    fn options(&self) -> EbsOptions {
        EbsOptions {
            region: self.region.clone(),
            endpoint: self.endpoint.clone(),
            dr_region: self.dr_region.clone(),
            dr_kms_key: self.dr_kms_key.clone(),
            tags: self.tags.clone(),
        }
    }

    /// Nothing is asked for yet.
    pub(super) fn settings(&self, lock: Lock) -> anyhow::Result<Settings> {
        let cloud = open(self.options())?;
        let limits = Limits {
            lock,
            wait: self.lock_wait,
            hold: self.lock_hold,
            patience: self.lock_patience,
        };
        Ok(Settings {
            named: self.named()?,
            dr_region: self.dr_region.clone(),
            ..Settings::new(cloud, limits, self.create_timeout)
        })
    }
}

impl Config {
    /// The EC2 of the region that the archive's bucket is for, where nothing else is said the bucket's own. Nothing is asked for yet.
    pub fn ec2(&self) -> anyhow::Result<Arc<dyn Cloud>> {
        let options = self.ebs.options();
        open(EbsOptions {
            region: options.region.clone().or_else(|| self.store.options().region),
            ..options
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let parse = |lines: &str| {
            let text = format!(
                "shard = \"s\"\n[store]\nurl = \"file:///a\"\n[snapshot]\nprovider = \"ebs\"\nlock = \"instance\"\n[ebs]\n{lines}\n"
            );
            Config::parse(&text).map_err(|e| format!("{e:#}"))
        };
        let good = "region = \"eu-west-1\"\ndr_region = \"eu-central-1\"\ndr_kms_key = \"alias/dr\"\n\
                    volumes = [\"/var/lib/mysql=vol-01\"]\ntags = { team = \"dba\" }";
        assert!(parse(good).is_ok() && parse("").is_ok());
        for (lines, why) in [
            ("lock_wait = \"100ms\"", "lock_wait must be at least 1 s"),
            ("lock_hold = \"5s\"", "lock_hold must be longer than create_timeout"),
            ("lock_hold = \"10min\"", "at most 5 min"),
            ("dr_kms_key = \"k\"", "it needs dr_region"),
            ("region = \"a\"\ndr_region = \"a\"", "must be another region"),
            ("volumes = [\"snap-1\"]", "`snap-1` is no volume"),
            ("tags = { \"aws:x\" = \"y\" }", "it is reserved"),
            ("colour = 1", "unknown field"),
        ] {
            let error = parse(lines).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
