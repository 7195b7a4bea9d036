//! What this project reads out of single events. Bodies are never written again: the archive holds mysqld's own bytes.

use std::ops::Range;

use uuid::Uuid;

use super::{
    gtid::{Gtid, GtidSet, Tag},
    gtid_text::GNO_MAX,
};

/// The four bytes before the first event of every binlog.
pub const MAGIC: [u8; 4] = [0xfe, b'b', b'i', b'n'];
pub const HEADER_BYTES: usize = 19;
pub const CHECKSUM_BYTES: usize = 4;

/// Event types that something here depends on; the others pass through by their number.
pub mod kind {
    pub const QUERY: u8 = 2;
    pub const STOP: u8 = 3;
    pub const ROTATE: u8 = 4;
    pub const FORMAT_DESCRIPTION: u8 = 15;
    pub const XID: u8 = 16;
    pub const TABLE_MAP: u8 = 19;
    pub const HEARTBEAT: u8 = 27;
    pub const ROWS_QUERY: u8 = 29;
    pub const WRITE_ROWS: u8 = 30;
    pub const UPDATE_ROWS: u8 = 31;
    pub const DELETE_ROWS: u8 = 32;
    pub const GTID: u8 = 33;
    pub const ANONYMOUS_GTID: u8 = 34;
    pub const PREVIOUS_GTIDS: u8 = 35;
    pub const XA_PREPARE: u8 = 38;
    pub const PARTIAL_UPDATE_ROWS: u8 = 39;
    pub const TRANSACTION_PAYLOAD: u8 = 40;
    pub const HEARTBEAT_V2: u8 = 41;
    pub const GTID_TAGGED: u8 = 42;
}

/// In the header's flags: an event that no file holds, sent by a source after COM_BINLOG_DUMP.
pub const FLAG_ARTIFICIAL: u16 = 0x20;

/// An event whose bytes do not mean what its type says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    #[error("an event of type {kind} is malformed")]
    Malformed { kind: u8 },
    #[error("the binlog has no checksum algorithm that is known (algorithm {0})")]
    UnknownChecksum(u8),
    #[error("a transaction has no GTID; gtid_mode must be ON")]
    Anonymous,
}

/// The first 19 bytes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Seconds since the epoch: the *statement's start*, or what a session set it to. Never used as a time here.
    pub timestamp_s: u32,
    pub kind: u8,
    pub server_id: u32,
    /// The whole event, header and checksum included.
    pub len: u32,
    /// Where the event ends in its file, modulo 2^32.
    pub log_pos: u32,
    pub flags: u16,
}

impl Header {
    /// None where the bytes are fewer than 19 or name a length below that.
    pub fn parse(bytes: &[u8]) -> Option<Header> {
        let mut c = Cursor::new(bytes);
        let header = Header {
            timestamp_s: c.u32()?,
            kind: c.u8()?,
            server_id: c.u32()?,
            len: c.u32()?,
            log_pos: c.u32()?,
            flags: c.u16()?,
        };
        (header.len as usize >= HEADER_BYTES).then_some(header)
    }

    pub fn starts_transaction(&self) -> bool {
        matches!(self.kind, kind::GTID | kind::GTID_TAGGED | kind::ANONYMOUS_GTID)
    }

    /// Whether the event stands between transactions and belongs to none.
    pub fn is_between_transactions(&self) -> bool {
        matches!(
            self.kind,
            kind::FORMAT_DESCRIPTION | kind::PREVIOUS_GTIDS | kind::ROTATE | kind::STOP
        )
    }

    pub fn is_heartbeat(&self) -> bool {
        matches!(self.kind, kind::HEARTBEAT | kind::HEARTBEAT_V2)
    }

    pub fn is_artificial(&self) -> bool {
        self.flags & FLAG_ARTIFICIAL != 0
    }
}

/// What a Format_description event says of the events after it. The event itself always ends with a checksum field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatDescription {
    pub server_version: String,
    /// Whether events end with a CRC32.
    pub checksum: bool,
}

