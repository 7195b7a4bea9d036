//! What must be so: at every step, and in the end.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};
use mysql_pitr::{
    archive::{
        codec::{Codec, Decoder},
        keys::{BinlogPlace, SegmentRange, Shard, TailKey, parse_manifest_key, parse_tail_key, sealed_prefix, segments_prefix},
        listing::{Archive, Form, Segment, StoredBinlog, covered_end},
        path::Path,
        reader::Portions,
        records::{Opening, Reason, Timeline},
    },
    binlog::{
        gtid::{Gtid, GtidSet},
        splitter::{SplitError, Splitter},
        transaction::{Tracker, Transaction},
    },
    recover::{
        plan::{Request, plan},
        resolve::resolve,
        target::{History, Target, path_binlogs},
    },
};

use super::server::{FakeServer, Inode, State};
use crate::support::memory_store::MemoryStore;

/// What the store holds of binlogs, read off its keys.
pub struct Stored {
    /// In the order of their creation.
    pub openings: Vec<Opening>,
    segments: BTreeMap<BinlogPlace, Vec<Segment>>,
    sealed: BTreeSet<BinlogPlace>,
}

impl Stored {
    pub fn look(store: &MemoryStore, shard: &Shard) -> Stored {
        let mut stored = Stored {
            openings: Vec::new(),
            segments: BTreeMap::new(),
            sealed: store
                .keys(&sealed_prefix(shard))
                .iter()
                .filter_map(|k| parse_manifest_key(k))
                .collect(),
        };
        let prefix = segments_prefix(shard);
        for key in store.created().into_iter().filter(|key| key.starts_with(&prefix)) {
            match parse_tail_key(shard, &key).expect("the agent writes no other keys here") {
                TailKey::Opening(_) => {
                    let record = store.object(&key).unwrap();
                    stored.openings.push(serde_json::from_slice(&record).unwrap());
                }
                TailKey::Segment(place, range) => stored.segments.entry(place).or_default().push(Segment {
                    key,
                    range,
                    stored_bytes: 0,
                }),
            }
        }
        stored.segments.values_mut().for_each(|s| s.sort_by_key(|s| s.range));
        stored
    }

    /// Up to where the binlog at `place` can be read.
    pub fn end(&self, place: &BinlogPlace) -> u64 {
        if self.sealed.contains(place) {
            u64::MAX
        } else {
            self.segments.get(place).map_or(0, |s| covered_end(s))
        }
    }

    /// Up to where `file` can be read.
    pub fn end_of(&self, file: &Inode) -> usize {
        let fingerprint = file.fingerprint();
        let its = self.openings.iter().filter(|o| Some(&o.fingerprint) == fingerprint.as_ref());
        its.map(|o| self.end(&o.place)).max().unwrap_or(0) as usize
    }

    /// How many binlogs of this name were opened, and up to where the best of them can be read.
    pub fn end_of_name(&self, name: &str) -> u64 {
        let places = self.openings.iter().map(|o| &o.place).filter(|p| p.name == name);
        places.map(|p| self.end(p)).max().unwrap_or(0)
    }
}

/// Every file that ever was, by its fingerprint.
struct Files<'s>(BTreeMap<String, Vec<&'s Inode>>);

impl<'s> Files<'s> {
    fn of(state: &'s State) -> Files<'s> {
        let mut files: BTreeMap<String, Vec<&Inode>> = BTreeMap::new();
        for inode in &state.inodes {
            if let Some(fingerprint) = inode.fingerprint() {
                files.entry(fingerprint).or_default().push(inode);
            }
        }
        Files(files)
    }

    /// All that was ever written to it.
    fn ever(&self, fingerprint: &str) -> anyhow::Result<&'s [u8]> {
        let files = self.0.get(fingerprint).context("the server never had such a binlog")?;
        Ok(files.iter().map(|f| &f.ever[..]).max_by_key(|e| e.len()).unwrap_or_default())
    }

    fn was_closed_at(&self, fingerprint: &str, bytes: usize) -> bool {
        self.0[fingerprint].iter().any(|f| f.closed_at.contains(&bytes))
    }
}

