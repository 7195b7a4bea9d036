//! Binlogs as mysqld writes them, event by event.

use mysql_pitr::binlog::{
    event::{CHECKSUM_BYTES, FLAG_ARTIFICIAL, HEADER_BYTES, MAGIC, kind},
    gtid::{Gtid, GtidSet},
};

pub const SERVER_VERSION: &str = "9.7.4";
const SERVER_ID: u32 = 1;

/// An event that ends at `log_pos` in its file, with a right checksum.
pub fn event(kind: u8, flags: u16, log_pos: u32, body: &[u8]) -> Vec<u8> {
    let len = (HEADER_BYTES + body.len() + CHECKSUM_BYTES) as u32;
    let mut out = Vec::with_capacity(len as usize);
    out.extend_from_slice(&0u32.to_le_bytes());
    out.push(kind);
    out.extend_from_slice(&SERVER_ID.to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&log_pos.to_le_bytes());
    out.extend_from_slice(&flags.to_le_bytes());
    out.extend_from_slice(body);
    out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
    out
}

pub fn format_description_body() -> Vec<u8> {
    const VERSION_END: usize = 2 + 50;
    const POST_HEADERS: usize = 42;
    let mut body = vec![4, 0];
    body.extend_from_slice(SERVER_VERSION.as_bytes());
    body.resize(VERSION_END + 4 + 1 + POST_HEADERS, 0);
    body.push(1); // CRC32
    body
}

/// An artificial Rotate, as a source sends it before each file.
pub fn artificial_rotate(name: &str, position: u64) -> Vec<u8> {
    event(kind::ROTATE, FLAG_ARTIFICIAL, 0, &rotate_body(name, position))
}

fn rotate_body(name: &str, position: u64) -> Vec<u8> {
    [&position.to_le_bytes()[..], name.as_bytes()].concat()
}

/// The body of a GTID event whose transaction has so many bytes besides.
pub fn gtid_body(gtid: Gtid, commit_us: i64, others_bytes: u64) -> Vec<u8> {
    /// A length of eight bytes behind 254.
    const LENENC_BYTES: usize = 9;
    const BODY_BYTES: usize = 1 + 16 + 8 + 17 + 7 + LENENC_BYTES;
    let mut body = vec![0];
    body.extend_from_slice(gtid.tsid.uuid.as_bytes());
    body.extend_from_slice(&gtid.gno.to_le_bytes());
    body.extend_from_slice(&[2; 17]);
    body.extend_from_slice(&commit_us.to_le_bytes()[..7]);
    body.push(254);
    let own = (HEADER_BYTES + BODY_BYTES + CHECKSUM_BYTES) as u64;
    body.extend_from_slice(&(own + others_bytes).to_le_bytes());
    body
}

/// Appends events to one file's bytes.
pub struct BinlogWriter<'f>(pub &'f mut Vec<u8>);

impl BinlogWriter<'_> {
    /// Magic bytes, Format_description, Previous_gtids.
    pub fn begin(&mut self, previous: &GtidSet) {
        self.0.extend_from_slice(&MAGIC);
        self.event(kind::FORMAT_DESCRIPTION, &format_description_body());
        self.event(kind::PREVIOUS_GTIDS, &previous.encode());
    }

    pub fn event(&mut self, kind: u8, body: &[u8]) {
        let end = self.0.len() + HEADER_BYTES + body.len() + CHECKSUM_BYTES;
        self.0.extend(event(kind, 0, end as u32, body));
    }

    /// A whole transaction: GTID, BEGIN, one event of rows for each of `rows`, Xid.
    pub fn transaction(&mut self, gtid: Gtid, commit_us: i64, rows: &[Vec<u8>]) {
        let begin = query_body("BEGIN");
        let bodies = || [begin.len(), 8].into_iter().chain(rows.iter().map(Vec::len));
        let others: usize = bodies().map(|len| HEADER_BYTES + len + CHECKSUM_BYTES).sum();
        self.event(kind::GTID, &gtid_body(gtid, commit_us, others as u64));
        self.event(kind::QUERY, &begin);
        rows.iter().for_each(|body| self.event(kind::WRITE_ROWS, body));
        self.event(kind::XID, &gtid.gno.to_le_bytes());
    }

    /// The end of a file that the server left for another one.
    pub fn rotate(&mut self, next: &str) {
        self.event(kind::ROTATE, &rotate_body(next, MAGIC.len() as u64));
    }

    /// The end of a file whose server was shut down.
    pub fn stop(&mut self) {
        self.event(kind::STOP, &[]);
    }
}

fn query_body(text: &str) -> Vec<u8> {
    let mut body = vec![0; 4 + 4 + 1 + 2 + 2];
    body.push(0);
    body.extend_from_slice(text.as_bytes());
    body
}
