//! What a store really does, tried rather than believed.

use bytes::Bytes;

use super::{Put, SharedStore, StoreError};

/// Writers that race for one key.
const RACERS: usize = 2;

/// Whether of two writers that create one object at the same moment no more than one succeeds: a client whose answer was lost can meet
/// its own success, and be told that it lost. Leaves nothing behind if the
/// store lets this process delete; else one small object under `<prefix>/probes/`.
pub async fn creates_once(store: &SharedStore, prefix: &str) -> Result<bool, StoreError> {
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
    Ok(created <= 1 && matches!(again, Err(StoreError::AlreadyExists { .. })))
}

/// Whether an object is replaced by whoever knows its content, and by nobody else. Leaves as much behind.
pub async fn replaces_what_it_saw(store: &SharedStore, prefix: &str) -> Result<bool, StoreError> {
    let key = format!("{prefix}/probes/{}", uuid::Uuid::new_v4());
    let text = |text: &'static str| Bytes::from_static(text.as_bytes());
    let first = store.put(&key, text("first"), Put::IfAbsent).await?;
    let honoured = async {
        let second = match store.put(&key, text("second"), Put::IfMatch(first.clone())).await {
            Err(StoreError::Precondition { .. }) => return Ok(false),
            second => second?,
        };
        let late = store.put(&key, text("late"), Put::IfMatch(first.clone())).await;
        let (now, version) = store.get(&key).await?;
        Ok(matches!(late, Err(StoreError::Precondition { .. })) && now == "second" && version == second)
    };
    let honoured = honoured.await;
    let _ = store.delete(&key).await;
    honoured
}
