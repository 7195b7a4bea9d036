//! A reader that fails when its store falls silent, and says which object it was reading.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Sleep, sleep},
};

/// Fails reads of `inner` that wait for longer than `patience`. The clock runs only while somebody waits for bytes.
pub(super) struct StallGuard<R> {
    inner: R,
    object: String,
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<R> StallGuard<R> {
    pub(super) fn new(inner: R, object: String, patience: Duration) -> Self {
        StallGuard {
            inner,
            object,
            patience,
            waiting: None,
        }
    }

    fn error(&self, kind: io::ErrorKind, source: Box<dyn std::error::Error + Send + Sync>) -> io::Error {
        io::Error::new(
            kind,
            ReadError {
                object: self.object.clone(),
                source,
            },
        )
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for StallGuard<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(read) = Pin::new(&mut self.inner).poll_read(cx, buf) {
            self.waiting = None;
            return Poll::Ready(read.map_err(|e| self.error(e.kind(), e.into())));
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        let silence = format!("no byte came for {} s", patience.as_secs());
        Poll::Ready(Err(self.error(io::ErrorKind::TimedOut, silence.into())))
    }
}

#[derive(Debug)]
struct ReadError {
    object: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reading {} failed", self.object)
    }
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn passes_bytes_on_and_fails_once_they_stop() {
        let (mut far, near) = duplex(16);
        let mut guarded = StallGuard::new(near, "s3://b/k".into(), Duration::from_millis(20));
        far.write_all(b"abc").await.unwrap();
        let mut got = [0; 3];
        guarded.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"abc");

        let error = guarded.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "reading s3://b/k failed");
        drop(far);
    }

    #[tokio::test]
    async fn an_end_is_no_stall() {
        let (far, near) = duplex(16);
        drop(far);
        let mut rest = Vec::new();
        let mut guarded = StallGuard::new(near, "s3://b/k".into(), Duration::from_secs(60));
        assert_eq!(guarded.read_to_end(&mut rest).await.unwrap(), 0);
    }
}
