//! Objects as files in a folder: `file:///path`.
//!
//! **Writing.** An object is written to `.tmp/<uuid>` in the same folder, so on the same filesystem, and fsynced. Then it gets its
//! name: by `link(2)`, which fails where the name is taken and so is an exclusive creation that even NFS has always kept, or, for
//! a conditional replacement, by comparing the content's sha256 and `rename(2)` under a lock (`flock` on `.lock`). Last, every folder
//! from the object's up to the root is fsynced, not only new ones: a predecessor may have died between making a folder and syncing it.
//!
//! **If the process dies** before the object has its name, only a temporary file is left, which nobody sees and [`FilesystemStore::open`]
//! removes once it is a day old; after that, the object is there, whole, and lasts from when the kernel writes the folder. Whoever
//! repeats the PUT learns that the object exists, and has then synced the folders too. Locks end with the process.
//!
//! **Sharing.** Several processes may use one folder; the lock keeps replacements, deletions and the removal of emptied folders apart.
//! Creation does not rest on it. On NFS all clients need working locks (NFSv4, or v3 with lockd; not `nolock`), else two of them may
//! both win a replacement; and a client sees another's new object only after its attribute cache has expired (`acregmin`, 3 s by
//! default), so two machines that claim something by creating it must read it back. A `link` whose answer NFS lost is repeated by the
//! client and may say that the name is taken by the very file that it linked: read back there, too.
//!
//! **Limits.** The filesystem needs hard links (not exFAT, not most FUSE mounts of buckets). A folder that is meant to be a mount point is
//! an ordinary folder while nothing is mounted: let systemd's `RequiresMountsFor=` see to that. One object cannot be both `a` and the
//! folder of `a/b`, as it can in S3; the archive has no such keys. Symbolic links and dot files are not listed.

use std::{io, path::Path, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{io::AsyncSeekExt, sync::mpsc, task::spawn_blocking, time::timeout};

use super::{
    CALL_TIMEOUT, GET_BYTES_MAX, ObjectMeta, ObjectReader, Put, Store, StoreError, Upload, Version, call_timeout, key,
    stall::StallGuard,
};
use folder::{Folder, Temp};

mod folder;

/// How much of an upload may wait in the page cache. Bounds the last fsync, and what this crowds out of a database's cache.
const UNSYNCED_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// A folder that holds objects.
#[derive(Debug, Clone)]
pub struct FilesystemStore {
    folder: Arc<Folder>,
}

impl FilesystemStore {
    /// Opens a folder that exists, and clears temporary files that nobody has written to for a day. A folder without write permission
    /// will do for reading.
    ///
    /// # Errors
    /// [`StoreError::Refused`] where there is no folder: one made here would hide a disk that is not mounted.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let folder = Folder::open(root)?;
        folder.remove_stale_temps();
        Ok(FilesystemStore {
            folder: Arc::new(folder),
        })
    }

    fn check(&self, verb: &str, key: &str) -> Result<(), StoreError> {
        key::check(self.url(), verb, key)
    }
}

#[async_trait]
impl Store for FilesystemStore {
    fn url(&self) -> &str {
        self.folder.url()
    }

    async fn put(&self, key: &str, bytes: Bytes, condition: Put) -> Result<Version, StoreError> {
        self.check("put", key)?;
        let size_bytes = bytes.len() as u64;
        let key = key.to_owned();
        blocking(&self.folder, format!("put {key}"), size_bytes, move |folder| {
            let mut temp = folder.temp(&key)?;
            temp.write(&bytes).map_err(|e| folder.error(format!("put {key}"), e))?;
            folder.publish(temp, &key, &condition)?;
            Ok(folder::version_of(&bytes))
        })
        .await
    }

    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError> {
        self.check("put", key)?;
        let name = key.to_owned();
        let temp = blocking(&self.folder, format!("put {key}"), 0, move |folder| folder.temp(&name)).await?;
        Ok(Box::new(FilesystemUpload {
            folder: Arc::clone(&self.folder),
            key: key.to_owned(),
            temp: Some(temp),
            unsynced_bytes: 0,
        }))
    }

    async fn get(&self, key: &str) -> Result<(Bytes, Version), StoreError> {
        self.check("get", key)?;
        let name = key.to_owned();
        let operation = || format!("get {key}");
        let (file, size_bytes) = blocking(&self.folder, operation(), 0, move |folder| folder.open_object("get", &name)).await?;
        if size_bytes > GET_BYTES_MAX {
            return Err(StoreError::TooLarge {
                url: self.url().to_owned(),
                key: key.to_owned(),
                size_bytes,
                limit_bytes: GET_BYTES_MAX,
            });
        }
        let name = key.to_owned();
        blocking(&self.folder, operation(), size_bytes, move |folder| {
            let bytes = folder.read_to_end(&name, file, size_bytes)?;
            let version = folder::version_of(&bytes);
            Ok((bytes, version))
        })
        .await
    }

