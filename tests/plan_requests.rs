//! How much a plan asks of a store.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use mysql_pitr::{
    binlog::gtid::GtidSet,
    recover::{plan::Request, target::Target},
    store::{ObjectMeta, ObjectReader, Put, SharedStore, Store, StoreError, Upload, Version},
};

use crate::support::made::{Made, gtid, gtids};

/// A store that counts what it is asked to list: calls, and keys below `segments/`.
#[derive(Debug)]
struct Listed {
    store: SharedStore,
    calls: AtomicUsize,
    segments: AtomicUsize,
}

impl Listed {
    fn note<T>(&self, prefix: &str, listed: &[T]) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if prefix.contains("/segments/") {
            self.segments.fetch_add(listed.len(), Ordering::Relaxed);
        }
    }
}

#[async_trait]
impl Store for Listed {
    fn url(&self) -> &str {
        self.store.url()
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: Put) -> Result<Version, StoreError> {
        self.store.put(key, bytes, condition).await
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        self.store.upload(key).await
    }

    async fn get(&self, key: &str) -> Result<(Bytes, Version), StoreError> {
        self.store.get(key).await
    }

    async fn read(&self, key: &str, from: u64) -> Result<ObjectReader, StoreError> {
        self.store.read(key, from).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<ObjectMeta>, StoreError> {
        let listed = self.store.list(prefix, start_after).await?;
        self.note(prefix, &listed);
        Ok(listed)
    }

    async fn folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let listed = self.store.folders(prefix).await?;
        self.note(prefix, &listed);
        Ok(listed)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.store.delete(key).await
    }
}

/// Segments of what is sealed stay for days, one a second: a plan that listed them would take minutes.
#[tokio::test]
async fn segments_of_what_is_sealed_are_not_listed() {
    const PER_BINLOG: u64 = 30;
    // Timelines, snapshots, sealed binlogs; servers, their binlogs, and the one that is not sealed.
    const CALLS: usize = 6;
    for sealed in [1, 20] {
        let mut made = Made::new();
        made.timeline(1, None, 1, GtidSet::new(), GtidSet::new());
        made.snapshot("a", 1, 1, gtids(1, 1, 5), 55);
        let mut last = 0;
        for number in 1..=sealed + 1 {
            let before = gtids(1, 1, last);
            let holds: Vec<_> = (last + 1..=last + PER_BINLOG).map(|n| (gtid(1, n), n as i64)).collect();
            made.tail(1, 1, number, before.clone(), &holds);
            if number <= sealed {
                made.sealed(1, 1, number, before, &holds);
            }
            last += PER_BINLOG;
        }
        let listed = Arc::new(Listed {
            store: made.archive.store.clone(),
            calls: AtomicUsize::new(0),
            segments: AtomicUsize::new(0),
        });
        made.archive.store = listed.clone();
        let plan = made.plan(&Request::new(Target::Latest)).await.unwrap();
        assert_eq!(plan.target_gtids, gtids(1, 1, last));
        assert_eq!(listed.calls.load(Ordering::Relaxed), CALLS, "{sealed} sealed");
        let (servers, binlogs, opening) = (1, sealed as usize + 1, 1);
        let expected = servers + binlogs + PER_BINLOG as usize + opening;
        assert_eq!(listed.segments.load(Ordering::Relaxed), expected, "{sealed} sealed");
    }
}
