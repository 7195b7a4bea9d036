//! From the wish for a snapshot to snapshots that are known to have begun under the lock.

use std::{
    future::pending,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{anyhow, bail};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::{info, warn};

use crate::{
    archive::{
        keys,
        listing::Archive,
        records::{CopyState, FORMAT_VERSION, Provider, RegionalCopy, Snapshot, SnapshotState, Step, VolumeSnapshot},
    },
    binlog::gtid::GtidSet,
    mysql::{
        endpoint::Endpoint,
        freeze::{Frozen, Lock, Thawed},
        preflight,
        query::{Session, Variables},
        server::Mysql,
    },
    ship::{standing::Standing, timeline_of},
    support::{
        clock,
        hint::{OrHint, hint_of, message, render, with_hint},
        progress::Progress,
        retry::Backoff,
    },
    volume::{
        cloud::{Cause, Cloud, CloudError, Made, MadeState, OPERATION_TAG, Order, Subject, Tags, VolumeFacts},
        ebs::{
            folders::folders,
            located::{self, Volume},
        },
        marks::{self, NAME_TAG, ORIGIN_TAG, RECORD_TAG, SERVER_TAG, SHARD_TAG},
    },
};

use super::{
    Settings,
    kept::Kept,
    onward::{Went, give_up, onward},
};
use crate::snapshot::{
    take::{history, passed, startup_variables},
    turn::Held,
};

/// Under the lock so much is left for its end.
const THAW_ROOM: Duration = Duration::from_secs(1);
/// A volume takes one snapshot in 15 seconds; whoever asks too much is told so at once.
const THROTTLED_MAX: u32 = 4;
const PAUSE_FIRST: Duration = Duration::from_secs(5);
const PAUSE_LONGEST: Duration = Duration::from_secs(60);
/// How often EC2 is asked how far it is.
const WATCH_FIRST: Duration = Duration::from_millis(500);
const WATCH_LONGEST: Duration = Duration::from_secs(15);
/// In a row; then whoever waits is told.
const FAILURES_MAX: u32 = 4;

/// A snapshot that is to be taken.
pub struct Job<'j> {
    pub archive: &'j Archive,
    pub endpoint: &'j Endpoint,
    pub settings: &'j Settings,
    /// Tables that are not InnoDB and may be whatever a crash leaves of them.
    pub accept_empty: &'j [String],
    /// The server's part in the shard: who loses it while the server is locked stops.
    pub roles: watch::Receiver<Standing>,
    pub turn: &'j Held,
    pub id: &'j str,
    /// Why it is taken, for a tag.
    pub origin: &'static str,
    pub progress: &'j Progress,
}

/// Takes it, and waits until it is complete in the home region.
pub async fn take(job: &Job<'_>) -> anyhow::Result<(Snapshot, Thawed)> {
    let (kept, thawed) = begin(job).await?;
    let id = kept.record.id.clone();
    drop(kept);
    job.progress.phase("waiting for EC2 to have it all");
    let complete = follow(job, &id, |s| s.state != SnapshotState::Started).await?;
    if complete.state == SnapshotState::Failed {
        let why = complete.failure.unwrap_or_default();
        // Once more, for what it has to be deleted.
        if let Err(e) = onward(job.archive, job.settings.cloud.as_ref(), &id, job.progress).await {
            warn!(snapshot = %id, "what was made of it is not deleted yet: {}", message(&e));
        }
        let hint = "see that the volume's KMS key is enabled and may be used by this node's role, then take the snapshot again";
        return Err(with_hint(anyhow!("{why}"), hint));
    }
    Ok((complete, thawed))
}

