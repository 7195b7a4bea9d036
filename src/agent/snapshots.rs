//! Takes the shard's snapshots: those that are asked for in the bucket, those that the schedule wants, and one wherever the newest moment
//! cannot be recovered.
//!
//! One server of a shard is entitled to take them (its [`Standing`] says so), and it is not always the one whose agent finds that one
//! is needed: that agent asks in the bucket as anybody else.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, interval},
};
use tracing::{error, info};
use uuid::Uuid;

use crate::{
    archive::{
        listing::Archive,
        path::{Path, PathError},
        records::{Snapshot, SnapshotState},
    },
    mysql::{endpoint::Endpoint, query::Session},
    ship::{is_primary, standing::Standing},
    snapshot::{
        request::{self, Requests},
        schedule::{self, Schedule},
        take,
    },
    support::{
        clock::{self, Moment},
        hint::render,
        progress::Progress,
        retry::Backoff,
    },
};

use super::{monitor::SnapshotCounts, survey::Look, volumes::Keeper};

/// The pauses between attempts to make the newest moment recoverable: a server whose binlogs are purged again and again before they
/// are shipped is not copied all the time.
const PAUSE_FIRST: Duration = Duration::from_secs(5);
const PAUSE_LONGEST: Duration = Duration::from_secs(300);
/// A request is asked anew where the snapshot that it led to has not ended by then: whoever took it up is gone.
const ANSWER_PATIENCE_US: i64 = 6 * 3600 * 1_000_000;

/// What is known of the schedule's next run.
#[derive(Debug, Default)]
struct Agenda {
    /// None where the store has to be asked.
    due_us: Option<i64>,
    /// Set by an attempt, for the case that it fails.
    not_before: Option<Instant>,
    backoff: Option<Backoff>,
}

/// The task that takes snapshots.
pub(super) struct Snapshots {
    pub counts: Arc<SnapshotCounts>,
    pub archive: Archive,
    pub endpoint: Endpoint,
    pub settings: take::Settings,
    /// None where the clone plugin takes them.
    pub keeper: Option<Keeper>,
    /// None where it is switched off.
    pub schedule: Option<Schedule>,
    pub standing: watch::Receiver<Standing>,
    /// What the archive was found to hold, as often as it is looked at.
    pub looks: watch::Receiver<Option<Look>>,
    /// Has it looked at again.
    pub look_again: Arc<Notify>,
}

/// When the newest moment is to be made recoverable by a snapshot.
struct Answering {
    pauses: Backoff,
    /// Looks that began before this do not know the last answer.
    answered: Option<Instant>,
    not_before: Option<Instant>,
    /// Since when the newest moment can be recovered.
    open_since: Option<Instant>,
}

impl Answering {
    fn new() -> Answering {
        Answering {
            pauses: Backoff::new(PAUSE_FIRST, PAUSE_LONGEST),
            answered: None,
            not_before: None,
            open_since: None,
        }
    }

    /// Whether an answer is due by what a look that `began` then found: whether the newest moment `is_recoverable`.
    fn is_due(&mut self, began: Instant, is_recoverable: bool, now: Instant) -> bool {
        if is_recoverable {
            let since = *self.open_since.get_or_insert(now);
            if now.duration_since(since) > PAUSE_LONGEST {
                self.pauses = Backoff::new(PAUSE_FIRST, PAUSE_LONGEST);
            }
            return false;
        }
        self.open_since = None;
        self.answered.is_none_or(|at| began > at) && self.not_before.is_none_or(|at| now >= at)
    }

    /// It was tried, until `now`.
    fn tried(&mut self, was_answered: bool, now: Instant) {
        self.not_before = Some(now + self.pauses.step());
        if was_answered {
            self.answered = Some(now);
        }
    }
}

