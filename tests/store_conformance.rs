//! What every store must do, tried on each of them; then what only one kind can do.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use mysql_pitr::store::{GET_BYTES_MAX, Put, SharedStore, Store, StoreError, Upload, Version};
use tokio::io::AsyncReadExt;

mod filesystem;
mod memory;
#[cfg(feature = "aws")]
mod s3;

/// Runs every case on the stores that `$fixture` makes; a fixture lives as long as its case.
macro_rules! conformance {
    ($fixture:expr) => {
        $crate::store_conformance::conformance!($fixture,
            an_object_comes_back_as_it_was_put,
            a_second_creation_loses_and_changes_nothing,
            one_of_many_racing_creations_wins,
            a_replacement_needs_the_current_version,
            one_of_many_racing_replacements_wins,
            a_missing_object_cannot_be_replaced,
            uploads_of_all_sizes_come_back,
            an_upload_does_not_replace,
            one_of_many_racing_uploads_wins,
            an_unfinished_upload_is_invisible,
            a_failed_upload_stays_failed,
            lists_in_bytewise_order_within_a_prefix,
            lists_more_than_a_page,
            tells_folders_without_what_is_in_them,
            what_is_too_large_to_get_can_be_read,
            deleting_is_idempotent,
            reading_starts_where_it_is_told,
            a_missing_object_is_not_found,
            hostile_keys_are_refused,
        );
    };
    ($fixture:expr, $($case:ident),* $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            let fixture = $fixture.await;
            $crate::store_conformance::$case(fixture.store()).await;
        })*
    };
}
pub(crate) use conformance;

const RACERS: usize = 16;
const MIB: usize = 1024 * 1024;

async fn create(store: &dyn Store, key: &str, bytes: &'static [u8]) -> Version {
    store.put(key, Bytes::from_static(bytes), Put::IfAbsent).await.unwrap()
}

async fn content(store: &dyn Store, key: &str) -> Bytes {
    store.get(key).await.unwrap().0
}

async fn keys(store: &dyn Store, prefix: &str, start_after: Option<&str>) -> Vec<String> {
    store
        .list(prefix, start_after)
        .await
        .unwrap()
        .into_iter()
        .map(|object| object.key)
        .collect()
}

/// Bytes of which no stretch looks like another, so that swapped or repeated parts show.
fn pattern(size: usize) -> Bytes {
    (0..size).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 13) as u8).collect()
}

async fn write_in_pieces(upload: &mut Box<dyn Upload>, bytes: &Bytes, piece: usize) {
    for start in (0..bytes.len()).step_by(piece) {
        upload
            .write(bytes.slice(start..bytes.len().min(start + piece)))
            .await
            .unwrap();
    }
}

async fn read_all(store: &dyn Store, key: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.read(key, 0).await.unwrap().read_to_end(&mut bytes).await.unwrap();
    bytes
}

async fn an_object_comes_back_as_it_was_put(store: SharedStore) {
    for (key, bytes) in [("empty", &b""[..]), ("a/b c/ü+%41.json", &b"\0\xff{}\r\n"[..])] {
        let put = create(&*store, key, bytes).await;
        let (got, version) = store.get(key).await.unwrap();
        assert_eq!(got, bytes);
        assert_eq!(version, put);
        assert_eq!(read_all(&*store, key).await, bytes);
        let listed = store.list(key, None).await.unwrap();
        assert_eq!(
            listed.iter().map(|o| (o.key.as_str(), o.size_bytes)).collect::<Vec<_>>(),
            [(key, bytes.len() as u64)]
        );
    }
}

async fn a_second_creation_loses_and_changes_nothing(store: SharedStore) {
    let first = create(&*store, "a/b", b"first").await;
    let error = store
        .put("a/b", Bytes::from_static(b"second"), Put::IfAbsent)
        .await
        .unwrap_err();
    assert!(error.is_already_exists() && !error.is_transient(), "{error:?}");
    assert_eq!(error.to_string(), format!("object {}/a/b exists already", store.url()));
    assert_eq!(store.get("a/b").await.unwrap(), (Bytes::from_static(b"first"), first));
}

