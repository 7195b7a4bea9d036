//! Object stores behind one small trait.
//!
//! The archive writes objects once and reads them whole or by prefix listing; the few objects that change do so by
//! conditional PUT. Every implementation runs the cases of `tests/store_conformance.rs`.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncRead;

pub mod counted;
pub mod filesystem;
pub mod key;
mod open;
pub mod options;
pub mod probe;
pub mod reading;
#[cfg(feature = "aws")]
pub mod s3;
mod stall;

pub use open::open;
pub use options::{Checksums, StoreOptions};

/// The largest object that [`Store::get`] returns; larger ones are read as a stream.
pub const GET_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What a store knows about one object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    pub key: String,
    /// Bytes as stored.
    pub size_bytes: u64,
    /// When it was written, by the store's clock, µs since the epoch; None where the store does not say.
    pub modified_us: Option<i64>,
}

/// Names one content of one object, for [`Put::IfMatch`]. Opaque.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(pub String);

/// Under which condition a PUT takes effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    /// Only where no object has this key; else [`StoreError::AlreadyExists`].
    IfAbsent,
    /// Only over exactly this content; else [`StoreError::Precondition`].
    IfMatch(Version),
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("there is no object {url}/{key}")]
    NotFound { url: String, key: String },
    #[error("object {url}/{key} exists already")]
    AlreadyExists { url: String, key: String },
    #[error("object {url}/{key} was changed by somebody else")]
    Precondition { url: String, key: String },
    #[error("object {url}/{key} has {size_bytes} bytes, more than the {limit_bytes} expected of it")]
    TooLarge {
        url: String,
        key: String,
        size_bytes: u64,
        limit_bytes: u64,
    },
    /// Nobody can delete the object for now. It stays, and that is no fault.
    #[error("object {url}/{key} is locked: {lock}")]
    Locked { url: String, key: String, lock: String },
    /// The store itself is not usable as configured: no such bucket, no permission, no such folder. Trying again does not help.
    #[error("store {url} refused to {operation}: {reason}")]
    Refused { url: String, operation: String, reason: String },
    /// Anything else: network, time-out, 5xx, disk. Trying again may help. A write that ends so may have taken effect all the
    /// same, now or in a moment: whoever repeats it and then meets [`StoreError::AlreadyExists`] or
    /// [`StoreError::Precondition`] reads the object back to see whose it is.
    #[error("store {url} failed to {operation}")]
    Failed {
        url: String,
        /// The verb and the key, e.g. `put a/b.json`.
        operation: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, StoreError::Failed { .. })
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, StoreError::NotFound { .. })
    }

    pub fn is_already_exists(&self) -> bool {
        matches!(self, StoreError::AlreadyExists { .. })
    }
}

/// A stream of an object's bytes. It fails with [`std::io::ErrorKind::TimedOut`] when no byte comes for [`CALL_TIMEOUT`]; a
/// reader that takes its time is no failure. Its errors name the object.
pub type ObjectReader = Box<dyn AsyncRead + Send + Unpin>;

/// An object being written in pieces, with memory bounded however large it grows. It becomes visible whole at
/// [`Upload::finish`] or not at all; dropped unfinished, it is aborted as far as the store allows. After an error, or a
/// write whose future was dropped, nobody knows what it holds: every later call then fails, and a new upload has to be begun.
#[async_trait]
pub trait Upload: Send {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError>;

    /// Publishes the object if no object has its key.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] where one has; nothing was changed then.
    async fn finish(self: Box<Self>) -> Result<(), StoreError>;

    /// Gives the upload up and frees what it holds in the store.
    async fn abort(self: Box<Self>);
}

/// A bucket. Keys are relative to the configured URL and `/`-separated; no part is empty, begins with a dot, holds a control
/// character or is longer than 255 bytes. Other keys are [`StoreError::Refused`], and objects that somebody else put under such
/// keys are not listed. Every call ends within [`call_timeout`] of its bytes, a listing within that of each thousand keys.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// For messages; no credentials in it.
    fn url(&self) -> &str;

    /// Writes a small object. When this returns, the object survives a power cut; so does the one that it lost against.
    async fn put(&self, key: &str, bytes: Bytes, condition: Put) -> Result<Version, StoreError>;

    /// Begins a large object.
    async fn upload(&self, key: &str) -> Result<Box<dyn Upload>, StoreError>;

    /// A whole object of at most [`GET_BYTES_MAX`] bytes.
    async fn get(&self, key: &str) -> Result<(Bytes, Version), StoreError>;

    /// An object of any size, from byte `from` on; beyond its end is an error. [`reading::Reading`] survives broken connections.
    async fn read(&self, key: &str, from: u64) -> Result<ObjectReader, StoreError>;

    /// Every object whose key starts with `prefix` and is greater than `start_after` (bytewise), in bytewise key order.
    async fn list(&self, prefix: &str, start_after: Option<&str>) -> Result<Vec<ObjectMeta>, StoreError>;

    /// The folders right below `prefix`, which is empty or ends in a slash: how keys begin, up to and with the next slash, each once and in
    /// bytewise order. What lies in them is not listed; in one, nothing may.
    async fn folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let objects = self.list(prefix, None).await?;
        let folder = |key: &str| {
            let slash = key.get(prefix.len()..)?.find('/')?;
            Some(key[..=prefix.len() + slash].to_owned())
        };
        let folders: BTreeSet<String> = objects.iter().filter_map(|o| folder(&o.key)).collect();
        Ok(folders.into_iter().collect())
    }

    /// Removes an object; one that is not there is no error. For retention and for probes, never for the agent's own data.
    ///
    /// # Errors
    /// [`StoreError::Locked`] where a retention or a legal hold keeps it; it is as it was then, and still listed.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;

    /// What of this contract the server does not keep by itself, and how it is kept all the same: a line for people each.
    async fn workarounds(&self, _prefix: &str) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }
}

/// How long one call to a store may take, apart from moving an object's bytes.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A link or disk slower than this cannot keep up with a busy server's binlog anyway.
const SLOWEST_BYTES_PER_S: u64 = 256 * 1024;

/// How long one call that moves this many bytes may take.
pub fn call_timeout(bytes: u64) -> Duration {
    CALL_TIMEOUT + moving_time(bytes)
}

/// How long this many bytes may be on their way.
pub fn moving_time(bytes: u64) -> Duration {
    Duration::from_secs(bytes / SLOWEST_BYTES_PER_S)
}

/// Shared handle, as everything above hands it around.
pub type SharedStore = Arc<dyn Store>;
