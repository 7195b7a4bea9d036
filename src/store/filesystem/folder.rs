//! The blocking half of the filesystem store: names, durability and the lock. The module above says why it is done so.

use std::{
    fs::{self, DirBuilder, DirEntry, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::store::{ObjectMeta, Put, StoreError, Version, key};

const TEMP_FOLDER: &str = ".tmp";
const LOCK_FILE: &str = ".lock";

/// As mysqld makes its binlogs and folders: what is in them is not for everyone. The umask takes away from these.
const FILE_MODE: u32 = 0o640;
const FOLDER_MODE: u32 = 0o750;

/// A living upload writes more often than this.
const STALE_TEMP_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Folder entries between two signs of life of a walk. As many as S3 lists at a time.
const PAGE_ENTRIES: usize = 1000;

#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    url: String,
}

/// A file that has no key yet. Dropped, it is removed.
#[derive(Debug)]
pub(super) struct Temp {
    path: PathBuf,
    file: File,
}

impl Temp {
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes).map_err(at(&self.path))
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all().map_err(at(&self.path))
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// How a conditional PUT ended.
enum Outcome {
    Won,
    Lost,
}

impl Folder {
    pub(super) fn open(root: &Path) -> Result<Self, StoreError> {
        let folder = Folder {
            root: root.to_owned(),
            url: format!("file://{}", root.display()),
        };
        match fs::metadata(root) {
            Ok(metadata) if metadata.is_dir() => Ok(folder),
            Ok(_) => Err(folder.refused("open".into(), "this is not a folder".into())),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let reason = "there is no such folder; mount its disk, or create it and give it to the user that runs mysql-pitr";
                Err(folder.refused("open".into(), reason.into()))
            }
            Err(e) => Err(folder.error("open".into(), e)),
        }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Removes what dead processes left. Best effort: this is housekeeping, and a reader may not be allowed to.
    pub(super) fn remove_stale_temps(&self) {
        let stale = |entry: &DirEntry| {
            let age = entry
                .metadata()
                .and_then(|m| m.modified())
                .map(|at| SystemTime::now().duration_since(at));
            matches!(age, Ok(Ok(age)) if age > STALE_TEMP_AGE)
        };
        for entry in fs::read_dir(self.root.join(TEMP_FOLDER))
            .into_iter()
            .flatten()
            .flatten()
            .filter(stale)
        {
            match fs::remove_file(entry.path()) {
                Ok(()) => tracing::info!(path = %entry.path().display(), "removed a temporary file of an upload that died"),
                Err(error) => tracing::debug!(path = %entry.path().display(), %error, "cannot remove a stale temporary file"),
            }
        }
    }

    /// A new file for what shall become `key`.
    pub(super) fn temp(&self, key: &str) -> Result<Temp, StoreError> {
        let make = || {
            let parent = self.root.join(TEMP_FOLDER);
            make_folder(&parent)?;
            let path = parent.join(Uuid::new_v4().simple().to_string());
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(FILE_MODE)
                .open(&path)
                .map_err(at(&path))?;
            Ok(Temp { path, file })
        };
        make().map_err(|e| self.error(format!("put {key}"), e))
    }

    /// Gives a temporary file its key. Durable when this returns, the winner's object also where this one lost.
    pub(super) fn publish(&self, temp: Temp, key: &str, condition: &Put) -> Result<(), StoreError> {
        let path = self.root.join(key);
        let name = || {
            temp.sync()?;
            let outcome = {
                let _lock = self.lock()?;
                match condition {
                    Put::IfAbsent => self.create(&temp, &path)?,
                    Put::IfMatch(version) => replace(&temp, &path, version)?,
                }
            };
            self.sync_folders(&path)?;
            Ok(outcome)
        };
        let (url, key) = (self.url.clone(), key.to_owned());
        match (name().map_err(|e| self.error(format!("put {key}"), e))?, condition) {
            (Outcome::Won, _) => Ok(()),
            (Outcome::Lost, Put::IfAbsent) => Err(StoreError::AlreadyExists { url, key }),
            (Outcome::Lost, Put::IfMatch(_)) => Err(StoreError::Precondition { url, key }),
        }
    }

    fn create(&self, temp: &Temp, path: &Path) -> io::Result<Outcome> {
        let folders: Vec<_> = self.folders_above(path).take_while(|folder| *folder != self.root).collect();
        for folder in folders.into_iter().rev() {
            make_folder(folder)?;
        }
        match fs::hard_link(&temp.path, path) {
            Ok(()) => Ok(Outcome::Won),
            Err(e) if e.kind() == ErrorKind::AlreadyExists && !path.is_dir() => Ok(Outcome::Lost),
            Err(e) => Err(at(path)(e)),
        }
    }

    /// The file of an object, and its size in bytes.
    pub(super) fn open_object(&self, verb: &str, key: &str) -> Result<(File, u64), StoreError> {
        match open_regular(&self.root.join(key)) {
            Ok(Some(opened)) => Ok(opened),
            Ok(None) if self.root.is_dir() => Err(StoreError::NotFound {
                url: self.url.clone(),
                key: key.to_owned(),
            }),
            Ok(None) => Err(self.gone(format!("{verb} {key}"))),
            Err(e) => Err(self.error(format!("{verb} {key}"), e)),
        }
    }

    /// What is left to read of an object's file.
    pub(super) fn read_to_end(&self, key: &str, mut file: File, size_bytes: u64) -> Result<Bytes, StoreError> {
        let mut bytes = Vec::with_capacity(size_bytes as usize);
        let read = file.read_to_end(&mut bytes).map_err(at(&self.root.join(key)));
        read.map_err(|e| self.error(format!("get {key}"), e))?;
        Ok(bytes.into())
    }

    /// Calls `page` with the objects under `prefix` after `start_after`, in no order, until it returns false. Pages may be empty.
    pub(super) fn walk(
        &self,
        prefix: &str,
        start_after: Option<&str>,
        mut page: impl FnMut(Vec<ObjectMeta>) -> bool,
    ) -> Result<(), StoreError> {
        let wanted = |key: &str| key.starts_with(prefix) && start_after.is_none_or(|after| key > after);
        // Whether any key in `folder`, which ends in a slash, can be wanted.
        let worth_a_look = |folder: &str| {
            folder.starts_with(prefix) && start_after.is_none_or(|after| folder > after || after.starts_with(folder))
        };
        let mut found = Vec::new();
        let mut seen = 0;
        let mut folders = vec![prefix.rfind('/').map_or("", |slash| &prefix[..=slash]).to_owned()];
        while let Some(folder) = folders.pop() {
            let path = self.root.join(&folder);
            let error = |e| self.error(key::operation("list", prefix), at(&path)(e));
            let entries = match present(fs::read_dir(&path)).map_err(error)? {
                Some(entries) => entries,
                None if self.root.is_dir() => continue,
                None => return Err(self.gone(key::operation("list", prefix))),
            };
            for entry in entries {
                let entry = entry.map_err(error)?;
                seen += 1;
                if seen % PAGE_ENTRIES == 0 && !page(std::mem::take(&mut found)) {
                    return Ok(());
                }
                let Some(name) = entry.file_name().to_str().map(|name| format!("{folder}{name}")) else {
                    continue;
                };
                // None where it was deleted since the folder was read.
                let Some(kind) = present(entry.file_type())
                    .map_err(error)?
                    .filter(|_| key::fault(&name).is_none())
                else {
                    continue;
                };
                if kind.is_dir() {
                    folders.extend(Some(name + "/").filter(|name| worth_a_look(name)));
                } else if kind.is_file()
                    && wanted(&name)
                    && let Some(metadata) = present(entry.metadata()).map_err(error)?
                {
                    let size_bytes = metadata.len();
                    let modified = metadata
                        .modified()
                        .ok()
                        .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
                    found.push(ObjectMeta {
                        key: name,
                        size_bytes,
                        modified_us: modified.and_then(|since| i64::try_from(since.as_micros()).ok()),
                    });
                }
            }
        }
        page(found);
        Ok(())
    }

    /// The folders right below one, in order.
    pub(super) fn folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let path = self.root.join(prefix);
        let error = |e| self.error(key::operation("list", prefix), at(&path)(e));
        let entries = match present(fs::read_dir(&path)).map_err(error)? {
            Some(entries) => entries,
            None if self.root.is_dir() => return Ok(Vec::new()),
            None => return Err(self.gone(key::operation("list", prefix))),
        };
        let mut folders = Vec::new();
        for entry in entries {
            let entry = entry.map_err(error)?;
            let Some(name) = entry.file_name().to_str().map(|name| format!("{prefix}{name}")) else {
                continue;
            };
            let kind = present(entry.file_type()).map_err(error)?;
            if kind.is_some_and(|kind| kind.is_dir()) && key::fault(&name).is_none() {
                folders.push(name + "/");
            }
        }
        folders.sort_unstable();
        Ok(folders)
    }

    /// Removes the object, and the folders that held nothing else.
    pub(super) fn delete(&self, key: &str) -> Result<(), StoreError> {
        let path = self.root.join(key);
        let remove = || {
            let _lock = self.lock()?;
            match present(fs::remove_file(&path)) {
                Ok(Some(())) => {}
                Ok(None) => return Ok(()),
                Err(e) if e.kind() == ErrorKind::IsADirectory => return Ok(()),
                Err(e) => return Err(at(&path)(e)),
            }
            let removed = self
                .folders_above(&path)
                .take_while(|folder| *folder != self.root && fs::remove_dir(folder).is_ok());
            let _ = removed.count();
            self.sync_folders(&path)
        };
        remove().map_err(|e| self.error(format!("delete {key}"), e))
    }

    /// Held until the file is dropped. Every call opens the file anew, so that it keeps tasks of one process apart, too.
    fn lock(&self) -> io::Result<File> {
        let path = self.root.join(LOCK_FILE);
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(FILE_MODE)
            .open(&path)
            .map_err(at(&path))?;
        file.lock().map_err(at(&path))?;
        Ok(file)
    }

    /// The folders from the one that holds `path` up to the root.
    fn folders_above<'a>(&self, path: &'a Path) -> impl Iterator<Item = &'a Path> + use<'_, 'a> {
        path.ancestors().skip(1).take_while(|folder| folder.starts_with(&self.root))
    }

    fn sync_folders(&self, path: &Path) -> io::Result<()> {
        for folder in self.folders_above(path) {
            // None where a deletion has just emptied and removed it.
            if let Some(folder_file) = present(File::open(folder)).map_err(at(folder))? {
                folder_file.sync_all().map_err(at(folder))?;
            }
        }
        Ok(())
    }

    /// What an error of the operating system means to whoever asked for `operation`.
    pub(super) fn error(&self, operation: String, e: io::Error) -> StoreError {
        let remedy = match e.kind() {
            // Also what link(2) says where the filesystem has no hard links.
            ErrorKind::PermissionDenied => {
                "let the user that runs mysql-pitr read and write there, on a filesystem with hard links"
            }
            ErrorKind::ReadOnlyFilesystem => "mount it writable; if the kernel made it read-only after an error, see dmesg",
            ErrorKind::CrossesDevices => "the whole store has to lie on one filesystem",
            ErrorKind::Unsupported => "the store needs a filesystem with hard links and locks",
            ErrorKind::NotADirectory | ErrorKind::AlreadyExists => "an object and a folder of objects cannot have one name",
            ErrorKind::NotFound if !self.root.is_dir() => return self.gone(operation),
            _ => {
                return StoreError::Failed {
                    url: self.url.clone(),
                    operation,
                    source: e.into(),
                };
            }
        };
        self.refused(operation, format!("{e}; {remedy}"))
    }

    fn gone(&self, operation: String) -> StoreError {
        self.refused(operation, "its folder is gone; mount its disk again".into())
    }

    fn refused(&self, operation: String, reason: String) -> StoreError {
        StoreError::Refused {
            url: self.url.clone(),
            operation,
            reason,
        }
    }
}

