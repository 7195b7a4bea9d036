//! How far the server has written, sampled beside shipping and independently of it.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tracing::debug;

use crate::{
    mysql::{
        dump::{AtEnd, Dump, DumpItem},
        endpoint::Endpoint,
        query::{Session, version_number},
    },
    ship::{
        Status,
        at_risk::{AtRisk, Position, Risk},
        standing::Standing,
    },
    support::{
        clock::{self, US_PER_S},
        hint::message,
    },
};

const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// The server answers only between two commits, and a huge one can take long: then this sample is left out.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(5);
/// The sizes of all its binlogs are asked for once in so many samples.
const SAMPLES_PER_LISTING: u32 = 15;
/// `SHOW MASTER STATUS` got its new name then.
const RENAMED_IN: u32 = 80_200;
const EVENT_TIME_BYTES: usize = 4;

/// What is known of the server.
pub struct Sampler {
    endpoint: Endpoint,
    status: watch::Receiver<Status>,
    standing: watch::Receiver<Standing>,
    /// The watermark as the state file has it, for as long as the store does not answer.
    remembered: Option<(String, u64)>,
    origin: Instant,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    at_risk: AtRisk,
    expire_seconds: Option<u64>,
}

/// A connection, and how it is asked.
struct Asked {
    session: Session,
    statement: &'static str,
    samples: u32,
}

impl Sampler {
    pub fn new(
        endpoint: Endpoint,
        status: watch::Receiver<Status>,
        standing: watch::Receiver<Standing>,
        remembered: Option<(String, u64)>,
    ) -> Sampler {
        Sampler {
            endpoint,
            status,
            standing,
            remembered,
            origin: Instant::now(),
            seen: Mutex::default(),
        }
    }

    /// What is at risk now, if this node ships and the server has been looked at.
    pub fn risk(&self) -> Option<Risk> {
        let (ships, watermark) = (self.ships(), self.watermark());
        let seen = self.seen();
        (ships && !seen.at_risk.is_unknown()).then(|| seen.at_risk.risk(self.now_us(), position(&watermark)))
    }

    /// `binlog_expire_logs_seconds`, where binlogs expire.
    pub fn expire_seconds(&self) -> Option<u64> {
        self.seen().expire_seconds
    }

    /// Samples until it is dropped.
    pub async fn run(&self) {
        let mut ticks = interval(SAMPLE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut asked, mut looked_back) = (None, false);
        loop {
            ticks.tick().await;
            let watermark = self.watermark();
            if !self.ships() {
                // What a replica writes is at its primary's risk.
                (asked, looked_back) = (None, false);
                self.seen().at_risk = AtRisk::default();
                continue;
            }
            match timeout(SAMPLE_TIMEOUT, self.sample(asked.take(), &watermark)).await {
                Ok(Ok(connection)) => asked = Some(connection),
                Ok(Err(e)) => debug!("no sample of the server's position: {}", message(&e)),
                Err(_) => debug!("no sample of the server's position within {} s", SAMPLE_TIMEOUT.as_secs()),
            }
            if let Some((name, position)) = watermark.filter(|_| !looked_back && asked.is_some()) {
                looked_back = true;
                match timeout(SAMPLE_TIMEOUT, self.look_back(&name, position)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(e)) => debug!("the age of what is not shipped is unknown: {}", message(&e)),
                    Err(_) => debug!("the age of what is not shipped is unknown"),
                }
            }
        }
    }

    async fn sample(&self, asked: Option<Asked>, watermark: &Option<(String, u64)>) -> anyhow::Result<Asked> {
        let mut asked = match asked {
            Some(asked) => asked,
            None => self.connect().await?,
        };
        let row: mysql_async::Row = asked.session.one(asked.statement).await?;
        let (name, bytes): (Option<String>, Option<u64>) = (row.get(0), row.get(1));
        let upto = name.zip(bytes).and_then(|(name, bytes)| Position::of(&name, bytes));
        let upto = upto.with_context(|| format!("`{}` gave an unexpected row", asked.statement))?;
        let now_us = self.now_us();
        self.seen().at_risk.sample(now_us, upto, position(watermark));
        if asked.samples % SAMPLES_PER_LISTING == 0 {
            let files = asked.session.binary_logs().await?;
            let (expire,): (u64,) = asked.session.one("SELECT @@GLOBAL.binlog_expire_logs_seconds").await?;
            let mut seen = self.seen();
            seen.at_risk.files(
                files
                    .iter()
                    .filter_map(|f| Some((Position::of(&f.name, f.bytes)?.file, f.bytes))),
            );
            seen.expire_seconds = Some(expire).filter(|s| *s > 0);
        }
        asked.samples += 1;
        Ok(asked)
    }

    async fn connect(&self) -> anyhow::Result<Asked> {
        let mut session = Session::connect(&self.endpoint).await?;
        let (version,): (String,) = session.one("SELECT VERSION()").await?;
        let statement = if version_number(&version) < RENAMED_IN {
            "SHOW MASTER STATUS"
        } else {
            "SHOW BINARY LOG STATUS"
        };
        Ok(Asked {
            session,
            statement,
            samples: 0,
        })
    }

    /// What the server wrote before this agent looked for the first time has the time of the event at the watermark.
    async fn look_back(&self, name: &str, from: u64) -> anyhow::Result<()> {
        if !self.seen().at_risk.is_beyond(Position::of(name, from)) {
            return Ok(());
        }
        const FIRST_EVENT: u64 = 4;
        let mut dump = Dump::open(&self.endpoint, name, from.max(FIRST_EVENT), AtEnd::Stop).await?;
        loop {
            match dump.next().await? {
                DumpItem::Bytes { bytes, first: true } => {
                    let time: [u8; EVENT_TIME_BYTES] = bytes
                        .get(..EVENT_TIME_BYTES)
                        .and_then(|b| b.try_into().ok())
                        .context("an event without a header")?;
                    let age_us = clock::now_us() - i64::from(u32::from_le_bytes(time)) * US_PER_S;
                    let since_us = self.now_us() - age_us.max(0);
                    self.seen().at_risk.known_since(since_us);
                    return Ok(());
                }
                DumpItem::End => return Ok(()),
                _ => {}
            }
        }
    }

    fn watermark(&self) -> Option<(String, u64)> {
        self.status.borrow().durable.clone().or_else(|| self.remembered.clone())
    }

    fn ships(&self) -> bool {
        self.standing.borrow().ships()
    }

    fn now_us(&self) -> i64 {
        i64::try_from(self.origin.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn position(watermark: &Option<(String, u64)>) -> Option<Position> {
    watermark.as_ref().and_then(|(name, bytes)| Position::of(name, *bytes))
}
