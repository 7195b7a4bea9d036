//! In which of two regions' buckets a shard is shipped to: the fence around the other one.
//!
//! A fence names a store by its URL. It lies in that store, where its own agents find it, and in the one that takes over. There it also says
//! from which number on timelines are claimed: what the store that was left behind had claimed and not replicated keeps its own numbers.

use anyhow::anyhow;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{keys, listing::Archive, records::FORMAT_VERSION};
use crate::{
    store::{Put, StoreError, Version},
    support::{clock::Moment, hint::with_hint},
};

/// Nobody ships to a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    pub format: u32,
    /// The URL of the store that was left behind.
    pub store: String,
    pub by: String,
    pub set_at_us: i64,
    /// None while it stands.
    pub lifted_at_us: Option<i64>,
    /// Where it was left for another: timelines begin there with this number.
    pub timelines_from: u32,
}

impl Fence {
    pub fn stands(&self) -> bool {
        self.lifted_at_us.is_none()
    }
}

/// How often a write that met another one is tried.
const ATTEMPTS: usize = 5;

impl Archive {
    /// The fence around `store`, as it lies here.
    pub async fn fence_of(&self, store: &str) -> anyhow::Result<Option<(Fence, Version)>> {
        let key = keys::fence_key(&self.shard, store);
        match self.store.get(&key).await {
            Ok((bytes, version)) => Ok(Some((self.parse(&key, &bytes)??, version))),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The fence around this store, where one stands.
    pub async fn standing_fence(&self) -> anyhow::Result<Option<Fence>> {
        let url = self.store.url();
        let fence = self.fence_of(url).await?.map(|(fence, _)| fence);
        Ok(fence.filter(|fence| fence.stands() && fence.store == url))
    }

    /// # Errors
    /// Where a fence stands around this store: nothing may be claimed or shipped here.
    pub async fn ensure_open(&self) -> anyhow::Result<()> {
        match self.standing_fence().await? {
            Some(fence) => {
                let url = self.store.url();
                let e = anyhow!(
                    "store {url} was left behind at {} by {}: nothing is shipped to it",
                    Moment(fence.set_at_us),
                    fence.by
                );
                Err(with_hint(
                    e,
                    "set [store] to the bucket that took over; or take it back with `mysql-pitr take-over`, see the runbook",
                ))
            }
            None => Ok(()),
        }
    }

    /// The number from which on timelines are claimed here, because this store took over.
    pub async fn timelines_from(&self) -> anyhow::Result<u32> {
        let mut from = 0;
        for object in self.store.list(&keys::fences_prefix(&self.shard), None).await? {
            let (fence, _): (Fence, _) = self.record(&object.key).await?;
            if fence.store != self.store.url() {
                from = from.max(fence.timelines_from);
            }
        }
        Ok(from)
    }

    /// Sets a fence here, or sets it anew after it was lifted. One that stands is left as it is.
    pub async fn set_fence(&self, fence: &Fence) -> anyhow::Result<()> {
        self.change_fence(&fence.store, |known| match known {
            Some(known) if known.stands() => None,
            _ => Some(fence.clone()),
        })
        .await
    }

    /// The fence around `store` falls here, if one stands.
    pub async fn lift_fence(&self, store: &str, at_us: i64) -> anyhow::Result<()> {
        self.change_fence(store, |known| {
            let known = known.filter(|fence| fence.stands())?;
            Some(Fence {
                lifted_at_us: Some(at_us),
                ..known
            })
        })
        .await
    }

    async fn change_fence(&self, store: &str, change: impl Fn(Option<Fence>) -> Option<Fence>) -> anyhow::Result<()> {
        let key = keys::fence_key(&self.shard, store);
        for _ in 0..ATTEMPTS {
            let known = self.fence_of(store).await?;
            let condition = match &known {
                Some((_, version)) => Put::IfMatch(version.clone()),
                None => Put::IfAbsent,
            };
            let Some(changed) = change(known.map(|(fence, _)| fence)) else {
                return Ok(());
            };
            if self.put_record(&key, &changed, condition).await? {
                return Ok(());
            }
        }
        Err(anyhow!(
            "object {}/{key} is changed again and again by others",
            self.store.url()
        ))
    }

    /// What was said in the other region of this store reaches it as soon as somebody sees both. `there`: the other region's archive.
    pub async fn hear_of_fence(&self, there: &Archive) -> anyhow::Result<()> {
        let url = self.store.url();
        let Some((said, _)) = there.fence_of(url).await?.filter(|(f, _)| f.stands() && f.store == url) else {
            return Ok(());
        };
        let known = self.fence_of(url).await?.map(|(fence, _)| fence);
        if known.is_none_or(|known| known.set_at_us < said.set_at_us) {
            warn!(
                store = url,
                by = said.by,
                "this store was left behind, says {}",
                there.store.url()
            );
            self.set_fence(&said).await?;
        }
        Ok(())
    }
}

/// A fence around `store`, from now on.
pub fn new_fence(store: &str, by: String, now_us: i64, timelines_from: u32) -> Fence {
    Fence {
        format: FORMAT_VERSION,
        store: store.to_owned(),
        by,
        set_at_us: now_us,
        lifted_at_us: None,
        timelines_from,
    }
}
