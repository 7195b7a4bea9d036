//! The live binlog followed: segments stored as they are cut, several at a time, the watermark moving in order.

use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::{StreamExt, stream::FuturesOrdered};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tracing::{info, warn};

use crate::{
    archive::{
        keys::{BinlogPlace, SegmentRange},
        records::{Ending, Opening},
    },
    binlog::{
        event::{MAGIC, kind},
        splitter::Splitter,
    },
    mysql::{
        dump::{AtEnd, DumpItem},
        query::ServerBinlog,
    },
    store::Upload,
};

use super::{
    beginning::Identity,
    cutter::{Action, Cutter},
    puts::{finish_once, put_once, write_in_time},
    round::{Round, stopped},
    seal::{ToSeal, after_magic, identify},
};

/// Segments being stored at a time; more hide the store's latency, and each holds a segment in memory.
const UPLOADS_IN_FLIGHT_MAX: usize = 4;
/// How long a stopping agent goes on storing what it has already cut.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// A segment that is durable.
struct Stored {
    range: SegmentRange,
    sha256: String,
    stored_bytes: u64,
}

/// Follows the live binlog, and each one after it.
pub struct Tail<'r> {
    round: &'r mut Round,
    name: String,
    opening: Option<Opening>,
    splitter: Splitter,
    cutter: Cutter,
    last_kind: u8,
    uploads: FuturesOrdered<JoinHandle<anyhow::Result<Stored>>>,
    /// A large event's segment on its way, and the bytes of it so far.
    stream: Option<(Box<dyn Upload>, SegmentRange, u64)>,
    /// Takes what is complete.
    sealing: mpsc::UnboundedSender<ToSeal>,
    deadline: Option<Instant>,
    /// The fingerprint that the server's file of this name had at the last look.
    first_seen: Option<String>,
}

