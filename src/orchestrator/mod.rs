//! What Orchestrator says of this server and its cluster: asked over HTTP, judged without it.
//!
//! One question is one look, with a timeout for each request and no attempt repeated; whoever asks decides when to ask again. An
//! answer is not trusted: it is limited in size, and what is missing in it is an error.

mod answers;
mod client;
mod role;

use std::{cmp::Ordering, fmt, str::FromStr, time::Duration};

use serde::Deserialize;

pub use answers::Instance;
pub use client::{Client, View};
pub use reqwest::Url;
pub use role::{Role, Verdict, judge};

use crate::support::secret::Secret;

/// How to reach Orchestrator, and who we are there.
#[derive(Debug, Clone)]
pub struct Options {
    /// Of several nodes of one Orchestrator: any of them will do. Never empty.
    pub urls: Vec<Url>,
    /// From one look to the next while nothing happens.
    pub poll_interval: Duration,
    /// For each request, the body included.
    pub timeout: Duration,
    /// This server, as Orchestrator calls it; None where what the server says of itself will do.
    pub instance: Option<InstanceKey>,
    pub auth: Auth,
}

/// What Orchestrator wants to see of a client, by its `AuthenticationMethod`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// Nothing.
    None,
    /// `basic` and `multi`.
    Basic { user: String, password: Secret },
    /// `proxy`: a header that a reverse proxy sets, or that one is let through with.
    Header { name: String, value: Secret },
    /// `token`: the value of the cookie `access-token`, `public:secret`.
    Token(Secret),
}

/// A server, as Orchestrator tells servers apart. Names are equal whatever their case, as host names are.
#[derive(Debug, Clone, Deserialize)]
pub struct InstanceKey {
    #[serde(rename = "Hostname")]
    pub host: String,
    #[serde(rename = "Port")]
    pub port: u16,
}

impl InstanceKey {
    fn order(&self) -> (impl Iterator<Item = u8> + '_, u16) {
        (self.host.bytes().map(|b| b.to_ascii_lowercase()), self.port)
    }
}

impl Ord for InstanceKey {
    fn cmp(&self, other: &Self) -> Ordering {
        let ((host, port), (other_host, other_port)) = (self.order(), other.order());
        host.cmp(other_host).then(port.cmp(&other_port))
    }
}

impl PartialOrd for InstanceKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for InstanceKey {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for InstanceKey {}

/// `host:port`, and `[address]:port` for IPv6.
impl fmt::Display for InstanceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for InstanceKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no server; write it as host:port");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let port: u16 = port.parse().map_err(|_| wrong())?;
        let is_name = |h: &str| !h.is_empty() && !h.contains(|c: char| c.is_whitespace() || c.is_control() || "/:[]".contains(c));
        match bare {
            Some(address) if !address.is_empty() && port != 0 => Ok(InstanceKey {
                host: address.to_owned(),
                port,
            }),
            None if is_name(host) && port != 0 => Ok(InstanceKey {
                host: host.to_owned(),
                port,
            }),
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_they_are_written() {
        for text in ["db-1.example.net:3306", "127.0.0.1:14411", "[::1]:3306"] {
            assert_eq!(text.parse::<InstanceKey>().unwrap().to_string(), text);
        }
        for wrong in [
            "db-1",
            "db-1:",
            ":3306",
            "db-1:0",
            "db-1:70000",
            "::1:3306",
            "a b:1",
            "[]:1",
            "http://a:1",
        ] {
            assert!(wrong.parse::<InstanceKey>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_case_of_a_host_name_does_not_matter() {
        let key = |text: &str| text.parse::<InstanceKey>().unwrap();
        assert_eq!(key("DB-1:3306"), key("db-1:3306"));
        assert_ne!(key("db-1:3306"), key("db-1:3307"));
        assert!(key("a:2") < key("B:1"));
    }
}
