//! The volumes of a recovery from snapshots of EBS volumes: made and mounted, arranged so that the other phases find what they expect, and
//! given back where the recovery fails.
//!
//! What is about to be made is stored beforehand, in a folder beside the target, since the target itself is a mount point: so that the same
//! command finds every volume that one that was killed had asked for, and makes none twice.

use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use serde::Serialize;

use crate::{
    archive::{listing::Archive, records::Snapshot},
    support::{
        hint::{OrHint, message, with_hint},
        progress::Progress,
    },
    volume::{
        disks::{Disks, Order, Reach, Shape},
        ebs, mount,
    },
};

mod intent;

use intent::{Journal, datadir};

use super::{
    journal,
    workdir::{self, first_entry},
};

/// mysqld's user passes through.
const FOLDER_MODE: u32 = 0o711;
const RECOVERY_TAG: &str = "mysql-pitr:recovery";
const RESTART_HINT: &str = "name another folder with --target-dir, or give --restart to throw that one away";

/// How volumes are made, and found on this machine.
#[derive(Debug, Clone)]
pub struct Settings {
    pub reach: Reach,
    pub shape: Shape,
    pub device_dir: PathBuf,
    pub device_timeout: Duration,
    /// Leave the volumes of a recovery that fails.
    pub keep: bool,
}

/// The volume that a recovered server is on.
#[derive(Debug, Clone, Serialize)]
pub struct OnVolume {
    pub volume_id: String,
    pub device: PathBuf,
    pub filesystem: String,
}

/// The volumes of a recovery that is under way.
#[derive(Debug)]
pub struct Volumes {
    folder: PathBuf,
    journal: Journal,
    disks: Arc<dyn Disks>,
    settings: Settings,
    /// Whether another process began it.
    resumed: bool,
    /// Held until this process ends, however it ends.
    _lock: File,
}

