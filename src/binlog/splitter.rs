//! A binlog's bytes, in whatever chunks they arrive, split event by event; every checksum is verified.
//!
//! Small events are handed on whole. Large ones (an event may reach 1 GiB) are handed on in pieces as they arrive, so that
//! their size never shows in memory; the piece that ends an event is handed on only after the event's checksum was right.

use super::event::{CHECKSUM_BYTES, EventError, FormatDescription, HEADER_BYTES, Header, MAGIC, kind};

/// Events up to this size are handed on whole. All that this project reads out of (GTIDs, statements' beginnings, names) fits.
pub const WHOLE_EVENT_BYTES_MAX: usize = 1 << 20;
/// A Previous_gtids event grows with the number of sources and holes; the largest one that is read.
const PREVIOUS_GTIDS_BYTES_MAX: usize = 64 << 20;
/// MySQL's own limit on max_allowed_packet and so on events, with room for the row event's header.
const EVENT_BYTES_MAX: u64 = (1 << 30) + (1 << 16);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    #[error("it is no binlog: it does not begin with the magic bytes")]
    NoMagic,
    #[error("it does not begin with a Format_description event")]
    NoFormat,
    #[error("the event at position {position} claims a length of {len} bytes")]
    Length { position: u64, len: u32 },
    #[error("the event at position {position} (type {kind}) has a wrong checksum")]
    Checksum { position: u64, kind: u8 },
    #[error("the event at position {position}: {source}")]
    Event { position: u64, source: EventError },
    #[error("it ends in the middle of the event at position {position}")]
    Torn { position: u64 },
}

impl SplitError {
    /// The position that it is about.
    pub fn position(&self) -> u64 {
        match self {
            SplitError::NoMagic | SplitError::NoFormat => 0,
            SplitError::Length { position, .. }
            | SplitError::Checksum { position, .. }
            | SplitError::Event { position, .. }
            | SplitError::Torn { position } => *position,
        }
    }
}

/// A part of one event; all of it unless it is larger than [`WHOLE_EVENT_BYTES_MAX`].
#[derive(Debug)]
pub struct Piece<'a> {
    pub header: Header,
    /// Where the event starts in its binlog.
    pub start: u64,
    /// Where in the event `bytes` starts; 0 for the first piece, which holds at least the header.
    pub offset: u64,
    pub bytes: &'a [u8],
    /// Whether events here end with a checksum.
    pub checksum: bool,
}

impl Piece<'_> {
    pub fn is_first(&self) -> bool {
        self.offset == 0
    }

    pub fn is_last(&self) -> bool {
        self.offset + self.bytes.len() as u64 == u64::from(self.header.len)
    }

    /// Where the event ends in its binlog.
    pub fn end(&self) -> u64 {
        self.start + u64::from(self.header.len)
    }

    /// The event's own bytes in this piece: no header, no checksum.
    pub fn body(&self) -> &[u8] {
        let has_checksum = self.checksum || self.header.kind == kind::FORMAT_DESCRIPTION;
        let body_end = u64::from(self.header.len) - if has_checksum { CHECKSUM_BYTES as u64 } else { 0 };
        let from = if self.is_first() { HEADER_BYTES } else { 0 };
        let to = body_end.saturating_sub(self.offset).min(self.bytes.len() as u64) as usize;
        self.bytes.get(from..to).unwrap_or_default()
    }
}

/// The event that is being received.
struct Current {
    header: Header,
    start: u64,
    received: u64,
    crc: crc32fast::Hasher,
    stored_crc: [u8; CHECKSUM_BYTES],
    /// Collected in `pending` until complete; otherwise handed on in pieces.
    whole: bool,
}

/// Splits one binlog. Feed it with [`Splitter::push`], end with [`Splitter::finish`].
pub struct Splitter {
    position: u64,
    checksum: bool,
    magic_missing: bool,
    format_missing: bool,
    /// Bytes of a header, or of a small event, that came in an earlier push.
    pending: Vec<u8>,
    current: Option<Current>,
}

