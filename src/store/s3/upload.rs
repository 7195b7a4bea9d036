//! Large objects, part by part.

use std::{mem, sync::Arc, time::Duration};

use async_trait::async_trait;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use tokio::task::JoinSet;

use super::{Bucket, Call, allow, allow_part, kept};
use crate::store::{Checksums, Put, StoreError, Upload, moving_time, options::StorageClass};

/// The least that S3 takes, for several uploads hold one each: still large beside the time of a request.
const FIRST_PART_BYTES: usize = 5 * 1024 * 1024;
/// S3 takes 10,000 parts, of 5 MiB to 5 GiB, 5 TiB in all: doubling the size this often (to 5 GiB at last) reaches it, and leaves all
/// parts of objects below 4.6 GiB small.
const PARTS_OF_ONE_SIZE: usize = 950;
/// Of one object: one travels while S3 stores the other.
const PARTS_IN_FLIGHT_MAX: usize = 2;
/// Of all objects, for each is held in memory, and the SDK copies it. Small objects, which are in a hurry, do not wait for them.
pub(super) const ALL_PARTS_IN_FLIGHT_MAX: usize = 2;
/// The cheaper storage classes charge for smaller objects as if they were this large.
const CHEAP_CLASS_BYTES_MIN: usize = 128 * 1024;
/// What S3 may take to join one more part to the others: "several minutes" for the largest objects, says its manual.
const PART_JOIN_TIME: Duration = Duration::from_millis(100);

/// How large the part with this number, from 1 on, is; the last one may be smaller.
fn part_bytes(number: usize) -> usize {
    FIRST_PART_BYTES << ((number - 1) / PARTS_OF_ONE_SIZE)
}

/// An object on its way.
pub(super) struct S3Upload {
    bucket: Arc<Bucket>,
    key: String,
    /// None while a call has it, and for ever when that call did not end well.
    parts: Option<Parts>,
}

impl S3Upload {
    pub(super) fn new(bucket: Arc<Bucket>, key: &str) -> Self {
        let parts = Parts {
            bucket: Arc::clone(&bucket),
            key: key.to_owned(),
            buffer: Vec::new(),
            upload_id: None,
            begun: 0,
            in_flight: JoinSet::new(),
            stored: Vec::new(),
        };
        S3Upload {
            bucket,
            key: key.to_owned(),
            parts: Some(parts),
        }
    }

    fn take_parts(&mut self) -> Result<Parts, StoreError> {
        let call = Call::put(&self.key, &Put::IfAbsent);
        self.parts
            .take()
            .ok_or_else(|| self.bucket.failed(&call, "an earlier write of it failed or was given up"))
    }
}

#[async_trait]
impl Upload for S3Upload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let mut parts = self.take_parts()?;
        parts.write(bytes).await?;
        self.parts = Some(parts);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        let mut parts = self.take_parts()?;
        let finished = parts.finish().await;
        // Here and not when dropped: whoever is told of the failure finds nothing left.
        parts.abort().await;
        finished
    }

    async fn abort(mut self: Box<Self>) {
        if let Some(mut parts) = self.parts.take() {
            parts.abort().await;
        }
    }
}

/// The state of an upload. Dropped before it is finished or aborted, it aborts in the background.
struct Parts {
    bucket: Arc<Bucket>,
    key: String,
    /// The part that is being filled.
    buffer: Vec<u8>,
    /// None until one part is full: most objects never need a second one. And none again once there is nothing to abort.
    upload_id: Option<String>,
    begun: usize,
    in_flight: JoinSet<Result<CompletedPart, StoreError>>,
    stored: Vec<CompletedPart>,
}

