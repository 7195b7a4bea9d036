//! The phases, top to bottom.
//!
//! Each ends with an entry in the journal. Until the last the target does not start, and whenever the process dies, the same
//! command goes on behind the last entry.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    archive::{
        listing::Archive,
        records::{DESCENT_FILE, Descent, FORMAT_VERSION},
    },
    binlog::gtid::GtidSet,
    mysql::preflight::free_bytes,
    support::{
        clock,
        hint::{OrHint, with_hint},
        progress::{Progress, human_bytes},
    },
    volume::tarball,
};

use super::{
    crash::{crash_recover, forget_copied_server},
    instance::{Instance, Purpose, RELAY_LOG_BYTES_MAX, check_version},
    journal::{Intent, Reached},
    plan::Plan,
    replay::{Replayed, replay},
    run_as::RunAs,
    tables::CheckedTable,
    verify::{Verified, verify},
    volumes::{self, OnVolume, Volumes},
    workdir::{Source, Workdir},
};

/// What the redo log and what is replayed take beside the snapshot's data and the relay logs: a floor, not a promise.
const HEADROOM_BYTES: u64 = 512 << 20;
/// Of a server whose connection broke; added to every other failure's time.
const DEATH_PATIENCE: Duration = Duration::from_millis(500);
/// With less than this free, an error is put down to the volume.
const FULL_BYTES: u64 = 16 << 20;

/// How to recover.
#[derive(Debug, Clone)]
pub struct Settings {
    pub mysqld: PathBuf,
    pub user: Option<String>,
    pub workers: u16,
    pub target_dir: PathBuf,
    /// Throw away what an interrupted recovery left in the target.
    pub restart: bool,
    pub verify_tables: bool,
    /// For snapshots of EBS volumes.
    pub volumes: volumes::Settings,
}

/// What was recovered.
#[derive(Debug, Clone, Serialize)]
pub struct Recovered {
    pub target_dir: PathBuf,
    /// Mounted there, where it was made for this recovery.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<OnVolume>,
    pub server_uuid: Uuid,
    pub gtid_executed: GtidSet,
    /// The commit time of the last transaction that the server holds; none where nothing was replayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovered_to: Option<String>,
    pub transactions_replayed: u64,
    pub bytes_replayed: u64,
    /// Transactions that were left out, in whose places the server has empty ones.
    #[serde(skip_serializing_if = "GtidSet::is_empty")]
    pub skipped: GtidSet,
    /// Why it holds less than was asked for (`--latest-possible`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shortfall: Option<String>,
    /// XA transactions that are prepared and neither committed nor rolled back, written as `XA COMMIT` takes them.
    pub xa_prepared: Vec<String>,
    /// Events that do not run: a server disables each event that it is told of by replication, whether or not it ran at the
    /// source.
    pub events_disabled: Vec<String>,
    pub mysqld_version: String,
    /// Where `--verify tables` was asked for: every table, sound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tables: Option<Vec<CheckedTable>>,
    /// From this command's start to a server that is ready to be started.
    pub rto_ms: u64,
    /// Of `--latest`: from the last transaction's commit to this command's start. What was committed in between, if
    /// anything was, is not recovered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpo_ms: Option<u64>,
    /// How far a process before this one had come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resumed_after: Option<Reached>,
    /// Of this command.
    pub phases: Vec<Phase>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    pub name: &'static str,
    pub ms: u64,
}

/// What happens on the way; the caller's, so that it is known also where the recovery fails.
#[derive(Debug)]
pub struct Course {
    began: Instant,
    pub phases: Vec<Phase>,
    /// What a person should know.
    pub warnings: Vec<String>,
    /// How far another process had come before it was interrupted.
    pub resumed_after: Option<Reached>,
}

impl Course {
    /// `began`: when the command was given.
    pub fn new(began: Instant) -> Course {
        Course {
            began,
            phases: Vec::new(),
            warnings: Vec::new(),
            resumed_after: None,
        }
    }

    fn end(&mut self, name: &'static str) {
        let so_far: u64 = self.phases.iter().map(|p| p.ms).sum();
        self.phases.push(Phase {
            name,
            ms: self.began.elapsed().as_millis() as u64 - so_far,
        });
    }

    fn warn(&mut self, progress: &Progress, text: String) {
        progress.note(&text);
        self.warnings.push(text);
    }
}

