//! The bytes of a stored binlog, read ahead in bounded memory and checked, whichever form they lie in.

use std::fmt;

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    binlog::{
        gtid::GtidSet,
        splitter::{Piece, SplitError, Splitter},
        transaction::Tracker,
    },
    store::{StoreError, reading::Reading},
    support::hint::{OrHint, message, with_hint},
};

use super::{
    codec::{Codec, Decoder},
    keys::BinlogPlace,
    listing::{Archive, Form, StoredBinlog, cover},
};

/// Read from the store at a time.
const READ_BYTES: usize = 256 * 1024;
/// Decompressed portions that wait for their consumer; with those of up to 128 KiB each, 4 MiB.
const PORTIONS_AHEAD: usize = 32;
const REPLICA_HINT: &str = "restore the object from the other region's bucket, or recover to a moment before it";

/// The cause of an error: a sealed binlog's object is not what was stored, or cannot be read to its end. Its segments may stand in for it.
#[derive(Debug)]
pub struct DamagedSeal {
    pub place: BinlogPlace,
    /// What its own causes say.
    what: String,
}

impl fmt::Display for DamagedSeal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl DamagedSeal {
    pub fn of(error: &anyhow::Error) -> Option<&DamagedSeal> {
        error.downcast_ref()
    }

    /// Names the object as the cause of what went wrong while it was read, unless the store was.
    fn blame(binlog: &StoredBinlog, error: anyhow::Error) -> anyhow::Error {
        let of_the_store = |e: &StoreError| !e.is_not_found();
        let is_stores = error
            .chain()
            .any(|cause| cause.downcast_ref::<StoreError>().is_some_and(of_the_store));
        if is_stores || !matches!(binlog.form, Form::Sealed(_)) {
            return error;
        }
        let what = message(&error);
        error.context(DamagedSeal {
            place: binlog.place().clone(),
            what,
        })
    }
}

/// A stream of a binlog's uncompressed bytes, magic bytes first. Dropped, it stops reading.
pub struct Portions {
    receiver: mpsc::Receiver<anyhow::Result<Bytes>>,
    task: JoinHandle<()>,
}

impl Portions {
    /// Starts to read.
    pub fn of(archive: &Archive, binlog: &StoredBinlog) -> Portions {
        let (sender, receiver) = mpsc::channel(PORTIONS_AHEAD);
        let (archive, binlog) = (archive.clone(), binlog.clone());
        let task = tokio::spawn(async move {
            if let Err(e) = read(&archive, &binlog, &sender).await {
                // The consumer may have had enough already.
                let _ = sender.send(Err(DamagedSeal::blame(&binlog, e))).await;
            }
        });
        Portions { receiver, task }
    }

    /// None at the end, once everything was checked.
    pub async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        self.receiver.recv().await.transpose()
    }
}

impl Drop for Portions {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether a visitor wants more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Continue,
    Enough,
}

