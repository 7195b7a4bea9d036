//! A store whose failed calls are counted.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{ObjectMeta, ObjectReader, Put, SharedStore, Store, StoreError, Upload, Version};

/// Calls that failed: not those that a condition or an absent object answered.
#[derive(Debug, Clone, Default)]
pub struct Errors(Arc<AtomicU64>);

impl Errors {
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn note<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Failed { .. } | StoreError::Refused { .. }) = result {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

/// `store`, with its failures counted in `errors`.
pub fn counted(store: SharedStore, errors: Errors) -> SharedStore {
    Arc::new(Counted { store, errors })
}

#[derive(Debug)]
struct Counted {
    store: SharedStore,
    errors: Errors,
}

#[async_trait]
impl Store for Counted {
    fn url(&self) -> &str {
        self.store.url()
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: Put) -> Result<Version, StoreError> {
        self.errors.note(self.store.put(key, bytes, condition).await)
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        let upload = self.errors.note(self.store.upload(key).await)?;
        Ok(Box::new(CountedUpload {
            upload,
            errors: self.errors.clone(),
        }))
    }

    async fn get(&self, key: &str) -> Result<(Bytes, Version), StoreError> {
        self.errors.note(self.store.get(key).await)
    }

    async fn read(&self, key: &str, from: u64) -> Result<ObjectReader, StoreError> {
        self.errors.note(self.store.read(key, from).await)
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<ObjectMeta>, StoreError> {
        self.errors.note(self.store.list(prefix, start_after).await)
    }

    async fn folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.errors.note(self.store.folders(prefix).await)
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.errors.note(self.store.delete(key).await)
    }

    async fn workarounds(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.errors.note(self.store.workarounds(prefix).await)
    }
}

struct CountedUpload {
    upload: Box<dyn Upload>,
    errors: Errors,
}

#[async_trait]
impl Upload for CountedUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.errors.note(self.upload.write(bytes).await)
    }

    async fn finish(self: Box<Self>) -> Result<(), StoreError> {
        self.errors.note(self.upload.finish().await)
    }

    async fn abort(self: Box<Self>) {
        self.upload.abort().await;
    }
}
