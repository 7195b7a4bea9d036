//! The phases, top to bottom.
//!
//! One that fails leaves the target as it was. One that is killed leaves it unstartable, and the next one says so.

use std::{path::PathBuf, time::Instant};

use anyhow::{Context, bail};
use serde::Serialize;
use uuid::Uuid;

use crate::{
    archive::{
        listing::Archive,
        records::{DESCENT_FILE, Descent, FORMAT_VERSION},
    },
    binlog::gtid::GtidSet,
    mysql::{preflight::free_bytes, query::Session},
    support::{
        clock,
        hint::OrHint,
        progress::{Progress, human_bytes},
    },
    volume::tarball,
};

use super::{
    instance::{Instance, Purpose, RELAY_LOG_BYTES_MAX, check_version},
    plan::Plan,
    replay::{Replayed, replay},
    workdir::{RunAs, Workdir},
};

/// What the redo log and what is replayed take beside the snapshot's data and the relay logs: a floor, not a promise.
const HEADROOM_BYTES: u64 = 512 << 20;

/// How to recover.
#[derive(Debug, Clone)]
pub struct Settings {
    pub mysqld: PathBuf,
    pub user: Option<String>,
    pub workers: u16,
    pub target_dir: PathBuf,
}

/// What was recovered.
#[derive(Debug, Clone, Serialize)]
pub struct Recovered {
    pub target_dir: PathBuf,
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
    /// From the command's start to a server that is ready to be started.
    pub rto_ms: u64,
    pub phases: Vec<Phase>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    pub name: &'static str,
    pub ms: u64,
}

struct Phases {
    began: Instant,
    done: Vec<Phase>,
}

impl Phases {
    fn end(&mut self, name: &'static str) {
        let so_far: u64 = self.done.iter().map(|p| p.ms).sum();
        self.done.push(Phase {
            name,
            ms: self.began.elapsed().as_millis() as u64 - so_far,
        });
    }
}

