//! What stands between mysql-pitr and EC2: hands requests on to moto, and refuses, withholds, counts, pages, loses and cuts short, and lets
//! snapshots take their time.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use super::ebs::xml;

#[derive(Default)]
struct Rules {
    refused: BTreeMap<String, Refusal>,
    /// Access keys that are good no more, and what is said of them.
    expired: BTreeMap<String, (String, String)>,
    /// Regions in which no snapshot is complete.
    pending: BTreeSet<String>,
    /// Regions in which every snapshot that is looked at is in error, and why.
    failing: BTreeMap<String, String>,
    /// Snapshots that were.
    failed: BTreeMap<String, String>,
    /// Results on a page; before each there is an empty one.
    page_items: Option<usize>,
    /// Actions of which the answers end in their middle.
    cut_short: BTreeSet<String>,
    noise: Option<Noise>,
    calls: Vec<(String, String)>,
    halt: Option<Halt>,
}

/// From one request on nothing is answered.
#[derive(Clone, Copy)]
struct Halt {
    left: usize,
    carried_out: bool,
}

struct Refusal {
    code: String,
    message: String,
    /// None: until it is allowed.
    times_left: Option<usize>,
}

/// By seed every second request goes wrong, until so many have.
struct Noise {
    random: SmallRng,
    faults_left: usize,
}

/// What becomes of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Served,
    /// The connection breaks before anything is done,
    Dropped,
    /// after it is done,
    Lost,
    /// or in the middle of the answer.
    BrokenOff,
    /// The answer ends in its middle as if that were its end.
    CutShort,
    Throttled,
    Failed,
    /// The server fails after it has done it.
    FailedLate,
}

