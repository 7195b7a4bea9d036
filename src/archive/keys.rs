//! Where things lie: every key of the archive is made and taken apart here.

use std::fmt;

use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::codec::Codec;

const NS_PER_US: i64 = 1000;

/// The name that an archive's keys begin with: one replication topology.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Shard(String);

impl TryFrom<String> for Shard {
    type Error = String;

    fn try_from(name: String) -> Result<Shard, String> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
            return Err(format!(
                "shard `{}` must consist of letters, digits, `.`, `_` and `-`, and not start with `.`",
                name.escape_debug()
            ));
        }
        Ok(Shard(name))
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One binlog's place. The label tells binlogs of the same server and name apart, and carries no other meaning.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BinlogPlace {
    pub server_uuid: Uuid,
    /// The shipping agent's clock when it first saw the binlog, ns since the epoch.
    pub label_ns: i64,
    /// As the server calls it, e.g. `binlog.000042`.
    pub name: String,
}

impl BinlogPlace {
    /// `<shard>/<year>/<Month>/<day>/<uuid>/<label>_<name><.gz|.zst>`, dates in UTC.
    pub fn sealed_key(&self, shard: &Shard, codec: Codec) -> String {
        let seen = Timestamp::from_microsecond(self.label_ns / NS_PER_US)
            .unwrap_or(Timestamp::UNIX_EPOCH)
            .to_zoned(TimeZone::UTC);
        let day = seen.strftime("%Y/%B/%-d");
        format!(
            "{shard}/{day}/{}/{}_{}{}",
            self.server_uuid,
            self.label_ns,
            self.name,
            codec.extension()
        )
    }

    /// Written last: a sealed binlog without it does not exist.
    pub fn manifest_key(&self, shard: &Shard, codec: Codec) -> String {
        format!("{}{MANIFEST_SUFFIX}", self.sealed_key(shard, codec))
    }

    /// The number that the name ends with, 0 where there is none.
    pub fn number(&self) -> u64 {
        binlog_number(&self.name).unwrap_or(0)
    }

    pub fn segments_prefix(&self, shard: &Shard) -> String {
        format!(
            "{}{}/{}_{}/",
            segments_prefix(shard),
            self.server_uuid,
            self.label_ns,
            self.name
        )
    }

    /// Written before any other object of the binlog.
    pub fn opening_key(&self, shard: &Shard) -> String {
        format!("{}{OPENING}", self.segments_prefix(shard))
    }

    pub fn segment_key(&self, shard: &Shard, range: SegmentRange, codec: Codec) -> String {
        format!(
            "{}{:016}-{:016}{}",
            self.segments_prefix(shard),
            range.start,
            range.end,
            codec.extension()
        )
    }
}

/// Whether a binlog of this name can have a place here.
pub fn is_binlog_name(name: &str) -> bool {
    /// With a label, a codec's extension and that of a manifest, within a file's name.
    const BYTES_MAX: usize = 200;
    !name.is_empty() && name.len() <= BYTES_MAX && !name.contains('/') && !name.contains(char::is_control)
}

/// The number that a binlog's name ends with; a server gives them in order.
pub fn binlog_number(name: &str) -> Option<u64> {
    name.rsplit('.').next()?.parse().ok()
}

impl fmt::Display for BinlogPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of server {}", self.name, self.server_uuid)
    }
}

/// `start..end` of a binlog's bytes, the magic bytes counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentRange {
    pub start: u64,
    pub end: u64,
}

/// A key under [`segments_prefix`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TailKey {
    Opening(BinlogPlace),
    Segment(BinlogPlace, SegmentRange),
}

const OPENING: &str = "open.json";
pub const MANIFEST_SUFFIX: &str = ".json";

pub fn segments_prefix(shard: &Shard) -> String {
    format!("{shard}/segments/")
}

/// What a key under [`segments_prefix`] is; None for what is nothing of ours.
pub fn parse_tail_key(shard: &Shard, key: &str) -> Option<TailKey> {
    let mut parts = key.strip_prefix(&segments_prefix(shard))?.split('/');
    let server_uuid = Uuid::try_parse(parts.next()?).ok()?;
    let (label, name) = parts.next()?.split_once('_')?;
    let place = BinlogPlace {
        server_uuid,
        label_ns: label.parse().ok()?,
        name: name.to_owned(),
    };
    let file = parts.next()?;
    if parts.next().is_some() {
        return None;
    }
    if file == OPENING {
        return Some(TailKey::Opening(place));
    }
    let stem = file.strip_suffix(Codec::of_key(file).extension())?;
    let (start, end) = stem.split_once('-')?;
    let range = SegmentRange {
        start: start.parse().ok()?,
        end: end.parse().ok()?,
    };
    (range.start < range.end).then_some(TailKey::Segment(place, range))
}

