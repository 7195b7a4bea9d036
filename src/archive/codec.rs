//! Compression of stored objects, pushed through portion by portion.

use std::io::{self, Write};

use flate2::write::{GzDecoder, GzEncoder};
use serde::{Deserialize, Serialize};
use zstd::stream::raw::{Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

/// zstd's own default is 3; 1 is a third faster for a few percent of size (docs/decisions/0005).
const ZSTD_LEVEL: i32 = 1;
/// gzip's fastest level, for the same reason.
const GZIP_LEVEL: u32 = 1;
/// Input to gzip's decoder at a time, which may expand it 1000-fold; zstd's stops by itself where its output is full.
const GZIP_INPUT_BYTES: usize = 128;
/// Decompressed bytes are handed out in portions of about this size at most.
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
            Codec::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                // A server with binlog_checksum=NONE leaves nothing else to notice damage by.
                encoder.include_checksum(true)?;
                Encoder::Zstd(encoder)
            }
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

    /// Decompresses from the front of `bytes`, and takes what it used. Empty once everything was taken and handed out, so
    /// that the caller decides how fast a small object that expands to a large one comes.
    pub fn next<'d, 'b: 'd>(&'d mut self, bytes: &mut &'b [u8]) -> io::Result<&'d [u8]> {
        match self {
            Decoder::None => Ok(take_front(bytes, OUT_BYTES)),
            Decoder::Gzip(decoder) => {
                decoder.get_mut().clear();
                while decoder.get_ref().is_empty() && !bytes.is_empty() {
                    decoder.write_all(take_front(bytes, GZIP_INPUT_BYTES))?;
                }
                Ok(decoder.get_ref())
            }
            Decoder::Zstd(decoder, out, state) => loop {
                if *state == ZstdState::Complete {
                    if bytes.is_empty() {
                        return Ok(&[]);
                    }
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "bytes after the end of the zstd frame",
                    ));
                }
                let (mut input, mut output) = (InBuffer::around(bytes), OutBuffer::around(&mut out[..]));
                let hint = decoder.run(&mut input, &mut output)?;
                let (used, made) = (input.pos(), output.pos());
                *bytes = &bytes[used..];
                if hint == 0 {
                    *state = ZstdState::Complete;
                }
                if made > 0 || bytes.is_empty() {
                    return Ok(&out[..made]);
                }
            },
        }
    }

    /// The rest; an error where the object is cut short.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Decoder::None | Decoder::Zstd(_, _, ZstdState::Complete) => Ok(Vec::new()),
            Decoder::Gzip(mut decoder) => {
                decoder.get_mut().clear();
                // `try_finish` checks length and CRC32 of the whole.
                decoder.try_finish()?;
                Ok(std::mem::take(decoder.get_mut()))
            }
            Decoder::Zstd(_, _, ZstdState::InFrame) => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the zstd frame is cut short"))
            }
        }
    }
}

fn take_front<'b>(bytes: &mut &'b [u8], bytes_max: usize) -> &'b [u8] {
    let (front, rest) = bytes.split_at(bytes.len().min(bytes_max));
    *bytes = rest;
    front
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PORTION_BYTES_MAX: usize = 2 * OUT_BYTES;

    fn decode(codec: Codec, bytes: &[u8], chunk: usize) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut decoder = Decoder::new(codec)?;
        for mut part in bytes.chunks(chunk) {
            loop {
                let portion = decoder.next(&mut part)?;
                assert!(
                    portion.len() <= PORTION_BYTES_MAX,
                    "{codec:?} gave {} bytes at once",
                    portion.len()
                );
                if portion.is_empty() {
                    break;
                }
                out.extend_from_slice(portion);
            }
        }
        out.extend(decoder.finish()?);
        Ok(out)
    }

    fn encode(codec: Codec, data: &[u8]) -> Vec<u8> {
        let mut encoder = Encoder::new(codec).unwrap();
        encoder.push(data).unwrap();
        encoder.finish().unwrap()
    }

    /// What a small piece of a well compressed object expands to was held in memory all at once: `recover` took 220 MiB for
    /// rows of 64 MB.
    #[test]
    fn what_expands_a_thousandfold_comes_in_portions() {
        let data = vec![7; 64 << 20];
        for codec in [Codec::None, Codec::Gzip, Codec::Zstd] {
            let stored = encode(codec, &data);
            assert!(decode(codec, &stored, stored.len()).unwrap() == data, "{codec:?}");
        }
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