/// Goes on with a snapshot until that is so.
pub async fn follow(job: &Job<'_>, id: &str, until: impl Fn(&Snapshot) -> bool) -> anyhow::Result<Snapshot> {
    let mut pauses = Backoff::new(WATCH_FIRST, WATCH_LONGEST);
    let mut failures = 0;
    loop {
        let gone = async {
            job.turn.lost().await;
            anyhow!("another agent has taken over snapshot {id}")
        };
        let went = tokio::select! {
            went = onward(job.archive, job.settings.cloud.as_ref(), id, job.progress) => went,
            e = gone => return Err(e),
        };
        let pause = match went {
            Ok(went) if until(went.record()) => return Ok(went.record().clone()),
            Ok(Went::Ended(record)) => return Ok(*record),
            Ok(Went::On(_)) => continue,
            Ok(Went::Waits(_)) => {
                failures = 0;
                pauses.step()
            }
            Err(e) if failures == FAILURES_MAX => {
                let hint = hint_of(&e).map_or_else(String::new, |hint| format!("{hint}; "));
                let e = e.context(format!("snapshot {id} was begun, and nobody knows how far it is"));
                return Err(with_hint(e, format!("{hint}the agent goes on with it")));
            }
            Err(e) => {
                failures += 1;
                warn!(snapshot = id, "trying again: {}", message(&e));
                pauses.step()
            }
        };
        sleep(pause).await;
    }
}

async fn begin(job: &Job<'_>) -> anyhow::Result<(Kept, Thawed)> {
    let standing = job.roles.borrow().clone();
    let mut session = Session::connect(job.endpoint).await?;
    let variables = session.variables().await?;
    let mut kept = Kept::begin(job.archive, first_record(job, &standing, &variables, &mut session).await?).await?;
    let maybe_made = AtomicBool::new(false);
    let begun = async {
        preflight(job, &mut session, &standing).await?;
        job.progress.phase("looking at the volumes");
        let volumes = located::locate(&folders(&variables), &job.settings.named, &job.settings.roots)?;
        let (recorded, order) = plan(job, &volumes).await?;
        kept.change(|s| s.volumes = recorded).await?;
        let begun = lock_and_create(job, &order, &volumes, &kept.record, &maybe_made);
        tokio::select! {
            begun = begun => begun,
            e = role_lost(job.roles.clone(), &standing) => Err(e),
            () = job.turn.lost() => Err(anyhow!("another agent has taken over the shard's snapshots")),
        }
    };
    let begun = begun.await;
    let counted = async {
        let (thawed, gtids_before, made) = begun?;
        let mut record = Snapshot {
            gtids_before,
            ..kept.record.clone()
        };
        (record.timeline, record.errant) =
            history(job.archive, job.endpoint, &mut session, &standing, &record, &thawed.gtids).await?;
        record.gtids_after = Some(thawed.gtids.clone());
        record.locked_us = u64::try_from(thawed.held.as_micros()).ok();
        record.finished_at_us = Some(clock::now_us());
        record.step = Some(Step::Created);
        for volume in &mut record.volumes {
            let of_it = made.iter().find(|m| m.volume_id == volume.volume_id);
            let of_it = of_it.ok_or_else(|| anyhow!("EC2 made no snapshot of volume {}", volume.volume_id))?;
            for copy in volume.copies.iter_mut().take(1) {
                copy.snapshot_id = Some(of_it.snapshot_id.clone());
                copy.encrypted = of_it.encrypted;
            }
        }
        anyhow::Ok((record, thawed))
    };
    match counted.await {
        Ok((record, thawed)) => {
            kept.change(|s| *s = record).await?;
            info!(snapshot = %kept.record.id, volumes = kept.record.volumes.len(), "began a snapshot under the lock");
            Ok((kept, thawed))
        }
        Err(e) => {
            let failure = render(&e).trim_start_matches("error: ").to_owned();
            let now_us = job.archive.clock.now_us();
            if maybe_made.load(Ordering::Relaxed) {
                give_up(&mut kept, failure, now_us).await?;
                if let Err(e) = onward(job.archive, job.settings.cloud.as_ref(), job.id, job.progress).await {
                    warn!(
                        snapshot = job.id,
                        "what may have been made is looked for later: {}",
                        message(&e)
                    );
                }
            } else {
                kept.change(|s| {
                    s.state = SnapshotState::Failed;
                    s.step = Some(Step::Deleted);
                    s.failure = Some(failure);
                    s.finished_at_us = Some(now_us);
                })
                .await?;
            }
            Err(e)
        }
    }
}

