//! The binlogs as a replica gets them: at each file an artificial Rotate and the file's own Format_description, then the
//! transactions that it lacks and may have, as mysqld wrote them; in the place of one that is to be left out, an empty one.
//!
//! A transaction is sent whole or not at all: everything from one GTID event to the next follows the decision made at the
//! first. Sequence numbers restart with each file, so files are never joined.

use std::time::Duration;

use anyhow::Context;
use bytes::BufMut;
use tokio::time::{Instant, timeout};

use crate::{
    archive::reader::{Portions, damaged},
    binlog::{
        empty::empty_transaction,
        event::{CHECKSUM_BYTES, EventError, FLAG_ARTIFICIAL, GtidEvent, HEADER_BYTES, MAGIC, kind},
        gtid::GtidSet,
        splitter::{Piece, SplitError, Splitter},
        transaction::is_boundary,
    },
    mysql::wire::{Framer, Wire},
    support::hint::message,
};

use super::feed::{Feed, Leg};

/// Where the replica asks for none.
pub const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(30);
/// Before every event in the stream.
const STATUS_OK: u8 = 0;

/// Sends every leg, then heartbeats until the replica goes.
pub async fn send(wire: &mut Wire, feed: &Feed, has: &GtidSet, heartbeat: Duration) -> anyhow::Result<()> {
    let mut sender = Sender {
        wire,
        feed,
        sent: has.clone(),
        sending: false,
        framer: None,
        name: String::new(),
        position: 0,
        heartbeat,
        checksum: true,
        in_event: false,
        is_proven: false,
        needs_proof: false,
    };
    let lacks = |leg: &&Leg| !leg.wanted.is_subset(has);
    let legs: Vec<Leg> = feed.legs.lock().await.iter().filter(lacks).cloned().collect();
    // The next binlog is read ahead while this one is sent.
    let mut next = legs.first().map(|leg| Portions::of(&feed.archive, &leg.binlog));
    for (i, leg) in legs.iter().enumerate() {
        let Some(portions) = next.take() else { break };
        next = legs.get(i + 1).map(|leg| Portions::of(&feed.archive, &leg.binlog));
        sender.leg(i, leg, portions).await?;
    }
    sender.wire.flush().await?;
    feed.progress.sent_all();
    loop {
        tokio::time::sleep(heartbeat).await;
        sender.beat().await?;
    }
}

/// Ends the stream. The replica comes back, and says what it received whole, where there is another form of the binlog to go on with; else
/// whoever waits for it is told that the archive is at fault.
async fn fail(feed: &Feed, leg: &Leg, error: anyhow::Error) -> anyhow::Error {
    let text = message(&error);
    if !feed.turn_to_segments(leg, &error).await {
        feed.progress.failed(error);
    }
    anyhow::anyhow!(text)
}

struct Sender<'a> {
    wire: &'a mut Wire,
    feed: &'a Feed,
    /// What the replica has, and what it was sent.
    sent: GtidSet,
    sending: bool,
    framer: Option<Framer>,
    /// Where the replica believes to be: it counts the bytes that it was sent of this file. A heartbeat that says less is an error
    /// to it, and one that says more makes it write a Rotate, perhaps in the middle of a transaction.
    name: String,
    position: u64,
    heartbeat: Duration,
    /// Whether the replica expects a checksum after each event: as agreed at first, then as the last file's events have it.
    checksum: bool,
    in_event: bool,
    /// Whether this leg's objects were read to their ends, so that what they hold is known to be right.
    is_proven: bool,
    /// Whether a transaction was held back for the want of that.
    needs_proof: bool,
}

