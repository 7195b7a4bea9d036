//! A binlog above 4 GiB, which one transaction makes: positions in its events' headers have only 32 bits.

use std::{env, fs::File, io, path::Path};

use crate::support::{
    eventually,
    mysql::{START_TIMEOUT, Server},
    node::{Node, peak_memory_bytes},
    shipped::{manifests, sealed_path},
    skipped,
};
use mysql_pitr::{
    archive::listing::{Form, covered_end},
    mysql::{
        dump::{AtEnd, Dump, DumpItem},
        query::Session,
    },
};
use sha2::{Digest, Sha256};

const FOUR_GIB: u64 = 1 << 32;
const ROWS: usize = 1150;
/// A query is given half a minute.
const ROWS_AT_A_TIME: usize = 50;

/// i4, i10, i11: shipped as it is written, killed beyond 4 GiB, sealed, and recovered.
#[tokio::test(flavor = "multi_thread")]
async fn i4_a_binlog_above_4_gib_is_shipped_sealed_and_recovered() {
    if env::var_os("MYSQL_PITR_LONG").is_none() {
        return skipped("a binlog above 4 GiB takes minutes and 20 GB of disk: MYSQL_PITR_LONG=1 runs it");
    }
    let server = Server::start(&["--innodb-redo-log-capacity=1G", "--skip-innodb-doublewrite"]).await;
    let node = Node::new(&server, "");
    let agent = node.agent();
    server
        .execute(&[
            "CREATE DATABASE d",
            "CREATE TABLE d.t (id INT PRIMARY KEY AUTO_INCREMENT, v LONGBLOB)",
        ])
        .await;
    node.wait_snapshots(1).await;
    node.wait_shipped(&server).await;
    let mut root = server.root().await;
    root.execute("BEGIN").await.unwrap();
    for _ in 0..ROWS {
        root.execute("INSERT INTO d.t (v) VALUES (REPEAT(RANDOM_BYTES(1000), 4000))")
            .await
            .unwrap();
    }
    root.execute_within("COMMIT", START_TIMEOUT).await.unwrap();
    let expected = checksum(&mut root).await;
    let huge = root.binary_logs().await.unwrap().remove(0);
    assert!(huge.bytes > FOUR_GIB + (64 << 20), "{huge:?}");

    let mut last_start = 0;
    while last_start < FOUR_GIB {
        eventually("the live binlog goes on", async || {
            let before = last_start;
            for tail in node.archive().tails_where(|p| p.name == huge.name).await.unwrap() {
                let Form::Tail(segments) = &tail.form else { continue };
                if covered_end(segments) > before {
                    last_start = segments.iter().map(|s| s.range.start).max().unwrap();
                }
            }
            last_start > before
        })
        .await;
    }
    println!("peak {} MiB while it followed", peak_memory_bytes(agent.pid()).unwrap() >> 20);
    agent.kill().await;
    assert_goes_on_from(&server, &huge.name, last_start).await;

    let agent = node.agent();
    while manifests(&node).await.is_empty() {
        eventually("the agent reads", async || {
            let bytes = node.archive_dir.join(".tmp").read_dir().into_iter().flatten().flatten();
            bytes.count() > 0 || !manifests(&node).await.is_empty()
        })
        .await;
        tokio::task::yield_now().await;
    }
    let manifest = manifests(&node).await.remove(0);
    let file = server.datadir.join(&huge.name);
    assert_eq!(manifest.bytes, huge.bytes);
    assert_eq!(manifest.sha256, sha256(File::open(&file).unwrap()));
    let sealed = zstd::Decoder::new(File::open(sealed_path(&node, &manifest)).unwrap()).unwrap();
    assert_eq!(manifest.sha256, sha256(sealed));
    println!("peak {} MiB while it sealed", peak_memory_bytes(agent.pid()).unwrap() >> 20);
    agent.assert_quiet();
    agent.stop().await;
    remove_binlogs(&server).await;
    let (recovered, peak) = node.recover_measured("recovered", &["--latest"]).await;
    println!("peak {} MiB while it recovered", peak >> 20);
    assert_eq!(checksum(&mut recovered.root().await).await, expected);
}

/// The rows' checksums, some at a time, and how many there are.
async fn checksum(root: &mut Session) -> (u64, Vec<Option<u64>>) {
    let mut sums = Vec::new();
    for first in (0..=ROWS).step_by(ROWS_AT_A_TIME) {
        let after = first + ROWS_AT_A_TIME;
        let sql = format!("SELECT CAST(SUM(CRC32(v)) AS UNSIGNED) FROM d.t WHERE id >= {first} AND id < {after}");
        sums.push(root.one::<(Option<u64>,)>(&sql).await.unwrap().0);
    }
    (root.one::<(u64,)>("SELECT COUNT(*) FROM d.t").await.unwrap().0, sums)
}

fn sha256(mut from: impl io::Read) -> String {
    let mut hash = Sha256::new();
    io::copy(&mut from, &mut hash).unwrap();
    format!("{:x}", hash.finalize())
}

/// The server sends, from a position that 32 bits do not hold, what its file has there.
async fn assert_goes_on_from(server: &Server, name: &str, position: u64) {
    const BYTES: usize = 1 << 20;
    let mut dump = Dump::open(&server.agent_endpoint(), name, position, AtEnd::Stop)
        .await
        .unwrap();
    let mut sent = Vec::new();
    while sent.len() < BYTES {
        match dump.next().await.unwrap() {
            DumpItem::Bytes { bytes, .. } => sent.extend_from_slice(&bytes),
            DumpItem::End => panic!("the binlog ended early"),
            _ => {}
        }
    }
    assert!(sent[..BYTES] == read_at(&server.datadir.join(name), position, BYTES));
}

fn read_at(path: &Path, position: u64, bytes: usize) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; bytes];
    File::open(path).unwrap().read_exact_at(&mut buffer, position).unwrap();
    buffer
}

/// Room for the recovered copy.
async fn remove_binlogs(server: &Server) {
    server.execute(&["PURGE BINARY LOGS BEFORE NOW() + INTERVAL 1 DAY"]).await;
}
