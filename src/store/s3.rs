//! Objects in a bucket of S3, or of a server that speaks its protocol: `s3://bucket/prefix`.
//!
//! **Conditions.** Everything is written with `If-None-Match: *` or `If-Match`, also the completion of a multipart upload. The SDK
//! repeats requests whose answer was lost, and a repeated one can meet its own success: a 412 then says that the object is there
//! (or has changed) because this very call wrote it. Nothing in the answer tells the two apart, so that callers who must know read the
//! object back and compare a nonce. A 409 (two conditional writes at once) is a failure to try again.
//! Servers that do not keep the conditions are found and worked with, or refused: `conditions.rs`.
//!
//! **Retries.** The parts of large objects go in the SDK's adaptive mode: once the store throttles (503 SlowDown, also for KMS), they share a rate that
//! falls by a third with every such answer and rises again slowly. That limiter knows no urgency, and a retry costs five of its tokens, ten
//! seconds at its lowest rate. So small objects, a handful a second, among them the segments on which the recovery point hangs, do not
//! go through it: standard mode, and the backoff of whoever stores them. Until something is throttled the modes are the same.
//!
//! **What objects have.** Encryption and the expected owner go with every request. The storage class goes with large objects (sealed binlogs,
//! snapshots): others are deleted before the shortest term that the cheaper classes charge, 30 days, or smaller than the least size that
//! they charge, 128 KiB. A lock goes with everything but what is soon of no use.
//!
//! **Time.** An attempt may take ten seconds, a call with all its attempts half a minute, and both longer by what their bytes may take;
//! a transfer that stands still ends sooner. Bodies that are read as a stream have a guard of their own.
//!
//! **Memory.** An upload holds the part that is being filled; of all uploads together two are on their way: 30 MiB for four uploads of
//! objects up to 4.6 GiB.
//!
//! **If the process dies** during a multipart upload, its parts stay, invisible and paid for, until a lifecycle rule
//! (AbortIncompleteMultipartUpload) removes them: every bucket needs one. A PUT is there whole or not at all.
//!
//! Keys and tokens come from the AWS chain (environment, profile, web identity, container, instance); this module never sees them, and
//! messages quote no request.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use aws_config::{BehaviorVersion, SdkConfig, retry::RetryConfig, stalled_stream_protection::StalledStreamProtectionConfig};
use aws_sdk_s3::{
    Client,
    config::{Builder, Region, RequestChecksumCalculation, ResponseChecksumValidation, timeout::TimeoutConfig},
    operation::get_object::GetObjectOutput,
    primitives::DateTime,
    types::{ObjectLockMode, ServerSideEncryption},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use md5::{Digest, Md5};
use tokio::{
    io::AsyncReadExt,
    sync::{OnceCell, Semaphore},
};

use super::{
    CALL_TIMEOUT, Checksums, GET_BYTES_MAX, ObjectMeta, ObjectReader, Put, Store, StoreError, Upload, Version, call_timeout, key,
    moving_time,
    options::{Encryption, Keeping, LockMode, StorageClass},
    stall::StallGuard,
};
use crate::support::clock::{self, US_PER_S};
use conditions::Conditions;
use errors::Call;

mod conditions;
mod errors;
mod locks;
mod upload;

/// The first one and two more, within [`CALL_TIMEOUT`].
const ATTEMPTS: u32 = 3;
/// Leaves room for the waits between attempts.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(9);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a transfer may stand still. The time of an attempt is longer than this only for large bodies.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);

/// What servers other than AWS, which mostly have no regions, expect in a signature.
const REGION_OF_OTHERS: &str = "us-east-1";

/// Says with a request that begins an object how it is to be kept. The SDK's requests have the same methods, and no type in common.
macro_rules! kept {
    ($bucket:expr, $request:expr, $key:expr, $class:expr) => {{
        let (encryption, key_id, bucket_key) = $bucket.encryption();
        let (mode, until) = $bucket.lock($key).unzip();
        let class = ($class != $crate::store::options::StorageClass::Standard).then(|| $class.name().into());
        $request
            .set_server_side_encryption(encryption)
            .set_ssekms_key_id(key_id)
            .set_bucket_key_enabled(bucket_key)
            .set_object_lock_mode(mode)
            .set_object_lock_retain_until_date(until)
            .set_storage_class(class)
    }};
}
use kept;

/// Under which condition a PUT takes effect.
enum Condition<'a> {
    Absent,
    Match(&'a str),
    None,
}

/// Where a bucket is and how to speak to it.
#[derive(Debug, Clone, Default)]
pub struct S3Options {
    pub bucket: String,
    /// Before every key, with a `/` in between; may be empty.
    pub prefix: String,
    /// Else what the AWS configuration of this machine says.
    pub region: Option<String>,
    /// The URL of an S3-compatible server; else AWS.
    pub endpoint: Option<String>,
    /// `endpoint/bucket/key` in place of `bucket.endpoint/key`.
    pub path_style: bool,
    pub checksums: Checksums,
    /// The account that the bucket belongs to.
    pub expected_bucket_owner: Option<String>,
    pub keeping: Keeping,
}

/// A bucket, or a prefix in one.
#[derive(Clone)]
pub struct S3Store {
    bucket: Arc<Bucket>,
}

struct Bucket {
    client: Client,
    name: String,
    /// Empty, or with a slash at its end.
    prefix: String,
    url: String,
    checksums: Checksums,
    owner: Option<String>,
    keeping: Keeping,
    conditions: Conditions,
    /// Whether its objects can be locked.
    locks: OnceCell<bool>,
    /// One permit for each part of a large object that may be on its way.
    parts: Arc<Semaphore>,
}

impl S3Store {
    /// Reads the AWS configuration of this machine (environment, profile, metadata service) and makes a client of it. The bucket is not
    /// asked for.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for a prefix that no key may have, or where no region is known.
    pub async fn open(options: S3Options) -> Result<Self, StoreError> {
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if let Some(region) = &options.region {
            loader = loader.region(Region::new(region.clone()));
        }
        S3Store::new(&loader.load().await, options)
    }

    /// The same with a configuration that the caller has read.
    ///
    /// # Errors
    /// As [`S3Store::open`].
    pub fn new(shared: &SdkConfig, options: S3Options) -> Result<Self, StoreError> {
        let S3Options {
            bucket,
            prefix,
            region,
            endpoint,
            path_style,
            checksums,
            expected_bucket_owner,
            keeping,
        } = options;
        let url = if prefix.is_empty() {
            format!("s3://{bucket}")
        } else {
            format!("s3://{bucket}/{prefix}")
        };
        let refused = |reason: String| StoreError::Refused {
            url: url.clone(),
            operation: "open".into(),
            reason,
        };
        if let Some(fault) = key::fault(&prefix).filter(|_| !prefix.is_empty()) {
            return Err(refused(format!("the prefix cannot begin a key: {fault}")));
        }
        let endpoint = endpoint.or_else(|| shared.endpoint_url().map(str::to_owned));
        let region = region.map(Region::new).or_else(|| shared.region().cloned());
        let region = match (region, &endpoint) {
            (Some(region), _) => region,
            (None, Some(_)) => Region::from_static(REGION_OF_OTHERS),
            (None, None) => {
                return Err(refused(
                    "no region is known; set `region` to the bucket's, or AWS_REGION".into(),
                ));
            }
        };
        let in_doubt = endpoint.is_some();
        let mut config = Builder::from(shared);
        config.set_endpoint_url(endpoint);
        let config = config
            .region(region)
            .force_path_style(path_style)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(timeouts(Duration::ZERO))
            .stalled_stream_protection(StalledStreamProtectionConfig::enabled().grace_period(STALL_TIMEOUT).build())
            .request_checksum_calculation(match checksums {
                Checksums::WhenSupported => RequestChecksumCalculation::WhenSupported,
                Checksums::WhenRequired => RequestChecksumCalculation::WhenRequired,
            })
            .response_checksum_validation(match checksums {
                Checksums::WhenSupported => ResponseChecksumValidation::WhenSupported,
                Checksums::WhenRequired => ResponseChecksumValidation::WhenRequired,
            })
            .build();
        let prefix = if prefix.is_empty() { prefix } else { prefix + "/" };
        Ok(S3Store {
            bucket: Arc::new(Bucket {
                client: Client::from_conf(config),
                name: bucket,
                prefix,
                url,
                checksums,
                owner: expected_bucket_owner,
                keeping,
                conditions: Conditions::new(in_doubt),
                locks: OnceCell::new(),
                parts: Arc::new(Semaphore::new(upload::ALL_PARTS_IN_FLIGHT_MAX)),
            }),
        })
    }

    fn check(&self, verb: &str, key: &str) -> Result<(), StoreError> {
        key::check(self.url(), verb, key)
    }
}

/// Without the client, whose own `Debug` shows the access key's id.
impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("S3Store").field(&self.bucket.url).finish()
    }
}

