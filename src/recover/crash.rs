//! The first start of a copy that was taken under a running server.
//!
//! Such a copy is what a power cut leaves. Whether a transaction that InnoDB has prepared was committed, only the binlog knows: started
//! without its binlogs the copy would roll back what its server had committed. So they are there, once, and then they go: the new
//! server has a history of its own to write.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};

use crate::{
    archive::records::{FolderRole, Snapshot},
    support::{hint::with_hint, progress::Progress},
    volume::mount,
};

use super::{
    instance::{Instance, LogBin, Purpose},
    plan::Plan,
    run::Settings,
    volumes::Volumes,
    workdir::Workdir,
};

/// Files that say who the copied server was.
const IDENTITY: &str = "auto.cnf";
/// Settings that its operator made persistent, and what they are kept as: they would beat the new server's own configuration.
const PERSISTED: (&str, &str) = ("mysqld-auto.cnf", "mysql-pitr-copied-mysqld-auto.cnf");
/// In the names that a server makes up for its relay logs.
const RELAY_LOG: &str = "-relay-bin.";

/// Lets InnoDB and the binlog agree, and shuts down cleanly.
pub async fn crash_recover(
    settings: &Settings,
    plan: &Plan,
    workdir: &Workdir,
    volumes: &Volumes,
    progress: &Progress,
) -> anyhow::Result<()> {
    progress.phase("letting the copied server recover from its crash");
    workdir.own_data()?;
    let log_bin = log_bin(&plan.snapshot, workdir, volumes)?;
    let purpose = Purpose::CrashRecovery { log_bin };
    let instance = Instance::start(&settings.mysqld, workdir, &plan.snapshot, purpose)
        .await
        .context("the server does not come up on the copied volumes")?;
    instance
        .stop(false)
        .await
        .context("the server did not shut down cleanly after it came up on the copied volumes")
}

/// Removes what belongs to the copied server and not to the new one. Returns what a person should know.
pub fn forget_copied_server(snapshot: &Snapshot, workdir: &Workdir, volumes: &Volumes) -> anyhow::Result<Option<String>> {
    let data = workdir.data();
    let mut gone = vec![data.join(IDENTITY)];
    for entry in fs::read_dir(&data)? {
        let entry = entry?;
        if entry.file_type()?.is_file() && entry.file_name().to_string_lossy().contains(RELAY_LOG) {
            gone.push(entry.path());
        }
    }
    if let Some(base) = basename(snapshot, volumes)? {
        if let (Ok(files), true) = (binlogs(&base), base.starts_with(&data)) {
            gone.extend(files);
        }
        gone.push(base.with_extension("index"));
    }
    for path in gone {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    let (persisted, kept) = (data.join(PERSISTED.0), data.join(PERSISTED.1));
    if persisted.exists() {
        fs::rename(&persisted, &kept).with_context(|| format!("cannot rename {}", persisted.display()))?;
    }
    Ok(kept.exists().then(|| {
        format!(
            "the copied server had persisted settings (SET PERSIST); they are kept in {} and do not take effect: put into the new server's \
             configuration what it needs of them",
            PERSISTED.1
        )
    }))
}

/// The copied server's binlogs as its first start is told of them; None where it wrote none.
fn log_bin(snapshot: &Snapshot, workdir: &Workdir, volumes: &Volumes) -> anyhow::Result<Option<LogBin>> {
    let Some(base) = basename(snapshot, volumes)? else {
        return Ok(None);
    };
    let files = binlogs(&base)?;
    if files.is_empty() {
        let e = anyhow!("the copied volumes hold no binlog {}.*", base.display());
        let hint = "without its binlogs a copy loses transactions that were committed: recover from another snapshot";
        return Err(with_hint(e, hint));
    }
    let index = workdir.scratch().join("binlog.index");
    let lines: Vec<String> = files.iter().map(|f| format!("{}\n", f.display())).collect();
    fs::write(&index, lines.concat()).with_context(|| format!("cannot write {}", index.display()))?;
    workdir.own(&index)?;
    // Up to the volume's root: they belong to whoever had that number on another machine.
    for folder in base.ancestors().skip(1) {
        workdir.own(folder)?;
        if mount::mounted(folder)?.is_some() {
            break;
        }
    }
    for file in &files {
        workdir.own(file)?;
    }
    Ok(Some(LogBin { base, index }))
}

/// Where the copied server's binlogs are now, without a number.
fn basename(snapshot: &Snapshot, volumes: &Volumes) -> anyhow::Result<Option<PathBuf>> {
    let Some(was) = snapshot.variables.get("log_bin_basename").filter(|b| !b.is_empty()) else {
        return Ok(None);
    };
    let was = Path::new(was);
    let name = was
        .file_name()
        .with_context(|| format!("`{}` is no name of binlogs", was.display()))?;
    // Links are followed in what the record says that a volume holds, and not in the server's variables.
    let held = snapshot.volumes.iter().flat_map(|v| &v.holds);
    let folders: Vec<&Path> = held
        .filter(|h| h.role == FolderRole::Binlog)
        .map(|h| h.path.as_path())
        .collect();
    let folder = match folders.as_slice() {
        [one] => one,
        _ => was.parent().unwrap_or(Path::new("")),
    };
    Ok(Some(volumes.here(snapshot, &folder.join(name))?))
}

/// The binlogs of that name, oldest first.
fn binlogs(base: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let folder = base.parent().unwrap_or(Path::new(""));
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let number = path.extension().and_then(OsStr::to_str).and_then(|e| e.parse::<u64>().ok());
        if let Some(number) = number.filter(|_| path.file_stem() == base.file_name()) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binlogs_are_ordered_by_their_numbers_and_nothing_else_is_one() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.1000000", "b.999999", "b.000001", "b.index", "b-relay.000001", "bb.000001"] {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        let found = binlogs(&dir.path().join("b")).unwrap();
        let names: Vec<_> = found.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["b.000001", "b.999999", "b.1000000"]);
    }
}
