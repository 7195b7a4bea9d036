//! What a store really does, tried rather than believed.

use bytes::Bytes;

use super::{Put, SharedStore, StoreError};

/// Writers that race for one key.
const RACERS: usize = 2;

/// Whether of two writers that create one object at the same moment exactly one succeeds. Leaves nothing behind if the
/// store lets this process delete; else one small object under `<prefix>/probes/`.
pub async fn conditional_put(store: &SharedStore, prefix: &str) -> Result<bool, StoreError> {
    let key = format!("{prefix}/probes/{}", uuid::Uuid::new_v4());
    let race = (0..RACERS).map(|i| store.put(&key, Bytes::from(format!("racer {i}")), Put::IfAbsent));
    let mut created = 0;
    for result in futures_util::future::join_all(race).await {
        match result {
            Ok(_) => created += 1,
            Err(StoreError::AlreadyExists { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    let again = store.put(&key, Bytes::from_static(b"late"), Put::IfAbsent).await;
    // An agent's role may create only.
    let _ = store.delete(&key).await;
    Ok(created == 1 && matches!(again, Err(StoreError::AlreadyExists { .. })))
}