impl Bucket {
    /// The name of an object in the bucket.
    fn name_of(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Creates a whole object.
    async fn create(&self, key: &str, bytes: Bytes, class: StorageClass) -> Result<Version, StoreError> {
        self.ensure_creations(key).await?;
        let call = Call::put(key, &Put::IfAbsent);
        self.write(&call, key, bytes, Condition::Absent, class).await
    }

    /// One PUT; `call` is what it is for.
    async fn write(
        &self,
        call: &Call<'_>,
        key: &str,
        bytes: Bytes,
        condition: Condition<'_>,
        class: StorageClass,
    ) -> Result<Version, StoreError> {
        let size_bytes = bytes.len() as u64;
        let request = self.client.put_object().bucket(&self.name).key(self.name_of(key));
        let request = request
            .set_expected_bucket_owner(self.owner.clone())
            .set_content_md5(self.content_md5(&bytes))
            .body(bytes.into());
        let request = match condition {
            Condition::Absent => request.if_none_match("*"),
            Condition::Match(etag) => request.if_match(etag),
            Condition::None => request,
        };
        let sent = kept!(self, request, key, class)
            .customize()
            .config_override(allow(moving_time(size_bytes)))
            .send()
            .await;
        let output = sent.map_err(|e| self.error(call, e))?;
        let etag = output.e_tag.ok_or_else(|| self.failed(call, "the answer has no ETag"))?;
        Ok(Version(etag))
    }

    /// Where the SDK gives a body no checksum: buckets with Object Lock take none without.
    fn content_md5(&self, bytes: &[u8]) -> Option<String> {
        (self.checksums == Checksums::WhenRequired).then(|| BASE64_STANDARD.encode(Md5::digest(bytes)))
    }

    fn encryption(&self) -> (Option<ServerSideEncryption>, Option<String>, Option<bool>) {
        match &self.keeping.encryption {
            Encryption::Bucket => (None, None, None),
            Encryption::Aes256 => (Some(ServerSideEncryption::Aes256), None, None),
            Encryption::Kms { key_id, bucket_key } => (Some(ServerSideEncryption::AwsKms), key_id.clone(), Some(*bucket_key)),
        }
    }

    /// How the object with this key is locked from now on, and until when.
    fn lock(&self, key: &str) -> Option<(ObjectLockMode, DateTime)> {
        let lock = self.keeping.lock.as_ref().filter(|lock| lock.holds(key))?;
        let mode = match lock.mode {
            LockMode::Governance => ObjectLockMode::Governance,
            LockMode::Compliance => ObjectLockMode::Compliance,
        };
        let until_s = clock::now_us() / US_PER_S + i64::try_from(lock.term.as_secs()).unwrap_or(i64::MAX / US_PER_S);
        Some((mode, DateTime::from_secs(until_s)))
    }

    async fn get(&self, call: &Call<'_>, key: &str, from: u64) -> Result<GetObjectOutput, StoreError> {
        let request = self.client.get_object().bucket(&self.name).key(self.name_of(key));
        let request = request.set_expected_bucket_owner(self.owner.clone());
        let request = request.set_range((from > 0).then(|| format!("bytes={from}-")));
        request.send().await.map_err(|e| self.error(call, e))
    }

    fn reader(&self, key: &str, object: GetObjectOutput) -> impl tokio::io::AsyncRead + Send + Unpin + use<> {
        StallGuard::new(object.body.into_async_read(), format!("{}/{key}", self.url), CALL_TIMEOUT)
    }
}

#[async_trait]
impl Store for S3Store {
    fn url(&self) -> &str {
        &self.bucket.url
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: Put) -> Result<Version, StoreError> {
        self.check("put", key)?;
        match condition {
            Put::IfAbsent => self.bucket.create(key, bytes, StorageClass::Standard).await,
            Put::IfMatch(version) => self.bucket.replace(key, bytes, &version).await,
        }
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        self.check("put", key)?;
        Ok(Box::new(upload::S3Upload::new(Arc::clone(&self.bucket), key)))
    }

