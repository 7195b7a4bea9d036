//! What the server has against what the archive has: where shipping goes on.

use std::collections::BTreeSet;

use anyhow::bail;
use tracing::{debug, warn};

use crate::{
    archive::{
        gaps,
        keys::{BinlogPlace, binlog_number},
        listing::{Archive, Form, StoredBinlog, covered_end},
        path::Path,
        records::{Ending, Opening, Reason, Timeline},
        survey::{Fault, Subject},
    },
    binlog::gtid::GtidSet,
    mysql::{
        query::ServerBinlog,
        server::{Server, ServerState},
    },
};

use super::seal::identify;

/// A binlog on the server that is not sealed in the archive.
#[derive(Debug)]
pub struct Unsealed {
    pub file: ServerBinlog,
    /// What the archive has of it already: its opening, and how far segments cover it.
    pub known: Option<(Opening, u64)>,
}

/// What is to be shipped.
#[derive(Debug)]
pub struct Todo {
    /// Oldest first; the last one is live.
    pub binlogs: Vec<Unsealed>,
    /// How the binlog before the first of them ends, if the archive has it.
    pub ending_before: Option<Ending>,
    /// Label of the newest binlog that was shipped on this timeline, was not purged, and that the server no longer has: what a
    /// crash without sync_binlog=1 leaves of a file that was not on disk yet, or a data folder that was put back.
    pub vanished_label_ns: Option<i64>,
    /// The older timeline that the server's newest known binlog belongs to, where later ones are on this timeline: a data folder
    /// that was put back. History goes on from there.
    pub went_back_to: Option<u32>,
    /// The server's history is not the one that was shipped: RESET BINARY LOGS AND GTIDS, or a server put back.
    pub history_was_replaced: bool,
    /// Records of the archive that cannot be read. What they would say counts as lacking: shipping twice is harmless.
    pub faults: Vec<Fault>,
}

/// Looks from the newest binlog back until it meets one that is sealed on the server's own line of timelines: binlogs are sealed in
/// order. A server that took over from another one stops where the archive lacks nothing that lies further back.
pub async fn reconcile(
    archive: &Archive,
    server: &dyn Server,
    state: &ServerState,
    timelines: &[Timeline],
    timeline: &Timeline,
) -> anyhow::Result<Todo> {
    let (files, server_uuid) = (&state.binlogs, state.server_uuid);
    let path = Path::find(timelines, Some(timeline.id))?;
    let line: Vec<u32> = path.own_line().iter().map(|t| t.id).collect();
    let claimed = &path.own_line()[0];
    // A server whose binlogs lie on another timeline, if anywhere.
    let took_over = claimed.parent.is_some() || claimed.reason == Reason::Adoption;
    // What the server had executed when the binlog after the one in hand began.
    let (mut lacking, mut after) = (None, state.gtid_executed.clone());
    let is_on_server = |place: &BinlogPlace| place.server_uuid == server_uuid && files.iter().any(|f| f.name == place.name);
    // Everything is judged by these two listings: what another task opens meanwhile is not taken for lost.
    let mut sealed = archive.sealed_index().await?;
    sealed.retain(|place, _| place.server_uuid == server_uuid);
    // Only what is older than the oldest file can have been purged.
    let last = files.last().and_then(|f| binlog_number(&f.name)).unwrap_or(0);
    let may_be_there = |place: &BinlogPlace| is_on_server(place) || place.number() > last;
    let (mut stored, mut faults) = archive
        .readable_sealed(sealed.iter().filter(|(place, _)| may_be_there(place)).map(|(_, key)| key))
        .await?;
    let is_unreadable = |wanted: &BinlogPlace| {
        let mut faults = faults.iter();
        faults.any(|f| matches!(&f.subject, Subject::Binlog { place, .. } if place == wanted))
    };
    // By its segments, a binlog with an unreadable manifest is known again; one that the server no longer has is not taken for lost.
    let is_unsealed = |place: &BinlogPlace| !sealed.contains_key(place) || is_unreadable(place) && is_on_server(place);
    let (tails, tail_faults) = archive
        .readable_tails(|place| place.server_uuid == server_uuid && is_unsealed(place))
        .await?;
    faults.extend(tail_faults);
    stored.extend(tails.iter().cloned());
    let mut todo = Todo {
        binlogs: Vec::new(),
        ending_before: None,
        vanished_label_ns: None,
        went_back_to: None,
        history_was_replaced: false,
        faults: Vec::new(),
    };
    let shipped_any = stored
        .iter()
        .any(|b| is_on_server(b.place()) && line.contains(&b.opening.timeline));
    let (mut newest_met, mut known) = (None, BTreeSet::new());
    for file in files.iter().rev() {
        let is_namesake = |b: &&StoredBinlog| b.place().name == file.name && (!took_over || line.contains(&b.opening.timeline));
        let namesakes: Vec<&StoredBinlog> = stored.iter().filter(is_namesake).collect();
        let identity = if namesakes.is_empty() && !took_over {
            None
        } else {
            identify(server, &file.name).await?
        };
        let is_it = |b: &&&StoredBinlog| identity.as_ref().is_some_and(|i| i.fingerprint == b.opening.fingerprint);
        let found = namesakes.iter().find(is_it);
        if let Some(found) = found {
            newest_met = newest_met.or(Some(found.opening.timeline));
            known.insert(found.place().clone());
        }
        // A server gives a name twice when it begins anew, or after its data folder was put back: then older binlogs are still there.
        if identity.is_some() && found.is_none() && namesakes.iter().any(|b| b.opening.timeline == timeline.id) {
            warn!(binlog = %file.name, "the server has another binlog under the name of one that was shipped: its history was replaced");
            todo.history_was_replaced = true;
        }
        if let Some(StoredBinlog {
            form: Form::Sealed(manifest),
            ..
        }) = found
        {
            // A file that was put back shorter than it was archived: history was taken back, whatever the archive says of its end.
            let was_cut = file.bytes < manifest.bytes;
            todo.ending_before = Some(if was_cut { Ending::Crash } else { manifest.ending });
            break;
        }
        // Whether the server's history is still the same is told by what was shipped of it: that is looked for first.
        let may_end = newest_met.is_some() || !shipped_any;
        if took_over && may_end && found.is_none() && !todo.binlogs.is_empty() {
            if lacking.is_none() {
                lacking = Some(lacking_before(archive, &path, state, &mut faults).await?);
            }
            if lacking.as_ref().is_some_and(|l| l.intersect(&after).is_empty()) {
                break;
            }
        }
        if let Some(identity) = &identity {
            after = identity.previous_gtids.union(&state.gtid_purged);
        }
        let known = found.map(|binlog| {
            let covered = if let Form::Tail(segments) = &binlog.form {
                covered_end(segments)
            } else {
                0
            };
            (binlog.opening.clone(), covered)
        });
        todo.binlogs.push(Unsealed {
            file: file.clone(),
            known,
        });
    }
    todo.binlogs.reverse();
    let first_known = known.iter().map(BinlogPlace::number).min().unwrap_or(0);
    let is_lost = |b: &&StoredBinlog| {
        let is_tail = matches!(b.form, Form::Tail(_));
        b.opening.timeline == timeline.id && !known.contains(b.place()) && (is_tail || b.place().number() > first_known)
    };
    todo.vanished_label_ns = stored.iter().filter(is_lost).map(|b| b.place().label_ns).max();
    let met_any = newest_met.is_some();
    todo.history_was_replaced &= !met_any;
    if met_any && newest_met == Some(timeline.id) || todo.history_was_replaced {
        todo.faults = faults;
        return Ok(todo);
    }
    let (mut shipped, shipped_faults) = archive.readable_sealed(sealed.values()).await?;
    faults.extend(shipped_faults);
    shipped.extend(tails);
    shipped.retain(|b| b.opening.timeline == timeline.id);
    if !met_any {
        // What was opened since the first look is in the listings and not in that.
        let now = server.look().await?;
        if !now.binlogs.iter().map(|f| &f.name).eq(files.iter().map(|f| &f.name)) {
            bail!("the server's binlogs changed while they were compared with the archive");
        }
        todo.history_was_replaced = !holds_what_was_shipped(archive, &shipped, &now, timeline, &mut faults).await?;
    } else if !shipped.is_empty() || !descends_from(timelines, timeline.id, newest_met) {
        (todo.went_back_to, todo.vanished_label_ns) = (newest_met, Some(i64::MAX));
    }
    todo.faults = faults;
    debug!(binlogs = todo.binlogs.len(), met_any, "compared the server with the archive");
    Ok(todo)
}

