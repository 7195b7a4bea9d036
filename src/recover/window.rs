//! The recoverable window of the current history, exactly: by reading what only reading tells.

use crate::{
    archive::{
        gaps::{self, Holding, Window},
        listing::{Archive, StoredBinlog},
        records::{Snapshot, Timeline},
    },
    support::hint::render,
};

use super::{
    plan::{assemble, find_path},
    target::{Target, path_binlogs, resolve},
};

/// What can be recovered of the current history.
#[derive(Debug, Default)]
pub struct Recoverable {
    pub window: Window,
    /// Commit of the last transaction that can be had; None where there is a problem.
    pub until_us: Option<i64>,
    /// Why the newest moment cannot be recovered.
    pub problem: Option<String>,
}

/// Reads the newest binlog, and those that are not sealed.
pub async fn recoverable(
    archive: &Archive,
    timelines: &[Timeline],
    snapshots: &[Snapshot],
    binlogs: &[StoredBinlog],
) -> Recoverable {
    let path = match find_path(archive, timelines, snapshots, None) {
        Ok(path) => path,
        Err(e) => {
            return Recoverable {
                problem: Some(render(&e)),
                ..Recoverable::default()
            };
        }
    };
    let binlogs = path_binlogs(&path, binlogs.to_vec());
    let resolved = resolve(archive, &path, &binlogs, &Target::Latest).await;
    let mut holdings: Vec<Holding> = binlogs.iter().map(|b| Holding::from(&b.binlog)).collect();
    for (i, gtids) in resolved.iter().flat_map(|r| &r.read) {
        holdings[*i].gtids.get_or_insert_with(|| gtids.clone());
    }
    let window = gaps::window(&path, snapshots, &holdings.iter().collect::<Vec<_>>());
    let plan = resolved.and_then(|resolved| assemble(path, snapshots, &binlogs, resolved, &Target::Latest));
    Recoverable {
        window,
        until_us: plan.as_ref().ok().and_then(|p| p.last.as_ref()).map(|stop| stop.commit_us),
        problem: plan.err().as_ref().map(render),
    }
}