async fn preflight(job: &Job<'_>, session: &mut Session, standing: &Standing) -> anyhow::Result<()> {
    passed(preflight::lock_privileges(session).await?)?;
    if !standing.ships() {
        passed(preflight::replication(session).await?)?;
    }
    if job.settings.limits.lock == Lock::Instance {
        let foreign = preflight::foreign_engine_tables(session).await?;
        let is_accepted = |t: &&String| !job.accept_empty.iter().any(|a| t.split(' ').next() == Some(a.as_str()));
        if let Some(table) = foreign.iter().find(is_accepted) {
            let e = anyhow!("with lock = \"instance\" tables that are not InnoDB may be damaged in the snapshot: {table}");
            return Err(with_hint(
                e,
                "use lock = \"tables\", convert them to InnoDB, or name them in accept_empty of the [snapshot] section",
            ));
        }
    }
    Ok(())
}

/// What the record says of the volumes, and what EC2 is to be told.
async fn plan(job: &Job<'_>, volumes: &[Volume]) -> anyhow::Result<(Vec<VolumeSnapshot>, Order)> {
    let cloud = &job.settings.cloud;
    let home = cloud.home_region().await?;
    if job.settings.dr_region.as_ref() == Some(&home) {
        let e = anyhow!("copies of this server's volumes would go to the region {home}, where they are");
        return Err(with_hint(e, "set dr_region in the [ebs] section to another region"));
    }
    let ids: Vec<String> = volumes.iter().map(|v| v.volume_id.clone()).collect();
    let facts = cloud.facts(&ids).await?;
    ensure_ours(cloud.as_ref(), &facts).await?;
    let order = cloud.order(&facts).await?;
    let regions = [Some(home), job.settings.dr_region.clone()];
    let recorded = volumes.iter().zip(&facts).map(|(volume, facts)| VolumeSnapshot {
        volume_id: volume.volume_id.clone(),
        mount_point: volume.mount_point.clone(),
        filesystem: volume.filesystem.clone(),
        partition: volume.partition,
        size_gib: facts.size_gib,
        holds: volume.holds.clone(),
        copies: regions.iter().flatten().map(|region| pending_copy(region)).collect(),
    });
    Ok((recorded.collect(), order))
}

/// A configuration that was copied from another node names volumes that hold another server's data.
pub(super) async fn ensure_ours(cloud: &dyn Cloud, facts: &[VolumeFacts]) -> anyhow::Result<()> {
    let Some(machine) = cloud.machine().await else {
        return Ok(());
    };
    let alien = facts.iter().find(|f| f.instance_id.as_ref() != Some(&machine));
    let Some(VolumeFacts {
        volume_id, instance_id, ..
    }) = alien
    else {
        return Ok(());
    };
    let e = match instance_id {
        Some(other) => anyhow!("volume {volume_id} is attached to {other}, and this machine is {machine}"),
        None => anyhow!("volume {volume_id} is attached to nothing, and this machine is {machine}"),
    };
    Err(with_hint(
        e,
        "correct volumes in the [ebs] section: they hold another server's data",
    ))
}

async fn first_record(
    job: &Job<'_>,
    standing: &Standing,
    variables: &Variables,
    session: &mut Session,
) -> anyhow::Result<Snapshot> {
    Ok(Snapshot {
        format: FORMAT_VERSION,
        id: job.id.to_owned(),
        state: SnapshotState::Started,
        provider: Provider::Ebs,
        timeline: timeline_of(job.archive, &Mysql(job.endpoint.clone()), standing).await?.id,
        server_uuid: variables.server_uuid()?,
        server_version: variables.version().to_owned(),
        started_at_us: clock::now_us(),
        finished_at_us: None,
        gtids_before: session.gtid_executed().await?,
        gtids_after: None,
        errant: GtidSet::new(),
        variables: startup_variables(variables),
        data_key: String::new(),
        data_bytes: 0,
        stored_bytes: 0,
        stored_sha256: String::new(),
        failure: None,
        step: Some(Step::Started),
        volumes: Vec::new(),
        locked_us: None,
    })
}

