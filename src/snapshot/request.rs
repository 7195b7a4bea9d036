//! Asking for a snapshot through the bucket, so that no node's own interface needs to be reached or trusted.
//!
//! A request is an object. The snapshot that answers it has its name; where several are open, one snapshot that begins after they were
//! made answers all of them: it has the newest one's name, and each other gets an object that says so. So nothing but names has to
//! be looked at, and after an outage nobody works off what was asked for meanwhile, one by one. No clock is compared with another: a
//! request was made before a snapshot if the snapshot's agent saw it before it began.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};
use tracing::info;

use crate::{
    archive::{
        keys,
        listing::Archive,
        records::{FORMAT_VERSION, Request, Snapshot, SnapshotState, Step},
    },
    store::{Put, StoreError},
    support::{
        clock::{self, Moment},
        hint::{message, with_hint},
        progress::Progress,
    },
};

use super::{
    take::{is_id, new_id},
    unanswered,
};

/// Agents look for requests this often: one LIST each time, which S3 charges for.
pub const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// After that, nobody will, unless one is busy.
const TAKE_UP_PATIENCE: Duration = Duration::from_secs(30);
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Once it is being taken.
const SLOW_WATCH_INTERVAL: Duration = Duration::from_secs(5);
/// For whoever waits, while the store fails.
const STORE_PATIENCE: Duration = Duration::from_mins(10);
/// A snapshot that began so long ago is not under way any more: its agent may be dead.
const UNDER_WAY_MAX_US: i64 = 24 * 3600 * 1_000_000;
/// From one request to the one whose snapshot answers it, and on.
const LINKS_MAX: usize = 100;

/// Stores a request; the snapshot will bear its name, or that of a later request.
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

/// Waits until the snapshot that was asked for is complete, however long it takes once somebody has taken it up.
pub async fn wait(archive: &Archive, id: &str, progress: &Progress) -> anyhow::Result<Snapshot> {
    progress.phase(&format!("request {id}"));
    let asked = Instant::now();
    let (mut patient_until, mut interval) = (asked + TAKE_UP_PATIENCE, WATCH_INTERVAL);
    let mut answered = Instant::now();
    loop {
        let answer = match answer_to(archive, id).await {
            // A snapshot may take hours, and the way to the store may be cut meanwhile.
            Err(e) if is_transient(&e) && answered.elapsed() < STORE_PATIENCE => {
                progress.update(|| format!("the store does not answer: {}", message(&e)));
                sleep(SLOW_WATCH_INTERVAL).await;
                continue;
            }
            answer => answer?,
        };
        answered = Instant::now();
        if let Some(snapshot) = answer {
            match snapshot.state {
                SnapshotState::Complete => return Ok(snapshot),
                SnapshotState::Failed => bail!("snapshot {} failed: {}", snapshot.id, snapshot.failure.unwrap_or_default()),
                SnapshotState::Started if snapshot.step == Some(Step::Created) => {
                    progress.update(|| format!("{} has begun, and EC2 stores it", snapshot.id));
                }
                SnapshotState::Started => progress.update(|| {
                    let (server, since) = (snapshot.server_uuid, Moment(snapshot.started_at_us));
                    format!("server {server} has been taking snapshot {} since {since}", snapshot.id)
                }),
            }
            interval = SLOW_WATCH_INTERVAL;
        } else if Instant::now() > patient_until {
            let Some(other) = under_way(archive).await? else {
                let reason = unanswered::reason(archive).await.context("nobody has taken up the request")?;
                let e = anyhow::anyhow!(
                    "no agent took up request {id} within {} s: {}",
                    asked.elapsed().as_secs(),
                    reason.text
                );
                let hint = format!("{}; the request stays, and is answered as soon as an agent does", reason.hint);
                return Err(with_hint(e, hint));
            };
            progress.note(&format!(
                "server {} has been taking snapshot {} since {}; the next one answers this request",
                other.server_uuid,
                other.id,
                Moment(other.started_at_us)
            ));
            // It ends, and the request is taken up, or the reason is told.
            wait_for_end(archive, &other.id, progress).await?;
            patient_until = Instant::now() + TAKE_UP_PATIENCE;
        } else {
            progress.update(|| "nobody has taken it up yet".to_owned());
        }
        sleep(interval).await;
    }
}