/// What the server has in its binlogs, and the archive lacks on the path before it: its own transactions, and a tail that the old
/// primary never shipped, but had replicated. Nothing before the first snapshot is needed, and a tail that is not sealed counts as
/// lacking: shipping twice is harmless.
async fn lacking_before(archive: &Archive, path: &Path, state: &ServerState, faults: &mut Vec<Fault>) -> anyhow::Result<GtidSet> {
    let mut archived = state.gtid_purged.clone();
    let index = archive.sealed_index().await?;
    let (sealed, sealed_faults) = archive.readable_sealed(index.values()).await?;
    let (snapshots, snapshot_faults) = archive.readable_snapshots().await?;
    faults.extend(sealed_faults.into_iter().chain(snapshot_faults));
    for binlog in sealed {
        if let (Some(inherited), Some(gtids)) = (path.inherited(binlog.opening.timeline), binlog.gtids()) {
            archived.add(&inherited.of(gtids));
        }
    }
    if let Some(oldest) = gaps::serving(path, &snapshots).first() {
        archived.add(&oldest.gtids_before);
    }
    Ok(state.gtid_executed.subtract(&archived))
}

fn descends_from(timelines: &[Timeline], id: u32, ancestor: Option<u32>) -> bool {
    Path::find(timelines, Some(id)).is_ok_and(|path| path.timelines().iter().any(|t| Some(t.id) == ancestor))
}

/// Whether the server's gtid_executed holds everything that the archive has of this timeline.
async fn holds_what_was_shipped(
    archive: &Archive,
    shipped: &[StoredBinlog],
    state: &ServerState,
    timeline: &Timeline,
    faults: &mut Vec<Fault>,
) -> anyhow::Result<bool> {
    let (mut snapshots, snapshot_faults) = archive.readable_snapshots().await?;
    faults.extend(snapshot_faults);
    snapshots.retain(|s| s.timeline == timeline.id);
    let mut gtids = timeline.branch_set.clone();
    for binlog in shipped {
        gtids.add(&binlog.opening.held_before);
        gtids.add(binlog.gtids().unwrap_or(&GtidSet::new()));
    }
    snapshots.iter().for_each(|s| gtids.add(&s.gtids_before));
    let missing = gtids.subtract(&state.gtid_executed);
    if !missing.is_empty() {
        warn!(%missing, "the server lacks transactions that were shipped from it: its history was replaced");
    }
    // GTIDs are reused after a RESET, and a tail's transactions are not known without reading it. But nothing was purged,
    // so the server's first binlog would have been met, had it been there when binlogs of this timeline were shipped.
    let begins_anew = !shipped.is_empty() && state.gtid_purged.is_empty();
    Ok(missing.is_empty() && !begins_anew)
}
