//! An empty transaction in another one's place: what `SET gtid_next = …; BEGIN; COMMIT` leaves in a binlog.
//!
//! The only events that are ever made here, and they go to a recovering server only, never into an archive.

use bytes::BufMut;

use super::event::{CHECKSUM_BYTES, EventError, GtidEvent, HEADER_BYTES, Header, kind};

/// "The default database does not matter", as mysqld flags its own BEGIN and COMMIT.
const FLAG_SUPPRESS_USE: u16 = 0x08;
/// Status variables of a BEGIN and a COMMIT that 9.7.4 writes, by their codes: flags2 (0), the default sql_mode (1), catalog `std` (6), the
/// session's character sets (4; 255 is utf8mb4_0900_ai_ci) and the default collation of utf8mb4 (18).
const STATUS: [u8; 29] = [
    0, 0, 0, 0, 0, 1, 0x20, 0, 0xa0, 0x45, 0, 0, 0, 0, 6, 3, b's', b't', b'd', 4, 255, 0, 255, 0, 255, 0, 18, 255, 0,
];

/// The events of an empty transaction that bears the GTID, the commit times and the place in the commit order of the one that `gtid_event`
/// (the whole event, its checksum included where `checksum` says that there is one) begins.
pub fn empty_transaction(gtid_event: &[u8], checksum: bool) -> Result<[Vec<u8>; 3], EventError> {
    let header = Header::parse(gtid_event).ok_or(EventError::Malformed { kind: kind::GTID })?;
    let malformed = EventError::Malformed { kind: header.kind };
    let end = gtid_event.len() - if checksum { CHECKSUM_BYTES } else { 0 };
    let body = gtid_event.get(HEADER_BYTES..end).ok_or(malformed.clone())?;
    let length_at = GtidEvent::parse(header.kind, body)?.length_at;
    let position = header.log_pos;
    let begin = query(&header, position, b"BEGIN", checksum);
    let commit = query(&header, position.wrapping_add(begin.len() as u32), b"COMMIT", checksum);
    let total = (gtid_event.len() + begin.len() + commit.len()) as u64;
    let mut first = gtid_event[..end].to_vec();
    let field = &mut first[HEADER_BYTES + length_at.start..HEADER_BYTES + length_at.end];
    match header.kind {
        kind::GTID => write_lenenc(field, total),
        _ => write_varlen(field, total),
    }
    .ok_or(malformed)?;
    Ok([sealed(first, checksum), begin, commit])
}

/// A statement of nobody's thread, in no schema, at the time of the transaction that it stands for.
fn query(like: &Header, start: u32, text: &[u8], checksum: bool) -> Vec<u8> {
    let body = 4 + 4 + 1 + 2 + 2 + STATUS.len() + 1 + text.len();
    let len = (HEADER_BYTES + body + if checksum { CHECKSUM_BYTES } else { 0 }) as u32;
    let mut event = Vec::with_capacity(len as usize);
    event.put_u32_le(like.timestamp_s);
    event.put_u8(kind::QUERY);
    event.put_u32_le(like.server_id);
    event.put_u32_le(len);
    event.put_u32_le(start.wrapping_add(len));
    event.put_u16_le(FLAG_SUPPRESS_USE);
    event.put_u32_le(0); // thread
    event.put_u32_le(0); // seconds that it took
    event.put_u8(0); // length of the schema's name
    event.put_u16_le(0); // error code
    event.put_u16_le(STATUS.len() as u16);
    event.put_slice(&STATUS);
    event.put_u8(0); // the end of the schema's name
    event.put_slice(text);
    sealed(event, checksum)
}

fn sealed(mut event: Vec<u8>, checksum: bool) -> Vec<u8> {
    if checksum {
        event.put_u32_le(crc32fast::hash(&event));
    }
    event
}

/// Overwrites a length-encoded integer, in as many bytes as it had.
fn write_lenenc(field: &mut [u8], value: u64) -> Option<()> {
    const ONE_BYTE_MAX: u64 = 0xfa;
    match field {
        [only] => *only = u8::try_from(value).ok().filter(|v| u64::from(*v) <= ONE_BYTE_MAX)?,
        [_, rest @ ..] => put_le(rest, value)?,
        [] => return None,
    }
    Some(())
}

