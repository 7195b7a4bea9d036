//! A volume's file system on this machine: its device by the volume's id, mounted and unmounted.

use std::{
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount as mount_it, umount2},
};
use tokio::time::{Instant, sleep};

use crate::support::hint::{OrHint, with_hint};

/// Where udev makes links to NVMe volumes of EBS, and what these are named before the volume's id without its dash.
pub const DEVICE_DIR: &str = "/dev/disk/by-id";
const LINK_PREFIX: &str = "nvme-Amazon_Elastic_Block_Store_";
const MOUNTS: &str = "/proc/self/mountinfo";
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// A server that was just killed may still write.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(30);

/// Waits for the device of a volume that was attached, or of a partition on it.
pub async fn device(dir: &Path, volume_id: &str, partition: Option<u32>, patience: Duration) -> anyhow::Result<PathBuf> {
    let part = partition.map_or(String::new(), |number| format!("-part{number}"));
    let link = dir.join(format!("{LINK_PREFIX}{}{part}", volume_id.replace('-', "")));
    let deadline = Instant::now() + patience;
    loop {
        if let Ok(device) = fs::canonicalize(&link) {
            return Ok(device);
        }
        if Instant::now() > deadline {
            let e = anyhow!(
                "volume {volume_id} is attached, and no device appears as {} within {} s",
                link.display(),
                patience.as_secs()
            );
            let hint = "on instances with NVMe volumes udev makes these links; look at `lsblk -o NAME,SERIAL`, and set device_dir in the \
                        [recover.volume] section if they are elsewhere";
            return Err(with_hint(e, hint));
        }
        sleep(LOOK_INTERVAL).await;
    }
}

/// Mounts a copy of a file system; whoever wrote the original may have had it open.
pub fn mount(device: &Path, target: &Path, filesystem: &str) -> anyhow::Result<()> {
    // The original may be mounted here too, and XFS knows its file systems by their UUIDs.
    let options = (filesystem == "xfs").then_some("nouuid");
    mount_it(
        Some(device),
        target,
        Some(filesystem),
        MsFlags::MS_NOATIME | MsFlags::MS_NODEV | MsFlags::MS_NOSUID,
        options,
    )
    .with_context(|| format!("cannot mount {} at {} as {filesystem}", device.display(), target.display()))
    .hint(if nix::unistd::geteuid().is_root() {
        "see what the kernel says of it: dmesg"
    } else {
        "run this command as root: it mounts volumes"
    })
}

/// The device that is mounted at `target`, if one is.
pub fn mounted(target: &Path) -> anyhow::Result<Option<PathBuf>> {
    let text = fs::read(MOUNTS).with_context(|| format!("cannot read {MOUNTS}"))?;
    let mut found = None;
    for line in text.split(|b| *b == b'\n') {
        let mut fields = line.split(|b| *b == b' ');
        let at = fields.nth(4).map(unescaped);
        // Behind the optional fields and a dash: the type, the source.
        let source = fields.skip_while(|f| *f != b"-").nth(2).map(unescaped);
        if at.as_deref() == Some(target.as_os_str().as_bytes()) {
            // The last one covers those before it.
            found = source.map(|s| PathBuf::from(std::ffi::OsStr::from_bytes(&s)));
        }
    }
    Ok(found)
}

/// Blanks and the like are written as three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\');
        let value = octal
            .and_then(|d| std::str::from_utf8(d).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match value {
            Some(value) => {
                bytes.push(value);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// Unmounts what is at `target`, if anything is.
pub async fn unmount(target: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + UNMOUNT_PATIENCE;
    while mounted(target)?.is_some() {
        match umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EBUSY) if Instant::now() < deadline => sleep(LOOK_INTERVAL).await,
            Err(e) => {
                return Err(e)
                    .with_context(|| format!("cannot unmount {}", target.display()))
                    .hint("see who uses it: fuser -vm");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_blanks_are_read() {
        assert_eq!(unescaped(br"/a\040b\134c"), br"/a b\c");
        assert_eq!(unescaped(br"/a\9"), br"/a\9");
    }

    #[test]
    fn the_root_is_mounted_and_a_folder_is_not() {
        assert!(mounted(Path::new("/")).unwrap().is_some());
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(mounted(dir.path()).unwrap(), None);
    }

    #[tokio::test]
    async fn a_device_is_found_by_its_volume_and_one_that_never_comes_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let device_file = dir.path().canonicalize().unwrap().join("nvme1n1");
        fs::write(&device_file, b"").unwrap();
        std::os::unix::fs::symlink("nvme1n1", dir.path().join("nvme-Amazon_Elastic_Block_Store_vol0a1")).unwrap();
        let found = device(dir.path(), "vol-0a1", None, Duration::ZERO).await.unwrap();
        assert_eq!(found, device_file);
        assert!(device(dir.path(), "vol-0a1", Some(1), Duration::ZERO).await.is_err());
        let error = device(dir.path(), "vol-0a2", None, Duration::ZERO).await.unwrap_err();
        let text = crate::support::hint::render(&error);
        assert!(text.contains("volume vol-0a2 is attached, and no device appears"), "{text}");
    }
}
