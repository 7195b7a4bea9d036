//! Storing what must not get lost, again and again for a while.

use std::{io, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::debug;

use crate::{
    store::{Put, SharedStore, StoreError, Upload, moving_time},
    support::retry::Backoff,
};

/// After that the stream is hung up: a dump connection that does not read keeps the server from purging.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The same where the server's disk is nearly full.
pub const PATIENCE_SHORT_OF_DISK: Duration = Duration::from_secs(3);
/// For a store to take a portion of a large object. Parts of other uploads may be before it; a store that is well is faster.
const WRITE_PATIENCE: Duration = Duration::from_secs(60);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Stores an immutable object, trying for `patience` and as long as its bytes may take. One that is there already is this very
/// object, stored before a crash or a lost answer: its key names its content.
pub async fn put_once(store: &SharedStore, key: &str, bytes: Bytes, patience: Duration) -> Result<(), StoreError> {
    let patience = patience + moving_time(bytes.len() as u64);
    let deadline = Instant::now() + patience;
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    loop {
        let put = timeout_at(deadline, store.put(key, bytes.clone(), Put::IfAbsent));
        match put.await.unwrap_or_else(|_| Err(silent(store.url(), key, patience))) {
            Ok(_) | Err(StoreError::AlreadyExists { .. }) => return Ok(()),
            Err(e) if !e.is_transient() || Instant::now() >= deadline => return Err(e),
            Err(e) => {
                debug!(error = %e, key, "a PUT is tried again");
                sleep(backoff.step()).await;
            }
        }
    }
}

/// Hands a portion to an upload that is `key`'s. Whoever reads from the server meanwhile hangs up if the store takes nothing.
pub async fn write_in_time(store: &SharedStore, key: &str, upload: &mut dyn Upload, bytes: Bytes) -> Result<(), StoreError> {
    let written = timeout(WRITE_PATIENCE, upload.write(bytes)).await;
    written.unwrap_or_else(|_| Err(silent(store.url(), key, WRITE_PATIENCE)))
}

/// Ends an upload; as with [`put_once`], an object that is there already is the same.
pub async fn finish_once(upload: Box<dyn Upload>) -> Result<(), StoreError> {
    match upload.finish().await {
        Err(StoreError::AlreadyExists { .. }) => Ok(()),
        other => other,
    }
}

fn silent(url: &str, key: &str, patience: Duration) -> StoreError {
    let text = format!("no answer within {} s", patience.as_secs());
    StoreError::Failed {
        url: url.to_owned(),
        operation: format!("put {key}"),
        source: Box::new(io::Error::new(io::ErrorKind::TimedOut, text)),
    }
}
