//! What an operator sets about a bucket goes with every request that it concerns; what is locked stays; servers that are not AWS are worked with,
//! or refused.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc, time::Duration};

use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_s3::{
    Client,
    config::{Builder, Credentials, Region, SharedCredentialsProvider},
    types::{
        BucketLocationConstraint, CreateBucketConfiguration, ObjectLockLegalHold, ObjectLockLegalHoldStatus, ObjectLockMode,
        ServerSideEncryption,
    },
};
use axum::http::Method;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use md5::{Digest, Md5};
use mysql_pitr::{
    archive::{keys, listing::Archive},
    binlog::gtid::{Gtid, GtidSet},
    retention::{
        apply::{Applied, apply},
        holdings::Holdings,
        plan::{Kind, plan},
        rules::Rules,
    },
    store::{
        Checksums, Put, SharedStore, StoreError,
        options::{Encryption, Keeping, LockMode, ObjectLock, StorageClass},
        s3::{S3Options, S3Store},
    },
    support::{clock::now_us, progress::Progress},
};

use crate::support::{
    eventually,
    golden::assert_text,
    made::{Made, gtid, gtids},
    moto::{Moto, make_bucket, s3_node},
    mysql::Server,
    s3_proxy::{Manner, S3Proxy, Seen},
};

const REGION: &str = "eu-west-1";
const OWNER: &str = "123456789012";
const KEY_ID: &str = "arn:aws:kms:eu-west-1:123456789012:key/0a1b";
const DAY: Duration = Duration::from_hours(24);
const MIB: usize = 1024 * 1024;

fn sdk_config(endpoint: &str) -> SdkConfig {
    let keys = Credentials::new("AKIDTEST", "a-secret-that-nobody-prints", None, None, "tests");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .credentials_provider(SharedCredentialsProvider::new(keys))
        .endpoint_url(endpoint)
        .build()
}

/// A bucket with Object Lock, and so with versions.
async fn locking_bucket(moto: &Moto, name: &str) -> Client {
    let client = Client::from_conf(Builder::from(&sdk_config(&moto.endpoint)).force_path_style(true).build());
    let place = CreateBucketConfiguration::builder()
        .location_constraint(BucketLocationConstraint::from(REGION))
        .build();
    let made = client.create_bucket().bucket(name).create_bucket_configuration(place);
    made.object_lock_enabled_for_bucket(true).send().await.unwrap();
    client
}

fn store(endpoint: &str, bucket: &str, checksums: Checksums, keeping: Keeping) -> SharedStore {
    let options = S3Options {
        bucket: bucket.into(),
        path_style: true,
        checksums,
        expected_bucket_owner: Some(OWNER.into()),
        keeping,
        ..S3Options::default()
    };
    Arc::new(S3Store::new(&sdk_config(endpoint), options).unwrap())
}

fn keeping() -> Keeping {
    Keeping {
        encryption: Encryption::Kms {
            key_id: Some(KEY_ID.into()),
            bucket_key: true,
        },
        storage_class: StorageClass::StandardIa,
        lock: Some(ObjectLock {
            mode: LockMode::Governance,
            term: DAY * 35,
            unlocked_folders: &keys::SHORT_LIVED,
        }),
    }
}

/// One request of each kind.
async fn use_all(store: &SharedStore) {
    store
        .put("s/segments/u/1_b/0-9.zst", Bytes::from_static(b"tail"), Put::IfAbsent)
        .await
        .unwrap();
    let record = store
        .put("s/snapshots/1.json", Bytes::from_static(b"{}"), Put::IfAbsent)
        .await
        .unwrap();
    store
        .put("s/snapshots/1.json", Bytes::from_static(b"{ }"), Put::IfMatch(record))
        .await
        .unwrap();
    for (key, size) in [
        ("s/2026/large", 12 * MIB),
        ("s/2026/middling", 200 * 1024),
        ("s/2026/small", 1000),
    ] {
        let mut upload = store.upload(key).await.unwrap();
        upload.write(vec![7; size].into()).await.unwrap();
        upload.finish().await.unwrap();
    }
    let mut given_up = store.upload("s/2026/given-up").await.unwrap();
    given_up.write(vec![7; 6 * MIB].into()).await.unwrap();
    given_up.abort().await;
    store.get("s/snapshots/1.json").await.unwrap();
    store.read("s/2026/large", 5).await.unwrap();
    store.list("s/", None).await.unwrap();
    store.delete("s/segments/u/1_b/0-9.zst").await.unwrap();
}

