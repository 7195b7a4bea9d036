//! A server that stands still for the moment in which a snapshot of its volumes begins.
//!
//! **No lock outlives its deadline.** It lies on one connection, which the server itself ends when nothing came over it for the time that
//! is left (`wait_timeout`): an agent that hangs, is stopped, or is cut off loses the lock, and one that dies loses it at once. Waiting for
//! the lock is bounded by the server, too (`lock_wait_timeout`): while FLUSH TABLES WITH READ LOCK waits behind a long query, every writer
//! waits behind it, so it gives up early and tries again.
//!
//! **What was begun while the lock was held is known by the thaw**: it is a statement on that connection, and it fails where the
//! connection, and the lock with it, was gone.
//!
//! File systems are synced, not frozen (fsfreeze): a frozen one would stay so when the agent dies, and journals make the copy whole.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, anyhow, bail};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::{
    binlog::gtid::GtidSet,
    support::{
        durable::sync_filesystems,
        hint::{OrHint, message, with_hint},
        retry::Backoff,
    },
};

use super::{endpoint::Endpoint, query::Session};

/// What is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lock {
    /// FLUSH TABLES WITH READ LOCK: nobody writes anything.
    Tables,
    /// LOCK INSTANCE FOR BACKUP: writes go on, and only what InnoDB cannot recover from (DDL, other files) is kept off.
    Instance,
}

/// How long the server may be troubled.
#[derive(Debug, Clone)]
pub struct Limits {
    pub lock: Lock,
    /// One attempt waits so long for the lock; writers may have to wait behind it.
    pub wait: Duration,
    /// The lock is held so long at most.
    pub hold: Duration,
    /// After so long without a lock it is given up.
    pub patience: Duration,
}

/// The pauses between attempts: writers that waited behind one get their work done.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_LONGEST: Duration = Duration::from_secs(30);
/// A lock's phases wait one after the other, each so long as the server was told: for the tables, for their closing, for commits.
const WAITING_PHASES: u32 = 3;
/// MySQL counts both of its timeouts in whole seconds.
const SECOND: Duration = Duration::from_secs(1);

/// How long one part took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub name: &'static str,
    pub took: Duration,
}

/// A server that stands still until it is thawed or dropped.
pub struct Frozen {
    session: Session,
    lock: Lock,
    locked_at: Instant,
    hold: Duration,
    parts: Vec<Part>,
    /// What had been executed when the lock was there.
    pub gtids: GtidSet,
}

/// How a lock ended.
#[derive(Debug, Clone)]
pub struct Thawed {
    pub held: Duration,
    pub parts: Vec<Part>,
    /// What had been executed just before it ended: the same as at its begin, unless writes went on.
    pub gtids: GtidSet,
}

impl Frozen {
    /// Locks the server and brings what it has written to the disks. Dropped while it waits, it leaves no lock.
    ///
    /// # Errors
    /// Where there was no lock within the patience, and what was in its way.
    pub async fn take(endpoint: &Endpoint, limits: &Limits, file_systems: &[PathBuf]) -> anyhow::Result<Frozen> {
        let give_up = Instant::now() + limits.patience;
        let mut pauses = Backoff::new(PAUSE_FIRST, PAUSE_LONGEST);
        loop {
            // Before the lock, so that little is left to do under it.
            sync(file_systems.to_vec()).await?;
            match Frozen::attempt(endpoint, limits, file_systems).await {
                Ok(frozen) => return Ok(frozen),
                Err(Attempt::Final(e)) => return Err(e),
                Err(Attempt::Busy(e)) => {
                    let pause = pauses.step();
                    if Instant::now() + pause > give_up {
                        let what = format!("the server could not be locked for {} s", limits.patience.as_secs());
                        return Err(e.context(what)).hint(
                            "see what runs so long (SHOW PROCESSLIST), raise lock_patience in the [ebs] section, or move the schedule",
                        );
                    }
                    info!(
                        "the server cannot be locked yet, trying again in {} ms: {}",
                        pause.as_millis(),
                        message(&e)
                    );
                    sleep(pause).await;
                }
            }
        }
    }