/// Carries out `plan`, or what is left of it. One that fails before the snapshot is unpacked leaves the target as it was; later,
/// its work stays, for the same command to go on with.
pub async fn recover(
    archive: &Archive,
    plan: &Plan,
    settings: &Settings,
    progress: &Progress,
    course: &mut Course,
) -> anyhow::Result<Recovered> {
    course.end("plan");
    let newest = plan
        .legs
        .last()
        .map_or(&plan.snapshot.server_version, |leg| &leg.binlog.opening.server_version);
    check_version(&settings.mysqld, newest).await?;
    let run_as = RunAs::find(settings.user.as_deref())?;
    if plan.snapshot.provider.stores_data() {
        return recover_into(archive, plan, settings, progress, course, run_as, None).await;
    }
    let (snapshot, target) = (&plan.snapshot, &settings.target_dir);
    let mut volumes = Volumes::open(archive, snapshot, target, &settings.volumes, settings.restart, progress).await?;
    let recovered = async {
        volumes.mount(archive, snapshot, progress).await?;
        course.end("volume");
        recover_into(archive, plan, settings, progress, course, run_as, Some(&mut volumes)).await
    };
    match recovered.await {
        Ok(mut recovered) => {
            recovered.volume = Some(volumes.end()?);
            Ok(recovered)
        }
        Err(e) => {
            volumes.end_failed(progress).await;
            Err(e)
        }
    }
}

/// The phases that are the same wherever the data come from.
async fn recover_into(
    archive: &Archive,
    plan: &Plan,
    settings: &Settings,
    progress: &Progress,
    course: &mut Course,
    run_as: Option<RunAs>,
    mut volumes: Option<&mut Volumes>,
) -> anyhow::Result<Recovered> {
    let intent = Intent::of(archive, plan);
    let note = |text: String| course.warn(progress, text);
    // Of volumes nothing is left by now that is not to be taken up.
    let (source, restart) = match volumes {
        Some(_) => (Source::Volume, false),
        None => (Source::Archive, settings.restart),
    };
    let mut workdir = Workdir::open(&settings.target_dir, run_as, intent, source, restart, note)?;
    if workdir.reached() > Reached::Begun {
        course.resumed_after = Some(workdir.reached());
        progress.note(&format!("going on with the recovery that began at {}", workdir.begun_at()));
    }
    let made = make(
        archive,
        plan,
        settings,
        progress,
        &mut workdir,
        course,
        volumes.as_deref_mut(),
    );
    match made.await {
        Ok((verified, replayed)) => {
            progress.phase("moving the files into place");
            volumes.as_deref_mut().map_or(Ok(()), Volumes::finishing)?;
            workdir.finish()?;
            course.end("finish");
            Ok(report(plan, settings, verified, &replayed, course))
        }
        Err(e) => {
            let e = explain_full_disk(e, &workdir);
            if volumes.is_some() {
                // They are kept or given back as a whole.
            } else if workdir.reached() == Reached::Begun {
                workdir.discard().await;
            } else {
                progress.note("what was done so far is kept: the same command goes on with it, --restart begins anew");
            }
            Err(e)
        }
    }
}

/// Everything up to the moment where the target is to become startable.
async fn make(
    archive: &Archive,
    plan: &Plan,
    settings: &Settings,
    progress: &Progress,
    workdir: &mut Workdir,
    course: &mut Course,
    volumes: Option<&mut Volumes>,
) -> anyhow::Result<(Verified, Replayed)> {
    let mut replayed = Replayed::default();
    let lacks_proof = settings.verify_tables && workdir.verified().is_some_and(|v| v.tables.is_none());
    if lacks_proof && !workdir.prove_again()? {
        let text = "the tables are not checked: an interrupted recovery was moving its files already".to_owned();
        course.warn(progress, text);
    }
    if workdir.reached() < Reached::Replayed {
        ensure_room(plan, workdir)?;
    }
    if workdir.reached() == Reached::Begun {
        match &volumes {
            None => {
                unpack(archive, plan, progress, workdir).await?;
                course.end("unpack");
            }
            Some(volumes) => {
                crash_recover(settings, plan, workdir, volumes, progress).await?;
                workdir.unpacked()?;
                course.end("crash recovery");
            }
        }
    }
    if let Some(volumes) = volumes.filter(|_| workdir.reached() == Reached::Unpacked) {
        if let Some(text) = forget_copied_server(&plan.snapshot, workdir, volumes)? {
            course.warn(progress, text);
        }
        volumes.release_others().await?;
    }
    if workdir.reached() == Reached::Unpacked {
        let resumed = course.resumed_after.is_some();
        progress.phase("starting the server");
        let purpose = Purpose::Replay {
            workers: settings.workers,
        };
        let started = Instance::start(&settings.mysqld, workdir, &plan.snapshot, purpose).await;
        let mut instance = if resumed {
            started
                .context("the server does not start on what an interrupted recovery left")
                .hint("give the same command again; if it fails in the same way, begin anew with --restart")?
        } else {
            started?
        };
        let forgotten_and_replayed = async {
            let held = forget_replication(&mut instance, plan).await?;
            course.end("start");
            progress.phase("replaying");
            let warn = |text: String| course.warn(progress, text);
            replay(&mut instance, plan, &held, archive, progress, warn).await
        };
        replayed = match forgotten_and_replayed.await {
            Ok(replayed) => replayed,
            // A connection that broke says less than why.
            Err(e) => return Err(instance.death(DEATH_PATIENCE).await.map_or(e, |why| anyhow!(why))),
        };
        instance
            .stop(false)
            .await
            .context("the replayed server did not shut down cleanly")?;
        workdir.replayed()?;
        course.end("replay");
    }
    if let Some(verified) = workdir.verified().filter(|_| workdir.reached() == Reached::Verified) {
        return Ok((verified.clone(), replayed));
    }
    progress.phase("restarting to verify");
    let verified = verify(settings, plan, workdir, progress).await?;
    let descent = Descent {
        format: FORMAT_VERSION,
        shard: archive.shard.to_string(),
        parent: plan.path.last().id,
        server_uuid: verified.server_uuid,
        branch_set: plan.target_gtids.clone(),
        skipped: plan.newly_skipped.clone(),
    };
    workdir.write_data(DESCENT_FILE, &serde_json::to_vec_pretty(&descent)?)?;
    workdir.proven(verified.clone())?;
    course.end("verify");
    Ok((verified, replayed))
}