impl Snapshots {
    pub(super) async fn run(mut self) {
        let mut ticks = interval(request::POLL_INTERVAL);
        let (mut requests, mut swept, mut asked) = (Requests::default(), false, None);
        let mut answering = Answering::new();
        let mut agenda = Agenda::default();
        loop {
            tokio::select! {
                // Its sender lives as long as the agent.
                Ok(()) = self.looks.changed() => {}
                _ = ticks.tick() => {}
            }
            let standing = self.standing.borrow().clone();
            let look = self.looks.borrow_and_update().clone();
            if look.as_ref().is_some_and(|look| look.view.recoverable_from.is_some()) {
                asked = None;
            }
            let done = async {
                if !swept {
                    self.sweep().await?;
                    swept = true;
                }
                if let Some(look) = look.filter(|look| look.tip_server.is_some() && standing.ships())
                    && answering.is_due(look.began, look.view.recoverable_from.is_some(), Instant::now())
                    // What a server ships off the path is nobody's to recover.
                    && look.tip_server == Some(self.server_uuid().await?)
                {
                    let answered = self.answer(&standing, &mut asked, &mut requests).await;
                    answering.tried(answered.is_ok(), Instant::now());
                    self.look_again.notify_one();
                    answered?;
                }
                if standing.takes_snapshots {
                    if let Some(keeper) = &mut self.keeper {
                        keeper.go_on(server_uuid(&self.endpoint).await?).await?;
                    }
                    if self.requested(&standing, &mut requests).await? {
                        answering.answered = Some(Instant::now());
                        self.look_again.notify_one();
                    }
                    self.scheduled(&standing, &mut agenda, &mut requests).await?;
                } else {
                    agenda = Agenda::default();
                    self.counts.next_us.store(0, Ordering::Relaxed);
                    if let Some(keeper) = &mut self.keeper {
                        keeper.rest();
                    }
                }
                anyhow::Ok(())
            };
            if let Err(e) = done.await {
                error!("snapshots: {}", render(&e));
            }
        }
    }

    /// i8: where a gap, or a new root, keeps the newest moment from being recovered, a snapshot begins the window again.
    async fn answer(&mut self, standing: &Standing, asked: &mut Option<String>, requests: &mut Requests) -> anyhow::Result<()> {
        if standing.takes_snapshots {
            info!("the newest moment cannot be recovered: taking a snapshot");
            return self.take(standing, requests, "gap").await;
        }
        if let Some(id) = asked {
            let (snapshots, _) = self.archive.readable_snapshots().await?;
            match became(id, &snapshots, clock::now_us()) {
                Became::UnderWay => return Ok(()),
                // The look that found nothing to recover did not know of it. Where it did not help, the next one says so.
                Became::Complete => {
                    *asked = None;
                    return Ok(());
                }
                Became::Nothing => {}
            }
        }
        if requests.open(&self.archive).await?.is_empty() {
            let id = request::ask(&self.archive).await?;
            info!(
                request = id,
                "the newest moment cannot be recovered: asked the server that takes the snapshots for one"
            );
            *asked = Some(id);
        }
        Ok(())
    }

    async fn sweep(&self) -> anyhow::Result<()> {
        take::sweep(&self.archive, &self.settings, self.server_uuid().await?).await
    }

    async fn server_uuid(&self) -> anyhow::Result<Uuid> {
        server_uuid(&self.endpoint).await
    }

    /// Takes what is asked for; whether anything was.
    async fn requested(&mut self, standing: &Standing, requests: &mut Requests) -> anyhow::Result<bool> {
        if requests.open(&self.archive).await?.is_empty() || !self.serves_somebody(standing).await? {
            return Ok(false);
        }
        self.take(standing, requests, "request").await?;
        Ok(true)
    }

