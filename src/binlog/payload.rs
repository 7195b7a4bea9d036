//! Events inside Transaction_payload events (binlog_transaction_compression), made readable for whoever wants to know what
//! a transaction touched. Shipping and replaying never come here: compressed transactions pass through as they are.

use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use super::{
    event::{Cursor, Header, kind},
    splitter::{Piece, SplitError, Splitter},
};

/// Decompressed bytes are handed on in portions of this size.
const PORTION_BYTES: usize = 128 * 1024;
const COMPRESSION_ZSTD: u64 = 0;
const COMPRESSION_NONE: u64 = 255;

/// Shows every event, those inside payloads too, as (header, beginning of the body).
#[derive(Default)]
pub struct Unfolder {
    inside: Option<Inside>,
}

struct Inside {
    decoder: Option<Decoder<'static>>,
    splitter: Splitter,
}

impl Unfolder {
    /// Hands what begins in `piece` to `seen`. The body may be cut short in large events.
    pub fn piece(&mut self, piece: &Piece<'_>, mut seen: impl FnMut(&Header, &[u8])) -> Result<(), SplitError> {
        if piece.header.kind != kind::TRANSACTION_PAYLOAD {
            if piece.is_first() {
                seen(&piece.header, piece.body());
            }
            return Ok(());
        }
        let malformed = || SplitError::Event {
            position: piece.start,
            source: super::event::EventError::Malformed {
                kind: kind::TRANSACTION_PAYLOAD,
            },
        };
        let mut bytes = piece.body();
        if piece.is_first() {
            let (compression, rest) = parse_fields(bytes).ok_or_else(malformed)?;
            let decoder = match compression {
                COMPRESSION_ZSTD => Some(Decoder::new().map_err(|_| malformed())?),
                COMPRESSION_NONE => None,
                _ => return Err(malformed()),
            };
            // Events inside a payload have no checksums; the payload's own covers them.
            self.inside = Some(Inside {
                decoder,
                splitter: Splitter::resume(0, false),
            });
            bytes = rest;
        }
        let inside = self.inside.as_mut().ok_or_else(malformed)?;
        let mut sink = |inner: &Piece<'_>| {
            if inner.is_first() {
                seen(&inner.header, inner.body());
            }
            Ok::<(), SplitError>(())
        };
        match &mut inside.decoder {
            None => inside.splitter.push(bytes, &mut sink)?,
            Some(decoder) => {
                let mut out = vec![0; PORTION_BYTES];
                let mut input = InBuffer::around(bytes);
                loop {
                    let mut output = OutBuffer::around(&mut out);
                    decoder.run(&mut input, &mut output).map_err(|_| malformed())?;
                    let made = output.pos();
                    inside.splitter.push(&out[..made], &mut sink)?;
                    if input.pos() == bytes.len() && made < PORTION_BYTES {
                        break;
                    }
                }
            }
        }
        if piece.is_last() {
            self.inside = None;
        }
        Ok(())
    }
}

/// The compression's number, and the bytes after the fields.
fn parse_fields(body: &[u8]) -> Option<(u64, &[u8])> {
    const END: u64 = 0;
    const COMPRESSION: u64 = 2;
    let mut c = Cursor::new(body);
    let mut compression = COMPRESSION_NONE;
    loop {
        let field = c.lenenc()?;
        if field == END {
            return Some((compression, c.rest()));
        }
        let len = usize::try_from(c.lenenc()?).ok()?;
        let value = c.bytes(len)?;
        if field == COMPRESSION {
            compression = Cursor::new(value).lenenc()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::binlog::{
        event::MAGIC,
        splitter::tests::{event, format_description},
    };

    use super::*;

    /// An event as it lies in a payload: without a checksum.
    fn inner(event_kind: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = event(event_kind, body);
        bytes.truncate(bytes.len() - 4);
        let len = bytes.len() as u32;
        bytes[9..13].copy_from_slice(&len.to_le_bytes());
        bytes
    }

    fn payload(inner: &[u8], compression: u64) -> Vec<u8> {
        let bytes = if compression == COMPRESSION_ZSTD {
            zstd::encode_all(inner, 3).unwrap()
        } else {
            inner.to_vec()
        };
        let mut body = vec![2, 1, compression as u8, 3, 4, 0xfd, 0, 0, 1];
        if compression > 250 {
            body = vec![2, 3, 0xfc, compression as u8, 0];
        }
        body.push(0);
        body.extend(bytes);
        event(kind::TRANSACTION_PAYLOAD, &body)
    }

    fn unfold(events: &[u8], chunk: usize) -> Result<Vec<(u8, usize)>, SplitError> {
        let bytes = [&MAGIC[..], &format_description(), events].concat();
        let (mut splitter, mut unfolder, mut seen) = (Splitter::new(), Unfolder::default(), Vec::new());
        for part in bytes.chunks(chunk) {
            splitter.push(part, |piece| {
                unfolder.piece(piece, |header, body| seen.push((header.kind, body.len())))
            })?;
        }
        Ok(seen)
    }

    #[test]
    fn events_inside_are_shown_like_those_outside() {
        let large = vec![5; 3 << 20];
        let inside = [
            inner(kind::QUERY, b"BEGIN"),
            inner(kind::WRITE_ROWS, &large),
            inner(kind::XID, &[0; 8]),
        ]
        .concat();
        for compression in [COMPRESSION_ZSTD, COMPRESSION_NONE] {
            let seen = unfold(&[payload(&inside, compression), event(kind::STOP, &[])].concat(), 300_000).unwrap();
            let kinds: Vec<u8> = seen.iter().map(|(k, _)| *k).collect();
            assert_eq!(
                kinds,
                [kind::FORMAT_DESCRIPTION, kind::QUERY, kind::WRITE_ROWS, kind::XID, kind::STOP]
            );
            assert_eq!(seen[1].1, 5);
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(body in prop::collection::vec(any::<u8>(), 0..300), chunk in 1usize..100) {
            let _ = unfold(&event(kind::TRANSACTION_PAYLOAD, &body), chunk);
            let _ = unfold(&body, chunk);
        }
    }
}