impl Splitter {
    /// For a binlog from its very beginning, magic bytes included.
    pub fn new() -> Self {
        Splitter {
            position: 0,
            checksum: false,
            magic_missing: true,
            format_missing: true,
            pending: Vec::new(),
            current: None,
        }
    }

    /// For the events from `position` on, where the Format_description was seen before.
    pub fn resume(position: u64, checksum: bool) -> Self {
        Splitter {
            position,
            checksum,
            magic_missing: false,
            format_missing: false,
            pending: Vec::new(),
            current: None,
        }
    }

    /// Where the next event starts, or the one that is being received.
    pub fn position(&self) -> u64 {
        self.current.as_ref().map_or(self.position, |c| c.start)
    }

    pub fn checksum(&self) -> bool {
        self.checksum
    }

    /// Hands every piece that `bytes` completes to `sink`, in order; stops at the first error.
    pub fn push<E: From<SplitError>>(
        &mut self,
        mut bytes: &[u8],
        mut sink: impl FnMut(&Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            if self.magic_missing {
                bytes = self.take_magic(bytes)?;
            } else if self.current.is_none() {
                bytes = self.begin(bytes, &mut sink)?;
            } else {
                bytes = self.advance(bytes, &mut sink)?;
            }
        }
        Ok(())
    }

    /// # Errors
    /// [`SplitError::Torn`] where the bytes ended inside an event.
    pub fn finish(&self) -> Result<(), SplitError> {
        if self.current.is_none() && self.pending.is_empty() {
            Ok(())
        } else {
            Err(SplitError::Torn {
                position: self.position(),
            })
        }
    }

