//! Logging in as a client: handshake, TLS, caching_sha2_password (and native, where an 8.x server still has it).

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use mysql_common::{
    constants::CapabilityFlags,
    io::ParseBuf,
    packets::{AuthPlugin, AuthPluginData, ErrPacket, HandshakePacket, HandshakeResponse, SslRequest},
    proto::MySerialize,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{
    endpoint::{Address, Endpoint, Tls},
    wire::{Transport, Wire, WireError},
};

/// For connecting, and for each answer until the login is done.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes, keys, OK and error packets are far smaller.
const LOGIN_PACKET_BYTES_MAX: usize = 64 * 1024;
/// The largest event is 1 GiB; 0 would let the server take its own limit, but older servers do not.
const MAX_ALLOWED_PACKET: u32 = 1 << 30;
const STATUS_OK: u8 = 0x00;
const STATUS_MORE_DATA: u8 = 0x01;
const STATUS_SWITCH: u8 = 0xfe;
const STATUS_ERR: u8 = 0xff;

/// A connection that is logged in, ready for commands.
pub async fn connect(endpoint: &Endpoint) -> Result<Wire, WireError> {
    connect_announcing(endpoint, CapabilityFlags::empty()).await
}

/// As [`connect`], for a client that can do more than this module needs: the server's answers then take the form that
/// `capabilities` call for.
pub async fn connect_announcing(endpoint: &Endpoint, capabilities: CapabilityFlags) -> Result<Wire, WireError> {
    let open = async {
        Ok::<Box<dyn Transport>, io::Error>(match &endpoint.address {
            Address::Socket(path) => Box::new(UnixStream::connect(path).await?),
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    };
    let transport = timeout(LOGIN_TIMEOUT, open)
        .await
        .map_err(|_| WireError::Timeout(LOGIN_TIMEOUT))??;
    login(Wire::new(transport, LOGIN_TIMEOUT), endpoint, capabilities).await
}

async fn login(mut wire: Wire, endpoint: &Endpoint, announced: CapabilityFlags) -> Result<Wire, WireError> {
    let greeting = wire.read(LOGIN_PACKET_BYTES_MAX).await?;
    fail_if_error(&greeting)?;
    let handshake: HandshakePacket = parse(&greeting)?;
    let nonce = handshake.nonce();
    let plugin = handshake
        .auth_plugin()
        .map(AuthPlugin::into_owned)
        .unwrap_or(AuthPlugin::CachingSha2Password);
    ensure_supported(&plugin)?;
    let version = handshake.server_version_parsed().unwrap_or((8, 0, 0));

    let mut capabilities = CapabilityFlags::CLIENT_LONG_PASSWORD
        | CapabilityFlags::CLIENT_LONG_FLAG
        | CapabilityFlags::CLIENT_PROTOCOL_41
        | CapabilityFlags::CLIENT_TRANSACTIONS
        | CapabilityFlags::CLIENT_SECURE_CONNECTION
        | CapabilityFlags::CLIENT_PLUGIN_AUTH
        | CapabilityFlags::CLIENT_PLUGIN_AUTH_LENENC_CLIENT_DATA
        | announced;
    let is_socket = matches!(endpoint.address, Address::Socket(_));
    let encrypted = !is_socket && endpoint.tls != Tls::Disabled;
    if encrypted {
        if !handshake.capabilities().contains(CapabilityFlags::CLIENT_SSL) {
            return Err(WireError::Protocol(
                "the server offers no TLS, which the configuration asks for".into(),
            ));
        }
        capabilities.insert(CapabilityFlags::CLIENT_SSL);
        const UTF8MB4_GENERAL_CI: u8 = 45;
        wire.write(&serialize(&SslRequest::new(
            capabilities,
            MAX_ALLOWED_PACKET,
            UTF8MB4_GENERAL_CI,
        )))
        .await?;
        wire.flush().await?;
        wire = start_tls(wire, endpoint).await?;
    }

    let answer = plugin.gen_data(Some(endpoint.password.reveal()), &nonce);
    let response = HandshakeResponse::new(
        Some(answer_bytes(answer)),
        version,
        Some(endpoint.user.as_bytes()),
        None::<&[u8]>,
        Some(plugin),
        capabilities,
        None,
        MAX_ALLOWED_PACKET,
    );
    wire.write(&serialize(&response)).await?;
    wire.flush().await?;
    authenticate(&mut wire, endpoint, nonce, is_socket || encrypted).await?;
    Ok(wire)
}

/// Answers what the server asks until it says OK.
async fn authenticate(wire: &mut Wire, endpoint: &Endpoint, mut nonce: Vec<u8>, is_private: bool) -> Result<(), WireError> {
    const FAST_AUTH_DONE: u8 = 3;
    const FULL_AUTH_WANTED: u8 = 4;
    const ASK_FOR_PUBLIC_KEY: u8 = 2;
    loop {
        let packet = wire.read(LOGIN_PACKET_BYTES_MAX).await?;
        fail_if_error(&packet)?;
        let reply: Vec<u8> = match packet.first() {
            Some(&STATUS_OK) => return Ok(()),
            Some(&STATUS_SWITCH) => {
                let mut fields = packet[1..].splitn(2, |b| *b == 0);
                let (name, data) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
                nonce = data.strip_suffix(&[0]).unwrap_or(data).to_vec();
                let plugin = AuthPlugin::from_bytes(name);
                ensure_supported(&plugin)?;
                answer_bytes(plugin.gen_data(Some(endpoint.password.reveal()), &nonce))
            }
            Some(&STATUS_MORE_DATA) if packet.get(1) == Some(&FAST_AUTH_DONE) => continue,
            Some(&STATUS_MORE_DATA) if packet.get(1) == Some(&FULL_AUTH_WANTED) => {
                if is_private {
                    zero_terminated(endpoint.password.reveal())
                } else {
                    vec![ASK_FOR_PUBLIC_KEY]
                }
            }
            Some(&STATUS_MORE_DATA) => encrypt(endpoint.password.reveal(), &nonce, &packet[1..])?,
            _ => return Err(WireError::Protocol("an unexpected packet during the login".into())),
        };
        wire.write(&reply).await?;
        wire.flush().await?;
    }
}

/// Anything else would hand the password to whoever asks for it.
fn ensure_supported(plugin: &AuthPlugin<'_>) -> Result<(), WireError> {
    if matches!(plugin, AuthPlugin::CachingSha2Password | AuthPlugin::MysqlNativePassword) {
        return Ok(());
    }
    let name = String::from_utf8_lossy(plugin.as_bytes()).into_owned();
    Err(WireError::Protocol(format!(
        "authentication plugin `{name}` is not supported; use caching_sha2_password"
    )))
}

fn answer_bytes(answer: Option<AuthPluginData<'_>>) -> Vec<u8> {
    answer.map(|data| data.to_vec()).unwrap_or_default()
}

fn zero_terminated(password: &str) -> Vec<u8> {
    let mut bytes = password.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// The password under the server's public key, as caching_sha2_password wants it on an unencrypted connection.
fn encrypt(password: &str, nonce: &[u8], key: &[u8]) -> Result<Vec<u8>, WireError> {
    let mut mixed = zero_terminated(password);
    for (byte, mask) in mixed.iter_mut().zip(nonce.iter().cycle()) {
        *byte ^= mask;
    }
    // mysql_common's PEM reader panics on what is no key; the key comes from the network.
    let key = key.to_vec();
    std::panic::catch_unwind(move || mysql_common::crypto::encrypt(&mixed, &key))
        .map_err(|_| WireError::Protocol("the server's public key is unreadable".into()))
}

/// # Errors
/// [`WireError::Server`] where the packet is an error packet.
pub fn fail_if_error(packet: &[u8]) -> Result<(), WireError> {
    if packet.first() != Some(&STATUS_ERR) {
        return Ok(());
    }
    match ParseBuf(packet).parse::<ErrPacket>(CapabilityFlags::CLIENT_PROTOCOL_41) {
        Ok(ErrPacket::Error(e)) => Err(WireError::Server {
            code: e.error_code(),
            message: e.message_str().into_owned(),
        }),
        _ => Err(WireError::Protocol("an unreadable error packet".into())),
    }
}

fn parse<'a>(packet: &'a Bytes) -> Result<HandshakePacket<'a>, WireError> {
    ParseBuf(packet)
        .parse(())
        .map_err(|e| WireError::Protocol(format!("an unreadable greeting: {e}")))
}

fn serialize(packet: &impl MySerialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    packet.serialize(&mut bytes);
    bytes
}

async fn start_tls(wire: Wire, endpoint: &Endpoint) -> Result<Wire, WireError> {
    let config = tls_config(&endpoint.tls)?;
    let host = match &endpoint.address {
        Address::Tcp { host, .. } => host.clone(),
        Address::Socket(_) => "localhost".to_owned(),
    };
    let name = ServerName::try_from(host).map_err(|e| WireError::Protocol(format!("not a host name: {e}")))?;
    wire.upgrade(|transport| async move {
        let stream = TlsConnector::from(config).connect(name, transport).await?;
        Ok(Box::new(stream) as Box<dyn Transport>)
    })
    .await
}

fn tls_config(tls: &Tls) -> Result<Arc<ClientConfig>, WireError> {
    let wrong = |e: String| WireError::Protocol(format!("TLS cannot be set up: {e}"));
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(e.to_string()))?;
    let config = match tls {
        Tls::VerifyCa(path) => {
            let mut roots = RootCertStore::empty();
            for cert in CertificateDer::pem_file_iter(path).map_err(|e| wrong(format!("{}: {e}", path.display())))? {
                let cert = cert.map_err(|e| wrong(format!("{}: {e}", path.display())))?;
                roots.add(cert).map_err(|e| wrong(e.to_string()))?;
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        }
        Tls::Required | Tls::Disabled => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate))
            .with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// Accepts every certificate: `tls = "required"` asks for encryption, not for identity, as MySQL's own clients do.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
