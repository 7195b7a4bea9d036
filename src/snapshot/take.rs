//! One snapshot from the first record to the last.
//!
//! The record is stored as `started` before anything is done and changes once, to `complete` or `failed`. An agent that
//! dies in between leaves a started record and perhaps a staged clone; [`sweep`] ends both at the next start.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::bail;
use jiff::{Timestamp, tz::TimeZone};
use tracing::{info, warn};
use uuid::Uuid;

use crate::{
    archive::{
        codec::Codec,
        keys,
        listing::Archive,
        path::Path as TimelinePath,
        records::{FORMAT_VERSION, Provider, Snapshot, SnapshotState},
    },
    binlog::gtid::GtidSet,
    mysql::{
        endpoint::Endpoint,
        preflight::{self, Check, Verdict},
        query::{Session, Variables},
        server::Mysql,
    },
    ship::{standing::Standing, timeline_of},
    store::Put,
    support::{
        clock,
        hint::{OrHint, render},
        progress::{Progress, human_bytes},
    },
    volume::{clone, tarball},
};

use super::{errant::errant, volumes};

/// Variables without which the data does not start, or starts as something else.
const STARTUP_VARIABLES: [&str; 17] = [
    "innodb_data_file_path",
    "innodb_page_size",
    "lower_case_table_names",
    "innodb_undo_tablespaces",
    "default_authentication_plugin",
    "plugin_load",
    // Where the files are: a copy of the volumes has them there.
    "datadir",
    "innodb_data_home_dir",
    "innodb_directories",
    "innodb_doublewrite_dir",
    "innodb_log_group_home_dir",
    "innodb_undo_directory",
    "log_bin_basename",
    "log_bin_index",
    // And how they are written, which decides what a crash leaves.
    "innodb_doublewrite",
    "innodb_flush_log_at_trx_commit",
    "sync_binlog",
];

/// Of tables that are refused, so many are named.
const TABLES_SHOWN: usize = 5;

/// How to take a snapshot.
#[derive(Debug, Clone)]
pub struct Settings {
    /// None where the clone plugin takes them.
    pub volumes: Option<volumes::Settings>,
    pub staging_dir: PathBuf,
    pub codec: Codec,
    /// Tables that are not InnoDB, as `schema.table`, which may be empty in the snapshot.
    pub accept_empty: Vec<String>,
}

/// A new snapshot's or request's name; names sort by time.
pub fn new_id() -> String {
    let now = Timestamp::now().to_zoned(TimeZone::UTC);
    let random = Uuid::new_v4().simple().to_string();
    format!("{}-{}", now.strftime("%Y%m%dT%H%M%S%.6fZ"), &random[..8])
}

/// Whether `name` is one that [`new_id`] makes: whoever may write into the store names requests.
pub fn is_id(name: &str) -> bool {
    const EXAMPLE: &[u8] = b"20261121T101403.120000Z-0a1b2c3d";
    let is_alike = |(byte, example): (u8, u8)| match example {
        b'T' | b'Z' | b'.' | b'-' => byte == example,
        _ => byte.is_ascii_hexdigit(),
    };
    name.len() == EXAMPLE.len() && name.bytes().zip(EXAMPLE.iter().copied()).all(is_alike)
}

