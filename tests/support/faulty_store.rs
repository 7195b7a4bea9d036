//! A store that fails in every way that one can, by seed: before a request takes effect and after, late, throttled, silent, in the middle
//! of an upload, and with listings that miss what is new.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use mysql_pitr::store::{CALL_TIMEOUT, ObjectMeta, ObjectReader, Put, SharedStore, Store, StoreError, Upload, Version};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::time::{Instant, sleep};

use super::memory_store::failed;

/// How likely each fault is, of 1000 requests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    pub before: u32,
    pub after: u32,
    pub hang: u32,
    pub throttle: u32,
    pub stale: u32,
    pub latency_ms_max: u64,
}

/// Listings miss objects that are younger, where they are stale.
const STALE_MAX: Duration = Duration::from_secs(2);

/// How many of the PUTs that failed take effect all the same, after their client was told.
const LATE: f64 = 0.1;
const LATE_MS_MAX: u64 = 5_000;

#[derive(Debug)]
struct Shared {
    inner: SharedStore,
    random: Mutex<SmallRng>,
    faults: Mutex<Faults>,
    born: Mutex<BTreeMap<String, Instant>>,
    writing: AtomicUsize,
    writing_max: AtomicUsize,
}

/// What one process sees of the store. Kill it, and its requests no longer get anywhere.
#[derive(Debug, Clone)]
pub struct FaultyStore {
    shared: Arc<Shared>,
    dead: Arc<AtomicBool>,
}

enum Fate {
    Served,
    Before(&'static str),
    After,
}

impl FaultyStore {
    pub fn new(inner: SharedStore, seed: u64) -> FaultyStore {
        let shared = Shared {
            inner,
            random: Mutex::new(SmallRng::seed_from_u64(seed)),
            faults: Mutex::default(),
            born: Mutex::default(),
            writing: AtomicUsize::new(0),
            writing_max: AtomicUsize::new(0),
        };
        FaultyStore {
            shared: Arc::new(shared),
            dead: Arc::default(),
        }
    }

    /// The same store, seen by another process.
    pub fn another(&self) -> FaultyStore {
        FaultyStore {
            shared: self.shared.clone(),
            dead: Arc::default(),
        }
    }

    pub fn kill(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    pub fn set(&self, faults: Faults) {
        *self.shared.faults.lock().unwrap() = faults;
    }

    /// The most writes that were under way at the same time.
    pub fn writing_max(&self) -> usize {
        self.shared.writing_max.load(Ordering::Relaxed)
    }

    fn random(&self) -> MutexGuard<'_, SmallRng> {
        self.shared.random.lock().unwrap()
    }

    async fn dies_here(&self) {
        if self.dead.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    }

    /// Waits, and decides what becomes of a request.
    async fn fate(&self) -> Fate {
        self.dies_here().await;
        let faults = *self.shared.faults.lock().unwrap();
        let (roll, latency_ms, in_flight) = {
            let mut random = self.random();
            (
                random.random_range(0..1000u32),
                random.random_range(0..=faults.latency_ms_max),
                random.random_bool(0.5),
            )
        };
        let bounds = [faults.before, faults.after, faults.hang, faults.throttle];
        let mut sum = 0;
        let fault = bounds.iter().position(|bound| {
            sum += bound;
            roll < sum
        });
        sleep(match fault {
            Some(2) => CALL_TIMEOUT,
            _ => Duration::from_millis(latency_ms),
        })
        .await;
        // A request that was on its way when its process died arrives, or does not.
        if !in_flight {
            self.dies_here().await;
        }
        match fault {
            None => Fate::Served,
            Some(0) => Fate::Before("connection refused"),
            Some(1) => Fate::After,
            Some(2) if in_flight => Fate::After,
            Some(2) => Fate::Before("no answer in time"),
            Some(_) => Fate::Before("503 SlowDown: please reduce your request rate"),
        }
    }

    async fn request<T>(&self, operation: String, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let fate = self.fate().await;
        let result = match fate {
            Fate::Before(why) => {
                tracing::info!(target: "sim", "store: {operation}: {why}");
                Err(failed(operation, why))
            }
            Fate::Served => call.await,
            Fate::After => match call.await {
                Ok(_) => {
                    tracing::info!(target: "sim", "store: {operation}: done, and the answer lost");
                    Err(failed(operation, "the connection broke before the answer"))
                }
                error => error,
            },
        };
        self.dies_here().await;
        result
    }

