//! The other region's bucket, looked at now and then, and kept up with home's where the stores do not do that by themselves.
//!
//! Shipping never waits for this: it has a client of its own for the replica, and only reads from home.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{error, info, warn};

use crate::{
    archive::listing::Archive,
    config::{Config, Replication},
    replica::{
        Comparer,
        copy::{Copied, Copier},
    },
    ship::standing::Standing,
    support::{
        clock::{Moment, WallClock},
        hint::{message, with_hint},
        retry::Backoff,
    },
};

use super::{
    document::{ArchiveView, ReplicaView},
    survey::Surveyor,
};

const RETRY_FIRST: Duration = Duration::from_secs(2);
const RETRY_LONGEST: Duration = Duration::from_secs(60);
/// The replica's window is looked for when a record appears there, and now and then; until there is one, each time.
const WINDOW_INTERVAL: Duration = Duration::from_mins(10);
/// From then on nobody knows what is lacking.
const LOOKS_MISSED: u32 = 3;
/// For a command that shows the replica beside other things.
const PATIENCE: Duration = Duration::from_secs(60);
const US_PER_S: f64 = 1e6;

/// The replica's archive. None where the configuration has none.
pub async fn archive(config: &Config) -> anyhow::Result<Option<Archive>> {
    let Some(section) = &config.replica else { return Ok(None) };
    let store = crate::store::open(&section.store.url, &section.store.options()).await;
    let store = store.map_err(|e| with_hint(e, "correct the [replica] section"))?;
    Ok(Some(Archive {
        store,
        shard: config.shard.clone(),
        clock: Arc::new(WallClock),
    }))
}

/// What is known of the replica, and since when.
#[derive(Debug, Clone)]
pub struct Seen {
    view: ReplicaView,
    /// When the last look that succeeded began.
    at: Option<Instant>,
    /// After which the next one should have.
    interval: Duration,
    /// Since when looks fail.
    failing: Option<Instant>,
}

impl Seen {
    /// As of now: what was lacking then is older by now, and while nobody can look, anything since then may be lacking. `home`: what home
    /// was found to hold.
    pub fn view(&self, home: Option<&ArchiveView>) -> ReplicaView {
        let mut view = self.view.clone();
        if let (Some(behind), Some(at)) = (&mut view.behind, self.at)
            && (behind.bytes > 0 || self.failing.is_some() || at.elapsed() > self.interval * LOOKS_MISSED)
        {
            behind.seconds += at.elapsed().as_secs_f64();
        }
        // Everything that was at home by then is there, too.
        let until = view.behind.as_ref().map(|behind| {
            let us = behind.seconds * US_PER_S;
            Moment(Moment::now().0 - us as i64)
        });
        let home_until = home.and_then(|a| a.recoverable_until);
        view.recoverable_until = view
            .recoverable_from
            .and(view.recoverable_until.max(home_until.zip(until).map(|(a, b)| a.min(b))));
        view
    }
}

/// Looks, and copies where that is its task.
pub struct Watcher {
    home: Archive,
    replica: Archive,
    replication: Replication,
    interval: Duration,
    comparer: Comparer,
    surveyor: Surveyor,
    seen: Seen,
    /// When the window was last looked for.
    window_at: Option<Instant>,
    told_differing: usize,
}

impl Watcher {
    /// `replica` as of [`archive`]. None where the configuration has none.
    pub fn new(config: &Config, home: Archive, replica: Archive) -> Option<Watcher> {
        let section = config.replica.as_ref()?;
        let view = ReplicaView {
            store: replica.store.url().to_owned(),
            replication: section.replication,
            seen_at: None,
            behind: None,
            differing: Vec::new(),
            copied_objects: 0,
            copied_bytes: 0,
            recoverable_from: None,
            recoverable_until: None,
            gaps: Vec::new(),
            faults: Vec::new(),
            failing_since: None,
            last_error: None,
        };
        Some(Watcher {
            comparer: Comparer::new(home.clone(), replica.clone()),
            surveyor: Surveyor::of_replica(replica.clone()),
            home,
            replica,
            replication: section.replication,
            interval: section.interval,
            seen: Seen {
                view,
                at: None,
                interval: section.interval,
                failing: None,
            },
            window_at: None,
            told_differing: 0,
        })
    }