    /// Takes the snapshot that the schedule wants, if it is due. What was missed is made up once: how far the schedule is served the store
    /// says, not this process, so that it does not matter who took the last snapshot, or what for.
    async fn scheduled(&mut self, standing: &Standing, agenda: &mut Agenda, requests: &mut Requests) -> anyhow::Result<()> {
        let Some(schedule) = &self.schedule else { return Ok(()) };
        let now_us = self.archive.clock.now_us();
        if agenda.due_us.is_some_and(|due| now_us < due) || agenda.not_before.is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        let path = match Path::find(&self.archive.timelines().await?, None) {
            Ok(path) => path,
            // Whoever ships first begins the history.
            Err(PathError::Empty) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let snapshots = self.archive.snapshots().await?;
        let due_us = schedule.due_after(schedule::served_until(&path, &snapshots), &self.archive.shard.to_string());
        self.counts.next_us.store(due_us.unwrap_or_default(), Ordering::Relaxed);
        let due_us = due_us.unwrap_or(i64::MAX);
        agenda.due_us = Some(due_us);
        if now_us < due_us {
            return Ok(());
        }
        let retry = agenda
            .backoff
            .get_or_insert_with(|| Backoff::new(PAUSE_FIRST, PAUSE_LONGEST))
            .step();
        agenda.not_before = Some(Instant::now() + retry);
        if !self.serves_somebody(standing).await? {
            return Ok(());
        }
        if let Some(other) = schedule::under_way(&snapshots, self.server_uuid().await?, now_us) {
            info!(snapshot = %other.id, server = %other.server_uuid, "a snapshot is due, and waits for the one that another server is taking");
            return Ok(());
        }
        info!(due = %Moment(due_us), "a snapshot is due by the schedule");
        self.take(standing, requests, "schedule").await?;
        *agenda = Agenda::default();
        Ok(())
    }

    /// A server that is shipped off the path would take snapshots that no recovery starts from.
    async fn serves_somebody(&self, standing: &Standing) -> anyhow::Result<bool> {
        if !standing.ships() {
            return Ok(true);
        }
        Ok(is_primary(&self.archive.timelines().await?, self.server_uuid().await?))
    }

    /// One snapshot, which answers whatever is asked for until now. `origin`: why.
    async fn take(&mut self, standing: &Standing, requests: &mut Requests, origin: &'static str) -> anyhow::Result<()> {
        let open = requests.open(&self.archive).await?;
        let (id, silent) = (request::answer(&self.archive, &open).await?, Progress::silent());
        let taken = match &mut self.keeper {
            Some(keeper) => {
                let server_uuid = server_uuid(&self.endpoint).await?;
                keeper.take(server_uuid, self.standing.clone(), &id, origin).await
            }
            None => take::take(&self.archive, &self.endpoint, &self.settings, standing, &id, &silent)
                .await
                .map(drop),
        };
        let count = if taken.is_ok() {
            &self.counts.complete
        } else {
            &self.counts.failed
        };
        count.fetch_add(1, Ordering::Relaxed);
        taken
    }
}

/// What somebody made of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Became {
    UnderWay,
    Complete,
    /// Nothing so far, or nothing any more.
    Nothing,
}

fn became(request: &str, snapshots: &[Snapshot], now_us: i64) -> Became {
    match snapshots.iter().find(|s| s.id == request) {
        Some(s) if s.state == SnapshotState::Complete => Became::Complete,
        Some(s) if s.state == SnapshotState::Started && now_us < s.started_at_us + ANSWER_PATIENCE_US => Became::UnderWay,
        _ => Became::Nothing,
    }
}

async fn server_uuid(endpoint: &Endpoint) -> anyhow::Result<Uuid> {
    Session::connect(endpoint).await?.variables().await?.server_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_made_anew_only_where_the_first_led_to_nothing() {
        let snapshot = |state: &str| -> Snapshot {
            let record = serde_json::json!({
                "format": 1, "id": "r", "state": state, "provider": "ebs", "timeline": 1, "server_uuid": Uuid::nil(),
                "server_version": "", "started_at_us": 1000, "finished_at_us": null, "gtids_before": "", "gtids_after": null,
                "variables": {}, "data_key": "", "data_bytes": 0, "stored_bytes": 0, "stored_sha256": "",
            });
            serde_json::from_value(record).unwrap()
        };
        let late = 1000 + ANSWER_PATIENCE_US;
        for (state, now_us, expected) in [
            ("started", late - 1, Became::UnderWay),
            ("started", late, Became::Nothing),
            ("complete", late, Became::Complete),
            ("failed", 1001, Became::Nothing),
        ] {
            assert_eq!(became("r", &[snapshot(state)], now_us), expected, "{state}");
        }
        assert_eq!(became("another", &[snapshot("complete")], 1001), Became::Nothing);
    }

    #[test]
    fn an_answer_is_due_once_per_look_and_not_all_the_time() {
        let begin = Instant::now();
        let at = |s: u64| begin + Duration::from_secs(s);
        let mut a = Answering::new();
        assert!(!a.is_due(at(0), true, at(0)));
        assert!(a.is_due(at(1), false, at(1)), "at once, the first time");
        a.tried(true, at(2));
        assert!(!a.is_due(at(1), false, at(100)), "that look did not see the answer");
        assert!(a.is_due(at(3), false, at(100)));
        a.tried(false, at(100));
        assert!(
            a.is_due(at(3), false, at(111)),
            "what failed is tried again without another look"
        );
        for _ in 0..8 {
            a.tried(true, at(200));
        }
        assert!(!a.is_due(at(201), false, at(200 + PAUSE_LONGEST.as_secs() / 2 - 1)));
        assert!(a.is_due(at(201), false, at(200 + PAUSE_LONGEST.as_secs())));
        // Once all was well for long, the next gap is answered quickly.
        assert!(!a.is_due(at(600), true, at(600)) && !a.is_due(at(1000), true, at(1000)));
        a.tried(true, at(1000));
        assert!(a.is_due(at(1001), false, at(1000) + PAUSE_FIRST));
    }
}