/// Whether an object begins with this request.
fn begins_an_object(seen: &Seen) -> bool {
    seen.method == Method::PUT && !seen.query.contains("partNumber")
        || seen.method == Method::POST && seen.query.contains("uploads")
}

#[tokio::test]
async fn what_is_set_about_a_bucket_goes_with_every_request() {
    let moto = Moto::start();
    let client = locking_bucket(&moto, "kept").await;
    for checksums in [Checksums::WhenSupported, Checksums::WhenRequired] {
        let proxy = S3Proxy::start(&moto.endpoint, Manner::Plain).await;
        let bucket = format!("kept-{checksums:?}").to_lowercase();
        let client = match checksums {
            Checksums::WhenSupported => client.clone(),
            Checksums::WhenRequired => locking_bucket(&moto, &bucket).await,
        };
        let bucket = if checksums == Checksums::WhenSupported {
            "kept"
        } else {
            &bucket
        };
        use_all(&store(&proxy.endpoint, bucket, checksums, keeping())).await;
        let all = proxy.seen();
        let methods: BTreeSet<String> = all.iter().map(|r| r.method.to_string()).collect();
        assert_eq!(
            methods.into_iter().collect::<Vec<_>>(),
            ["DELETE", "GET", "HEAD", "POST", "PUT"]
        );
        for seen in &all {
            let what = format!("{} {}?{}", seen.method, seen.path, seen.query);
            assert_eq!(seen.header("x-amz-expected-bucket-owner"), Some(OWNER), "{what}");
            if seen.method == Method::PUT {
                let md5 = BASE64_STANDARD.encode(Md5::digest(&seen.body));
                match checksums {
                    Checksums::WhenRequired => assert_eq!(seen.header("content-md5"), Some(md5.as_str()), "{what}"),
                    Checksums::WhenSupported => assert!(seen.header("x-amz-checksum-crc32").is_some(), "{what}"),
                }
            }
            if !begins_an_object(seen) {
                continue;
            }
            assert_eq!(seen.header("x-amz-server-side-encryption"), Some("aws:kms"), "{what}");
            assert_eq!(
                seen.header("x-amz-server-side-encryption-aws-kms-key-id"),
                Some(KEY_ID),
                "{what}"
            );
            assert_eq!(
                seen.header("x-amz-server-side-encryption-bucket-key-enabled"),
                Some("true"),
                "{what}"
            );
            let is_large = ["large", "middling", "given-up"].iter().any(|name| seen.path.ends_with(name));
            assert_eq!(
                seen.header("x-amz-storage-class"),
                is_large.then_some("STANDARD_IA"),
                "{what}"
            );
            let is_locked = !seen.path.contains("/segments/");
            assert_eq!(
                seen.header("x-amz-object-lock-mode"),
                is_locked.then_some("GOVERNANCE"),
                "{what}"
            );
            assert_eq!(
                seen.header("x-amz-object-lock-retain-until-date").is_some(),
                is_locked,
                "{what}"
            );
        }
        for key in ["s/2026/large", "s/2026/middling", "s/snapshots/1.json"] {
            let head = client.head_object().bucket(bucket).key(key).send().await.unwrap();
            assert_eq!(head.server_side_encryption, Some(ServerSideEncryption::AwsKms), "{key}");
            // moto forgets the lock of what comes in parts; that it was asked for is seen above.
            if key.ends_with("large") {
                continue;
            }
            assert_eq!(head.object_lock_mode, Some(ObjectLockMode::Governance), "{key}");
            let until_us = head.object_lock_retain_until_date.unwrap().secs() * 1_000_000;
            let days = (until_us - now_us()) as f64 / DAY.as_micros() as f64;
            assert!((34.9..35.1).contains(&days), "{key}: {days} days");
        }
    }
}

