//! What a source serves, and how far it is.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
};

use uuid::Uuid;

use crate::{
    archive::{
        listing::{Archive, Form, StoredBinlog},
        reader::{DamagedSeal, gtids_of},
        survey::Fault,
    },
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
    /// A leg whose sealed object turns out to be damaged is replaced by the same binlog's segments.
    pub legs: tokio::sync::Mutex<Vec<Leg>>,
    /// In their places empty transactions are sent.
    pub skipped: GtidSet,
    /// Who the source says it is; the replica refuses its own.
    pub server_uuid: Uuid,
    pub server_id: u32,
    pub server_version: String,
    pub progress: FeedProgress,
}

impl Feed {
    /// Whether the replica can go on with what `leg` wants from the binlog's segments, where its sealed object is what `error` is about.
    /// They are read before: once, for whoever asks meanwhile waits.
    pub(super) async fn turn_to_segments(&self, leg: &Leg, error: &anyhow::Error) -> bool {
        if DamagedSeal::of(error).is_none() {
            return false;
        }
        let mut legs = self.legs.lock().await;
        let Some(own) = legs.iter_mut().find(|own| own.binlog.place() == leg.binlog.place()) else {
            return false;
        };
        if matches!(own.binlog.form, Form::Tail(_)) {
            return true;
        }
        let Ok(tail) = self.archive.by_segments(&leg.binlog).await else {
            return false;
        };
        let holds = gtids_of(&self.archive, &tail).await;
        if !holds.is_ok_and(|holds| leg.wanted.is_subset(&holds)) {
            return false;
        }
        let fault = Fault::of_replaced(leg.binlog.place().clone(), tail.bytes(), None, error);
        self.progress.warn(fault.to_string());
        own.binlog = Arc::new(tail);
        true
    }
}

/// Read by whoever watches, written by the stream.
#[derive(Debug, Default)]
pub struct FeedProgress {
    transactions: AtomicU64,
    bytes: AtomicU64,
    commit_us: AtomicI64,
    complete: AtomicBool,
    failure: Mutex<Option<anyhow::Error>>,
    warnings: Mutex<Vec<String>>,
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

    fn warn(&self, text: String) {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).push(text);
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

    /// What a person should know of the archive, each once.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
