//! The server's role: its own word every second, Orchestrator's every few minutes and whenever its own has changed.

mod knowledge;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use rand::Rng;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    mysql::{endpoint::Endpoint, query::Session},
    orchestrator::{Client, InstanceKey, Options, Role, Verdict, judge},
    ship::standing::Standing,
    support::{hint::render, retry::Backoff},
};

use knowledge::Knowledge;

/// How often the server is asked whether it can be written to: a promoted one ships within seconds.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// For one look; a server that takes longer is tried again on a new connection.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// After a change of the server, Orchestrator is asked this often ...
const RUSH_INTERVAL: Duration = Duration::from_secs(1);
/// ... until it agrees, at most so long: it looks at its servers every few seconds, and discovers a promotion a little later.
const RUSH: Duration = Duration::from_secs(30);
/// The first pause after an attempt without an answer; later ones grow to the poll interval.
const RETRY_FIRST: Duration = Duration::from_secs(5);
/// Agents that were started together should not ask together.
const JITTER: f64 = 0.1;

/// Watches what this server is in its shard.
pub struct RoleWatch {
    endpoint: Endpoint,
    orchestrator: Option<(Client, Options)>,
    knowledge: Mutex<Knowledge>,
    standing: watch::Sender<Standing>,
    ask_again: Arc<Notify>,
}

/// What the server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    writable: bool,
    name: InstanceKey,
}

/// What is wrong with Orchestrator's word; each is said once, and once more when it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    NoAnswer,
    Unclear,
    Contradiction,
}

impl RoleWatch {
    /// Without `orchestrator` a writable server is the primary, and nobody confirms it.
    pub fn new(endpoint: Endpoint, orchestrator: Option<Options>) -> anyhow::Result<RoleWatch> {
        let orchestrator = match orchestrator {
            Some(options) => Some((Client::new(&options)?, options)),
            None => None,
        };
        let knowledge = Knowledge::new(orchestrator.is_none());
        Ok(RoleWatch {
            endpoint,
            orchestrator,
            standing: watch::channel(knowledge.standing()).0,
            knowledge: Mutex::new(knowledge),
            ask_again: Arc::default(),
        })
    }

    /// Has Orchestrator asked at once.
    pub fn ask_again(&self) -> Arc<Notify> {
        self.ask_again.clone()
    }

    pub fn subscribe(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Watches until `stop` is true or its sender is gone.
    pub async fn run(&self, mut stop: watch::Receiver<bool>) {
        let (looked, looks) = watch::channel(None);
        let asking = async {
            match &self.orchestrator {
                Some((client, options)) => self.ask(client, options, looks).await,
                None => std::future::pending().await,
            }
        };
        // Side by side: neither a hanging server nor a hanging Orchestrator keeps the other's word away.
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            () = self.look(&looked) => {}
            () = asking => {}
        }
    }

    /// Asks the server, again and again. One that cannot be reached leaves everything as it is.
    async fn look(&self, looked: &watch::Sender<Option<Look>>) {
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open = None;
        loop {
            looks.tick().await;
            match timeout(LOOK_TIMEOUT, look_at(&self.endpoint, open.take())).await {
                Ok(Ok((session, look))) => {
                    open = Some((session, look.name.clone()));
                    self.learn(|k| k.looked(look.writable));
                    looked.send_if_modified(|last| last.replace(look.clone()) != Some(look));
                }
                // Whoever ships from the server complains.
                Ok(Err(e)) => debug!("the server's read_only cannot be looked at: {}", render(&e)),
                Err(_) => debug!("the server did not say within {LOOK_TIMEOUT:?} whether it is read-only"),
            }
        }
    }

    /// Asks Orchestrator, every poll interval and after each change of the server.
    async fn ask(&self, client: &Client, options: &Options, mut looks: watch::Receiver<Option<Look>>) {
        let mut rush_until = Instant::now();
        let mut trouble = None;
        let mut retry = retries(options);
        loop {
            let look = looks.borrow_and_update().clone();
            let us = options.instance.clone().or_else(|| look.as_ref().map(|l| l.name.clone()));
            let wait = match us {
                // Until the server says what it is called there is nothing to ask.
                None => options.poll_interval,
                Some(us) => {
                    let asked_at = Instant::now();
                    let answer = tokio::select! {
                        answer = client.view(&us) => answer,
                        // What is being answered may be of a time before the change.
                        _ = looks.changed() => {
                            rush_until = Instant::now() + RUSH;
                            continue;
                        }
                    };
                    let answer = answer.and_then(|view| {
                        let verdict = judge(&view.instances, &us);
                        let verdict = verdict.ok_or_else(|| anyhow::anyhow!("Orchestrator's answer does not list {us}"))?;
                        Ok((view.url.to_string(), verdict))
                    });
                    let agrees = matches!((&answer, &look), (Ok((_, v)), Some(l)) if v.unclear.is_none() && is_so(v, l));
                    let hurries = !agrees && Instant::now() < rush_until;
                    // Halfway through a promotion Orchestrator's word is not yet worth a complaint; its silence is.
                    if answer.is_err() || !hurries {
                        tell(&mut trouble, complaint(&answer, look.as_ref()));
                    }
                    let failed = answer.is_err();
                    match answer {
                        Ok((url, verdict)) => self.learn(|k| k.answered(&url, verdict, asked_at)),
                        Err(_) => self.learn(Knowledge::unanswered),
                    }
                    if !failed {
                        retry = retries(options);
                    }
                    match (hurries, failed) {
                        (true, _) => RUSH_INTERVAL,
                        (false, true) => retry.step(),
                        (false, false) => jittered(options.poll_interval),
                    }
                }
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = self.ask_again.notified() => {}
                changed = looks.changed() => {
                    if changed.is_ok() {
                        rush_until = Instant::now() + RUSH;
                    }
                }
            }
        }
    }

