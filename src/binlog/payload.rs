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