    async fn attempt(endpoint: &Endpoint, limits: &Limits, file_systems: &[PathBuf]) -> Result<Frozen, Attempt> {
        let mut session = Session::connect(endpoint).await?;
        if limits.lock == Lock::Tables
            && let Some(query) = in_the_way(&mut session, limits.wait).await?
        {
            return Err(Attempt::Busy(anyhow!("the lock would wait behind {query}")));
        }
        let (id,): (u64,) = session.one("SELECT CONNECTION_ID()").await?;
        session
            .execute(&format!(
                "SET SESSION lock_wait_timeout = {}, SESSION wait_timeout = {}",
                whole_seconds(limits.wait),
                whole_seconds(limits.hold)
            ))
            .await?;
        let begun = Instant::now();
        let statement = match limits.lock {
            Lock::Tables => "FLUSH TABLES WITH READ LOCK",
            Lock::Instance => "LOCK INSTANCE FOR BACKUP",
        };
        let bound = whole_seconds(limits.wait) * WAITING_PHASES;
        let locked = session.execute_within(statement, SECOND * (bound + 1)).await;
        if let Err(e) = locked {
            // The server ends the statement by itself, and this makes sure of it.
            kill(endpoint, id).await;
            return Err(refused(e));
        }
        let mut frozen = Frozen {
            session,
            lock: limits.lock,
            locked_at: begun,
            hold: limits.hold,
            parts: Vec::new(),
            gtids: GtidSet::new(),
        };
        frozen.part("lock", begun);
        // Writers may have stood still since it began to wait; the deadline counts from when it was there.
        frozen.locked_at = Instant::now();
        let settled = timeout(frozen.left(), frozen.settle(file_systems)).await;
        match settled {
            Ok(Ok(())) => Ok(frozen),
            Ok(Err(e)) => {
                drop(frozen);
                kill(endpoint, id).await;
                Err(Attempt::Final(e))
            }
            Err(_) => {
                drop(frozen);
                kill(endpoint, id).await;
                Err(Attempt::Busy(anyhow!(
                    "what the server had not written yet was not on the disks within {} ms",
                    limits.hold.as_millis()
                )))
            }
        }
    }

    /// Everything that was committed, to the disks.
    async fn settle(&mut self, file_systems: &[PathBuf]) -> anyhow::Result<()> {
        // First: what was executed by now, the snapshot holds, also where writes go on.
        self.gtids = self.session.gtid_executed().await?;
        let begun = Instant::now();
        // Without LOCAL it would be written into the binlog, under a GTID of its own.
        self.session.execute_within("FLUSH LOCAL ENGINE LOGS", self.hold).await?;
        self.part("flush logs", begun);
        let begun = Instant::now();
        sync(file_systems.to_vec()).await?;
        self.part("sync", begun);
        self.bound().await
    }

    /// Has the server end the connection with the lock's time: each statement begins its waiting anew.
    async fn bound(&mut self) -> anyhow::Result<()> {
        let sql = format!("SET SESSION wait_timeout = {}", whole_seconds(self.left()));
        self.session.execute(&sql).await
    }

    /// Notes how long something under the lock took.
    pub fn part(&mut self, name: &'static str, begun: Instant) {
        let took = begun.elapsed();
        self.parts.push(Part { name, took });
    }

    /// What is left of the lock's time.
    pub fn left(&self) -> Duration {
        self.hold.saturating_sub(self.locked_at.elapsed())
    }