/// The binlog whose tail's objects lie in the folder `prefix`, as [`BinlogPlace::segments_prefix`] names it.
pub fn parse_tail_folder(shard: &Shard, prefix: &str) -> Option<BinlogPlace> {
    match parse_tail_key(shard, &format!("{prefix}{OPENING}"))? {
        TailKey::Opening(place) => Some(place),
        TailKey::Segment(..) => None,
    }
}

/// All sealed binlogs and manifests lie under this: the years 2000 to 2999.
pub fn sealed_prefix(shard: &Shard) -> String {
    format!("{shard}/2")
}

/// The binlog whose manifest lies under `key`; None for what is no manifest.
pub fn parse_manifest_key(key: &str) -> Option<BinlogPlace> {
    let sealed = key.strip_suffix(MANIFEST_SUFFIX)?;
    let mut parts = sealed.strip_suffix(Codec::of_key(sealed).extension())?.rsplit('/');
    let (label, name) = parts.next()?.split_once('_')?;
    let server_uuid = Uuid::try_parse(parts.next()?).ok()?;
    Some(BinlogPlace {
        server_uuid,
        label_ns: label.parse().ok()?,
        name: name.to_owned(),
    })
}

/// The binlog whose sealed object lies under `key`; None for anything else.
pub fn parse_sealed_key(key: &str) -> Option<BinlogPlace> {
    // A manifest's own key would pass for an uncompressed binlog.
    if key.ends_with(MANIFEST_SUFFIX) {
        return None;
    }
    parse_manifest_key(&format!("{key}{MANIFEST_SUFFIX}"))
}

pub fn timelines_prefix(shard: &Shard) -> String {
    format!("{shard}/timelines/")
}

pub fn timeline_key(shard: &Shard, id: u32) -> String {
    format!("{}{id:08}.json", timelines_prefix(shard))
}

pub fn snapshots_prefix(shard: &Shard) -> String {
    format!("{shard}/snapshots/")
}

/// The id of the snapshot whose record lies under `key`, where one does; `prefix` is [`snapshots_prefix`].
pub fn snapshot_id(prefix: &str, key: &str) -> Option<String> {
    let id = key.strip_prefix(prefix)?.strip_suffix(".json")?;
    (!id.contains('/')).then(|| id.to_owned())
}

pub fn snapshot_key(shard: &Shard, id: &str) -> String {
    format!("{}{id}.json", snapshots_prefix(shard))
}

/// The data of a `clone` snapshot.
pub fn snapshot_data_key(shard: &Shard, id: &str, codec: Codec) -> String {
    format!("{}{id}/datadir.tar{}", snapshots_prefix(shard), codec.extension())
}

/// Records of snapshots of volumes that no recovery finds any more, until what they name is deleted.
pub fn pruned_prefix(shard: &Shard) -> String {
    format!("{shard}/pruned/")
}

/// By the region whose snapshots are deleted: the other region's bucket may hold what this one's deletes, and a copy of this.
pub fn pruned_key(shard: &Shard, region: &str, id: &str) -> String {
    format!("{}{region}/{id}.json", pruned_prefix(shard))
}

/// The region and the snapshot's id.
pub fn parse_pruned_key<'k>(shard: &Shard, key: &'k str) -> Option<(&'k str, &'k str)> {
    let rest = key.strip_prefix(&pruned_prefix(shard))?.strip_suffix(".json")?;
    rest.split_once('/').filter(|(_, id)| !id.contains('/'))
}

/// What recoveries that are under way need.
pub fn leases_prefix(shard: &Shard) -> String {
    format!("{shard}/leases/")
}

pub fn lease_key(shard: &Shard, id: &str) -> String {
    format!("{}recover-{id}.json", leases_prefix(shard))
}

/// Folders of a shard whose objects are soon of no use, and many or often replaced.
pub const SHORT_LIVED: [&str; 7] = ["segments", "requests", "leases", "agents", "turns", "probes", "pruned"];

