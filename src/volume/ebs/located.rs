//! The volumes that hold a server's files, and which of its folders each holds.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};

use super::{
    Named,
    mounts::{self, Located, Mount, Roots},
};
use crate::{
    archive::records::HeldFolder,
    support::hint::{OrHint, with_hint},
};

/// A volume with some of the server's folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub volume_id: String,
    /// Of the disk, where the file system is on one.
    pub partition: Option<u32>,
    pub mount_point: PathBuf,
    pub filesystem: String,
    /// Their paths without symbolic links.
    pub holds: Vec<HeldFolder>,
}

/// Finds the volumes of `folders`. Those in `named` are believed; of the others the device says which they are.
///
/// # Errors
/// A folder that is not there, or of which nobody knows where it lies.
pub fn locate(folders: &[HeldFolder], named: &[Named], roots: &Roots) -> anyhow::Result<Vec<Volume>> {
    let mounts = mounts::mounts(roots)?;
    let mut volumes: Vec<Volume> = Vec::new();
    let mut at: Vec<(&Mount, Vec<HeldFolder>)> = Vec::new();
    for folder in folders {
        let role = folder.role;
        let path = std::fs::canonicalize(&folder.path)
            .with_context(|| {
                format!(
                    "the server's folder {} ({role}) is not to be seen from here",
                    folder.path.display()
                )
            })
            .hint("run mysql-pitr on the server's own machine, where its folders have the same paths")?;
        let mount = mounts::mount_of(&mounts, &path)
            .with_context(|| format!("no file system holds the server's folder {}", path.display()))?;
        let held = HeldFolder { role, path };
        match at.iter_mut().find(|(m, _)| m.mount_point == mount.mount_point) {
            Some((_, holds)) => holds.push(held),
            None => at.push((mount, vec![held])),
        }
    }
    for (mount, mut holds) in at.iter().cloned() {
        holds.sort();
        holds.dedup();
        let Located { volume_id, partition } = match by_name(mount, &at, named)? {
            Some(located) => located,
            None => mounts::volume_of(mount, roots)?,
        };
        if let Some(other) = volumes.iter().find(|v| v.volume_id == volume_id) {
            let e = anyhow!(
                "volume {volume_id} holds two file systems of the server: {} and {}",
                other.mount_point.display(),
                mount.mount_point.display()
            );
            return Err(with_hint(e, "give each file system a volume of its own"));
        }
        volumes.push(Volume {
            volume_id,
            partition,
            mount_point: mount.mount_point.clone(),
            filesystem: mount.filesystem.clone(),
            holds,
        });
    }
    if let Some(unused) = named.iter().find(|n| !volumes.iter().any(|v| v.volume_id == n.volume_id)) {
        let e = anyhow!("the configuration names volume {unused}, and no folder of the server lies there");
        return Err(with_hint(
            e,
            "remove it from volumes of the [ebs] section, or correct its mount point",
        ));
    }
    Ok(volumes)
}

/// What the configuration says of a file system.
fn by_name(mount: &Mount, all: &[(&Mount, Vec<HeldFolder>)], named: &[Named]) -> anyhow::Result<Option<Located>> {
    let is_here = |n: &&Named| n.mount_point.as_deref() == Some(&mount.mount_point);
    let nameless: Vec<&Named> = named.iter().filter(|n| n.mount_point.is_none()).collect();
    let found = match (named.iter().find(is_here), nameless.as_slice()) {
        (Some(named), _) => named,
        (None, []) => return Ok(None),
        // Which of several it is the device has to say.
        (None, [one]) if all.len() == 1 && named.len() == 1 => one,
        (None, several) => {
            let points: Vec<String> = all.iter().map(|(m, _)| m.mount_point.display().to_string()).collect();
            let e = anyhow!(
                "the server's files lie on {}, and the configuration does not say which of these volume {} is",
                points.join(", "),
                several[0].volume_id
            );
            let hint = format!(
                "write it with its mount point: \"{}={}\"",
                mount.mount_point.display(),
                several[0].volume_id
            );
            return Err(with_hint(e, hint));
        }
    };
    Ok(Some(Located {
        volume_id: found.volume_id.clone(),
        partition: None,
    }))
}