impl Parts {
    async fn write(&mut self, mut bytes: Bytes) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            let full = part_bytes(self.begun + 1);
            let piece = bytes.split_to(bytes.len().min(full - self.buffer.len()));
            if self.buffer.is_empty() {
                self.buffer.reserve_exact(full);
            }
            self.buffer.extend_from_slice(&piece);
            if self.buffer.len() == full {
                self.begin_part().await?;
            }
        }
        Ok(())
    }

    /// Sends the buffer off, and waits only while too many others are on their way.
    async fn begin_part(&mut self) -> Result<(), StoreError> {
        let upload_id = match &self.upload_id {
            Some(id) => id.clone(),
            None => self.upload_id.insert(create(&self.bucket, &self.key).await?).clone(),
        };
        while self.in_flight.len() >= PARTS_IN_FLIGHT_MAX {
            self.settle_one().await?;
        }
        let parts = Arc::clone(&self.bucket.parts);
        let permit = parts.acquire_owned().await.map_err(|e| {
            let call = Call::put(&self.key, &Put::IfAbsent);
            self.bucket.failed(&call, e)
        })?;
        self.begun += 1;
        let body = mem::take(&mut self.buffer).into();
        let sending = send_part(Arc::clone(&self.bucket), self.key.clone(), upload_id, self.begun, body);
        self.in_flight.spawn(async move {
            let _permit = permit;
            sending.await
        });
        Ok(())
    }

    /// Waits for a part. False where none is on its way.
    async fn settle_one(&mut self) -> Result<bool, StoreError> {
        let Some(ended) = self.in_flight.join_next().await else {
            return Ok(false);
        };
        let part = ended.map_err(|e| self.bucket.failed(&Call::put(&self.key, &Put::IfAbsent), e))??;
        self.stored.push(part);
        Ok(true)
    }

    async fn finish(&mut self) -> Result<(), StoreError> {
        if self.upload_id.is_none() {
            let bytes = mem::take(&mut self.buffer);
            let class = match bytes.len() {
                ..CHEAP_CLASS_BYTES_MIN => StorageClass::Standard,
                _ => self.bucket.keeping.storage_class,
            };
            return self.bucket.create(&self.key, bytes.into(), class).await.map(drop);
        }
        if !self.buffer.is_empty() {
            self.begin_part().await?;
        }
        while self.settle_one().await? {}
        let mut stored = mem::take(&mut self.stored);
        let limits = allow(PART_JOIN_TIME.saturating_mul(stored.len() as u32));
        stored.sort_unstable_by_key(|part| part.part_number);
        let request = self
            .bucket
            .client
            .complete_multipart_upload()
            .bucket(&self.bucket.name)
            .key(self.bucket.name_of(&self.key))
            .set_expected_bucket_owner(self.bucket.owner.clone());
        let request = request.set_upload_id(self.upload_id.clone()).if_none_match("*");
        let request = request.multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(stored)).build());
        let completed = request.customize().config_override(limits).send().await;
        completed.map_err(|e| self.bucket.error(&Call::put(&self.key, &Put::IfAbsent), e))?;
        self.upload_id = None;
        Ok(())
    }

    async fn abort(&mut self) {
        // A part that arrives after the abort would stay.
        self.in_flight.shutdown().await;
        if let Some(id) = self.upload_id.take() {
            abort(&self.bucket, &self.key, id).await;
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let Some(id) = self.upload_id.take() else { return };
        // Without a runtime the process is ending, and the bucket's lifecycle rule has to clean up.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let (bucket, key, mut in_flight) = (
            Arc::clone(&self.bucket),
            mem::take(&mut self.key),
            mem::take(&mut self.in_flight),
        );
        runtime.spawn(async move {
            in_flight.shutdown().await;
            abort(&bucket, &key, id).await;
        });
    }
}

async fn create(bucket: &Bucket, key: &str) -> Result<String, StoreError> {
    bucket.ensure_creations(key).await?;
    let call = Call::part(key);
    let request = bucket.client.create_multipart_upload();
    let request = request.bucket(&bucket.name).key(bucket.name_of(key));
    let request = request.set_expected_bucket_owner(bucket.owner.clone());
    // The SDK gives every part a CRC-32 of its own accord, which S3 takes only in an upload that was begun so.
    let algorithm = (bucket.checksums == Checksums::WhenSupported).then_some(ChecksumAlgorithm::Crc32);
    let created = kept!(bucket, request, key, bucket.keeping.storage_class)
        .set_checksum_algorithm(algorithm)
        .customize()
        .config_override(allow_part(Duration::ZERO))
        .send()
        .await
        .map_err(|e| bucket.error(&call, e))?;
    created
        .upload_id
        .ok_or_else(|| bucket.failed(&call, "the answer has no upload id"))
}

async fn send_part(
    bucket: Arc<Bucket>,
    key: String,
    upload_id: String,
    number: usize,
    body: Bytes,
) -> Result<CompletedPart, StoreError> {
    let limits = allow_part(moving_time(body.len() as u64));
    let number = i32::try_from(number).expect("parts double in size long before");
    let request = bucket
        .client
        .upload_part()
        .bucket(&bucket.name)
        .key(bucket.name_of(&key))
        .upload_id(upload_id)
        .set_expected_bucket_owner(bucket.owner.clone())
        .set_content_md5(bucket.content_md5(&body));
    let request = request.part_number(number).body(body.into());
    let sent = request.customize().config_override(limits).send().await;
    let stored = sent.map_err(|e| bucket.error(&Call::part(&key), e))?;
    Ok(CompletedPart::builder()
        .part_number(number)
        .set_e_tag(stored.e_tag)
        .set_checksum_crc32(stored.checksum_crc32)
        .build())
}

async fn abort(bucket: &Bucket, key: &str, upload_id: String) {
    let request = bucket
        .client
        .abort_multipart_upload()
        .bucket(&bucket.name)
        .key(bucket.name_of(key))
        .upload_id(upload_id)
        .set_expected_bucket_owner(bucket.owner.clone());
    if let Err(e) = request.send().await.map_err(|e| bucket.error(&Call::abort(key), e))
        && !e.is_not_found()
    {
        let error = format!("{:#}", anyhow::Error::from(e));
        tracing::warn!(%error, "parts of an unfinished object stay in the bucket until its lifecycle rule removes them");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn ten_thousand_parts_within_s3s_limits_hold_five_tebibytes() {
        let sizes: Vec<u64> = (1..=10_000).map(|number| part_bytes(number) as u64).collect();
        assert!(sizes.iter().all(|size| (5 * MIB..=5 * 1024 * MIB).contains(size)));
        assert!(sizes.iter().sum::<u64>() >= 5 * 1024 * 1024 * MIB);
        assert!(sizes[..950].iter().all(|size| *size == 5 * MIB));
    }
}
