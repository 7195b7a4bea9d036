//! A fake Orchestrator. No package registry has the real one, so its answers were recorded (`tests/fixtures/orchestrator`), and this server
//! gives them again, rewritten to the servers of the test: their ports, who replicates from whom, who lives. It looks at no server by
//! itself; a test says what it would have seen.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{
        HeaderMap, StatusCode,
        header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, LOCATION},
    },
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};

pub const HOST: &str = "127.0.0.1";
/// As in the recordings.
pub const ALIAS: &str = "demo";
const CLUSTER: &str = include_str!("../fixtures/orchestrator/cluster.json");
const CLUSTER_PRIMARY_DEAD: &str = include_str!("../fixtures/orchestrator/cluster-primary-dead.json");
const UNKNOWN_CLUSTER: &str = include_str!("../fixtures/orchestrator/error-unknown-cluster.json");
/// The hint that the recorded error names.
const UNKNOWN_HINT: &str = "nope";
/// Where the recorded clusters list which server.
const PRIMARY: usize = 0;
const CANDIDATE: usize = 1;
const REPLICA: usize = 2;

/// What it does in place of answering.
#[derive(Debug, Clone)]
pub enum How {
    Well,
    /// A raft node without a leader: 502 without a body.
    NoLeader,
    /// A web page.
    Garbage,
    /// A list without an end, as fast as it is read.
    Huge,
    /// No answer at all.
    Hang,
    /// The answer's head at once, then a byte now and then.
    Drip,
    /// To another URL.
    Redirect(String),
}

/// What a client must show. Orchestrator itself asks for a header or a token only where something is changed; a proxy before it asks always.
#[derive(Debug, Clone)]
pub enum Login {
    /// The whole value of `Authorization`.
    Basic(String),
    Header(String, String),
    Token(String),
}

/// A running fake. Dropped, it takes no more connections.
pub struct FakeOrchestrator {
    shared: Shared,
    url: String,
    task: JoinHandle<()>,
}

type Shared = Arc<Mutex<World>>;

struct World {
    members: BTreeMap<u16, Member>,
    /// The cluster that the alias means.
    alias: u16,
    how: How,
    login: Option<Login>,
    requests: Vec<(Instant, String)>,
}

#[derive(Debug, Clone)]
struct Member {
    living: bool,
    read_only: bool,
    candidate: bool,
    source: Option<u16>,
    /// Whose name its cluster bears.
    cluster: u16,
}

