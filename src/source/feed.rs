//! What a source serves, and how far it is.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
};

use uuid::Uuid;

use crate::{
    archive::listing::{Archive, StoredBinlog},
    binlog::gtid::GtidSet,
};

/// A binlog, and which of its transactions may be sent.
#[derive(Debug, Clone)]
pub struct Leg {
    pub binlog: Arc<StoredBinlog>,
    pub wanted: GtidSet,
}

/// The transactions that a replica shall have, binlog by binlog.
pub struct Feed {
    pub archive: Archive,
    pub legs: Vec<Leg>,
    /// In their places empty transactions are sent.
    pub skipped: GtidSet,
    /// Who the source says it is; the replica refuses its own.
    pub server_uuid: Uuid,
    pub server_id: u32,
    pub server_version: String,
    pub progress: FeedProgress,
}

/// Read by whoever watches, written by the stream.
#[derive(Debug, Default)]
pub struct FeedProgress {
    transactions: AtomicU64,
    bytes: AtomicU64,
    commit_us: AtomicI64,
    complete: AtomicBool,
    failure: Mutex<Option<anyhow::Error>>,
}

impl FeedProgress {
    pub(super) fn sent_transaction(&self, commit_us: i64) {
        self.transactions.fetch_add(1, Ordering::Relaxed);
        self.commit_us.store(commit_us, Ordering::Relaxed);
    }

    pub(super) fn sent_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sent_all(&self) {
        self.complete.store(true, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, error: anyhow::Error) {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
    }

    /// Transactions sent; those that were sent again after a reconnect count again.
    pub fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }

    /// Uncompressed.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// When the transaction that was sent last was committed; 0 before the first.
    pub fn commit_us(&self) -> i64 {
        self.commit_us.load(Ordering::Relaxed)
    }

    /// Whether the replica was sent everything.
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Relaxed)
    }

    /// What went wrong with the archive, once.
    pub fn take_failure(&self) -> Option<anyhow::Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
