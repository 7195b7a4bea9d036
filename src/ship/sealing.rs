//! Closed binlogs on their way into the archive: several at a time, their ends in order.

use std::{collections::VecDeque, future::pending, mem, sync::atomic::Ordering, time::Duration};

use anyhow::Context as _;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tracing::{error, info};

use crate::support::hint::render;

use super::{
    round::stopped,
    seal::{Sealer, ToSeal, is_fault_of_the_binlog},
    status::Status,
};

/// Between two lines about a backlog.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Seals the binlogs of one round.
///
/// Several are read, compressed and uploaded side by side, but they become visible strictly in the order of the binlogs, as
/// segments do (i3): the next round looks from the newest binlog back until it meets one that is sealed, and would never come back to
/// an unsealed one behind it. Only a binlog that cannot be archived whole, however often it is read, is passed over.
pub struct Sealing {
    sealer: Sealer,
    workers: usize,
    status: watch::Sender<Status>,
    arriving: mpsc::UnboundedReceiver<ToSeal>,
    waiting: VecDeque<ToSeal>,
    running: JoinSet<anyhow::Result<()>>,
    /// Comes when the last binlog that was begun is done with.
    turn: oneshot::Receiver<()>,
    left: Left,
}

/// What is closed and not sealed.
struct Left {
    /// Names, oldest first.
    binlogs: VecDeque<String>,
    /// Of all these binlogs, and of those that are done with.
    bytes: u64,
    read_bytes_at_report: u64,
    report_at: Instant,
}

impl Sealing {
    /// `closed`: oldest first. More may arrive.
    pub fn new(
        sealer: Sealer,
        workers: usize,
        status: watch::Sender<Status>,
        closed: Vec<ToSeal>,
    ) -> (Sealing, mpsc::UnboundedSender<ToSeal>) {
        let (send, arriving) = mpsc::unbounded_channel();
        let (begin, turn) = oneshot::channel();
        // Nothing is before the first one.
        let _ = begin.send(());
        let mut sealing = Sealing {
            sealer,
            workers,
            status,
            arriving,
            waiting: VecDeque::new(),
            running: JoinSet::new(),
            turn,
            left: Left {
                binlogs: VecDeque::new(),
                bytes: 0,
                read_bytes_at_report: 0,
                report_at: Instant::now(),
            },
        };
        closed.into_iter().for_each(|work| sealing.add(work));
        (sealing, send)
    }

    /// Goes on until something fails; after `stop` nothing is done any more.
    ///
    /// # Errors
    /// Whatever keeps a binlog from being sealed now, and is no fault of the binlog.
    pub async fn run(mut self, stop: &mut watch::Receiver<bool>) -> anyhow::Result<()> {
        loop {
            while self.running.len() < self.workers
                && let Some(work) = self.waiting.pop_front()
            {
                self.begin(work);
            }
            tokio::select! {
                biased;
                () = stopped(stop) => {
                    // Uploads that are dropped are aborted.
                    drop(self);
                    return pending().await;
                }
                Some(done) = self.running.join_next(), if !self.running.is_empty() => {
                    done.context("a sealing task died")??;
                    // The oldest one, for that is their order.
                    self.left.binlogs.pop_front();
                }
                Some(work) = self.arriving.recv() => self.add(work),
                () = sleep_until(self.left.report_at), if !self.left.binlogs.is_empty() => self.report(),
            }
        }
    }

    fn add(&mut self, work: ToSeal) {
        if self.left.binlogs.is_empty() {
            self.left.report_at = Instant::now() + REPORT_INTERVAL;
            self.left.read_bytes_at_report = self.read_bytes();
        }
        self.left.binlogs.push_back(work.file.name.clone());
        self.left.bytes = self.left.bytes.saturating_add(work.file.bytes);
        self.waiting.push_back(work);
    }

    fn begin(&mut self, work: ToSeal) {
        let (done, next) = oneshot::channel();
        let turn = mem::replace(&mut self.turn, next);
        let (sealer, status) = (self.sealer.clone(), self.status.clone());
        self.running.spawn(async move {
            let file = work.file.clone();
            let prepared = sealer.prepare(work).await;
            if turn.await.is_err() {
                // The one before failed, and with it the round.
                return pending().await;
            }
            match prepared {
                Ok(prepared) => {
                    let manifest = sealer.finish(prepared).await?;
                    status.send_modify(|s| s.sealed(&manifest));
                }
                Err(e) if is_fault_of_the_binlog(&e) => report_left_out(&file.name, &e),
                Err(e) => return Err(e),
            }
            status.send_modify(|s| s.passes(&file.name));
            let _ = done.send(());
            Ok(())
        });
    }

    fn read_bytes(&self) -> u64 {
        self.sealer.read_bytes.load(Ordering::Relaxed)
    }

    fn unread_bytes(&self) -> u64 {
        if self.left.binlogs.is_empty() {
            // A binlog that is left out may not have been read to its end.
            return 0;
        }
        self.left.bytes.saturating_sub(self.read_bytes())
    }

    fn report(&mut self) {
        let read_bytes = self.read_bytes();
        let mb_per_s = (read_bytes - self.left.read_bytes_at_report) as f64 / 1e6 / REPORT_INTERVAL.as_secs_f64();
        info!(
            binlogs_left = self.left.binlogs.len(),
            bytes_left = self.unread_bytes(),
            "working off closed binlogs at {mb_per_s:.1} MB/s"
        );
        self.left.read_bytes_at_report = read_bytes;
        self.left.report_at = Instant::now() + REPORT_INTERVAL;
    }
}

/// A binlog that cannot be sealed must not keep the others from being shipped (i8): it stays as far as its segments have it.
pub fn report_left_out(name: &str, e: &anyhow::Error) {
    error!(binlog = %name, "a binlog cannot be archived whole and is left out: {}", render(e));
}
