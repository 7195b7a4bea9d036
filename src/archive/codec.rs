//! Compression of stored objects, pushed through portion by portion.

use std::io::{self, Write};

use flate2::write::{GzDecoder, GzEncoder};
use serde::{Deserialize, Serialize};
use zstd::stream::raw::{Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

/// zstd's own default is 3; 1 is nearly twice as fast for a few percent of size, and binlogs arrive faster than 3 compresses.
const ZSTD_LEVEL: i32 = 1;
/// gzip's fastest level, for the same reason.
const GZIP_LEVEL: u32 = 1;
/// Input to a decoder at a time: bounds what a hostile object can expand to between two looks (1000-fold for gzip).
const DECODE_PORTION_BYTES: usize = 16 * 1024;
const OUT_BYTES: usize = 128 * 1024;

/// How an object's bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    None,
    Gzip,
    Zstd,
}

impl Codec {
    /// What is appended to a key.
    pub fn extension(self) -> &'static str {
        match self {
            Codec::None => "",
            Codec::Gzip => ".gz",
            Codec::Zstd => ".zst",
        }
    }

    /// The codec that a key's end names.
    pub fn of_key(key: &str) -> Codec {
        [Codec::Gzip, Codec::Zstd]
            .into_iter()
            .find(|c| key.ends_with(c.extension()))
            .unwrap_or(Codec::None)
    }
}

/// Compresses one object.
pub enum Encoder {
    None(Vec<u8>),
    Gzip(GzEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    pub fn new(codec: Codec) -> io::Result<Encoder> {
        Ok(match codec {
            Codec::None => Encoder::None(Vec::new()),
            Codec::Gzip => Encoder::Gzip(GzEncoder::new(Vec::new(), flate2::Compression::new(GZIP_LEVEL))),
            Codec::Zstd => Encoder::Zstd(zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?),
        })
    }

    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Encoder::None(out) => out.extend_from_slice(bytes),
            Encoder::Gzip(encoder) => encoder.write_all(bytes)?,
            Encoder::Zstd(encoder) => encoder.write_all(bytes)?,
        }
        Ok(())
    }

    /// Compressed bytes that are ready.
    pub fn ready_bytes(&self) -> usize {
        match self {
            Encoder::None(out) => out.len(),
            Encoder::Gzip(encoder) => encoder.get_ref().len(),
            Encoder::Zstd(encoder) => encoder.get_ref().len(),
        }
    }

    /// Takes what is ready.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(match self {
            Encoder::None(out) => out,
            Encoder::Gzip(encoder) => encoder.get_mut(),
            Encoder::Zstd(encoder) => encoder.get_mut(),
        })
    }

    /// The rest.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Encoder::None(out) => Ok(out),
            Encoder::Gzip(encoder) => encoder.finish(),
            Encoder::Zstd(encoder) => encoder.finish(),
        }
    }
}

/// Decompresses one object.
pub enum Decoder {
    None,
    Gzip(Box<GzDecoder<Vec<u8>>>),
    Zstd(ZstdDecoder<'static>, Box<[u8]>, ZstdState),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZstdState {
    InFrame,
    Complete,
}

impl Decoder {
    pub fn new(codec: Codec) -> io::Result<Decoder> {
        Ok(match codec {
            Codec::None => Decoder::None,
            Codec::Gzip => Decoder::Gzip(Box::new(GzDecoder::new(Vec::new()))),
            Codec::Zstd => Decoder::Zstd(ZstdDecoder::new()?, vec![0; OUT_BYTES].into(), ZstdState::InFrame),
        })
    }

    /// Hands the decompressed bytes to `sink`, in portions.
    pub fn push<E: From<io::Error>>(&mut self, bytes: &[u8], mut sink: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        match self {
            Decoder::None => sink(bytes),
            Decoder::Gzip(decoder) => {
                for portion in bytes.chunks(DECODE_PORTION_BYTES) {
                    decoder.write_all(portion)?;
                    sink(decoder.get_ref())?;
                    decoder.get_mut().clear();
                }
                Ok(())
            }
            Decoder::Zstd(decoder, out, state) => {
                let mut input = InBuffer::around(bytes);
                loop {
                    if *state == ZstdState::Complete && input.pos() < bytes.len() {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "bytes after the end of the zstd frame").into());
                    }
                    let mut output = OutBuffer::around(&mut out[..]);
                    let hint = decoder.run(&mut input, &mut output)?;
                    let made = output.pos();
                    if hint == 0 {
                        *state = ZstdState::Complete;
                    }
                    if made > 0 {
                        sink(&out[..made])?;
                    }
                    if input.pos() == bytes.len() && made < OUT_BYTES {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// The rest; an error where the object is cut short.
    pub fn finish<E: From<io::Error>>(self, mut sink: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        match self {
            Decoder::None => Ok(()),
            Decoder::Gzip(mut decoder) => {
                // `try_finish` checks length and CRC32 of the whole.
                decoder.try_finish()?;
                sink(decoder.get_ref())
            }
            Decoder::Zstd(_, _, ZstdState::Complete) => Ok(()),
            Decoder::Zstd(_, _, ZstdState::InFrame) => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the zstd frame is cut short").into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(codec: Codec, bytes: &[u8], chunk: usize) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut decoder = Decoder::new(codec)?;
        let mut keep = |b: &[u8]| {
            out.extend_from_slice(b);
            Ok::<(), io::Error>(())
        };
        for part in bytes.chunks(chunk) {
            decoder.push(part, &mut keep)?;
        }
        decoder.finish(&mut keep)?;
        Ok(out)
    }

    proptest! {
        #[test]
        fn every_codec_round_trips_and_notices_a_cut(data in prop::collection::vec(0u8..4, 0..5000), chunk in 1usize..700) {
            for codec in [Codec::None, Codec::Gzip, Codec::Zstd] {
                let mut encoder = Encoder::new(codec).unwrap();
                let mut stored = Vec::new();
                for part in data.chunks(333) {
                    encoder.push(part).unwrap();
                    stored.extend(encoder.take());
                }
                stored.extend(encoder.finish().unwrap());
                prop_assert_eq!(&decode(codec, &stored, chunk).unwrap(), &data);
                if codec != Codec::None {
                    prop_assert!(decode(codec, &stored[..stored.len() - 1], chunk).is_err());
                }
            }
        }

        #[test]
        fn garbage_is_an_error(data in prop::collection::vec(any::<u8>(), 30..300)) {
            prop_assert!(decode(Codec::Zstd, &data, 64).is_err());
            prop_assert!(decode(Codec::Gzip, &data, 64).is_err());
        }
    }
}
