//! Archives that no server wrote: histories of any shape and size, of binlogs that are real as far as a plan reads them.

use std::{fs, sync::Arc};

use mysql_pitr::{
    archive::{
        codec::Codec,
        keys::{self, BinlogPlace, SegmentRange},
        listing::Archive,
        records::{Ending, FORMAT_VERSION, Manifest, Opening, Provider, Reason, Snapshot, SnapshotState, Timeline},
    },
    binlog::{
        event::{HEADER_BYTES, MAGIC, kind},
        gtid::{Gtid, GtidSet, Tag},
    },
    recover::plan::{Plan, Request, plan},
    store::{Put, filesystem::FilesystemStore},
    support::clock::{US_PER_S, WallClock},
};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use uuid::Uuid;

use super::node::SHARD;

/// 2026-01-01T00:00:00Z
pub const EPOCH_US: i64 = 1_767_225_600 * US_PER_S;
const VERSION: &str = "9.7.4";

/// The server with this number.
pub fn server(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

pub fn gtid(of: u128, gno: u64) -> Gtid {
    Gtid::new(server(of), Tag::NONE, gno)
}

/// `first..=last` of a server.
pub fn gtids(of: u128, first: u64, last: u64) -> GtidSet {
    if first > last {
        return GtidSet::new();
    }
    format!("{}:{first}-{last}", server(of)).parse().unwrap()
}

/// Seconds after the epoch of these histories.
pub fn at(second: i64) -> i64 {
    EPOCH_US + second * US_PER_S
}

pub struct Made {
    pub dir: TempDir,
    pub archive: Archive,
}

impl Made {
    pub fn new() -> Made {
        let dir = tempfile::tempdir().unwrap();
        let archive = Archive {
            store: Arc::new(FilesystemStore::open(dir.path()).unwrap()),
            shard: SHARD.to_owned().try_into().unwrap(),
            clock: Arc::new(WallClock),
        };
        Made { dir, archive }
    }

    /// Written past the store: thousands of fsyncs are not what is tested.
    fn write(&self, key: &str, bytes: &[u8]) {
        let path = self.dir.path().join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn record<T: serde::Serialize>(&self, key: &str, record: &T) {
        self.write(key, &serde_json::to_vec_pretty(record).unwrap());
    }

    pub fn remove(&self, key: &str) {
        fs::remove_file(self.dir.path().join(key)).unwrap();
    }

    pub fn damage(&self, key: &str) {
        self.write(key, b"{ this is");
    }

    pub fn timeline(&self, id: u32, parent: Option<u32>, of: u128, branch_set: GtidSet, skipped: GtidSet) {
        let record = Timeline {
            format: FORMAT_VERSION,
            id,
            parent,
            server_uuid: server(of),
            branch_set,
            reason: Reason::Recovery,
            adopted: true,
            confirmed_by: None,
            nonce: Uuid::nil(),
            claimed_at_us: EPOCH_US,
            skipped,
        };
        self.record(&keys::timeline_key(&self.archive.shard, id), &record);
    }

    /// A snapshot that was complete at a second, of exactly these transactions.
    pub fn snapshot(&self, id: &str, timeline: u32, of: u128, held: GtidSet, second: i64) {
        self.changed_snapshot(id, timeline, of, held, second, |_| {});
    }

    /// The same, with another record.
    pub fn changed_snapshot(
        &self,
        id: &str,
        timeline: u32,
        of: u128,
        held: GtidSet,
        second: i64,
        change: impl FnOnce(&mut Snapshot),
    ) {
        let shard = &self.archive.shard;
        let data = b"the data";
        let mut record = Snapshot {
            format: FORMAT_VERSION,
            id: id.to_owned(),
            state: SnapshotState::Complete,
            provider: Provider::Clone,
            timeline,
            server_uuid: server(of),
            server_version: VERSION.to_owned(),
            started_at_us: at(second),
            finished_at_us: Some(at(second)),
            gtids_before: held.clone(),
            gtids_after: Some(held),
            errant: GtidSet::new(),
            variables: Default::default(),
            data_key: keys::snapshot_data_key(shard, id, Codec::Zstd),
            data_bytes: data.len() as u64,
            stored_bytes: data.len() as u64,
            stored_sha256: String::new(),
            failure: None,
            step: None,
            volumes: Vec::new(),
            locked_us: None,
        };
        self.write(&record.data_key, data);
        change(&mut record);
        self.record(&keys::snapshot_key(shard, id), &record);
    }

    fn opening(&self, timeline: u32, of: u128, number: u32, held_before: GtidSet) -> Opening {
        Opening {
            format: FORMAT_VERSION,
            timeline,
            place: BinlogPlace {
                server_uuid: server(of),
                label_ns: (EPOCH_US + i64::from(number) + i64::from(timeline) * US_PER_S) * 1000,
                name: format!("binlog.{number:06}"),
            },
            server_version: VERSION.to_owned(),
            fingerprint: "0".repeat(64),
            held_before,
        }
    }

    /// A sealed binlog of transactions, each with the second that it was committed at. Returns its object's key.
    pub fn sealed(&self, timeline: u32, of: u128, number: u32, held_before: GtidSet, holds: &[(Gtid, i64)]) -> String {
        let bytes = binlog(holds);
        let manifest = Manifest {
            opening: self.opening(timeline, of, number, held_before),
            codec: Codec::None,
            bytes: bytes.len() as u64,
            stored_bytes: bytes.len() as u64,
            sha256: format!("{:x}", Sha256::digest(&bytes)),
            gtids: holds.iter().map(|(g, _)| *g).collect(),
            transactions: holds.len() as u64,
            commit_us_min: holds.iter().map(|(_, s)| at(*s)).min(),
            commit_us_max: holds.iter().map(|(_, s)| at(*s)).max(),
            tables: (0..30)
                .map(|i| (format!("shop.a_table_with_a_usual_name_{i}"), 1000))
                .collect(),
            xa_prepared: Vec::new(),
            ending: Ending::Rotate,
        };
        let key = manifest.opening.place.sealed_key(&self.archive.shard, Codec::None);
        self.write(&key, &bytes);
        self.record(&format!("{key}.json"), &manifest);
        key
    }

    /// The same, by its segments: one for each transaction. Returns their keys.
    pub fn tail(&self, timeline: u32, of: u128, number: u32, held_before: GtidSet, holds: &[(Gtid, i64)]) -> Vec<String> {
        let (bytes, opening) = (binlog(holds), self.opening(timeline, of, number, held_before));
        let shard = &self.archive.shard;
        self.record(&opening.place.opening_key(shard), &opening);
        let mut cuts: Vec<usize> = (0..=holds.len()).map(|n| binlog(&holds[..n]).len()).collect();
        cuts[0] = 0;
        let pieces = cuts.windows(2).map(|w| (w[0], w[1]));
        pieces
            .map(|(start, end)| {
                let range = SegmentRange {
                    start: start as u64,
                    end: end as u64,
                };
                let key = opening.place.segment_key(shard, range, Codec::None);
                self.write(&key, &bytes[start..end]);
                key
            })
            .collect()
    }

    pub async fn plan(&self, request: &Request) -> anyhow::Result<Plan> {
        plan(&self.archive, request).await
    }

    /// What a plan is refused with.
    pub async fn refusal(&self, request: &Request) -> String {
        match self.plan(request).await {
            Ok(plan) => panic!("{request:?} should have been refused, and leads to {}", plan.target_gtids),
            Err(e) => mysql_pitr::support::hint::render(&e),
        }
    }

    /// Puts a record as the agent would: only where none is.
    pub async fn claim(&self, timeline: &Timeline) {
        let key = keys::timeline_key(&self.archive.shard, timeline.id);
        assert!(self.archive.put_record(&key, timeline, Put::IfAbsent).await.unwrap());
    }
}

/// Where the transaction with this index ends in [`binlog`] of these.
pub fn end_of(holds: &[(Gtid, i64)], index: usize) -> u64 {
    binlog(&holds[..=index]).len() as u64
}

/// A binlog's bytes as a plan reads them: each transaction is a GTID event and an XID event.
fn binlog(holds: &[(Gtid, i64)]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    let mut description = vec![4, 0];
    description.extend_from_slice(VERSION.as_bytes());
    description.resize(2 + 50 + 4 + 1 + 42, 0);
    description.push(1); // CRC32
    out.extend(event(kind::FORMAT_DESCRIPTION, &description));
    let xid = event(kind::XID, &[0; 8]);
    for (gtid, second) in holds {
        let mut body = vec![1];
        body.extend_from_slice(gtid.tsid.uuid.as_bytes());
        body.extend_from_slice(&gtid.gno.to_le_bytes());
        body.extend_from_slice(&[0; 17]);
        body.extend_from_slice(&at(*second).to_le_bytes()[..7]);
        let len = HEADER_BYTES + body.len() + 1 + 4 + xid.len();
        body.push(u8::try_from(len).unwrap());
        out.extend(event(kind::GTID, &body));
        out.extend_from_slice(&xid);
    }
    out
}

fn event(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 4];
    out.push(kind);
    out.extend_from_slice(&1u32.to_le_bytes());
    out.extend_from_slice(&((HEADER_BYTES + body.len() + 4) as u32).to_le_bytes());
    out.extend_from_slice(&[0; 6]);
    out.extend_from_slice(body);
    out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
    out
}
