//! Asking Orchestrator, one node after another, until one of them knows.

use std::{
    error::Error,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, anyhow};
use reqwest::{
    Certificate, Response, StatusCode, Url,
    header::{COOKIE, HeaderMap, HeaderName, HeaderValue},
    redirect,
};

use crate::support::hint::{OrHint, with_hint};

use super::{
    Auth, Instance, InstanceKey, Options,
    answers::{self, Answer},
};

/// A server takes 3 KiB of an answer; this is for clusters that nobody has.
const BODY_BYTES_MAX: usize = 16 << 20;
/// Of what Orchestrator says in its own words, this much is shown.
const SHOWN_CHARS_MAX: usize = 300;
const TOKEN_COOKIE: &str = "access-token";

/// All servers that Orchestrator knows of a shard.
#[derive(Debug)]
pub struct View {
    /// Which node said so.
    pub url: Url,
    pub instances: Vec<Instance>,
}

/// Asks an Orchestrator of one or several nodes.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    urls: Vec<Url>,
    auth: Auth,
    timeout: Duration,
    /// The node that answered last is asked first.
    preferred: AtomicUsize,
}

/// Why one node's answer does not count.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Transport(String),
    #[error("it answers with an error: {0}")]
    Complaint(String),
    #[error("it refuses us with HTTP {0}")]
    Unauthorized(u16),
    #[error("it answers with a redirect (HTTP {0}), which is not followed")]
    Redirect(u16),
    #[error("HTTP {0} without a word: it has no leader, or a proxy cannot reach it")]
    Leaderless(u16),
    #[error("its answer is larger than {} MiB", BODY_BYTES_MAX >> 20)]
    TooLarge,
    #[error("its answer (HTTP {0}) cannot be understood: {1}")]
    Garbage(u16, serde_json::Error),
    #[error("its answer for {0} does not list that server")]
    NotListed(InstanceKey),
}

impl Client {
    /// Connects to nothing yet. Fails where a header cannot be made of the secrets, or https is wanted and the system trusts no
    /// certificate.
    pub fn new(options: &Options) -> anyhow::Result<Client> {
        let mut builder = reqwest::Client::builder()
            .default_headers(headers(&options.auth)?)
            .timeout(options.timeout)
            // A secret is for the nodes that were named, and for nobody that they name.
            .redirect(redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("mysql-pitr/", env!("CARGO_PKG_VERSION")));
        if options.urls.iter().all(|url| url.scheme() != "https") {
            // Without TLS, nobody needs the system to have certificates.
            builder = builder.tls_certs_only(std::iter::empty::<Certificate>());
        }
        let http = builder
            .build()
            .context("cannot prepare for asking Orchestrator")
            .hint("install the system's CA certificates (ca-certificates), or set SSL_CERT_FILE")?;
        Ok(Client {
            http,
            urls: options.urls.clone(),
            auth: options.auth.clone(),
            timeout: options.timeout,
            preferred: AtomicUsize::new(0),
        })
    }