    /// Ends the lock.
    ///
    /// # Errors
    /// Where it had ended before: nothing that was begun since it was taken counts.
    pub async fn thaw(mut self) -> anyhow::Result<Thawed> {
        let begun = Instant::now();
        let left = self.left();
        let locked_at = self.locked_at;
        let lost = || anyhow!("the lock was lost after {} ms", locked_at.elapsed().as_millis());
        if left.is_zero() {
            bail!(
                "the lock was held for longer than {} ms, and whatever was begun under it does not count",
                self.hold.as_millis()
            );
        }
        let executed = async {
            self.bound().await?;
            self.session.gtid_executed().await
        };
        let gtids = timeout(left, executed).await.map_err(|_| lost())?;
        let gtids = gtids.with_context(|| lost().to_string())?;
        let statement = match self.lock {
            Lock::Tables => "UNLOCK TABLES",
            Lock::Instance => "UNLOCK INSTANCE",
        };
        self.session.execute(statement).await.with_context(|| lost().to_string())?;
        let held = self.locked_at.elapsed();
        self.part("thaw", begun);
        let parts = self.parts.iter().map(|p| format!("{} {} ms", p.name, p.took.as_millis()));
        info!(lock = ?self.lock, held_ms = held.as_millis() as u64, "the server was locked: {}", parts.collect::<Vec<_>>().join(", "));
        Ok(Thawed {
            held,
            parts: self.parts,
            gtids,
        })
    }
}

/// Why there is no lock.
enum Attempt {
    /// Another time there may be.
    Busy(anyhow::Error),
    Final(anyhow::Error),
}

impl From<anyhow::Error> for Attempt {
    fn from(e: anyhow::Error) -> Attempt {
        Attempt::Final(e)
    }
}

const ER_LOCK_WAIT_TIMEOUT: u16 = 1205;

fn refused(e: anyhow::Error) -> Attempt {
    let is_timeout = e.chain().any(|layer| match layer.downcast_ref::<mysql_async::Error>() {
        Some(mysql_async::Error::Server(e)) => e.code == ER_LOCK_WAIT_TIMEOUT,
        _ => false,
    });
    if is_timeout || message(&e).contains("no answer within") {
        Attempt::Busy(e)
    } else {
        let hint = "grant the account of mysql-pitr RELOAD (for lock = \"tables\") or BACKUP_ADMIN (for lock = \"instance\")";
        Attempt::Final(with_hint(e, hint))
    }
}

/// MySQL's timeouts are whole seconds, and 0 is none.
fn whole_seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis().div_ceil(SECOND.as_millis()))
        .unwrap_or(u32::MAX)
        .max(1)
}

/// A statement that has been running for longer than the lock would wait for it.
async fn in_the_way(session: &mut Session, wait: Duration) -> anyhow::Result<Option<String>> {
    // Appliers work in small transactions, and the lock waits for those.
    let sql = format!(
        "SELECT ID, USER, TIME, LEFT(INFO, 80) FROM information_schema.processlist WHERE COMMAND IN ('Query', 'Execute') \
         AND INFO IS NOT NULL AND USER NOT IN ('system user', 'event_scheduler') AND ID <> CONNECTION_ID() AND TIME > {} \
         ORDER BY TIME DESC LIMIT 1",
        whole_seconds(wait)
    );
    let rows: Vec<(u64, Option<String>, u64, Option<String>)> = session.rows(&sql).await?;
    Ok(rows.into_iter().next().map(|(id, user, time_s, info)| {
        let (user, info) = (user.unwrap_or_default(), info.unwrap_or_default());
        format!("query {id} of {user}, which has been running for {time_s} s: {info}")
    }))
}

async fn kill(endpoint: &Endpoint, id: u64) {
    let killed = async { Session::connect(endpoint).await?.execute(&format!("KILL {id}")).await };
    // It is gone already, mostly.
    if let Err(e) = killed.await
        && !message(&e).contains("Unknown thread id")
    {
        warn!(
            "connection {id} could not be ended, the server does so itself: {}",
            message(&e)
        );
    }
}

async fn sync(file_systems: Vec<PathBuf>) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(move || sync_filesystems(&file_systems))
        .await
        .context("the task that syncs died")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_timeout_is_rounded_to_none() {
        for (ms, s) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (9_999, 10)] {
            assert_eq!(whole_seconds(Duration::from_millis(ms)), s);
        }
    }
}
