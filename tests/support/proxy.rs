//! What stands between the agent and its store, and can fall silent.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// Hands bytes on, both ways. Dropped, it takes no more connections.
pub struct Proxy {
    /// Its URL.
    pub endpoint: String,
    hangs: watch::Sender<bool>,
}

impl Proxy {
    /// To `upstream`, a URL.
    pub async fn start(upstream: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let upstream = upstream.strip_prefix("http://").unwrap().to_owned();
        let (hangs, hanging) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(&upstream).await else {
                    continue;
                };
                let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                tokio::spawn(pump(near_read, far_write, hanging.clone()));
                tokio::spawn(pump(far_read, near_write, hanging.clone()));
            }
        });
        Proxy { endpoint, hangs }
    }

    /// Connections stay, and nothing comes back; until it is told otherwise.
    pub fn hang(&self, hangs: bool) {
        self.hangs.send_replace(hangs);
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut hanging: watch::Receiver<bool>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read) = from.read(&mut buffer).await {
        let flows = hanging.wait_for(|hangs| !hangs).await.is_ok();
        if read == 0 || !flows || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