impl<'r> Tail<'r> {
    /// From the beginning of `name`, or from where `known` (its opening, and how far it is covered) ends.
    pub fn new(
        round: &'r mut Round,
        name: &str,
        known: Option<(Opening, u64)>,
        sealing: mpsc::UnboundedSender<ToSeal>,
    ) -> Tail<'r> {
        let (codec, segment_bytes) = (round.settings.codec, round.settings.segment_bytes);
        let (opening, covered) = known.map_or((None, 0), |(opening, covered)| (Some(opening), covered));
        let resumes = opening.is_some() && covered > MAGIC.len() as u64;
        Tail {
            round,
            name: name.to_owned(),
            opening,
            splitter: if resumes {
                Splitter::resume(covered, true)
            } else {
                after_magic()
            },
            cutter: if resumes {
                Cutter::resume(codec, segment_bytes)
            } else {
                Cutter::new(codec, segment_bytes)
            },
            last_kind: 0,
            uploads: FuturesOrdered::new(),
            stream: None,
            sealing,
            deadline: None,
            first_seen: None,
        }
    }

    /// Goes on until `stop`, or until something fails.
    pub async fn follow(mut self, stop: &mut watch::Receiver<bool>) -> anyhow::Result<()> {
        let from = self.splitter.position().max(MAGIC.len() as u64);
        let server = self.round.server.clone();
        let mut dump = server
            .dump(&self.name, from, AtEnd::Wait)
            .await
            .context("cannot open the binlog stream")?;
        info!(binlog = %self.name, position = from, "following the live binlog");
        loop {
            let may_read = self.uploads.len() < UPLOADS_IN_FLIGHT_MAX;
            tokio::select! {
                biased;
                () = stopped(stop) => return self.finish().await,
                Some(done) = self.uploads.next(), if !self.uploads.is_empty() => self.stored(done)?,
                () = sleep_until(self.deadline.unwrap_or_else(Instant::now)), if self.deadline.is_some() && may_read => {
                    self.deadline = None;
                    self.cut().await?;
                }
                item = dump.next(), if may_read => self.item(item.context("the binlog stream broke")?).await?,
            }
        }
    }

    async fn item(&mut self, item: DumpItem) -> anyhow::Result<()> {
        match item {
            DumpItem::Bytes { bytes, .. } => {
                let (cutter, last_kind) = (&mut self.cutter, &mut self.last_kind);
                let mut actions = Vec::new();
                self.splitter.push(&bytes, |piece| {
                    *last_kind = piece.header.kind;
                    cutter.piece(piece, &mut actions)
                })?;
                self.round.status.send_modify(|s| s.receives(bytes.len() as u64));
                self.act(actions).await?;
                if self.opening.is_none() {
                    // Nothing that has to be stored was in it so far.
                    let (name, position) = (&self.name, self.splitter.position());
                    self.round.status.send_modify(|s| s.reaches(name, position));
                }
                if self.deadline.is_none() && self.cutter.has_uncut() {
                    self.deadline = Some(Instant::now() + self.round.settings.flush_interval);
                }
                Ok(())
            }
            DumpItem::Format(format) => {
                self.splitter = Splitter::resume(self.splitter.position(), format.checksum);
                Ok(())
            }
            DumpItem::Binlog { name, .. } if name == self.name => Ok(()),
            DumpItem::Binlog { name, position } => self.rotate(name, position).await,
            DumpItem::Heartbeat => {
                self.round.status.send_modify(|s| s.receives(0));
                self.ensure_same_binlog().await
            }
            DumpItem::End => bail!("the server ended the binlog stream"),
        }
    }

    /// After RESET BINARY LOGS AND GTIDS the server goes on reading the old file for this stream, without an error and without an
    /// end, while a new one of the same name grows. So whenever nothing came for a while, the server's file is looked at again.
    async fn ensure_same_binlog(&mut self) -> anyhow::Result<()> {
        let identity = identify(&*self.round.server, &self.name).await?;
        let there = identity.map(|i| i.fingerprint);
        let followed = self.opening.as_ref().map(|o| o.fingerprint.clone());
        let same = match (&followed, &there) {
            (Some(followed), there) => there.as_ref() == Some(followed),
            // Its first transaction is on its way, unless it was there at the last look already.
            (None, there) => there.is_none() || self.first_seen.as_ref() != there.as_ref(),
        };
        self.first_seen = there;
        if !same {
            bail!("the server's binlog {} is not the one that was followed", self.name);
        }
        Ok(())
    }

    /// Cuts and stores what there is.
    async fn cut(&mut self) -> anyhow::Result<()> {
        let mut actions = Vec::new();
        self.cutter.cut_soon(&mut actions)?;
        self.act(actions).await
    }

    async fn act(&mut self, actions: Vec<Action>) -> anyhow::Result<()> {
        for action in actions {
            match action {
                Action::Open(identity) => self.open(&identity).await?,
                Action::Put(cut) => {
                    self.deadline = None;
                    let (store, key) = (self.round.archive.store.clone(), self.key(cut.range)?);
                    let (stored_bytes, patience) = (cut.bytes.len() as u64, self.round.patience());
                    self.uploads.push_back(tokio::spawn(async move {
                        put_once(&store, &key, cut.bytes.into(), patience).await?;
                        Ok(Stored {
                            range: cut.range,
                            sha256: cut.sha256,
                            stored_bytes,
                        })
                    }));
                }
                Action::StreamBegin(range) => {
                    let upload = self.round.archive.store.upload(&self.key(range)?).await?;
                    self.stream = Some((upload, range, 0));
                }
                Action::StreamBytes(bytes) => {
                    let Some((upload, range, stored_bytes)) = &mut self.stream else {
                        bail!("bytes of a segment that was not begun")
                    };
                    *stored_bytes += bytes.len() as u64;
                    let (store, key) = (
                        &self.round.archive.store,
                        segment_key(self.round, self.opening.as_ref(), *range)?,
                    );
                    write_in_time(store, &key, &mut **upload, bytes.into()).await?;
                }
                Action::StreamEnd { sha256 } => {
                    let Some((upload, range, stored_bytes)) = self.stream.take() else {
                        bail!("the end of a segment that was not begun")
                    };
                    finish_once(upload).await?;
                    self.uploads.push_back(tokio::spawn(async move {
                        Ok(Stored {
                            range,
                            sha256,
                            stored_bytes,
                        })
                    }));
                }
            }
        }
        Ok(())
    }

    /// The binlog's first transaction has begun: it gets its place.
    async fn open(&mut self, identity: &Identity) -> anyhow::Result<()> {
        if let Some(known) = &self.opening {
            if known.fingerprint != identity.fingerprint {
                bail!("binlog {} changed while the agent looked at it", self.name);
            }
            return Ok(());
        }
        self.opening = Some(self.round.open(&self.name, identity).await?);
        Ok(())
    }

    fn place(&self) -> anyhow::Result<&BinlogPlace> {
        place(self.opening.as_ref())
    }

    fn key(&self, range: SegmentRange) -> anyhow::Result<String> {
        segment_key(self.round, self.opening.as_ref(), range)
    }

    /// i3: called in the order in which the segments were cut.
    fn stored(&mut self, done: Result<anyhow::Result<Stored>, tokio::task::JoinError>) -> anyhow::Result<()> {
        let stored = done.context("a storing task died")??;
        self.round.catalog.segment_stored(self.place()?, stored.range, &stored.sha256);
        let (name, timeline) = (&self.name, self.round.timeline.id);
        self.round
            .status
            .send_modify(|s| s.segment_stored(timeline, name, stored.range.end, stored.stored_bytes));
        Ok(())
    }

    async fn drain(&mut self) -> anyhow::Result<()> {
        self.cut().await?;
        while let Some(done) = self.uploads.next().await {
            self.stored(done)?;
        }
        Ok(())
    }

    /// The server went on to another binlog: the one before is complete, and is sealed in the background.
    async fn rotate(&mut self, name: String, position: u64) -> anyhow::Result<()> {
        self.splitter.finish().with_context(|| format!("binlog {}", self.name))?;
        self.drain().await?;
        if let Some(opening) = self.opening.take() {
            let file = ServerBinlog {
                name: self.name.clone(),
                bytes: self.splitter.position(),
            };
            self.round.status.send_modify(|s| s.closes(&file.name, file.bytes));
            // Whoever seals may have ended with the round, which is about to.
            let _ = self.sealing.send(ToSeal { file, opening });
        }
        let ending = match self.last_kind {
            kind::ROTATE => Ending::Rotate,
            kind::STOP => Ending::Stop,
            _ => Ending::Crash,
        };
        self.round.crashed |= ending == Ending::Crash;
        info!(binlog = %name, before = %self.name, ?ending, "the server went on to the next binlog");
        if position != MAGIC.len() as u64 {
            bail!("the server entered binlog {name} at {position} instead of its beginning");
        }
        self.name = name;
        self.splitter = after_magic();
        self.cutter = Cutter::new(self.round.settings.codec, self.round.settings.segment_bytes);
        self.deadline = None;
        self.first_seen = None;
        Ok(())
    }

    /// A clean stop: what was received is stored; sealing goes on in the next life.
    async fn finish(mut self) -> anyhow::Result<()> {
        match timeout(STOP_PATIENCE, self.drain()).await {
            Ok(result) => result,
            Err(_) => {
                warn!("stopped before everything that was received was stored; the next start goes on from the archive");
                Ok(())
            }
        }
    }
}

fn place(opening: Option<&Opening>) -> anyhow::Result<&BinlogPlace> {
    Ok(&opening.context("a segment was cut before its binlog had a place")?.place)
}

fn segment_key(round: &Round, opening: Option<&Opening>, range: SegmentRange) -> anyhow::Result<String> {
    Ok(place(opening)?.segment_key(&round.archive.shard, range, round.settings.codec))
}
