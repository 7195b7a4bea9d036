//! What was shipped, against the server's own files.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use mysql_pitr::archive::{
    codec::Codec,
    listing::{Form, StoredBinlog},
    records::Manifest,
};
use sha2::{Digest, Sha256};

use super::{mysql::Server, node::Node};

/// Where a binlog's flags lie, behind the magic bytes and the first event's other header fields, and the one that says that
/// the server is writing the file: the wire clears it, and so does the server once the file is closed.
const FLAGS_AT: usize = 4 + 17;
const IN_USE: u8 = 1;

/// An object, decompressed by the codec's own library.
pub fn decoded(path: &Path) -> Vec<u8> {
    let stored = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    match Codec::of_key(path.to_str().unwrap()) {
        Codec::None => stored,
        Codec::Zstd => zstd::decode_all(&stored[..]).unwrap(),
        Codec::Gzip => {
            let mut bytes = Vec::new();
            flate2::read::GzDecoder::new(&stored[..]).read_to_end(&mut bytes).unwrap();
            bytes
        }
    }
}

/// A binlog as the server will have it once it is closed.
pub fn server_file(server: &Server, name: &str) -> Vec<u8> {
    let mut bytes = fs::read(server.datadir.join(name)).unwrap();
    bytes[FLAGS_AT] &= !IN_USE;
    bytes
}

pub fn sealed_path(node: &Node, manifest: &Manifest) -> PathBuf {
    let key = manifest.opening.place.sealed_key(&node.archive().shard, manifest.codec);
    node.archive_dir.join(key)
}

/// The manifests, in the order of the server's binlogs.
pub async fn manifests(node: &Node) -> Vec<Manifest> {
    let archive = node.archive();
    let sealed = archive.sealed(archive.sealed_index().await.unwrap().values()).await.unwrap();
    let manifest = |b: StoredBinlog| match b.form {
        Form::Sealed(manifest) => *manifest,
        Form::Tail(_) => panic!("a tail among the sealed binlogs"),
    };
    let mut manifests: Vec<Manifest> = sealed.into_iter().map(manifest).collect();
    manifests.sort_by(|a, b| a.opening.place.name.cmp(&b.opening.place.name));
    manifests
}

/// i4, i5: every sealed binlog and every segment equals the server's bytes, and none has two places. Returns how many segments
/// there are. For a server whose history was never reset, so that a name means one file.
pub async fn assert_the_servers_bytes(node: &Node, server: &Server) -> usize {
    let (mut sealed, mut opened) = (BTreeSet::new(), BTreeSet::new());
    for m in manifests(node).await {
        let name = &m.opening.place.name;
        assert!(sealed.insert(m.opening.fingerprint.clone()), "{name} has two manifests");
        let file = fs::read(server.datadir.join(name)).unwrap();
        assert!(
            decoded(&sealed_path(node, &m)) == file,
            "{name} differs from the server's file"
        );
        assert_eq!(m.bytes, file.len() as u64, "{name}");
        assert_eq!(m.sha256, format!("{:x}", Sha256::digest(&file)), "{name}");
    }
    let mut count = 0;
    for tail in node.archive().tails_where(|_| true).await.unwrap() {
        let name = &tail.place().name;
        assert!(
            opened.insert(tail.opening.fingerprint.clone()),
            "{name} has two places in the archive"
        );
        let file = server_file(server, name);
        let Form::Tail(segments) = &tail.form else {
            panic!("not a tail")
        };
        for s in segments {
            let range = s.range.start as usize..s.range.end as usize;
            assert!(
                decoded(&node.archive_dir.join(&s.key)) == file[range],
                "{} is not what the server has there",
                s.key
            );
            count += 1;
        }
    }
    count
}

/// The files below a folder, or none where there is no such folder.
pub fn objects(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                _ => found.push(entry.path()),
            }
        }
    }
    found
}