/// Has every racer put under `key` at once. Returns what the one winner put; the others' errors must satisfy `lost`.
async fn race(store: &SharedStore, key: &'static str, condition: Put, lost: fn(&StoreError) -> bool) -> Bytes {
    let gate = Arc::new(tokio::sync::Barrier::new(RACERS));
    let racers: Vec<_> = (0..RACERS)
        .map(|racer| {
            let (store, gate, condition) = (Arc::clone(store), Arc::clone(&gate), condition.clone());
            tokio::spawn(async move {
                let bytes = Bytes::from(format!("racer {racer}"));
                gate.wait().await;
                // A conflict is a failure that may be tried again, and does not say who won.
                loop {
                    match store.put(key, bytes.clone(), condition.clone()).await {
                        Err(e) if e.is_transient() => continue,
                        put => return put.map(|_| bytes),
                    }
                }
            })
        })
        .collect();
    let mut winners = Vec::new();
    for racer in racers {
        match racer.await.unwrap() {
            Ok(bytes) => winners.push(bytes),
            Err(e) => assert!(lost(&e), "{e:?}"),
        }
    }
    assert_eq!(winners.len(), 1, "{winners:?} all won {key}");
    winners.remove(0)
}

async fn one_of_many_racing_creations_wins(store: SharedStore) {
    let winner = race(
        &store,
        "timelines/00000001.json",
        Put::IfAbsent,
        StoreError::is_already_exists,
    )
    .await;
    assert_eq!(content(&*store, "timelines/00000001.json").await, winner);
}

async fn a_replacement_needs_the_current_version(store: SharedStore) {
    let first = create(&*store, "lease", b"first").await;
    let second = store
        .put("lease", Bytes::from_static(b"second"), Put::IfMatch(first.clone()))
        .await
        .unwrap();
    assert_ne!(first, second);
    let error = store
        .put("lease", Bytes::from_static(b"third"), Put::IfMatch(first))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Precondition { .. }), "{error:?}");
    assert_eq!(store.get("lease").await.unwrap(), (Bytes::from_static(b"second"), second));
}

async fn one_of_many_racing_replacements_wins(store: SharedStore) {
    let current = create(&*store, "lease", b"nobody").await;
    let winner = race(&store, "lease", Put::IfMatch(current), |e| {
        matches!(e, StoreError::Precondition { .. })
    })
    .await;
    assert_eq!(content(&*store, "lease").await, winner);
}

async fn a_missing_object_cannot_be_replaced(store: SharedStore) {
    let version = create(&*store, "a", b"x").await;
    let error = store
        .put("b/c", Bytes::from_static(b"x"), Put::IfMatch(version))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Precondition { .. }), "{error:?}");
    assert_eq!(keys(&*store, "", None).await, ["a"]);
}

async fn uploads_of_all_sizes_come_back(store: SharedStore) {
    for (key, size, piece) in [
        ("0", 0, 1),
        ("1", 1, 1),
        ("8MiB", 8 * MIB, 8 * MIB),
        ("20MiB", 20 * MIB, 3 * MIB + 7),
    ] {
        let bytes = pattern(size);
        let mut upload = store.upload(key).await.unwrap();
        write_in_pieces(&mut upload, &bytes, piece).await;
        upload.finish().await.unwrap();
        assert!(read_all(&*store, key).await == bytes, "{key} came back changed");
        assert!(content(&*store, key).await == bytes, "{key} came back changed");
    }
}

async fn an_upload_does_not_replace(store: SharedStore) {
    for size in [3, 9 * MIB] {
        let key = format!("of {size}");
        let mut upload = store.upload(&key).await.unwrap();
        write_in_pieces(&mut upload, &pattern(size), MIB).await;
        create(&*store, &key, b"was here in between").await;
        let error = upload.finish().await.unwrap_err();
        assert!(error.is_already_exists(), "{error:?}");
        assert_eq!(content(&*store, &key).await, "was here in between");
    }
}

