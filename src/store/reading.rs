//! A large object read to its end although its connection may break: a reader that is slower than the store for minutes,
//! as a replaying server is, will see that.

use std::time::Duration;

use anyhow::Context;
use bytes::BytesMut;
use tokio::{io::AsyncReadExt, time::sleep};
use tracing::debug;

use crate::support::retry::Backoff;

use super::{ObjectReader, SharedStore};

/// Attempts in a row that bring no byte.
const FRUITLESS_MAX: u32 = 6;
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// An object, from its first byte on.
pub struct Reading {
    store: SharedStore,
    key: String,
    position: u64,
    /// None where it broke.
    reader: Option<ObjectReader>,
}

impl Reading {
    /// # Errors
    /// As [`super::Store::read`]: an object that is not there is known at once.
    pub async fn open(store: &SharedStore, key: &str) -> anyhow::Result<Reading> {
        let reader = store.read(key, 0).await?;
        Ok(Reading {
            store: store.clone(),
            key: key.to_owned(),
            position: 0,
            reader: Some(reader),
        })
    }

    /// Appends what comes next to `buffer`, as far as that has room; 0 at the object's end.
    ///
    /// # Errors
    /// A [`super::StoreError`] is among the causes where the store was away to the last, and none where it had the object, and no more bytes of it.
    pub async fn read(&mut self, buffer: &mut BytesMut) -> anyhow::Result<usize> {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut fruitless = 0;
        loop {
            let error = match &mut self.reader {
                Some(reader) => match reader.read_buf(buffer).await {
                    Ok(read) => {
                        self.position += read as u64;
                        return Ok(read);
                    }
                    Err(e) => {
                        self.reader = None;
                        anyhow::Error::from(e)
                    }
                },
                None => match self.store.read(&self.key, self.position).await {
                    Ok(reader) => {
                        self.reader = Some(reader);
                        continue;
                    }
                    Err(e) if e.is_transient() => e.into(),
                    Err(e) => return Err(e.into()),
                },
            };
            fruitless += 1;
            if fruitless == FRUITLESS_MAX {
                return Err(error).with_context(|| {
                    format!(
                        "object {}/{} cannot be read on from byte {}",
                        self.store.url(),
                        self.key,
                        self.position
                    )
                });
            }
            debug!(key = self.key, position = self.position, "reading on after: {error:#}");
            sleep(backoff.step()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
    };

    use async_trait::async_trait;
    use bytes::Bytes;
    use tokio::io::AsyncRead;

    use crate::store::{ObjectMeta, Put, Store, StoreError, Upload, Version};

    use super::*;

    /// Breaks every connection after a few bytes, and refuses some, by their number.
    #[derive(Debug)]
    struct Brittle {
        object: &'static [u8],
        gives_bytes: usize,
        refuses: fn(u32) -> bool,
        reads: AtomicU32,
    }

    impl Brittle {
        fn failure(&self) -> StoreError {
            StoreError::Failed {
                url: "x://".into(),
                operation: "read k".into(),
                source: Box::new(io::Error::other("cut")),
            }
        }
    }

    #[async_trait]
    impl Store for Brittle {
        fn url(&self) -> &str {
            "x://"
        }

        async fn put(&self, _: &str, _: Bytes, _: Put) -> Result<Version, StoreError> {
            Err(self.failure())
        }

        async fn upload(&self, _: &str) -> Result<Box<dyn Upload>, StoreError> {
            Err(self.failure())
        }

        async fn get(&self, _: &str) -> Result<(Bytes, Version), StoreError> {
            Err(self.failure())
        }

        async fn read(&self, _: &str, from: u64) -> Result<ObjectReader, StoreError> {
            if (self.refuses)(self.reads.fetch_add(1, Ordering::Relaxed)) {
                return Err(self.failure());
            }
            let rest = &self.object[from as usize..];
            let is_end = rest.len() < self.gives_bytes;
            let cut: Box<dyn AsyncRead + Send + Unpin> = if is_end { Box::new(tokio::io::empty()) } else { Box::new(Cut) };
            Ok(Box::new(AsyncReadExt::chain(&rest[..rest.len().min(self.gives_bytes)], cut)))
        }

        async fn list(&self, _: &str, _: Option<&str>) -> Result<Vec<ObjectMeta>, StoreError> {
            Err(self.failure())
        }

        async fn delete(&self, _: &str) -> Result<(), StoreError> {
            Err(self.failure())
        }
    }

    struct Cut;

    impl AsyncRead for Cut {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
    }

    async fn read_all(gives_bytes: usize, refuses: fn(u32) -> bool) -> anyhow::Result<BytesMut> {
        let store: SharedStore = Arc::new(Brittle {
            object: b"abcdefgh",
            gives_bytes,
            refuses,
            reads: AtomicU32::new(0),
        });
        let mut reading = Reading::open(&store, "k").await?;
        let mut all = BytesMut::new();
        loop {
            all.reserve(16);
            if reading.read(&mut all).await? == 0 {
                return Ok(all);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn goes_on_where_the_connection_broke() {
        let every_second = |number| number % 2 == 1;
        assert_eq!(&read_all(3, every_second).await.unwrap()[..], b"abcdefgh");
    }

    /// Else an outage would be taken for damage.
    #[tokio::test(start_paused = true)]
    async fn tells_a_store_that_is_away_from_an_object_that_cannot_be_read() {
        let is_stores = |e: &anyhow::Error| e.chain().any(|cause| cause.is::<StoreError>());
        let away = read_all(3, |number| number > 0).await.unwrap_err();
        assert!(is_stores(&away) && format!("{away:#}").contains("from byte 3"), "{away:#}");
        let unreadable = read_all(0, |_| false).await.unwrap_err();
        assert!(!is_stores(&unreadable), "{unreadable:#}");
    }
}
