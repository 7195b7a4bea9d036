//! The S3 store, on moto's server.

use std::{
    env,
    net::TcpListener,
    process::Command,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_s3::{
    Client,
    config::{Builder, Credentials, Region, SharedCredentialsProvider},
    types::{BucketLocationConstraint, CreateBucketConfiguration},
};
use bytes::Bytes;
use mysql_pitr::store::{
    self, CALL_TIMEOUT, Checksums, Put, SharedStore, Store, StoreError, StoreOptions, Version,
    s3::{S3Options, S3Store},
};

use super::{MIB, content, create, keys, pattern, read_all, write_in_pieces};
use crate::support::{
    moto::Moto,
    s3_proxy::{Manner, S3Proxy},
};

const REGION: &str = "eu-central-1";
const SECRET: &str = "a-secret-that-nobody-prints";

/// One for all tests: it takes seconds to start.
static MOTO: LazyLock<Moto> = LazyLock::new(Moto::start);

fn sdk_config(endpoint: &str) -> SdkConfig {
    let keys = Credentials::new("AKIDTEST", SECRET, None, None, "tests");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .credentials_provider(SharedCredentialsProvider::new(keys))
        .endpoint_url(endpoint)
        .build()
}

/// A bucket of its own for each test.
struct Bucket {
    name: String,
    client: Client,
}

impl Bucket {
    async fn make() -> Self {
        let config = Builder::from(&sdk_config(&MOTO.endpoint)).force_path_style(true).build();
        let bucket = Bucket {
            name: format!("b-{}", uuid::Uuid::new_v4()),
            client: Client::from_conf(config),
        };
        let place = CreateBucketConfiguration::builder()
            .location_constraint(BucketLocationConstraint::from(REGION))
            .build();
        bucket
            .client
            .create_bucket()
            .bucket(&bucket.name)
            .create_bucket_configuration(place)
            .send()
            .await
            .unwrap();
        bucket
    }

    fn store(&self) -> SharedStore {
        self.store_at("some/prefix", Checksums::WhenSupported)
    }

    fn store_at(&self, prefix: &str, checksums: Checksums) -> SharedStore {
        self.store_through(&MOTO.endpoint, prefix, checksums)
    }

    fn store_through(&self, endpoint: &str, prefix: &str, checksums: Checksums) -> SharedStore {
        let options = S3Options {
            bucket: self.name.clone(),
            prefix: prefix.into(),
            path_style: true,
            checksums,
            ..S3Options::default()
        };
        Arc::new(S3Store::new(&sdk_config(endpoint), options).unwrap())
    }

    /// Uploads whose parts the bucket's owner pays for.
    async fn unfinished(&self) -> usize {
        self.client
            .list_multipart_uploads()
            .bucket(&self.name)
            .send()
            .await
            .unwrap()
            .uploads()
            .len()
    }
}

crate::store_conformance::conformance!(Bucket::make());

/// A bucket of a server that is not AWS.
struct Behind {
    bucket: Bucket,
    proxy: S3Proxy,
    checksums: Checksums,
}

impl Behind {
    async fn make(manner: Manner) -> Behind {
        Behind {
            bucket: Bucket::make().await,
            proxy: S3Proxy::start(&MOTO.endpoint, manner).await,
            checksums: Checksums::default(),
        }
    }

    async fn with_few_checksums(manner: Manner) -> Behind {
        Behind {
            checksums: Checksums::WhenRequired,
            ..Behind::make(manner).await
        }
    }

    fn store(&self) -> SharedStore {
        self.bucket.store_through(&self.proxy.endpoint, "some/prefix", self.checksums)
    }
}

/// What rests on conditions, where the server keeps only that of creations.
macro_rules! conditions_hold {
    ($manner:expr) => {
        crate::store_conformance::conformance!(
            super::Behind::make($manner),
            an_object_comes_back_as_it_was_put,
            a_second_creation_loses_and_changes_nothing,
            one_of_many_racing_creations_wins,
            a_replacement_needs_the_current_version,
            one_of_many_racing_replacements_wins,
            a_missing_object_cannot_be_replaced,
            an_upload_does_not_replace,
            one_of_many_racing_uploads_wins,
            deleting_is_idempotent,
        );
    };
}

mod where_every_if_match_fails {
    conditions_hold!(crate::support::s3_proxy::Manner::FailsIfMatch);
}

mod where_if_match_is_ignored {
    conditions_hold!(crate::support::s3_proxy::Manner::IgnoresIfMatch);
}

mod where_sdk_checksums_are_refused {
    crate::store_conformance::conformance!(
        super::Behind::with_few_checksums(crate::support::s3_proxy::Manner::RefusesSdkChecksums),
        an_object_comes_back_as_it_was_put,
        uploads_of_all_sizes_come_back,
        a_replacement_needs_the_current_version,
        one_of_many_racing_creations_wins,
    );
}

/// Nothing is safe there, and nothing is begun.
#[tokio::test]
async fn where_conditions_are_ignored_nothing_is_created() {
    let behind = Behind::make(Manner::IgnoresConditions).await;
    let (one, other) = (behind.store(), behind.store());
    let claim = async |store: &SharedStore| {
        store
            .put("s/timelines/00000001.json", Bytes::from_static(b"mine"), Put::IfAbsent)
            .await
    };
    let (first, second) = tokio::join!(claim(&one), claim(&other));
    for error in [first.unwrap_err(), second.unwrap_err(), claim(&one).await.unwrap_err()] {
        assert!(!error.is_transient(), "{error:?}");
        assert!(
            error.to_string().contains("the server ignores If-None-Match: two primaries"),
            "{error}"
        );
    }
    let mut upload = one.upload("s/large").await.unwrap();
    assert!(upload.write(pattern(9 * MIB)).await.is_err());
    assert!(keys(&*one, "", None).await.is_empty());
    assert_eq!(behind.bucket.unfinished().await, 0);
}

/// One who took the turn to replace an object and died keeps others out for a while, and never lets two of them in.
#[tokio::test]
async fn a_turn_that_was_taken_keeps_others_out() {
    let behind = Behind::make(Manner::FailsIfMatch).await;
    let store = behind.store();
    let first = create(&*store, "s/lease", b"first").await;
    let replace = async |text: &'static str, over: &Version| {
        store
            .put("s/lease", Bytes::from_static(text.as_bytes()), Put::IfMatch(over.clone()))
            .await
    };
    let second = replace("second", &first).await.unwrap();
    assert!(matches!(
        replace("late", &first).await.unwrap_err(),
        StoreError::Precondition { .. }
    ));
    assert_eq!(content(&*store, "s/lease").await, "second");
    assert!(replace("third", &second).await.is_ok());
    // What was written on the way is not listed.
    assert_eq!(keys(&*store, "", None).await, ["s/lease"]);
    let listed = store.workarounds("s").await.unwrap();
    assert!(listed[0].contains("fails every If-Match"), "{listed:?}");
    assert!(behind.bucket.store().workarounds("s").await.unwrap().is_empty());
}

