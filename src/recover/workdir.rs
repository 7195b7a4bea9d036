//! The target folder, which becomes startable by the very last file that is moved into it.
//!
//! Everything happens in a subfolder, which no mysqld takes for a server's data. Its journal says how far the recovery is, so
//! that the same command goes on with what one that failed or was killed left; a lock keeps two of them apart.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, File, Permissions, TryLockError},
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow};
use uuid::Uuid;

use crate::support::{durable, hint::OrHint, hint::with_hint};

use super::{
    journal::{Intent, Journal, Reached},
    run_as::RunAs,
    verify::Verified,
};

const WORK: &str = ".mysql-pitr-recovery";
/// Without it mysqld finds no data dictionary.
const STARTABLE: &str = "mysql.ibd";
const RESTART_HINT: &str = "give --restart to throw that recovery away, or name another folder with --target-dir";
/// As mysqld makes its own.
const FOLDER_MODE: u32 = 0o750;
/// Leaves room for the folder's and the socket's names in a socket's path.
const TEMP_PATH_BYTES_MAX: usize = 64;
const DISCARD_ATTEMPTS: u32 = 50;
const DISCARD_INTERVAL: Duration = Duration::from_millis(100);

/// The target while it is being made.
#[derive(Debug)]
pub struct Workdir {
    target: PathBuf,
    run_as: Option<RunAs>,
    /// Whether the target folder was not there before.
    created: bool,
    source: Source,
    journal: Journal,
    sockets: SocketFolder,
    /// Held until this process ends, however it ends.
    _lock: File,
}

/// Where the data folder's contents come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Unpacked from the archive's store.
    Archive,
    /// There already, on a volume made for this recovery.
    Volume,
}

impl Workdir {
    /// Begins `intent` in an empty or new folder, or takes up what was done of it; tells `note` what a person should know.
    /// With `restart` what was done is thrown away.
    ///
    /// # Errors
    /// Where the target holds anything else, or another process is at work in it.
    pub fn open(
        target: &Path,
        run_as: Option<RunAs>,
        intent: Intent,
        source: Source,
        restart: bool,
        mut note: impl FnMut(String),
    ) -> anyhow::Result<Workdir> {
        let shown = target.display();
        let created = !target.exists();
        if created {
            let made = DirBuilder::new().mode(FOLDER_MODE).create(target);
            made.with_context(|| format!("cannot create the target folder {shown}"))
                .hint("create its parent folder")?;
        }
        let target = fs::canonicalize(target)?;
        let work = target.join(WORK);
        let occupied = first_entry(&target)?;
        let there = work.exists();
        if !there {
            ensure_empty(&target, occupied.as_deref())?;
            make_folder(&work)?;
        }
        // A copied volume belongs to whoever had that number on another machine.
        if !there || source == Source::Volume {
            run_as
                .as_ref()
                .map_or(Ok(()), |user| user.own(&target).and_then(|()| user.own(&work)))?;
        }
        let lock = lock(&work, &target)?;
        let left = if there && !restart {
            Journal::read(&work).hint(RESTART_HINT)?
        } else {
            None
        };
        let is_moving = left.as_ref().is_some_and(|j| j.reached == Reached::Verified);
        if !is_moving {
            ensure_empty(&target, occupied.as_deref())?;
        }
        let journal = match left {
            None => Journal::begin(intent)?,
            Some(mut journal) => {
                let taken_up = journal.take_up(intent);
                let lost = taken_up
                    .with_context(|| {
                        format!(
                            "the target folder {} holds another recovery that did not finish",
                            target.display()
                        )
                    })
                    .hint("name another folder with --target-dir, or give --restart to throw that one away")?;
                if let Some(lost) = lost {
                    note(lost.to_owned());
                }
                journal
            }
        };
        let sockets = SocketFolder::create(journal.id, run_as.as_ref())?;
        let workdir = Workdir {
            target,
            run_as,
            created,
            source,
            journal,
            sockets,
            _lock: lock,
        };
        if workdir.reached() == Reached::Begun {
            workdir.begin_anew()?;
        } else {
            workdir.journal.write(&work)?;
        }
        Ok(workdir)
    }

