//! Volumes as files of a btrfs, which copies a file as it is at one instant, whatever its size: what EBS does with a volume.
//!
//! A volume is attached by a loop device, and what a file system on it has not written to it yet is not in a copy, as in EC2. Two files are
//! copied one after the other, where EC2 takes the volumes of an instance at one instant: what InnoDB itself needs must lie on one of them.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use nix::unistd::geteuid;

use crate::support::skipped;

/// Sparse: the disk gives what is written.
const POOL_BYTES: u64 = 16 << 30;
/// Another process may take the free loop device first.
const LOOP_ATTEMPTS: u32 = 20;
const LOOP_INTERVAL: Duration = Duration::from_millis(50);
/// Takes everything away as soon as its standard input ends: when the pool is dropped, and also when the test dies in any other way. What a
/// dying server still holds is waited for.
const LEASH: &str = r#"
trap '' HUP INT TERM
cat > /dev/null
n=0
while mounts=$(findmnt -rno TARGET | grep "^$0/" | grep -v "^$0/pool\$" | sort -r); [ -n "$mounts" ] && [ $n -lt 100 ]; do
    for mount in $mounts; do umount "$mount"; done
    n=$((n + 1))
    sleep 0.1
done
for mount in $mounts; do umount -l "$mount"; done
losetup -nlO NAME,BACK-FILE | grep " $0/pool/" | while read -r device _; do losetup -d "$device"; done
umount "$0/pool" || umount -l "$0/pool"
rm -rf --one-file-system "$0"
"#;

/// A place for volumes, and for everything that is mounted in a test. Dropped, nothing of it is left.
pub struct Pool {
    root: PathBuf,
    leash: Child,
}

impl Pool {
    /// None, and it is said, where there can be none.
    pub fn make() -> Option<Pool> {
        match Pool::try_make() {
            Ok(pool) => Some(pool),
            Err(why) => {
                skipped(&format!("no volumes can be made here: {why}"));
                None
            }
        }
    }

    fn try_make() -> Result<Pool, String> {
        if !geteuid().is_root() {
            return Err("only root mounts".into());
        }
        for program in ["mkfs.btrfs", "mkfs.xfs", "losetup", "findmnt"] {
            try_run(program, &["--help"]).or_else(|_| try_run(program, &["-V"]))?;
        }
        let root = tempfile::Builder::new()
            .prefix("ebs-")
            .tempdir()
            .map_err(|e| e.to_string())?
            .keep();
        let leash = Command::new("setsid")
            .args(["--wait", "sh", "-c", LEASH])
            .arg(&root)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| e.to_string())?;
        let pool = Pool { root, leash };
        let (image, mounted) = (pool.root.join("image"), pool.root.join("pool"));
        fs::create_dir(&mounted)
            .and_then(|()| fs::File::create(&image)?.set_len(POOL_BYTES))
            .map_err(|e| e.to_string())?;
        try_run("mkfs.btrfs", &["-q", text(&image)])?;
        try_run("mount", &["-o", "loop", text(&image), text(&mounted)])?;
        Ok(pool)
    }

    /// Whatever is mounted is to be mounted below it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.join("pool").join(name)
    }

    /// An empty volume.
    pub fn create(&self, name: &str, gib: u64) {
        fs::File::create_new(self.file(name)).unwrap().set_len(gib << 30).unwrap();
    }

    /// What is on `from` at this instant, as `to`.
    pub fn copy(&self, from: &str, to: &str) {
        run("cp", &["--reflink=always", text(&self.file(from)), text(&self.file(to))]);
    }

    pub fn has(&self, name: &str) -> bool {
        self.file(name).exists()
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.file(name)).unwrap();
    }

    /// The block device that the volume is from now on.
    pub fn attach(&self, name: &str) -> PathBuf {
        for _ in 0..LOOP_ATTEMPTS {
            if let Ok(device) = try_run("losetup", &["--find", "--show", text(&self.file(name))]) {
                return device.trim().into();
            }
            thread::sleep(LOOP_INTERVAL);
        }
        panic!("no loop device for {name}");
    }

    /// # Errors
    /// Where it is mounted.
    pub fn detach(&self, device: &Path) -> Result<(), String> {
        if is_mounted(device) {
            return Err(format!("{} is mounted", device.display()));
        }
        try_run("losetup", &["--detach", text(device)]).map(drop)
    }

    /// What is mounted below the pool's root, apart from itself.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let all = run("findmnt", &["-rno", "TARGET"]);
        let below = all.lines().map(PathBuf::from).filter(|m| m.starts_with(&self.root));
        below.filter(|m| *m != self.root.join("pool")).collect()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        drop(self.leash.stdin.take());
        let _ = self.leash.wait();
    }
}

fn is_mounted(device: &Path) -> bool {
    run("findmnt", &["-rno", "SOURCE"])
        .lines()
        .any(|source| fs::canonicalize(source).is_ok_and(|s| s == device))
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a program that must succeed, and returns its standard output.
pub fn run(program: &str, arguments: &[&str]) -> String {
    try_run(program, arguments).unwrap_or_else(|e| panic!("{e}"))
}

fn try_run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let failed = |why: &str| format!("{program} {}: {}", arguments.join(" "), why.trim());
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(&e.to_string()))?;
    let mut out = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut out)
        .map_err(|e| failed(&e.to_string()))?;
    let output = child.wait_with_output().map_err(|e| failed(&e.to_string()))?;
    if output.status.success() {
        Ok(out)
    } else {
        Err(failed(&String::from_utf8_lossy(&output.stderr)))
    }
}
