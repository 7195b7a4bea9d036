//! A client that learns which GTID each of its transactions got.
//!
//! The server says so in the packet that acknowledges the commit, to clients that announce session tracking. mysql_async
//! does not announce it, so this one stands on the crate's own wire.

use mysql_common::{
    constants::CapabilityFlags,
    io::ParseBuf,
    packets::{CommonOkPacket, OkPacket, OkPacketDeserializer, session_state_change::SessionStateChange},
};
use mysql_pitr::{
    binlog::gtid::Gtid,
    mysql::{
        endpoint::Endpoint,
        login::{connect_announcing, fail_if_error},
        wire::{Wire, WireError},
    },
};

const COM_QUERY: u8 = 0x03;
/// Acknowledgements are far smaller; rows are not asked for here.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

pub struct Client {
    wire: Wire,
}

impl Client {
    pub async fn connect(endpoint: &Endpoint) -> Result<Client, WireError> {
        let wire = connect_announcing(endpoint, CapabilityFlags::CLIENT_SESSION_TRACK).await?;
        let mut client = Client { wire };
        client.execute("SET SESSION session_track_gtids = OWN_GTID").await?;
        Ok(client)
    }

    /// Runs a statement that gives no rows. Returns the GTID of the transaction that it committed, if it committed one.
    pub async fn execute(&mut self, sql: &str) -> Result<Option<Gtid>, WireError> {
        self.wire.begin_command();
        self.wire.write(&[&[COM_QUERY], sql.as_bytes()].concat()).await?;
        self.wire.flush().await?;
        let answer = self.wire.read(ANSWER_BYTES_MAX).await?;
        fail_if_error(&answer)?;
        acknowledged(&answer)
    }
}

fn acknowledged(answer: &[u8]) -> Result<Option<Gtid>, WireError> {
    let unreadable = |e: &dyn std::fmt::Display| WireError::Protocol(format!("an unreadable acknowledgement: {e}"));
    let capabilities = CapabilityFlags::CLIENT_PROTOCOL_41 | CapabilityFlags::CLIENT_SESSION_TRACK;
    let ok: OkPacket = ParseBuf(answer)
        .parse::<OkPacketDeserializer<CommonOkPacket>>(capabilities)
        .map_err(|e| unreadable(&e))?
        .into_inner();
    for info in ok.session_state_info().map_err(|e| unreadable(&e))? {
        if let SessionStateChange::Gtids(gtids) = info.decode().map_err(|e| unreadable(&e))? {
            return gtid(gtids.as_bytes()).map(Some).ok_or_else(|| unreadable(&gtids.as_str()));
        }
    }
    Ok(None)
}

/// mysql_common leaves the tracker's own framing before the text: one byte for its encoding, one for its length.
fn gtid(framed: &[u8]) -> Option<Gtid> {
    const FRAMING_BYTES: usize = 2;
    std::str::from_utf8(framed.get(FRAMING_BYTES..)?).ok()?.parse().ok()
}
