//! What was shipped and lies off a path: whole timelines, and of the path's own what no successor inherited.

use serde::Serialize;
use uuid::Uuid;

use crate::{
    archive::{
        listing::{Archive, Form, StoredBinlog},
        path::{Inherited, Path},
        reader::{Flow, visit},
        records::Timeline,
    },
    binlog::{gtid::GtidSet, transaction::Tracker},
};

/// Of one timeline.
#[derive(Debug, Clone, Serialize)]
pub struct Diverged {
    pub timeline: u32,
    pub server_uuid: Uuid,
    /// Whether the timeline is on the path, so that only a part of it was not inherited.
    pub on_path: bool,
    pub binlogs: Vec<DivergedBinlog>,
    /// What is known to be off the path; more may be in the binlogs without a set.
    pub gtids: GtidSet,
}

#[derive(Debug, Clone, Serialize)]
pub struct DivergedBinlog {
    pub name: String,
    pub server_uuid: Uuid,
    pub sealed: bool,
    pub stored_bytes: u64,
    /// What of it is off the path; None where only reading it would tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gtids: Option<GtidSet>,
}

/// By timeline, as far as it is known without reading a binlog.
pub fn diverged(path: &Path, timelines: &[Timeline], binlogs: &[StoredBinlog]) -> Vec<Diverged> {
    let mut found: Vec<Diverged> = timelines.iter().map(|t| Diverged::of(path, t)).collect();
    for binlog in binlogs {
        let at = timelines.iter().position(|t| t.id == binlog.opening.timeline);
        let inherited = path.inherited(binlog.opening.timeline);
        if let Some(at) = at
            && inherited != Some(Inherited::All)
        {
            found[at].add(binlog, binlog.gtids().map(|gtids| left_out(inherited.as_ref(), gtids)));
        }
    }
    found.retain(|d| !d.binlogs.is_empty());
    found
}

/// As [`diverged`], and binlogs that are stored as segments are read to know what they hold.
pub async fn diverged_read(
    archive: &Archive,
    path: &Path,
    timelines: &[Timeline],
    binlogs: &[StoredBinlog],
) -> anyhow::Result<Vec<Diverged>> {
    let mut found = diverged(path, timelines, binlogs);
    for binlog in binlogs.iter().filter(|b| matches!(b.form, Form::Tail(_))) {
        let inherited = path.inherited(binlog.opening.timeline);
        let Some(of) = found.iter_mut().find(|d| d.timeline == binlog.opening.timeline) else {
            continue;
        };
        let place = binlog.place();
        let Some(at) = of
            .binlogs
            .iter()
            .position(|b| b.gtids.is_none() && b.name == place.name && b.server_uuid == place.server_uuid)
        else {
            continue;
        };
        of.binlogs.remove(at);
        let (mut tracker, mut holds) = (Tracker::default(), GtidSet::new());
        visit(archive, binlog, |piece| {
            if let Some(t) = tracker.piece(piece)? {
                holds.insert(t.gtid);
            }
            Ok(Flow::Continue)
        })
        .await?;
        of.add(binlog, Some(left_out(inherited.as_ref(), &holds)));
    }
    found.retain(|d| !d.binlogs.is_empty());
    Ok(found)
}

fn left_out(inherited: Option<&Inherited>, gtids: &GtidSet) -> GtidSet {
    match inherited {
        None => gtids.clone(),
        Some(inherited) => gtids.subtract(&inherited.of(gtids)),
    }
}

impl Diverged {
    fn of(path: &Path, timeline: &Timeline) -> Diverged {
        Diverged {
            timeline: timeline.id,
            server_uuid: timeline.server_uuid,
            on_path: path.inherited(timeline.id).is_some(),
            binlogs: Vec::new(),
            gtids: GtidSet::new(),
        }
    }

    /// Nothing where it is known that the whole binlog was inherited.
    fn add(&mut self, binlog: &StoredBinlog, gtids: Option<GtidSet>) {
        if gtids.as_ref().is_some_and(GtidSet::is_empty) {
            return;
        }
        self.gtids.add(gtids.as_ref().unwrap_or(&GtidSet::new()));
        self.binlogs.push(DivergedBinlog {
            name: binlog.place().name.clone(),
            server_uuid: binlog.place().server_uuid,
            sealed: matches!(binlog.form, Form::Sealed(_)),
            stored_bytes: binlog.stored_bytes(),
            gtids,
        });
    }
}