    async fn read(&self, key: &str, from: u64) -> Result<ObjectReader, StoreError> {
        self.check("read", key)?;
        let name = key.to_owned();
        let (file, _) = blocking(&self.folder, format!("read {key}"), 0, move |folder| {
            folder.open_object("read", &name)
        })
        .await?;
        let object = format!("{}/{key}", self.url());
        let mut file = tokio::fs::File::from_std(file);
        if from > 0 {
            let sought = file.seek(io::SeekFrom::Start(from)).await;
            sought.map_err(|source| StoreError::Failed {
                url: self.url().to_owned(),
                operation: format!("read {key}"),
                source: Box::new(source),
            })?;
        }
        Ok(Box::new(StallGuard::new(file, object, CALL_TIMEOUT)))
    }

    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<ObjectMeta>, StoreError> {
        key::check_prefix(self.url(), prefix)?;
        let (page, mut pages) = mpsc::channel(1);
        let walk = spawn_blocking({
            let (folder, prefix, start_after) = (Arc::clone(&self.folder), prefix.to_owned(), start_after.map(str::to_owned));
            move || folder.walk(&prefix, start_after.as_deref(), |found| page.blocking_send(found).is_ok())
        });
        let operation = || key::operation("list", prefix);
        let mut objects = Vec::new();
        while let Some(mut found) = timeout(CALL_TIMEOUT, pages.recv())
            .await
            .map_err(|_| silent(&self.folder, operation()))?
        {
            objects.append(&mut found);
        }
        walk.await.map_err(|e| failed(&self.folder, operation(), e))??;
        // Not the order of the walk: `a-b`, `a.b` and `a/b` lie on both sides of each other.
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(objects)
    }

    async fn folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        key::check_prefix(self.url(), prefix)?;
        let below = prefix.to_owned();
        let operation = key::operation("list", prefix);
        blocking(&self.folder, operation, 0, move |folder| folder.folders(&below)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.check("delete", key)?;
        let name = key.to_owned();
        blocking(&self.folder, format!("delete {key}"), 0, move |folder| folder.delete(&name)).await
    }
}

/// An object under its temporary name. Whoever drops this, or the future of a call to it, drops the file.
struct FilesystemUpload {
    folder: Arc<Folder>,
    key: String,
    /// None while a call has it, and for ever when that call did not end well.
    temp: Option<Temp>,
    unsynced_bytes: u64,
}

impl FilesystemUpload {
    fn operation(&self) -> String {
        format!("put {}", self.key)
    }

    fn take_temp(&mut self) -> Result<Temp, StoreError> {
        let dead = || {
            failed(
                &self.folder,
                format!("put {}", self.key),
                "an earlier write of it failed or was given up".to_owned(),
            )
        };
        self.temp.take().ok_or_else(dead)
    }
}

#[async_trait]
impl Upload for FilesystemUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        let mut temp = self.take_temp()?;
        self.unsynced_bytes += bytes.len() as u64;
        let unsynced_bytes = self.unsynced_bytes;
        let sync = unsynced_bytes >= UNSYNCED_BYTES_MAX;
        let operation = self.operation();
        let temp = blocking(&self.folder, self.operation(), unsynced_bytes, move |folder| {
            let written = temp.write(&bytes).and_then(|()| if sync { temp.sync() } else { Ok(()) });
            written.map(|()| temp).map_err(|e| folder.error(operation, e))
        })
        .await?;
        self.temp = Some(temp);
        if sync {
            self.unsynced_bytes = 0;
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        let temp = self.take_temp()?;
        let key = self.key.clone();
        blocking(&self.folder, self.operation(), self.unsynced_bytes, move |folder| {
            folder.publish(temp, &key, &Put::IfAbsent)
        })
        .await
    }

    async fn abort(self: Box<Self>) {
        let _ = spawn_blocking(move || drop(self)).await;
    }
}

/// Runs `work` where it may block, and gives up on it when the disk or the file server keeps it for too long. It goes on regardless
/// then, for a system call cannot be called off.
async fn blocking<T: Send + 'static>(
    folder: &Arc<Folder>,
    operation: String,
    moved_bytes: u64,
    work: impl FnOnce(&Folder) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let job = spawn_blocking({
        let folder = Arc::clone(folder);
        move || work(&folder)
    });
    match timeout(call_timeout(moved_bytes), job).await {
        Ok(Ok(result)) => result,
        Ok(Err(panicked)) => Err(failed(folder, operation, panicked)),
        Err(_) => Err(silent(folder, operation)),
    }
}

fn silent(folder: &Folder, operation: String) -> StoreError {
    failed(
        folder,
        operation,
        io::Error::new(io::ErrorKind::TimedOut, "the disk or file server did not answer in time"),
    )
}

fn failed(folder: &Folder, operation: String, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    StoreError::Failed {
        url: folder.url().to_owned(),
        operation,
        source: source.into(),
    }
}