impl Sender<'_> {
    /// Where events have no checksums, damage may show only at an object's end: it is read to there before anything of it is sent.
    async fn leg(&mut self, number: usize, leg: &Leg, portions: Portions) -> anyhow::Result<()> {
        self.pass(number, leg, portions).await?;
        if std::mem::take(&mut self.needs_proof) {
            self.is_proven = true;
            let again = Portions::of(&self.feed.archive, &leg.binlog);
            self.pass(number, leg, again).await?;
            self.is_proven = false;
        }
        Ok(())
    }

    async fn pass(&mut self, number: usize, leg: &Leg, mut portions: Portions) -> anyhow::Result<()> {
        // Binlogs of several servers may bear the same name; to the replica each is another file.
        self.name = format!(
            "pitr-{number:06}.{}",
            leg.binlog.place().name.rsplit('.').next().unwrap_or("000001")
        );
        self.rotate();
        let mut splitter = Splitter::new();
        let mut beaten = Instant::now();
        loop {
            // Much may be read of which nothing is sent.
            if beaten.elapsed() >= self.heartbeat {
                self.beat().await?;
                beaten = Instant::now();
            }
            let portion = match timeout(self.heartbeat, portions.next()).await {
                Ok(Ok(portion)) => portion,
                Ok(Err(e)) => return Err(fail(self.feed, leg, e).await),
                Err(_) => continue,
            };
            let Some(bytes) = portion else { break };
            let pushed = splitter.push(&bytes, |piece| self.piece(piece, &leg.wanted));
            if let Err(e) = damaged(pushed, &self.feed.archive, &leg.binlog) {
                return Err(fail(self.feed, leg, e).await);
            }
            self.checksum = splitter.checksum();
            self.wire.flush_if_full().await?;
        }
        match damaged(splitter.finish(), &self.feed.archive, &leg.binlog) {
            Ok(()) => Ok(()),
            Err(e) => Err(fail(self.feed, leg, e).await),
        }
    }

    fn piece(&mut self, piece: &Piece<'_>, wanted: &GtidSet) -> Result<(), SplitError> {
        if piece.is_first() {
            if is_boundary(&piece.header) {
                self.sending = match piece.header.kind {
                    kind::FORMAT_DESCRIPTION | kind::PREVIOUS_GTIDS => true,
                    // The next leg begins with a Rotate of its own.
                    kind::ROTATE | kind::STOP => false,
                    _ => self.transaction(piece, wanted)?,
                };
            }
            if self.sending {
                let mut framer = Framer::new(1 + u64::from(piece.header.len));
                self.wire.queue_part(&mut framer, &[STATUS_OK]);
                self.framer = Some(framer);
                self.position += u64::from(piece.header.len);
            }
        }
        if self.sending
            && let Some(framer) = &mut self.framer
        {
            self.wire.queue_part(framer, piece.bytes);
            self.feed.progress.sent_bytes(piece.bytes.len() as u64);
        }
        self.in_event = self.sending && !piece.is_last();
        Ok(())
    }

    /// Whether the transaction that begins here is to be sent as it is.
    fn transaction(&mut self, piece: &Piece<'_>, wanted: &GtidSet) -> Result<bool, SplitError> {
        let fail = |source: EventError| SplitError::Event {
            position: piece.start,
            source,
        };
        let event = GtidEvent::parse(piece.header.kind, piece.body()).map_err(fail)?;
        if !wanted.contains(&event.gtid) || self.sent.contains(&event.gtid) {
            return Ok(false);
        }
        if !piece.checksum && !self.is_proven {
            self.needs_proof = true;
            return Ok(false);
        }
        self.sent.insert(event.gtid);
        self.feed.progress.sent_transaction(event.immediate_commit_us);
        if !self.feed.skipped.contains(&event.gtid) {
            return Ok(true);
        }
        for event in empty_transaction(piece.bytes, piece.checksum).map_err(fail)? {
            self.position += event.len() as u64;
            self.queue_event(&event);
            self.feed.progress.sent_bytes(event.len() as u64);
        }
        Ok(false)
    }

    /// Tells the replica which file comes now.
    fn rotate(&mut self) {
        let mut body = Vec::with_capacity(8 + self.name.len());
        body.put_u64_le(MAGIC.len() as u64);
        body.put_slice(self.name.as_bytes());
        self.made_up(kind::ROTATE, 0, FLAG_ARTIFICIAL, &body);
        self.position = MAGIC.len() as u64;
    }

    async fn beat(&mut self) -> anyhow::Result<()> {
        // Beyond 4 GiB this kind of heartbeat cannot tell the position; the replica then reconnects when it misses them.
        let Some(position) = u32::try_from(self.position).ok().filter(|_| !self.in_event) else {
            return Ok(());
        };
        let name = self.name.clone();
        self.made_up(kind::HEARTBEAT, position, 0, name.as_bytes());
        self.wire.flush().await.context("the replica is gone")
    }

    /// Queues an event that no file holds.
    fn made_up(&mut self, event_kind: u8, log_pos: u32, flags: u16, body: &[u8]) {
        let len = HEADER_BYTES + body.len() + if self.checksum { CHECKSUM_BYTES } else { 0 };
        let mut event = Vec::with_capacity(len);
        event.put_u32_le(0);
        event.put_u8(event_kind);
        event.put_u32_le(self.feed.server_id);
        event.put_u32_le(len as u32);
        event.put_u32_le(log_pos);
        event.put_u16_le(flags);
        event.put_slice(body);
        if self.checksum {
            event.put_u32_le(crc32fast::hash(&event));
        }
        self.queue_event(&event);
    }

    /// A whole event, in a packet of its own.
    fn queue_event(&mut self, event: &[u8]) {
        let mut framer = Framer::new(1 + event.len() as u64);
        self.wire.queue_part(&mut framer, &[STATUS_OK]);
        self.wire.queue_part(&mut framer, event);
    }
}