impl Volumes {
    /// Begins, or takes up what another process left; with `restart` that is given back first. Nothing is made yet.
    ///
    /// # Errors
    /// Where the target holds anything else, the snapshot is not to be had in this region, or another process is at work.
    pub async fn open(
        archive: &Archive,
        snapshot: &Snapshot,
        target: &Path,
        settings: &Settings,
        restart: bool,
        progress: &Progress,
    ) -> anyhow::Result<Volumes> {
        let target = absolute(target)?;
        let folder = folder_of(&target)?;
        let is_new = !folder.exists();
        if is_new {
            ensure_free(&target)?;
            let made = DirBuilder::new().mode(FOLDER_MODE).create(&folder);
            made.with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let lock = workdir::lock(&folder, &target)?;
        let opened = Volumes::open_locked(archive, snapshot, target, lock, settings, restart, progress).await;
        if opened.is_err() && is_new {
            let _ = fs::remove_dir_all(&folder);
        }
        opened
    }

    async fn open_locked(
        archive: &Archive,
        snapshot: &Snapshot,
        target: PathBuf,
        lock: File,
        settings: &Settings,
        restart: bool,
        progress: &Progress,
    ) -> anyhow::Result<Volumes> {
        let (folder, settings) = (folder_of(&target)?, settings.clone());
        let left = Journal::read(&folder)?;
        let Some(journal) = left else {
            ensure_free(&target)?;
            let disks = ebs::disks(&settings.reach, None).await?;
            let journal = Journal::begin(archive, snapshot, &target, &folder, disks.place().clone())?;
            journal.write(&folder)?;
            return Ok(Volumes {
                folder,
                journal,
                disks,
                settings,
                resumed: false,
                _lock: lock,
            });
        };
        // After a start of the machine it is not mounted, and that says nothing.
        if journal.finishing && mount::mounted(&target)?.is_some() {
            ensure_unfinished(&target, &folder)?;
        }
        let disks = ebs::disks(&settings.reach, Some(journal.place.clone())).await?;
        let mut volumes = Volumes {
            folder,
            journal,
            disks,
            settings,
            resumed: !restart,
            _lock: lock,
        };
        let left = &volumes.journal;
        let is_same =
            left.archive == archive.store.url() && left.shard == *archive.shard.to_string() && left.snapshot == snapshot.id;
        if restart {
            progress.phase("giving back the volumes of the recovery that was interrupted");
            volumes.begin_anew(archive, snapshot, &target).await?;
        } else if !is_same {
            let e = anyhow!(
                "the target folder {} holds another recovery that did not finish: it is of snapshot {} of shard {}",
                target.display(),
                left.snapshot,
                left.shard
            );
            return Err(with_hint(e, RESTART_HINT));
        } else {
            progress.note(&format!(
                "going on with the volumes of the recovery that began at {}",
                left.begun_at
            ));
        }
        Ok(volumes)
    }

    async fn begin_anew(&mut self, archive: &Archive, snapshot: &Snapshot, target: &Path) -> anyhow::Result<()> {
        self.give_back_all().await?;
        let created_target = self.journal.created_target;
        self.journal = Journal::begin(archive, snapshot, target, &self.folder, self.disks.place().clone())?;
        self.journal.created_target |= created_target;
        self.journal.write(&self.folder)
    }

    /// Makes the volumes, or finds those that were made, and mounts them. The target then holds the working folder of a recovery, with the
    /// server's data in it.
    pub async fn mount(&mut self, archive: &Archive, snapshot: &Snapshot, progress: &Progress) -> anyhow::Result<()> {
        self.mount_all(progress).await?;
        let target = self.target().to_owned();
        if self.journal.finishing {
            return ensure_unfinished(&target, &self.folder);
        }
        if journal::was_torn(&workdir::work_of(&target))? {
            progress.note(
                "the machine was started anew since: what was written to the volume last may be lost, so another one is made from the snapshot",
            );
            self.begin_anew(archive, snapshot, &target).await?;
            self.mount_all(progress).await?;
        }
        arrange(&target, self.datadir_on(snapshot)?.as_path())
    }

    async fn mount_all(&mut self, progress: &Progress) -> anyhow::Result<()> {
        progress.phase("making volumes from the snapshots");
        // All of them first: they come into being side by side.
        for at in 0..self.journal.volumes.len() {
            self.make(at).await?;
        }
        progress.phase("attaching the volumes");
        for made in self.journal.volumes.iter().filter(|m| !m.released) {
            let id = made.volume_id.as_deref().unwrap_or_default();
            self.disks.attach(id).await?;
            let device = mount::device(&self.settings.device_dir, id, made.partition, self.settings.device_timeout).await?;
            if !made.mount_point.exists() {
                fs::create_dir_all(&made.mount_point).with_context(|| format!("cannot create {}", made.mount_point.display()))?;
            }
            match mount::mounted(&made.mount_point)? {
                None => mount::mount(&device, &made.mount_point, &made.filesystem)?,
                Some(there) if there == device => {}
                Some(other) => bail!("{} is mounted at {} already", other.display(), made.mount_point.display()),
            }
        }
        Ok(())
    }

    async fn make(&mut self, at: usize) -> anyhow::Result<()> {
        let made = &self.journal.volumes[at];
        if made.volume_id.is_some() {
            return Ok(());
        }
        let tag = self.journal.tag(at);
        let found = match made.asked {
            true => self.disks.find((RECOVERY_TAG, &tag)).await?,
            false => None,
        };
        let id = match found {
            Some(id) => id,
            None => {
                self.journal.volumes[at].asked = true;
                self.journal.write(&self.folder)?;
                let made = &self.journal.volumes[at];
                let order = Order {
                    snapshot: &made.snapshot_id,
                    shape: &self.settings.shape,
                    token: tag.clone(),
                    tags: vec![
                        (RECOVERY_TAG, tag),
                        ("mysql-pitr:shard", self.journal.shard.clone()),
                        ("Name", format!("mysql-pitr recovery of {}", self.journal.shard)),
                    ],
                };
                self.disks.create(order).await?
            }
        };
        self.journal.volumes[at].volume_id = Some(id);
        self.journal.write(&self.folder)
    }

    fn target(&self) -> &Path {
        let data = self.journal.volumes.iter().find(|m| m.holds_data);
        data.map_or(Path::new(""), |m| &m.mount_point)
    }

    /// The copied server's data folder, relative to its volume.
    fn datadir_on(&self, snapshot: &Snapshot) -> anyhow::Result<PathBuf> {
        let datadir = datadir(snapshot)?;
        let data = self.journal.volumes.iter().find(|m| m.holds_data);
        let relative = data.and_then(|m| datadir.strip_prefix(&m.was_at).ok());
        Ok(relative
            .context("the record of the snapshot does not say where its data are")?
            .to_owned())
    }

    /// Where a file of the copied server is now.
    pub fn here(&self, snapshot: &Snapshot, path: &Path) -> anyhow::Result<PathBuf> {
        let target = self.target();
        if let Ok(in_data) = path.strip_prefix(datadir(snapshot)?) {
            return Ok(workdir::data_of(target).join(in_data));
        }
        let holding = self.journal.volumes.iter().filter(|m| path.starts_with(&m.was_at));
        let holding = holding.max_by_key(|m| m.was_at.components().count());
        let Some((made, rest)) = holding.and_then(|m| Some((m, path.strip_prefix(&m.was_at).ok()?))) else {
            bail!("snapshot {} has no volume that holds {}", snapshot.id, path.display());
        };
        Ok(match made.holds_data {
            true => beside(target).join(rest),
            false => made.mount_point.join(rest),
        })
    }

    /// Gives back what only the first start of the copy needs.
    pub async fn release_others(&mut self) -> anyhow::Result<()> {
        for at in 0..self.journal.volumes.len() {
            if !self.journal.volumes[at].holds_data && !self.journal.volumes[at].released {
                self.give_back(at).await?;
                self.journal.volumes[at].released = true;
                self.journal.write(&self.folder)?;
            }
        }
        Ok(())
    }

    async fn give_back(&self, at: usize) -> anyhow::Result<()> {
        let made = &self.journal.volumes[at];
        if let Some(there) = mount::mounted(&made.mount_point)? {
            let device = match &made.volume_id {
                Some(id) => mount::device(&self.settings.device_dir, id, made.partition, Duration::ZERO)
                    .await
                    .ok(),
                None => None,
            };
            if device.as_ref() != Some(&there) {
                bail!(
                    "{}, which is mounted at {}, is not of this recovery",
                    there.display(),
                    made.mount_point.display()
                );
            }
            mount::unmount(&made.mount_point).await?;
        }
        let id = match &made.volume_id {
            Some(id) => Some(id.clone()),
            None if made.asked => self.disks.find((RECOVERY_TAG, &self.journal.tag(at))).await?,
            None => None,
        };
        match id {
            Some(id) => self.disks.delete(&id).await,
            None => Ok(()),
        }
    }

    /// As many as can be.
    ///
    /// # Errors
    /// Names all that are left, and says why the first of them is.
    async fn give_back_all(&self) -> anyhow::Result<()> {
        let mut left = Vec::new();
        let mut first = None;
        for (at, made) in self.journal.volumes.iter().enumerate().filter(|(_, m)| !m.released) {
            if let Err(e) = self.give_back(at).await {
                let unnamed = || format!("whatever was made of {}", made.snapshot_id);
                left.push(made.volume_id.clone().unwrap_or_else(unnamed));
                first.get_or_insert(e);
            }
        }
        match first {
            None => Ok(()),
            Some(e) => Err(e.context(format!("left in {}: {}", self.journal.place.region, left.join(", ")))),
        }
    }

    /// Before the data move into place: the target is then not to be taken for a copy that has just been mounted.
    pub fn finishing(&mut self) -> anyhow::Result<()> {
        self.journal.finishing = true;
        self.journal.write(&self.folder)
    }

    /// After a failure: nothing of it is left, or it is said what is. What another process began stays: hours of work may be in it, and what
    /// failed may be this command's mistake. So does what may be a server by now.
    pub async fn end_failed(self, progress: &Progress) {
        if self.settings.keep || self.resumed || self.journal.finishing {
            let named: Vec<&str> = self.journal.volumes.iter().filter_map(|m| m.volume_id.as_deref()).collect();
            let named = named.join(", ");
            progress.note(&format!(
                "kept: {named} in {}, mounted at {}. The same command goes on with it, --restart gives it back and begins anew",
                self.journal.place.region,
                self.target().display()
            ));
            return;
        }
        if let Err(e) = self.give_back_all().await {
            progress.note(&format!(
                "not everything that was made could be taken away: {}; the same command with --restart tries again",
                message(&e)
            ));
            return;
        }
        if self.journal.created_target {
            // Not if something else is in it by now.
            let _ = fs::remove_dir(self.target());
        }
        let _ = fs::remove_dir_all(&self.folder);
    }

    /// The data volume stays, with the server on it.
    pub fn end(self) -> anyhow::Result<OnVolume> {
        let target = self.target().to_owned();
        let data = self.journal.volumes.iter().find(|m| m.holds_data);
        let (volume_id, filesystem) = data.map(|m| (m.volume_id.clone(), m.filesystem.clone())).unwrap_or_default();
        let device = mount::mounted(&target)?.unwrap_or_default();
        fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove {}", self.folder.display()))?;
        Ok(OnVolume {
            volume_id: volume_id.unwrap_or_default(),
            device,
            filesystem,
        })
    }
}

/// # Errors
/// Where the data are in place: then nothing is left to be done.
fn ensure_unfinished(target: &Path, folder: &Path) -> anyhow::Result<()> {
    if workdir::work_of(target).exists() {
        return Ok(());
    }
    fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    let e = anyhow!("the recovery into {} has finished already", target.display());
    Err(with_hint(e, "start mysqld on it, or name another folder with --target-dir"))
}

/// The target, of which the last part need not be there.
fn absolute(target: &Path) -> anyhow::Result<PathBuf> {
    if let Ok(there) = fs::canonicalize(target) {
        return Ok(there);
    }
    let parent = target
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let parent = fs::canonicalize(parent)
        .with_context(|| format!("cannot create the target folder {}", target.display()))
        .hint("create its parent folder")?;
    let name = target
        .file_name()
        .with_context(|| format!("{} is no folder to recover into", target.display()))?;
    Ok(parent.join(name))
}

/// Beside the target: what is about to be made, and where volumes are mounted that the server is not on in the end.
fn folder_of(target: &Path) -> anyhow::Result<PathBuf> {
    let name = target
        .file_name()
        .with_context(|| format!("{} is no folder to recover into", target.display()))?;
    Ok(target.with_file_name(format!(".{}.mysql-pitr-volumes", name.display())))
}

fn ensure_free(target: &Path) -> anyhow::Result<()> {
    if let Some(device) = mount::mounted(target)? {
        let e = anyhow!(
            "the target folder {} is a mount point: {} is mounted on it",
            target.display(),
            device.display()
        );
        return Err(with_hint(
            e,
            "unmount it, or name another folder with --target-dir; nothing was changed",
        ));
    }
    if !target.exists() {
        return Ok(());
    }
    workdir::ensure_empty(target, first_entry(target)?.as_deref())?;
    if workdir::work_of(target).exists() {
        let e = anyhow!(
            "the target folder {} holds another recovery that did not finish",
            target.display()
        );
        return Err(with_hint(e, "name another folder with --target-dir, or finish that recovery"));
    }
    Ok(())
}

/// What was on the data's volume beside the data.
fn beside(target: &Path) -> PathBuf {
    workdir::work_of(target).join("beside")
}

/// Moves everything on the data's volume into the working folder: from then on nothing starts there. `datadir` is relative to the volume.
/// Goes on where it was killed.
fn arrange(target: &Path, datadir: &Path) -> anyhow::Result<()> {
    let (work, data, beside) = (workdir::work_of(target), workdir::data_of(target), beside(target));
    if data.exists() || work.join(journal::FILE).exists() {
        return Ok(());
    }
    let cannot = || format!("cannot move the copied files in {}", target.display());
    fs::create_dir_all(&beside).with_context(cannot)?;
    for entry in fs::read_dir(target).with_context(cannot)? {
        let name = entry.with_context(cannot)?.file_name();
        if !workdir::is_not_data(&name) {
            fs::rename(target.join(&name), beside.join(&name)).with_context(cannot)?;
        }
    }
    let from = beside.join(datadir);
    if !from.is_dir() {
        let e = anyhow!("the copied volume holds no folder {}, where the data were", datadir.display());
        return Err(with_hint(e, "recover from another snapshot, and look at that volume by hand"));
    }
    fs::rename(from.components().collect::<PathBuf>(), &data).with_context(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = entries.collect();
        names.sort();
        names
    }

    /// i10: killed after any number of moves, the next process moves the rest.
    #[test]
    fn i10_what_is_on_a_volume_is_moved_into_the_working_folder() {
        for datadir in ["", "mysql", "a/b"] {
            for moved in 0..=3 {
                let dir = tempfile::tempdir().unwrap();
                let target = dir.path();
                fs::create_dir(target.join("lost+found")).unwrap();
                fs::create_dir_all(target.join(datadir)).unwrap();
                fs::write(target.join(datadir).join("mysql.ibd"), b"x").unwrap();
                fs::write(target.join("other"), b"x").unwrap();
                let before: Vec<String> = names(target).into_iter().filter(|n| n != "lost+found").collect();
                if moved > 0 {
                    fs::create_dir_all(beside(target)).unwrap();
                    for name in before.iter().take(moved - 1) {
                        fs::rename(target.join(name), beside(target).join(name)).unwrap();
                    }
                }
                for _ in 0..2 {
                    arrange(target, Path::new(datadir)).unwrap();
                    assert_eq!(names(target), [".mysql-pitr-recovery", "lost+found"]);
                    assert!(workdir::data_of(target).join("mysql.ibd").exists(), "{datadir} {moved}");
                    let other = if datadir.is_empty() {
                        workdir::data_of(target)
                    } else {
                        beside(target)
                    };
                    assert!(other.join("other").exists(), "{datadir} {moved}");
                }
            }
        }
    }

    #[test]
    fn the_folder_is_beside_the_target() {
        let folder = folder_of(Path::new("/var/lib/mysql")).unwrap();
        assert_eq!(folder, Path::new("/var/lib/.mysql.mysql-pitr-volumes"));
        assert!(folder_of(Path::new("/")).is_err());
    }
}
