//! From a URL in the configuration to a store.

use std::{path::Path, sync::Arc};

use anyhow::bail;

use super::{SharedStore, filesystem::FilesystemStore, options::StoreOptions};
use crate::support::hint::OrHint;

const FORMS: &str = "give a folder as file:///absolute/path, or a bucket as s3://bucket or s3://bucket/prefix";

/// Opens the store that `url` names: `file:///path` (taken literally, no %-escapes) or `s3://bucket/prefix`.
///
/// # Errors
/// A URL of another form; [`super::StoreError::Refused`] where the folder does not exist or no region is known. A bucket is not
/// asked for: an agent starts, and buffers, while S3 is away.
pub async fn open(url: &str, options: &StoreOptions) -> anyhow::Result<SharedStore> {
    if let Some(path) = url.strip_prefix("file://") {
        if !path.starts_with('/') {
            return Err(anyhow::anyhow!("`{url}` does not name a folder of this machine")).hint(FORMS);
        }
        return Ok(Arc::new(FilesystemStore::open(Path::new(path))?));
    }
    let Some(rest) = url.strip_prefix("s3://") else {
        return Err(anyhow::anyhow!("`{url}` names no kind of store that is known")).hint(FORMS);
    };
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.contains('@') {
        bail!(
            "the URL of an S3 store has a `@`: access keys do not belong into it (it is logged), but into the AWS configuration"
        );
    }
    if bucket.is_empty() {
        return Err(anyhow::anyhow!("`{url}` names no bucket")).hint(FORMS);
    }
    open_s3(bucket, prefix.trim_end_matches('/'), options).await
}

#[cfg(feature = "aws")]
async fn open_s3(bucket: &str, prefix: &str, options: &StoreOptions) -> anyhow::Result<SharedStore> {
    let store = super::s3::S3Store::open(super::s3::S3Options {
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        region: options.region.clone(),
        endpoint: options.endpoint.clone(),
        path_style: options.path_style,
        checksums: options.checksums,
        expected_bucket_owner: options.expected_bucket_owner.clone(),
        keeping: options.keeping.clone(),
    });
    Ok(Arc::new(store.await?))
}

#[cfg(not(feature = "aws"))]
async fn open_s3(bucket: &str, _prefix: &str, _options: &StoreOptions) -> anyhow::Result<SharedStore> {
    Err(anyhow::anyhow!(
        "this mysql-pitr cannot reach the bucket `{bucket}`: it was built without S3"
    ))
    .hint("use a build with the `aws` feature, which is on by default")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::hint::render;

    async fn error(url: &str) -> String {
        render(&open(url, &StoreOptions::default()).await.unwrap_err())
    }

    #[tokio::test]
    async fn says_which_urls_it_takes() {
        for (url, text) in [
            ("file://backup/a", "`file://backup/a` does not name a folder of this machine"),
            ("/backup", "`/backup` names no kind of store that is known"),
            ("gs://b", "`gs://b` names no kind of store that is known"),
            ("s3://", "`s3://` names no bucket"),
            ("s3:///prefix", "`s3:///prefix` names no bucket"),
        ] {
            assert_eq!(error(url).await, format!("error: {text}\n hint: {FORMS}"));
        }
    }

    #[tokio::test]
    async fn does_not_repeat_access_keys() {
        let text = error("s3://AKIAEXAMPLE:hunter2@bucket/prefix").await;
        assert!(
            text.contains("do not belong") && !text.contains("hunter2") && !text.contains("AKIA"),
            "{text}"
        );
    }

    #[cfg(feature = "aws")]
    #[tokio::test]
    async fn refuses_a_prefix_that_no_key_may_have() {
        let text = error("s3://bucket/a//b").await;
        assert!(text.contains("store s3://bucket/a//b refused to open: the prefix"), "{text}");
    }

    #[tokio::test]
    async fn opens_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}", dir.path().display());
        assert_eq!(open(&url, &StoreOptions::default()).await.unwrap().url(), url);
    }
}
