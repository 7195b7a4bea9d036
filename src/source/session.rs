//! A replica's connection: handshake, the questions it asks, and its wish for binlogs.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use bytes::BufMut;
use mysql_common::{
    constants::{CapabilityFlags, StatusFlags},
    packets::HandshakePacket,
    proto::MySerialize,
    scramble::scramble_sha256,
};
use rand::Rng;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tracing::debug;

use crate::{
    binlog::{event::Cursor, gtid::GtidSet},
    mysql::wire::Wire,
    support::{clock, hint::message, secret::Secret},
};

use super::{feed::Feed, stream};

/// A replica that says nothing for so long while it is asked something is gone; while it is streamed to, nothing is asked.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(60);
/// GTID sets of many sources are the largest thing a replica sends.
const COMMAND_BYTES_MAX: usize = 64 << 20;
/// The replica's, a second apart and more: it waits in silence while a long binlog's segments are read instead of a damaged object, and since 8.4
/// it would give up after ten. Whether the source lives is seen to by whoever started the replica.
const RETRIES_MAX: u32 = 86_400;
const SCRAMBLE_BYTES: usize = 20;
const PLUGIN: &[u8] = b"caching_sha2_password";
const UTF8MB4_GENERAL_CI: u8 = 45;
const CAPABILITIES: CapabilityFlags = CapabilityFlags::CLIENT_LONG_PASSWORD
    .union(CapabilityFlags::CLIENT_FOUND_ROWS)
    .union(CapabilityFlags::CLIENT_LONG_FLAG)
    .union(CapabilityFlags::CLIENT_CONNECT_WITH_DB)
    .union(CapabilityFlags::CLIENT_PROTOCOL_41)
    .union(CapabilityFlags::CLIENT_TRANSACTIONS)
    .union(CapabilityFlags::CLIENT_SECURE_CONNECTION)
    .union(CapabilityFlags::CLIENT_PLUGIN_AUTH);

const COM_QUIT: u8 = 0x01;
const COM_QUERY: u8 = 0x03;
const COM_PING: u8 = 0x0e;
const COM_REGISTER_REPLICA: u8 = 0x15;
const COM_BINLOG_DUMP_GTID: u8 = 0x1e;

const ER_ACCESS_DENIED: u16 = 1045;
const ER_UNKNOWN_COMMAND: u16 = 1047;
const ER_UNKNOWN_SYSTEM_VARIABLE: u16 = 1193;

/// A source that listens on loopback. Dropped, it is gone.
pub struct Source {
    address: SocketAddr,
    user: String,
    password: Secret,
    task: JoinHandle<()>,
}

impl Source {
    /// Listens on a port that the system chooses; only who knows the random password gets in.
    pub async fn start(feed: Arc<Feed>) -> anyhow::Result<Source> {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .context("cannot listen on loopback")?;
        let address = listener.local_addr()?;
        let (user, password) = ("mysql_pitr_source".to_owned(), Secret::random());
        let login = Arc::new((user.clone(), password.clone()));
        let task = tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                let (feed, login) = (feed.clone(), login.clone());
                tokio::spawn(async move {
                    if let Err(e) = serve(stream, &feed, &login).await {
                        debug!(%peer, "a replica's connection ended: {}", message(&e));
                    }
                });
            }
        });
        Ok(Source {
            address,
            user,
            password,
            task,
        })
    }

    /// The statement that makes a server replicate from here.
    pub fn change_source_statement(&self) -> String {
        format!(
            "CHANGE REPLICATION SOURCE TO SOURCE_HOST='{}', SOURCE_PORT={}, SOURCE_USER='{}', SOURCE_PASSWORD='{}', \
             SOURCE_AUTO_POSITION=1, SOURCE_SSL=0, SOURCE_CONNECT_RETRY=1, SOURCE_RETRY_COUNT={RETRIES_MAX}, SOURCE_HEARTBEAT_PERIOD=5",
            self.address.ip(),
            self.address.port(),
            self.user,
            self.password.reveal()
        )
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, feed: &Feed, login: &(String, Secret)) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut wire = Wire::new(Box::new(stream), REPLICA_TIMEOUT);
    handshake(&mut wire, feed, login).await?;
    let mut heartbeat = stream::HEARTBEAT_DEFAULT;
    loop {
        wire.begin_command();
        let command = wire.read(COMMAND_BYTES_MAX).await?;
        let Some((code, argument)) = command.split_first() else {
            bail!("an empty command")
        };
        match *code {
            COM_QUIT => return Ok(()),
            COM_PING | COM_REGISTER_REPLICA => ok(&mut wire).await?,
            COM_QUERY => query(&mut wire, feed, &String::from_utf8_lossy(argument), &mut heartbeat).await?,
            COM_BINLOG_DUMP_GTID => {
                let has = parse_dump(argument).context("an unreadable COM_BINLOG_DUMP_GTID")?;
                debug!(%has, "a replica asks for what it lacks");
                return stream::send(&mut wire, feed, &has, heartbeat).await;
            }
            other => {
                error(
                    &mut wire,
                    ER_UNKNOWN_COMMAND,
                    &format!("command {other} is not for an archive"),
                )
                .await?
            }
        }
    }
}

