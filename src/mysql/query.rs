//! Queries, through mysql_async; every one ends in time.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use anyhow::{Context, anyhow};
use mysql_async::{
    Conn, OptsBuilder, SslOpts,
    prelude::{FromRow, Queryable},
};
use tokio::time::timeout;
use uuid::Uuid;

use crate::{
    binlog::gtid::GtidSet,
    support::hint::{OrHint, with_hint},
};

use super::endpoint::{Address, Endpoint, Tls};

/// For connecting and for ordinary queries.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(30);
const ER_ACCESS_DENIED: u16 = 1045;
const ER_SPECIFIC_ACCESS_DENIED: u16 = 1227;
const ER_TABLE_ACCESS_DENIED: u16 = 1142;

/// A connection for queries.
pub struct Session {
    conn: Conn,
    address: Address,
}

impl Session {
    pub async fn connect(endpoint: &Endpoint) -> anyhow::Result<Session> {
        let address = endpoint.address.clone();
        let what = || format!("cannot connect to the MySQL server at {address} as `{}`", endpoint.user);
        let connected = timeout(QUERY_TIMEOUT, Conn::new(options(endpoint)))
            .await
            .map_err(|_| anyhow!("no answer within {} s", QUERY_TIMEOUT.as_secs()))
            .with_context(what)
            .hint("see whether mysqld is running and answers")?;
        match connected {
            Ok(conn) => Ok(Session { conn, address }),
            Err(mysql_async::Error::Server(e)) if e.code == ER_ACCESS_DENIED => Err(with_hint(
                anyhow!("{}", e.message).context(what()),
                "check user and password_file in the [mysql] section",
            )),
            Err(e) => Err(with_hint(
                plain(e).context(what()),
                "see whether mysqld is running, and the address in the [mysql] section",
            )),
        }
    }

    /// Runs a statement that gives no rows.
    pub async fn execute(&mut self, sql: &str) -> anyhow::Result<()> {
        self.execute_within(sql, QUERY_TIMEOUT).await
    }

    /// As [`Session::execute`], for what may take longer.
    pub async fn execute_within(&mut self, sql: &str, limit: Duration) -> anyhow::Result<()> {
        let result = timeout(limit, self.conn.query_drop(sql)).await;
        self.explain(sql, limit, result)
    }

    pub async fn rows<T: FromRow + Send + 'static>(&mut self, sql: &str) -> anyhow::Result<Vec<T>> {
        self.rows_within(sql, QUERY_TIMEOUT).await
    }

    /// As [`Session::rows`], for what may take longer.
    pub async fn rows_within<T: FromRow + Send + 'static>(&mut self, sql: &str, limit: Duration) -> anyhow::Result<Vec<T>> {
        let result = timeout(limit, self.conn.query(sql)).await;
        self.explain(sql, limit, result)
    }

    /// The first row.
    pub async fn one<T: FromRow + Send + 'static>(&mut self, sql: &str) -> anyhow::Result<T> {
        self.rows(sql)
            .await?
            .into_iter()
            .next()
            .with_context(|| format!("`{sql}` at {} gave no row", self.address))
    }

    fn explain<T>(
        &self,
        sql: &str,
        limit: Duration,
        result: Result<Result<T, mysql_async::Error>, tokio::time::error::Elapsed>,
    ) -> anyhow::Result<T> {
        let what = || format!("`{sql}` failed at {}", self.address);
        match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(mysql_async::Error::Server(e))) if [ER_SPECIFIC_ACCESS_DENIED, ER_TABLE_ACCESS_DENIED].contains(&e.code) => {
                Err(with_hint(
                    anyhow!("{}", e.message).context(what()),
                    "`mysql-pitr check` lists the privileges that are needed",
                ))
            }
            Ok(Err(e)) => Err(anyhow::Error::from(e).context(what())),
            Err(_) => Err(anyhow!("no answer within {} s", limit.as_secs()).context(what())),
        }
    }

    /// All global variables, by lower-case name.
    pub async fn variables(&mut self) -> anyhow::Result<Variables> {
        let rows: Vec<(String, String)> = self.rows("SHOW GLOBAL VARIABLES").await?;
        Ok(Variables(
            rows.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect(),
        ))
    }

    pub async fn gtid_executed(&mut self) -> anyhow::Result<GtidSet> {
        let (text,): (String,) = self.one("SELECT @@GLOBAL.gtid_executed").await?;
        Ok(text.parse()?)
    }

    pub async fn gtid_purged(&mut self) -> anyhow::Result<GtidSet> {
        let (text,): (String,) = self.one("SELECT @@GLOBAL.gtid_purged").await?;
        Ok(text.parse()?)
    }

    /// Whether clients can write: neither read_only nor super_read_only.
    pub async fn is_writable(&mut self) -> anyhow::Result<bool> {
        let (read_only, super_read_only): (u8, u8) = self.one("SELECT @@GLOBAL.read_only, @@GLOBAL.super_read_only").await?;
        Ok(read_only == 0 && super_read_only == 0)
    }

    /// The binlogs that the server still has, oldest first.
    pub async fn binary_logs(&mut self) -> anyhow::Result<Vec<ServerBinlog>> {
        let rows: Vec<mysql_async::Row> = self.rows("SHOW BINARY LOGS").await?;
        let parse = |row: mysql_async::Row| {
            let encrypted = row.get::<String, _>(2).is_some_and(|text| text == "Yes");
            let bytes = row
                .get::<u64, _>(1)?
                .checked_sub(if encrypted { ENCRYPTION_HEADER_BYTES } else { 0 })?;
            Some(ServerBinlog {
                name: row.get(0)?,
                bytes,
            })
        };
        let logs: Option<Vec<ServerBinlog>> = rows.into_iter().map(parse).collect();
        logs.with_context(|| format!("SHOW BINARY LOGS at {} gave an unexpected row", self.address))
    }

    pub async fn close(self) {
        // Only a courtesy: the server notices a closed connection by itself.
        let _ = self.conn.disconnect().await;
    }
}

