//! `/metrics`, `/healthz` and `/v1/status`, for the node itself unless the configuration says otherwise.
//!
//! Nothing is posted, nothing is changed, and no request reads a body. Whoever connects gets a few seconds: one answer per
//! connection, and no more connections at a time than answers cost next to nothing.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{
        HeaderName, HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE},
    },
    response::IntoResponse,
    routing::get,
    serve::Listener,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Sleep, sleep},
};
use tracing::{error, info, warn};

use super::monitor::Monitor;

/// From the connection to the end of the answer, however slowly the client talks.
const CONNECTION_LIFE: Duration = Duration::from_secs(10);
/// More wait in the kernel's queue until one of these has ended.
const CONNECTIONS_MAX: usize = 32;
/// After an accept that failed: out of file descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Answers at `address`. Where it cannot, it says so once, and the agent ships all the same.
pub async fn start(address: SocketAddr, monitor: Arc<Monitor>, tasks: &mut JoinSet<()>) {
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(e) => {
            error!(
                "cannot listen on {address}: {e}; there are no metrics and no status until the agent is started again, and shipping goes on: set [http] listen to a free address, or to \"off\""
            );
            return;
        }
    };
    let here = listener.local_addr().unwrap_or(address);
    if !here.ip().is_loopback() {
        warn!("status and metrics are told to whoever reaches {here}, without a password");
    }
    info!("status and metrics at http://{here}");
    let limited = Limited {
        listener,
        free: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
    };
    tasks.spawn(async move {
        // It returns only where it is told to stop.
        let _ = axum::serve(limited, router(monitor)).await;
    });
}

fn router(monitor: Arc<Monitor>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/v1/status", get(status))
        .with_state(monitor)
}

type Answer = (StatusCode, [(HeaderName, HeaderValue); 3], String);

/// Kept by nobody, and the connection with it.
fn answer(code: StatusCode, kind: &'static str, text: String) -> Answer {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(kind)),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (CONNECTION, HeaderValue::from_static("close")),
    ];
    (code, headers, text)
}

async fn metrics(State(monitor): State<Arc<Monitor>>) -> impl IntoResponse {
    answer(StatusCode::OK, crate::metrics::CONTENT_TYPE, monitor.metrics())
}

async fn healthz(State(monitor): State<Arc<Monitor>>) -> impl IntoResponse {
    let (code, text) = match monitor.document().unhealthy_because {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    };
    answer(code, "text/plain; charset=utf-8", text)
}

async fn status(State(monitor): State<Arc<Monitor>>) -> impl IntoResponse {
    match serde_json::to_string_pretty(&monitor.document()) {
        Ok(text) => answer(StatusCode::OK, "application/json", text + "\n"),
        Err(e) => answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", e.to_string()),
    }
}

/// A listener with a limit on its connections, in number and in time.
struct Limited {
    listener: TcpListener,
    free: Arc<Semaphore>,
}

impl Listener for Limited {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let permit = self.free.clone().acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let connection = Connection {
                        stream,
                        life: Box::pin(sleep(CONNECTION_LIFE)),
                        _permit: permit,
                    };
                    return (connection, peer);
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that fails once its time is over.
struct Connection {
    stream: TcpStream,
    life: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn within<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.life.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        poll(Pin::new(&mut self.stream), cx)
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.within(cx, |stream, cx| stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.within(cx, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.within(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.within(cx, |stream, cx| stream.poll_shutdown(cx))
    }
}