async fn handshake(wire: &mut Wire, feed: &Feed, (user, password): &(String, Secret)) -> anyhow::Result<()> {
    // Neither zero nor `$`, as the server itself chooses them.
    let nonce: [u8; SCRAMBLE_BYTES] = std::array::from_fn(|_| rand::rng().random_range(b'%'..=b'~'));
    let (first, second) = nonce.split_at(8);
    let greeting = HandshakePacket::new(
        10,
        feed.server_version.as_bytes(),
        1,
        first.try_into()?,
        Some([second, &[0]].concat()),
        CAPABILITIES,
        UTF8MB4_GENERAL_CI,
        StatusFlags::SERVER_STATUS_AUTOCOMMIT,
        Some(PLUGIN),
    );
    let mut bytes = Vec::new();
    greeting.serialize(&mut bytes);
    wire.write(&bytes).await?;
    wire.flush().await?;
    let packet = wire.read(COMMAND_BYTES_MAX).await?;
    let (login_user, answer) = parse_login(&packet).context("an unreadable login")?;
    let expected = scramble_sha256(&nonce, password.reveal().as_bytes()).unwrap_or_default();
    if login_user != user.as_bytes() || answer != expected {
        error(wire, ER_ACCESS_DENIED, "access denied").await?;
        bail!("a login with a wrong password");
    }
    const FAST_AUTH_DONE: [u8; 2] = [1, 3];
    wire.write(&FAST_AUTH_DONE).await?;
    ok(wire).await
}

/// User and scrambled password of a HandshakeResponse41. (mysql_common's parser refuses what a 9.7 replica sends.)
fn parse_login(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    const CAPABILITIES_TO_FILLER_BYTES: usize = 4 + 4 + 1 + 23;
    let mut c = Cursor::new(packet);
    c.bytes(CAPABILITIES_TO_FILLER_BYTES)?;
    let user = c.until_zero()?;
    let answer_len = usize::from(c.u8()?);
    Some((user, c.bytes(answer_len)?))
}

/// The questions of a replica of 8.0 to 9.7, as recorded; see `docs/architecture.md`.
async fn query(wire: &mut Wire, feed: &Feed, text: &str, heartbeat: &mut Duration) -> anyhow::Result<()> {
    let upper = text.to_uppercase();
    if upper.starts_with("SET ") {
        if let Some(period) = heartbeat_period(&upper) {
            *heartbeat = period;
        }
        return ok(wire).await;
    }
    let answer = if upper.contains("UNIX_TIMESTAMP") {
        (clock::now_us() / clock::US_PER_S).to_string()
    } else if upper.contains("SERVER_ID") {
        feed.server_id.to_string()
    } else if upper.contains("SERVER_UUID") {
        feed.server_uuid.to_string()
    } else if upper.contains("GTID_MODE") {
        "ON".to_owned()
    } else if upper.contains("BINLOG_CHECKSUM") {
        "CRC32".to_owned()
    } else {
        return error(
            wire,
            ER_UNKNOWN_SYSTEM_VARIABLE,
            &format!("an archive does not know `{text}`"),
        )
        .await;
    };
    row(wire, &answer).await
}

/// `SET @MASTER_HEARTBEAT_PERIOD = N, …`, N in nanoseconds.
fn heartbeat_period(upper: &str) -> Option<Duration> {
    let digits: String = upper
        .split("HEARTBEAT_PERIOD")
        .nth(1)?
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().ok().filter(|ns| *ns > 0).map(Duration::from_nanos)
}

fn parse_dump(argument: &[u8]) -> Option<GtidSet> {
    let mut c = Cursor::new(argument);
    c.u16()?; // flags
    c.u32()?; // server id
    let name_len = c.u32()? as usize;
    c.bytes(name_len)?;
    c.u64()?; // position
    let set_len = c.u32()? as usize;
    GtidSet::decode(c.bytes(set_len)?).ok()
}

const STATUS_AUTOCOMMIT: [u8; 2] = [2, 0];

async fn ok(wire: &mut Wire) -> anyhow::Result<()> {
    wire.write(&[0, 0, 0, STATUS_AUTOCOMMIT[0], STATUS_AUTOCOMMIT[1], 0, 0])
        .await?;
    Ok(wire.flush().await?)
}

async fn error(wire: &mut Wire, code: u16, message: &str) -> anyhow::Result<()> {
    let mut bytes = vec![0xff];
    bytes.put_u16_le(code);
    bytes.put_slice(b"#HY000");
    bytes.put_slice(message.as_bytes());
    wire.write(&bytes).await?;
    Ok(wire.flush().await?)
}

/// A result of one text column and one row.
async fn row(wire: &mut Wire, value: &str) -> anyhow::Result<()> {
    const TYPE_VAR_STRING: u8 = 0xfd;
    const END_OF_ROWS: [u8; 5] = [0xfe, 0, 0, STATUS_AUTOCOMMIT[0], STATUS_AUTOCOMMIT[1]];
    let mut column = Vec::new();
    for text in ["def", "", "", "", "value", ""] {
        column.put_u8(text.len() as u8);
        column.put_slice(text.as_bytes());
    }
    column.put_u8(0x0c); // the fixed fields' length
    column.put_u16_le(u16::from(UTF8MB4_GENERAL_CI));
    column.put_u32_le(1024);
    column.put_u8(TYPE_VAR_STRING);
    column.put_slice(&[0; 5]);
    let mut cells = vec![value.len() as u8];
    cells.put_slice(value.as_bytes());
    for packet in [&[1][..], &column, &END_OF_ROWS, &cells, &END_OF_ROWS] {
        wire.write(packet).await?;
    }
    Ok(wire.flush().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_heartbeat_period_that_a_replica_asks_for() {
        let upper = "SET @MASTER_HEARTBEAT_PERIOD = 5000001024, @SOURCE_HEARTBEAT_PERIOD = 5000001024";
        assert_eq!(heartbeat_period(upper), Some(Duration::from_nanos(5_000_001_024)));
        assert_eq!(heartbeat_period("SET @MASTER_HEARTBEAT_PERIOD = 0"), None);
    }
}
