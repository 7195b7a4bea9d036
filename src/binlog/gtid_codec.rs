//! GTID sets as bytes: the body of Previous_gtids events and of COM_BINLOG_DUMP_GTID.
//!
//! Plain sets begin with the number of sources as u64; sets with tags have 1 in its first and last byte and the number in
//! the six between. Each source is a uuid, with tags a tag too, then its intervals as (start, end) u64 pairs, end exclusive.

use uuid::Uuid;

use super::{
    event::Cursor,
    gtid::{GtidError, GtidSet, Tag, Tsid},
    gtid_text::GNO_MAX,
};

const TAGGED: u8 = 1;
const COUNT_MASK: u64 = 0x0000_ffff_ffff_ffff;

impl GtidSet {
    /// The bytes as MySQL writes them: without tags unless the set has some, for older servers know none.
    pub fn encode(&self) -> Vec<u8> {
        let tagged = self.intervals.iter().any(|(t, _)| !t.tag.is_none());
        let count = self.intervals.len() as u64;
        let mut out = Vec::with_capacity(8 + self.intervals.len() * 40);
        let head = if tagged {
            u64::from(TAGGED) << 56 | count << 8 | u64::from(TAGGED)
        } else {
            count
        };
        out.extend_from_slice(&head.to_le_bytes());
        for (tsid, list) in &self.intervals {
            out.extend_from_slice(tsid.uuid.as_bytes());
            if tagged {
                let tag = tsid.tag.as_str();
                // A variable-length integer below 128 is one byte, shifted left by one.
                out.push((tag.len() as u8) << 1);
                out.extend_from_slice(tag.as_bytes());
            }
            out.extend_from_slice(&(list.len() as u64).to_le_bytes());
            for i in list {
                out.extend_from_slice(&i.start.to_le_bytes());
                out.extend_from_slice(&i.end.to_le_bytes());
            }
        }
        out
    }

    /// # Errors
    /// Where the bytes are cut short, too long, or say what no set can.
    pub fn decode(bytes: &[u8]) -> Result<GtidSet, GtidError> {
        let mut cursor = Cursor::new(bytes);
        let short = || GtidError("its bytes are cut short".to_owned());
        let head = cursor.u64().ok_or_else(short)?;
        let tagged = (head >> 56) as u8 == TAGGED;
        let count = if tagged { (head >> 8) & COUNT_MASK } else { head };
        let mut set = GtidSet::new();
        for _ in 0..count {
            let uuid = Uuid::from_slice(cursor.bytes(16).ok_or_else(short)?).map_err(|e| GtidError(e.to_string()))?;
            let mut tag = Tag::NONE;
            if tagged {
                let len = cursor.varlen().ok_or_else(short)?;
                let text = cursor.bytes(usize::try_from(len).map_err(|_| short())?).ok_or_else(short)?;
                tag = Tag::new(std::str::from_utf8(text).map_err(|e| GtidError(e.to_string()))?)?;
            }
            for _ in 0..cursor.u64().ok_or_else(short)? {
                let (start, end) = (cursor.u64().ok_or_else(short)?, cursor.u64().ok_or_else(short)?);
                if start == 0 || end <= start || end > GNO_MAX + 1 {
                    return Err(GtidError(format!("{start}..{end} is not an interval")));
                }
                set.insert_range(Tsid { uuid, tag }, start, end);
            }
        }
        if cursor.is_empty() {
            Ok(set)
        } else {
            Err(GtidError("there are bytes after its end".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body of a Previous_gtids event of a 9.7.4 server (checksum cut off).
    const TAGGED_SET: &str = "0105000000000001aaaaaaaabbbbccccddddeeeeeeeeeeee00010000000000000007000000000000000800000000000000\
        aaaaaaaabbbbccccddddeeeeeeeeeeee067265640100000000000000f401000000000000f501000000000000";

    #[test]
    fn reads_what_a_real_server_wrote() {
        // Two of the five sources of the recording: the count is patched accordingly.
        let mut bytes = hex(TAGGED_SET);
        bytes[1] = 2;
        let set = GtidSet::decode(&bytes).unwrap();
        assert_eq!(set.to_string(), "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee:7:red:500");
        assert_eq!(set.encode(), bytes);
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|p| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap())
            .collect()
    }
}
