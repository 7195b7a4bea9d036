//! A process that may die after any of its deeds: a store, and an EC2 of two regions in memory.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use mysql_pitr::{
    store::{ObjectMeta, ObjectReader, Put, SharedStore, Store, StoreError, Upload, Version},
    volume::{
        cloud::{Cause, Cloud, CloudError, Made, MadeState, Order, SOURCE_TAG, Subject, Tags, VolumeFacts},
        marks,
    },
};

use super::{ebs_stage::HOME, made::at, node::SHARD};

/// EC2, in memory.
#[derive(Debug, Default)]
pub struct Memory {
    there: Mutex<Vec<(String, Made)>>,
}

impl Memory {
    pub fn make(&self, region: &str, volume_id: &str, description: String, tags: &Tags) -> Made {
        let mut there = self.there.lock().unwrap();
        let made = Made {
            snapshot_id: format!("snap-{:04}", there.len()),
            volume_id: volume_id.to_owned(),
            description,
            started_at_us: Some(at(0)),
            state: MadeState::Complete,
            percent: None,
            encrypted: None,
            kms_key: None,
            tags: tags.clone(),
        };
        there.push((region.to_owned(), made.clone()));
        made
    }

    pub fn those(&self, region: &str, which: impl Fn(&Made) -> bool) -> Vec<Made> {
        let there = self.there.lock().unwrap();
        there
            .iter()
            .filter(|(r, m)| r == region && which(m))
            .map(|(_, m)| m.clone())
            .collect()
    }
}

/// So many things may still be done to the store and to EC2; then the process is dead.
#[derive(Debug, Clone)]
pub struct Life(Arc<AtomicUsize>);

impl Life {
    pub fn of(deeds: usize) -> Life {
        Life(Arc::new(AtomicUsize::new(deeds)))
    }

    fn is_over(&self) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_err()
    }
}

#[derive(Debug)]
pub struct Mortal<T> {
    pub of: T,
    pub life: Life,
}

impl Mortal<Arc<Memory>> {
    fn live(&self) -> Result<(), CloudError> {
        match self.life.is_over() {
            false => Ok(()),
            true => Err(CloudError {
                cause: Cause::Unanswered,
                error: anyhow::anyhow!("dead"),
            }),
        }
    }
}

#[async_trait]
impl Cloud for Mortal<Arc<Memory>> {
    async fn home_region(&self) -> anyhow::Result<String> {
        Ok(HOME.to_owned())
    }

    async fn machine(&self) -> Option<String> {
        None
    }

    async fn facts(&self, _volumes: &[String]) -> Result<Vec<VolumeFacts>, CloudError> {
        unreachable!("prune does not ask for it")
    }

    async fn order(&self, _volumes: &[VolumeFacts]) -> Result<Order, CloudError> {
        unreachable!("prune does not ask for it")
    }

    async fn rehearse(&self, _order: &Order) -> Result<(), CloudError> {
        unreachable!("prune does not ask for it")
    }

    async fn create(&self, _order: &Order, subject: &Subject, _limit: Duration) -> Result<Vec<Made>, CloudError> {
        let made = |volume: &String| self.of.make(HOME, volume, subject.description.clone(), &subject.tags);
        Ok(subject.volumes.iter().map(made).collect())
    }

    async fn find(&self, region: &str, operation: &str) -> Result<Vec<Made>, CloudError> {
        Ok(self.of.those(region, |m| marks::bears(m, SHARD, operation)))
    }

    async fn copy(&self, snapshot_id: &str, region: &str, tags: &Tags) -> Result<String, CloudError> {
        let mut tags = tags.clone();
        tags.insert(SOURCE_TAG.to_owned(), snapshot_id.to_owned());
        let description = marks::copy_description(snapshot_id, HOME);
        Ok(self.of.make(region, "vol-ffffffff", description, &tags).snapshot_id)
    }

    async fn of_shard(&self, region: &str, shard: &str) -> Result<Vec<Made>, CloudError> {
        self.live()?;
        Ok(self.of.those(region, |m| marks::operation(m, shard).is_some()))
    }

    async fn named(&self, region: &str, ids: &[String]) -> Result<Vec<Made>, CloudError> {
        self.live()?;
        Ok(self.of.those(region, |m| ids.contains(&m.snapshot_id)))
    }

    async fn rehearse_delete(&self, _region: &str, _snapshot_id: &str) -> Result<(), CloudError> {
        self.live()
    }

    async fn delete(&self, region: &str, snapshot_id: &str) -> Result<(), CloudError> {
        self.live()?;
        let mut there = self.of.there.lock().unwrap();
        there.retain(|(r, m)| !(r == region && m.snapshot_id == snapshot_id));
        Ok(())
    }
}

#[async_trait]
impl Store for Mortal<SharedStore> {
    fn url(&self) -> &str {
        self.of.url()
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: Put) -> Result<Version, StoreError> {
        self.live(key)?;
        self.of.put(key, bytes, condition).await
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        self.of.upload(key).await
    }

    async fn get(&self, key: &str) -> Result<(Bytes, Version), StoreError> {
        self.of.get(key).await
    }

    async fn read(&self, key: &str, from: u64) -> Result<ObjectReader, StoreError> {
        self.of.read(key, from).await
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<ObjectMeta>, StoreError> {
        self.of.list(prefix, start_after).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.live(key)?;
        self.of.delete(key).await
    }
}

impl Mortal<SharedStore> {
    fn live(&self, key: &str) -> Result<(), StoreError> {
        match self.life.is_over() {
            false => Ok(()),
            // Nobody tries again after it.
            true => Err(StoreError::Precondition {
                url: String::new(),
                key: key.to_owned(),
            }),
        }
    }
}