impl FormatDescription {
    /// `body`: the event after its header, the final checksum included.
    pub fn parse(body: &[u8]) -> Result<FormatDescription, EventError> {
        const VERSION_BYTES: usize = 50;
        const ALGORITHM_NONE: u8 = 0;
        const ALGORITHM_CRC32: u8 = 1;
        let malformed = EventError::Malformed {
            kind: kind::FORMAT_DESCRIPTION,
        };
        let mut c = Cursor::new(body);
        let version = c.u16().and_then(|_| c.bytes(VERSION_BYTES)).ok_or(malformed.clone())?;
        let end = version.iter().position(|b| *b == 0).unwrap_or(VERSION_BYTES);
        let algorithm = body
            .len()
            .checked_sub(CHECKSUM_BYTES + 1)
            .and_then(|at| body.get(at))
            .ok_or(malformed)?;
        let checksum = match *algorithm {
            ALGORITHM_NONE => false,
            ALGORITHM_CRC32 => true,
            other => return Err(EventError::UnknownChecksum(other)),
        };
        Ok(FormatDescription {
            server_version: String::from_utf8_lossy(&version[..end]).into_owned(),
            checksum,
        })
    }
}

/// What a GTID event says of the transaction that it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GtidEvent {
    pub gtid: Gtid,
    /// When this server committed it, µs since the epoch.
    pub immediate_commit_us: i64,
    /// When the server of origin committed it, µs since the epoch; a session may have set it to anything.
    pub original_commit_us: i64,
    /// All of the transaction's events, this one included, in bytes.
    pub transaction_bytes: u64,
    /// Where in the body that length is written.
    pub length_at: Range<usize>,
}

impl GtidEvent {
    /// `body`: the event after its header, without a checksum.
    pub fn parse(event_kind: u8, body: &[u8]) -> Result<GtidEvent, EventError> {
        let parsed = match event_kind {
            kind::GTID => parse_gtid(body),
            kind::GTID_TAGGED => parse_gtid_tagged(body),
            kind::ANONYMOUS_GTID => return Err(EventError::Anonymous),
            _ => None,
        };
        parsed
            .filter(|e| (1..=GNO_MAX).contains(&e.gtid.gno))
            .ok_or(EventError::Malformed { kind: event_kind })
    }
}

fn parse_gtid(body: &[u8]) -> Option<GtidEvent> {
    /// Microseconds take 7 bytes; the highest bit says that the original time follows.
    const HAS_ORIGINAL: u64 = 1 << 55;
    const LOGICAL_CLOCK_BYTES: usize = 1 + 8 + 8;
    let mut c = Cursor::new(body);
    c.u8()?;
    let uuid = Uuid::from_slice(c.bytes(16)?).ok()?;
    let gno = c.u64()?;
    c.bytes(LOGICAL_CLOCK_BYTES)?;
    let immediate = c.u56()?;
    let original = if immediate & HAS_ORIGINAL != 0 { c.u56()? } else { immediate };
    let at = body.len() - c.bytes.len();
    let transaction_bytes = c.lenenc()?;
    Some(GtidEvent {
        gtid: Gtid::new(uuid, Tag::NONE, gno),
        immediate_commit_us: (immediate & !HAS_ORIGINAL) as i64,
        original_commit_us: original as i64,
        transaction_bytes,
        length_at: at..body.len() - c.bytes.len(),
    })
}

