//! What a recovery makes in EC2, stored before it is made.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    archive::{
        listing::Archive,
        records::{FolderRole, HeldFolder, Snapshot},
    },
    recover::journal,
    support::{clock, durable, hint::with_hint},
    volume::disks::Place,
};

const FORMAT: u32 = 1;
/// What a datadir must not lie apart from: these are not moved.
const IN_DATADIR: [FolderRole; 5] = [
    FolderRole::System,
    FolderRole::Redo,
    FolderRole::Undo,
    FolderRole::Doublewrite,
    FolderRole::Tablespaces,
];

/// What a recovery makes in EC2.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Journal {
    pub(super) format: u32,
    /// Names whatever it makes.
    pub(super) id: Uuid,
    pub(super) archive: String,
    pub(super) shard: String,
    pub(super) snapshot: String,
    pub(super) place: Place,
    pub(super) begun_at: String,
    /// Whether the target folder was not there before.
    pub(super) created_target: bool,
    /// Whether the data may be in place already: nothing is given back or arranged any more.
    pub(super) finishing: bool,
    pub(super) volumes: Vec<Made>,
}

/// A volume that is made, or about to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Made {
    pub(super) snapshot_id: String,
    pub(super) filesystem: String,
    pub(super) partition: Option<u32>,
    /// Where the copied server had it.
    pub(super) was_at: PathBuf,
    /// Where it is here.
    pub(super) mount_point: PathBuf,
    pub(super) holds_data: bool,
    /// Stored before EC2 is asked for it.
    pub(super) asked: bool,
    /// None until EC2 has answered.
    pub(super) volume_id: Option<String>,
    /// Not needed any more, and given back.
    pub(super) released: bool,
}

impl Journal {
    pub(super) fn begin(
        archive: &Archive,
        snapshot: &Snapshot,
        target: &Path,
        folder: &Path,
        place: Place,
    ) -> anyhow::Result<Journal> {
        let volumes = volumes_of(snapshot, target, folder, &place.region)?;
        Ok(Journal {
            format: FORMAT,
            id: Uuid::new_v4(),
            archive: archive.store.url().to_string(),
            shard: archive.shard.to_string(),
            snapshot: snapshot.id.clone(),
            place,
            begun_at: clock::format_utc(clock::now_us()),
            created_target: !target.exists(),
            finishing: false,
            volumes,
        })
    }

    pub(super) fn read(folder: &Path) -> anyhow::Result<Option<Journal>> {
        let path = folder.join(journal::FILE);
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let journal: Journal =
            serde_json::from_slice(&bytes).with_context(|| format!("{} is not a recovery's journal", path.display()))?;
        if journal.format > FORMAT {
            bail!("{} was written by a newer mysql-pitr", path.display());
        }
        Ok(Some(journal))
    }

    pub(super) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let path = folder.join(journal::FILE);
        durable::write(&path, &serde_json::to_vec_pretty(self)?).with_context(|| format!("cannot write {}", path.display()))
    }

    /// What a volume is found by, and made but once.
    pub(super) fn tag(&self, at: usize) -> String {
        format!("{}-{at}", self.id)
    }
}

/// What is to be made of a snapshot in a region: the data's volume first.
///
/// # Errors
/// Where the copy could not be started: then nothing is made.
fn volumes_of(snapshot: &Snapshot, target: &Path, folder: &Path, region: &str) -> anyhow::Result<Vec<Made>> {
    ensure_plain(snapshot)?;
    let datadir = datadir(snapshot)?;
    // Tablespaces are found below it, of the others the replaying server is told nothing.
    let is_in_datadir = |held: &HeldFolder| match held.role {
        FolderRole::Tablespaces => held.path.starts_with(&datadir),
        _ => held.path == datadir,
    };
    for held in snapshot.volumes.iter().flat_map(|v| &v.holds) {
        if IN_DATADIR.contains(&held.role) && !is_in_datadir(held) {
            let e = anyhow!(
                "snapshot {} is of a server with its {} in {}, and not in its datadir {}",
                snapshot.id,
                held.role,
                held.path.display(),
                datadir.display()
            );
            let hint = "such a copy is not recovered by this command: recover from a snapshot of the clone provider, or mount the volumes by hand";
            return Err(with_hint(e, hint));
        }
    }
    let mut volumes = Vec::new();
    for (i, v) in snapshot.volumes.iter().enumerate() {
        let Some(snapshot_id) = v.complete_in(region) else {
            let e = anyhow!(
                "snapshot {} has no complete copy of volume {} in {region}",
                snapshot.id,
                v.volume_id
            );
            return Err(with_hint(
                e,
                "recover in the region that has one: `mysql-pitr list` says which",
            ));
        };
        let holds_data = v.holds.iter().any(|h| h.role == FolderRole::Datadir);
        volumes.push(Made {
            snapshot_id: snapshot_id.to_owned(),
            filesystem: v.filesystem.clone(),
            partition: v.partition,
            was_at: v.mount_point.clone(),
            mount_point: if holds_data {
                target.to_owned()
            } else {
                folder.join(i.to_string())
            },
            holds_data,
            asked: false,
            volume_id: None,
            released: false,
        });
    }
    // The target covers what lies below it.
    volumes.sort_by_key(|m| !m.holds_data);
    Ok(volumes)
}

