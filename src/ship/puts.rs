//! Storing what must not get lost, again and again for a while.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};
use tracing::debug;

use crate::{
    store::{Put, SharedStore, StoreError, Upload},
    support::retry::Backoff,
};

/// After that the stream is hung up: a dump connection that does not read keeps the server from purging.
const PATIENCE: Duration = Duration::from_secs(30);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Stores an immutable object. One that is there already is this very object, stored before a crash or a lost answer:
/// its key names its content.
pub async fn put_once(store: &SharedStore, key: &str, bytes: Bytes) -> Result<(), StoreError> {
    let deadline = Instant::now() + PATIENCE;
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    loop {
        match store.put(key, bytes.clone(), Put::IfAbsent).await {
            Ok(_) | Err(StoreError::AlreadyExists { .. }) => return Ok(()),
            Err(e) if !e.is_transient() || Instant::now() > deadline => return Err(e),
            Err(e) => {
                debug!(error = %e, key, "a PUT is tried again");
                sleep(backoff.step()).await;
            }
        }
    }
}

/// Ends an upload; as with [`put_once`], an object that is there already is the same.
pub async fn finish_once(upload: Box<dyn Upload>) -> Result<(), StoreError> {
    match upload.finish().await {
        Err(StoreError::AlreadyExists { .. }) => Ok(()),
        other => other,
    }
}