fn pending_copy(region: &str) -> RegionalCopy {
    RegionalCopy {
        region: region.to_owned(),
        snapshot_id: None,
        state: CopyState::Pending,
        failure: None,
        encrypted: None,
        kms_key: None,
        tried_at_us: None,
    }
}

/// What the snapshots in EC2 are found by, and what people read there.
pub(super) fn tags_of(archive: &Archive, record: &Snapshot) -> Tags {
    let key = keys::snapshot_key(&archive.shard, &record.id);
    let tags = [
        (SHARD_TAG, archive.shard.to_string()),
        (RECORD_TAG, format!("{}/{key}", archive.store.url())),
        (OPERATION_TAG, record.id.clone()),
        (SERVER_TAG, record.server_uuid.to_string()),
        (NAME_TAG, format!("mysql-pitr {}", record.id)),
    ];
    tags.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

fn subject(job: &Job<'_>, record: &Snapshot) -> Subject {
    let mut tags = tags_of(job.archive, record);
    tags.insert(ORIGIN_TAG.to_owned(), job.origin.to_owned());
    Subject {
        volumes: record.volumes.iter().map(|v| v.volume_id.clone()).collect(),
        tags,
        description: marks::description(&job.archive.shard.to_string(), &record.id),
    }
}

/// Locks the server, begins the snapshots, and unlocks it: what EC2 answered before, and what had been executed at the begin.
async fn lock_and_create(
    job: &Job<'_>,
    order: &Order,
    volumes: &[Volume],
    record: &Snapshot,
    maybe_made: &AtomicBool,
) -> anyhow::Result<(Thawed, GtidSet, Vec<Made>)> {
    let file_systems = located::mount_points(volumes);
    let subject = subject(job, record);
    let mut pauses = Backoff::new(PAUSE_FIRST, PAUSE_LONGEST);
    let mut attempts = 1;
    loop {
        job.progress.phase("locking the server");
        let mut frozen = Frozen::take(job.endpoint, &job.settings.limits, &file_systems).await?;
        let begun = Instant::now();
        let limit = job.settings.create_timeout.min(frozen.left().saturating_sub(THAW_ROOM));
        maybe_made.store(true, Ordering::Relaxed);
        let made = job.settings.cloud.create(order, &subject, limit).await;
        frozen.part("create", begun);
        let gtids_before = frozen.gtids.clone();
        let thawed = frozen.thaw().await;
        match made {
            Ok(made) => {
                if let Some(failed) = made.iter().find(|m| matches!(m.state, MadeState::Failed(_))) {
                    bail!("EC2 failed to make {} of {}", failed.snapshot_id, failed.volume_id);
                }
                let hint = "nothing: what was begun is deleted, and the next snapshot is taken anew";
                return Ok((thawed.hint(hint)?, gtids_before, made));
            }
            Err(CloudError {
                cause: Cause::Unanswered,
                error,
            }) => {
                let limit_ms = limit.as_millis();
                return Err(error.context(format!(
                    "EC2 did not begin the snapshot within {limit_ms} ms while the server was locked"
                )));
            }
            Err(e) => {
                // An answer that is a refusal: nothing was made.
                maybe_made.store(false, Ordering::Relaxed);
                if e.cause != Cause::Throttled || attempts == THROTTLED_MAX {
                    return Err(e.into());
                }
                let pause = pauses.step();
                info!(snapshot = %record.id, "trying again in {} s: {}", pause.as_secs(), message(&e.error));
                attempts += 1;
                sleep(pause).await;
            }
        }
    }
}

/// Ready once the server's part in the shard is no longer that with which its snapshot was begun.
async fn role_lost(mut roles: watch::Receiver<Standing>, was: &Standing) -> anyhow::Error {
    loop {
        let now = roles.borrow_and_update().clone();
        if !now.takes_snapshots || now.ships() != was.ships() {
            return with_hint(
                anyhow!(
                    "the server's part in the shard changed while its snapshot was begun (it is {} now)",
                    now.role
                ),
                "nothing: whoever takes the shard's snapshots now takes the next",
            );
        }
        if roles.changed().await.is_err() {
            return pending().await;
        }
    }
}