#[tokio::test]
async fn nothing_is_said_about_encryption_and_locks_by_default() {
    let moto = Moto::start();
    make_bucket(&moto, "plain");
    let proxy = S3Proxy::start(&moto.endpoint, Manner::Plain).await;
    use_all(&store(&proxy.endpoint, "plain", Checksums::default(), Keeping::default())).await;
    for seen in proxy.seen() {
        let said = ["x-amz-server-side", "x-amz-object-lock", "x-amz-storage-class"];
        let extra = seen
            .headers
            .keys()
            .find(|name| said.iter().any(|s| name.as_str().starts_with(s)));
        assert!(extra.is_none(), "{} {}: {extra:?}", seen.method, seen.path);
    }
}

/// `first..=last` of server 1, one each hour.
fn run(first: u64, last: u64) -> Vec<(Gtid, i64)> {
    (first..=last).map(|n| (gtid(1, n), n as i64 * 3600)).collect()
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path))
        } else {
            files.push(path)
        }
    }
    files
}

/// What a legal hold or a retention keeps is named and stays, listed; the rest goes; what the lock no longer keeps goes the next time.
#[tokio::test]
async fn prune_leaves_what_is_locked_and_goes_on() {
    let moto = Moto::start();
    let client = locking_bucket(&moto, "locked").await;
    let made = Made::new();
    made.timeline(1, None, 1, GtidSet::new(), GtidSet::new());
    for (number, first, last) in [(1, 1, 10), (2, 11, 20), (3, 21, 30)] {
        made.sealed(1, 1, number, gtids(1, 1, first - 1), &run(first, last));
        made.tail(1, 1, number, gtids(1, 1, first - 1), &run(first, last));
    }
    made.snapshot("a", 1, 1, gtids(1, 1, 5), 5 * 3600 + 60);
    made.snapshot("b", 1, 1, gtids(1, 1, 25), 25 * 3600 + 60);
    let store = store(&moto.endpoint, "locked", Checksums::default(), Keeping::default());
    for path in files(made.dir.path()) {
        let key = path.strip_prefix(made.dir.path()).unwrap().to_str().unwrap();
        if !key.starts_with('.') {
            store.put(key, fs::read(&path).unwrap().into(), Put::IfAbsent).await.unwrap();
        }
    }
    let archive = Archive {
        store,
        ..made.archive.clone()
    };
    let rules = Rules {
        daily: 1,
        weekly: 0,
        monthly: 0,
        diverged: DAY,
        segments_grace: Duration::from_hours(1),
        orphans_grace: DAY,
    };
    let later_us = now_us() + 2 * i64::try_from(DAY.as_micros()).unwrap();
    let planned = async || plan(&archive.shard, &Holdings::of(&archive).await.unwrap(), &rules, later_us).unwrap();

    let first = planned().await;
    let kinds: BTreeSet<Kind> = first.deletions.iter().map(|d| d.kind).collect();
    assert_eq!(
        kinds.into_iter().collect::<Vec<_>>(),
        [Kind::Snapshot, Kind::Binlog, Kind::Segments]
    );
    let segments = first.deletions.iter().find(|d| d.kind == Kind::Segments).unwrap().clone();
    let record = keys::snapshot_key(&archive.shard, "a");
    let hold = |status| ObjectLockLegalHold::builder().status(status).build();
    let set_hold = async |key: &str, status| {
        let request = client.put_object_legal_hold().bucket("locked").key(key);
        request.legal_hold(hold(status)).send().await.unwrap();
    };
    set_hold(&record, ObjectLockLegalHoldStatus::On).await;
    set_hold(&segments.keys[1], ObjectLockLegalHoldStatus::On).await;

    let mut applied = Applied::default();
    apply(&archive, &first, None, &mut applied, &Progress::silent())
        .await
        .unwrap();
    let kept: Vec<(&str, &str)> = applied.locked.iter().map(|k| (k.key.as_str(), k.reason.as_str())).collect();
    assert_eq!(
        kept,
        [(record.as_str(), "a legal hold"), (segments.keys[1].as_str(), "a legal hold")]
    );
    assert!(applied.refused.is_empty(), "{:?}", applied.refused);
    let listed: BTreeSet<String> = archive
        .store
        .list("", None)
        .await
        .unwrap()
        .into_iter()
        .map(|o| o.key)
        .collect();
    assert!(listed.contains(&record) && listed.contains(&segments.keys[1]));
    assert!(
        segments.keys.iter().filter(|key| listed.contains(*key)).count() == 1,
        "the other segments went"
    );
    // With the snapshot stays what it needs.
    let binlogs = || {
        first
            .deletions
            .iter()
            .filter(|d| d.kind == Kind::Binlog)
            .flat_map(|d| &d.keys)
    };
    assert!(binlogs().all(|key| listed.contains(key)));
    let e = archive.store.delete(&record).await.unwrap_err();
    assert!(matches!(e, StoreError::Locked { .. }) && !e.is_transient(), "{e:?}");

    set_hold(&record, ObjectLockLegalHoldStatus::Off).await;
    set_hold(&segments.keys[1], ObjectLockLegalHoldStatus::Off).await;
    let mut applied = Applied::default();
    apply(&archive, &planned().await, None, &mut applied, &Progress::silent())
        .await
        .unwrap();
    assert!(applied.locked.is_empty(), "{:?}", applied.locked);
    assert!(planned().await.deletions.is_empty());
    // Versions: what was deleted is hidden behind a marker, and left to the bucket's lifecycle.
    let versions = client
        .list_object_versions()
        .bucket("locked")
        .prefix(&record)
        .send()
        .await
        .unwrap();
    assert_eq!((versions.versions().len(), versions.delete_markers().len()), (1, 1));
}

