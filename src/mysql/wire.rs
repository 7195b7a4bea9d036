//! The protocol's framing: packets of at most 16 MiB - 1 behind four bytes of length and sequence number. Larger payloads
//! are split over several packets, and are handed on here part by part, never held whole.

use std::{io, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

/// A packet this long is followed by another one of the same payload.
pub const PACKET_BYTES_MAX: usize = 0xff_ffff;
const FRAME_BYTES: usize = 4;
/// Read from the socket at a time; also what a connection holds at most while it streams.
const READ_BYTES: usize = 256 * 1024;
/// Every first part of a payload holds at least this much of it, if the payload does: a status byte and an event header.
pub const FIRST_PART_BYTES_MIN: usize = 1 + crate::binlog::event::HEADER_BYTES;
/// Written to the socket at a time.
const WRITE_BYTES: usize = 256 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("the other side does not speak MySQL's protocol as expected: {0}")]
    Protocol(String),
    #[error("{message} (error {code})")]
    Server { code: u16, message: String },
}

/// What can carry packets.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// A part of a payload.
#[derive(Debug)]
pub struct Part {
    pub bytes: Bytes,
    pub first: bool,
    pub last: bool,
}

/// A connection, seen as packets.
pub struct Wire {
    transport: Box<dyn Transport>,
    sequence: u8,
    inbox: BytesMut,
    outbox: BytesMut,
    /// Left of the packet that is being read, and whether its payload goes on in the next one.
    packet_left: usize,
    continues: bool,
    in_payload: bool,
    timeout: Duration,
}

impl Wire {
    /// `timeout`: the longest silence of the other side, and the longest wait for it to take bytes.
    pub fn new(transport: Box<dyn Transport>, timeout: Duration) -> Wire {
        Wire {
            transport,
            sequence: 0,
            inbox: BytesMut::new(),
            outbox: BytesMut::new(),
            packet_left: 0,
            continues: false,
            in_payload: false,
            timeout,
        }
    }

    /// Numbers packets from 0 again, as every command does.
    pub fn begin_command(&mut self) {
        self.sequence = 0;
    }

    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Wraps the transport, as TLS does in the middle of the handshake. Nothing may be buffered.
    pub async fn upgrade<F, Fut>(self, wrap: F) -> Result<Wire, WireError>
    where
        F: FnOnce(Box<dyn Transport>) -> Fut,
        Fut: Future<Output = io::Result<Box<dyn Transport>>>,
    {
        if !self.inbox.is_empty() {
            return Err(WireError::Protocol("data before the TLS handshake".into()));
        }
        let (sequence, limit) = (self.sequence, self.timeout);
        let transport = timeout(limit, wrap(self.transport))
            .await
            .map_err(|_| WireError::Timeout(limit))??;
        Ok(Wire {
            sequence,
            ..Wire::new(transport, limit)
        })
    }

    /// A whole payload of at most `bytes_max`.
    pub async fn read(&mut self, bytes_max: usize) -> Result<Bytes, WireError> {
        let mut whole = BytesMut::new();
        loop {
            let part = self.read_part().await?;
            if whole.len() + part.bytes.len() > bytes_max {
                return Err(WireError::Protocol(format!("a packet of more than {bytes_max} bytes")));
            }
            if part.first && part.last {
                return Ok(part.bytes);
            }
            whole.extend_from_slice(&part.bytes);
            if part.last {
                return Ok(whole.freeze());
            }
        }
    }

    /// The next part of a payload, as much as has arrived.
    pub async fn read_part(&mut self) -> Result<Part, WireError> {
        let first = !self.in_payload;
        if self.packet_left == 0 {
            self.fill(FRAME_BYTES).await?;
            let frame = self.inbox.get_uint_le(3) as usize;
            self.sequence = self.inbox.get_u8().wrapping_add(1);
            self.packet_left = frame;
            self.continues = frame == PACKET_BYTES_MAX;
        }
        let least = if first {
            FIRST_PART_BYTES_MIN.min(self.packet_left)
        } else {
            self.packet_left.min(1)
        };
        self.fill(least).await?;
        let bytes = self.inbox.split_to(self.packet_left.min(self.inbox.len())).freeze();
        self.packet_left -= bytes.len();
        let last = self.packet_left == 0 && !self.continues;
        self.in_payload = !last;
        Ok(Part { bytes, first, last })
    }