    async fn get(&self, key: &str) -> Result<(Bytes, Version), StoreError> {
        self.check("get", key)?;
        let call = Call::read("get", key);
        let mut object = self.bucket.get(&call, key, 0).await?;
        let size_bytes = object.content_length.and_then(|n| u64::try_from(n).ok());
        let size_bytes = size_bytes.ok_or_else(|| self.bucket.failed(&call, "the answer has no length"))?;
        if size_bytes > GET_BYTES_MAX {
            return Err(StoreError::TooLarge {
                url: self.bucket.url.clone(),
                key: key.to_owned(),
                size_bytes,
                limit_bytes: GET_BYTES_MAX,
            });
        }
        let etag = object
            .e_tag
            .take()
            .ok_or_else(|| self.bucket.failed(&call, "the answer has no ETag"))?;
        let mut bytes = Vec::with_capacity(size_bytes as usize);
        let mut body = self.bucket.reader(key, object);
        match tokio::time::timeout(call_timeout(size_bytes), body.read_to_end(&mut bytes)).await {
            Ok(Ok(_)) => Ok((bytes.into(), Version(etag))),
            Ok(Err(e)) => Err(self.bucket.failed(&call, e)),
            Err(e) => Err(self.bucket.failed(&call, e)),
        }
    }

    async fn read(&self, key: &str, from: u64) -> Result<ObjectReader, StoreError> {
        self.check("read", key)?;
        let object = self.bucket.get(&Call::read("read", key), key, from).await?;
        Ok(Box::new(self.bucket.reader(key, object)))
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<ObjectMeta>, StoreError> {
        key::check_prefix(self.url(), prefix)?;
        let bucket = &self.bucket;
        let call = Call::list(prefix);
        let request = bucket
            .client
            .list_objects_v2()
            .bucket(&bucket.name)
            .set_expected_bucket_owner(bucket.owner.clone())
            .prefix(bucket.name_of(prefix));
        let request = request.set_start_after(start_after.map(|key| bucket.name_of(key)));
        let mut pages = request.into_paginator().send();
        let mut objects = Vec::new();
        while let Some(page) = pages.next().await {
            for object in page.map_err(|e| bucket.error(&call, e))?.contents.unwrap_or_default() {
                let Some(key) = object.key.as_deref().and_then(|name| name.strip_prefix(&bucket.prefix)) else {
                    continue;
                };
                // `folder/` for one, which the console makes.
                if key::fault(key).is_none() && start_after.is_none_or(|after| key > after) {
                    let size_bytes = object.size.and_then(|n| u64::try_from(n).ok()).unwrap_or_default();
                    objects.push(ObjectMeta {
                        key: key.to_owned(),
                        size_bytes,
                        modified_us: object.last_modified.and_then(|at| at.secs().checked_mul(US_PER_S)),
                    });
                }
            }
        }
        // Directory buckets, and some servers, keep another order.
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    async fn folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        key::check_prefix(self.url(), prefix)?;
        let bucket = &self.bucket;
        let call = Call::list(prefix);
        let request = bucket
            .client
            .list_objects_v2()
            .bucket(&bucket.name)
            .set_expected_bucket_owner(bucket.owner.clone())
            .prefix(bucket.name_of(prefix))
            .delimiter("/");
        let mut pages = request.into_paginator().send();
        let mut folders = BTreeSet::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| bucket.error(&call, e))?;
            let found = page.common_prefixes.unwrap_or_default();
            let found = found.into_iter().filter_map(|common| common.prefix);
            let own = found.filter_map(|name| name.strip_prefix(&bucket.prefix).map(str::to_owned));
            folders.extend(own.filter(|folder| key::fault(folder.trim_end_matches('/')).is_none()));
        }
        Ok(folders.into_iter().collect())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.check("delete", key)?;
        let bucket = &self.bucket;
        bucket.ensure_unlocked(key).await?;
        let request = bucket.client.delete_object().bucket(&bucket.name).key(bucket.name_of(key));
        let deleted = request.set_expected_bucket_owner(bucket.owner.clone()).send().await;
        match deleted.map_err(|e| bucket.error(&Call::delete(key), e)) {
            Err(e) if e.is_not_found() => Ok(()),
            deleted => deleted.map(drop),
        }
    }

    async fn workarounds(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        match self.bucket.conditions.in_doubt {
            true => self.bucket.workarounds(prefix).await,
            false => Ok(Vec::new()),
        }
    }
}

/// The limits of a call that may take this much longer than others.
fn allow(extra: Duration) -> Builder {
    Builder::new().timeout_config(timeouts(extra))
}

/// The same for parts of large objects: many, and in no hurry.
fn allow_part(extra: Duration) -> Builder {
    allow(extra).retry_config(RetryConfig::adaptive().with_max_attempts(ATTEMPTS))
}

/// Always all limits: those of a call replace the client's, and another connect time-out would mean another connection pool.
fn timeouts(extra: Duration) -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(ATTEMPT_TIMEOUT + extra)
        .operation_timeout(CALL_TIMEOUT + extra)
        .build()
}
