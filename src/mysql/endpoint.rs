//! Where a server is and who we are there.

use std::{fmt, path::PathBuf};

use crate::support::secret::Secret;

/// How to reach a MySQL server.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub address: Address,
    pub user: String,
    pub password: Secret,
    pub tls: Tls,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Socket(PathBuf),
    Tcp { host: String, port: u16 },
}

/// Encryption of TCP connections; sockets are never encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    Disabled,
    /// Encrypted, whoever answers: MySQL's self-made certificates are accepted.
    Required,
    /// Encrypted, and the server's certificate must descend from one in this PEM file and bear the name by which the server is
    /// addressed. (MySQL's self-made certificates bear none. mysql_async 0.37.1 cannot leave the name out of account.)
    VerifyCa(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Socket(path) => write!(f, "{}", path.display()),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}
