//! The archive's records, as they lie in the bucket now.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    binlog::gtid::GtidSet,
    store::{ObjectMeta, Put, SharedStore, StoreError, Version},
    support::{clock::SharedClock, hint::OrHint},
};

use super::{
    keys::{self, BinlogPlace, SegmentRange, Shard, TailKey},
    records::{FORMAT_VERSION, Manifest, Opening, Snapshot, Timeline},
};

/// Records fetched at a time.
pub(super) const GETS_IN_FLIGHT: usize = 32;

/// Of more binlogs than that the segments are listed all at once: each listing of its own is a request, and a thousand keys are one too.
const FOLDERS_LISTED_MAX: usize = 64;

/// Of each binlog whether it has an opening, and its segments.
pub(super) type Tails = BTreeMap<BinlogPlace, (bool, Vec<Segment>)>;

/// A shard's archive in a store.
#[derive(Debug, Clone)]
pub struct Archive {
    pub store: SharedStore,
    pub shard: Shard,
    /// What is written here bears its time.
    pub clock: SharedClock,
}

/// A stored segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub key: String,
    pub range: SegmentRange,
    pub stored_bytes: u64,
}

impl Segment {
    fn of(object: ObjectMeta, range: SegmentRange) -> Segment {
        Segment {
            key: object.key,
            range,
            stored_bytes: object.size_bytes,
        }
    }
}

/// In which form a binlog is stored.
#[derive(Debug, Clone)]
pub enum Form {
    Sealed(Box<Manifest>),
    /// Segments in order of their starts; they may overlap and leave holes.
    Tail(Vec<Segment>),
}

/// A binlog in the archive.
#[derive(Debug, Clone)]
pub struct StoredBinlog {
    pub opening: Opening,
    pub form: Form,
}

impl StoredBinlog {
    pub fn place(&self) -> &BinlogPlace {
        &self.opening.place
    }

    /// Known without reading it, if it is sealed.
    pub fn gtids(&self) -> Option<&GtidSet> {
        match &self.form {
            Form::Sealed(manifest) => Some(&manifest.gtids),
            Form::Tail(_) => None,
        }
    }

    /// Uncompressed, as far as it can be read.
    pub fn bytes(&self) -> u64 {
        match &self.form {
            Form::Sealed(manifest) => manifest.bytes,
            Form::Tail(segments) => covered_end(segments),
        }
    }

    /// The stored object that holds the byte at `position`; None where nothing does.
    pub fn key_at(&self, shard: &Shard, position: u64) -> Option<String> {
        match &self.form {
            Form::Sealed(manifest) => Some(self.place().sealed_key(shard, manifest.codec)),
            Form::Tail(segments) => {
                let holds = |(s, _): &(&Segment, u64)| (s.range.start..s.range.end).contains(&position);
                cover(segments).into_iter().find(holds).map(|(s, _)| s.key.clone())
            }
        }
    }

    /// Bytes in the store.
    pub fn stored_bytes(&self) -> u64 {
        match &self.form {
            Form::Sealed(manifest) => manifest.stored_bytes,
            Form::Tail(segments) => cover(segments).iter().map(|(s, _)| s.stored_bytes).sum(),
        }
    }

    /// Where binlogs of one timeline stand in its order: what was executed before them grows, and so do their numbers.
    pub fn order(&self) -> (u64, u64) {
        order_of(self.place(), &self.opening.held_before)
    }
}

/// As [`StoredBinlog::order`].
pub fn order_of(place: &BinlogPlace, held_before: &GtidSet) -> (u64, u64) {
    (held_before.count(), place.number())
}

/// Segments (sorted by start) that cover a binlog without holes from its beginning on, as far as they reach, and how many bytes of each
/// were covered by the one before.
pub fn cover(segments: &[Segment]) -> Vec<(&Segment, u64)> {
    let mut chosen: Vec<(&Segment, u64)> = Vec::new();
    let (mut reached, mut next) = (0, 0);
    loop {
        let candidates = segments[next..].iter().take_while(|s| s.range.start <= reached);
        next += candidates.clone().count();
        match candidates.max_by_key(|s| s.range.end).filter(|s| s.range.end > reached) {
            Some(best) => {
                chosen.push((best, reached - best.range.start));
                reached = best.range.end;
            }
            None => return chosen,
        }
    }
}

/// Where [`cover`] ends; 0 where the first segment is missing.
pub fn covered_end(segments: &[Segment]) -> u64 {
    cover(segments).last().map_or(0, |(s, _)| s.range.end)
}

impl Archive {
    /// A record and its version.
    pub async fn record<T: DeserializeOwned>(&self, key: &str) -> anyhow::Result<(T, Version)> {
        let (bytes, version) = self.store.get(key).await?;
        Ok((self.parse(key, &bytes)??, version))
    }

