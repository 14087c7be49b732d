//! The HTTP port: who may not be slow, and what it answers.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::prometheus_text;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::readiness::Readiness;

/// Connections at a time: some scrapers, a load balancer, somebody with curl. One more ends the oldest of the address that has most: nobody keeps the others out.
const MAX_CONNECTIONS: usize = 32;

/// A connection is closed after this time, whatever happens on it; scrapers connect again.
const MAX_CONNECTION_TIME: Duration = Duration::from_secs(300);

/// The head of a request has to be there within this time; idle connections are closed after it. Prometheus scrapes each minute by default.
const HEAD_TIMEOUT: Duration = Duration::from_secs(90);

/// How long a last request may be on its way once nobody is answered any more.
const LAST_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers those who watch on this address until the guard is dropped, or nobody where there is none.
///
/// # Errors
/// The address is taken, or not this machine's.
pub async fn start(
    address: Option<SocketAddr>,
    registry: Registry,
    readiness: Readiness,
) -> Result<DropGuard, CannotListen> {
    let listener = match address {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    Ok(start_on(listener, registry, readiness))
}

/// Listens for those who watch. They wait until [`start_on`] answers them.
///
/// # Errors
/// The address is taken, or not this machine's.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, CannotListen> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|source| CannotListen { address, source })
}

/// [`start`], on a listener that is there.
pub fn start_on(
    listener: Option<TcpListener>,
    registry: Registry,
    readiness: Readiness,
) -> DropGuard {
    let shutdown = CancellationToken::new();
    if let Some(listener) = listener {
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "metrics are told");
        }
        tokio::spawn(serve(listener, registry, readiness, shutdown.clone()));
    }
    shutdown.drop_guard()
}

/// The port for those who watch cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for who watches (--metrics-listen)")]
pub struct CannotListen {
    address: SocketAddr,
    source: io::Error,
}

/// Answers those who watch until `shutdown`.
async fn serve(
    listener: TcpListener,
    registry: Registry,
    readiness: Readiness,
    shutdown: CancellationToken,
) {
    let told = Arc::new((registry, readiness));
    // The oldest first.
    let mut open: Vec<(IpAddr, CancellationToken)> = Vec::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                open.retain(|(_, end)| !end.is_cancelled());
                while open.len() >= MAX_CONNECTIONS {
                    let (_, oldest) = open.remove(to_end(&open));
                    oldest.cancel();
                }
                let end = CancellationToken::new();
                open.push((from.ip().to_canonical(), end.clone()));
                let (told, shutdown) = (Arc::clone(&told), shutdown.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = serve_one(stream, told, shutdown) => {}
                        () = tokio::time::sleep(MAX_CONNECTION_TIME) => {}
                        () = end.cancelled() => {}
                    }
                    end.cancel();
                });
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection of the metrics");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Which of these connections is ended for one more: the oldest of the address that has most of them.
fn to_end(open: &[(IpAddr, CancellationToken)]) -> usize {
    let of = |address: &IpAddr| open.iter().filter(|(of, _)| of == address).count();
    let most = open.iter().map(|(address, _)| of(address)).max();
    let oldest = open
        .iter()
        .position(|(address, _)| Some(of(address)) == most);
    oldest.unwrap_or_default()
}

/// Answers on one connection; after `shutdown` until the request in flight, or one that is on its way, is answered.
async fn serve_one(
    stream: TcpStream,
    told: Arc<(Registry, Readiness)>,
    shutdown: CancellationToken,
) {
    let is_ending = shutdown.clone();
    let service = service_fn(move |request| {
        let (told, is_last) = (Arc::clone(&told), is_ending.is_cancelled());
        async move {
            let mut answer = answer(&told.0, &told.1, &request);
            if is_last {
                let close = HeaderValue::from_static("close");
                answer.headers_mut().insert(header::CONNECTION, close);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => match tokio::time::timeout(LAST_ANSWER_TIMEOUT, connection).await {
            Ok(ended) => ended,
            Err(_) => return,
        },
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection of the metrics ended");
    }
}

fn answer(
    registry: &Registry,
    readiness: &Readiness,
    request: &Request<Incoming>,
) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let is_read = [Method::GET, Method::HEAD].contains(request.method());
    if !is_read {
        let mut response = text(
            StatusCode::METHOD_NOT_ALLOWED,
            TEXT,
            "only GET and HEAD\n".to_owned(),
        );
        let allow = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(header::ALLOW, allow);
        return response;
    }
    match request.uri().path() {
        "/metrics" => {
            let mut body = String::new();
            match prometheus_text::encode(&mut body, registry) {
                Ok(()) => text(StatusCode::OK, prometheus_text::CONTENT_TYPE, body),
                Err(error) => text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    TEXT,
                    format!("the metrics cannot be told: {error}\n"),
                ),
            }
        }
        "/healthz" => text(StatusCode::OK, TEXT, "ok\n".to_owned()),
        "/readyz" => {
            let missing = readiness.missing();
            if missing.is_empty() {
                return text(StatusCode::OK, TEXT, "ok\n".to_owned());
            }
            let lines = missing.join("\n") + "\n";
            text(StatusCode::SERVICE_UNAVAILABLE, TEXT, lines)
        }
        _ => text(
            StatusCode::NOT_FOUND,
            TEXT,
            "there is /metrics, /healthz and /readyz\n".to_owned(),
        ),
    }
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn the_oldest_of_whoever_has_most_ends() {
        let open = |addresses: &[u8]| {
            let open = addresses.iter().map(|last| {
                let address = IpAddr::from([192, 0, 2, *last]);
                (address, CancellationToken::new())
            });
            open.collect::<Vec<_>>()
        };
        assert_eq!(to_end(&open(&[1, 2, 2])), 1);
        assert_eq!(to_end(&open(&[1, 2])), 0);
        assert_eq!(to_end(&open(&[3, 1, 2, 1, 1, 2])), 1);
    }

    #[tokio::test]
    async fn case_idle_connections_keep_nobody_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let serving = serve(
            listener,
            Registry::default(),
            Readiness::default(),
            shutdown.clone(),
        );
        tokio::spawn(serving);
        let mut idle = Vec::new();
        for _ in 0..3 * MAX_CONNECTIONS {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let mut asking = TcpStream::connect(address).await.unwrap();
        let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        asking.write_all(request).await.unwrap();
        let mut answer = String::new();
        asking.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        shutdown.cancel();
    }

    #[tokio::test]
    async fn who_is_connected_when_it_ends_is_answered_once_more() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let told = (Registry::default(), Readiness::default());
        tokio::spawn(serve(listener, told.0, told.1, shutdown.clone()));
        let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let mut early = TcpStream::connect(address).await.unwrap();
        // It is accepted after the other one.
        let mut late = TcpStream::connect(address).await.unwrap();
        let mut answer = String::new();
        late.write_all(request).await.unwrap();
        late.read_to_string(&mut answer).await.unwrap();
        shutdown.cancel();
        tokio::task::yield_now().await;
        early.write_all(request).await.unwrap();
        answer.clear();
        early.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}
