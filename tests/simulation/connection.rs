//! How an agent reaches the server: queries that take a moment, and streams that break at any byte or fall silent.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use mysql_pitr::{
    binlog::event::{FormatDescription, HEADER_BYTES, MAGIC},
    mysql::{
        dump::{AtEnd, DumpItem},
        server::{BinlogStream, Server, ServerState},
        wire::WireError,
    },
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::time::{Instant, sleep, timeout};

use super::server::{FakeServer, State, StreamInfo};
use crate::support::binlog_writer::SERVER_VERSION;

const HEARTBEAT_PERIOD: Duration = Duration::from_secs(5);
/// As a real stream's: three heartbeats.
const SILENCE_MAX: Duration = Duration::from_secs(15);
const READ_ERROR: u16 = 1236;
/// Handed on at a time, at most.
const PART_BYTES: usize = 256 * 1024;

/// What one agent has to do with the server.
#[derive(Debug, Clone)]
pub struct Link {
    pub server: Arc<FakeServer>,
    shared: Arc<Shared>,
    dead: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Shared {
    random: Mutex<SmallRng>,
    /// Of 1000 reads.
    breaks: AtomicU32,
}

impl Link {
    pub fn new(server: Arc<FakeServer>, seed: u64) -> Link {
        let shared = Shared {
            random: Mutex::new(SmallRng::seed_from_u64(seed)),
            breaks: AtomicU32::new(0),
        };
        Link {
            server,
            shared: Arc::new(shared),
            dead: Arc::default(),
        }
    }

    /// The same network, for another process.
    pub fn another(&self) -> Link {
        Link {
            dead: Arc::default(),
            ..self.clone()
        }
    }

    pub fn kill(&self) {
        self.dead.store(true, Ordering::Relaxed);
        let is_alive = |s: &mut StreamInfo| !s.is_dead.load(Ordering::Relaxed);
        self.server.state().streams.retain(|_, s| is_alive(s));
    }

    pub fn set_breaks(&self, per_1000: u32) {
        self.shared.breaks.store(per_1000, Ordering::Relaxed);
    }

    fn roll(&self, range: std::ops::Range<u64>) -> u64 {
        self.shared.random.lock().unwrap().random_range(range)
    }

    fn breaks(&self) -> bool {
        self.roll(0..1000) < u64::from(self.shared.breaks.load(Ordering::Relaxed))
    }

    async fn pause(&self, ms_max: u64) {
        if self.dead.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        sleep(Duration::from_millis(self.roll(0..ms_max + 1))).await;
    }
}

fn broken() -> WireError {
    WireError::Io(io::ErrorKind::ConnectionReset.into())
}

#[async_trait]
impl Server for Link {
    async fn look(&self) -> anyhow::Result<ServerState> {
        self.pause(3).await;
        anyhow::ensure!(self.server.state().is_up && !self.breaks(), "cannot connect to the server");
        let life = self.server.state().life;
        let gtid_purged = self.server.state().purged();
        self.pause(3).await;
        let binlogs = self.server.state().binlogs();
        self.pause(3).await;
        let state = self.server.state();
        anyhow::ensure!(state.life == life && !self.breaks(), "lost the connection to the server");
        anyhow::ensure!(state.purged() == gtid_purged, "gtid_purged changed");
        Ok(ServerState {
            server_uuid: state.uuid,
            datadir: PathBuf::from("/nonexistent"),
            gtid_purged,
            binlogs,
            gtid_executed: state.executed.clone(),
        })
    }

    async fn dump(&self, name: &str, position: u64, at_end: AtEnd) -> Result<Box<dyn BinlogStream>, WireError> {
        self.pause(3).await;
        let mut state = self.server.state();
        if !state.is_up || self.breaks() {
            return Err(broken());
        }
        state.next_stream += 1;
        let mut stream = Stream {
            link: self.clone(),
            id: state.next_stream,
            life: state.life,
            inode: usize::MAX,
            position: position as usize,
            at_end,
            queued: Vec::new(),
            event_left: 0,
            refused: None,
            is_silent: false,
        };
        match state.find(name) {
            None => stream.refused = Some("Could not find first log file name in binary log index file"),
            Some(inode) if state.inodes[inode].bytes < position as usize => {
                stream.refused = Some("Client requested source to start replication from position > file size");
            }
            // The source finds out only while it reads.
            Some(inode) if !state.is_boundary(inode, position as usize) && self.roll(0..2) == 0 => {
                stream.refused = Some("bogus data in log event");
            }
            Some(inode) => {
                stream.inode = inode;
                if !state.is_boundary(inode, position as usize) {
                    let garbage = stream.garbage(&state);
                    stream.queued.push(garbage);
                }
                if position > MAGIC.len() as u64 {
                    stream.queued.push(DumpItem::Format(FormatDescription {
                        server_version: SERVER_VERSION.to_owned(),
                        checksum: true,
                    }));
                }
                stream.queued.push(DumpItem::Binlog {
                    name: name.to_owned(),
                    position,
                });
                let info = StreamInfo {
                    inode,
                    is_dead: self.dead.clone(),
                    is_reading: false,
                    read_at: Instant::now(),
                };
                state.streams.insert(stream.id, info);
            }
        }
        Ok(Box::new(stream))
    }
}

struct Stream {
    link: Link,
    id: u64,
    life: u32,
    inode: usize,
    position: usize,
    at_end: AtEnd,
    /// The last one comes first.
    queued: Vec<DumpItem>,
    event_left: usize,
    refused: Option<&'static str>,
    /// The network swallows everything from here on.
    is_silent: bool,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.link.server.state().streams.remove(&self.id);
    }
}