    async fn put_now(&self, key: &str, bytes: Bytes, condition: Put) -> Result<Version, StoreError> {
        let put = self.shared.inner.put(key, bytes, condition).await;
        if put.is_ok() {
            self.is_born(key);
            tracing::info!(target: "sim", "store: put {key}");
        }
        put
    }

    fn is_born(&self, key: &str) {
        self.shared
            .born
            .lock()
            .unwrap()
            .entry(key.to_owned())
            .or_insert_with(Instant::now);
    }
}

/// Counts the writes that are under way.
struct Writing<'s>(&'s Shared);

impl<'s> Writing<'s> {
    fn begin(shared: &'s Shared) -> Writing<'s> {
        let now = shared.writing.fetch_add(1, Ordering::Relaxed) + 1;
        shared.writing_max.fetch_max(now, Ordering::Relaxed);
        Writing(shared)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.writing.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl Store for FaultyStore {
    fn url(&self) -> &str {
        self.shared.inner.url()
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: Put) -> Result<Version, StoreError> {
        self.dies_here().await;
        let _writing = Writing::begin(&self.shared);
        let put = self
            .request(format!("put {key}"), self.put_now(key, bytes.clone(), condition.clone()))
            .await;
        if put.as_ref().is_err_and(StoreError::is_transient) && self.random().random_bool(LATE) {
            let (late, key, delay_ms) = (self.clone(), key.to_owned(), self.random().random_range(0..LATE_MS_MAX));
            tokio::spawn(async move {
                sleep(Duration::from_millis(delay_ms)).await;
                let _ = late.put_now(&key, bytes, condition).await;
            });
        }
        put
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        let upload = self.request(format!("begin {key}"), self.shared.inner.upload(key)).await?;
        Ok(Box::new(FaultyUpload {
            store: self.clone(),
            key: key.to_owned(),
            upload: Some(upload),
        }))
    }

    async fn get(&self, key: &str) -> Result<(Bytes, Version), StoreError> {
        self.request(format!("get {key}"), self.shared.inner.get(key)).await
    }

    async fn read(&self, key: &str, from: u64) -> Result<ObjectReader, StoreError> {
        self.request(format!("read {key}"), self.shared.inner.read(key, from)).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<ObjectMeta>, StoreError> {
        let mut listed = self
            .request(format!("list {prefix}"), self.shared.inner.list(prefix, start_after))
            .await?;
        let stale = self.shared.faults.lock().unwrap().stale;
        if self.random().random_range(0..1000) < stale {
            let before = listed.len();
            let born = self.shared.born.lock().unwrap();
            listed.retain(|o| born.get(&o.key).is_none_or(|at| at.elapsed() > STALE_MAX));
            if listed.len() < before {
                tracing::info!(target: "sim", "store: list {prefix} misses {}", before - listed.len());
            }
        }
        Ok(listed)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.request(format!("delete {key}"), self.shared.inner.delete(key)).await
    }
}

struct FaultyUpload {
    store: FaultyStore,
    key: String,
    /// None once it broke.
    upload: Option<Box<dyn Upload>>,
}

#[async_trait]
impl Upload for FaultyUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let operation = format!("write {}", self.key);
        let Some(mut upload) = self.upload.take() else {
            return Err(failed(operation, "an earlier write of it failed or was given up"));
        };
        self.store.request(operation, upload.write(bytes)).await?;
        self.upload = Some(upload);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        let operation = format!("finish {}", self.key);
        let Some(upload) = self.upload.take() else {
            return Err(failed(operation, "an earlier write of it failed or was given up"));
        };
        self.store.dies_here().await;
        let _writing = Writing::begin(&self.store.shared);
        let finish = async {
            upload.finish().await?;
            self.store.is_born(&self.key);
            tracing::info!(target: "sim", "store: finish {}", self.key);
            Ok(())
        };
        self.store.request(operation, finish).await
    }

    async fn abort(self: Box<Self>) {
        if let Some(upload) = self.upload {
            upload.abort().await;
        }
    }
}