impl FakeOrchestrator {
    /// Watches servers on 127.0.0.1 at these ports: the first is the primary, the others replicate from it.
    pub async fn start(ports: &[u16]) -> FakeOrchestrator {
        let primary = ports[0];
        let member = |port: u16| Member {
            living: true,
            read_only: port != primary,
            candidate: false,
            source: (port != primary).then_some(primary),
            cluster: primary,
        };
        let shared = Arc::new(Mutex::new(World {
            members: ports.iter().map(|p| (*p, member(*p))).collect(),
            alias: primary,
            how: How::Well,
            login: None,
            requests: Vec::new(),
        }));
        let listener = TcpListener::bind((HOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new()
            .route("/api/cluster/{hint}", get(cluster))
            .with_state(shared.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        FakeOrchestrator { shared, url, task }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// A promotion that is over: all living servers follow the new primary, in a cluster of a new name. Dead ones stay where they were.
    pub fn set_primary(&self, port: u16) {
        let mut world = self.world();
        for (_, m) in world.members.iter_mut().filter(|(p, m)| **p != port && m.living) {
            (m.source, m.read_only, m.cluster) = (Some(port), true, port);
        }
        world.promote(port);
    }

    /// A promotion by hand as it is first seen: the new primary is alone in a cluster of its own, all others stay.
    pub fn promote_by_hand(&self, port: u16) {
        self.world().promote(port);
    }

    /// Seen as the head of a cluster that has another one.
    pub fn add_primary(&self, port: u16) {
        self.change(port, |m| (m.living, m.read_only, m.source) = (true, false, None));
    }

    pub fn kill(&self, port: u16) {
        self.change(port, |m| m.living = false);
    }

    /// Back from the dead, as it was.
    pub fn revive(&self, port: u16) {
        self.change(port, |m| m.living = true);
    }

    pub fn set_read_only(&self, port: u16, read_only: bool) {
        self.change(port, |m| m.read_only = read_only);
    }

    /// Whether it is registered with promotion rule `prefer`.
    pub fn candidate(&self, port: u16, is_candidate: bool) {
        self.change(port, |m| m.candidate = is_candidate);
    }

    pub fn misbehave(&self, how: How) {
        self.world().how = how;
    }

    /// From now on, 401 for everybody else.
    pub fn require(&self, login: Login) {
        self.world().login = Some(login);
    }

    /// When it was asked for a cluster, and by which hint, whatever it answered.
    pub fn requests(&self) -> Vec<(Instant, String)> {
        self.world().requests.clone()
    }

    fn change(&self, port: u16, change: impl FnOnce(&mut Member)) {
        change(self.world().members.get_mut(&port).expect("it is watched"));
    }

    fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.shared)
    }
}

impl Drop for FakeOrchestrator {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, World> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    fn promote(&mut self, port: u16) {
        let m = self.members.get_mut(&port).expect("it is watched");
        (m.living, m.read_only, m.source, m.cluster) = (true, false, None, port);
        self.alias = port;
    }

    fn knows(&self, headers: &HeaderMap) -> bool {
        let has = |name: &str, wanted: &str| headers.get(name).is_some_and(|v| v.as_bytes() == wanted.as_bytes());
        match &self.login {
            None => true,
            Some(Login::Basic(value)) => has(AUTHORIZATION.as_str(), value),
            Some(Login::Header(name, value)) => has(name, value),
            Some(Login::Token(token)) => has(COOKIE.as_str(), &format!("access-token={token}")),
        }
    }

    /// Which cluster an alias, a cluster's name or a member's host:port means.
    fn cluster_of(&self, hint: &str) -> Option<u16> {
        if hint == ALIAS {
            return Some(self.alias);
        }
        let port = hint.strip_prefix(HOST)?.strip_prefix(':')?.parse().ok()?;
        self.members.get(&port).map(|m| m.cluster)
    }

    fn answer(&self, hint: &str) -> Response {
        let json = |status: StatusCode, body: String| (status, [(CONTENT_TYPE, "application/json")], body).into_response();
        match self.cluster_of(hint) {
            None => json(StatusCode::INTERNAL_SERVER_ERROR, UNKNOWN_CLUSTER.replace(UNKNOWN_HINT, hint)),
            Some(cluster) => {
                let members = self.members.iter().filter(|(_, m)| m.cluster == cluster);
                let instances: Vec<Value> = members.map(|(port, m)| self.instance(*port, m)).collect();
                json(StatusCode::OK, Value::from(instances).to_string())
            }
        }
    }

    /// The recorded server that is most like this one, with this one's names and states.
    fn instance(&self, port: u16, m: &Member) -> Value {
        let is_dead = |p: u16| self.members.get(&p).is_some_and(|m| !m.living);
        let recorded = if is_dead(m.source.unwrap_or(port)) {
            CLUSTER_PRIMARY_DEAD
        } else {
            CLUSTER
        };
        let at = match m.source {
            None => PRIMARY,
            Some(_) if m.candidate => CANDIDATE,
            Some(_) => REPLICA,
        };
        let mut instance: Value = serde_json::from_str::<Value>(recorded).unwrap()[at].take();
        let key = |port: u16| json!({"Hostname": HOST, "Port": port});
        let replicas: Vec<Value> = self
            .members
            .iter()
            .filter(|(_, r)| r.source == Some(port))
            .map(|(r, _)| key(*r))
            .collect();
        for (field, value) in [
            ("Key", key(port)),
            ("MasterKey", m.source.map_or(json!({"Hostname": "", "Port": 0}), key)),
            ("ReadOnly", m.read_only.into()),
            ("IsLastCheckValid", m.living.into()),
            ("IsCandidate", m.candidate.into()),
            ("PromotionRule", if m.candidate { "prefer" } else { "neutral" }.into()),
            ("ClusterName", format!("{HOST}:{}", m.cluster).into()),
            ("Replicas", replicas.clone().into()),
            ("SlaveHosts", replicas.into()),
        ] {
            let known = instance.get_mut(field);
            *known.unwrap_or_else(|| panic!("no `{field}` was recorded")) = value;
        }
        instance
    }
}

async fn cluster(State(shared): State<Shared>, Path(hint): Path<String>, headers: HeaderMap) -> Response {
    const DRIP_INTERVAL: Duration = Duration::from_millis(50);
    let how = {
        let mut world = lock(&shared);
        world.requests.push((Instant::now(), hint.clone()));
        if !world.knows(&headers) {
            return (StatusCode::UNAUTHORIZED, "Not Authorized\n").into_response();
        }
        world.how.clone()
    };
    let byte = |text: &'static str| Ok::<Bytes, std::io::Error>(Bytes::from_static(text.as_bytes()));
    match how {
        How::Well => lock(&shared).answer(&hint),
        How::NoLeader => StatusCode::BAD_GATEWAY.into_response(),
        How::Garbage => "<html><body>It works!</body></html>".into_response(),
        How::Huge => Body::from_stream(stream::repeat_with(|| {
            Ok::<_, std::io::Error>(Bytes::from(vec![b'['; 1 << 20]))
        }))
        .into_response(),
        How::Hang => std::future::pending().await,
        How::Drip => {
            let drip = stream::unfold((), move |()| async move {
                sleep(DRIP_INTERVAL).await;
                Some((byte(" "), ()))
            });
            Body::from_stream(drip).into_response()
        }
        How::Redirect(url) => (StatusCode::FOUND, [(LOCATION, format!("{url}/api/cluster/{hint}"))]).into_response(),
    }
}
