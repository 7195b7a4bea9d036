//! A store in memory, for simulations: strongly consistent, its writes recorded.

use std::{
    collections::BTreeMap,
    io::Cursor,
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use mysql_pitr::store::{GET_BYTES_MAX, ObjectMeta, ObjectReader, Put, Store, StoreError, Upload, Version, key};
use tokio::task::yield_now;

pub const URL: &str = "memory://";

#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    objects: Arc<Mutex<Objects>>,
}

#[derive(Debug, Default)]
struct Objects {
    by_key: BTreeMap<String, (Bytes, u64)>,
    next_version: u64,
    /// Keys in the order of their creation.
    created: Vec<String>,
    changed: Vec<String>,
}

impl MemoryStore {
    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap()
    }

    /// Every key that was created, in order.
    pub fn created(&self) -> Vec<String> {
        self.objects().created.clone()
    }

    /// What was replaced or deleted.
    pub fn changed(&self) -> Vec<String> {
        self.objects().changed.clone()
    }

    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let objects = self.objects();
        let from = objects.by_key.range(prefix.to_owned()..);
        from.map(|(key, _)| key.clone())
            .take_while(|key| key.starts_with(prefix))
            .collect()
    }

    pub fn object(&self, key: &str) -> Option<Bytes> {
        self.objects().by_key.get(key).map(|(bytes, _)| bytes.clone())
    }

    fn put_now(&self, key: &str, bytes: Bytes, condition: &Put) -> Result<Version, StoreError> {
        let mut objects = self.objects();
        let (url, key) = (URL.to_owned(), key.to_owned());
        let there = objects.by_key.get(&key).map(|(_, version)| version_of(*version));
        match (condition, there) {
            (Put::IfAbsent, None) => objects.created.push(key.clone()),
            (Put::IfAbsent, Some(_)) => return Err(StoreError::AlreadyExists { url, key }),
            (Put::IfMatch(wanted), Some(there)) if *wanted == there => objects.changed.push(key.clone()),
            (Put::IfMatch(_), _) => return Err(StoreError::Precondition { url, key }),
        }
        objects.next_version += 1;
        let version = objects.next_version;
        objects.by_key.insert(key, (bytes, version));
        Ok(version_of(version))
    }

    fn get_now(&self, key: &str) -> Result<(Bytes, Version), StoreError> {
        let objects = self.objects();
        let (bytes, version) = objects.by_key.get(key).ok_or_else(|| StoreError::NotFound {
            url: URL.to_owned(),
            key: key.to_owned(),
        })?;
        Ok((bytes.clone(), version_of(*version)))
    }
}

fn version_of(version: u64) -> Version {
    Version(version.to_string())
}

#[async_trait]
impl Store for MemoryStore {
    fn url(&self) -> &str {
        URL
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: Put) -> Result<Version, StoreError> {
        key::check(URL, "put", key)?;
        yield_now().await;
        self.put_now(key, bytes, &condition)
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        key::check(URL, "put", key)?;
        Ok(Box::new(MemoryUpload {
            store: self.clone(),
            key: key.to_owned(),
            bytes: Some(BytesMut::new()),
        }))
    }

    async fn get(&self, key: &str) -> Result<(Bytes, Version), StoreError> {
        key::check(URL, "get", key)?;
        yield_now().await;
        let (bytes, version) = self.get_now(key)?;
        if bytes.len() as u64 > GET_BYTES_MAX {
            return Err(StoreError::TooLarge {
                url: URL.to_owned(),
                key: key.to_owned(),
                size_bytes: bytes.len() as u64,
                limit_bytes: GET_BYTES_MAX,
            });
        }
        Ok((bytes, version))
    }

    async fn read(&self, key: &str, from: u64) -> Result<ObjectReader, StoreError> {
        key::check(URL, "read", key)?;
        yield_now().await;
        let (mut bytes, _) = self.get_now(key)?;
        if from > bytes.len() as u64 {
            return Err(failed(format!("read {key}"), "it is shorter"));
        }
        Ok(Box::new(Cursor::new(bytes.split_off(from as usize))))
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<ObjectMeta>, StoreError> {
        key::check_prefix(URL, prefix)?;
        yield_now().await;
        let objects = self.objects();
        let listed = objects
            .by_key
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(key, _)| start_after.is_none_or(|after| key.as_str() > after))
            .map(|(key, (bytes, _))| ObjectMeta {
                key: key.clone(),
                size_bytes: bytes.len() as u64,
                modified_us: None,
            });
        Ok(listed.collect())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        key::check(URL, "delete", key)?;
        yield_now().await;
        let mut objects = self.objects();
        if objects.by_key.remove(key).is_some() {
            objects.changed.push(key.to_owned());
        }
        Ok(())
    }
}

pub fn failed(operation: String, why: &str) -> StoreError {
    StoreError::Failed {
        url: URL.to_owned(),
        operation,
        source: why.into(),
    }
}

struct MemoryUpload {
    store: MemoryStore,
    key: String,
    /// None once a write of it was given up.
    bytes: Option<BytesMut>,
}

impl MemoryUpload {
    fn take(&mut self) -> Result<BytesMut, StoreError> {
        self.bytes
            .take()
            .ok_or_else(|| failed(format!("put {}", self.key), "an earlier write of it failed or was given up"))
    }
}

#[async_trait]
impl Upload for MemoryUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let mut whole = self.take()?;
        yield_now().await;
        whole.extend_from_slice(&bytes);
        self.bytes = Some(whole);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        let whole = self.take()?;
        yield_now().await;
        self.store.put_now(&self.key, whole.freeze(), &Put::IfAbsent).map(drop)
    }

    async fn abort(self: Box<Self>) {}
}