    /// The shard that `us` is in: all servers of its cluster, and where that has an alias also those of the cluster that Orchestrator
    /// means by it, for a promotion leaves two clusters behind. `us` is among them. Asks each node at most once.
    pub async fn view(&self, us: &InstanceKey) -> anyhow::Result<View> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for i in 0..self.urls.len() {
            let at = (first + i) % self.urls.len();
            let url = &self.urls[at];
            match self.view_of_node(url, us).await {
                Ok(instances) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Ok(View {
                        url: url.clone(),
                        instances,
                    });
                }
                Err(e) => failures.push((url, e)),
            }
        }
        Err(explain(us, &failures))
    }

    async fn view_of_node(&self, url: &Url, us: &InstanceKey) -> Result<Vec<Instance>, NoAnswer> {
        let mut instances = self.cluster(url, &us.to_string()).await?;
        let me = instances.iter().find(|i| i.key == *us);
        let me = me.ok_or_else(|| NoAnswer::NotListed(us.clone()))?;
        let (alias, name) = (me.suggested_cluster_alias.clone(), me.cluster_name.clone());
        if !alias.is_empty() && alias != name {
            match self.cluster(url, &alias).await {
                Ok(others) => instances.extend(others),
                // An alias that nobody registered leads nowhere.
                Err(NoAnswer::Complaint(_)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(instances)
    }

    /// `hint`: an alias, or any member's host:port.
    async fn cluster(&self, url: &Url, hint: &str) -> Result<Vec<Instance>, NoAnswer> {
        let mut url = url.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["api", "cluster", hint]);
        }
        let mut request = self.http.get(url);
        if let Auth::Basic { user, password } = &self.auth {
            request = request.basic_auth(user, Some(password.reveal()));
        }
        let response = request.send().await.map_err(|e| self.transport(e))?;
        let status = response.status();
        let body = self.body(response).await?;
        match answers::read(&body) {
            Ok(Answer::Instances(instances)) => Ok(instances),
            Ok(Answer::Error(text)) => Err(NoAnswer::Complaint(shown(&text))),
            Err(_) if [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status) => {
                Err(NoAnswer::Unauthorized(status.as_u16()))
            }
            Err(_) if status.is_redirection() => Err(NoAnswer::Redirect(status.as_u16())),
            Err(_) if body.is_empty() && status.is_server_error() => Err(NoAnswer::Leaderless(status.as_u16())),
            Err(e) => Err(NoAnswer::Garbage(status.as_u16(), e)),
        }
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, NoAnswer> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.transport(e))? {
            if body.len() + chunk.len() > BODY_BYTES_MAX {
                return Err(NoAnswer::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn transport(&self, e: reqwest::Error) -> NoAnswer {
        if e.is_timeout() {
            return NoAnswer::Timeout(self.timeout);
        }
        // The URL is said beside it; the innermost cause is the operating system's or the protocol's.
        let e = e.without_url();
        let mut cause: &dyn Error = &e;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        NoAnswer::Transport(shown(&cause.to_string()))
    }
}

fn headers(auth: &Auth) -> anyhow::Result<HeaderMap> {
    let secret = |text: &str| {
        let mut value =
            HeaderValue::from_str(text).context("the secret for Orchestrator has characters that no header can bear")?;
        value.set_sensitive(true);
        anyhow::Ok(value)
    };
    let mut headers = HeaderMap::new();
    match auth {
        // Made for each request.
        Auth::None | Auth::Basic { .. } => {}
        Auth::Header { name, value } => {
            let name: HeaderName = name.parse().with_context(|| format!("`{name}` is no name of a header"))?;
            headers.insert(name, secret(value.reveal())?);
        }
        Auth::Token(token) => {
            headers.insert(COOKIE, secret(&format!("{TOKEN_COOKIE}={}", token.reveal()))?);
        }
    }
    Ok(headers)
}

/// A text from outside, fit to be logged.
fn shown(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut shown: String = text.chars().take(SHOWN_CHARS_MAX).map(clean).collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

fn explain(us: &InstanceKey, failures: &[(&Url, NoAnswer)]) -> anyhow::Error {
    let said: Vec<String> = failures.iter().map(|(url, e)| format!("{url}: {e}")).collect();
    let has = |wanted: fn(&NoAnswer) -> bool| failures.iter().any(|(_, e)| wanted(e));
    let hint = if has(|e| matches!(e, NoAnswer::Unauthorized(_))) {
        "check auth and its keys in the [orchestrator] section"
    } else if has(|e| matches!(e, NoAnswer::Complaint(_) | NoAnswer::NotListed(_))) {
        "see under which name Orchestrator lists this server, and set instance in the [orchestrator] section to it"
    } else {
        "see whether Orchestrator runs and has a leader, and whether urls in the [orchestrator] section lead to it"
    };
    with_hint(
        anyhow!("{}", said.join("; ")).context(format!("Orchestrator says nothing of {us}")),
        hint,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::secret::Secret;

    #[test]
    fn texts_from_outside_are_short_and_clean() {
        assert_eq!(shown("a\n\u{1f}b"), "a  b");
        assert_eq!(shown(&"x".repeat(5000)).chars().count(), SHOWN_CHARS_MAX + 1);
    }

    #[test]
    fn secrets_do_not_show() {
        let options = Options {
            urls: vec!["http://127.0.0.1:3000".parse().unwrap()],
            poll_interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            instance: None,
            auth: Auth::Token(Secret::new("public:hunter2")),
        };
        let shown = format!("{options:?} {:?}", Client::new(&options).unwrap());
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
