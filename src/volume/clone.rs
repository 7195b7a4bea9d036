//! A consistent copy of the data by MySQL's clone plugin, on the server's own machine and without a lock.
//!
//! The plugin copies InnoDB only: other tables arrive empty with an identical gtid_executed, so the caller asks first.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::time::sleep;

use crate::{
    mysql::{endpoint::Endpoint, query::Session},
    support::{hint::OrHint, progress::Progress, progress::human_bytes},
};

/// A clone of terabytes takes hours.
const CLONE_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// A clone in the staging folder. Dropped, it is removed.
#[derive(Debug)]
pub struct Staged {
    path: PathBuf,
}

impl Staged {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.path)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), error = %e, "the staged clone could not be removed");
        }
    }
}

/// Clones the server's data into `staging/name`.
pub async fn clone_into(endpoint: &Endpoint, staging: &Path, name: &str, progress: &Progress) -> anyhow::Result<Staged> {
    let staged = Staged {
        path: staging.join(name),
    };
    let Some(text) = staged.path.to_str().filter(|t| !t.contains(['\'', '\\'])) else {
        bail!("staging_dir {} cannot be named in SQL", staging.display());
    };
    let sql = format!("CLONE LOCAL DATA DIRECTORY = '{text}'");
    let mut session = Session::connect(endpoint).await?;
    let mut watcher = Session::connect(endpoint).await?;
    let clone = session.execute_within(&sql, CLONE_TIMEOUT);
    tokio::pin!(clone);
    loop {
        tokio::select! {
            done = &mut clone => {
                done.context("the server could not clone itself")
                    .hint("see what `mysql-pitr check` says of privileges, clone plugin and staging_dir")?;
                return Ok(staged);
            }
            () = sleep(PROGRESS_INTERVAL) => show(&mut watcher, progress).await,
        }
    }
}

async fn show(watcher: &mut Session, progress: &Progress) {
    let sql = "SELECT CAST(SUM(estimate) AS UNSIGNED), CAST(SUM(data) AS UNSIGNED) FROM performance_schema.clone_progress";
    // Only for the eye.
    if let Ok((Some(estimate), Some(done))) = watcher.one::<(Option<u64>, Option<u64>)>(sql).await {
        progress.update(|| format!("{} of {}", human_bytes(done), human_bytes(estimate)));
    }
}

/// Removes what an agent that died left in the staging folder.
pub fn sweep(staging: &Path, is_ours: impl Fn(&str) -> bool) {
    for entry in std::fs::read_dir(staging).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(&is_ours) {
            drop(Staged { path: entry.path() });
        }
    }
}
