//! A closed binlog read whole from the server and stored as one object, its manifest last.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};
use tracing::info;

use crate::{
    archive::{
        codec::{Codec, Encoder},
        keys::{BinlogPlace, SegmentRange},
        listing::Archive,
        records::{Ending, Manifest, Opening, TABLES_MAX},
    },
    binlog::{
        event::{Cursor, Header, MAGIC, kind, parse_query, parse_table_map},
        gtid::GtidSet,
        payload::Unfolder,
        splitter::{Piece, SplitError, Splitter},
        transaction::Tracker,
    },
    mysql::{
        dump::{AtEnd, DumpItem},
        server::{BinlogStream, Server},
    },
    store::Upload,
    support::hint::OrHint,
};

use super::{
    beginning::{Beginning, Identity},
    catalog::Catalog,
    puts::{finish_once, put_once},
};

/// Compressed bytes are handed to the upload in portions of at least this size.
const PORTION_BYTES: usize = 1 << 20;

/// A fault of the binlog itself: trying again finds the same.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Fault(String);

/// Whether `error` is a binlog's own fault, and not the store's or the connection's.
pub fn is_fault_of_the_binlog(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<Fault>() || cause.is::<SplitError>())
}

/// What sealing needs to know of the binlog.
pub struct ToSeal {
    pub name: String,
    pub opening: Opening,
    /// The file's length, where the server tells it.
    pub expected_bytes: Option<u64>,
}

/// Reads `name` up to its first transaction; None if it has none.
pub async fn identify(server: &dyn Server, name: &str) -> anyhow::Result<Option<Identity>> {
    let mut beginning = Beginning::new();
    let mut identity = None;
    read_closed(server, name, |piece| {
        if identity.is_none() {
            identity = beginning.piece(piece)?;
        }
        Ok(identity.is_none())
    })
    .await?;
    Ok(identity)
}

