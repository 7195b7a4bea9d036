//! What stands between a store and its S3 server, sees every request, and behaves as other servers do. It can also stand alone, and give the
//! answers that AWS was recorded to give and moto cannot.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderName, Method, Response, StatusCode},
};
use tokio::net::TcpListener;

const BODY_BYTES_MAX: usize = 64 << 20;
const IF_MATCH: &str = "if-match";
const IF_NONE_MATCH: &str = "if-none-match";
/// A connection's, not a message's.
const OF_THE_CONNECTION: [&str; 4] = ["connection", "host", "content-length", "transfer-encoding"];

/// How the server behaves.
#[derive(Debug, Clone)]
pub enum Manner {
    /// As it is.
    Plain,
    /// Garage.
    IgnoresConditions,
    IgnoresIfMatch,
    /// Ceph.
    FailsIfMatch,
    /// Any that knows only what S3 had before 2022.
    RefusesSdkChecksums,
    /// The third part of each large object is throttled once.
    Throttles,
    /// This, whatever is asked for.
    Answers(Answer),
}

/// A recorded answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub code: &'static str,
    pub message: &'static str,
    /// Of its XML, beside code and message.
    pub more: &'static str,
}

/// A request, as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// Ends with the test's runtime.
pub struct S3Proxy {
    /// Its URL.
    pub endpoint: String,
    state: Arc<Proxied>,
}

struct Proxied {
    upstream: String,
    manner: Mutex<Manner>,
    client: reqwest::Client,
    seen: Mutex<Vec<Seen>>,
    parts: Mutex<BTreeMap<String, usize>>,
}

impl S3Proxy {
    pub async fn start(upstream: &str, manner: Manner) -> S3Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Proxied {
            upstream: upstream.to_owned(),
            manner: Mutex::new(manner),
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            seen: Mutex::default(),
            parts: Mutex::default(),
        });
        let app = Router::new().fallback(handle).with_state(state.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        S3Proxy { endpoint, state }
    }

    /// Gives one answer to everything.
    pub async fn answering(answer: Answer) -> S3Proxy {
        S3Proxy::start("", Manner::Answers(answer)).await
    }

    /// From now on it behaves so.
    pub fn set(&self, manner: Manner) {
        *self.state.manner.lock().unwrap() = manner;
    }

    /// What came until now.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }
}

async fn handle(State(proxied): State<Arc<Proxied>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, BODY_BYTES_MAX).await.unwrap();
    let seen = Seen {
        method: parts.method,
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        body,
    };
    proxied.seen.lock().unwrap().push(seen.clone());
    match proxied.refusal(&seen) {
        Some(answer) => answer.response(&seen.method),
        None => proxied.forward(seen).await,
    }
}

impl Proxied {
    fn refusal(&self, seen: &Seen) -> Option<Answer> {
        let is_write = matches!(seen.method, Method::PUT | Method::POST);
        match &*self.manner.lock().unwrap() {
            Manner::Answers(answer) => Some(answer.clone()),
            Manner::FailsIfMatch if is_write && seen.header(IF_MATCH).is_some() => Some(Answer {
                status: 412,
                code: "PreconditionFailed",
                ..Answer::default()
            }),
            Manner::RefusesSdkChecksums if seen.headers.keys().any(|name| name.as_str().starts_with("x-amz-checksum-")) => {
                Some(Answer {
                    status: 501,
                    code: "NotImplemented",
                    message: "A header you provided implies functionality that is not implemented.",
                    ..Answer::default()
                })
            }
            Manner::Throttles if seen.query.contains("partNumber=") => {
                let mut parts = self.parts.lock().unwrap();
                let number = parts.entry(seen.path.clone()).or_default();
                *number += 1;
                (*number == 3).then(|| Answer {
                    status: 503,
                    code: "SlowDown",
                    message: "Please reduce your request rate.",
                    ..Answer::default()
                })
            }
            _ => None,
        }
    }

    async fn forward(&self, seen: Seen) -> Response<Body> {
        let mut headers = seen.headers;
        OF_THE_CONNECTION.iter().for_each(|name| drop(headers.remove(*name)));
        if seen.method != Method::GET {
            match *self.manner.lock().unwrap() {
                Manner::IgnoresConditions => [IF_MATCH, IF_NONE_MATCH].iter().for_each(|name| drop(headers.remove(*name))),
                Manner::IgnoresIfMatch => drop(headers.remove(IF_MATCH)),
                _ => {}
            }
        }
        let query = if seen.query.is_empty() {
            String::new()
        } else {
            format!("?{}", seen.query)
        };
        let url = format!("{}{}{query}", self.upstream, seen.path);
        let sent = self
            .client
            .request(seen.method.clone(), url)
            .headers(headers)
            .body(seen.body)
            .send()
            .await;
        let answer = sent.unwrap();
        let mut response = Response::builder().status(answer.status());
        let is_head = seen.method == Method::HEAD;
        for (name, value) in answer.headers() {
            // The length of what a HEAD does not carry is the object's.
            if !OF_THE_CONNECTION.contains(&name.as_str()) || is_head && *name == HeaderName::from_static("content-length") {
                response = response.header(name, value);
            }
        }
        response.body(Body::from(answer.bytes().await.unwrap())).unwrap()
    }
}

impl Answer {
    fn response(&self, method: &Method) -> Response<Body> {
        let (code, message, more) = (self.code, self.message, self.more);
        let xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>"
        );
        let body = if *method == Method::HEAD {
            Body::empty()
        } else {
            Body::from(xml)
        };
        Response::builder()
            .status(StatusCode::from_u16(self.status).unwrap())
            .header("content-type", "application/xml")
            .body(body)
            .unwrap()
    }
}