    async fn fill(&mut self, least: usize) -> Result<(), WireError> {
        while self.inbox.len() < least {
            self.inbox.reserve(READ_BYTES);
            let read = timeout(self.timeout, self.transport.read_buf(&mut self.inbox));
            if read.await.map_err(|_| WireError::Timeout(self.timeout))?? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        Ok(())
    }

    /// Queues one payload; it leaves with [`Wire::flush`], or when enough has gathered.
    pub async fn write(&mut self, payload: &[u8]) -> Result<(), WireError> {
        self.write_part(&mut Framer::new(payload.len() as u64), payload).await
    }

    /// Queues a part of the payload that `framer` frames, and sends what has gathered.
    pub async fn write_part(&mut self, framer: &mut Framer, bytes: &[u8]) -> Result<(), WireError> {
        self.queue_part(framer, bytes);
        self.flush_if_full().await
    }

    /// Queues a part of the payload that `framer` frames; the caller sees to flushing.
    pub fn queue_part(&mut self, framer: &mut Framer, mut bytes: &[u8]) {
        loop {
            if framer.packet_left == 0 {
                if framer.last_begun {
                    break;
                }
                let len = framer.payload_left.min(PACKET_BYTES_MAX as u64) as usize;
                self.outbox.extend_from_slice(&(len as u32).to_le_bytes()[..3]);
                self.outbox.extend_from_slice(&[self.sequence]);
                self.sequence = self.sequence.wrapping_add(1);
                framer.payload_left -= len as u64;
                framer.packet_left = len;
                // A payload that fills its last packet is followed by an empty one.
                framer.last_begun = len < PACKET_BYTES_MAX;
            }
            let (now, later) = bytes.split_at(framer.packet_left.min(bytes.len()));
            self.outbox.extend_from_slice(now);
            bytes = later;
            framer.packet_left -= now.len();
            if framer.packet_left > 0 {
                break;
            }
        }
        debug_assert!(bytes.is_empty(), "more bytes than the payload was said to have");
    }

    /// Sends what is queued, once it is worth a system call.
    pub async fn flush_if_full(&mut self) -> Result<(), WireError> {
        if self.outbox.len() >= WRITE_BYTES {
            self.flush().await
        } else {
            Ok(())
        }
    }

    pub async fn flush(&mut self) -> Result<(), WireError> {
        let write = async {
            self.transport.write_all(&self.outbox).await?;
            self.transport.flush().await
        };
        timeout(self.timeout, write)
            .await
            .map_err(|_| WireError::Timeout(self.timeout))??;
        self.outbox.clear();
        Ok(())
    }
}

/// Cuts one payload of known length into packets, while its bytes come part by part.
#[derive(Debug)]
pub struct Framer {
    /// Not yet assigned to a packet.
    payload_left: u64,
    packet_left: usize,
    last_begun: bool,
}

impl Framer {
    pub fn new(payload_bytes: u64) -> Framer {
        Framer {
            payload_left: payload_bytes,
            packet_left: 0,
            last_begun: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    async fn round_trip(len: usize, part: usize) {
        let (a, b) = tokio::io::duplex(64 * 1024);
        let (mut tx, mut rx) = (Wire::new(Box::new(a), PATIENCE), Wire::new(Box::new(b), PATIENCE));
        let payload: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let sent = payload.clone();
        let writer = tokio::spawn(async move {
            let mut framer = Framer::new(sent.len() as u64);
            if sent.is_empty() {
                tx.write_part(&mut framer, &[]).await.unwrap();
            }
            for chunk in sent.chunks(part) {
                tx.write_part(&mut framer, chunk).await.unwrap();
            }
            tx.write(b"end").await.unwrap();
            tx.flush().await.unwrap();
        });
        assert!(rx.read(len).await.unwrap() == payload, "{len} bytes in parts of {part}");
        assert_eq!(&rx.read(3).await.unwrap()[..], b"end");
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn payloads_of_every_critical_length_arrive() {
        for len in [
            0,
            1,
            255,
            70_000,
            PACKET_BYTES_MAX - 1,
            PACKET_BYTES_MAX,
            PACKET_BYTES_MAX + 1,
            2 * PACKET_BYTES_MAX,
        ] {
            round_trip(len, 1_000_003).await;
        }
        round_trip(1000, 1).await;
    }

    #[tokio::test]
    async fn an_oversized_packet_is_refused() {
        let (a, b) = tokio::io::duplex(1024);
        let (mut tx, mut rx) = (Wire::new(Box::new(a), PATIENCE), Wire::new(Box::new(b), PATIENCE));
        tx.write(&[0; 100]).await.unwrap();
        tx.flush().await.unwrap();
        assert!(matches!(rx.read(99).await, Err(WireError::Protocol(_))));
    }
}