/// A retention keeps as a legal hold does, and is named with its end.
#[tokio::test]
async fn a_retention_is_named_with_its_end() {
    let moto = Moto::start();
    locking_bucket(&moto, "retained").await;
    let store = store(&moto.endpoint, "retained", Checksums::default(), keeping());
    store
        .put("s/timelines/1.json", Bytes::from_static(b"{}"), Put::IfAbsent)
        .await
        .unwrap();
    let e = store.delete("s/timelines/1.json").await.unwrap_err();
    let said = e.to_string();
    assert!(
        said.starts_with("object s3://retained/s/timelines/1.json is locked: until 20"),
        "{said}"
    );
    assert_eq!(store.list("", None).await.unwrap().len(), 1);
    store.delete("s/nothing.json").await.unwrap();
}

/// What `check` finds, and what the agent does, on servers that are not AWS.
#[tokio::test]
async fn other_servers_are_found_out_and_worked_with_or_refused() {
    let (server, moto) = (Server::start(&[]).await, Moto::start());
    for bucket in ["ceph", "garage", "old"] {
        make_bucket(&moto, bucket);
    }
    let store_lines = |text: String| -> String {
        let lines = text
            .lines()
            .skip_while(|l| !l.contains(" store "))
            .take_while(|l| !l.contains("state disk"));
        lines.map(|l| l.to_owned() + "\n").collect()
    };
    let said = async |manner: Manner, bucket: &str| {
        let proxy = S3Proxy::start(&moto.endpoint, manner).await;
        let node = s3_node(&server, &proxy.endpoint, &format!("s3://{bucket}"), "");
        let output = node.run(&["check"]).await;
        (proxy, node, store_lines(String::from_utf8(output.stdout).unwrap()))
    };
    let (_refusing, _node, old) = said(Manner::RefusesSdkChecksums, "old").await;
    assert_text("check: the store refuses the SDK's checksums", &old, &[]);
    let (_ignoring, garage_node, garage) = said(Manner::IgnoresConditions, "garage").await;
    assert_text("check: the store ignores conditions", &garage, &[]);
    let (_failing, ceph_node, ceph) = said(Manner::FailsIfMatch, "ceph").await;
    assert_text("check: the store fails every If-Match", &ceph, &[]);

    server
        .execute(&["CREATE DATABASE d", "CREATE TABLE d.t (id INT PRIMARY KEY)"])
        .await;
    let agent = garage_node.agent();
    eventually("the agent says why it does not ship", async || {
        agent.log().contains("the server ignores If-None-Match")
    })
    .await;
    agent.kill().await;
    let listing = garage_node.ok(&["list"]).await;
    assert!(listing.contains("the archive has no timeline yet"), "{listing}");

    let agent = ceph_node.agent();
    eventually("the first snapshot", async || {
        let listing = ceph_node.json(&["list"]).await;
        listing["snapshots"][0]["state"] == "complete"
    })
    .await;
    agent.stop().await;
}