/// Where the volumes' file systems are.
pub fn mount_points(volumes: &[Volume]) -> Vec<PathBuf> {
    volumes.iter().map(|v| Path::new(&v.mount_point).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{archive::records::FolderRole, support::hint::render};

    struct Machine {
        dir: tempfile::TempDir,
        roots: Roots,
    }

    /// With folders `a` and `b`, file systems of their own.
    fn machine() -> Machine {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for folder in ["a/mysql", "b/logs"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        let mountinfo = root.join("mountinfo");
        let (a, b) = (root.join("a"), root.join("b"));
        let text = format!(
            "1 0 7:0 / / rw - ext4 /dev/loop0 rw\n2 1 7:1 / {} rw - xfs /dev/loop1 rw\n3 1 7:2 / {} rw - xfs /dev/loop2 rw\n",
            a.display(),
            b.display()
        );
        std::fs::write(&mountinfo, text).unwrap();
        let roots = Roots {
            mountinfo,
            sys: root.join("sys"),
        };
        Machine { dir, roots }
    }

    fn held(machine: &Machine, role: FolderRole, folder: &str) -> HeldFolder {
        HeldFolder {
            role,
            path: machine.dir.path().canonicalize().unwrap().join(folder),
        }
    }

    fn named(machine: &Machine, texts: &[&str]) -> Vec<Named> {
        let root = machine.dir.path().canonicalize().unwrap();
        let full = |t: &&str| t.replace('@', root.to_str().unwrap());
        texts.iter().map(|t| Named::parse(&full(t)).unwrap()).collect()
    }

    #[test]
    fn folders_are_put_together_by_their_volumes() {
        let machine = machine();
        let folders = [
            held(&machine, FolderRole::Datadir, "a/mysql"),
            held(&machine, FolderRole::Redo, "a/mysql"),
            held(&machine, FolderRole::Binlog, "b/logs"),
        ];
        let volumes = locate(&folders, &named(&machine, &["@/a=vol-0a", "@/b=vol-0b"]), &machine.roots).unwrap();
        assert_eq!(volumes.len(), 2);
        assert_eq!((volumes[0].volume_id.as_str(), volumes[0].holds.len()), ("vol-0a", 2));
        assert_eq!(volumes[1].holds, folders[2..]);
        assert_eq!(volumes[1].filesystem, "xfs");
    }

    #[test]
    fn one_volume_needs_no_mount_point() {
        let machine = machine();
        let datadir = [held(&machine, FolderRole::Datadir, "a/mysql")];
        let volumes = locate(&datadir, &named(&machine, &["vol-0a"]), &machine.roots).unwrap();
        assert_eq!(volumes[0].volume_id, "vol-0a");
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        let machine = machine();
        let datadir = held(&machine, FolderRole::Datadir, "a/mysql");
        let both = [datadir.clone(), held(&machine, FolderRole::Binlog, "b/logs")];
        for (folders, names, why) in [
            (&both[..], &["vol-0a"][..], "does not say which of these volume vol-0a is"),
            (&both, &["@/a=vol-0a", "@/b=vol-0a"], "volume vol-0a holds two file systems"),
            (
                &both[..1],
                &["@/a=vol-0a", "@/b=vol-0b"],
                "no folder of the server lies there",
            ),
            (&both, &["@/a=vol-0a"], "it is on no block device"),
        ] {
            let error = render(&locate(folders, &named(&machine, names), &machine.roots).unwrap_err());
            assert!(error.contains(why) && error.contains("\n hint: "), "{error}");
        }
        let gone = [held(&machine, FolderRole::Datadir, "c")];
        let error = render(&locate(&gone, &[], &machine.roots).unwrap_err());
        assert!(error.contains("is not to be seen from here"), "{error}");
    }
}
