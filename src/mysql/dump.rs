//! A server's binlogs as a stream: COM_BINLOG_DUMP_GTID with a name and a 64-bit position, everything that no file holds
//! left out.
//!
//! The stream never registers as a replica, so that nothing takes it for one, and every one has a server_id and a replica
//! uuid of its own: a second dump under the same identity would end the first.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rand::Rng;
use uuid::Uuid;

use crate::binlog::{
    event::{CHECKSUM_BYTES, FormatDescription, HEADER_BYTES, Header, MAGIC, kind, parse_rotate},
    gtid::GtidSet,
};

use super::{
    endpoint::Endpoint,
    login::{connect, fail_if_error},
    wire::{Part, Wire, WireError},
};

/// A source that has nothing to send says so this often.
const HEARTBEAT_PERIOD: Duration = Duration::from_secs(5);
/// Three heartbeats missed: the connection is dead.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Artificial events and answers to SET.
const SMALL_PACKET_BYTES_MAX: usize = 64 * 1024;
/// Server ids that people configure are small; ours lie in the upper half.
const SERVER_ID_MIN: u32 = 1 << 31;
const COM_QUERY: u8 = 0x03;
const COM_BINLOG_DUMP_GTID: u8 = 0x1e;
const STATUS_EOF: u8 = 0xfe;

/// Whether the stream waits for more at the end of the newest binlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtEnd {
    Wait,
    Stop,
}

/// What the stream holds, in order.
#[derive(Debug)]
pub enum DumpItem {
    /// What follows is in this binlog, from this position on.
    Binlog { name: String, position: u64 },
    /// How the binlog's events are written; only where the stream begins past the binlog's own Format_description.
    Format(FormatDescription),
    /// Bytes of the file, events only (the magic bytes are never sent). `first`: an event begins here.
    Bytes { bytes: Bytes, first: bool },
    /// The source has nothing new.
    Heartbeat,
    /// The end, where the stream does not wait.
    End,
}

pub struct Dump {
    wire: Wire,
    /// Where the binlog that is being sent was entered.
    position: u64,
    skipping: bool,
    /// An event that no file holds, as far as it has arrived.
    made_up: Option<(Header, BytesMut)>,
}

impl Dump {
    /// Streams from `name` at `position` (4 or an event's start) on.
    ///
    /// # Errors
    /// [`WireError::Server`] with code 1236 comes from [`Dump::next`]: the server refuses only when it begins to read.
    pub async fn open(endpoint: &Endpoint, name: &str, position: u64, at_end: AtEnd) -> Result<Dump, WireError> {
        let mut wire = connect(endpoint).await?;
        wire.set_timeout(SILENCE_MAX);
        let uuid = Uuid::new_v4();
        let heartbeat_ns = HEARTBEAT_PERIOD.as_nanos();
        // Both spellings: 8.0 knows the old names only. CRC32 says that we can; files without checksums come without.
        for set in [
            format!("SET @source_heartbeat_period={heartbeat_ns}, @master_heartbeat_period={heartbeat_ns}"),
            "SET @source_binlog_checksum='CRC32', @master_binlog_checksum='CRC32'".to_owned(),
            format!("SET @replica_uuid='{uuid}', @slave_uuid='{uuid}'"),
        ] {
            command(&mut wire, COM_QUERY, set.as_bytes()).await?;
            fail_if_error(&wire.read(SMALL_PACKET_BYTES_MAX).await?)?;
        }
        let server_id = rand::rng().random_range(SERVER_ID_MIN..u32::MAX);
        command(
            &mut wire,
            COM_BINLOG_DUMP_GTID,
            &dump_request(name, position, server_id, at_end),
        )
        .await?;
        Ok(Dump {
            wire,
            position,
            skipping: false,
            made_up: None,
        })
    }

