//! What stands between mysql-pitr and EC2: hands requests on to moto, and refuses, withholds, counts, and lets snapshots take their time.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

#[derive(Default)]
struct Rules {
    denied: BTreeMap<String, (String, String)>,
    /// Regions in which no snapshot is complete.
    pending: BTreeSet<String>,
    /// Regions in which every snapshot is in error.
    failing: BTreeSet<String>,
    calls: Vec<(String, String)>,
    halt: Option<Halt>,
}

/// From one request on nothing is answered.
#[derive(Clone, Copy)]
struct Halt {
    left: usize,
    carried_out: bool,
}

struct Shared {
    upstream: String,
    rules: Mutex<Rules>,
    /// Actions that are carried out and not answered.
    withheld: watch::Sender<BTreeSet<String>>,
    /// Whether a request is not answered.
    halted: watch::Sender<bool>,
}

/// Dropped, it answers nothing any more.
pub struct Front {
    pub endpoint: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Front {
    pub async fn start(upstream: &str) -> Front {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            rules: Mutex::default(),
            withheld: watch::channel(BTreeSet::new()).0,
            halted: watch::channel(false).0,
        });
        let router = Router::new().fallback(forward).with_state(shared.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Front { endpoint, shared, task }
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.shared.rules.lock().unwrap()
    }

    /// From now on such requests get this error, and nothing is done.
    pub fn refuse(&self, action: &str, code: &str, message: &str) {
        let error = (code.to_owned(), message.to_owned());
        self.rules().denied.insert(action.to_owned(), error);
    }

    /// As IAM does.
    pub fn deny(&self, action: &str) {
        let message = "You are not authorized to perform this operation. Encoded authorization failure message: secret";
        self.refuse(action, "UnauthorizedOperation", message);
    }

    pub fn allow(&self, action: &str) {
        self.rules().denied.remove(action);
    }

    /// Such requests are carried out, and answered when it is told so.
    pub fn withhold(&self, action: &str) {
        self.shared.withheld.send_modify(|w| {
            w.insert(action.to_owned());
        });
    }

    pub fn answer(&self, action: &str) {
        self.shared.withheld.send_modify(|w| {
            w.remove(action);
        });
    }

    /// After so many requests none is answered any more; the first of these may be carried out.
    pub fn halt(&self, left: usize, carried_out: bool) {
        self.rules().halt = Some(Halt { left, carried_out });
    }

    /// Ready once a request is not answered.
    pub async fn halted(&self) {
        let _ = self.shared.halted.subscribe().wait_for(|halted| *halted).await;
    }

    /// What was not answered is answered now, if it was carried out.
    pub fn go_on(&self) {
        self.rules().halt = None;
        self.shared.halted.send_replace(false);
    }

    pub fn set_pending(&self, region: &str, pending: bool) {
        let mut rules = self.rules();
        if pending {
            rules.pending.insert(region.to_owned());
        } else {
            rules.pending.remove(region);
        }
    }

    pub fn set_failing(&self, region: &str) {
        self.rules().failing.insert(region.to_owned());
    }

    /// How often an action was asked for.
    pub fn calls(&self, action: &str) -> usize {
        self.rules().calls.iter().filter(|(a, _)| a == action).count()
    }

    /// The bodies of such requests.
    pub fn bodies(&self, action: &str) -> Vec<String> {
        let rules = self.rules();
        let of_it = rules.calls.iter().filter(|(a, _)| a == action);
        of_it.map(|(_, body)| body.clone()).collect()
    }
}

/// Of `a=b&c=d`.
fn field<'b>(body: &'b str, name: &str) -> Option<&'b str> {
    body.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// `Credential=AKID/20261121/eu-west-1/ec2/aws4_request`
fn region(headers: &HeaderMap) -> String {
    let authorization = headers.get("authorization").and_then(|h| h.to_str().ok()).unwrap_or_default();
    let scope = authorization.split("Credential=").nth(1).unwrap_or_default();
    scope.split('/').nth(2).unwrap_or_default().to_owned()
}

async fn forward(State(shared): State<Arc<Shared>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let text = String::from_utf8_lossy(&body).into_owned();
    let action = field(&text, "Action").unwrap_or_default().to_owned();
    let region = region(&headers);
    let halt = {
        let mut rules = shared.rules.lock().unwrap();
        match &mut rules.halt {
            Some(halt) if halt.left > 0 => {
                halt.left -= 1;
                None
            }
            halt => *halt,
        }
    };
    if halt.is_some_and(|h| !h.carried_out) {
        shared.halted.send_replace(true);
        pending::<()>().await;
    }
    let refusal = {
        let mut rules = shared.rules.lock().unwrap();
        rules.calls.push((action.clone(), text));
        rules.denied.get(&action).cloned()
    };
    if let Some((code, message)) = refusal {
        let xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>\
             <RequestID>r</RequestID></Response>"
        );
        return (StatusCode::FORBIDDEN, xml).into_response();
    }
    let url = format!("{}{}", shared.upstream, uri.path_and_query().map_or("/", |p| p.as_str()));
    let mut request = reqwest::Client::new().request(method, url).body(body);
    for (name, value) in &headers {
        if name != "content-length" && name != "connection" {
            request = request.header(name, value);
        }
    }
    let Ok(answer) = request.send().await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let status = answer.status();
    let kind = answer.headers().get("content-type").cloned();
    let mut text = answer.text().await.unwrap_or_default();
    if halt.is_some() {
        let mut halted = shared.halted.subscribe();
        shared.halted.send_replace(true);
        let _ = halted.wait_for(|halted| !halted).await;
    }
    let mut waiting = shared.withheld.subscribe();
    let _ = waiting.wait_for(|withheld| !withheld.contains(&action)).await;
    {
        let rules = shared.rules.lock().unwrap();
        for (regions, state) in [(&rules.pending, "pending"), (&rules.failing, "error")] {
            if action == "DescribeSnapshots" && regions.contains(&region) {
                text = text.replace("<status>completed</status>", &format!("<status>{state}</status>"));
                text = text.replace("<progress>100%</progress>", "<progress>42%</progress>");
            }
        }
    }
    let mut response = (status, text).into_response();
    if let Some(kind) = kind {
        response.headers_mut().insert("content-type", kind);
    }
    response
}