    fn take_magic<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], SplitError> {
        let take = bytes.len().min(MAGIC.len() - self.pending.len());
        self.pending.extend_from_slice(&bytes[..take]);
        if !MAGIC.starts_with(&self.pending) {
            return Err(SplitError::NoMagic);
        }
        if self.pending.len() == MAGIC.len() {
            self.pending.clear();
            self.magic_missing = false;
            self.position = MAGIC.len() as u64;
        }
        Ok(&bytes[take..])
    }

    /// Reads a header. The common case, an event that lies whole in `bytes`, is handed on from where it lies.
    fn begin<'b, E: From<SplitError>>(
        &mut self,
        bytes: &'b [u8],
        sink: &mut impl FnMut(&Piece<'_>) -> Result<(), E>,
    ) -> Result<&'b [u8], E> {
        if self.pending.is_empty()
            && let Some(header) = Header::parse(bytes)
        {
            self.check_header(&header)?;
            if let Some((event, rest)) = bytes.split_at_checked(header.len as usize)
                && event.len() <= WHOLE_EVENT_BYTES_MAX
            {
                self.whole(header, self.position, event, sink)?;
                return Ok(rest);
            }
        }
        let take = bytes.len().min(HEADER_BYTES - self.pending.len());
        self.pending.extend_from_slice(&bytes[..take]);
        if self.pending.len() < HEADER_BYTES {
            return Ok(&bytes[take..]);
        }
        let header = Header::parse(&self.pending).ok_or(SplitError::Length {
            position: self.position,
            len: 0,
        })?;
        self.check_header(&header)?;
        let limit = if header.kind == kind::PREVIOUS_GTIDS {
            PREVIOUS_GTIDS_BYTES_MAX
        } else {
            WHOLE_EVENT_BYTES_MAX
        };
        let whole = header.len as usize <= limit;
        let mut current = Current {
            header,
            start: self.position,
            received: HEADER_BYTES as u64,
            crc: crc32fast::Hasher::new(),
            stored_crc: [0; CHECKSUM_BYTES],
            whole,
        };
        if !whole {
            // The first piece holds the beginning of the body as well, so that names and statements can be read from it.
            let more = &bytes[take..];
            let head = more.len().min(header.len as usize - HEADER_BYTES - CHECKSUM_BYTES);
            self.pending.extend_from_slice(&more[..head]);
            current.crc.update(&self.pending);
            current.received += head as u64;
            sink(&Piece {
                header,
                start: current.start,
                offset: 0,
                bytes: &self.pending,
                checksum: self.checksum,
            })?;
            self.pending.clear();
            self.current = Some(current);
            return Ok(&more[head..]);
        }
        self.current = Some(current);
        let rest = &bytes[take..];
        if rest.is_empty() { self.advance(rest, sink) } else { Ok(rest) }
    }

    fn advance<'b, E: From<SplitError>>(
        &mut self,
        bytes: &'b [u8],
        sink: &mut impl FnMut(&Piece<'_>) -> Result<(), E>,
    ) -> Result<&'b [u8], E> {
        let Some(current) = &mut self.current else { return Ok(bytes) };
        let len = u64::from(current.header.len);
        let take = (len - current.received).min(bytes.len() as u64) as usize;
        let (now, rest) = bytes.split_at(take);
        if current.whole {
            self.pending.extend_from_slice(now);
            current.received += take as u64;
            if current.received == len {
                let (header, start) = (current.header, current.start);
                self.current = None;
                let event = std::mem::take(&mut self.pending);
                self.whole(header, start, &event, sink)?;
                // The buffer is used again, unless one large event would keep it large.
                if event.capacity() <= WHOLE_EVENT_BYTES_MAX {
                    self.pending = event;
                    self.pending.clear();
                }
            }
            return Ok(rest);
        }
        let offset = current.received;
        let before_crc = (len - CHECKSUM_BYTES as u64).saturating_sub(offset).min(take as u64) as usize;
        current.crc.update(&now[..before_crc]);
        for (i, byte) in now[before_crc..].iter().enumerate() {
            let at = offset + (before_crc + i) as u64 - (len - CHECKSUM_BYTES as u64);
            current.stored_crc[at as usize] = *byte;
        }
        current.received += take as u64;
        let (header, start) = (current.header, current.start);
        if current.received == len {
            let right = current.crc.clone().finalize() == u32::from_le_bytes(current.stored_crc);
            if self.checksum && !right {
                return Err(SplitError::Checksum {
                    position: start,
                    kind: header.kind,
                }
                .into());
            }
            self.current = None;
            self.position = start + len;
        }
        sink(&Piece {
            header,
            start,
            offset,
            bytes: now,
            checksum: self.checksum,
        })?;
        Ok(rest)
    }

    /// A complete small event: checked, learned from, handed on.
    fn whole<E: From<SplitError>>(
        &mut self,
        header: Header,
        start: u64,
        event: &[u8],
        sink: &mut impl FnMut(&Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let describes = header.kind == kind::FORMAT_DESCRIPTION;
        if describes {
            let format = FormatDescription::parse(&event[HEADER_BYTES..])
                .map_err(|source| SplitError::Event { position: start, source })?;
            self.checksum = format.checksum;
            self.format_missing = false;
        }
        // A server with binlog_checksum=NONE writes a right checksum into the Format_description all the same (seen on 9.7.4).
        if (self.checksum || describes) && !checksum_is_right(event) {
            return Err(SplitError::Checksum {
                position: start,
                kind: header.kind,
            }
            .into());
        }
        self.position = start + event.len() as u64;
        sink(&Piece {
            header,
            start,
            offset: 0,
            bytes: event,
            checksum: self.checksum,
        })
    }

    fn check_header(&self, header: &Header) -> Result<(), SplitError> {
        if self.format_missing && header.kind != kind::FORMAT_DESCRIPTION {
            return Err(SplitError::NoFormat);
        }
        let least = HEADER_BYTES
            + if self.checksum || header.kind == kind::FORMAT_DESCRIPTION {
                CHECKSUM_BYTES
            } else {
                0
            };
        let most = if header.kind == kind::PREVIOUS_GTIDS {
            PREVIOUS_GTIDS_BYTES_MAX as u64
        } else {
            EVENT_BYTES_MAX
        };
        let len = u64::from(header.len);
        // The position may be what a server says.
        let ends = self.position.checked_add(len).is_some();
        if ends && (least as u64..=most).contains(&len) {
            Ok(())
        } else {
            Err(SplitError::Length {
                position: self.position,
                len: header.len,
            })
        }
    }
}