struct Shared {
    upstream: String,
    http: reqwest::Client,
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
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
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
        self.refuse_times(action, code, message, None);
    }

    /// The next so many of such requests get this error; all of them, if it is not said how many.
    pub fn refuse_times(&self, action: &str, code: &str, message: &str, times_left: Option<usize>) {
        let refusal = Refusal {
            code: code.to_owned(),
            message: message.to_owned(),
            times_left,
        };
        self.rules().refused.insert(action.to_owned(), refusal);
    }

    /// As IAM does.
    pub fn deny(&self, action: &str) {
        let message = "You are not authorized to perform this operation. Encoded authorization failure message: secret";
        self.refuse(action, "UnauthorizedOperation", message);
    }

    pub fn allow(&self, action: &str) {
        self.rules().refused.remove(action);
    }

    /// From now on requests that are signed with this key get this error.
    pub fn expire(&self, key_id: &str, code: &str, message: &str) {
        let error = (code.to_owned(), message.to_owned());
        self.rules().expired.insert(key_id.to_owned(), error);
    }

    pub fn renew(&self, key_id: &str) {
        self.rules().expired.remove(key_id);
    }

    /// Lists come in pages of so many results.
    pub fn page(&self, items: usize) {
        self.rules().page_items = Some(items);
    }

    /// From now on such requests are carried out, and their answers end in the middle, as if that were their end.
    pub fn cut_short(&self, action: &str, is_cut: bool) {
        let mut rules = self.rules();
        if is_cut {
            rules.cut_short.insert(action.to_owned());
        } else {
            rules.cut_short.remove(action);
        }
    }

    /// From now on requests go wrong, in ways and an order that the seed says.
    pub fn disturb(&self, seed: u64, faults: usize) {
        self.rules().noise = Some(Noise {
            random: SmallRng::seed_from_u64(seed),
            faults_left: faults,
        });
    }

    /// How many faults are still to come.
    pub fn faults_left(&self) -> usize {
        self.rules().noise.as_ref().map_or(0, |n| n.faults_left)
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

    /// `why`: what EC2 says of it, if it does.
    pub fn set_failing(&self, region: &str, why: &str) {
        self.rules().failing.insert(region.to_owned(), why.to_owned());
    }

    /// What has failed stays so.
    pub fn set_working(&self, region: &str) {
        self.rules().failing.remove(region);
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

/// Of `Credential=AKID/20261121/eu-west-1/ec2/aws4_request`: key and region.
fn scope(headers: &HeaderMap) -> (String, String) {
    let authorization = headers.get("authorization").and_then(|h| h.to_str().ok()).unwrap_or_default();
    let scope = authorization.split("Credential=").nth(1).unwrap_or_default();
    let mut parts = scope.split('/').map(str::to_owned);
    (parts.next().unwrap_or_default(), parts.nth(1).unwrap_or_default())
}

impl Rules {
    /// Code and message.
    fn refusal(&mut self, action: &str, key_id: &str) -> Option<(String, String)> {
        if let Some(error) = self.expired.get(key_id) {
            return Some(error.clone());
        }
        let refusal = self.refused.get_mut(action)?;
        if let Some(left) = &mut refusal.times_left {
            if *left == 0 {
                return None;
            }
            *left -= 1;
        }
        Some((refusal.code.clone(), refusal.message.clone()))
    }

    fn fate(&mut self, action: &str) -> Fate {
        if self.cut_short.contains(action) {
            return Fate::CutShort;
        }
        let Some(noise) = self.noise.as_mut().filter(|n| n.faults_left > 0) else {
            return Fate::Served;
        };
        let fate = match noise.random.random_range(0..14) {
            0 => Fate::Dropped,
            1 => Fate::Lost,
            2 => Fate::BrokenOff,
            3 => Fate::CutShort,
            4 => Fate::Throttled,
            5 => Fate::Failed,
            6 => Fate::FailedLate,
            _ => Fate::Served,
        };
        noise.faults_left -= usize::from(fate != Fate::Served);
        fate
    }

    /// As EC2 says it, where moto says otherwise.
    fn retell(&mut self, action: &str, region: &str, form: &str, mut text: String) -> String {
        if action == "DescribeSnapshots" {
            if self.pending.contains(region) {
                text = text.replace("<status>completed</status>", "<status>pending</status>");
                text = text.replace("<progress>100%</progress>", "<progress>42%</progress>");
            }
            text = self.failed(region, text);
        }
        // What is asked for by its ids is given at once.
        let is_by_id = form.contains("VolumeId.") || form.contains("SnapshotId.");
        match (action, self.page_items.filter(|_| !is_by_id)) {
            ("DescribeSnapshots", Some(items)) => paged(&text, "snapshotSet", items, form),
            ("DescribeVolumes", Some(items)) => paged(&text, "volumeSet", items, form),
            _ => text,
        }
    }

    fn failed(&mut self, region: &str, text: String) -> String {
        let retold = xml::items(&text, "snapshotSet").into_iter().map(|item| {
            let id = xml::text(item, "snapshotId").unwrap_or_default();
            if let Some(why) = self.failing.get(region) {
                self.failed.insert(id.to_owned(), why.clone());
            }
            match self.failed.get(id) {
                Some(why) => xml::with_text(item, "status", "error") + &format!("<statusMessage>{why}</statusMessage>"),
                None => item.to_owned(),
            }
        });
        let retold: Vec<String> = retold.collect();
        xml::with_items(&text, "snapshotSet", &retold, None)
    }
}

/// The page that `form` asks for. Before each there is an empty one, with a token all the same.
fn paged(text: &str, set: &str, items: usize, form: &str) -> String {
    let all: Vec<String> = xml::items(text, set).into_iter().map(str::to_owned).collect();
    let page: usize = field(form, "NextToken").map_or(0, |token| token.parse().unwrap());
    let from = (page / 2 * items).min(all.len());
    let until = if page.is_multiple_of(2) {
        from
    } else {
        (from + items).min(all.len())
    };
    xml::with_items(text, set, &all[from..until], (until < all.len()).then_some(page + 1))
}

/// The status that EC2 gives with an error.
fn status(code: &str) -> StatusCode {
    match code {
        "RequestLimitExceeded" | "Unavailable" => StatusCode::SERVICE_UNAVAILABLE,
        "InternalError" => StatusCode::INTERNAL_SERVER_ERROR,
        "UnauthorizedOperation" | "SignatureDoesNotMatch" => StatusCode::FORBIDDEN,
        "AuthFailure" => StatusCode::UNAUTHORIZED,
        _ => StatusCode::BAD_REQUEST,
    }
}

fn error(code: &str, message: &str) -> Response {
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>\
         <RequestID>r</RequestID></Response>"
    );
    (status(code), xml).into_response()
}

/// The connection breaks after so much.
fn broken_off(text: String) -> Response {
    let pieces = [Ok(Bytes::from(text)), Err(io::Error::from(io::ErrorKind::ConnectionReset))];
    Response::new(Body::from_stream(stream::iter(pieces)))
}

async fn forward(State(shared): State<Arc<Shared>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let form = String::from_utf8_lossy(&body).into_owned();
    let action = field(&form, "Action").unwrap_or_default().to_owned();
    let (key_id, region) = scope(&headers);
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
    let (refusal, fate) = {
        let mut rules = shared.rules.lock().unwrap();
        rules.calls.push((action.clone(), form.clone()));
        (rules.refusal(&action, &key_id), rules.fate(&action))
    };
    if let Some((code, message)) = refusal {
        return error(&code, &message);
    }
    match fate {
        Fate::Dropped => return broken_off(String::new()),
        Fate::Throttled => return error("RequestLimitExceeded", "Request limit exceeded."),
        Fate::Failed => return error("InternalError", "An internal error has occurred"),
        _ => {}
    }
    let url = format!("{}{}", shared.upstream, uri.path_and_query().map_or("/", |p| p.as_str()));
    let mut request = shared.http.request(method, url).body(body);
    for (name, value) in &headers {
        if name != "content-length" && name != "connection" {
            request = request.header(name, value);
        }
    }
    let Ok(answer) = request.send().await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let status = answer.status();
    let kind = answer.headers().get(CONTENT_TYPE).cloned();
    let mut text = answer.text().await.unwrap_or_default();
    if halt.is_some() {
        let mut halted = shared.halted.subscribe();
        shared.halted.send_replace(true);
        let _ = halted.wait_for(|halted| !halted).await;
    }
    let mut waiting = shared.withheld.subscribe();
    let _ = waiting.wait_for(|withheld| !withheld.contains(&action)).await;
    if status.is_success() {
        text = shared.rules.lock().unwrap().retell(&action, &region, &form, text);
    }
    let half = String::from_utf8_lossy(&text.as_bytes()[..text.len() / 2]).into_owned();
    let mut response = match fate {
        Fate::Lost => return broken_off(String::new()),
        Fate::BrokenOff => return broken_off(half),
        Fate::FailedLate => return error("InternalError", "An internal error has occurred"),
        Fate::CutShort => (status, half).into_response(),
        _ => (status, text).into_response(),
    };
    if let Some(kind) = kind {
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    response
}
