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
    support::hint::message,
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
    /// Lets the replica go on with what `leg` wants from the binlog's segments, where its sealed object is what `error` is about. They are
    /// read before: once, for whoever asks meanwhile waits.
    ///
    /// # Errors
    /// What ends the replay: `error`, and why the segments do not stand in for the object if they were to.
    pub(super) async fn turn_to_segments(&self, leg: &Leg, error: anyhow::Error) -> anyhow::Result<()> {
        let place = leg.binlog.place();
        if DamagedSeal::of(&error).is_none() {
            return Err(error);
        }
        let mut legs = self.legs.lock().await;
        let Some(own) = legs.iter_mut().find(|own| own.binlog.place() == place) else {
            return Err(error);
        };
        if matches!(own.binlog.form, Form::Tail(_)) {
            return Ok(());
        }
        let read = async {
            let tail = self.archive.by_segments(&leg.binlog).await?;
            let holds = gtids_of(&self.archive, &tail).await?;
            anyhow::Ok((tail, holds))
        };
        let (tail, holds) = match read.await {
            Ok(read) => read,
            Err(e) => {
                let why = message(&e);
                return Err(error.context(format!("the segments of {place} cannot stand in for it ({why})")));
            }
        };
        if !leg.wanted.is_subset(&holds) {
            return Err(error);
        }
        let fault = Fault::of_replaced(place.clone(), tail.bytes(), None, &error);
        self.progress.warn(fault.to_string());
        own.binlog = Arc::new(tail);
        Ok(())
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
