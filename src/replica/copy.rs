//! What the replica lacks, brought there by the agent: for stores that do not replicate by themselves.
//!
//! Objects go one after the other in the order of [`super::Comparer::missing`], only segments that follow each other a few at a time: the
//! shipper stores them so, too, and a reader takes what is contiguous. The first failure ends the pass, so that nothing overtakes it; the next
//! pass begins with another look. Nothing has to be remembered: killed anywhere, it goes on.

use std::time::Duration;

use anyhow::{anyhow, bail};
use bytes::BytesMut;
use futures_util::{FutureExt, future::try_join_all};
use serde::Deserialize;
use tokio::time::Instant;
use tracing::debug;

use super::object::{Kind, Missing};
use crate::{
    archive::{keys, listing::Archive, records::SnapshotState},
    store::{Put, StoreError, reading::Reading},
};

/// Segments on their way at a time.
const SEGMENTS_IN_FLIGHT: usize = 4;
/// Larger objects are streamed: so many bytes of each are held.
const WHOLE_BYTES_MAX: u64 = 8 << 20;
const PORTION_BYTES: usize = 1 << 20;
/// Then the stores are looked at again: whoever watches wants to see it become less, and what is new has its place in the order.
const PASS: Duration = Duration::from_secs(20);

/// What was brought there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    pub objects: u64,
    pub bytes: u64,
}

/// Brings objects from one bucket to another.
pub struct Copier {
    pub home: Archive,
    pub replica: Archive,
}

/// A record that speaks of an object.
#[derive(Deserialize)]
struct Speaking {
    state: Option<SnapshotState>,
    data_key: Option<String>,
    #[serde(default)]
    stored_bytes: u64,
}

impl Copier {
    /// Copies for a while, in this order; whether all of it, and `copied` counts it.
    ///
    /// # Errors
    /// Where a store fails, or an object is not what it should be. What was copied until then is there.
    pub async fn copy(&self, missing: &[Missing], copied: &mut Copied) -> anyhow::Result<bool> {
        let deadline = Instant::now() + PASS;
        let mut rest = missing;
        while let Some(first) = rest.first() {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            let is_small_segment = |m: &&Missing| m.named.kind == Kind::Segment && m.size_bytes <= WHOLE_BYTES_MAX;
            let run = rest.iter().take_while(is_small_segment).count().clamp(1, SEGMENTS_IN_FLIGHT);
            let (now, later) = rest.split_at(run);
            let done: Vec<u64> = match now {
                [_] => vec![self.copy_one(first).await?],
                many => {
                    let copies: Vec<_> = many.iter().map(|m| self.copy_one(m).boxed()).collect();
                    try_join_all(copies).await?
                }
            };
            copied.objects += done.len() as u64;
            copied.bytes += done.iter().sum::<u64>();
            rest = later;
        }
        Ok(true)
    }

    /// How many bytes were moved.
    async fn copy_one(&self, missing: &Missing) -> anyhow::Result<u64> {
        if missing.size_bytes > WHOLE_BYTES_MAX {
            return self.stream(missing).await;
        }
        let bytes = match self.home.store.get(&missing.key).await {
            Ok((bytes, _)) => bytes,
            // Deleted since it was listed: nobody needs it.
            Err(e) if e.is_not_found() => return Ok(0),
            Err(e) => return Err(e.into()),
        };
        if matches!(missing.named.kind, Kind::Manifest | Kind::SnapshotRecord) {
            self.ensure_spoken_of_is_there(missing, &bytes).await?;
        }
        let condition = if missing.is_outdated {
            let (there, version) = self.replica.store.get(&missing.key).await?;
            if !may_follow(&there, &bytes) {
                let url = self.replica.store.url();
                bail!(
                    "object {url}/{} says that the snapshot has ended, and otherwise than at home",
                    missing.key
                );
            }
            Put::IfMatch(version)
        } else {
            Put::IfAbsent
        };
        let size = bytes.len() as u64;
        match self.replica.store.put(&missing.key, bytes, condition).await {
            Ok(_) => {
                debug!(key = missing.key, "copied");
                Ok(size)
            }
            // Another agent was quicker, or this one itself, and did not hear of it. The next look compares.
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Ok(0),
            Err(e) => Err(e.into()),
        }
    }

    async fn stream(&self, missing: &Missing) -> anyhow::Result<u64> {
        let mut reading = match Reading::open(&self.home.store, &missing.key).await {
            Ok(reading) => reading,
            Err(e) if e.downcast_ref::<StoreError>().is_some_and(StoreError::is_not_found) => return Ok(0),
            Err(e) => return Err(e),
        };
        let mut upload = self.replica.store.upload(&missing.key).await?;
        let mut moved = 0;
        loop {
            let mut portion = BytesMut::with_capacity(PORTION_BYTES);
            while portion.len() < PORTION_BYTES && reading.read(&mut portion).await? > 0 {}
            if portion.is_empty() {
                break;
            }
            moved += portion.len() as u64;
            upload.write(portion.freeze()).await?;
        }
        if moved != missing.size_bytes {
            upload.abort().await;
            bail!(
                "object {}/{} was listed with {} B and has {moved} B",
                self.home.store.url(),
                missing.key,
                missing.size_bytes
            );
        }
        match upload.finish().await {
            Ok(()) => {
                debug!(key = missing.key, moved, "copied");
                Ok(moved)
            }
            Err(StoreError::AlreadyExists { .. }) => Ok(0),
            Err(e) => Err(e.into()),
        }
    }

    /// i3: no record is there before what it speaks of. The order sees to it; a listing that was made while home was written may not.
    async fn ensure_spoken_of_is_there(&self, missing: &Missing, record: &[u8]) -> anyhow::Result<()> {
        let Ok(speaking) = serde_json::from_slice::<Speaking>(record) else {
            bail!(
                "object {}/{} is not a record of this archive",
                self.home.store.url(),
                missing.key
            );
        };
        let object = match missing.named.kind {
            Kind::Manifest => missing.key.strip_suffix(keys::MANIFEST_SUFFIX).map(str::to_owned),
            _ => speaking.data_key.filter(|key| {
                speaking.state == Some(SnapshotState::Complete) && key.starts_with(&keys::snapshots_prefix(&self.home.shard))
            }),
        };
        let Some(object) = object else { return Ok(()) };
        let listed = self.replica.store.list(&object, None).await?;
        let size = listed.iter().find(|o| o.key == object).map(|o| o.size_bytes);
        if size != Some(speaking.stored_bytes) {
            return Err(anyhow!(
                "object {}/{} has to wait: {object}, of which it speaks, is not there yet",
                self.replica.store.url(),
                missing.key
            ));
        }
        Ok(())
    }
}

/// Whether one record of a snapshot may become another: an end is never taken back.
fn may_follow(before: &[u8], after: &[u8]) -> bool {
    let state = |record| serde_json::from_slice::<Speaking>(record).ok().and_then(|s| s.state);
    let before = state(before);
    before == Some(SnapshotState::Started) || before == state(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshots_end_is_never_taken_back() {
        let [started, complete, failed] = ["started", "complete", "failed"].map(|s| format!("{{\"state\": \"{s}\"}}"));
        let may = |a: &String, b: &String| may_follow(a.as_bytes(), b.as_bytes());
        assert!(may(&started, &complete) && may(&started, &failed) && may(&complete, &complete));
        assert!(!may(&complete, &failed) && !may(&failed, &complete) && !may(&complete, &started));
    }
}
