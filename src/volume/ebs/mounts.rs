//! From a folder to its file system, to its block device, to the volume's id: by what Linux says in `/proc` and `/sys`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};

use crate::support::hint::{OrHint, with_hint};

const NAME_IT: &str = "name the volumes in the [ebs] section: volumes = [\"/mount/point=vol-0123\"]";
/// What partitions and the like are stacked on is found within so many steps, or there is a loop.
const DEPTH_MAX: usize = 8;

/// Where Linux tells of mounts and devices; elsewhere in tests.
#[derive(Debug, Clone)]
pub struct Roots {
    pub mountinfo: PathBuf,
    pub sys: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Roots {
            mountinfo: "/proc/self/mountinfo".into(),
            sys: "/sys".into(),
        }
    }
}

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub mount_point: PathBuf,
    /// What of the file system is to be seen there; `/` is all of it.
    pub root: PathBuf,
    pub filesystem: String,
    /// `major:minor`.
    device: String,
    /// As it was named to `mount`.
    source: String,
}

/// All mounts, in the order in which they were made.
pub fn mounts(roots: &Roots) -> anyhow::Result<Vec<Mount>> {
    let text = fs::read_to_string(&roots.mountinfo).with_context(|| format!("cannot read {}", roots.mountinfo.display()))?;
    Ok(text.lines().filter_map(parse).collect())
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`, as proc(5) has it.
fn parse(line: &str) -> Option<Mount> {
    let (of_mount, of_filesystem) = line.split_once(" - ")?;
    let mut fields = of_mount.split(' ').skip(2);
    let device = fields.next()?.to_owned();
    let (root, mount_point) = (unescape(fields.next()?), unescape(fields.next()?));
    let mut fields = of_filesystem.split(' ');
    Some(Mount {
        mount_point: mount_point.into(),
        root: root.into(),
        filesystem: fields.next()?.to_owned(),
        device,
        source: unescape(fields.next()?),
    })
}

/// Blanks, tabs, newlines and backslashes are written as `\040` and so on.
fn unescape(text: &str) -> String {
    const DIGITS: usize = 3;
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let code = after.get(..DIGITS).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                plain.push(char::from(code));
                rest = &after[DIGITS..];
            }
            None => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain + rest
}

/// The file system that holds a folder, which has no symbolic links in its path.
pub fn mount_of<'m>(mounts: &'m [Mount], folder: &Path) -> Option<&'m Mount> {
    // Of those mounted over one another the last one is seen.
    let holding = mounts.iter().filter(|m| folder.starts_with(&m.mount_point));
    holding.max_by_key(|m| m.mount_point.components().count())
}

/// The id of the volume that a file system lies on, where the device says it.
///
/// # Errors
/// What lies between, where that is more than a partition; what to do instead.
pub fn volume_of(mount: &Mount, roots: &Roots) -> anyhow::Result<Located> {
    let what = || {
        format!(
            "cannot tell which volume {} ({}, {}) lies on",
            mount.mount_point.display(),
            mount.filesystem,
            mount.source
        )
    };
    locate(mount, roots).with_context(what)
}

/// A volume, and which partition of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    pub volume_id: String,
    pub partition: Option<u32>,
}

fn locate(mount: &Mount, roots: &Roots) -> anyhow::Result<Located> {
    if mount.root != Path::new("/") {
        let e = anyhow!("it shows only {} of its file system", mount.root.display());
        return Err(with_hint(
            e,
            "put the server's folders below the mount point of a whole file system, not of a bind mount or subvolume",
        ));
    }
    let link = roots.sys.join("dev/block").join(&mount.device);
    let device = fs::canonicalize(&link)
        .map_err(|_| anyhow!("it is on no block device ({})", mount.device))
        .hint(NAME_IT)?;
    let (device, partition) = whole_disk(device)?;
    let name = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Ok(uuid) = fs::read_to_string(device.join("dm/uuid")) {
        let kind = match uuid.split('-').next() {
            Some("LVM") => "LVM",
            Some("CRYPT") => "an encrypted device",
            _ => "the device mapper",
        };
        let e = anyhow!("{kind} ({name}) lies between, and a recovery could not put that together again");
        return Err(with_hint(
            e,
            "put the server's files on a file system that is directly on one volume; EBS encrypts by itself",
        ));
    }
    if device.join("md").exists() {
        let e = anyhow!("a software RAID ({name}) lies between, and a recovery could not put that together again");
        return Err(with_hint(
            e,
            "put the server's files on a file system that is directly on one volume",
        ));
    }
    let serial = fs::read_to_string(device.join("device/serial"))
        .map_err(|_| anyhow!("the device {name} has no serial number that names a volume"))
        .hint(NAME_IT)?;
    let volume_id = volume_id(serial.trim())
        .with_context(|| format!("the device {name} is no EBS volume: its serial number is `{}`", serial.trim()))
        .hint("put the server's files on EBS volumes, not on instance storage, or use the clone provider")?;
    Ok(Located { volume_id, partition })
}

/// The disk that a partition is of, and its number.
fn whole_disk(mut device: PathBuf) -> anyhow::Result<(PathBuf, Option<u32>)> {
    let mut partition = None;
    for _ in 0..DEPTH_MAX {
        match fs::read_to_string(device.join("partition")) {
            Ok(number) => {
                partition = number.trim().parse().ok();
                device = device.parent().unwrap_or(Path::new("/")).to_owned();
            }
            Err(_) => return Ok((device, partition)),
        }
    }
    bail!("the device {} is a partition of itself", device.display())
}

/// NVMe has no room for the dash: `vol0123456789abcdef0` is `vol-0123456789abcdef0`.
fn volume_id(serial: &str) -> Option<String> {
    let number = serial.strip_prefix("vol")?.trim_start_matches('-');
    let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_hexdigit());
    is_number.then(|| format!("vol-{number}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::support::hint::render;

    /// A machine with an NVMe root, a volume, a partition, LVM, RAID, a loop device and instance storage.
    struct Machine {
        dir: tempfile::TempDir,
        roots: Roots,
    }

    impl Machine {
        fn new() -> Machine {
            let dir = tempfile::tempdir().unwrap();
            let roots = Roots {
                mountinfo: dir.path().join("mountinfo"),
                sys: dir.path().join("sys"),
            };
            fs::create_dir_all(roots.sys.join("dev/block")).unwrap();
            fs::write(
                &roots.mountinfo,
                "22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw\n\
                 23 22 259:5 / /data rw,noatime shared:2 master:3 - xfs /dev/nvme1n1 rw\n\
                 24 23 253:0 / /data/lvm rw - xfs /dev/mapper/vg-lv rw\n\
                 25 22 9:0 / /raid rw - xfs /dev/md0 rw\n\
                 26 22 7:3 / /loop rw - xfs /dev/loop3 rw\n\
                 27 22 259:9 / /fast\\040disk rw - xfs /dev/nvme2n1 rw\n\
                 28 22 0:50 / /tmp rw - tmpfs tmpfs rw\n\
                 29 22 259:5 /sub /bound rw - xfs /dev/nvme1n1 rw\n\
                 30 22 7:3 / /over rw - xfs /dev/loop3 rw\n\
                 31 22 259:5 / /over rw - xfs /dev/nvme1n1 rw\n",
            )
            .unwrap();
            let machine = Machine { dir, roots };
            machine.device("259:1", "pci/nvme/nvme0/nvme0n1/nvme0n1p1", &[("partition", "1\n")]);
            machine.file("pci/nvme/nvme0/nvme0n1/device/serial", "vol0aaaaaaaaaaaaaaaa\n");
            machine.device(
                "259:5",
                "pci/nvme/nvme1/nvme1n1",
                &[("device/serial", "vol0123456789abcdef0  \n")],
            );
            machine.device("253:0", "virtual/dm-0", &[("dm/uuid", "LVM-abcdef\n")]);
            machine.device("9:0", "virtual/md0", &[("md/level", "raid0\n")]);
            machine.device("7:3", "virtual/loop3", &[("size", "8\n")]);
            machine.device("259:9", "pci/nvme/nvme2/nvme2n1", &[("device/serial", "AWS6AAE5A3B1\n")]);
            machine
        }

        fn file(&self, path: &str, text: &str) {
            let path = self.roots.sys.join("devices").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn device(&self, number: &str, path: &str, files: &[(&str, &str)]) {
            for (file, text) in files {
                self.file(&format!("{path}/{file}"), text);
            }
            symlink(
                self.roots.sys.join("devices").join(path),
                self.roots.sys.join("dev/block").join(number),
            )
            .unwrap();
        }

        fn volume(&self, folder: &str) -> Result<Located, String> {
            let mounts = mounts(&self.roots).unwrap();
            let mount = mount_of(&mounts, Path::new(folder)).unwrap();
            let text = |e| render(&e).replace(self.dir.path().to_str().unwrap(), "");
            volume_of(mount, &self.roots).map_err(text)
        }
    }

    fn on(volume_id: &str, partition: Option<u32>) -> Result<Located, String> {
        Ok(Located {
            volume_id: volume_id.to_owned(),
            partition,
        })
    }

    #[test]
    fn the_device_names_the_volume() {
        let machine = Machine::new();
        assert_eq!(machine.volume("/data/mysql"), on("vol-0123456789abcdef0", None));
        assert_eq!(machine.volume("/var/lib/mysql"), on("vol-0aaaaaaaaaaaaaaaa", Some(1)));
        assert_eq!(
            machine.volume("/dataset"),
            on("vol-0aaaaaaaaaaaaaaaa", Some(1)),
            "not below /data"
        );
        assert_eq!(
            machine.volume("/over/x"),
            on("vol-0123456789abcdef0", None),
            "mounted over another"
        );
    }

    #[test]
    fn what_lies_between_is_named() {
        let machine = Machine::new();
        for (folder, why) in [
            ("/data/lvm/mysql", "LVM (dm-0) lies between"),
            ("/raid", "a software RAID (md0) lies between"),
            ("/loop/mysql", "the device loop3 has no serial number"),
            ("/fast disk", "no EBS volume: its serial number is `AWS6AAE5A3B1`"),
            ("/tmp/mysql", "it is on no block device (0:50)"),
            ("/bound/mysql", "it shows only /sub of its file system"),
        ] {
            let error = machine.volume(folder).unwrap_err();
            assert!(error.contains(why) && error.contains("\n hint: "), "{folder}: {error}");
        }
    }

    #[test]
    fn serial_numbers_are_ids_without_their_dash() {
        assert_eq!(volume_id("vol0a1b"), Some("vol-0a1b".to_owned()));
        assert_eq!(volume_id("vol-0a1b"), Some("vol-0a1b".to_owned()));
        for other in ["", "vol", "AWS123", "volume", "vol0123 x"] {
            assert_eq!(volume_id(other), None, "{other}");
        }
    }

    #[test]
    fn escaped_names_are_read() {
        assert_eq!(unescape("a\\040b\\134c\\x"), "a b\\c\\x");
    }
}
