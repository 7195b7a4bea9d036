//! A snapshot's record while it is worked on: written by condition before anything is done that it tells of.

use std::time::Duration;

use anyhow::bail;
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::{
    archive::{keys, listing::Archive, records::Snapshot},
    store::{Put, StoreError, Version},
    support::{hint::message, retry::Backoff},
};

/// A store that is away for longer costs the snapshot that was begun.
const STORE_PATIENCE: Duration = Duration::from_mins(5);
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_LONGEST: Duration = Duration::from_secs(10);

/// A record, as it was last written or read.
#[derive(Debug)]
pub struct Kept {
    pub archive: Archive,
    pub record: Snapshot,
    version: Version,
}

impl Kept {
    /// # Errors
    /// Also where there is a snapshot of this name.
    pub async fn begin(archive: &Archive, record: Snapshot) -> anyhow::Result<Kept> {
        let id = record.id.clone();
        match write(archive, &record, Put::IfAbsent).await? {
            Some(version) => Ok(Kept {
                archive: archive.clone(),
                record,
                version,
            }),
            None => bail!("there is a snapshot {id} already"),
        }
    }

    pub async fn read(archive: &Archive, id: &str) -> anyhow::Result<Kept> {
        let (record, version) = archive.record(&keys::snapshot_key(&archive.shard, id)).await?;
        Ok(Kept {
            archive: archive.clone(),
            record,
            version,
        })
    }

    /// # Errors
    /// Where the store does not take it for minutes, or somebody else changed it: then nothing of what it was to tell may be done.
    pub async fn change(&mut self, change: impl FnOnce(&mut Snapshot)) -> anyhow::Result<()> {
        let mut record = self.record.clone();
        change(&mut record);
        if record == self.record {
            return Ok(());
        }
        let give_up = Instant::now() + STORE_PATIENCE;
        let mut pauses = Backoff::new(PAUSE_FIRST, PAUSE_LONGEST);
        loop {
            match write(&self.archive, &record, Put::IfMatch(self.version.clone())).await {
                Ok(Some(version)) => {
                    self.record = record;
                    self.version = version;
                    return Ok(());
                }
                Ok(None) => bail!("the record of snapshot {} was changed by somebody else", record.id),
                Err(e) if !e.is_transient() || Instant::now() > give_up => return Err(e.into()),
                Err(e) => warn!(snapshot = %record.id, "the record could not be written, trying again: {}", message(&e.into())),
            }
            sleep(pauses.step()).await;
        }
    }
}

/// None where the condition does not hold.
async fn write(archive: &Archive, record: &Snapshot, condition: Put) -> Result<Option<Version>, StoreError> {
    let key = keys::snapshot_key(&archive.shard, &record.id);
    let bytes = serde_json::to_vec_pretty(record).expect("a record is JSON");
    match archive.store.put(&key, bytes.into(), condition).await {
        Ok(version) => Ok(Some(version)),
        Err(e) => match archive.record::<Snapshot>(&key).await {
            // An attempt whose answer was lost took effect.
            Ok((there, version)) if there == *record => Ok(Some(version)),
            _ if matches!(e, StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Ok(None),
            _ => Err(e),
        },
    }
}