async fn bytes_of(archive: &Archive, binlog: &StoredBinlog) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut portions = Portions::of(archive, binlog);
    while let Some(portion) = portions.next().await? {
        bytes.extend_from_slice(&portion);
    }
    Ok(bytes)
}

fn decoded(store: &MemoryStore, key: &str) -> anyhow::Result<Vec<u8>> {
    let stored = store.object(key).context("it is gone")?;
    let (mut out, mut stored) = (Vec::new(), &stored[..]);
    let mut decoder = Decoder::new(Codec::of_key(key))?;
    loop {
        let portion = decoder.next(&mut stored)?;
        if portion.is_empty() {
            break;
        }
        out.extend_from_slice(portion);
    }
    out.extend(decoder.finish()?);
    Ok(out)
}

fn transactions(bytes: &[u8]) -> Result<Vec<Transaction>, SplitError> {
    let (mut tracker, mut found) = (Tracker::default(), Vec::new());
    Splitter::new().push(bytes, |piece| {
        found.extend(tracker.piece(piece)?);
        Ok::<(), SplitError>(())
    })?;
    Ok(found)
}

/// i2: created once, for good.
pub fn nothing_was_changed(store: &MemoryStore) -> anyhow::Result<()> {
    let changed = store.changed();
    ensure!(changed.is_empty(), "i2: the agent changed {changed:?}");
    Ok(())
}

/// i4: no wrong byte anywhere, whatever became of the server later.
pub async fn no_byte_is_wrong(archive: &Archive, store: &MemoryStore, server: &FakeServer) -> anyhow::Result<()> {
    let stored = Stored::look(store, &archive.shard);
    let binlogs = archive.binlogs().await?;
    let mut contents = Vec::new();
    for binlog in &binlogs {
        contents.push(
            bytes_of(archive, binlog)
                .await
                .with_context(|| format!("{}", binlog.place()))?,
        );
    }
    let state = server.state();
    let files = Files::of(&state);
    for (binlog, content) in binlogs.iter().zip(contents) {
        let place = binlog.place();
        let fingerprint = &binlog.opening.fingerprint;
        let ever = files.ever(fingerprint).with_context(|| format!("{place}"))?;
        ensure!(ever.starts_with(&content), "i4: {place} is archived with wrong bytes");
        if let Form::Sealed(manifest) = &binlog.form {
            ensure!(
                manifest.bytes == content.len() as u64 && files.was_closed_at(fingerprint, content.len()),
                "i4: {place} was sealed with {} bytes, and was never closed with as many",
                content.len()
            );
        }
    }
    for opening in &stored.openings {
        let place = &opening.place;
        let ever = files.ever(&opening.fingerprint).with_context(|| format!("{place}"))?;
        for segment in stored.segments.get(place).into_iter().flatten() {
            let SegmentRange { start, end } = segment.range;
            let content = decoded(store, &segment.key).with_context(|| segment.key.clone())?;
            ensure!(
                ever.get(start as usize..end as usize) == Some(&content),
                "i4: segment {} holds wrong bytes",
                segment.key
            );
            // i6: a reader that stops at a segment's end stops between events.
            ensure!(
                is_boundary(ever, end as usize),
                "i6: segment {} ends inside an event",
                segment.key
            );
        }
    }
    Ok(())
}

fn is_boundary(file: &[u8], position: usize) -> bool {
    let mut at = mysql_pitr::binlog::event::MAGIC.len();
    while at < position {
        at += u32::from_le_bytes(file[at + 9..at + 13].try_into().unwrap()) as usize;
    }
    at == position
}