    /// A record's bytes. The inner error is one damaged object's; the outer one says that this program is too old for the archive.
    pub(super) fn parse<T: DeserializeOwned>(&self, key: &str, bytes: &[u8]) -> anyhow::Result<anyhow::Result<T>> {
        #[derive(Deserialize)]
        struct Format {
            format: Option<u64>,
        }
        let what = || format!("object {}/{key} is not a record of this archive", self.store.url());
        let damaged = |e| Ok(Err::<T, _>(e).with_context(what).hint(self.record_hint(key)));
        match serde_json::from_slice::<Format>(bytes) {
            Err(e) => damaged(e),
            Ok(Format { format: Some(f) }) if f > u64::from(FORMAT_VERSION) => {
                bail!(
                    "object {}/{key} was written by a newer mysql-pitr; upgrade this one",
                    self.store.url()
                )
            }
            Ok(_) => serde_json::from_slice(bytes).map_or_else(damaged, |record| Ok(Ok(record))),
        }
    }

    pub(super) fn record_hint(&self, key: &str) -> &'static str {
        // Without a timeline the others say something else.
        if key.starts_with(&keys::timelines_prefix(&self.shard)) {
            "restore the object from the other region's bucket"
        } else {
            "restore the object from the other region's bucket; or move it away, to see what can be recovered without it"
        }
    }

    /// Stores a record. `Ok(false)` where the condition does not hold.
    pub async fn put_record<T: serde::Serialize>(&self, key: &str, record: &T, condition: Put) -> anyhow::Result<bool> {
        let bytes = serde_json::to_vec_pretty(record)?;
        match self.store.put(key, bytes.into(), condition).await {
            Ok(_) => Ok(true),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    async fn records<T: DeserializeOwned>(&self, keys: Vec<String>) -> anyhow::Result<Vec<T>> {
        let fetch = keys
            .into_iter()
            .map(|key| async move { Ok::<T, anyhow::Error>(self.record(&key).await?.0) });
        stream::iter(fetch).buffered(GETS_IN_FLIGHT).try_collect().await
    }

    async fn keys(&self, prefix: &str, wanted: impl Fn(&str) -> bool) -> anyhow::Result<Vec<String>> {
        let objects = self.store.list(prefix, None).await?;
        Ok(objects.into_iter().map(|o| o.key).filter(|k| wanted(k)).collect())
    }

    /// All timelines, by id.
    pub async fn timelines(&self) -> anyhow::Result<Vec<Timeline>> {
        let keys = self.keys(&keys::timelines_prefix(&self.shard), |_| true).await?;
        self.records(keys).await
    }

    /// All snapshot records, by id, which is by time.
    pub async fn snapshots(&self) -> anyhow::Result<Vec<Snapshot>> {
        let prefix = keys::snapshots_prefix(&self.shard);
        let is_record = |key: &str| keys::snapshot_id(&prefix, key).is_some();
        let keys = self.keys(&prefix, is_record).await?;
        self.records(keys).await
    }

    /// The tails' objects by binlog: whether it has an opening, and its segments.
    async fn tail_objects(&self) -> anyhow::Result<Tails> {
        let objects = self.store.list(&keys::segments_prefix(&self.shard), None).await?;
        Ok(self.tails_of(objects))
    }

    /// The same of those binlogs whose place is `wanted`. The segments of what is sealed stay for days, a million of them on a busy server:
    /// they are not listed for the few that are.
    pub(super) async fn tail_objects_where(&self, wanted: impl Fn(&BinlogPlace) -> bool) -> anyhow::Result<Tails> {
        let mut prefixes = Vec::new();
        for server in self.store.folders(&keys::segments_prefix(&self.shard)).await? {
            let folders = self.store.folders(&server).await?.into_iter();
            prefixes.extend(folders.filter(|f| keys::parse_tail_folder(&self.shard, f).is_some_and(|place| wanted(&place))));
        }
        if prefixes.len() > FOLDERS_LISTED_MAX {
            let mut tails = self.tail_objects().await?;
            tails.retain(|place, _| wanted(place));
            return Ok(tails);
        }
        let listings = prefixes
            .into_iter()
            .map(|prefix| async move { self.store.list(&prefix, None).await });
        let objects: Vec<Vec<ObjectMeta>> = stream::iter(listings).buffered(GETS_IN_FLIGHT).try_collect().await?;
        Ok(self.tails_of(objects.into_iter().flatten()))
    }

    fn tails_of(&self, objects: impl IntoIterator<Item = ObjectMeta>) -> Tails {
        let mut tails = Tails::new();
        for object in objects {
            match keys::parse_tail_key(&self.shard, &object.key) {
                Some(TailKey::Opening(place)) => tails.entry(place).or_default().0 = true,
                Some(TailKey::Segment(place, range)) => {
                    tails.entry(place).or_default().1.push(Segment::of(object, range));
                }
                None => {}
            }
        }
        tails
    }

    /// A sealed binlog by the segments that are still there of it.
    pub async fn by_segments(&self, binlog: &StoredBinlog) -> anyhow::Result<StoredBinlog> {
        let objects = self.store.list(&binlog.place().segments_prefix(&self.shard), None).await?;
        let segment = |object: ObjectMeta| match keys::parse_tail_key(&self.shard, &object.key) {
            Some(TailKey::Segment(_, range)) => Some(Segment::of(object, range)),
            _ => None,
        };
        Ok(StoredBinlog {
            opening: binlog.opening.clone(),
            form: Form::Tail(objects.into_iter().filter_map(segment).collect()),
        })
    }

    /// Where the manifests of the sealed binlogs lie; read off the keys.
    pub async fn sealed_index(&self) -> anyhow::Result<BTreeMap<BinlogPlace, String>> {
        let objects = self.store.list(&keys::sealed_prefix(&self.shard), None).await?;
        Ok(objects
            .into_iter()
            .filter_map(|o| Some((keys::parse_manifest_key(&o.key)?, o.key)))
            .collect())
    }

    /// The same without those of which the sealed object is not there: a store that is replicated has no order.
    pub async fn sealed_index_of_whole(&self) -> anyhow::Result<BTreeMap<BinlogPlace, String>> {
        let objects = self.store.list(&keys::sealed_prefix(&self.shard), None).await?;
        let there: HashSet<&str> = objects.iter().map(|o| o.key.as_str()).collect();
        let is_whole = |manifest: &str| {
            manifest
                .strip_suffix(keys::MANIFEST_SUFFIX)
                .is_some_and(|key| there.contains(key))
        };
        let whole = objects.iter().filter(|o| is_whole(&o.key));
        Ok(whole
            .filter_map(|o| Some((keys::parse_manifest_key(&o.key)?, o.key.clone())))
            .collect())
    }

    /// The sealed binlogs behind manifests of [`Archive::sealed_index`].
    pub async fn sealed(&self, manifest_keys: impl Iterator<Item = &String>) -> anyhow::Result<Vec<StoredBinlog>> {
        let manifests: Vec<Manifest> = self.records(manifest_keys.cloned().collect()).await?;
        let stored = |m: Manifest| StoredBinlog {
            opening: m.opening.clone(),
            form: Form::Sealed(Box::new(m)),
        };
        Ok(manifests.into_iter().map(stored).collect())
    }

    /// The binlogs whose place is `wanted` and that have an opening, by their segments, whether or not they are sealed too.
    pub async fn tails_where(&self, wanted: impl Fn(&BinlogPlace) -> bool) -> anyhow::Result<Vec<StoredBinlog>> {
        let mut tails = self.tail_objects_where(wanted).await?;
        tails.retain(|_, (opened, _)| *opened);
        let openings: Vec<Opening> = self
            .records(tails.keys().map(|p| p.opening_key(&self.shard)).collect())
            .await?;
        let stored = |(opening, (_, segments))| StoredBinlog {
            opening,
            form: Form::Tail(segments),
        };
        Ok(openings.into_iter().zip(tails.into_values()).map(stored).collect())
    }

    /// Every binlog, sealed or not.
    pub async fn binlogs(&self) -> anyhow::Result<Vec<StoredBinlog>> {
        let index = self.sealed_index().await?;
        let mut binlogs = self.sealed(index.values()).await?;
        binlogs.extend(self.tails_where(|place| !index.contains_key(place)).await?);
        Ok(binlogs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(start: u64, end: u64) -> Segment {
        Segment {
            key: String::new(),
            range: SegmentRange { start, end },
            stored_bytes: 1,
        }
    }

    /// Re-cutting after a crash overlaps what is stored; several uploads in flight leave holes.
    #[test]
    fn any_contiguous_cover_is_taken_and_holes_end_it() {
        let segments = [
            segment(0, 10),
            segment(10, 20),
            segment(15, 40),
            segment(20, 30),
            segment(50, 60),
        ];
        let ranges: Vec<_> = cover(&segments)
            .iter()
            .map(|(s, skip)| (s.range.start, s.range.end, *skip))
            .collect();
        assert_eq!(ranges, [(0, 10, 0), (10, 20, 0), (15, 40, 5)]);
        assert_eq!(covered_end(&segments[1..]), 0);
    }
}
