//! Clients of a port that several TCP routes share: each names a host by TLS (SNI, RFC 6066), in the first message that it sends.
//!
//! ```text
//!   ClientHello --> its host --> `passthrough`: all bytes to an instance, those of the ClientHello too
//!               |            \-> `terminate`: handshake with the edge's certificate for the host, what is in it to an instance
//!               \-> none, or none that has a route at the port: the alert unrecognized_name
//! ```
//!
//! What a client sends until its host is known is bounded in bytes and in time.

// ring: the ports and their clients are the module's above, which asks here for those who name a host.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use model::{TlsMode, route_name};
use rustls::ProtocolVersion;
use rustls::server::{Accepted, Acceptor};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::StartHandshake;
use tokio_rustls::server::TlsStream;

use super::Port;
use crate::limits::{HANDSHAKE_TIMEOUT, MAX_CLIENT_HELLO_BYTES};
use crate::proxy_header::ClientTls;
use crate::routes::{HostRoute, InFlight};
use crate::socket;
use crate::tls::{HandshakeError, UNRECOGNIZED_NAME};

/// Bytes that are read at once.
const PIECE: usize = 2048;

/// Why a client is led nowhere.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotLed {
    #[error("it did not begin TLS within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Silent,
    #[error("its first message of TLS has more than {MAX_CLIENT_HELLO_BYTES} bytes")]
    TooLong,
    #[error("it went before its first message of TLS was whole")]
    Gone,
    #[error("what it sent is no TLS that can be read: {0}")]
    NoTls(rustls::Error),
    #[error("it names no host")]
    NoHost,
    #[error("no route leads from the host {0} at this port")]
    UnknownHost(String),
    #[error(
        "a newer server says of the route what this edge does not know; upgrade `platform` here"
    )]
    UnknownMode,
    #[error("the port has as many connections as it may have")]
    Refused,
    #[error(
        "this edge has no certificates, because it has no port for HTTPS: `platform edge --listen-tls`"
    )]
    NoCertificates,
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Broken(#[from] io::Error),
}

/// A client whose route is known.
pub(super) struct Led {
    pub(super) to: Arc<HostRoute>,
    pub(super) in_flight: InFlight,
    pub(super) client: Client,
}

/// What a client is to the instance that it is led to.
pub(super) enum Client {
    /// Bytes; these came already.
    Plain(TcpStream, Vec<u8>),
    /// Bytes of TLS that ends here. The host that it named.
    Tls(Box<TlsStream<TcpStream>>, String),
}

impl Client {
    /// What carries its bytes.
    pub(super) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream, _) => stream,
            Self::Tls(stream, _) => stream.get_ref().0,
        }
    }

    /// What an app may want to know of TLS that ended here.
    pub(super) fn tls(&self) -> Option<ClientTls<'_>> {
        let Self::Tls(stream, host) = self else {
            return None;
        };
        let (_, session) = stream.get_ref();
        Some(ClientTls {
            host,
            version: match session.protocol_version() {
                Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
                _ => "TLSv1.3",
            },
            alpn: session.alpn_protocol(),
        })
    }
}

/// Leads a client by the host that it names.
///
/// # Errors
/// Why it is led nowhere. It was told so by an alert of TLS, where it speaks that.
pub(super) async fn lead(
    port: &Port,
    mut stream: TcpStream,
    from: SocketAddr,
) -> Result<Led, NotLed> {
    let read = timeout(HANDSHAKE_TIMEOUT, read_hello(&mut stream)).await;
    let (accepted, seen) = read.map_err(|_| NotLed::Silent)??;
    let host = accepted
        .client_hello()
        .server_name()
        .map(str::to_ascii_lowercase);
    let routes = &port.edge.routes;
    let to = host.as_deref();
    let to = to.and_then(|host| routes.find(&route_name::of_tls(host, port.address.port())));
    let (Some(host), Some(to)) = (host.as_deref(), to) else {
        port.edge.metrics.unrecognized_names.inc();
        stream.write_all(&UNRECOGNIZED_NAME).await?;
        stream.shutdown().await?;
        return Err(host.map_or(NotLed::NoHost, NotLed::UnknownHost));
    };
    let in_flight = to.admit(|| from.ip()).map_err(|_| {
        socket::reset_at_close(&stream, true);
        NotLed::Refused
    })?;
    let settings = &to.route.settings;
    let client = match (settings.tls, &port.tls) {
        (Some(TlsMode::Passthrough), _) => Client::Plain(stream, seen),
        (Some(TlsMode::Terminate), Some(tls)) => {
            let start = StartHandshake::from_parts(accepted, stream);
            let stream = tls.terminate(start, host, &settings.alpn).await?;
            Client::Tls(Box::new(stream), host.to_owned())
        }
        (Some(TlsMode::Terminate), None) => {
            stream.write_all(&UNRECOGNIZED_NAME).await?;
            stream.shutdown().await?;
            return Err(NotLed::NoCertificates);
        }
        (Some(TlsMode::Unknown) | None, _) => return Err(NotLed::UnknownMode),
    };
    Ok(Led {
        to,
        in_flight,
        client,
    })
}

/// Reads a client's first message, and gives all bytes that came.
async fn read_hello(stream: &mut TcpStream) -> Result<(Accepted, Vec<u8>), NotLed> {
    let mut acceptor = Acceptor::default();
    let mut seen = Vec::new();
    loop {
        stream.readable().await?;
        let mut piece = [0; PIECE];
        let length = match stream.try_read(&mut piece) {
            Ok(0) => return Err(NotLed::Gone),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            read => read?,
        };
        let mut piece = &piece[..length];
        seen.extend_from_slice(piece);
        while !piece.is_empty() {
            acceptor.read_tls(&mut piece)?;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok((accepted, seen)),
            Ok(None) if seen.len() >= MAX_CLIENT_HELLO_BYTES => return Err(NotLed::TooLong),
            Ok(None) => {}
            Err((error, mut alert)) => {
                let mut told = Vec::new();
                alert.write_all(&mut told)?;
                stream.write_all(&told).await?;
                stream.shutdown().await?;
                return Err(NotLed::NoTls(error));
            }
        }
    }
}