fn is_transient(e: &anyhow::Error) -> bool {
    e.downcast_ref::<StoreError>().is_some_and(StoreError::is_transient)
}

/// The record of the snapshot that answers a request; None while nobody has taken it up.
async fn answer_to(archive: &Archive, id: &str) -> anyhow::Result<Option<Snapshot>> {
    let mut id = id.to_owned();
    for _ in 0..LINKS_MAX {
        match archive.record::<Snapshot>(&keys::snapshot_key(&archive.shard, &id)).await {
            Ok((snapshot, _)) => return Ok(Some(snapshot)),
            Err(e) if e.downcast_ref::<StoreError>().is_some_and(StoreError::is_not_found) => {}
            Err(e) => return Err(e),
        }
        let prefix = keys::answers_prefix(&archive.shard, &id);
        let answers = archive.store.list(&prefix, None).await?;
        let mut named = answers
            .iter()
            .filter_map(|o| o.key.strip_prefix(&prefix)?.strip_suffix(".json"));
        match named.next_back() {
            Some(next) => id = next.to_owned(),
            None => return Ok(None),
        }
    }
    Ok(None)
}

async fn under_way(archive: &Archive) -> anyhow::Result<Option<Snapshot>> {
    let now_us = archive.clock.now_us();
    let (snapshots, _) = archive.readable_snapshots().await?;
    let is_it = |s: &Snapshot| s.state == SnapshotState::Started && now_us - s.started_at_us < UNDER_WAY_MAX_US;
    Ok(snapshots.into_iter().rfind(is_it))
}

async fn wait_for_end(archive: &Archive, id: &str, progress: &Progress) -> anyhow::Result<()> {
    let key = keys::snapshot_key(&archive.shard, id);
    loop {
        let (snapshot, _): (Snapshot, _) = archive.record(&key).await?;
        if snapshot.state != SnapshotState::Started || archive.clock.now_us() - snapshot.started_at_us >= UNDER_WAY_MAX_US {
            return Ok(());
        }
        progress.update(|| format!("waiting for the end of snapshot {id}"));
        sleep(SLOW_WATCH_INTERVAL).await;
    }
}

/// What an agent knows of the requests.
#[derive(Debug, Default)]
pub struct Requests {
    /// Those that were found answered and are still there: they are not looked at again.
    answered: BTreeSet<String>,
}

impl Requests {
    /// The names of those that no snapshot answers yet, in their order. One listing; a second one where some are new.
    pub async fn open(&mut self, archive: &Archive) -> anyhow::Result<Vec<String>> {
        let prefix = keys::requests_prefix(&archive.shard);
        let (mut there, mut linked) = (BTreeSet::new(), BTreeSet::new());
        for object in archive.store.list(&prefix, None).await? {
            let Some(name) = object.key.strip_prefix(&prefix).and_then(|k| k.strip_suffix(".json")) else {
                continue;
            };
            match name.split_once('/') {
                Some((id, _)) => linked.insert(id.to_owned()),
                None if is_id(name) => there.insert(name.to_owned()),
                None => false,
            };
        }
        self.answered.extend(linked);
        self.answered.retain(|id| there.contains(id));
        let mut open: Vec<String> = there.into_iter().filter(|id| !self.answered.contains(id)).collect();
        if let Some(oldest) = open.first() {
            let prefix = keys::snapshots_prefix(&archive.shard);
            let from = format!("{prefix}{oldest}");
            let taken = archive.store.list(&prefix, Some(&from)).await?;
            self.answered
                .extend(taken.iter().filter_map(|o| keys::snapshot_id(&prefix, &o.key)));
            open.retain(|id| !self.answered.contains(id));
        }
        Ok(open)
    }
}

