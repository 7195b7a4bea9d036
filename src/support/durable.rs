//! Local files that survive a power cut: temporary name, fsync, rename, fsync of the folder.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Replaces `path` with `bytes`; a reader sees the old or the new content, never a part.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temp = sibling(path);
    let written = (|| {
        let mut file = File::create(&temp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temp, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temp);
    }
    written?;
    sync_parent(path)
}

/// Makes the name of `path` itself durable.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Has the file systems mounted there write everything that they hold back. Where one cannot be opened, all of the machine's do so.
pub fn sync_filesystems(mount_points: &[PathBuf]) {
    for mount_point in mount_points {
        let synced = File::open(mount_point).map(nix::unistd::syncfs);
        if !matches!(synced, Ok(Ok(()))) {
            return nix::unistd::sync();
        }
    }
}

/// A name beside `path` that no other writer uses.
fn sibling(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.tmp", uuid::Uuid::new_v4().simple()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_and_leaves_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
