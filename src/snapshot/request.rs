//! Asking for a snapshot through the bucket, so that no node's own interface needs to be reached or trusted.

use std::time::Duration;

use anyhow::bail;
use tokio::time::{Instant, sleep};

use crate::{
    archive::{
        keys,
        listing::Archive,
        records::{FORMAT_VERSION, Request, Snapshot, SnapshotState, Step},
    },
    store::{Put, StoreError},
    support::{clock, hint::with_hint, progress::Progress},
};

use super::take::new_id;

/// Agents look for requests this often.
pub const POLL_INTERVAL: Duration = Duration::from_secs(3);
/// After that, nobody will.
const TAKE_UP_PATIENCE: Duration = Duration::from_secs(30);
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Stores a request; the snapshot will bear its name.
pub async fn ask(archive: &Archive) -> anyhow::Result<String> {
    let request = Request {
        format: FORMAT_VERSION,
        id: new_id(),
        requested_at_us: clock::now_us(),
    };
    if !archive
        .put_record(&keys::request_key(&archive.shard, &request.id), &request, Put::IfAbsent)
        .await?
    {
        bail!("request {} exists already", request.id);
    }
    Ok(request.id)
}

/// Waits until the snapshot that was asked for is complete.
pub async fn wait(archive: &Archive, id: &str, progress: &Progress) -> anyhow::Result<Snapshot> {
    progress.phase("waiting for the agent's snapshot");
    let asked = Instant::now();
    loop {
        match archive.record::<Snapshot>(&keys::snapshot_key(&archive.shard, id)).await {
            Ok((snapshot, _)) => match snapshot.state {
                SnapshotState::Complete => return Ok(snapshot),
                SnapshotState::Failed => bail!("snapshot {id} failed: {}", snapshot.failure.unwrap_or_default()),
                SnapshotState::Started if snapshot.step == Some(Step::Created) => {
                    progress.update(|| format!("{id} has begun, and EC2 stores it"));
                }
                SnapshotState::Started => progress.update(|| format!("{id} is being taken")),
            },
            Err(e) if e.downcast_ref::<StoreError>().is_some_and(StoreError::is_not_found) => {
                if asked.elapsed() > TAKE_UP_PATIENCE {
                    let e = anyhow::anyhow!("no agent took up request {id} within {} s", TAKE_UP_PATIENCE.as_secs());
                    return Err(with_hint(e, "see whether an agent runs on the primary and reaches the store"));
                }
            }
            Err(e) => return Err(e),
        }
        sleep(WATCH_INTERVAL).await;
    }
}

/// Names of requests after `seen` that no snapshot answers yet, oldest first.
pub async fn open_requests(archive: &Archive, seen: Option<&str>) -> anyhow::Result<Vec<String>> {
    let prefix = keys::requests_prefix(&archive.shard);
    let after = seen.map(|id| keys::request_key(&archive.shard, id));
    let mut open = Vec::new();
    for object in archive.store.list(&prefix, after.as_deref()).await? {
        let Some(id) = object.key.strip_prefix(&prefix).and_then(|k| k.strip_suffix(".json")) else {
            continue;
        };
        match archive.record::<Snapshot>(&keys::snapshot_key(&archive.shard, id)).await {
            Ok(_) => {}
            Err(e) => match e.downcast_ref::<StoreError>() {
                Some(e) if e.is_not_found() => open.push(id.to_owned()),
                Some(_) => return Err(e),
                // There is a record: somebody took it up, however damaged that is.
                None => {}
            },
        }
    }
    Ok(open)
}