/// What agents say of themselves.
pub fn agents_prefix(shard: &Shard) -> String {
    format!("{shard}/agents/")
}

pub fn agent_key(shard: &Shard, server_uuid: Uuid) -> String {
    format!("{}{server_uuid}.json", agents_prefix(shard))
}

/// Which buckets nobody ships to any more.
pub fn fences_prefix(shard: &Shard) -> String {
    format!("{shard}/fences/")
}

/// Of the store with this URL: another region's bucket, into which this one is replicated, has a fence of its own.
pub fn fence_key(shard: &Shard, store: &str) -> String {
    const HASH_BYTES: usize = 8;
    let hash = Sha256::digest(store.as_bytes());
    let hash: String = hash.iter().take(HASH_BYTES).map(|byte| format!("{byte:02x}")).collect();
    format!("{}{hash}.json", fences_prefix(shard))
}

/// Whoever holds it works on the shard's snapshots of volumes.
pub fn snapshot_turn_key(shard: &Shard) -> String {
    format!("{shard}/turns/snapshot.json")
}

pub fn requests_prefix(shard: &Shard) -> String {
    format!("{shard}/requests/")
}

pub fn request_key(shard: &Shard, id: &str) -> String {
    format!("{}{id}.json", requests_prefix(shard))
}

/// What says by which snapshot, of another name, a request is answered.
pub fn answers_prefix(shard: &Shard, request: &str) -> String {
    format!("{}{request}/", requests_prefix(shard))
}

pub fn answer_key(shard: &Shard, request: &str, snapshot: &str) -> String {
    format!("{}{snapshot}.json", answers_prefix(shard, request))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> BinlogPlace {
        BinlogPlace {
            server_uuid: "9d74852a-830d-11ea-b87b-0ac50996c5a3".parse().unwrap(),
            label_ns: 1617235403939395577,
            name: "mysql-bin.005075".into(),
        }
    }

    #[test]
    fn sealed_keys_are_the_reference_systems() {
        let shard = Shard::try_from("dbaas-stg-shard_1".to_owned()).unwrap();
        let key = "dbaas-stg-shard_1/2021/April/1/9d74852a-830d-11ea-b87b-0ac50996c5a3/1617235403939395577_mysql-bin.005075";
        assert_eq!(place().sealed_key(&shard, Codec::None), key);
        assert_eq!(place().manifest_key(&shard, Codec::Zstd), format!("{key}.zst.json"));
        for codec in [Codec::None, Codec::Gzip, Codec::Zstd] {
            assert_eq!(parse_manifest_key(&place().manifest_key(&shard, codec)), Some(place()));
            assert_eq!(parse_manifest_key(&place().sealed_key(&shard, codec)), None);
            assert_eq!(parse_sealed_key(&place().sealed_key(&shard, codec)), Some(place()));
            assert_eq!(parse_sealed_key(&place().manifest_key(&shard, codec)), None);
        }
    }

    #[test]
    fn tail_keys_round_trip_and_sort_by_position() {
        let shard = Shard::try_from("s".to_owned()).unwrap();
        let range = SegmentRange { start: 0, end: 8 << 30 };
        let key = place().segment_key(&shard, range, Codec::Zstd);
        assert_eq!(parse_tail_key(&shard, &key), Some(TailKey::Segment(place(), range)));
        assert_eq!(
            parse_tail_key(&shard, &place().opening_key(&shard)),
            Some(TailKey::Opening(place()))
        );
        assert_eq!(parse_tail_folder(&shard, &place().segments_prefix(&shard)), Some(place()));
        assert_eq!(parse_tail_folder(&shard, "s/segments/x/"), None);
        let later = place().segment_key(
            &shard,
            SegmentRange {
                start: 8 << 30,
                end: 9 << 30,
            },
            Codec::Zstd,
        );
        assert!(key < later && later < place().opening_key(&shard));
        for alien in [
            "s/segments/x/1_b/open.json",
            "s/segments/9d74852a-830d-11ea-b87b-0ac50996c5a3/1_b/9-4.zst",
            "t/segments/",
        ] {
            assert_eq!(parse_tail_key(&shard, alien), None, "{alien}");
        }
    }

    #[test]
    fn hostile_shard_names_are_refused() {
        for name in ["", "..", "a/b", "a b", ".hidden"] {
            assert!(Shard::try_from(name.to_owned()).is_err(), "{name}");
        }
    }
}
