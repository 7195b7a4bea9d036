//! How a closed binlog ends, found without reading it: its last event alone tells.

use anyhow::Context;

use crate::{
    archive::records::Ending,
    binlog::{
        event::{CHECKSUM_BYTES, HEADER_BYTES, MAGIC, kind},
        splitter::Splitter,
    },
    mysql::{
        dump::{AtEnd, DumpItem},
        query::ServerBinlog,
        server::Server,
        wire::WireError,
    },
};

/// What a Rotate event has before the name of the next binlog.
const ROTATE_POSITION_BYTES: usize = 8;
/// Where a source cannot send what it was asked for: among others, no event begins at that position.
const ER_SOURCE_FATAL_ERROR_READING_BINLOG: u16 = 1236;

/// How `file`, after which the server went on to `successor`, ends. A server that goes on by itself leaves a Rotate, one that is
/// stopped a Stop; both are of a known length, with a checksum or without. Whatever ends otherwise was left by a crash.
///
/// # Errors
/// Where the server could not be asked.
pub async fn ending(server: &dyn Server, file: &ServerBinlog, successor: &str) -> anyhow::Result<Ending> {
    let candidates = [
        (Ending::Rotate, kind::ROTATE, ROTATE_POSITION_BYTES + successor.len()),
        (Ending::Stop, kind::STOP, 0),
    ];
    for checksum in [true, false] {
        for (ending, kind, body_bytes) in candidates {
            let event_bytes = HEADER_BYTES + body_bytes + if checksum { CHECKSUM_BYTES } else { 0 };
            let last = LastEvent {
                kind,
                bytes: event_bytes as u64,
                checksum,
            };
            let found = last.ends(server, file).await;
            if found.with_context(|| format!("cannot see how binlog {} ends", file.name))? {
                return Ok(ending);
            }
        }
    }
    Ok(Ending::Crash)
}

/// What a binlog may end with.
struct LastEvent {
    kind: u8,
    bytes: u64,
    checksum: bool,
}

impl LastEvent {
    /// Whether exactly this event is the last of `file`. At a position where no event begins, the server sends an error or garbage.
    async fn ends(&self, server: &dyn Server, file: &ServerBinlog) -> Result<bool, WireError> {
        let start = file.bytes.saturating_sub(self.bytes);
        if start <= MAGIC.len() as u64 {
            return Ok(false);
        }
        let mut dump = server.dump(&file.name, start, AtEnd::Stop).await?;
        let mut splitter = Splitter::resume(start, self.checksum);
        let mut found = false;
        loop {
            let item = match dump.next().await {
                Ok(item) => item,
                Err(WireError::Server {
                    code: ER_SOURCE_FATAL_ERROR_READING_BINLOG,
                    ..
                })
                | Err(WireError::Protocol(_)) => return Ok(false),
                Err(e) => return Err(e),
            };
            match item {
                DumpItem::Format(format) if format.checksum != self.checksum => return Ok(false),
                DumpItem::Format(_) | DumpItem::Heartbeat => {}
                DumpItem::Binlog { name, .. } if name == file.name => {}
                DumpItem::Binlog { .. } | DumpItem::End => {
                    return Ok(found && splitter.finish().is_ok() && splitter.position() == file.bytes);
                }
                DumpItem::Bytes { bytes, .. } => {
                    let split = splitter.push(&bytes, |piece| {
                        let is_it = piece.header.kind == self.kind && u64::from(piece.header.len) == self.bytes;
                        // Without a checksum the header has to vouch for the event.
                        found = !found && is_it && piece.header.log_pos == file.bytes as u32;
                        Ok::<(), crate::binlog::splitter::SplitError>(())
                    });
                    if split.is_err() || !found && splitter.position() > start {
                        return Ok(false);
                    }
                }
            }
        }
    }
}