/// The tagged event is a list of numbered fields with variable-length integers (MySQL's "serialization" library).
fn parse_gtid_tagged(body: &[u8]) -> Option<GtidEvent> {
    const VERSION: u64 = 1;
    let mut c = Cursor::new(body);
    if c.varlen()? != VERSION {
        return None;
    }
    c.varlen()?; // size
    c.varlen()?; // last field that may not be ignored
    let (mut uuid, mut gno, mut tag) = ([0u8; 16], 0, Tag::NONE);
    let (mut immediate, mut original, mut length) = (None, None, None);
    while !c.is_empty() {
        match c.varlen()? {
            0 => {
                c.varlen()?;
            }
            1 => {
                for byte in &mut uuid {
                    *byte = u8::try_from(c.varlen()?).ok()?;
                }
            }
            2 => gno = u64::try_from(c.varlen_signed()?).ok()?,
            3 => {
                let len = usize::try_from(c.varlen()?).ok()?;
                tag = Tag::new(std::str::from_utf8(c.bytes(len)?).ok()?).ok()?;
            }
            4 | 5 => {
                c.varlen()?;
            }
            6 => immediate = Some(c.varlen()?),
            7 => original = Some(c.varlen()?),
            8 => {
                let at = body.len() - c.bytes.len();
                length = Some((c.varlen()?, at..body.len() - c.bytes.len()));
            }
            // Versions and the commit group ticket; and whatever a later server adds.
            _ => break,
        }
    }
    let (transaction_bytes, length_at) = length?;
    Some(GtidEvent {
        gtid: Gtid::new(Uuid::from_bytes(uuid), tag, gno),
        immediate_commit_us: immediate? as i64,
        original_commit_us: original.or(immediate)? as i64,
        transaction_bytes,
        length_at,
    })
}

/// The set that a binlog's Previous_gtids event names. `body` without a checksum.
pub fn parse_previous_gtids(body: &[u8]) -> Result<GtidSet, EventError> {
    GtidSet::decode(body).map_err(|_| EventError::Malformed {
        kind: kind::PREVIOUS_GTIDS,
    })
}

/// Position and name of the binlog that a Rotate event leads to. `body` without a checksum.
pub fn parse_rotate(body: &[u8]) -> Result<(u64, String), EventError> {
    let malformed = EventError::Malformed { kind: kind::ROTATE };
    let mut c = Cursor::new(body);
    let position = c.u64().ok_or(malformed.clone())?;
    let name = std::str::from_utf8(c.rest()).map_err(|_| malformed)?;
    Ok((position, name.to_owned()))
}

/// Default schema and text of a statement. `body` without a checksum, perhaps cut short after the text's beginning.
pub fn parse_query(body: &[u8]) -> Result<(String, String), EventError> {
    let malformed = EventError::Malformed { kind: kind::QUERY };
    let mut c = Cursor::new(body);
    let parsed = (|| {
        c.bytes(4 + 4)?; // thread, seconds
        let schema_len = usize::from(c.u8()?);
        c.u16()?; // error code
        let status_len = usize::from(c.u16()?);
        c.bytes(status_len)?;
        let schema = c.bytes(schema_len)?;
        c.u8()?;
        Some((
            String::from_utf8_lossy(schema).into_owned(),
            String::from_utf8_lossy(c.rest()).into_owned(),
        ))
    })();
    parsed.ok_or(malformed)
}

/// Schema and table of a Table_map event. `body` perhaps cut short after the names.
pub fn parse_table_map(body: &[u8]) -> Result<(String, String), EventError> {
    let mut c = Cursor::new(body);
    let parsed = (|| {
        c.bytes(6 + 2)?; // table id, flags
        let mut name = || {
            let len = usize::try_from(c.lenenc()?).ok()?;
            let name = String::from_utf8_lossy(c.bytes(len)?).into_owned();
            c.u8()?;
            Some(name)
        };
        Some((name()?, name()?))
    })();
    parsed.ok_or(EventError::Malformed { kind: kind::TABLE_MAP })
}