    /// The next item; `Bytes` in parts as they arrive. Nothing is lost where the future is dropped before it is ready.
    pub async fn next(&mut self) -> Result<DumpItem, WireError> {
        loop {
            let Part { mut bytes, first, last } = self.wire.read_part().await?;
            if first {
                fail_if_error(&bytes)?;
                if bytes.first() == Some(&STATUS_EOF) {
                    return Ok(DumpItem::End);
                }
                if bytes.is_empty() {
                    return Err(WireError::Protocol("an empty packet in the binlog stream".into()));
                }
                bytes.advance(1);
                let header =
                    Header::parse(&bytes).ok_or_else(|| WireError::Protocol("a short event in the binlog stream".into()))?;
                self.skipping = header.is_heartbeat();
                if self.skipping {
                    return Ok(DumpItem::Heartbeat);
                }
                // Only at the file's own beginning is a Format_description the file's; elsewhere it is made up for us.
                let is_made_up = header.kind == kind::FORMAT_DESCRIPTION && self.position > MAGIC.len() as u64;
                if !header.is_artificial() && !is_made_up {
                    return Ok(DumpItem::Bytes { bytes, first });
                }
                self.made_up = Some((header, BytesMut::new()));
            }
            match &mut self.made_up {
                None if self.skipping => {}
                None => return Ok(DumpItem::Bytes { bytes, first }),
                Some((_, event)) if event.len() + bytes.len() > SMALL_PACKET_BYTES_MAX => {
                    return Err(WireError::Protocol("an artificial event of unreasonable size".into()));
                }
                Some((_, event)) => event.extend_from_slice(&bytes),
            }
            if last && let Some((header, event)) = self.made_up.take() {
                match header.kind {
                    kind::ROTATE => {
                        let (position, name) = parse_artificial_rotate(&event)?;
                        self.position = position;
                        return Ok(DumpItem::Binlog { name, position });
                    }
                    kind::FORMAT_DESCRIPTION => {
                        let format =
                            FormatDescription::parse(&event[HEADER_BYTES..]).map_err(|e| WireError::Protocol(e.to_string()))?;
                        return Ok(DumpItem::Format(format));
                    }
                    _ => {}
                }
            }
        }
    }
}

async fn command(wire: &mut Wire, code: u8, argument: &[u8]) -> Result<(), WireError> {
    wire.begin_command();
    wire.write(&[&[code], argument].concat()).await?;
    wire.flush().await
}

fn dump_request(name: &str, position: u64, server_id: u32, at_end: AtEnd) -> Vec<u8> {
    const NON_BLOCKING: u16 = 0x01;
    const THROUGH_GTID: u16 = 0x04;
    let flags = THROUGH_GTID | if at_end == AtEnd::Stop { NON_BLOCKING } else { 0 };
    // No GTID is excluded: a name that is given decides alone where the stream begins.
    let gtids = GtidSet::new().encode();
    let mut out = Vec::new();
    out.extend_from_slice(&flags.to_le_bytes());
    out.extend_from_slice(&server_id.to_le_bytes());
    out.extend_from_slice(&(name.len() as u32).to_le_bytes());
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(&position.to_le_bytes());
    out.extend_from_slice(&(gtids.len() as u32).to_le_bytes());
    out.extend_from_slice(&gtids);
    out
}

/// An artificial Rotate ends with a checksum or does not, as was agreed; a binlog's name holds no such bytes.
fn parse_artificial_rotate(event: &[u8]) -> Result<(u64, String), WireError> {
    let with_checksum = crate::binlog::splitter::checksum_is_right(event);
    let end = event.len() - if with_checksum { CHECKSUM_BYTES } else { 0 };
    parse_rotate(event.get(HEADER_BYTES..end).unwrap_or_default()).map_err(|e| WireError::Protocol(e.to_string()))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncWriteExt, duplex},
        time::timeout,
    };

    use super::*;

    /// A packet that arrived in two parts lost its first one where the reader was called away in between: a Rotate was
    /// overlooked then, and the next binlog's bytes were taken for this one's.
    #[tokio::test]
    async fn i4_a_rotation_is_not_lost_when_the_reader_is_called_away() {
        let (mut far, near) = duplex(1024);
        let mut dump = Dump {
            wire: Wire::new(Box::new(near), SILENCE_MAX),
            position: 1000,
            skipping: false,
            made_up: None,
        };
        let mut event = vec![0, 0, 0, 0, 0, kind::ROTATE, 1, 0, 0, 0, 44, 0, 0, 0, 0, 0, 0, 0, 0x20, 0];
        event.extend_from_slice(&4u64.to_le_bytes());
        event.extend_from_slice(b"binlog.000002");
        let packet = [&[event.len() as u8, 0, 0, 1][..], &event].concat();
        let (sooner, later) = packet.split_at(30);
        far.write_all(sooner).await.unwrap();
        assert!(timeout(Duration::from_millis(50), dump.next()).await.is_err());
        far.write_all(later).await.unwrap();
        match dump.next().await.unwrap() {
            DumpItem::Binlog { name, position } => assert_eq!((name.as_str(), position), ("binlog.000002", 4)),
            other => panic!("{other:?}"),
        }
    }
}
