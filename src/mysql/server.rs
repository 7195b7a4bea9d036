//! The server whose binlogs are shipped, as shipping sees it: a look at its state, and its binlogs as streams.

use std::{fmt, path::PathBuf, sync::Arc};

use anyhow::bail;
use async_trait::async_trait;
use uuid::Uuid;

use crate::{binlog::gtid::GtidSet, support::hint::with_hint};

use super::{
    dump::{AtEnd, Dump, DumpItem},
    endpoint::Endpoint,
    query::{ServerBinlog, Session, Variables},
    wire::WireError,
};

/// A server that writes binlogs.
#[async_trait]
pub trait Server: fmt::Debug + Send + Sync {
    /// How the server stands now.
    ///
    /// # Errors
    /// Where it does not answer in time, or writes no binlogs with GTIDs.
    async fn look(&self) -> anyhow::Result<ServerState>;

    /// Streams from binlog `name` at `position` (4 or an event's start) on.
    ///
    /// # Errors
    /// [`WireError::Server`] with code 1236 comes from [`BinlogStream::next`]: a server refuses only when it begins to read.
    async fn dump(&self, name: &str, position: u64, at_end: AtEnd) -> Result<Box<dyn BinlogStream>, WireError>;
}

pub type SharedServer = Arc<dyn Server>;

/// Binlogs, as they arrive.
#[async_trait]
pub trait BinlogStream: Send {
    /// The next item. Nothing is lost where the future is dropped before it is ready.
    async fn next(&mut self) -> Result<DumpItem, WireError>;
}

/// What a server says of itself. What it has executed is asked last: it holds whatever its binlogs hold.
#[derive(Debug, Clone)]
pub struct ServerState {
    pub server_uuid: Uuid,
    pub datadir: PathBuf,
    pub gtid_purged: GtidSet,
    /// Oldest first; the last one is live.
    pub binlogs: Vec<ServerBinlog>,
    pub gtid_executed: GtidSet,
}

/// A real one.
#[derive(Debug)]
pub struct Mysql(pub Endpoint);

#[async_trait]
impl Server for Mysql {
    async fn look(&self) -> anyhow::Result<ServerState> {
        let mut session = Session::connect(&self.0).await?;
        let variables = session.variables().await?;
        ensure_shippable(&variables)?;
        let state = ServerState {
            server_uuid: variables.server_uuid()?,
            datadir: variables.datadir(),
            gtid_purged: session.gtid_purged().await?,
            binlogs: session.binary_logs().await?,
            gtid_executed: session.gtid_executed().await?,
        };
        // A RESET in between would join what was before it with what came after.
        if session.gtid_purged().await? != state.gtid_purged {
            bail!("the server's gtid_purged changed while it was looked at");
        }
        session.close().await;
        Ok(state)
    }

    async fn dump(&self, name: &str, position: u64, at_end: AtEnd) -> Result<Box<dyn BinlogStream>, WireError> {
        Ok(Box::new(Dump::open(&self.0, name, position, at_end).await?))
    }
}

#[async_trait]
impl BinlogStream for Dump {
    async fn next(&mut self) -> Result<DumpItem, WireError> {
        Dump::next(self).await
    }
}

/// Without these there is nothing to ship, and so nothing is claimed.
fn ensure_shippable(variables: &Variables) -> anyhow::Result<()> {
    for (name, needed) in [
        ("log_bin", "start mysqld with --log-bin"),
        ("gtid_mode", "set gtid_mode=ON and enforce_gtid_consistency=ON"),
    ] {
        if !variables.is_on(&[name]) {
            let value = variables.get(&[name]).unwrap_or("not there");
            return Err(with_hint(
                anyhow::anyhow!("the server cannot be shipped from: its {name} is {value}"),
                needed,
            ));
        }
    }
    Ok(())
}
