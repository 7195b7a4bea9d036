//! A folder as a compressed tar stream, in both directions, in bounded memory.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use bytes::{Buf, Bytes};
use sha2::{Digest, Sha256};
use tokio::{sync::mpsc, task::spawn_blocking};

use crate::{
    archive::codec::{Codec, Encoder},
    store::{SharedStore, reading::Reading},
    support::hint::OrHint,
};

/// Portions between the thread that packs or unpacks and the one that talks to the store; of 1 MiB at most each.
const PORTIONS_AHEAD: usize = 8;
const PORTION_BYTES: usize = 1 << 20;

/// What was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// The files' bytes.
    pub data_bytes: u64,
    pub stored_bytes: u64,
    /// Of the stored object, hexadecimal.
    pub stored_sha256: String,
}

/// Stores the files below `folder` as one object. `advanced` is told how many stored bytes there are.
pub async fn pack(folder: &Path, store: &SharedStore, key: &str, codec: Codec, advanced: impl Fn(u64)) -> anyhow::Result<Packed> {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(PORTIONS_AHEAD);
    let mut upload = store.upload(key).await?;
    let from = folder.to_owned();
    let packing = spawn_blocking(move || {
        pack_into(
            &from,
            PortionWriter {
                encoder: Encoder::new(codec)?,
                sender,
            },
        )
    });
    let (mut hash, mut stored_bytes) = (Sha256::new(), 0);
    while let Some(portion) = receiver.recv().await {
        hash.update(&portion);
        stored_bytes += portion.len() as u64;
        if let Err(e) = upload.write(portion).await {
            upload.abort().await;
            return Err(e.into());
        }
        advanced(stored_bytes);
    }
    match packing.await? {
        Ok(data_bytes) => {
            upload.finish().await?;
            Ok(Packed {
                data_bytes,
                stored_bytes,
                stored_sha256: format!("{:x}", hash.finalize()),
            })
        }
        Err(e) => {
            upload.abort().await;
            Err(anyhow::Error::from(e).context(format!("cannot pack {}", folder.display())))
        }
    }
}

fn pack_into(folder: &Path, writer: PortionWriter) -> io::Result<u64> {
    let mut builder = tar::Builder::new(writer);
    builder.follow_symlinks(false);
    let mut data_bytes = 0;
    let mut folders = vec![PathBuf::new()];
    while let Some(relative) = folders.pop() {
        let mut entries: Vec<_> = std::fs::read_dir(folder.join(&relative))?.collect::<io::Result<_>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let (name, kind) = (relative.join(entry.file_name()), entry.file_type()?);
            if kind.is_dir() {
                builder.append_dir(&name, entry.path())?;
                folders.push(name);
            } else if kind.is_file() {
                let mut file = File::open(entry.path())?;
                data_bytes += file.metadata()?.len();
                builder.append_file(&name, &mut file)?;
            }
        }
    }
    builder.into_inner()?.finish()?;
    Ok(data_bytes)
}

/// Compresses what is written and hands it on in portions; waits where the store is slower.
struct PortionWriter {
    encoder: Encoder,
    sender: mpsc::Sender<Bytes>,
}

impl PortionWriter {
    fn send(&self, bytes: Vec<u8>) -> io::Result<()> {
        self.sender
            .blocking_send(bytes.into())
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }

    fn finish(self) -> io::Result<()> {
        let PortionWriter { encoder, sender } = self;
        sender
            .blocking_send(encoder.finish()?.into())
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

impl Write for PortionWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PORTION_BYTES);
        self.encoder.push(&bytes[..taken])?;
        if self.encoder.ready_bytes() >= PORTION_BYTES {
            let ready = self.encoder.take();
            self.send(ready)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Unpacks an object into `folder`, which must exist. `advanced` is told how many stored bytes were read.
///
/// # Errors
/// Also where the object is not the one that was stored; what was unpacked until then stays, and is worth nothing.
pub async fn unpack(
    store: &SharedStore,
    key: &str,
    expected_sha256: &str,
    folder: &Path,
    advanced: impl Fn(u64),
) -> anyhow::Result<()> {
    const HINT: &str =
        "restore the object from the other region's bucket, or recover to a moment before this snapshot, from an older one";
    let broken = || {
        format!(
            "the snapshot's data {}/{key} is damaged or cannot be read to its end",
            store.url()
        )
    };
    let mut reader = Reading::open(store, key).await.hint(HINT)?;
    let (sender, receiver) = mpsc::channel::<Bytes>(PORTIONS_AHEAD);
    let (codec, into) = (Codec::of_key(key), folder.to_owned());
    let unpacking = spawn_blocking(move || {
        unpack_from(
            PortionReader {
                receiver,
                current: Bytes::new(),
            },
            codec,
            &into,
        )
    });
    let (mut hash, mut read_bytes, mut complete) = (Sha256::new(), 0, false);
    loop {
        let mut buffer = bytes::BytesMut::with_capacity(PORTION_BYTES);
        if reader.read(&mut buffer).await.with_context(broken).hint(HINT)? == 0 {
            complete = true;
            break;
        }
        hash.update(&buffer);
        read_bytes += buffer.len() as u64;
        advanced(read_bytes);
        if sender.send(buffer.freeze()).await.is_err() {
            // The other side failed, and says why below.
            break;
        }
    }
    drop(sender);
    let unpacked = unpacking.await?;
    if complete && format!("{:x}", hash.finalize()) != expected_sha256 {
        let otherwise = Err(anyhow::anyhow!("its hash is not the recorded one"));
        return unpacked.and(otherwise).with_context(broken).hint(HINT);
    }
    let cannot = || format!("cannot unpack {}/{key} into {}", store.url(), folder.display());
    unpacked
        .with_context(cannot)
        .hint("if the disk is not full, the object is damaged: restore it from the other region's bucket")
}

fn unpack_from(reader: PortionReader, codec: Codec, folder: &Path) -> anyhow::Result<()> {
    let decompressed: Box<dyn Read> = match codec {
        Codec::None => Box::new(reader),
        Codec::Gzip => Box::new(flate2::read::GzDecoder::new(reader)),
        Codec::Zstd => Box::new(zstd::stream::read::Decoder::new(reader)?),
    };
    let mut archive = tar::Archive::new(decompressed);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        if !matches!(
            entry.header().entry_type(),
            tar::EntryType::Regular | tar::EntryType::Directory | tar::EntryType::GNUSparse
        ) {
            bail!("{} is neither a file nor a folder", path.display());
        }
        if !entry.unpack_in(folder)? {
            bail!("{} leads out of the folder", path.display());
        }
    }
    // The trailer is read too, so that a cut end is noticed.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(())
}

struct PortionReader {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for PortionReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(portion) => self.current = portion,
                None => return Ok(0),
            }
        }
        let taken = out.len().min(self.current.len());
        self.current.copy_to_slice(&mut out[..taken]);
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::store::filesystem::FilesystemStore;

    use super::*;

    #[tokio::test]
    async fn folders_round_trip_and_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (from, root) = (dir.path().join("from"), dir.path().join("store"));
        std::fs::create_dir_all(from.join("a/b")).unwrap();
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(from.join("a/b/big"), vec![3u8; 3 << 20]).unwrap();
        std::fs::write(from.join("empty"), b"").unwrap();
        let store: SharedStore = Arc::new(FilesystemStore::open(&root).unwrap());
        for codec in [Codec::None, Codec::Gzip, Codec::Zstd] {
            let key = format!("s/data.tar{}", codec.extension());
            let packed = pack(&from, &store, &key, codec, |_| {}).await.unwrap();
            assert_eq!(packed.data_bytes, 3 << 20);
            let to = dir.path().join(format!("to{}", codec.extension()));
            std::fs::create_dir(&to).unwrap();
            unpack(&store, &key, &packed.stored_sha256, &to, |_| {}).await.unwrap();
            assert_eq!(std::fs::read(to.join("a/b/big")).unwrap(), vec![3u8; 3 << 20]);
            assert_eq!(std::fs::read(to.join("empty")).unwrap(), b"");

            let path = root.join(&key);
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
            let again = dir.path().join(format!("again{}", codec.extension()));
            std::fs::create_dir(&again).unwrap();
            assert!(unpack(&store, &key, &packed.stored_sha256, &again, |_| {}).await.is_err());
        }
    }
}