/// Takes a snapshot under the name `id`. Its timeline is claimed if it has none.
pub async fn take(
    archive: &Archive,
    endpoint: &Endpoint,
    settings: &Settings,
    standing: &Standing,
    id: &str,
    progress: &Progress,
) -> anyhow::Result<Snapshot> {
    let mut session = Session::connect(endpoint).await?;
    let variables = session.variables().await?;
    let server_uuid = variables.server_uuid()?;
    let record = Snapshot {
        format: FORMAT_VERSION,
        id: id.to_owned(),
        state: SnapshotState::Started,
        provider: Provider::Clone,
        timeline: timeline_of(archive, &Mysql(endpoint.clone()), standing).await?.id,
        server_uuid,
        server_version: variables.version().to_owned(),
        started_at_us: clock::now_us(),
        finished_at_us: None,
        gtids_before: session.gtid_executed().await?,
        gtids_after: None,
        errant: GtidSet::new(),
        variables: startup_variables(&variables),
        data_key: keys::snapshot_data_key(&archive.shard, id, settings.codec),
        data_bytes: 0,
        stored_bytes: 0,
        stored_sha256: String::new(),
        failure: None,
        step: None,
        volumes: Vec::new(),
        locked_us: None,
    };
    let key = keys::snapshot_key(&archive.shard, id);
    if !archive.put_record(&key, &record, Put::IfAbsent).await? {
        bail!("there is a snapshot {id} already");
    }
    let taken = copy(archive, endpoint, &mut session, settings, standing, record.clone(), progress).await;
    let ended = match &taken {
        Ok(complete) => complete.clone(),
        Err(e) => Snapshot {
            state: SnapshotState::Failed,
            finished_at_us: Some(clock::now_us()),
            failure: Some(render(e).trim_start_matches("error: ").to_owned()),
            ..record
        },
    };
    end(archive, &ended).await?;
    let taken = taken?;
    info!(
        snapshot = id,
        data_bytes = taken.data_bytes,
        stored_bytes = taken.stored_bytes,
        timeline = taken.timeline,
        "took a snapshot"
    );
    Ok(taken)
}

async fn preflight(session: &mut Session, settings: &Settings, standing: &Standing) -> anyhow::Result<()> {
    let mut checks = preflight::clone_plugin(session, &settings.staging_dir).await?;
    checks.extend(replication(session, standing).await?);
    checks.into_iter().try_for_each(passed)?;
    let foreign = preflight::foreign_engine_tables(session).await?;
    let refused: Vec<&String> = foreign
        .iter()
        .filter(|t| !settings.accept_empty.iter().any(|a| t.split(' ').next() == Some(a.as_str())))
        .collect();
    if !refused.is_empty() {
        let more = refused.len().saturating_sub(TABLES_SHOWN);
        let shown: Vec<&str> = refused.iter().take(TABLES_SHOWN).map(|t| t.as_str()).collect();
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        return Err(anyhow::anyhow!(
            "tables that are not InnoDB would be empty in the snapshot: {}{more}",
            shown.join(", ")
        ))
        .hint("convert them to InnoDB, or name them in accept_empty of the [snapshot] section");
    }
    Ok(())
}

pub(super) fn passed(check: Check) -> anyhow::Result<()> {
    if check.verdict == Verdict::Failed {
        return Err(anyhow::anyhow!("{}: {}", check.name, check.detail)).hint(check.hint.unwrap_or_default());
    }
    Ok(())
}

/// Of a replica, whether it replicates: one that does not may hold a history that its primary has left behind, and its data would be
/// filed under the new one.
async fn replication(session: &mut Session, standing: &Standing) -> anyhow::Result<Option<Check>> {
    Ok(match standing.ships() {
        true => None,
        false => Some(preflight::replication(session).await?),
    })
}

async fn copy(
    archive: &Archive,
    endpoint: &Endpoint,
    session: &mut Session,
    settings: &Settings,
    standing: &Standing,
    record: Snapshot,
    progress: &Progress,
) -> anyhow::Result<Snapshot> {
    preflight(session, settings, standing).await?;
    progress.phase("cloning the data");
    let staged = clone::clone_into(endpoint, &settings.staging_dir, &record.id, progress).await?;
    let gtids_after = session.gtid_executed().await?;
    let (timeline, errant) = history(archive, endpoint, session, standing, &record, &gtids_after).await?;
    progress.phase("storing the copy");
    let packed = tarball::pack(staged.path(), &archive.store, &record.data_key, settings.codec, |stored| {
        progress.update(|| human_bytes(stored));
    })
    .await?;
    Ok(Snapshot {
        state: SnapshotState::Complete,
        timeline,
        finished_at_us: Some(clock::now_us()),
        gtids_after: Some(gtids_after),
        errant,
        data_bytes: packed.data_bytes,
        stored_bytes: packed.stored_bytes,
        stored_sha256: packed.stored_sha256,
        ..record
    })
}