    /// Empty folders, and the intent before them.
    fn begin_anew(&self) -> anyhow::Result<()> {
        self.journal.write(&self.work())?;
        let folders: &[PathBuf] = match self.source {
            Source::Archive => &[self.data(), self.scratch()],
            Source::Volume => &[self.scratch()],
        };
        for folder in folders {
            if folder.exists() {
                fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
            }
            make_folder(folder)?;
            self.own(folder)?;
        }
        Ok(())
    }

    pub fn reached(&self) -> Reached {
        self.journal.reached
    }

    /// When the recovery was first begun.
    pub fn begun_at(&self) -> &str {
        &self.journal.begun_at
    }

    /// What a process before this one proved already.
    pub fn verified(&self) -> Option<&Verified> {
        self.journal.verified.as_ref()
    }

    pub fn unpacked(&mut self) -> anyhow::Result<()> {
        self.reach(Reached::Unpacked)
    }

    /// Once the server was shut down cleanly. From here on a crash of the machine loses nothing.
    pub fn replayed(&mut self) -> anyhow::Result<()> {
        let flushed = nix::unistd::syncfs(File::open(&self.target)?.as_fd());
        flushed.context("cannot flush the recovered files to disk")?;
        self.reach(Reached::Replayed)
    }

    /// After this nothing is left but to move the files.
    pub fn proven(&mut self, verified: Verified) -> anyhow::Result<()> {
        let flushed = nix::unistd::syncfs(File::open(&self.target)?.as_fd());
        flushed.context("cannot flush the recovered files to disk")?;
        self.journal.verified = Some(verified);
        self.reach(Reached::Verified)
    }

    /// Asks for the proof once more, unless the files are moving already.
    pub fn prove_again(&mut self) -> anyhow::Result<bool> {
        let nothing_moved = first_entry(&self.target)?.is_none();
        if nothing_moved {
            self.reach(Reached::Replayed)?;
        }
        Ok(nothing_moved)
    }

    fn reach(&mut self, reached: Reached) -> anyhow::Result<()> {
        self.journal.reached = reached;
        self.journal.write(&self.work())
    }

    fn work(&self) -> PathBuf {
        work_of(&self.target)
    }

    pub fn target(&self) -> &Path {
        &self.target
    }

    pub fn data(&self) -> PathBuf {
        data_of(&self.target)
    }

    /// For relay logs, the init file and the error log: on the target's volume, and gone with the working folder.
    pub fn scratch(&self) -> PathBuf {
        self.work().join("scratch")
    }

    /// Where the server listens.
    pub fn socket(&self) -> PathBuf {
        self.sockets.0.join("s")
    }

    pub fn run_as(&self) -> Option<&RunAs> {
        self.run_as.as_ref()
    }

    pub fn own(&self, path: &Path) -> anyhow::Result<()> {
        self.run_as.as_ref().map_or(Ok(()), |run_as| run_as.own(path))
    }

    /// Gives everything below the data folder to mysqld's user.
    pub fn own_data(&self) -> anyhow::Result<()> {
        self.own(&self.data())?;
        let mut folders = vec![self.data()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                self.own(&entry.path())?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        Ok(())
    }

    /// Writes a file into the data folder, readable by mysqld's user only.
    pub fn write_data(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.data().join(name);
        durable::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, Permissions::from_mode(0o640))?;
        self.own(&path)
    }

    /// Removes what a failed recovery made, so that the target is as it was.
    pub async fn discard(self) {
        let work = self.work();
        // A mysqld that was just killed may still be writing.
        for _ in 0..DISCARD_ATTEMPTS {
            if fs::remove_dir_all(&work).is_ok() || !work.exists() {
                break;
            }
            tokio::time::sleep(DISCARD_INTERVAL).await;
        }
        if self.created {
            // Not if something else is in it by now.
            let _ = fs::remove_dir(&self.target);
        }
    }