/// Seen by the server while a stream is read.
struct IsReading<'s>(&'s FakeServer, u64);

impl Drop for IsReading<'_> {
    fn drop(&mut self) {
        if let Some(info) = self.0.state().streams.get_mut(&self.1) {
            (info.is_reading, info.read_at) = (false, Instant::now());
        }
    }
}

#[async_trait]
impl BinlogStream for Stream {
    async fn next(&mut self) -> Result<DumpItem, WireError> {
        let server = self.link.server.clone();
        if let Some(info) = server.state().streams.get_mut(&self.id) {
            (info.is_reading, info.inode) = (true, self.inode);
        }
        let _is_reading = IsReading(&server, self.id);
        if let Some(message) = self.refused {
            return Err(WireError::Server {
                code: READ_ERROR,
                message: message.to_owned(),
            });
        }
        let mut changed = server.changed.subscribe();
        loop {
            if self.link.dead.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            if self.is_silent {
                sleep(SILENCE_MAX).await;
                return Err(WireError::Timeout(SILENCE_MAX));
            }
            if server.state().life != self.life {
                return Err(broken());
            }
            if let Some(item) = self.queued.pop() {
                return Ok(item);
            }
            if self.link.breaks() {
                self.is_silent = self.link.roll(0..3) == 0;
                tracing::info!(target: "sim", "network: stream {} {}", self.id, if self.is_silent { "is silent" } else { "breaks" });
                if self.is_silent {
                    continue;
                }
                return Err(broken());
            }
            if let Some(item) = self.part() {
                return Ok(item);
            }
            let next = server.state().inodes[self.inode].next;
            match next {
                Some(next) => {
                    // Only what goes on after this file was closed is its end.
                    let name = server.state().inodes[next].name.clone();
                    (self.inode, self.position) = (next, MAGIC.len());
                    return Ok(DumpItem::Binlog {
                        name,
                        position: MAGIC.len() as u64,
                    });
                }
                None if self.at_end == AtEnd::Stop => return Ok(DumpItem::End),
                None if timeout(HEARTBEAT_PERIOD, changed.changed()).await.is_err() => return Ok(DumpItem::Heartbeat),
                None => {}
            }
        }
    }
}

impl Stream {
    /// What a source reads where no event begins: it sends as much as what lies there claims as a length, as far as the file goes.
    fn garbage(&mut self, state: &State) -> DumpItem {
        let file = &state.inodes[self.inode];
        let left = &file.ever[self.position..file.bytes];
        let claims = left
            .get(9..13)
            .map_or(0, |len| u32::from_le_bytes(len.try_into().unwrap()) as usize);
        let bytes = Bytes::copy_from_slice(&left[..claims.clamp(HEADER_BYTES, left.len().max(HEADER_BYTES)).min(left.len())]);
        self.position = file.bytes;
        DumpItem::Bytes { bytes, first: true }
    }

    /// Some bytes of the next event, or of the one that was begun.
    fn part(&mut self) -> Option<DumpItem> {
        let server = self.link.server.clone();
        let state = server.state();
        let first = self.event_left == 0;
        if first {
            self.event_left = state.event_end(self.inode, self.position)? - self.position;
        }
        let least = if first { HEADER_BYTES } else { 1 };
        let mut bytes = self.event_left.min(PART_BYTES);
        if self.link.roll(0..16) == 0 {
            bytes = bytes.min(self.link.roll(least as u64..PART_BYTES as u64) as usize);
        }
        let from = self.position;
        self.position += bytes;
        self.event_left -= bytes;
        let bytes = Bytes::copy_from_slice(&state.inodes[self.inode].ever[from..self.position]);
        Some(DumpItem::Bytes { bytes, first })
    }
}
