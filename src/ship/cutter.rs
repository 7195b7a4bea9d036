//! The live binlog's events cut into segments. Pure: it does not know of clocks, stores or servers.

use sha2::{Digest, Sha256};

use crate::{
    archive::{
        codec::{Codec, Encoder},
        keys::SegmentRange,
    },
    binlog::{
        event::MAGIC,
        splitter::{Piece, WHOLE_EVENT_BYTES_MAX},
    },
};

use super::beginning::{Beginning, Identity};

/// Compressed bytes of a streamed segment are handed on in portions of at least this size.
const STREAM_PORTION_BYTES: usize = 1 << 20;

/// What is to be done, in this order.
#[derive(Debug)]
pub enum Action {
    /// The binlog's first transaction began: it may be given a place now. Nothing is cut before.
    Open(Identity),
    /// A segment, compressed.
    Put(Cut),
    /// A segment of one event that is too large to be held: `Stream*` until `StreamEnd`.
    StreamBegin(SegmentRange),
    StreamBytes(Vec<u8>),
    StreamEnd {
        sha256: String,
    },
}

#[derive(Debug)]
pub struct Cut {
    pub range: SegmentRange,
    pub bytes: Vec<u8>,
    /// Of the uncompressed bytes, hexadecimal.
    pub sha256: String,
}

/// Cuts one binlog.
pub struct Cutter {
    codec: Codec,
    segment_bytes: u64,
    beginning: Option<Beginning>,
    current: Option<Current>,
    /// Cut at the next event boundary.
    due: bool,
    in_event: bool,
}

struct Current {
    start: u64,
    end: u64,
    encoder: Encoder,
    hash: Sha256,
    streamed: bool,
}

impl Cutter {
    /// For a binlog from its beginning.
    pub fn new(codec: Codec, segment_bytes: u64) -> Cutter {
        Cutter {
            codec,
            segment_bytes,
            beginning: Some(Beginning::new()),
            current: None,
            due: false,
            in_event: false,
        }
    }

    /// For a binlog whose opening is stored and which is covered up to an event boundary.
    pub fn resume(codec: Codec, segment_bytes: u64) -> Cutter {
        Cutter {
            beginning: None,
            ..Cutter::new(codec, segment_bytes)
        }
    }

    /// Whether something waits to be cut.
    pub fn has_uncut(&self) -> bool {
        self.beginning.is_none() && self.current.is_some()
    }

    pub fn piece(&mut self, piece: &Piece<'_>, actions: &mut Vec<Action>) -> anyhow::Result<()> {
        if let Some(beginning) = &mut self.beginning
            && let Some(identity) = beginning.piece(piece)?
        {
            self.beginning = None;
            actions.push(Action::Open(identity));
        }
        let len = u64::from(piece.header.len);
        if self.beginning.is_none() && piece.is_first() && len > self.segment_bytes && len > WHOLE_EVENT_BYTES_MAX as u64 {
            self.cut(actions)?;
            let current = Current {
                end: piece.end(),
                streamed: true,
                ..self.begin(piece.start)?
            };
            actions.push(Action::StreamBegin(SegmentRange {
                start: current.start,
                end: current.end,
            }));
            self.current = Some(current);
        }
        let mut current = match self.current.take() {
            Some(current) => current,
            None => self.begin(piece.start)?,
        };
        current.encoder.push(piece.bytes)?;
        current.hash.update(piece.bytes);
        self.in_event = !piece.is_last();
        if current.streamed {
            if current.encoder.ready_bytes() >= STREAM_PORTION_BYTES {
                actions.push(Action::StreamBytes(current.encoder.take()));
            }
            if piece.is_last() {
                actions.push(Action::StreamBytes(current.encoder.finish()?));
                actions.push(Action::StreamEnd {
                    sha256: format!("{:x}", current.hash.finalize()),
                });
            } else {
                self.current = Some(current);
            }
            return Ok(());
        }
        current.end = piece.start + piece.offset + piece.bytes.len() as u64;
        let full = current.end - current.start >= self.segment_bytes;
        self.current = Some(current);
        if piece.is_last() && (full || self.due) {
            self.cut(actions)?;
        }
        Ok(())
    }

    /// Cuts what there is, now or as soon as the event that is arriving is complete.
    pub fn cut_soon(&mut self, actions: &mut Vec<Action>) -> anyhow::Result<()> {
        if self.in_event {
            self.due = true;
            return Ok(());
        }
        self.cut(actions)
    }