/// Parts wait where the store is throttled, and arrive.
#[tokio::test]
async fn throttled_parts_arrive() {
    let behind = Behind::make(Manner::Throttles).await;
    let store = behind.store();
    let mut upload = store.upload("s/large").await.unwrap();
    let bytes = pattern(16 * MIB);
    write_in_pieces(&mut upload, &bytes, MIB).await;
    // Small objects do not wait with them.
    create(&*store, "s/segment", b"x").await;
    upload.finish().await.unwrap();
    assert!(read_all(&*store, "s/large").await == bytes);
    let parts = behind.proxy.seen().iter().filter(|r| r.query.contains("partNumber=")).count();
    assert!(parts > 4, "{parts} requests for 4 parts");
}

#[tokio::test]
async fn large_objects_go_in_parts_and_small_ones_whole() {
    let bucket = Bucket::make().await;
    let store = bucket.store();
    // S3 ends the ETag of an object that came in parts with their number.
    for (size, ending) in [
        (1, None),
        (5 * MIB - 1, None),
        (5 * MIB, Some("-1\"")),
        (12 * MIB, Some("-3\"")),
    ] {
        let key = size.to_string();
        let mut upload = store.upload(&key).await.unwrap();
        write_in_pieces(&mut upload, &pattern(size), MIB).await;
        upload.finish().await.unwrap();
        let etag = store.get(&key).await.unwrap().1.0;
        assert_eq!(etag.find('-').map(|at| &etag[at..]), ending, "{size} bytes have {etag}");
    }
}