pub(super) fn version_of(bytes: &[u8]) -> Version {
    version(Sha256::new_with_prefix(bytes))
}

fn version(content: Sha256) -> Version {
    Version(format!("{:x}", content.finalize()))
}

fn replace(temp: &Temp, path: &Path, expected: &Version) -> io::Result<Outcome> {
    let Some((mut file, _)) = open_regular(path)? else {
        return Ok(Outcome::Lost);
    };
    let mut content = Sha256::new();
    io::copy(&mut file, &mut content).map_err(at(path))?;
    if version(content) != *expected {
        return Ok(Outcome::Lost);
    }
    fs::rename(&temp.path, path).map_err(at(path))?;
    Ok(Outcome::Won)
}

/// None where there is nothing, or a folder of objects.
fn open_regular(path: &Path) -> io::Result<Option<(File, u64)>> {
    let Some(file) = present(File::open(path)).map_err(at(path))? else {
        return Ok(None);
    };
    let metadata = file.metadata().map_err(at(path))?;
    Ok(metadata.is_file().then_some((file, metadata.len())))
}

fn make_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(FOLDER_MODE).create(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made.map_err(at(path)),
    }
}

/// None where the path leads to nothing: no such name, or a file where it needs a folder.
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        result => result.map(Some),
    }
}

/// Adds the path, which the operating system leaves out.
fn at(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}