/// i13, i8, i1: what a recovery to the latest would bring is what the server kept, and only what was purged before anybody could ship it
/// is missing.
///
/// Of `others` the path may have the bytes of what the server replicated.
pub async fn the_path_is_the_servers_history(
    archive: &Archive,
    server: &FakeServer,
    others: &[&FakeServer],
) -> anyhow::Result<()> {
    let timelines = archive.timelines().await?;
    let path = Path::find(&timelines, None)?;
    let binlogs = path_binlogs(&path, archive.binlogs().await?);
    let mut on_path: Vec<(Gtid, Vec<u8>, String)> = Vec::new();
    let mut seen = BTreeSet::new();
    let resolved = resolve(archive, History::new(&path, &binlogs, &[]), &Target::Latest).await?;
    for b in resolved.binlogs.iter().map(|i| &binlogs[*i]) {
        let bytes = bytes_of(archive, &b.binlog).await?;
        for t in transactions(&bytes)? {
            if b.inherited.contains(&t.gtid) && seen.insert(t.gtid) {
                let of_it = bytes[t.start as usize..t.end as usize].to_vec();
                on_path.push((
                    t.gtid,
                    of_it,
                    format!("{}, timeline {}", b.binlog.place(), b.binlog.opening.timeline),
                ));
            }
        }
    }
    let mut missing = GtidSet::new();
    let (has_gaps, executed) = {
        let state = server.state();
        let kept: BTreeMap<Gtid, &super::server::Transaction> = state.history.iter().map(|t| (t.gtid, t)).collect();
        for (gtid, bytes, place) in &on_path {
            match kept.get(gtid) {
                None => bail!("i13: {gtid:?} of {place} is on the path, and the server does not have it"),
                Some(t) if state.bytes_of(t) != bytes && !others.iter().any(|other| other.state().committed(*gtid, bytes)) => {
                    bail!("i13: {gtid:?} of {place} is another transaction than the server's")
                }
                Some(_) => {}
            }
        }
        let order: BTreeMap<Gtid, usize> = state.history.iter().enumerate().map(|(i, t)| (t.gtid, i)).collect();
        ensure!(
            on_path.is_sorted_by_key(|t| order[&t.0]),
            "i5: the path's order is not the order of commits"
        );
        let unseen = state.history.iter().filter(|t| !t.is_gap && !seen.contains(&t.gtid));
        unseen.for_each(|t| missing.insert(t.gtid));
        (
            state.history.iter().any(|t| t.is_gap && !seen.contains(&t.gtid)),
            state.executed.clone(),
        )
    };
    // A root that takes the place of a history does not hold what its server had before: its snapshot does.
    let root = &path.timelines()[0];
    if root.reason == Reason::Reset
        && let Some(first) = binlogs.first()
    {
        missing = missing.subtract(&first.binlog.opening.held_before);
    }
    ensure!(
        missing.is_empty(),
        "i1: the server kept {missing}, and the path (of timeline {}) lacks it",
        path.last().id
    );
    if !has_gaps {
        let plan = plan(archive, &Request::new(Target::Latest))
            .await
            .context("nothing is recoverable")?;
        ensure!(
            plan.target_gtids == executed,
            "i7: a recovery would bring {}, and the server has {executed}",
            plan.target_gtids
        );
    }
    Ok(())
}

/// Every closed binlog that was not taken back is stored whole.
pub fn closed_binlogs_are_sealed(stored: &Stored, server: &FakeServer) -> anyhow::Result<()> {
    let state = server.state();
    let closed = &state.folder[..state.folder.len() - 1];
    let longest = Files::of(&state);
    for file in closed.iter().map(|i| &state.inodes[*i]).filter(|f| f.has_transactions()) {
        let fingerprint = file.fingerprint().unwrap();
        // What was shipped of it before a part was taken back stays as it is.
        if longest.ever(&fingerprint)?.len() == file.bytes {
            ensure!(stored.end_of(file) == u64::MAX as usize, "{} was not sealed", file.name);
        }
    }
    Ok(())
}

/// i13: nothing branches, and no history begins, without a cause.
pub fn timelines_have_causes(timelines: &[Timeline], server: &FakeServer) -> anyhow::Result<()> {
    let state = server.state();
    let count = |reasons: &[Reason]| timelines.iter().filter(|t| reasons.contains(&t.reason)).count() as u32;
    ensure!(count(&[Reason::FirstStart]) == 1 && count(&[Reason::UnknownServer, Reason::Recovery]) == 0);
    let roots = count(&[Reason::Reset]);
    ensure!(
        roots <= state.replaced,
        "i13: {roots} roots after {} replaced histories",
        state.replaced
    );
    ensure!(timelines.iter().all(|t| t.adopted), "the shard's only server is off the path");
    Ok(())
}