/// The operating system's own words, which mysql_async wraps twice in its own.
fn plain(e: mysql_async::Error) -> anyhow::Error {
    match e {
        mysql_async::Error::Io(mysql_async::IoError::Io(e)) => e.into(),
        e => e.into(),
    }
}

/// A binlog on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerBinlog {
    pub name: String,
    /// Its plaintext.
    pub bytes: u64,
}

/// What an encrypted binlog has before its ciphertext; the file's size counts it.
const ENCRYPTION_HEADER_BYTES: u64 = 512;

fn options(endpoint: &Endpoint) -> OptsBuilder {
    let builder = OptsBuilder::default()
        .user(Some(&endpoint.user))
        .pass(Some(endpoint.password.reveal()))
        .prefer_socket(false)
        .stmt_cache_size(0);
    match &endpoint.address {
        Address::Socket(path) => builder.ip_or_hostname("localhost").socket(Some(path.display().to_string())),
        Address::Tcp { host, port } => {
            let tls = match &endpoint.tls {
                Tls::Disabled => None,
                Tls::Required => Some(
                    SslOpts::default()
                        .with_danger_accept_invalid_certs(true)
                        .with_danger_skip_domain_validation(true),
                ),
                Tls::VerifyCa(path) => Some(
                    SslOpts::default()
                        .with_root_certs(vec![path.clone().into()])
                        .with_disable_built_in_roots(true),
                ),
            };
            builder.ip_or_hostname(host).tcp_port(*port).ssl_opts(tls)
        }
    }
}

/// The server's global variables, as SHOW GLOBAL VARIABLES gives them.
#[derive(Debug, Clone, Default)]
pub struct Variables(pub HashMap<String, String>);

impl Variables {
    /// The first of `names` that the server knows: several, where a variable was renamed.
    pub fn get(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.0.get(*name)).map(String::as_str)
    }

    pub fn is_on(&self, names: &[&str]) -> bool {
        self.get(names).is_some_and(|v| v.eq_ignore_ascii_case("ON") || v == "1")
    }

    pub fn server_uuid(&self) -> anyhow::Result<Uuid> {
        let text = self.get(&["server_uuid"]).context("the server has no server_uuid")?;
        Uuid::try_parse(text).with_context(|| format!("server_uuid `{text}` is no uuid"))
    }

    pub fn version(&self) -> &str {
        self.get(&["version"]).unwrap_or_default()
    }

    pub fn datadir(&self) -> PathBuf {
        PathBuf::from(self.get(&["datadir"]).unwrap_or_default())
    }
}

/// `9.7.4-2` as 90704; 0 where the text is no version. Manuals for 26.x exist: versions are numbers, not texts.
pub fn version_number(text: &str) -> u32 {
    const MAJOR_WEIGHT: u32 = 10_000;
    const MINOR_WEIGHT: u32 = 100;
    let mut parts = text
        .split(|c: char| !c.is_ascii_digit())
        .map(|p| p.parse::<u32>().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    next() * MAJOR_WEIGHT + next() * MINOR_WEIGHT + next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(version_number("9.7.4-2"), 90_704);
        assert_eq!(version_number("8.0.36-debug"), 80_036);
        assert!(version_number("26.1.0") > version_number("9.7.4"));
    }
}