/// Overwrites an integer of the serialization library, in as many bytes as it had: the first one's trailing ones say how many follow.
fn write_varlen(field: &mut [u8], value: u64) -> Option<()> {
    const NINE_BYTES: usize = 9;
    let len = field.len();
    if len == NINE_BYTES {
        return put_le(&mut field[1..], value);
    }
    let extra = len.checked_sub(1)?;
    let ones = (1u64 << extra) - 1;
    put_le(field, value.checked_mul(1 << len)? | ones)
}

/// None where the value needs more bytes.
fn put_le(field: &mut [u8], value: u64) -> Option<()> {
    let le = value.to_le_bytes();
    let (low, high) = le.split_at_checked(field.len())?;
    if high.iter().any(|b| *b != 0) {
        return None;
    }
    field.copy_from_slice(low);
    Some(())
}

#[cfg(test)]
mod tests {
    use crate::binlog::{
        event::parse_query,
        splitter::{checksum_is_right, tests::event},
    };

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        text.as_bytes()
            .chunks(2)
            .map(|p| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap())
            .collect()
    }

    // Bodies recorded from a 9.7.4 server, checksums cut off: plain, with an original commit time, tagged.
    const GTIDS: [(u8, &str); 3] = [
        (
            kind::GTID,
            "00d00f02a4e59711f180da02fc00000001030000000000000002020000000000000003000000000000003e927df9c66006fc170150620100",
        ),
        (
            kind::GTID,
            "00d00f02a4e59711f180da02fc000000010400000000000000020200000000000000090000000000000098207ef9c6608640420f00000000fc150150620100",
        ),
        (
            kind::GTID_TAGGED,
            "02740000000241031e04910295035d0222c5030102690304f1030000000204040608626c756508080a100c7f57b57df9c660061041041283120b",
        ),
    ];
    /// BEGIN of an empty transaction, as 9.7.4 writes it: a client's thread 8, in server 1, at this time, up to position 537.
    const BEGIN: &str = "cda0016b0201000000470000001902000008000800000000000000000000\
        1d0000000000000120 00a0450000000006037374 6404ff00ff00ff0012ff0000424547494ea1c578be";

    #[test]
    fn it_has_the_shape_of_mysqlds_own() {
        let recorded = hex(&BEGIN.replace(' ', ""));
        let like = Header::parse(&recorded).unwrap();
        let mut made = query(&like, 466, b"BEGIN", true);
        made[HEADER_BYTES] = 8;
        let end = made.len() - CHECKSUM_BYTES;
        assert_eq!(made[..end], recorded[..end]);
    }

    #[test]
    fn gtid_times_and_order_are_kept_and_the_length_is_right() {
        for (kind, body) in GTIDS {
            let original = event(kind, &hex(body));
            let made = empty_transaction(&original, true).unwrap();
            let parse = |event: &[u8]| GtidEvent::parse(kind, &event[HEADER_BYTES..event.len() - CHECKSUM_BYTES]).unwrap();
            let (was, is) = (parse(&original), parse(&made[0]));
            assert_eq!(is.transaction_bytes, made.concat().len() as u64);
            assert_eq!(
                GtidEvent {
                    transaction_bytes: was.transaction_bytes,
                    ..is
                },
                was
            );
            assert!(made.iter().all(|event| checksum_is_right(event)));
            let texts: Vec<String> = made[1..]
                .iter()
                .map(|e| parse_query(&e[HEADER_BYTES..e.len() - CHECKSUM_BYTES]).unwrap().1)
                .collect();
            assert_eq!(texts, ["BEGIN", "COMMIT"]);
            let ends: Vec<u32> = made.iter().map(|e| Header::parse(e).unwrap().log_pos).collect();
            assert_eq!(ends, [0, made[1].len() as u32, (made[1].len() + made[2].len()) as u32]);
        }
    }

    #[test]
    fn without_checksums_there_are_none() {
        let mut original = event(kind::GTID, &hex(GTIDS[0].1));
        original.truncate(original.len() - CHECKSUM_BYTES);
        let [_, begin, commit] = empty_transaction(&original, false).unwrap();
        assert!(begin.ends_with(b"BEGIN") && commit.ends_with(b"COMMIT"));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(write_varlen(&mut [0], 128), None);
        assert_eq!(write_lenenc(&mut [0], 251), None);
        let mut nine = [0xff; 9];
        write_varlen(&mut nine, 5).unwrap();
        assert_eq!(nine, [0xff, 5, 0, 0, 0, 0, 0, 0, 0]);
    }
}
