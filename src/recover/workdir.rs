//! The target folder, which becomes startable by the very last file that is moved into it.
//!
//! Everything happens in a subfolder, which no mysqld takes for a server's data. A recovery that fails removes it; one that
//! is killed leaves it, and the next one refuses the target and says so.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File, Permissions},
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow};
use nix::unistd::{User, geteuid};

use crate::support::{durable, hint::OrHint, hint::with_hint};

const WORK: &str = ".mysql-pitr-recovery";
/// Without it mysqld finds no data dictionary.
const STARTABLE: &str = "mysql.ibd";
const DEFAULT_USER: &str = "mysql";
/// As mysqld makes its own.
const FOLDER_MODE: u32 = 0o750;
/// Leaves room for the folder's and the socket's names in a socket's path.
const TEMP_PATH_BYTES_MAX: usize = 64;
const DISCARD_ATTEMPTS: u32 = 50;
const DISCARD_INTERVAL: Duration = Duration::from_millis(100);

/// Who mysqld runs as, where this process is root.
#[derive(Debug, Clone)]
pub struct RunAs {
    pub name: String,
    uid: u32,
    gid: u32,
}

impl RunAs {
    /// None where this process is not root: mysqld then runs as whoever we are.
    pub fn find(configured: Option<&str>) -> anyhow::Result<Option<RunAs>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let lookup = |name: &str| User::from_name(name).with_context(|| format!("cannot look up the user {name}"));
        let user = match configured {
            Some(name) => lookup(name)?
                .with_context(|| format!("there is no user {name}"))
                .hint("set user in the [recover] section")?,
            None => match lookup(DEFAULT_USER)? {
                Some(user) => user,
                None => lookup("root")?.context("there is no user root")?,
            },
        };
        Ok(Some(RunAs {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        }))
    }

    /// User and group to start mysqld with; None for root, which mysqld wants to be told by an option.
    pub fn ids(&self) -> Option<(u32, u32)> {
        (self.uid != 0).then_some((self.uid, self.gid))
    }

    fn own(&self, path: &Path) -> anyhow::Result<()> {
        chown(path, Some(self.uid), Some(self.gid)).with_context(|| format!("cannot give {} to {}", path.display(), self.name))
    }
}

/// The target while it is being made.
#[derive(Debug)]
pub struct Workdir {
    target: PathBuf,
    run_as: Option<RunAs>,
    /// Whether the target folder was not there before.
    created: bool,
    sockets: SocketFolder,
}

impl Workdir {
    /// Refuses a target that is not empty.
    pub fn create(target: &Path, run_as: Option<RunAs>) -> anyhow::Result<Workdir> {
        let shown = target.display();
        let created = !target.exists();
        if created {
            let made = DirBuilder::new().mode(FOLDER_MODE).create(target);
            made.with_context(|| format!("cannot create the target folder {shown}"))
                .hint("create its parent folder")?;
        }
        if target.join(WORK).exists() {
            let e = anyhow!("the target folder {shown} holds a recovery that did not finish");
            return Err(with_hint(
                e,
                "empty the folder and start again; nothing outside it was changed",
            ));
        }
        let mut entries = fs::read_dir(target).with_context(|| format!("cannot read the target folder {shown}"))?;
        if let Some(entry) = entries.find(|e| e.as_ref().is_ok_and(|e| e.file_name() != "lost+found")) {
            let e = anyhow!(
                "the target folder {shown} is not empty: it holds {}",
                entry?.file_name().display()
            );
            return Err(with_hint(e, "name an empty folder with --target-dir; nothing was changed"));
        }
        let workdir = Workdir {
            target: fs::canonicalize(target)?,
            run_as,
            created,
            sockets: SocketFolder::create()?,
        };
        for folder in [workdir.target.join(WORK), workdir.data(), workdir.scratch()] {
            let made = DirBuilder::new().mode(FOLDER_MODE).create(&folder);
            made.with_context(|| format!("cannot create {}", folder.display()))?;
        }
        for folder in [
            workdir.target.clone(),
            workdir.target.join(WORK),
            workdir.data(),
            workdir.scratch(),
            workdir.sockets.0.clone(),
        ] {
            workdir.own(&folder)?;
        }
        Ok(workdir)
    }