#[tokio::test]
async fn nothing_is_left_to_pay_for_by_uploads_that_ended() {
    let bucket = Bucket::make().await;
    let store = bucket.store();
    let mut uploads = Vec::new();
    for key in ["finished", "lost", "aborted", "dropped"] {
        let mut upload = store.upload(key).await.unwrap();
        upload.write(pattern(9 * MIB)).await.unwrap();
        uploads.push(upload);
    }
    assert_eq!(bucket.unfinished().await, 4);
    let dropped = uploads.pop().unwrap();
    uploads.pop().unwrap().abort().await;
    create(&*store, "lost", b"x").await;
    assert!(uploads.pop().unwrap().finish().await.unwrap_err().is_already_exists());
    uploads.pop().unwrap().finish().await.unwrap();
    assert_eq!(bucket.unfinished().await, 1);

    drop(dropped);
    let deadline = Instant::now() + CALL_TIMEOUT;
    while bucket.unfinished().await > 0 {
        assert!(Instant::now() < deadline, "a dropped upload was not aborted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn works_with_few_checksums_and_without_a_prefix() {
    let bucket = Bucket::make().await;
    let store = bucket.store_at("", Checksums::WhenRequired);
    create(&*store, "small", b"x").await;
    let mut upload = store.upload("large").await.unwrap();
    upload.write(pattern(9 * MIB)).await.unwrap();
    upload.finish().await.unwrap();
    assert!(read_all(&*store, "large").await == pattern(9 * MIB));
    assert_eq!(keys(&*store, "", None).await, ["large", "small"]);
}

#[tokio::test]
async fn sees_only_its_prefix_and_no_placeholders() {
    let bucket = Bucket::make().await;
    let (store, beside) = (
        bucket.store_at("a", Checksums::default()),
        bucket.store_at("ab", Checksums::default()),
    );
    create(&*store, "b/c", b"mine").await;
    create(&*beside, "b/c", b"beside").await;
    for placeholder in ["a/", "a/b/"] {
        bucket
            .client
            .put_object()
            .bucket(&bucket.name)
            .key(placeholder)
            .send()
            .await
            .unwrap();
    }
    assert_eq!(keys(&*store, "", None).await, ["b/c"]);
    assert_eq!(content(&*store, "b/c").await, "mine");
}

#[tokio::test]
async fn a_missing_bucket_is_refused_and_not_an_empty_store() {
    let options = S3Options {
        bucket: "nobodys".into(),
        path_style: true,
        ..S3Options::default()
    };
    let store = S3Store::new(&sdk_config(&MOTO.endpoint), options).unwrap();
    let refused = |error: Option<StoreError>| {
        let text = error.as_ref().map(ToString::to_string).unwrap_or_default();
        assert!(matches!(error, Some(StoreError::Refused { .. })), "{error:?}");
        assert!(
            text.starts_with("store s3://nobodys refused to ")
                && text.contains("create the bucket `nobodys`, or correct the URL"),
            "{text}"
        );
    };
    refused(store.put("a", Bytes::new(), Put::IfAbsent).await.err());
    refused(store.get("a").await.err());
    refused(store.read("a", 0).await.err());
    refused(store.list("", None).await.err());
    refused(store.delete("a").await.err());
    let mut upload = store.upload("a").await.unwrap();
    refused(upload.write(pattern(9 * MIB)).await.err());
}

#[tokio::test]
async fn no_region_is_refused() {
    let shared = SdkConfig::builder().behavior_version(BehaviorVersion::latest()).build();
    let error = S3Store::new(
        &shared,
        S3Options {
            bucket: "b".into(),
            ..S3Options::default()
        },
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "store s3://b refused to open: no region is known; set `region` to the bucket's, or AWS_REGION"
    );
}

fn store_on(listener: &TcpListener) -> S3Store {
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let options = S3Options {
        bucket: "b".into(),
        path_style: true,
        ..S3Options::default()
    };
    S3Store::new(&sdk_config(&endpoint), options).unwrap()
}

#[tokio::test]
async fn an_absent_server_is_a_failure_that_may_pass() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let store = store_on(&listener);
    drop(listener);
    let error = store.get("k").await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    let said = format!(
        "{error:?} {:#} {store:?}",
        anyhow::Error::from(store.get("k").await.unwrap_err())
    );
    assert!(
        said.contains("store s3://b failed to get k") && said.contains("Connection refused"),
        "{said}"
    );
    assert!(!said.contains(SECRET) && !said.contains("AKIDTEST"), "{said}");
}

/// The system takes the connection, nobody reads from it: what a firewall that has lost its state looks like.
#[tokio::test]
async fn a_silent_server_ends_in_an_error_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let store = store_on(&listener);
    let limit = store::call_timeout(MIB as u64) + Duration::from_secs(5);
    let calls = async {
        tokio::join!(
            store.get("k"),
            store.put("k", pattern(MIB), Put::IfAbsent),
            store.list("", None)
        )
    };
    let (got, put, listed) = tokio::time::timeout(limit, calls).await.expect("every call ends in time");
    for error in [got.unwrap_err(), put.unwrap_err(), listed.unwrap_err()] {
        assert!(error.is_transient(), "{error:?}");
    }
}

const IN_CHILD: &str = "MYSQL_PITR_TEST_BUCKET";

/// The keys come from the environment as on a server. In a process of its own: an environment is shared by all tests.
#[tokio::test]
async fn opens_a_url_with_the_keys_of_the_environment() {
    if let Ok(bucket) = env::var(IN_CHILD) {
        let options = StoreOptions {
            endpoint: env::var("TEST_ENDPOINT").ok(),
            path_style: true,
            ..StoreOptions::default()
        };
        let store = store::open(&format!("s3://{bucket}/a/b/"), &options).await.unwrap();
        assert_eq!(store.url(), format!("s3://{bucket}/a/b"));
        create(&*store, "k", b"from the child").await;
        return;
    }
    let bucket = Bucket::make().await;
    let output = Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "store_conformance::s3::opens_a_url_with_the_keys_of_the_environment",
            "--nocapture",
        ])
        .envs([
            ("AWS_ACCESS_KEY_ID", "AKIDTEST"),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_REGION", REGION),
        ])
        .envs([(IN_CHILD, bucket.name.as_str()), ("TEST_ENDPOINT", &MOTO.endpoint)])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(
        content(&*bucket.store_at("a/b", Checksums::default()), "k").await,
        "from the child"
    );
}
