//! Errant transactions: what a replica executed by itself, and is in nobody's history.
//!
//! Told by where GTIDs come from: whoever the shard's history knows (a server that claimed one of its timelines, or the source of any of
//! its transactions: a former primary, a replication group) may have executed what is not archived yet. The others have no part in it.

use std::collections::HashSet;

use uuid::Uuid;

use crate::{
    archive::{
        listing::{Archive, StoredBinlog},
        path::Path,
        reader::gtids_of,
    },
    binlog::gtid::GtidSet,
};

/// What of `executed`, by a replica of the path's last timeline, is in nobody's history. Tails are read only where something may be
/// known by them alone. While the history has no binlog, whatever the replica has of other servers is suspected; that costs no
/// recovery anything, and once a binlog names it, it is part of what a recovery plans anyway.
///
/// # Errors
/// Where the archive cannot be read. A record that is damaged is passed over: what a binlog holds, its successors name.
pub async fn errant(archive: &Archive, path: &Path, executed: &GtidSet) -> anyhow::Result<GtidSet> {
    let timelines = path.timelines().iter();
    let mut known: HashSet<Uuid> = timelines.flat_map(|t| t.branch_set.uuids().chain([t.server_uuid])).collect();
    let mut errant = executed.without(&known);
    if errant.is_empty() {
        return Ok(errant);
    }
    let index = archive.sealed_index().await?;
    let (sealed, _) = archive.readable_sealed(index.values()).await?;
    let (mut tails, _) = archive.readable_tails(|place| !index.contains_key(place)).await?;
    for binlog in sealed.iter().chain(&tails) {
        learn(&mut known, path, binlog, binlog.gtids());
    }
    errant = executed.without(&known);
    tails.retain(|tail| path.holds(tail.opening.timeline));
    for tail in &tails {
        if errant.is_empty() {
            break;
        }
        learn(&mut known, path, tail, Some(&gtids_of(archive, tail).await?));
        errant = executed.without(&known);
    }
    Ok(errant)
}

fn learn(known: &mut HashSet<Uuid>, path: &Path, binlog: &StoredBinlog, gtids: Option<&GtidSet>) {
    if let Some(inherited) = path.inherited(binlog.opening.timeline) {
        let sets = gtids.into_iter().chain([&binlog.opening.held_before]);
        known.extend(sets.flat_map(|set| inherited.of(set).uuids().collect::<Vec<_>>()));
    }
}