/// The name of a snapshot that is about to begin and answers these requests, which then say so.
pub async fn answer(archive: &Archive, open: &[String]) -> anyhow::Result<String> {
    let Some((newest, others)) = open.split_last() else {
        return Ok(new_id());
    };
    for id in others {
        let link = serde_json::json!({ "format": FORMAT_VERSION, "request": id, "snapshot": newest });
        archive
            .put_record(&keys::answer_key(&archive.shard, id, newest), &link, Put::IfAbsent)
            .await?;
    }
    if !others.is_empty() {
        info!(
            snapshot = newest,
            requests = open.len(),
            "one snapshot answers several requests"
        );
    }
    Ok(newest.clone())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::{store::filesystem::FilesystemStore, support::clock::WallClock};

    use super::*;

    fn archive(folder: &std::path::Path) -> Archive {
        Archive {
            store: Arc::new(FilesystemStore::open(folder).unwrap()),
            shard: "s".to_owned().try_into().unwrap(),
            clock: Arc::new(WallClock),
        }
    }

    /// A record as far as these functions look at it.
    async fn begin(archive: &Archive, id: &str) {
        let record = serde_json::json!({
            "format": 1, "id": id, "state": "started", "provider": "clone", "timeline": 1, "server_uuid": uuid::Uuid::nil(),
            "server_version": "", "started_at_us": 0, "finished_at_us": null, "gtids_before": "", "gtids_after": null,
            "variables": {}, "data_key": "", "data_bytes": 0, "stored_bytes": 0, "stored_sha256": "",
        });
        assert!(
            archive
                .put_record(&keys::snapshot_key(&archive.shard, id), &record, Put::IfAbsent)
                .await
                .unwrap()
        );
    }

    #[tokio::test]
    async fn one_snapshot_answers_what_was_asked_before_it_began() {
        let folder = tempfile::tempdir().unwrap();
        let archive = archive(folder.path());
        let mut requests = Requests::default();
        assert!(requests.open(&archive).await.unwrap().is_empty());
        let mut asked = Vec::new();
        for _ in 0..3 {
            asked.push(ask(&archive).await.unwrap());
        }
        asked.sort();
        assert_eq!(requests.open(&archive).await.unwrap(), asked);
        assert!(answer_to(&archive, &asked[0]).await.unwrap().is_none());

        let id = answer(&archive, &asked).await.unwrap();
        assert_eq!(id, asked[2]);
        // An agent that dies here leaves one request open, whose snapshot is the answer to all.
        assert_eq!(Requests::default().open(&archive).await.unwrap(), std::slice::from_ref(&id));
        begin(&archive, &id).await;
        assert!(requests.open(&archive).await.unwrap().is_empty());
        assert!(Requests::default().open(&archive).await.unwrap().is_empty());
        for request in &asked {
            assert_eq!(answer_to(&archive, request).await.unwrap().unwrap().id, id);
        }
    }

    /// A machine whose clock is behind asks under a name that sorts before those that were answered.
    #[tokio::test]
    async fn a_request_with_an_early_name_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let archive = archive(folder.path());
        let mut requests = Requests::default();
        let first = ask(&archive).await.unwrap();
        begin(&archive, &first).await;
        assert!(requests.open(&archive).await.unwrap().is_empty());
        let early = "20200101T000000.000000Z-0a1b2c3d".to_owned();
        let request = Request {
            format: FORMAT_VERSION,
            id: early.clone(),
            requested_at_us: 0,
        };
        let key = keys::request_key(&archive.shard, &early);
        assert!(archive.put_record(&key, &request, Put::IfAbsent).await.unwrap());
        assert_eq!(requests.open(&archive).await.unwrap(), [early]);
    }
}
