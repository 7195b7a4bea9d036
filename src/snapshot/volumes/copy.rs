//! Copies in another region. The snapshot is complete without them: what fails here is told, and tried again.

use anyhow::Context;
use tracing::{info, warn};

use crate::{
    archive::records::{CopyState, RegionalCopy, Snapshot, Step},
    support::{clock::US_PER_MIN, hint::render, progress::Progress},
    volume::cloud::{Cloud, Made, MadeState, SOURCE_TAG},
};

use super::{
    kept::Kept,
    onward::{Went, delete_all, is_named, learn, own},
    take::tags_of,
};

/// A copy that failed is made anew after so long.
const RETRY_US: i64 = 10 * US_PER_MIN;
/// One whose request was not answered may turn up for so long: none is made beside it until then.
const LATE_US: i64 = 2 * US_PER_MIN;

/// One look at the copies that are missing, and what is to be done about them.
pub(super) async fn copy(cloud: &dyn Cloud, kept: &mut Kept, now_us: i64, progress: &Progress) -> anyhow::Result<Went> {
    let home = cloud.home_region().await?;
    let mut regions: Vec<String> = kept
        .record
        .volumes
        .iter()
        .flat_map(|v| &v.copies)
        .map(|c| c.region.clone())
        .collect();
    regions.sort();
    regions.dedup();
    let mut waits = false;
    for region in regions.iter().filter(|r| **r != home) {
        if !is_due(&kept.record, region, now_us) {
            waits |= !is_whole(&kept.record, region);
            continue;
        }
        progress.phase(&format!("copying to {region}"));
        if let Err(e) = copy_to(cloud, kept, region, now_us, progress).await {
            let failure = render(&e).trim_start_matches("error: ").to_owned();
            warn!(snapshot = %kept.record.id, region = %region, "the copy failed, and is tried again in a while: {failure}");
            fail(kept, region, &failure, now_us).await?;
        }
        waits |= !is_whole(&kept.record, region);
    }
    if waits {
        return Ok(Went::waits(kept));
    }
    kept.change(|s| s.step = Some(Step::Copied)).await?;
    if regions.len() > 1 {
        info!(snapshot = %kept.record.id, "the snapshot is complete in {}", regions.join(" and "));
    }
    Ok(Went::ended(kept))
}

fn in_region<'s>(record: &'s Snapshot, region: &str) -> impl Iterator<Item = &'s RegionalCopy> {
    let copies = record.volumes.iter().flat_map(|v| &v.copies);
    copies.filter(move |c| c.region == region)
}

fn is_whole(record: &Snapshot, region: &str) -> bool {
    in_region(record, region).all(|c| c.state == CopyState::Complete)
}

fn is_due(record: &Snapshot, region: &str, now_us: i64) -> bool {
    in_region(record, region).any(|c| match c.state {
        CopyState::Pending => true,
        CopyState::Failed => may_retry(c, now_us),
        CopyState::Complete => false,
    })
}

fn may_retry(copy: &RegionalCopy, now_us: i64) -> bool {
    copy.tried_at_us.is_none_or(|at| now_us - at >= RETRY_US)
}

/// All that are not there yet.
async fn fail(kept: &mut Kept, region: &str, failure: &str, now_us: i64) -> anyhow::Result<()> {
    kept.change(|s| {
        let copies = s
            .volumes
            .iter_mut()
            .flat_map(|v| &mut v.copies)
            .filter(|c| c.region == region);
        for copy in copies.filter(|c| c.state != CopyState::Complete) {
            copy.state = CopyState::Failed;
            copy.failure = Some(failure.to_owned());
            copy.tried_at_us = Some(now_us);
        }
    })
    .await
}

async fn copy_to(cloud: &dyn Cloud, kept: &mut Kept, region: &str, now_us: i64, progress: &Progress) -> anyhow::Result<()> {
    let id = kept.record.id.clone();
    let found = cloud.find(region, &id).await?;
    let found: Vec<Made> = own(kept, &found).cloned().collect();
    let mut shown = Vec::new();
    for at in 0..kept.record.volumes.len() {
        let volume = kept.record.volumes[at].clone();
        let source = volume.copies.first().and_then(|c| c.snapshot_id.clone());
        let source = source.with_context(|| format!("the record of snapshot {id} names no snapshot of {}", volume.volume_id))?;
        let Some(nth) = volume.copies.iter().position(|c| c.region == region) else {
            continue;
        };
        let copy = &volume.copies[nth];
        if copy.state == CopyState::Complete || copy.state == CopyState::Failed && !may_retry(copy, now_us) {
            continue;
        }
        match best(&found, &source) {
            Some(made) if !matches!(made.state, MadeState::Failed(_)) => {
                shown.push(format!("{} {} %", volume.volume_id, made.percent.unwrap_or_default()));
                kept.change(|s| learn(&mut s.volumes[at].copies[nth], made)).await?;
                continue;
            }
            // It fails for the first time.
            Some(made) if copy.state == CopyState::Pending && copy.snapshot_id.as_ref() == Some(&made.snapshot_id) => {
                warn!(snapshot = %made.snapshot_id, region, "a copy failed, and is made anew in a while");
                kept.change(|s| {
                    let copy = &mut s.volumes[at].copies[nth];
                    learn(copy, made);
                    copy.tried_at_us = Some(now_us);
                })
                .await?;
                continue;
            }
            Some(made) => cloud.delete(region, &made.snapshot_id).await?,
            None if copy.state == CopyState::Pending && copy.tried_at_us.is_some_and(|tried| now_us - tried < LATE_US) => {
                continue;
            }
            None => {}
        }
        kept.change(|s| {
            let copy = &mut s.volumes[at].copies[nth];
            copy.state = CopyState::Pending;
            copy.snapshot_id = None;
            copy.failure = None;
            copy.tried_at_us = Some(now_us);
        })
        .await?;
        let tags = tags_of(&kept.archive, &kept.record);
        let snapshot_id = cloud.copy(&source, region, &tags).await?;
        info!(snapshot = %id, region, copy = %snapshot_id, "began to copy {source}");
        kept.change(|s| s.volumes[at].copies[nth].snapshot_id = Some(snapshot_id))
            .await?;
    }
    progress.update(|| shown.join(", "));
    if is_whole(&kept.record, region) {
        // Two of one source: the answer to a request was lost, and what it made turned up late.
        delete_all(cloud, region, found.iter().filter(|m| !is_named(&kept.record, m))).await?;
    }
    Ok(())
}

/// Of the copies of one source the one that is the furthest.
fn best<'m>(found: &'m [Made], source: &str) -> Option<&'m Made> {
    let rank = |m: &Made| match m.state {
        MadeState::Complete => 2,
        MadeState::Pending => 1,
        MadeState::Failed(_) => 0,
    };
    let of_source = |m: &&Made| m.tags.get(SOURCE_TAG).is_some_and(|s| s == source);
    found
        .iter()
        .filter(of_source)
        .max_by_key(|m| (rank(m), std::cmp::Reverse(m.snapshot_id.clone())))
}
