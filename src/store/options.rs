//! What a URL cannot say about a store. Only S3 stores look at it.

use std::time::Duration;

/// How to speak to a bucket, and what its objects are to have.
#[derive(Debug, Clone, Default)]
pub struct StoreOptions {
    /// Where the bucket is; else what the AWS configuration of this machine says.
    pub region: Option<String>,
    /// The URL of an S3-compatible server; else AWS.
    pub endpoint: Option<String>,
    /// `endpoint/bucket/key` in place of `bucket.endpoint/key`, for servers without a wildcard DNS name.
    pub path_style: bool,
    pub checksums: Checksums,
    /// The AWS account that the bucket belongs to. Any other bucket of the same name refuses every request.
    pub expected_bucket_owner: Option<String>,
    pub keeping: Keeping,
}

/// When S3 requests carry a checksum beside the signature.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Checksums {
    /// Always: AWS then notices whatever the network does to an object.
    #[default]
    WhenSupported,
    /// Only what S3 has always had, Content-MD5, for servers that do not understand the checksums of the AWS SDK.
    WhenRequired,
}

/// How objects are kept, said with each of them.
#[derive(Debug, Clone, Default)]
pub struct Keeping {
    pub encryption: Encryption,
    /// Of large objects.
    pub storage_class: StorageClass,
    pub lock: Option<ObjectLock>,
}

/// Who encrypts an object, and by which key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Encryption {
    /// As the bucket says.
    #[default]
    Bucket,
    /// S3's own keys.
    Aes256,
    Kms {
        /// Else the account's key for S3.
        key_id: Option<String>,
        /// One key for many objects, derived for the bucket: fewer requests to KMS, which cost, and are throttled.
        bucket_key: bool,
    },
}

/// By S3's names. Those whose objects have to be restored before they can be read are missing on purpose: a recovery cannot wait for
/// hours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StorageClass {
    #[default]
    Standard,
    StandardIa,
    OnezoneIa,
    IntelligentTiering,
    GlacierIr,
}

impl StorageClass {
    pub fn name(self) -> &'static str {
        match self {
            StorageClass::Standard => "STANDARD",
            StorageClass::StandardIa => "STANDARD_IA",
            StorageClass::OnezoneIa => "ONEZONE_IA",
            StorageClass::IntelligentTiering => "INTELLIGENT_TIERING",
            StorageClass::GlacierIr => "GLACIER_IR",
        }
    }
}

/// Who may shorten a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockMode {
    /// Whoever has s3:BypassGovernanceRetention.
    Governance,
    /// Nobody.
    Compliance,
}

/// For how long nobody can delete a version of an object, counted from when it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectLock {
    pub mode: LockMode,
    pub term: Duration,
    /// `folder` of keys like `x/folder/…` whose objects get no lock of their own: they are soon of no use, and many.
    pub unlocked_folders: &'static [&'static str],
}

impl ObjectLock {
    /// Whether the object with this key gets a lock.
    pub fn holds(&self, key: &str) -> bool {
        key.split('/')
            .nth(1)
            .is_none_or(|folder| !self.unlocked_folders.contains(&folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_soon_of_no_use_is_not_locked() {
        let lock = ObjectLock {
            mode: LockMode::Governance,
            term: Duration::from_hours(24),
            unlocked_folders: &["segments"],
        };
        assert!(!lock.holds("s/segments/u/1_b/0-9.zst"));
        for locked in [
            "s/timelines/1.json",
            "s/2026/November/21/u/1_b.zst",
            "s/snapshots/segments/x",
            "k",
        ] {
            assert!(lock.holds(locked), "{locked}");
        }
    }
}