pub(super) fn datadir(snapshot: &Snapshot) -> anyhow::Result<PathBuf> {
    let mut held = snapshot.volumes.iter().flat_map(|v| &v.holds);
    let datadir = held.find(|h| h.role == FolderRole::Datadir).map(|h| h.path.clone());
    datadir.with_context(|| {
        format!(
            "the record of snapshot {} names no volume that holds the datadir",
            snapshot.id
        )
    })
}

/// A record comes from a bucket, and where its paths lead root goes.
fn ensure_plain(snapshot: &Snapshot) -> anyhow::Result<()> {
    let is_plain = |path: &Path| path.is_absolute() && !path.components().any(|c| c == Component::ParentDir);
    let recorded = ["datadir", "log_bin_basename", "log_bin_index"].into_iter();
    let recorded = recorded.filter_map(|name| snapshot.variables.get(name).filter(|v| !v.is_empty()).map(Path::new));
    let held = snapshot.volumes.iter().flat_map(|v| &v.holds).map(|h| h.path.as_path());
    let mut paths = held
        .chain(snapshot.volumes.iter().map(|v| v.mount_point.as_path()))
        .chain(recorded);
    match paths.find(|path| !is_plain(path)) {
        None => Ok(()),
        Some(path) => bail!(
            "the record of snapshot {} names the path {}, which no server has; it was not written by mysql-pitr",
            snapshot.id,
            path.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{archive::records::CopyState, support::hint::message};

    const REGION: &str = "eu-central-1";

    /// Of a server with its data in `/data/mysql`, and whatever else is said, on volumes at `/data` and `/logs`.
    fn snapshot(held: &[(FolderRole, &str)]) -> Snapshot {
        let volume = |id: &str, mount_point: &str, own: (FolderRole, &str)| {
            let holds = held.iter().chain([&own]).filter(|(_, path)| path.starts_with(mount_point));
            let holds: Vec<HeldFolder> = holds
                .map(|(role, path)| HeldFolder {
                    role: *role,
                    path: path.into(),
                })
                .collect();
            serde_json::json!({
                "volume_id": format!("vol-{id}"), "mount_point": mount_point, "filesystem": "xfs", "size_gib": 1, "holds": holds,
                "copies": [{ "region": REGION, "snapshot_id": format!("snap-{id}"), "state": "complete" }],
            })
        };
        let gtids = "00000000-0000-0000-0000-000000000001:1-5";
        let record = serde_json::json!({
            "format": 1, "id": "s", "state": "complete", "provider": "ebs", "timeline": 1, "server_uuid": Uuid::nil(),
            "server_version": "", "started_at_us": 0, "finished_at_us": 0, "gtids_before": gtids, "gtids_after": gtids,
            "variables": { "datadir": "/data/mysql/" }, "data_key": "", "data_bytes": 0, "stored_bytes": 0, "stored_sha256": "",
            "volumes": [volume("1", "/logs", (FolderRole::Binlog, "/logs")), volume("2", "/data", (FolderRole::Datadir, "/data/mysql"))],
        });
        serde_json::from_value(record).unwrap()
    }

    fn made(snapshot: &Snapshot, region: &str) -> Result<Vec<Made>, String> {
        volumes_of(snapshot, Path::new("/t"), Path::new("/.t"), region).map_err(|e| message(&e))
    }

    #[test]
    fn the_data_are_on_the_target_and_the_rest_beside_it() {
        let tablespaces = (FolderRole::Tablespaces, "/data/mysql/more");
        let redo = (FolderRole::Redo, "/data/mysql");
        let made = made(&snapshot(&[tablespaces, redo]), REGION).unwrap();
        let places: Vec<(&str, &Path)> = made
            .iter()
            .map(|m| (m.snapshot_id.as_str(), m.mount_point.as_path()))
            .collect();
        assert_eq!(places, [("snap-2", Path::new("/t")), ("snap-1", Path::new("/.t/0"))]);
    }

    #[test]
    fn what_would_not_start_is_refused() {
        for role in IN_DATADIR {
            for apart in ["/data/apart", "/logs/apart"] {
                let error = made(&snapshot(&[(role, apart)]), REGION).unwrap_err();
                assert!(
                    error.contains(&format!("its {role} in {apart}, and not in its datadir")),
                    "{error}"
                );
            }
        }
        for way_out in ["/data/../etc", "data"] {
            let mut snapshot = snapshot(&[]);
            snapshot.volumes[0].mount_point = way_out.into();
            let error = made(&snapshot, REGION).unwrap_err();
            assert!(error.contains(way_out) && error.contains("which no server has"), "{error}");
        }
        let mut incomplete = snapshot(&[]);
        incomplete.volumes[0].copies[0].state = CopyState::Pending;
        for (snapshot, region) in [(incomplete, REGION), (snapshot(&[]), "us-east-1")] {
            let error = made(&snapshot, region).unwrap_err();
            assert!(
                error.contains(&format!("no complete copy of volume vol-1 in {region}")),
                "{error}"
            );
        }
    }
}