async fn one_of_many_racing_uploads_wins(store: SharedStore) {
    let gate = tokio::sync::Barrier::new(4);
    let racers = (0..4u8).map(|racer| {
        let (store, gate) = (&store, &gate);
        async move {
            let mut upload = store.upload("sealed").await.unwrap();
            upload.write(Bytes::from(vec![racer; 9 * MIB])).await.unwrap();
            gate.wait().await;
            (racer, upload.finish().await)
        }
    });
    let (won, lost): (Vec<_>, Vec<_>) = futures_util::future::join_all(racers)
        .await
        .into_iter()
        .partition(|(_, end)| end.is_ok());
    assert!(
        lost.iter().all(|(_, end)| end.as_ref().unwrap_err().is_already_exists()),
        "{lost:?}"
    );
    assert_eq!(won.len(), 1, "{won:?}");
    assert!(content(&*store, "sealed").await == vec![won[0].0; 9 * MIB]);
}

async fn an_unfinished_upload_is_invisible(store: SharedStore) {
    for size in [1, 9 * MIB] {
        let mut aborted = store.upload("aborted").await.unwrap();
        let mut dropped = store.upload("dropped").await.unwrap();
        for upload in [&mut aborted, &mut dropped] {
            upload.write(pattern(size)).await.unwrap();
        }
        assert!(keys(&*store, "", None).await.is_empty());
        aborted.abort().await;
        drop(dropped);
        assert!(keys(&*store, "", None).await.is_empty());
        assert!(store.get("aborted").await.unwrap_err().is_not_found());
        assert!(store.get("dropped").await.unwrap_err().is_not_found());
    }
}

/// An upload whose write was given up half way must not be finished without what that write held.
async fn a_failed_upload_stays_failed(store: SharedStore) {
    let mut upload = loop {
        let mut upload = store.upload("k").await.unwrap();
        let mut write = upload.write(pattern(9 * MIB));
        // On a busy machine it may be written before it is asked whether it is.
        let is_half_way = futures_util::poll!(write.as_mut()).is_pending();
        drop(write);
        if is_half_way {
            break upload;
        }
    };
    let error = upload.write(pattern(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::Failed { .. }), "{error:?}");
    assert!(upload.finish().await.is_err());
    assert!(store.get("k").await.unwrap_err().is_not_found());
}

async fn lists_in_bytewise_order_within_a_prefix(store: SharedStore) {
    let tricky = [
        "a-b",
        "a.b/c",
        "a/b",
        "a/b-c",
        "a/b.c/d/e",
        "a/b/c",
        "a0",
        "aa/b",
        "b",
        "Z/z",
        "a b/c",
        "ä/b",
        "~",
    ];
    // `a/b` cannot be an object and a folder at once everywhere.
    let sorted: BTreeSet<_> = tricky.into_iter().filter(|key| *key != "a/b").collect();
    stream::iter(&sorted)
        .for_each_concurrent(4, |key| async { drop(create(&*store, key, b"x").await) })
        .await;
    for prefix in ["", "a", "a/", "a/b", "a/b/", "a.", "a/b.c/d", "ä", "nothing/here", "z"] {
        let expected: Vec<_> = sorted.iter().copied().filter(|key| key.starts_with(prefix)).collect();
        assert_eq!(keys(&*store, prefix, None).await, expected, "prefix {prefix:?}");
        for after in sorted.iter().copied().chain(["0", "a/", "a/b", "a/b.c/", "zzz"]) {
            let expected: Vec<_> = expected.iter().copied().filter(|key| *key > after).collect();
            assert_eq!(
                keys(&*store, prefix, Some(after)).await,
                expected,
                "prefix {prefix:?} after {after:?}"
            );
        }
    }
}

async fn lists_more_than_a_page(store: SharedStore) {
    let names: Vec<_> = (0..1100).map(|i| format!("segments/{}/{i:04}", i % 2)).collect();
    stream::iter(&names)
        .map(Ok)
        .try_for_each_concurrent(16, |key| async {
            store.put(key, Bytes::from_static(b"x"), Put::IfAbsent).await.map(drop)
        })
        .await
        .unwrap();
    let sorted: BTreeSet<_> = names.into_iter().collect();
    assert!(keys(&*store, "", None).await.iter().eq(&sorted));
    assert!(
        keys(&*store, "segments/", Some("segments/0/0008"))
            .await
            .iter()
            .eq(sorted.iter().skip(5))
    );
}