/// Reads little-endian fields; None at the end of the bytes.
pub struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.bytes.split_at_checked(len)?;
        self.bytes = tail;
        Some(head)
    }

    fn uint(&mut self, len: usize) -> Option<u64> {
        let mut le = [0; 8];
        le[..len].copy_from_slice(self.bytes(len)?);
        Some(u64::from_le_bytes(le))
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.uint(1).map(|v| v as u8)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.uint(2).map(|v| v as u16)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.uint(4).map(|v| v as u32)
    }

    fn u56(&mut self) -> Option<u64> {
        self.uint(7)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.uint(8)
    }

    /// Up to a zero byte, which is taken too.
    pub fn until_zero(&mut self) -> Option<&'a [u8]> {
        let at = self.bytes.iter().position(|b| *b == 0)?;
        let head = self.bytes(at)?;
        self.u8()?;
        Some(head)
    }

    /// The protocol's length-encoded integer.
    pub fn lenenc(&mut self) -> Option<u64> {
        match self.u8()? {
            v @ 0..=0xfa => Some(u64::from(v)),
            0xfc => self.uint(2),
            0xfd => self.uint(3),
            0xfe => self.uint(8),
            _ => None,
        }
    }

    /// The serialization library's integer: as many bytes follow the first as that has trailing ones.
    pub fn varlen(&mut self) -> Option<u64> {
        let first = self.u8()?;
        let extra = first.trailing_ones() as usize;
        let more = self.uint(extra)?;
        Some(match extra {
            8 => more,
            _ => u64::from(first) >> (extra + 1) | more << (7 - extra),
        })
    }

    fn varlen_signed(&mut self) -> Option<i64> {
        let raw = self.varlen()?;
        let magnitude = (raw >> 1) as i64;
        Some(if raw & 1 == 0 { magnitude } else { !magnitude })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        text.as_bytes()
            .chunks(2)
            .map(|p| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap())
            .collect()
    }

    // Bodies recorded from a 9.7.4 server, checksums cut off.
    const PLAIN: &str =
        "00d00f02a4e59711f180da02fc00000001030000000000000002020000000000000003000000000000003e927df9c66006fc170150620100";
    const ORIGINAL: &str = "00d00f02a4e59711f180da02fc000000010400000000000000020200000000000000090000000000000098207ef9c6608640420f00000000fc150150620100";
    const TAGGED: &str =
        "02740000000241031e04910295035d0222c5030102690304f1030000000204040608626c756508080a100c7f57b57df9c660061041041283120b";

    #[test]
    fn reads_plain_gtid_events() {
        let e = GtidEvent::parse(kind::GTID, &hex(PLAIN)).unwrap();
        assert_eq!(e.gtid.to_string(), "d00f02a4-e597-11f1-80da-02fc00000001:3");
        assert_eq!(e.transaction_bytes, 829 - 550);
        assert_eq!(e.immediate_commit_us, e.original_commit_us);
    }

    #[test]
    fn reads_an_original_commit_time_that_a_session_set() {
        let e = GtidEvent::parse(kind::GTID, &hex(ORIGINAL)).unwrap();
        assert_eq!(e.original_commit_us, 1_000_000);
        assert!(e.immediate_commit_us > 1_700_000_000_000_000);
        assert_eq!(e.transaction_bytes, 2499 - 2222);
    }

    #[test]
    fn reads_tagged_gtid_events() {
        let e = GtidEvent::parse(kind::GTID_TAGGED, &hex(TAGGED)).unwrap();
        assert_eq!(e.gtid.to_string(), "d00f02a4-e597-11f1-80da-02fc00000001:blue:1");
        assert_eq!(e.transaction_bytes, 1101 - 829);
        assert_eq!(e.immediate_commit_us, e.original_commit_us);
    }

    proptest::proptest! {
        #[test]
        fn garbage_never_panics(body in proptest::collection::vec(proptest::num::u8::ANY, 0..120)) {
            for k in [kind::GTID, kind::GTID_TAGGED] {
                let _ = GtidEvent::parse(k, &body);
            }
            let _ = FormatDescription::parse(&body);
            let _ = parse_rotate(&body);
            let _ = parse_query(&body);
            let _ = parse_table_map(&body);
            let _ = Header::parse(&body);
        }
    }
}