    /// Moves the data where it belongs; the file without which nothing starts comes last. Goes on where another process was
    /// killed at it: a file is in one of two places, and the journal goes once nothing is left to move.
    pub fn finish(self) -> anyhow::Result<()> {
        let (data, work) = (self.data(), self.work());
        let root = File::open(&self.target)?;
        if data.exists() {
            let mut names: Vec<_> = fs::read_dir(&data)?
                .map(|e| e.map(|e| e.file_name()))
                .collect::<Result<_, _>>()?;
            names.sort_by_key(|name| name == OsStr::new(STARTABLE));
            for name in names {
                let to = self.target.join(&name);
                fs::rename(data.join(&name), &to).with_context(|| format!("cannot move {} into place", to.display()))?;
                root.sync_all()?;
            }
            fs::remove_dir(&data)?;
        }
        if self.scratch().exists() {
            fs::remove_dir_all(self.scratch())?;
        }
        fs::remove_dir_all(work)?;
        root.sync_all().context("cannot flush the target folder to disk")
    }
}

/// The working folder of a recovery into `target`.
pub fn work_of(target: &Path) -> PathBuf {
    target.join(WORK)
}

/// In which the server's data come to be.
pub fn data_of(target: &Path) -> PathBuf {
    work_of(target).join("data")
}

/// Whether a name in the target is none of a server's.
pub fn is_not_data(name: &OsStr) -> bool {
    name == WORK || name == "lost+found"
}

/// What is in the target beside the working folder.
pub fn first_entry(target: &Path) -> anyhow::Result<Option<OsString>> {
    let entries = fs::read_dir(target).with_context(|| format!("cannot read the target folder {}", target.display()))?;
    for entry in entries {
        let name = entry?.file_name();
        if !is_not_data(&name) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

pub fn ensure_empty(target: &Path, occupied: Option<&OsStr>) -> anyhow::Result<()> {
    let Some(name) = occupied else { return Ok(()) };
    let e = anyhow!(
        "the target folder {} is not empty: it holds {}",
        target.display(),
        name.display()
    );
    Err(with_hint(e, "name an empty folder with --target-dir; nothing was changed"))
}

fn make_folder(folder: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().mode(FOLDER_MODE).create(folder);
    made.with_context(|| format!("cannot create {}", folder.display()))
}

pub fn lock(work: &Path, target: &Path) -> anyhow::Result<File> {
    let path = work.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let e = anyhow!("another mysql-pitr is recovering into {}", target.display());
            Err(with_hint(e, "wait for it, or name another folder with --target-dir"))
        }
        Err(TryLockError::Error(e)) => Err(anyhow!(e).context(format!("cannot lock {}", path.display()))),
    }
}

/// A folder of our own for a socket, whose path may have 107 bytes at most; nobody else may enter. Dropped, it is removed.
#[derive(Debug)]
struct SocketFolder(PathBuf);