/// Shows a stored binlog's events to `visit`, until it has had enough.
pub async fn visit(
    archive: &Archive,
    binlog: &StoredBinlog,
    mut visit: impl FnMut(&Piece<'_>) -> Result<Flow, SplitError>,
) -> anyhow::Result<()> {
    let mut portions = Portions::of(archive, binlog);
    let mut splitter = Splitter::new();
    let mut flow = Flow::Continue;
    while let Some(bytes) = portions.next().await? {
        let pushed = splitter.push(&bytes, |piece| {
            if flow == Flow::Continue {
                flow = visit(piece)?;
            }
            Ok::<(), SplitError>(())
        });
        damaged(pushed, archive, binlog)?;
        if flow == Flow::Enough {
            return Ok(());
        }
    }
    damaged(splitter.finish(), archive, binlog)
}

/// The transactions of a stored binlog, by reading it.
pub async fn gtids_of(archive: &Archive, binlog: &StoredBinlog) -> anyhow::Result<GtidSet> {
    let (mut tracker, mut gtids) = (Tracker::default(), GtidSet::new());
    visit(archive, binlog, |piece| {
        if let Some(t) = tracker.piece(piece)? {
            gtids.insert(t.gtid);
        }
        Ok(Flow::Continue)
    })
    .await?;
    Ok(gtids)
}

/// Names the object and the binlog in what is wrong with its events.
pub fn damaged<T>(result: Result<T, SplitError>, archive: &Archive, binlog: &StoredBinlog) -> anyhow::Result<T> {
    result.map_err(|e| {
        let what = match binlog.key_at(&archive.shard, e.position()) {
            Some(key) => format!("object {}/{key} (binlog {}) is damaged", archive.store.url(), binlog.place()),
            None => format!("the archived binlog {} is damaged", binlog.place()),
        };
        DamagedSeal::blame(binlog, with_hint(anyhow::Error::from(e).context(what), REPLICA_HINT))
    })
}

async fn read(archive: &Archive, binlog: &StoredBinlog, out: &mpsc::Sender<anyhow::Result<Bytes>>) -> anyhow::Result<()> {
    match &binlog.form {
        Form::Sealed(manifest) => {
            let key = binlog.place().sealed_key(&archive.shard, manifest.codec);
            let mut hash = Sha256::new();
            let bytes = object(archive, &key, manifest.codec, 0, Some(&mut hash), out).await?;
            let sha256 = format!("{:x}", hash.finalize());
            if bytes != manifest.bytes || sha256 != manifest.sha256 {
                return Err(anyhow::anyhow!(
                    "object {}/{key} is not what its manifest says",
                    archive.store.url()
                ))
                .hint(REPLICA_HINT);
            }
        }
        Form::Tail(segments) => {
            for (segment, skip) in cover(segments) {
                let bytes = object(archive, &segment.key, Codec::of_key(&segment.key), skip, None, out).await?;
                let expected = segment.range.end - segment.range.start;
                if bytes != expected {
                    let url = archive.store.url();
                    return Err(anyhow::anyhow!(
                        "object {url}/{} holds {bytes} bytes instead of {expected}",
                        segment.key
                    ))
                    .hint(REPLICA_HINT);
                }
            }
        }
    }
    Ok(())
}

/// Decompresses one object into `out`, without its first `skip` bytes. Returns how many bytes it holds.
async fn object(
    archive: &Archive,
    key: &str,
    codec: Codec,
    skip: u64,
    mut hash: Option<&mut Sha256>,
    out: &mpsc::Sender<anyhow::Result<Bytes>>,
) -> anyhow::Result<u64> {
    let mut reader = Reading::open(&archive.store, key).await.hint(REPLICA_HINT)?;
    let mut decoder = Decoder::new(codec)?;
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let mut total = 0u64;
    let mut wanted = |decoded: &[u8]| {
        let unwanted = skip.saturating_sub(total).min(decoded.len() as u64) as usize;
        total += decoded.len() as u64;
        if let Some(hash) = &mut hash {
            hash.update(decoded);
        }
        Bytes::copy_from_slice(&decoded[unwanted..])
    };
    let broken = || format!("object {}/{key} is damaged or cannot be read to its end", archive.store.url());
    loop {
        buffer.clear();
        let read = reader.read(&mut buffer).await.with_context(broken).hint(REPLICA_HINT)?;
        if read == 0 {
            break;
        }
        let mut stored = &buffer[..];
        loop {
            let decoded = decoder.next(&mut stored).with_context(broken).hint(REPLICA_HINT)?;
            if decoded.is_empty() {
                break;
            }
            send(out, wanted(decoded)).await?;
        }
    }
    send(out, wanted(&decoder.finish().with_context(broken).hint(REPLICA_HINT)?)).await?;
    Ok(total)
}

/// # Errors
/// Where the consumer has gone; nobody will read that error either.
async fn send(out: &mpsc::Sender<anyhow::Result<Bytes>>, portion: Bytes) -> anyhow::Result<()> {
    if portion.is_empty() {
        return Ok(());
    }
    out.send(Ok(portion))
        .await
        .map_err(|_| anyhow::anyhow!("nobody reads any more"))
}
