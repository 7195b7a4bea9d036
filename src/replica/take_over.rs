//! The explicit step by which a shard's history goes on in the other region's bucket, and by which it comes back.
//!
//! A fence around the bucket that is left behind comes first, then everything that it holds has to be here, then this one says that it took
//! over. Each part may run twice: whoever was interrupted says the same again.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::time::sleep;

use super::Comparer;
use crate::{
    archive::{
        fence::{Fence, new_fence},
        listing::Archive,
    },
    store::StoreError,
    support::{
        clock::US_PER_S,
        hint::{OrHint, with_hint},
        progress::{Progress, human_bytes},
    },
};

/// How far apart two regions' timelines are numbered: what the one that is left behind claims unseen, or at the last moment, keeps its own.
const TIMELINES_APART: u32 = 100;
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// The bucket that is left behind.
pub enum Other<'a> {
    /// It answers. Its agents are given `settle` to notice, and the stores `patience` to become level.
    Fenced {
        archive: &'a Archive,
        settle: Duration,
        patience: Duration,
    },
    /// An operator's word that nobody ships there any more; its URL.
    Dead(&'a str),
}

/// From now on the shard is shipped to `ours`; `by`: who says so.
///
/// # Errors
/// Where a store fails; where `ours` does not become level, or holds another history: the fence stands then, and nothing took over.
pub async fn take_over(ours: &Archive, other: Other<'_>, by: String, progress: &Progress) -> anyhow::Result<Fence> {
    let now_us = ours.clock.now_us();
    let newest = newest_timeline(ours).await?;
    let fence = match &other {
        Other::Dead(url) => {
            // What it claimed last may turn up later.
            new_fence(url, by, now_us, newest + TIMELINES_APART)
        }
        Other::Fenced {
            archive,
            settle,
            patience,
        } => {
            let url = archive.store.url();
            let hint = "if nobody can ship there any more, say --other-is-dead";
            let there = newest_timeline(archive)
                .await
                .with_context(|| format!("the store that is to be left behind, {url}, cannot be asked"))
                .hint(hint)?;
            let wanted = new_fence(url, by, now_us, newest.max(there) + TIMELINES_APART);
            archive
                .set_fence(&wanted)
                .await
                .with_context(|| format!("the store that is to be left behind, {url}, cannot be fenced"))
                .hint(hint)?;
            let (fence, _) = archive.fence_of(url).await?.context("the fence has vanished again")?;
            wait_until_level(ours, archive, &fence, *settle, *patience, progress).await?;
            // Until its agents had noticed, they could claim.
            let there = newest_timeline(archive).await?;
            Fence {
                timelines_from: there.max(newest) + TIMELINES_APART,
                ..fence
            }
        }
    };
    ours.set_fence(&fence).await?;
    let own = ours.store.url();
    if let Other::Fenced { archive, .. } = &other {
        // Somebody who moves the shard the other way at the same time lifts it.
        let stands = archive.fence_of(&fence.store).await?.is_some_and(|(f, _)| f.stands());
        if !stands {
            bail!(
                "the fence around {} was lifted meanwhile: the shard is being moved there by somebody else",
                fence.store
            );
        }
        archive.lift_fence(own, now_us).await?;
    }
    // Last of all: from here on agents ship to this store.
    ours.lift_fence(own, now_us).await?;
    // Said twice, what was said first stands.
    let said = ours.fence_of(&fence.store).await?.map(|(said, _)| said);
    Ok(said.unwrap_or(fence))
}

async fn newest_timeline(archive: &Archive) -> anyhow::Result<u32> {
    Ok(archive.timelines().await?.iter().map(|t| t.id).max().unwrap_or_default())
}

async fn wait_until_level(
    ours: &Archive,
    other: &Archive,
    fence: &Fence,
    settle: Duration,
    patience: Duration,
    progress: &Progress,
) -> anyhow::Result<()> {
    progress.phase("waiting for everything to be here");
    let mut comparer = Comparer::new(other.clone(), ours.clone());
    let begun_us = ours.clock.now_us();
    let since = |at_us: i64| Duration::from_secs(((ours.clock.now_us() - at_us) / US_PER_S).max(0).unsigned_abs());
    loop {
        comparer.forget();
        let look = match comparer.look().await {
            Ok(look) => look,
            Err(e) if e.downcast_ref::<StoreError>().is_some_and(StoreError::is_transient) => {
                if since(begun_us) >= patience {
                    let e =
                        e.context("a store went away while everything was to arrive; the fence stands, and nothing took over");
                    return Err(with_hint(
                        e,
                        "the same command goes on; if the other store is gone for good, say --other-is-dead",
                    ));
                }
                sleep(LOOK_INTERVAL).await;
                continue;
            }
            Err(e) => return Err(e),
        };
        if comparer.has_two_histories() {
            bail!("both stores were shipped to: {}", look.differing.join("; "));
        }
        let lacks = comparer.missing();
        if lacks.is_empty() && since(fence.set_at_us) >= settle {
            return Ok(());
        }
        progress.update(|| format!("{} lacking", human_bytes(look.behind.bytes)));
        if since(begun_us) >= patience {
            let first = lacks
                .first()
                .map_or_else(String::new, |m| format!(", the first of them {}", m.key));
            let e = anyhow!(
                "{} still lacks {} objects of {}{first}",
                ours.store.url(),
                lacks.len(),
                other.store.url()
            );
            return Err(with_hint(
                e,
                "the fence stands, and nobody took over yet: see to the replication and say the same again",
            ));
        }
        sleep(LOOK_INTERVAL).await;
    }
}