/// Carries out `plan`. `began`: when the command was given.
pub async fn recover(
    archive: &Archive,
    plan: &Plan,
    settings: &Settings,
    progress: &Progress,
    began: Instant,
) -> anyhow::Result<Recovered> {
    let mut phases = Phases { began, done: Vec::new() };
    phases.end("plan");
    let newest = plan
        .legs
        .last()
        .map_or(&plan.snapshot.server_version, |leg| &leg.binlog.opening.server_version);
    check_version(&settings.mysqld, newest).await?;
    let workdir = Workdir::create(&settings.target_dir, RunAs::find(settings.user.as_deref())?)?;
    match make(archive, plan, settings, progress, &workdir, &mut phases).await {
        Ok((verified, replayed)) => {
            workdir.finish()?;
            phases.end("finish");
            Ok(report(plan, settings, verified, &replayed, phases))
        }
        Err(e) => {
            workdir.discard().await;
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
    workdir: &Workdir,
    phases: &mut Phases,
) -> anyhow::Result<(Verified, Replayed)> {
    ensure_room(plan, workdir)?;

    progress.phase("unpacking the snapshot");
    let snapshot = &plan.snapshot;
    tarball::unpack(
        &archive.store,
        &snapshot.data_key,
        &snapshot.stored_sha256,
        &workdir.data(),
        |read| {
            progress.update(|| format!("{} of {}", human_bytes(read), human_bytes(snapshot.stored_bytes)));
        },
    )
    .await?;
    workdir.own_data()?;
    phases.end("unpack");

    progress.phase("starting the server");
    let purpose = Purpose::Replay {
        workers: settings.workers,
    };
    let mut instance = Instance::start(&settings.mysqld, workdir, snapshot, purpose).await?;
    let held = forget_replication(&mut instance, plan).await?;
    phases.end("start");

    progress.phase("replaying");
    let replayed = replay(&mut instance, plan, &held, archive, progress).await?;
    phases.end("replay");

    progress.phase("restarting to verify");
    instance
        .stop(false)
        .await
        .context("the replayed server did not shut down cleanly")?;
    let verified = verify(settings, plan, workdir).await?;
    phases.end("verify");

    let descent = Descent {
        format: FORMAT_VERSION,
        shard: archive.shard.to_string(),
        parent: plan.path.last().id,
        server_uuid: verified.server_uuid,
        branch_set: plan.target_gtids.clone(),
        skipped: plan.newly_skipped.clone(),
    };
    workdir.write_data(DESCENT_FILE, &serde_json::to_vec_pretty(&descent)?)?;
    Ok((verified, replayed))
}

fn report(plan: &Plan, settings: &Settings, verified: Verified, replayed: &Replayed, phases: Phases) -> Recovered {
    Recovered {
        target_dir: settings.target_dir.clone(),
        server_uuid: verified.server_uuid,
        gtid_executed: plan.target_gtids.clone(),
        recovered_to: plan.last.as_ref().map(|stop| clock::format_utc(stop.commit_us)),
        transactions_replayed: replayed.transactions,
        bytes_replayed: replayed.bytes,
        skipped: plan.skipped.clone(),
        shortfall: plan.shortfall.clone(),
        xa_prepared: verified.xa_prepared,
        events_disabled: verified.events_disabled,
        rto_ms: phases.began.elapsed().as_millis() as u64,
        phases: phases.done,
    }
}

fn ensure_room(plan: &Plan, workdir: &Workdir) -> anyhow::Result<()> {
    let replayed: u64 = plan.legs.iter().map(|leg| leg.binlog.bytes()).sum();
    let needed = plan.snapshot.data_bytes + replayed.min(RELAY_LOG_BYTES_MAX) + HEADROOM_BYTES;
    let free = free_bytes(&workdir.data())?;
    if free < needed {
        let e = anyhow::anyhow!(
            "the target folder {} has {} free, and recovery needs {}",
            workdir.target().display(),
            human_bytes(free),
            human_bytes(needed)
        );
        return Err(e).hint("choose a larger volume for --target-dir");
    }
    Ok(())
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

/// What the recovered server says of itself.
struct Verified {
    server_uuid: Uuid,
    xa_prepared: Vec<String>,
    events_disabled: Vec<String>,
}

/// i7: a clean start with the server's own durability, and exactly the planned set.
async fn verify(settings: &Settings, plan: &Plan, workdir: &Workdir) -> anyhow::Result<Verified> {
    let mut instance = Instance::start(&settings.mysqld, workdir, &plan.snapshot, Purpose::Verify)
        .await
        .context("the recovered server does not start")?;
    let executed = instance.session.gtid_executed().await?;
    if executed != plan.target_gtids {
        bail!("the recovered server holds {executed} instead of {}", plan.target_gtids);
    }
    let server_uuid = instance.session.variables().await?.server_uuid()?;
    let xa_prepared = xa_prepared(&mut instance.session).await?;
    let events: Vec<(String,)> = instance
        .session
        .rows(
            "SELECT CONCAT('`', event_schema, '`.`', event_name, '`') FROM information_schema.events \
             WHERE status LIKE '%SIDE_DISABLED' ORDER BY 1",
        )
        .await?;
    instance.session.execute("SET GLOBAL super_read_only = OFF").await?;
    instance
        .stop(true)
        .await
        .context("the recovered server did not shut down cleanly")?;
    Ok(Verified {
        server_uuid,
        xa_prepared,
        events_disabled: events.into_iter().map(|(name,)| name).collect(),
    })
}

async fn xa_prepared(session: &mut Session) -> anyhow::Result<Vec<String>> {
    let rows: Vec<(i64, usize, usize, String)> = session.rows("XA RECOVER CONVERT XID").await?;
    Ok(rows
        .into_iter()
        .map(|(format, gtrid_bytes, _, data)| {
            // Both parts in one hexadecimal number; where the first ends, its length says.
            let digits = data.trim_start_matches("0x");
            let (gtrid, bqual) = digits.split_at_checked(2 * gtrid_bytes).unwrap_or((digits, ""));
            format!("X'{gtrid}',X'{bqual}',{format}")
        })
        .collect())
}