async fn tells_folders_without_what_is_in_them(store: SharedStore) {
    let keys: Vec<String> = (0..1010)
        .map(|i| format!("s/segments/{i:04}/x"))
        .chain(["s/a-b/1/2", "s/a/b/c", "s/a/b/d", "s/a/e", "s/f", "t/g/h"].map(str::to_owned))
        .collect();
    stream::iter(&keys)
        .for_each_concurrent(16, |key| async { drop(create(&*store, key, b"x").await) })
        .await;
    let folders = async |prefix: &str| store.folders(prefix).await.unwrap();
    assert_eq!(folders("").await, ["s/", "t/"]);
    assert_eq!(folders("s/").await, ["s/a-b/", "s/a/", "s/segments/"]);
    assert_eq!(folders("s/a/").await, ["s/a/b/"]);
    assert_eq!(folders("s/segments/").await.len(), 1010);
    for nothing in ["s/a/b/", "s/f/", "u/"] {
        assert!(folders(nothing).await.is_empty(), "{nothing}");
    }
}

async fn what_is_too_large_to_get_can_be_read(store: SharedStore) {
    let size = GET_BYTES_MAX as usize + 1;
    let bytes = pattern(size);
    let mut upload = store.upload("large").await.unwrap();
    write_in_pieces(&mut upload, &bytes, MIB).await;
    upload.finish().await.unwrap();
    let error = store.get("large").await.unwrap_err();
    assert!(
        matches!(error, StoreError::TooLarge { size_bytes, .. } if size_bytes == size as u64),
        "{error:?}"
    );
    assert!(read_all(&*store, "large").await == bytes);
}

async fn deleting_is_idempotent(store: SharedStore) {
    for key in ["a/b/c", "a/d"] {
        create(&*store, key, b"x").await;
    }
    for _ in 0..2 {
        store.delete("a/b/c").await.unwrap();
        assert_eq!(keys(&*store, "", None).await, ["a/d"]);
    }
    store.delete("a").await.unwrap();
    store.delete("a/d/e").await.unwrap();
    assert_eq!(keys(&*store, "", None).await, ["a/d"]);
    create(&*store, "a/b/c", b"again").await;
    assert_eq!(content(&*store, "a/b/c").await, "again");
}

async fn reading_starts_where_it_is_told(store: SharedStore) {
    create(&*store, "a", b"0123456789").await;
    for from in [0, 1, 9] {
        let mut rest = Vec::new();
        store.read("a", from).await.unwrap().read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, &b"0123456789"[from as usize..]);
    }
}

async fn a_missing_object_is_not_found(store: SharedStore) {
    create(&*store, "a/b", b"x").await;
    for key in ["a", "b", "a/c", "a/b/c"] {
        let error = store.get(key).await.unwrap_err();
        assert!(error.is_not_found(), "{error:?}");
        assert_eq!(error.to_string(), format!("there is no object {}/{key}", store.url()));
        assert!(store.read(key, 0).await.err().unwrap().is_not_found());
    }
}

async fn hostile_keys_are_refused(store: SharedStore) {
    let long = "x".repeat(256);
    for key in [
        "",
        "/",
        "../a",
        "a/../../b",
        "a//b",
        "a/",
        "/a",
        ".",
        ".lock",
        ".tmp/a",
        "a/.b",
        "a\0b",
        "a\nb",
        &long,
    ] {
        let refused = |e: Option<StoreError>| assert!(matches!(e, Some(StoreError::Refused { .. })), "{key:?}: {e:?}");
        refused(store.put(key, Bytes::new(), Put::IfAbsent).await.err());
        refused(store.upload(key).await.err());
        refused(store.get(key).await.err());
        refused(store.read(key, 0).await.err());
        refused(store.delete(key).await.err());
    }
    for prefix in ["/", "../", "a//", ".tmp"] {
        let error = store.list(prefix, None).await.unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{prefix:?}: {error:?}");
    }
    assert!(keys(&*store, "", None).await.is_empty());
}
