//! `[store]`.

use std::time::Duration;

use anyhow::bail;
use serde::Deserialize;

use crate::{
    archive::keys,
    store::{
        Checksums, StoreOptions,
        options::{Encryption, Keeping, LockMode, ObjectLock, StorageClass},
    },
};

/// `[store]`: where the archive lies, and how its objects are kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreSection {
    /// `file:///path` or `s3://bucket[/prefix]`.
    pub url: String,
    region: Option<String>,
    endpoint: Option<String>,
    #[serde(default)]
    path_style: bool,
    #[serde(default)]
    checksums: Checksums,
    expected_bucket_owner: Option<String>,
    #[serde(default)]
    sse: Sse,
    kms_key_id: Option<String>,
    bucket_key: Option<bool>,
    #[serde(default)]
    storage_class: StorageClass,
    object_lock: Option<LockMode>,
    object_lock_days: Option<u32>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
enum Sse {
    /// Nothing is asked for: the bucket's own default holds.
    #[default]
    #[serde(rename = "none")]
    Bucket,
    #[serde(rename = "AES256")]
    Aes256,
    #[serde(rename = "aws:kms")]
    Kms,
}

const OWNER_DIGITS: usize = 12;
const DAY: Duration = Duration::from_hours(24);
/// S3's own limit.
const LOCK_DAYS_MAX: u32 = 36_500;

impl StoreSection {
    pub(super) fn validate(&self) -> anyhow::Result<()> {
        if let Some(owner) = &self.expected_bucket_owner
            && (owner.len() != OWNER_DIGITS || !owner.bytes().all(|b| b.is_ascii_digit()))
        {
            bail!("[store] expected_bucket_owner is the number of an AWS account: {OWNER_DIGITS} digits, in quotes");
        }
        if self.sse != Sse::Kms && (self.kms_key_id.is_some() || self.bucket_key.is_some()) {
            bail!("[store] kms_key_id and bucket_key need sse = \"aws:kms\"");
        }
        match (self.object_lock, self.object_lock_days) {
            (None, None) | (Some(_), Some(1..=LOCK_DAYS_MAX)) => Ok(()),
            (Some(_), Some(_)) => bail!("[store] object_lock_days must lie between 1 and {LOCK_DAYS_MAX}"),
            _ => bail!("[store] object_lock and object_lock_days go together"),
        }
    }

    pub fn options(&self) -> StoreOptions {
        StoreOptions {
            region: self.region.clone(),
            endpoint: self.endpoint.clone(),
            path_style: self.path_style,
            checksums: self.checksums,
            expected_bucket_owner: self.expected_bucket_owner.clone(),
            keeping: Keeping {
                encryption: match self.sse {
                    Sse::Bucket => Encryption::Bucket,
                    Sse::Aes256 => Encryption::Aes256,
                    Sse::Kms => Encryption::Kms {
                        key_id: self.kms_key_id.clone(),
                        bucket_key: self.bucket_key.unwrap_or(true),
                    },
                },
                storage_class: self.storage_class,
                lock: self.object_lock.zip(self.object_lock_days).map(|(mode, days)| ObjectLock {
                    mode,
                    term: DAY * days,
                    unlocked_folders: &keys::SHORT_LIVED,
                }),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn parse(lines: &str) -> anyhow::Result<StoreOptions> {
        Ok(
            Config::parse(&format!("shard = \"s\"\n[store]\nurl = \"s3://b\"\n{lines}\n"))?
                .store
                .options(),
        )
    }

    #[test]
    fn keys_of_objects_are_read_as_aws_writes_them() {
        let options = parse(
            "sse = \"aws:kms\"\nkms_key_id = \"arn:aws:kms:eu-west-1:1:key/k\"\nstorage_class = \"STANDARD_IA\"\n\
             object_lock = \"governance\"\nobject_lock_days = 35\nexpected_bucket_owner = \"012345678901\"",
        )
        .unwrap();
        let kms = Encryption::Kms {
            key_id: Some("arn:aws:kms:eu-west-1:1:key/k".into()),
            bucket_key: true,
        };
        assert_eq!(options.keeping.encryption, kms);
        assert_eq!(options.keeping.storage_class.name(), "STANDARD_IA");
        let lock = options.keeping.lock.unwrap();
        assert_eq!((lock.mode, lock.term), (LockMode::Governance, Duration::from_hours(24 * 35)));
        assert!(!lock.holds("s/segments/u/1_b/1-2.zst") && lock.holds("s/timelines/00000001.json"));
        assert_eq!(options.expected_bucket_owner.as_deref(), Some("012345678901"));
    }

    #[test]
    fn by_default_the_bucket_decides() {
        for lines in ["", "sse = \"none\"\nstorage_class = \"STANDARD\""] {
            let keeping = parse(lines).unwrap().keeping;
            assert_eq!(keeping.encryption, Encryption::Bucket);
            assert_eq!(keeping.storage_class, StorageClass::Standard);
            assert!(keeping.lock.is_none());
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (lines, why) in [
            ("kms_key_id = \"k\"", "need sse = \"aws:kms\""),
            ("sse = \"AES256\"\nbucket_key = true", "need sse = \"aws:kms\""),
            ("sse = \"aes256\"", "unknown variant"),
            ("storage_class = \"DEEP_ARCHIVE\"", "unknown variant"),
            ("expected_bucket_owner = \"me\"", "12 digits"),
            ("object_lock = \"compliance\"", "go together"),
            ("object_lock = \"compliance\"\nobject_lock_days = 0", "between 1 and"),
        ] {
            let error = format!("{:#}", parse(lines).unwrap_err());
            assert!(error.contains(why), "{lines}: {error}");
        }
    }
}
