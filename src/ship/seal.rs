//! A closed binlog read whole from the server and stored as one object, its manifest last.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::Semaphore,
    task::spawn_blocking,
};
use tracing::info;

use crate::{
    archive::{
        codec::{Codec, Encoder},
        keys::SegmentRange,
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
        query::ServerBinlog,
        server::{BinlogStream, Server, SharedServer},
    },
    store::Upload,
    support::hint::OrHint,
};

use super::{
    beginning::{Beginning, Identity},
    catalog::Catalog,
    puts::{PATIENCE, finish_once, put_once, write_in_time},
};

/// Compressed bytes are handed to the upload in portions of at least this size.
const PORTION_BYTES: usize = 512 << 10;
/// Split, hashed and compressed at a time: a millisecond or two of a processor.
const BATCH_BYTES: usize = 256 << 10;
/// Less is done sooner than handed to another thread.
const INLINE_BYTES_MAX: usize = 16 << 10;

/// A fault of the binlog itself: trying again finds the same.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Fault(String);

/// Whether `error` is a binlog's own fault, and not the store's or the connection's.
pub fn is_fault_of_the_binlog(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<Fault>() || cause.is::<SplitError>())
}

/// A binlog that is to be sealed. Its opening is stored.
#[derive(Debug)]
pub struct ToSeal {
    /// With its length once it is closed.
    pub file: ServerBinlog,
    pub opening: Opening,
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

/// Shows the events of binlog `name` until `visit` says false or the binlog ends.
async fn read_closed(
    server: &dyn Server,
    name: &str,
    mut visit: impl FnMut(&Piece<'_>) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let mut reading = Reading::open(server, name).await?;
    let mut splitter = after_magic();
    while let Some(bytes) = reading.next().await? {
        let mut wanted = true;
        splitter.push(&bytes, |piece| {
            wanted = wanted && visit(piece)?;
            Ok::<(), anyhow::Error>(())
        })?;
        if !wanted {
            break;
        }
    }
    Ok(())
}

/// For a binlog from its first event on: the source never sends the magic bytes.
pub fn after_magic() -> Splitter {
    let mut splitter = Splitter::new();
    splitter
        .push(&MAGIC, |_| Ok::<(), SplitError>(()))
        .expect("these are the magic bytes");
    splitter
}

/// A closed binlog, being read from the server. While this lives, the server cannot purge the file.
struct Reading {
    dump: Box<dyn BinlogStream>,
    name: String,
    ended: bool,
}

impl Reading {
    async fn open(server: &dyn Server, name: &str) -> anyhow::Result<Reading> {
        let dump = server
            .dump(name, MAGIC.len() as u64, AtEnd::Stop)
            .await
            .with_context(|| format!("cannot read binlog {name}"))?;
        Ok(Reading {
            dump,
            name: name.to_owned(),
            ended: false,
        })
    }

    /// The next bytes of this binlog; None once the source goes on to another one.
    async fn next(&mut self) -> anyhow::Result<Option<bytes::Bytes>> {
        while !self.ended {
            match self
                .dump
                .next()
                .await
                .with_context(|| format!("cannot read binlog {}", self.name))?
            {
                DumpItem::Bytes { bytes, .. } => return Ok(Some(bytes)),
                DumpItem::Binlog { name, .. } if name == self.name => {}
                DumpItem::Binlog { .. } | DumpItem::End => self.ended = true,
                DumpItem::Format(_) | DumpItem::Heartbeat => {}
            }
        }
        Ok(None)
    }

    /// Fills `batch` anew; it stays empty at the binlog's end.
    async fn fill(&mut self, batch: &mut Vec<u8>) -> anyhow::Result<()> {
        batch.clear();
        while batch.len() < BATCH_BYTES
            && let Some(bytes) = self.next().await?
        {
            batch.extend_from_slice(&bytes);
        }
        Ok(())
    }
}

/// Reads closed binlogs and stores them whole; everything may run again after any interruption.
#[derive(Clone)]
pub struct Sealer {
    pub archive: Archive,
    pub server: SharedServer,
    pub catalog: Arc<Catalog>,
    pub codec: Codec,
    /// As many compute at a time: more would only take turns, and take the live binlog's and the server's.
    pub processors: Arc<Semaphore>,
    /// Of all binlogs, so far.
    pub read_bytes: Arc<AtomicU64>,
}

/// A binlog in the store that nobody sees yet.
pub struct Prepared {
    work: ToSeal,
    upload: Box<dyn Upload>,
    content: Content,
}

impl Sealer {
    /// Does everything that may be done before the binlogs before this one are sealed.
    pub async fn prepare(&self, work: ToSeal) -> anyhow::Result<Prepared> {
        let place = &work.opening.place;
        let key = place.sealed_key(&self.archive.shard, self.codec);
        let mut upload = self.archive.store.upload(&key).await?;
        match self.copy(&work, &key, &mut *upload).await {
            Ok(content) => Ok(Prepared { work, upload, content }),
            Err(e) => {
                // A store that is away would keep the round from ending.
                tokio::spawn(upload.abort());
                Err(e.context(format!("cannot seal {place}")))
            }
        }
    }

    /// Makes the object visible, and puts its manifest last.
    pub async fn finish(&self, prepared: Prepared) -> anyhow::Result<Manifest> {
        finish_once(prepared.upload).await?;
        let manifest = prepared.content.manifest(prepared.work.opening, self.codec);
        let place = &manifest.opening.place;
        let (bytes, key) = (
            serde_json::to_vec_pretty(&manifest)?,
            place.manifest_key(&self.archive.shard, self.codec),
        );
        put_once(&self.archive.store, &key, bytes.into(), PATIENCE).await?;
        self.catalog.sealed(place, &manifest.sha256, manifest.bytes);
        info!(binlog = %place.name, bytes = manifest.bytes, stored_bytes = manifest.stored_bytes, transactions = manifest.transactions, "sealed a binlog");
        Ok(manifest)
    }

    async fn copy(&self, work: &ToSeal, key: &str, upload: &mut dyn Upload) -> anyhow::Result<Content> {
        let mut reading = Reading::open(&*self.server, &work.file.name).await?;
        let mut copying = Copying::begin(work, self.codec, self.catalog.segments(&work.opening.place))?;
        let (mut batch, mut ahead) = (Vec::with_capacity(2 * BATCH_BYTES), Vec::with_capacity(2 * BATCH_BYTES));
        reading.fill(&mut batch).await?;
        while !batch.is_empty() {
            self.read_bytes.fetch_add(batch.len() as u64, Ordering::Relaxed);
            let (computed, read) = tokio::join!(self.compute(copying, batch), reading.fill(&mut ahead));
            (copying, batch) = computed?;
            read?;
            mem::swap(&mut batch, &mut ahead);
            if copying.encoder.ready_bytes() >= PORTION_BYTES {
                let ready = copying.ready();
                write_in_time(&self.archive.store, key, upload, ready.into()).await?;
            }
        }
        drop(reading);
        let (content, rest) = copying.finish(work)?;
        write_in_time(&self.archive.store, key, upload, rest.into()).await?;
        Ok(content)
    }

    /// Takes the batch in, on a thread on which nothing else waits.
    async fn compute(&self, mut copying: Copying, batch: Vec<u8>) -> anyhow::Result<(Copying, Vec<u8>)> {
        // A runtime of one thread has chosen one order of events, always the same.
        let has_one_thread = Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread;
        if has_one_thread || batch.len() <= INLINE_BYTES_MAX {
            copying.take(&batch)?;
            return Ok((copying, batch));
        }
        let _permit = self.processors.acquire().await?;
        let computing = spawn_blocking(move || {
            copying.take(&batch)?;
            Ok((copying, batch))
        });
        computing.await.context("a computing thread died")?
    }
}

/// One binlog on its way into an object.
struct Copying {
    name: String,
    fingerprint: String,
    splitter: Splitter,
    /// Until the fingerprint was compared.
    beginning: Option<Beginning>,
    facts: Facts,
    encoder: Encoder,
    stored_bytes: u64,
    hash: Sha256,
    segments: SegmentHashes,
}

impl Copying {
    fn begin(work: &ToSeal, codec: Codec, segments: Vec<(SegmentRange, String)>) -> anyhow::Result<Copying> {
        let mut copying = Copying {
            name: work.file.name.clone(),
            fingerprint: work.opening.fingerprint.clone(),
            splitter: after_magic(),
            beginning: Some(Beginning::new()),
            facts: Facts::default(),
            encoder: Encoder::new(codec)?,
            stored_bytes: 0,
            hash: Sha256::new(),
            segments: SegmentHashes::new(segments),
        };
        copying.store(&MAGIC)?;
        Ok(copying)
    }

    fn take(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let (beginning, facts) = (&mut self.beginning, &mut self.facts);
        self.splitter.push(bytes, |piece| {
            if let Some(unknown) = beginning
                && let Some(identity) = unknown.piece(piece)?
            {
                *beginning = None;
                if identity.fingerprint != self.fingerprint {
                    let name = &self.name;
                    bail!(Fault(format!(
                        "binlog {name} is another one than was shipped under this name"
                    )));
                }
            }
            facts.piece(piece)
        })?;
        self.store(bytes)
    }

    fn store(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.hash.update(bytes);
        self.segments.take(bytes)?;
        Ok(self.encoder.push(bytes)?)
    }

    /// What is compressed so far.
    fn ready(&mut self) -> Vec<u8> {
        let ready = self.encoder.take();
        self.stored_bytes += ready.len() as u64;
        ready
    }

    /// What was read, and the rest of the object.
    fn finish(self, work: &ToSeal) -> anyhow::Result<(Content, Vec<u8>)> {
        let name = &self.name;
        self.splitter.finish().with_context(|| format!("binlog {name}"))?;
        let (bytes, expected) = (self.splitter.position(), work.file.bytes);
        if expected != bytes {
            bail!("binlog {name} has {expected} bytes, but the server sent {bytes}");
        }
        self.segments.finish()?;
        let rest = self.encoder.finish()?;
        let content = Content {
            bytes,
            stored_bytes: self.stored_bytes + rest.len() as u64,
            sha256: format!("{:x}", self.hash.finalize()),
            facts: self.facts,
        };
        Ok((content, rest))
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