impl Default for Splitter {
    fn default() -> Self {
        Splitter::new()
    }
}

/// Whether an event's last four bytes are the CRC32 of those before. `event` holds at least a header.
pub fn checksum_is_right(event: &[u8]) -> bool {
    match event.split_last_chunk::<CHECKSUM_BYTES>() {
        Some((bytes, stored)) => crc32fast::hash(bytes) == u32::from_le_bytes(*stored),
        None => false,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An event as mysqld writes it, with a right checksum.
    pub(crate) fn event(kind: u8, body: &[u8]) -> Vec<u8> {
        let len = (HEADER_BYTES + body.len() + CHECKSUM_BYTES) as u32;
        let mut out = Vec::with_capacity(len as usize);
        out.extend_from_slice(&0u32.to_le_bytes());
        out.push(kind);
        out.extend_from_slice(&1u32.to_le_bytes());
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        out.extend_from_slice(&0u16.to_le_bytes());
        out.extend_from_slice(body);
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        out
    }

    pub(crate) fn format_description() -> Vec<u8> {
        let mut body = vec![4, 0];
        body.extend_from_slice(b"9.7.4");
        body.resize(2 + 50 + 4 + 1 + 42, 0);
        body.push(1); // CRC32
        event(kind::FORMAT_DESCRIPTION, &body)
    }

    fn file(bodies: &[Vec<u8>]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(format_description());
        bodies.iter().for_each(|b| out.extend(event(kind::WRITE_ROWS, b)));
        out
    }

    fn split(bytes: &[u8], chunk: usize) -> Result<Vec<Vec<u8>>, SplitError> {
        let mut splitter = Splitter::new();
        let mut events: Vec<Vec<u8>> = Vec::new();
        for part in bytes.chunks(chunk) {
            splitter.push(part, |piece| {
                if piece.is_first() {
                    events.push(Vec::new());
                }
                events.last_mut().unwrap().extend_from_slice(piece.bytes);
                Ok::<(), SplitError>(())
            })?;
        }
        splitter.finish()?;
        Ok(events)
    }

    #[test]
    fn no_event_ends_where_no_number_goes() {
        let position = u64::MAX - 10;
        let mut splitter = Splitter::resume(position, true);
        let split = splitter.push(&event(kind::QUERY, &[0; 8]), |_| Ok::<(), SplitError>(()));
        let len = (HEADER_BYTES + 8 + CHECKSUM_BYTES) as u32;
        assert_eq!(split, Err(SplitError::Length { position, len }));
    }

    proptest! {
        /// However the bytes are cut up, the same events come out.
        #[test]
        fn chunks_do_not_matter(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..12), chunk in 1usize..500) {
            let bytes = file(&bodies);
            let events = split(&bytes, chunk).unwrap();
            prop_assert_eq!(events.len(), bodies.len() + 1);
            prop_assert_eq!(events.concat(), &bytes[MAGIC.len()..]);
        }

        #[test]
        fn one_changed_bit_is_found(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..100), 1..5), at: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = file(&bodies);
            let i = at.index(bytes.len());
            bytes[i] ^= 1 << bit;
            prop_assert!(split(&bytes, 64).is_err());
        }
    }

    #[test]
    fn large_events_come_in_pieces_and_are_checked() {
        let body = vec![7u8; 3 * WHOLE_EVENT_BYTES_MAX];
        let mut bytes = file(&[body, vec![1, 2, 3]]);
        let events = split(&bytes, 100_000).unwrap();
        assert_eq!(events.len(), 3);
        assert_eq!(events.concat(), &bytes[MAGIC.len()..]);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        assert!(matches!(split(&bytes, 100_000), Err(SplitError::Checksum { .. })));
    }

    #[test]
    fn a_torn_end_is_told() {
        let bytes = file(&[vec![1; 50]]);
        assert!(matches!(split(&bytes[..bytes.len() - 1], 64), Err(SplitError::Torn { .. })));
        assert!(matches!(split(&bytes[..bytes.len() - 70], 64), Err(SplitError::Torn { .. })));
    }
}