    fn cut(&mut self, actions: &mut Vec<Action>) -> anyhow::Result<()> {
        self.due = false;
        if self.beginning.is_some() {
            return Ok(());
        }
        if let Some(current) = self.current.take() {
            let range = SegmentRange {
                start: current.start,
                end: current.end,
            };
            actions.push(Action::Put(Cut {
                range,
                bytes: current.encoder.finish()?,
                sha256: format!("{:x}", current.hash.finalize()),
            }));
        }
        Ok(())
    }

    fn begin(&self, start: u64) -> std::io::Result<Current> {
        let mut current = Current {
            start,
            end: start,
            encoder: Encoder::new(self.codec)?,
            hash: Sha256::new(),
            streamed: false,
        };
        if start == MAGIC.len() as u64 {
            // The source never sends them; the first segment begins with them all the same.
            current.start = 0;
            current.encoder.push(&MAGIC)?;
            current.hash.update(MAGIC);
        }
        Ok(current)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::{
        archive::codec::Decoder,
        binlog::{
            event::kind,
            splitter::{
                SplitError, Splitter,
                tests::{event, format_description},
            },
        },
    };

    use super::*;

    fn gtid_event(gno: u64) -> Vec<u8> {
        let mut body = vec![1];
        body.extend_from_slice(&[7; 16]);
        body.extend_from_slice(&gno.to_le_bytes());
        body.extend_from_slice(&[0; 17]);
        body.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 200]);
        event(kind::GTID, &body)
    }

    fn decoded(codec: Codec, bytes: &[u8]) -> Vec<u8> {
        let (mut out, mut stored) = (Vec::new(), bytes);
        let mut decoder = Decoder::new(codec).unwrap();
        loop {
            let portion = decoder.next(&mut stored).unwrap();
            if portion.is_empty() {
                break;
            }
            out.extend_from_slice(portion);
        }
        out.extend(decoder.finish().unwrap());
        out
    }

    /// Everything that was cut, put together again; ranges must join without holes.
    fn join(codec: Codec, actions: Vec<Action>) -> Vec<u8> {
        let (mut out, mut stream, mut opened) = (Vec::new(), Vec::new(), false);
        for action in actions {
            match action {
                Action::Open(_) => opened = true,
                Action::Put(cut) => {
                    assert!(opened, "nothing is cut before the binlog has an opening");
                    assert_eq!(cut.range.start, out.len() as u64);
                    out.extend(decoded(codec, &cut.bytes));
                    assert_eq!(cut.range.end, out.len() as u64);
                }
                Action::StreamBegin(range) => assert_eq!(range.start, out.len() as u64),
                Action::StreamBytes(bytes) => stream.extend(bytes),
                Action::StreamEnd { .. } => out.extend(decoded(codec, &std::mem::take(&mut stream))),
            }
        }
        out
    }

    proptest! {
        /// i4: wherever it is cut, the segments together are the binlog, byte for byte.
        #[test]
        fn i4_segments_join_to_the_binlog(
            sizes in prop::collection::vec(prop_oneof![8 => 0usize..3000, 1 => 2_000_000usize..2_500_000], 1..12),
            flushes in prop::collection::vec(any::<bool>(), 12),
            segment_bytes in 65_536u64..300_000,
            chunk in 1_000usize..400_000,
        ) {
            let mut file = format_description();
            file.extend(event(kind::PREVIOUS_GTIDS, &[0; 8]));
            for (i, size) in sizes.iter().enumerate() {
                file.extend(gtid_event(i as u64 + 1));
                file.extend(event(kind::WRITE_ROWS, &vec![i as u8; *size]));
            }
            let mut splitter = Splitter::new();
            splitter.push(&MAGIC, |_| Ok::<(), SplitError>(())).unwrap();
            let mut cutter = Cutter::new(Codec::Zstd, segment_bytes);
            let mut actions = Vec::new();
            for (part, flush) in file.chunks(chunk).zip(flushes.iter().cycle()) {
                splitter.push(part, |p| cutter.piece(p, &mut actions)).unwrap();
                if *flush {
                    cutter.cut_soon(&mut actions).unwrap();
                }
            }
            cutter.cut_soon(&mut actions).unwrap();
            prop_assert!(!cutter.has_uncut());
            prop_assert!(join(Codec::Zstd, actions) == [&MAGIC[..], &file].concat());
        }
    }
}