async fn unpack(archive: &Archive, plan: &Plan, progress: &Progress, workdir: &mut Workdir) -> anyhow::Result<()> {
    progress.phase("unpacking the snapshot");
    let snapshot = &plan.snapshot;
    let (key, sha256) = (&snapshot.data_key, &snapshot.stored_sha256);
    tarball::unpack(&archive.store, key, sha256, &workdir.data(), |read| {
        progress.update(|| format!("{} of {}", human_bytes(read), human_bytes(snapshot.stored_bytes)));
    })
    .await?;
    workdir.own_data()?;
    workdir.unpacked()
}

fn report(plan: &Plan, settings: &Settings, verified: Verified, replayed: &Replayed, course: &Course) -> Recovered {
    Recovered {
        target_dir: settings.target_dir.clone(),
        volume: None,
        server_uuid: verified.server_uuid,
        gtid_executed: plan.target_gtids.clone(),
        recovered_to: plan.last.as_ref().map(|stop| clock::format_utc(stop.commit_us)),
        transactions_replayed: replayed.transactions,
        bytes_replayed: replayed.bytes,
        skipped: plan.skipped.clone(),
        shortfall: plan.shortfall.clone(),
        xa_prepared: verified.xa_prepared,
        events_disabled: verified.events_disabled,
        mysqld_version: verified.server_version,
        tables: verified.tables,
        rto_ms: course.began.elapsed().as_millis() as u64,
        rpo_ms: None,
        resumed_after: course.resumed_after,
        phases: course.phases.clone(),
        warnings: course.warnings.clone(),
    }
}

fn ensure_room(plan: &Plan, workdir: &Workdir) -> anyhow::Result<()> {
    let replayed: u64 = plan.legs.iter().map(|leg| leg.binlog.bytes()).sum();
    let is_on_volume = !plan.snapshot.provider.stores_data();
    let is_unpacked = workdir.reached() >= Reached::Unpacked;
    let data = if is_unpacked || is_on_volume {
        0
    } else {
        plan.snapshot.data_bytes
    };
    let needed = data + replayed.min(RELAY_LOG_BYTES_MAX) + HEADROOM_BYTES;
    let free = free_bytes(&workdir.data())?;
    if free < needed {
        let e = anyhow!(
            "the target folder {} has {} free, and recovery needs {}{}",
            workdir.target().display(),
            human_bytes(free),
            human_bytes(needed),
            if is_unpacked { " to go on" } else { "" }
        );
        return Err(e).hint(if is_on_volume {
            "the volume is as large as the copied server's: give --keep-volume, let it and its file system grow, and start the same command again"
        } else if is_unpacked {
            "make room on its volume, and start the same command again: it goes on where it was"
        } else {
            "choose a larger volume for --target-dir"
        });
    }
    Ok(())
}

/// A full volume shows itself in many ways.
fn explain_full_disk(e: anyhow::Error, workdir: &Workdir) -> anyhow::Error {
    let Ok(free) = free_bytes(workdir.target()) else { return e };
    if free > FULL_BYTES || workdir.reached() == Reached::Begun {
        return e;
    }
    let what = format!(
        "the volume of {} is full ({} free)",
        workdir.target().display(),
        human_bytes(free)
    );
    with_hint(
        e.context(what),
        "make room on it, and start the same command again: it goes on where it was",
    )
}

/// What the copied server replicated from is none of its business any more. Returns what it has executed: only the server
/// itself knows exactly what a copy holds.
async fn forget_replication(instance: &mut Instance, plan: &Plan) -> anyhow::Result<GtidSet> {
    instance.session.execute("RESET REPLICA ALL").await?;
    let held = instance.session.gtid_executed().await?;
    let lost = plan.snapshot.gtids_before.subtract(&held);
    let alien = held.subtract(&plan.target_gtids);
    if !lost.is_empty() || !alien.is_empty() {
        bail!(
            "the snapshot {} does not hold what its record says: it lacks `{lost}`, and has `{alien}` too many",
            plan.snapshot.id
        );
    }
    Ok(held)
}