/// The timeline that a copy belongs to which was made while the server executed up to `gtids_after`, and what of it is in nobody's history.
pub(super) async fn history(
    archive: &Archive,
    endpoint: &Endpoint,
    session: &mut Session,
    standing: &Standing,
    record: &Snapshot,
    gtids_after: &GtidSet,
) -> anyhow::Result<(u32, GtidSet)> {
    // The server's timeline may have changed since; what was copied belongs to the one that it is on now.
    let timeline = timeline_of(archive, &Mysql(endpoint.clone()), standing).await?.id;
    let path = TimelinePath::find(&archive.timelines().await?, Some(timeline))?;
    if path.inherited(record.timeline).is_none() || !record.gtids_before.is_subset(gtids_after) {
        return Err(anyhow::anyhow!(
            "the server's history began anew while it was copied (RESET BINARY LOGS AND GTIDS)"
        ))
        .hint("take the snapshot again");
    }
    let errant = if standing.ships() {
        GtidSet::new()
    } else {
        replication(session, standing).await?.map_or(Ok(()), passed)?;
        errant_of_both(archive, &path, record, gtids_after).await?
    };
    Ok((timeline, errant))
}

/// What the copy holds that is in nobody's history. It must be known exactly: a recovery is compared with it.
async fn errant_of_both(
    archive: &Archive,
    path: &TimelinePath,
    record: &Snapshot,
    gtids_after: &GtidSet,
) -> anyhow::Result<GtidSet> {
    let errant = errant(archive, path, gtids_after).await?;
    let meanwhile = errant.subtract(&record.gtids_before);
    if !meanwhile.is_empty() {
        return Err(anyhow::anyhow!(
            "the replica executed transactions of its own while it was copied, and nobody knows whether the copy holds them: {meanwhile}"
        ))
        .hint("see who writes to the replica (super_read_only keeps everybody from it), and take the snapshot again");
    }
    if !errant.is_empty() {
        warn!(
            snapshot = %record.id, %errant,
            "this replica executed transactions that are in nobody's history: the snapshot holds them, and so does whatever is recovered from it"
        );
    }
    Ok(errant)
}

/// Replaces a started record with its end.
async fn end(archive: &Archive, ended: &Snapshot) -> anyhow::Result<()> {
    let key = keys::snapshot_key(&archive.shard, &ended.id);
    let (stored, version): (Snapshot, _) = archive.record(&key).await?;
    if stored.state != SnapshotState::Started || !archive.put_record(&key, ended, Put::IfMatch(version)).await? {
        bail!("the record of snapshot {} was changed by somebody else", ended.id);
    }
    Ok(())
}

pub(super) fn startup_variables(variables: &Variables) -> BTreeMap<String, String> {
    let known = |name: &str| variables.get(&[name]).map(|value| (name.to_owned(), value.to_owned()));
    STARTUP_VARIABLES.into_iter().filter_map(known).collect()
}

/// Ends what an agent of this server left behind when it died. Call it under the state lock only.
pub async fn sweep(archive: &Archive, settings: &Settings, server_uuid: Uuid) -> anyhow::Result<()> {
    clone::sweep(&settings.staging_dir, is_id);
    for snapshot in archive.readable_snapshots().await?.0 {
        let is_ours = snapshot.server_uuid == server_uuid && snapshot.provider == Provider::Clone;
        if snapshot.state == SnapshotState::Started && is_ours {
            warn!(snapshot = %snapshot.id, "a snapshot was interrupted and is given up");
            let failure = Some("the agent died while it was taken".to_owned());
            end(
                archive,
                &Snapshot {
                    state: SnapshotState::Failed,
                    failure,
                    finished_at_us: Some(clock::now_us()),
                    ..snapshot
                },
            )
            .await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_recognised_and_sort_by_time() {
        let (a, b) = (new_id(), new_id());
        assert!(is_id(&a) && is_id(&b), "{a}");
        assert!(a[..22] <= b[..22]);
        assert!(!is_id("mysql") && !is_id("#innodb_redo") && !is_id(&"*".repeat(a.len())));
    }
}