impl SocketFolder {
    /// By the recovery's id: one that was killed left its own behind.
    fn create(id: Uuid, run_as: Option<&RunAs>) -> anyhow::Result<SocketFolder> {
        let random = id.simple().to_string();
        let configured = std::env::temp_dir();
        let parent = if configured.as_os_str().len() > TEMP_PATH_BYTES_MAX {
            Path::new("/tmp")
        } else {
            &configured
        };
        let path = parent.join(format!("mysql-pitr-{}", &random[..12]));
        let _ = fs::remove_dir_all(&path);
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot create {}", path.display()))
            .hint("set TMPDIR to a folder that may be written")?;
        let sockets = SocketFolder(path);
        run_as.map_or(Ok(()), |user| user.own(&sockets.0))?;
        Ok(sockets)
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use crate::recover::journal::tests::intent;

    use super::*;

    const GTIDS: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5";

    fn open(target: &Path, restart: bool) -> anyhow::Result<Workdir> {
        Workdir::open(target, None, intent(GTIDS), Source::Archive, restart, |_| {})
    }

    fn names(folder: &Path) -> Vec<OsString> {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    }

    fn verified() -> Verified {
        Verified {
            server_uuid: Uuid::nil(),
            server_version: String::new(),
            xa_prepared: Vec::new(),
            events_disabled: Vec::new(),
            tables: None,
        }
    }

    #[test]
    fn a_target_that_is_not_empty_is_refused_and_untouched() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("precious"), b"x").unwrap();
        for restart in [false, true] {
            let error = open(dir.path(), restart).unwrap_err();
            assert!(crate::support::hint::render(&error).contains("is not empty: it holds precious"));
            assert_eq!(names(dir.path()), ["precious"]);
        }
    }

    #[test]
    fn i10_a_recovery_is_taken_up_unless_its_process_lives() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = open(dir.path(), false).unwrap();
        first.write_data("a", b"x").unwrap();
        first.unpacked().unwrap();
        let error = open(dir.path(), true).unwrap_err();
        assert!(
            error
                .root_cause()
                .to_string()
                .contains("another mysql-pitr is recovering into")
        );
        drop(first);
        let again = open(dir.path(), false).unwrap();
        assert_eq!(again.reached(), Reached::Unpacked);
        assert_eq!(names(&again.data()), ["a"]);
        drop(again);
        let anew = open(dir.path(), true).unwrap();
        assert_eq!(anew.reached(), Reached::Begun);
        assert_eq!(names(&anew.data()), Vec::<OsString>::new());
    }

    #[test]
    fn i10_what_was_half_unpacked_is_unpacked_again() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), false).unwrap().write_data("half", b"x").unwrap();
        assert_eq!(names(&open(dir.path(), false).unwrap().data()), Vec::<OsString>::new());
        // Killed before it could even write its journal.
        fs::remove_file(dir.path().join(WORK).join(super::super::journal::FILE)).unwrap();
        assert_eq!(open(dir.path(), false).unwrap().reached(), Reached::Begun);
    }

    #[test]
    fn another_recovery_is_not_taken_up() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), false).unwrap().unpacked().unwrap();
        let mut other = intent(GTIDS);
        other.snapshot = "another".into();
        let error = Workdir::open(dir.path(), None, other, Source::Archive, false, |_| {}).unwrap_err();
        let text = crate::support::hint::render(&error);
        assert!(
            text.contains("holds another recovery that did not finish: it is of snapshot one to"),
            "{text}"
        );
        assert!(text.contains("--restart"), "{text}");
    }

    #[tokio::test]
    async fn a_failed_recovery_leaves_the_target_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (there, not_there) = (dir.path().join("there"), dir.path().join("not-there"));
        fs::create_dir(&there).unwrap();
        for target in [&there, &not_there] {
            let work = open(target, false).unwrap();
            work.write_data("a", b"x").unwrap();
            work.discard().await;
        }
        assert_eq!(fs::read_dir(&there).unwrap().count(), 0);
        assert!(!not_there.exists());
    }

    /// Killed after each of the moves: what makes it startable comes last, and the next process moves the rest.
    #[test]
    fn i10_finishing_goes_on_where_it_was_killed() {
        let moved_in_order = ["a", "z", "mysql.ibd"];
        for moved in 0..=moved_in_order.len() {
            let dir = tempfile::tempdir().unwrap();
            let mut work = open(dir.path(), false).unwrap();
            for name in moved_in_order {
                work.write_data(name, b"x").unwrap();
            }
            work.proven(verified()).unwrap();
            let data = work.data();
            drop(work);
            for name in &moved_in_order[..moved] {
                fs::rename(data.join(name), dir.path().join(name)).unwrap();
            }
            let again = open(dir.path(), false).unwrap();
            assert_eq!(again.reached(), Reached::Verified);
            again.finish().unwrap();
            assert_eq!(names(dir.path()), ["a", "mysql.ibd", "z"], "after {moved} moves");
        }
    }
}