    fn learn(&self, learn: impl FnOnce(&mut Knowledge)) {
        let mut knowledge = self.knowledge.lock().unwrap_or_else(PoisonError::into_inner);
        learn(&mut knowledge);
        let standing = knowledge.standing();
        self.standing.send_if_modified(|last| {
            if *last == standing {
                return false;
            }
            log_change(last, &standing);
            *last = standing;
            true
        });
    }
}

fn log_change(before: &Standing, now: &Standing) {
    if (before.role, before.writable) != (now.role, now.writable) {
        info!(
            "this server's role is {}, and it is {}",
            now.role,
            if now.is_writable() { "writable" } else { "read-only" }
        );
    }
    if before.confirmed_by != now.confirmed_by
        && let Some(by) = &now.confirmed_by
    {
        info!("this server is confirmed as the living, writable primary by {by}");
    }
    if before.takes_snapshots != now.takes_snapshots {
        info!(
            "the shard's snapshots are {} to take",
            if now.takes_snapshots {
                "this server's"
            } else {
                "not this server's"
            }
        );
    }
}

/// Whether the server is what Orchestrator takes it for.
fn is_so(verdict: &Verdict, look: &Look) -> bool {
    (verdict.role == Role::Primary) == look.writable
}

type Complaint = Option<(Trouble, String)>;

/// What is wrong with an answer.
fn complaint(answer: &anyhow::Result<(String, Verdict)>, look: Option<&Look>) -> Complaint {
    const STANDS: &str = "the last known role stands, checked against the server's own read_only";
    match (answer, look) {
        (Err(e), _) => Some((
            Trouble::NoAnswer,
            format!("Orchestrator does not tell this server's role; {STANDS}: {}", render(e)),
        )),
        (Ok((url, verdict)), look) => match (&verdict.unclear, look) {
            (Some(why), _) => Some((
                Trouble::Unclear,
                format!("Orchestrator at {url} leaves this server's role open; {STANDS}: {why}"),
            )),
            (None, Some(look)) if !is_so(verdict, look) => Some((
                Trouble::Contradiction,
                format!(
                    "Orchestrator at {url} calls this server {}, and it is {}",
                    verdict.role,
                    if look.writable {
                        "writable: it is shipped, and confirmed by nobody"
                    } else {
                        "read-only: it is not shipped"
                    }
                ),
            )),
            _ => None,
        },
    }
}

/// Says what changed between the last trouble and this one.
fn tell(last: &mut Option<Trouble>, now: Complaint) {
    let kind = now.as_ref().map(|(kind, _)| *kind);
    if *last == kind {
        return;
    }
    match now {
        Some((_, text)) => warn!("{text}"),
        None => info!("Orchestrator tells this server's role again"),
    }
    *last = kind;
}

fn retries(options: &Options) -> Backoff {
    Backoff::new(RETRY_FIRST.min(options.poll_interval), options.poll_interval)
}

fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::rng().random_range(1.0 - JITTER..=1.0 + JITTER))
}

/// One look, on the connection that is open or on a new one.
async fn look_at(endpoint: &Endpoint, open: Option<(Session, InstanceKey)>) -> anyhow::Result<(Session, Look)> {
    let (mut session, name) = match open {
        Some(open) => open,
        None => {
            let mut session = Session::connect(endpoint).await?;
            let name = own_name(&mut session).await?;
            (session, name)
        }
    };
    let writable = session.is_writable().await?;
    Ok((session, Look { writable, name }))
}

/// One look at the server, and one answer of Orchestrator, for a command that runs without an agent.
pub async fn look_once(endpoint: &Endpoint, orchestrator: Option<Options>) -> anyhow::Result<Standing> {
    let (_, look) = look_at(endpoint, None).await?;
    let mut knowledge = Knowledge::new(orchestrator.is_none());
    knowledge.looked(look.writable);
    if let Some(options) = orchestrator {
        let us = options.instance.clone().unwrap_or(look.name);
        let view = Client::new(&options)?.view(&us).await?;
        let verdict = judge(&view.instances, &us).with_context(|| format!("Orchestrator at {} does not list {us}", view.url))?;
        knowledge.answered(view.url.as_ref(), verdict, Instant::now());
    }
    Ok(knowledge.standing())
}

/// What the server is called by whoever discovers it: report_host and report_port where they are set, else its own host name and port.
pub async fn own_name(session: &mut Session) -> anyhow::Result<InstanceKey> {
    let (host, port): (String, u16) = session
        .one(
            "SELECT COALESCE(NULLIF(@@GLOBAL.report_host, ''), @@GLOBAL.hostname), \
             CAST(IF(@@GLOBAL.report_port = 0, @@GLOBAL.port, @@GLOBAL.report_port) AS UNSIGNED)",
        )
        .await?;
    Ok(InstanceKey { host, port })
}