    pub fn target(&self) -> &Path {
        &self.target
    }

    pub fn data(&self) -> PathBuf {
        self.target.join(WORK).join("data")
    }

    /// For relay logs, the init file and the error log: on the target's volume, and gone with the working folder.
    pub fn scratch(&self) -> PathBuf {
        self.target.join(WORK).join("scratch")
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

    /// Removes what a failed recovery made, so that it can be tried again.
    pub async fn discard(self) {
        let work = self.target.join(WORK);
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

    /// Makes the data durable and moves it where it belongs; the file without which nothing starts comes last.
    pub fn finish(self) -> anyhow::Result<()> {
        let data = self.data();
        let root = File::open(&self.target)?;
        nix::unistd::syncfs(root.as_fd()).context("cannot flush the recovered files to disk")?;
        let mut names: Vec<_> = fs::read_dir(&data)?
            .map(|e| e.map(|e| e.file_name()))
            .collect::<Result<_, _>>()?;
        names.sort_by_key(|name| name == OsStr::new(STARTABLE));
        for name in names {
            let to = self.target.join(&name);
            fs::rename(data.join(&name), &to).with_context(|| format!("cannot move {} into place", to.display()))?;
            root.sync_all()?;
        }
        fs::remove_dir_all(self.target.join(WORK))?;
        root.sync_all().context("cannot flush the target folder to disk")
    }
}

/// A folder of our own for a socket, whose path may have 107 bytes at most; nobody else may enter. Dropped, it is removed.
#[derive(Debug)]
struct SocketFolder(PathBuf);

impl SocketFolder {
    fn create() -> anyhow::Result<SocketFolder> {
        let random = uuid::Uuid::new_v4().simple().to_string();
        let configured = std::env::temp_dir();
        let parent = if configured.as_os_str().len() > TEMP_PATH_BYTES_MAX {
            Path::new("/tmp")
        } else {
            &configured
        };
        let path = parent.join(format!("mysql-pitr-{}", &random[..12]));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot create {}", path.display()))
            .hint("set TMPDIR to a folder that may be written")?;
        Ok(SocketFolder(path))
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_is_not_empty_is_refused_and_untouched() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("precious"), b"x").unwrap();
        let error = Workdir::create(dir.path(), None).unwrap_err();
        assert!(crate::support::hint::render(&error).contains("is not empty: it holds precious"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_unfinished_recovery_is_recognised() {
        let dir = tempfile::tempdir().unwrap();
        drop(Workdir::create(dir.path(), None).unwrap());
        let error = Workdir::create(dir.path(), None).unwrap_err();
        assert!(error.root_cause().to_string().contains("did not finish"));
    }

    #[tokio::test]
    async fn a_failed_recovery_leaves_the_target_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (there, not_there) = (dir.path().join("there"), dir.path().join("not-there"));
        fs::create_dir(&there).unwrap();
        for target in [&there, &not_there] {
            let work = Workdir::create(target, None).unwrap();
            work.write_data("a", b"x").unwrap();
            work.discard().await;
        }
        assert_eq!(fs::read_dir(&there).unwrap().count(), 0);
        assert!(!not_there.exists());
    }

    #[test]
    fn what_makes_it_startable_comes_last() {
        let dir = tempfile::tempdir().unwrap();
        let work = Workdir::create(dir.path(), None).unwrap();
        for name in ["a", "mysql.ibd", "z"] {
            work.write_data(name, b"x").unwrap();
        }
        work.finish().unwrap();
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a", "mysql.ibd", "z"]);
    }
}