/// Shows the events of binlog `name` until `visit` says false or the binlog ends. Returns the position after the last one.
async fn read_closed(
    server: &dyn Server,
    name: &str,
    mut visit: impl FnMut(&Piece<'_>) -> anyhow::Result<bool>,
) -> anyhow::Result<u64> {
    let mut reading = Reading::open(server, name).await?;
    while let Some(bytes) = reading.next().await? {
        let mut wanted = true;
        reading.splitter.push(&bytes, |piece| {
            wanted = wanted && visit(piece)?;
            Ok::<(), anyhow::Error>(())
        })?;
        if !wanted {
            break;
        }
    }
    Ok(reading.splitter.position())
}

/// A closed binlog, being read from the server.
struct Reading {
    dump: Box<dyn BinlogStream>,
    name: String,
    splitter: Splitter,
}

impl Reading {
    async fn open(server: &dyn Server, name: &str) -> anyhow::Result<Reading> {
        let dump = server
            .dump(name, MAGIC.len() as u64, AtEnd::Stop)
            .await
            .with_context(|| format!("cannot read binlog {name}"))?;
        let mut splitter = Splitter::new();
        // The source never sends the magic bytes.
        splitter.push(&MAGIC, |_| Ok::<(), SplitError>(()))?;
        Ok(Reading {
            dump,
            name: name.to_owned(),
            splitter,
        })
    }

    /// The next bytes of this binlog; None once the source goes on to another one.
    async fn next(&mut self) -> anyhow::Result<Option<bytes::Bytes>> {
        loop {
            match self
                .dump
                .next()
                .await
                .with_context(|| format!("cannot read binlog {}", self.name))?
            {
                DumpItem::Bytes { bytes, .. } => return Ok(Some(bytes)),
                DumpItem::Binlog { name, .. } if name == self.name => {}
                DumpItem::Binlog { .. } | DumpItem::End => return Ok(None),
                DumpItem::Format(_) | DumpItem::Heartbeat => {}
            }
        }
    }
}

/// Stores the binlog whole. Its opening is stored already. May run again after any interruption.
pub async fn seal(
    archive: &Archive,
    server: &dyn Server,
    catalog: &Catalog,
    codec: Codec,
    work: &ToSeal,
) -> anyhow::Result<Manifest> {
    let place = &work.opening.place;
    let mut sealer = Sealer::begin(archive, codec, place, catalog.segments(place)).await?;
    let result = sealer.run(server, work).await;
    let content = match result {
        Ok(content) => content,
        Err(e) => {
            sealer.upload.abort().await;
            return Err(e.context(format!("cannot seal {place}")));
        }
    };
    finish_once(sealer.upload).await?;
    let manifest = content.manifest(work.opening.clone(), codec);
    let bytes = serde_json::to_vec_pretty(&manifest)?;
    put_once(&archive.store, &place.manifest_key(&archive.shard, codec), bytes.into()).await?;
    catalog.sealed(place, &manifest.sha256, manifest.bytes);
    info!(binlog = %place.name, bytes = manifest.bytes, stored_bytes = manifest.stored_bytes, transactions = manifest.transactions, "sealed a binlog");
    Ok(manifest)
}

struct Sealer {
    upload: Box<dyn Upload>,
    encoder: Option<Encoder>,
    stored_bytes: u64,
    hash: Sha256,
    segments: SegmentHashes,
}

impl Sealer {
    async fn begin(
        archive: &Archive,
        codec: Codec,
        place: &BinlogPlace,
        segments: Vec<(SegmentRange, String)>,
    ) -> anyhow::Result<Sealer> {
        let mut sealer = Sealer {
            upload: archive.store.upload(&place.sealed_key(&archive.shard, codec)).await?,
            encoder: Some(Encoder::new(codec)?),
            stored_bytes: 0,
            hash: Sha256::new(),
            segments: SegmentHashes::new(segments),
        };
        sealer.take(&MAGIC)?;
        Ok(sealer)
    }

    fn take(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.hash.update(bytes);
        self.segments.take(bytes)?;
        if let Some(encoder) = &mut self.encoder {
            encoder.push(bytes)?;
        }
        Ok(())
    }

    async fn run(&mut self, server: &dyn Server, work: &ToSeal) -> anyhow::Result<Content> {
        let mut reading = Reading::open(server, &work.name).await?;
        let mut beginning = Some(Beginning::new());
        let mut facts = Facts::default();
        while let Some(bytes) = reading.next().await? {
            reading.splitter.push(&bytes, |piece| {
                if let Some(unknown) = &mut beginning
                    && let Some(identity) = unknown.piece(piece)?
                {
                    beginning = None;
                    if identity.fingerprint != work.opening.fingerprint {
                        bail!(Fault(format!(
                            "binlog {} is another one than was shipped under this name",
                            work.name
                        )));
                    }
                }
                facts.piece(piece)
            })?;
            self.take(&bytes)?;
            self.hand_on(PORTION_BYTES).await?;
        }
        reading.splitter.finish().with_context(|| format!("binlog {}", work.name))?;
        let bytes = reading.splitter.position();
        if let Some(expected) = work.expected_bytes
            && expected != bytes
        {
            bail!("binlog {} has {expected} bytes, but the server sent {bytes}", work.name);
        }
        self.segments.finish()?;
        if let Some(encoder) = self.encoder.take() {
            let rest = encoder.finish()?;
            self.write(rest).await?;
        }
        Ok(Content {
            bytes,
            stored_bytes: self.stored_bytes,
            sha256: format!("{:x}", self.hash.clone().finalize()),
            facts,
        })
    }

    async fn hand_on(&mut self, least: usize) -> anyhow::Result<()> {
        match &mut self.encoder {
            Some(encoder) if encoder.ready_bytes() >= least => {
                let ready = encoder.take();
                self.write(ready).await
            }
            _ => Ok(()),
        }
    }

    async fn write(&mut self, bytes: Vec<u8>) -> anyhow::Result<()> {
        self.stored_bytes += bytes.len() as u64;
        Ok(self.upload.write(bytes.into()).await?)
    }
}

struct Content {
    bytes: u64,
    stored_bytes: u64,
    sha256: String,
    facts: Facts,
}

impl Content {
    fn manifest(self, opening: Opening, codec: Codec) -> Manifest {
        let f = self.facts;
        Manifest {
            opening,
            codec,
            bytes: self.bytes,
            stored_bytes: self.stored_bytes,
            sha256: self.sha256,
            gtids: f.gtids,
            transactions: f.transactions,
            commit_us_min: f.commit_us_min,
            commit_us_max: f.commit_us_max,
            tables: f.tables,
            xa_prepared: f.xa_prepared.into_iter().collect(),
            ending: f.ending.unwrap_or(Ending::Crash),
        }
    }
}

/// Compares the binlog with the segments that were shipped of it.
struct SegmentHashes {
    segments: std::vec::IntoIter<(SegmentRange, String)>,
    current: Option<(SegmentRange, String, Sha256)>,
    position: u64,
}

impl SegmentHashes {
    fn new(segments: Vec<(SegmentRange, String)>) -> SegmentHashes {
        SegmentHashes {
            segments: segments.into_iter(),
            current: None,
            position: 0,
        }
    }

    fn take(&mut self, mut bytes: &[u8]) -> anyhow::Result<()> {
        while !bytes.is_empty() {
            if self.current.is_none() {
                // Re-cutting after a restart overlaps: what begins before the current position was compared in part already.
                let next = self.segments.by_ref().find(|(range, _)| range.start >= self.position);
                self.current = next.map(|(range, sha256)| (range, sha256, Sha256::new()));
            }
            let Some((range, sha256, hash)) = &mut self.current else {
                self.position += bytes.len() as u64;
                return Ok(());
            };
            let skip = range.start.saturating_sub(self.position).min(bytes.len() as u64);
            let take = (range.end - self.position - skip).min(bytes.len() as u64 - skip);
            hash.update(&bytes[skip as usize..(skip + take) as usize]);
            self.position += skip + take;
            bytes = &bytes[(skip + take) as usize..];
            if self.position == range.end {
                if *sha256 != format!("{:x}", hash.clone().finalize()) {
                    let (start, end) = (range.start, range.end);
                    return Err(Fault(format!(
                        "the binlog differs from what was shipped of it, in bytes {start} to {end}"
                    )))
                    .hint("the archive keeps both; take a new snapshot, and find out who changed the file");
                }
                self.current = None;
            }
        }
        Ok(())
    }

    fn finish(&self) -> anyhow::Result<()> {
        match &self.current {
            Some((range, _, hash)) if hash.clone().finalize() != Sha256::new().finalize() => {
                bail!(
                    "the binlog ends at {}, inside a segment that was shipped up to {}",
                    self.position,
                    range.end
                )
            }
            _ => Ok(()),
        }
    }
}

/// What the manifest says of the content.
#[derive(Default)]
struct Facts {
    tracker: Tracker,
    unfolder: Unfolder,
    gtids: GtidSet,
    transactions: u64,
    commit_us_min: Option<i64>,
    commit_us_max: Option<i64>,
    tables: BTreeMap<String, u64>,
    xa_prepared: BTreeSet<String>,
    ending: Option<Ending>,
}

impl Facts {
    fn piece(&mut self, piece: &Piece<'_>) -> anyhow::Result<()> {
        if let Some(t) = self.tracker.piece(piece)? {
            self.gtids.insert(t.gtid);
            self.transactions += 1;
            let (least, most) = (
                t.immediate_commit_us.min(t.original_commit_us),
                t.immediate_commit_us.max(t.original_commit_us),
            );
            self.commit_us_min = Some(self.commit_us_min.map_or(least, |m| m.min(least)));
            self.commit_us_max = Some(self.commit_us_max.map_or(most, |m| m.max(most)));
        }
        if piece.is_last() {
            self.ending = match piece.header.kind {
                kind::ROTATE => Some(Ending::Rotate),
                kind::STOP => Some(Ending::Stop),
                _ => None,
            };
        }
        let (tables, xa) = (&mut self.tables, &mut self.xa_prepared);
        self.unfolder.piece(piece, |header, body| note(header, body, tables, xa))?;
        Ok(())
    }
}

fn note(header: &Header, body: &[u8], tables: &mut BTreeMap<String, u64>, xa: &mut BTreeSet<String>) {
    match header.kind {
        kind::TABLE_MAP => {
            if let Ok((schema, table)) = parse_table_map(body) {
                let name = format!("{schema}.{table}");
                if tables.len() < TABLES_MAX || tables.contains_key(&name) {
                    *tables.entry(name).or_default() += 1;
                }
            }
        }
        kind::XA_PREPARE => xa.extend(xa_prepared(body)),
        kind::QUERY => {
            if let Ok((_, text)) = parse_query(body)
                && let Some(id) = text.strip_prefix("XA COMMIT ").or_else(|| text.strip_prefix("XA ROLLBACK "))
            {
                xa.remove(id.trim());
            }
        }
        _ => {}
    }
}

/// The XA transaction that an XA_prepare event leaves prepared, written as in `XA COMMIT X'…',X'…',1`.
fn xa_prepared(body: &[u8]) -> Option<String> {
    let mut c = Cursor::new(body);
    let one_phase = c.u8()? != 0;
    let format = c.u32()?;
    let (gtrid, bqual) = (usize::try_from(c.u32()?).ok()?, usize::try_from(c.u32()?).ok()?);
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let id = format!("X'{}',X'{}',{format}", hex(c.bytes(gtrid)?), hex(c.bytes(bqual)?));
    (!one_phase).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sha(bytes: &[u8]) -> String {
        format!("{:x}", Sha256::digest(bytes))
    }

    #[test]
    fn segments_are_compared_where_they_lie() {
        let file: Vec<u8> = (0..100u8).collect();
        let range = |start: u64, end: u64| SegmentRange { start, end };
        let known = vec![
            (range(0, 10), sha(&file[..10])),
            (range(30, 50), sha(&file[30..50])),
            (range(40, 60), sha(&file[40..60])),
        ];
        let mut hashes = SegmentHashes::new(known);
        file.chunks(7).for_each(|c| hashes.take(c).unwrap());
        hashes.finish().unwrap();

        let mut hashes = SegmentHashes::new(vec![(range(5, 20), sha(&file[6..21]))]);
        assert!(
            hashes
                .take(&file)
                .unwrap_err()
                .root_cause()
                .to_string()
                .contains("bytes 5 to 20")
        );
    }

    #[test]
    fn xa_ids_are_written_as_the_server_writes_them() {
        let mut body = vec![0];
        body.extend_from_slice(&1u32.to_le_bytes());
        body.extend_from_slice(&2u32.to_le_bytes());
        body.extend_from_slice(&0u32.to_le_bytes());
        body.extend_from_slice(b"ab");
        assert_eq!(xa_prepared(&body).unwrap(), "X'6162',X'',1");
    }
}