    /// Looks again and again; tells `seen`.
    async fn watch(mut self, standing: watch::Receiver<Standing>, seen: watch::Sender<Option<Seen>>) {
        let first = RETRY_FIRST.min(self.interval);
        let retries = || Backoff::new(first, RETRY_LONGEST);
        let mut backoff = retries();
        loop {
            let began = Instant::now();
            let copies = self.replication == Replication::Agent && standing.borrow().ships();
            let step = self.step(copies, &seen).await;
            let wait = match step {
                Ok(is_all) => {
                    if self.seen.failing.take().is_some() {
                        info!("the replica {} answers again", self.replica.store.url());
                    }
                    (self.seen.view.failing_since, backoff) = (None, retries());
                    // While there is something left to copy, looking is the smaller part.
                    if is_all { self.interval } else { began.elapsed() / 10 }
                }
                Err(e) => {
                    if self.seen.failing.is_none() {
                        warn!(
                            "the replica {} is not kept up with: {}",
                            self.replica.store.url(),
                            message(&e)
                        );
                        self.seen.failing = Some(Instant::now());
                        self.seen.view.failing_since = Some(Moment::now());
                    }
                    self.seen.view.last_error = Some(message(&e));
                    backoff.step()
                }
            };
            seen.send_replace(Some(self.seen.clone()));
            sleep(wait).await;
        }
    }

    /// One look, and, if `copies`, one pass of copying; whether nothing is left that could be copied.
    async fn step(&mut self, copies: bool, seen: &watch::Sender<Option<Seen>>) -> anyhow::Result<bool> {
        self.home.hear_of_fence(&self.replica).await?;
        self.look().await?;
        seen.send_replace(Some(self.seen.clone()));
        if !copies {
            return Ok(true);
        }
        let missing = self.comparer.missing();
        // Where both buckets were shipped to, nobody knows which of them is to become like the other.
        if missing.is_empty() || self.comparer.has_two_histories() {
            return Ok(true);
        }
        let copier = Copier {
            home: self.home.clone(),
            replica: self.replica.clone(),
        };
        let mut copied = Copied::default();
        let done = copier.copy(&missing, &mut copied).await;
        self.seen.view.copied_objects += copied.objects;
        self.seen.view.copied_bytes += copied.bytes;
        done?;
        // What was copied is not lacking any more, and home went on meanwhile.
        self.look().await?;
        Ok(self.comparer.missing().is_empty())
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        // What home stored since may be lacking.
        let seen_at = Moment::now();
        let look = self.comparer.look().await?;
        let view = &mut self.seen.view;
        (view.behind, view.seen_at, self.seen.at) = (Some(look.behind), Some(seen_at), Some(look.began));
        view.differing = look.differing;
        if view.differing.len() > self.told_differing {
            for what in &view.differing {
                error!("the replica is not what home is: {what}; see the runbook: The replica differs");
            }
        }
        self.told_differing = view.differing.len();
        let is_due = view.recoverable_from.is_none() || self.window_at.is_none_or(|at| at.elapsed() >= WINDOW_INTERVAL);
        if look.is_news || is_due {
            let found = self.surveyor.look().await?.view;
            let view = &mut self.seen.view;
            view.recoverable_from = found.recoverable_from;
            view.recoverable_until = found.recoverable_until;
            view.gaps = found.gaps;
            view.faults = found.faults;
            self.window_at = Some(Instant::now());
        }
        Ok(())
    }
}

/// Watches the replica that the configuration names, for as long as the agent runs.
pub(super) async fn run(config: Config, home: Archive, standing: watch::Receiver<Standing>, seen: watch::Sender<Option<Seen>>) {
    let mut backoff = Backoff::new(RETRY_FIRST, RETRY_LONGEST);
    loop {
        match archive(&config).await {
            Ok(None) => return,
            Ok(Some(replica)) => {
                if let Some(watcher) = Watcher::new(&config, home.clone(), replica) {
                    watcher.watch(standing.clone(), seen.clone()).await;
                }
            }
            // A folder that is not mounted.
            Err(e) => error!("the replica cannot be opened, and nothing is known of it: {}", message(&e)),
        }
        sleep(backoff.step()).await;
    }
}

/// One look, for a command that runs without an agent. What cannot be seen is told in the view.
pub async fn look_once(config: &Config, home: &Archive, at_home: &ArchiveView) -> anyhow::Result<Option<ReplicaView>> {
    let Some(replica) = archive(config).await? else {
        return Ok(None);
    };
    let Some(mut watcher) = Watcher::new(config, home.clone(), replica) else {
        return Ok(None);
    };
    let failed = match timeout(PATIENCE, watcher.look()).await {
        Ok(looked) => looked.err().map(|e| message(&e)),
        Err(_) => Some(format!("it did not answer within {} s", PATIENCE.as_secs())),
    };
    if failed.is_some() {
        (watcher.seen.view.last_error, watcher.seen.view.failing_since) = (failed, Some(Moment::now()));
    }
    Ok(Some(watcher.seen.view(Some(at_home))))
}
