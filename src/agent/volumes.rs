//! The agent's part in snapshots of volumes: takes them when it is its turn, and goes on with whatever is open, whoever began it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::anyhow;
use tokio::{sync::watch, time::Instant};
use tracing::warn;
use uuid::Uuid;

use crate::{
    archive::{
        listing::Archive,
        records::{Provider, Snapshot},
    },
    mysql::{endpoint::Endpoint, freeze::Thawed},
    ship::standing::Standing,
    snapshot::{
        turn::Turns,
        volumes::{
            Settings, is_open,
            onward::{Went, onward},
            outstanding,
            take::{Job, take},
        },
    },
    support::{
        hint::{message, with_hint},
        progress::Progress,
    },
};

use super::{
    document::{CopiesView, LockView},
    monitor::{SnapshotCounts, lock},
};

/// How often open snapshots are gone on with.
const GO_ON_INTERVAL: Duration = Duration::from_secs(5);
/// How often all records are looked at for open ones; those of this agent are known.
const LOOK_INTERVAL: Duration = Duration::from_mins(5);

/// What there is to do.
#[derive(Debug, Default)]
struct Agenda {
    looked: Option<Instant>,
    went_on: Option<Instant>,
    open: BTreeMap<String, Snapshot>,
}

/// Takes the shard's snapshots of volumes, and sees them through.
pub(super) struct Keeper {
    archive: Archive,
    endpoint: Endpoint,
    settings: Settings,
    accept_empty: Vec<String>,
    counts: Arc<SnapshotCounts>,
    turns: Turns,
    agenda: Agenda,
}

impl Keeper {
    pub(super) fn new(
        archive: &Archive,
        endpoint: &Endpoint,
        settings: Settings,
        accept_empty: Vec<String>,
        counts: Arc<SnapshotCounts>,
    ) -> Keeper {
        Keeper {
            turns: Turns::new(archive.clone(), settings.term),
            archive: archive.clone(),
            endpoint: endpoint.clone(),
            settings,
            accept_empty,
            counts,
            agenda: Agenda::default(),
        }
    }

    /// The shard's snapshots are somebody else's to take.
    pub(super) fn rest(&mut self) {
        self.agenda = Agenda::default();
        *lock(&self.counts.copies) = None;
    }

    pub(super) async fn take(
        &mut self,
        server_uuid: Uuid,
        roles: watch::Receiver<Standing>,
        id: &str,
        origin: &'static str,
    ) -> anyhow::Result<()> {
        let turn = self.turns.take(server_uuid).await?.ok_or_else(|| {
            with_hint(
                anyhow!("another server's agent works on the shard's snapshots"),
                "nothing: it is waited for, and taken over from if it is dead",
            )
        })?;
        let job = Job {
            archive: &self.archive,
            endpoint: &self.endpoint,
            settings: &self.settings,
            accept_empty: &self.accept_empty,
            roles,
            turn: &turn,
            id,
            origin,
            progress: &Progress::silent(),
        };
        let taken = take(&job).await;
        turn.give_back().await;
        // What is left to do, whatever came of it, is found in the store.
        self.agenda.looked = None;
        self.agenda.went_on = None;
        let (_, thawed) = taken?;
        *lock(&self.counts.lock) = Some(view(&thawed));
        Ok(())
    }

    /// A step onward with everything that is open, now and then.
    pub(super) async fn go_on(&mut self, server_uuid: Uuid) -> anyhow::Result<()> {
        if self.agenda.went_on.is_some_and(|at| at.elapsed() < GO_ON_INTERVAL) {
            return Ok(());
        }
        self.agenda.went_on = Some(Instant::now());
        if self.agenda.looked.is_none_or(|at| at.elapsed() >= LOOK_INTERVAL) {
            let (snapshots, _) = self.archive.readable_snapshots().await?;
            let open = snapshots.into_iter().filter(|s| s.provider == Provider::Ebs && is_open(s));
            self.agenda.open = open.map(|s| (s.id.clone(), s)).collect();
            self.agenda.looked = Some(Instant::now());
        }
        if !self.agenda.open.is_empty()
            && let Some(turn) = self.turns.take(server_uuid).await?
        {
            let ids: Vec<String> = self.agenda.open.keys().cloned().collect();
            for id in ids {
                tokio::select! {
                    () = self.see_through(&id) => {}
                    () = turn.lost() => break,
                }
            }
            turn.give_back().await;
        }
        let outstanding = outstanding(self.agenda.open.values());
        *lock(&self.counts.copies) = Some(CopiesView {
            pending: outstanding.pending,
            failed: outstanding.failed,
        });
        Ok(())
    }

    async fn see_through(&mut self, id: &str) {
        loop {
            match onward(&self.archive, self.settings.cloud.as_ref(), id, &Progress::silent()).await {
                Ok(Went::On(record)) => drop(self.agenda.open.insert(id.to_owned(), *record)),
                Ok(Went::Waits(record)) => return drop(self.agenda.open.insert(id.to_owned(), *record)),
                Ok(Went::Ended(_)) => return drop(self.agenda.open.remove(id)),
                Err(e) => return warn!(snapshot = id, "trying again later: {}", message(&e)),
            }
        }
    }
}

fn view(thawed: &Thawed) -> LockView {
    let parts = thawed.parts.iter().map(|p| (p.name.to_owned(), p.took.as_secs_f64()));
    LockView {
        seconds: thawed.held.as_secs_f64(),
        parts: parts.collect(),
    }
}
