//! Health probes: made by the node over the network, so that no tool inside the image is needed, or by
//! a command of the image that init runs in the guest.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use model::instance::Probe;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use crate::guest_calls::GuestCalls;
use crate::host::{HttpProbe, Network, NetworkProbe};

/// Makes one probe.
///
/// # Errors
/// For people: what the instance did not do.
pub(crate) async fn probe(
    probe: &Probe,
    address: Ipv6Addr,
    network: &dyn Network,
    guest: Option<&GuestCalls>,
    within: Duration,
) -> Result<(), String> {
    let attempt = async {
        match probe {
            Probe::Tcp { port } => {
                let probe = NetworkProbe::Tcp { port: *port };
                network.probe(address, probe).await
            }
            Probe::Http {
                port,
                path,
                host,
                headers,
            } => {
                let probe = HttpProbe {
                    port: *port,
                    path: path.clone(),
                    host: host.clone(),
                    headers: headers.clone(),
                };
                network.probe(address, NetworkProbe::Http(probe)).await
            }
            Probe::Command { command } => match guest {
                Some(guest) => guest.probe(command.clone()).await,
                None => Err("its guest is not connected".to_owned()),
            },
        }
    };
    tokio::time::timeout(within, attempt)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} ms", within.as_millis())))
}

/// Makes a probe over this machine's network.
///
/// # Errors
/// For people: what the instance did not do.
pub(crate) async fn over_network(address: Ipv6Addr, probe: &NetworkProbe) -> Result<(), String> {
    match probe {
        NetworkProbe::Tcp { port } => connect(address, *port).await.map(drop),
        NetworkProbe::Http(probe) => get(address, probe).await,
    }
}

async fn connect(address: Ipv6Addr, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect(SocketAddr::from((address, port)))
        .await
        .map_err(|error| format!("cannot connect to port {port}: {error}"))
}

async fn get(address: Ipv6Addr, probe: &HttpProbe) -> Result<(), String> {
    let HttpProbe {
        port,
        path,
        host,
        headers,
    } = probe;
    let stream = connect(address, *port).await?;
    let failed = |error: &dyn std::error::Error| format!("GET {path} on port {port}: {error}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error))?;
    let host = host
        .clone()
        .unwrap_or_else(|| format!("[{address}]:{port}"));
    let mut request = http::Request::get(path)
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| failed(&error))?;
    let platform = ("user-agent", "platform-healthcheck");
    let all = [("host", host.as_str()), platform].into_iter();
    let own = headers.iter().map(|(name, value)| (&**name, &**value));
    // A later one of the same name replaces an earlier one.
    for (name, value) in all.chain(own) {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| failed(&error))?;
        let value = HeaderValue::from_str(value).map_err(|error| failed(&error))?;
        request.headers_mut().insert(name, value);
    }
    // The connection is driven only as long as the answer's head takes; then it is dropped.
    let _driven = AbortOnDropHandle::new(tokio::spawn(connection));
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| failed(&error))?;
    let status = response.status();
    if (200..400).contains(&status.as_u16()) {
        Ok(())
    } else {
        Err(format!("GET {path} on port {port} answered {status}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeMap;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers every connection with these bytes; empty: never answers.
    async fn server(answer: &'static str) -> u16 {
        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
                if answer.is_empty() {
                    held.push(stream);
                }
            }
        });
        port
    }

    /// A probe over the loopback, within `millis`.
    async fn within(millis: u64, probe: NetworkProbe) -> Result<(), String> {
        let attempt = over_network(Ipv6Addr::LOCALHOST, &probe);
        tokio::time::timeout(Duration::from_millis(millis), attempt)
            .await
            .unwrap_or_else(|_| Err("no answer".to_owned()))
    }

    fn healthz(port: u16) -> HttpProbe {
        HttpProbe {
            port,
            path: "/healthz".to_owned(),
            host: None,
            headers: BTreeMap::new(),
        }
    }

    /// Apps that answer for the host names they know only: Django's `ALLOWED_HOSTS`, Rails' `config.hosts`; and those
    /// that redirect what did not come by HTTPS.
    #[tokio::test]
    async fn case_a_probe_names_the_host_and_the_headers_that_the_app_wants() {
        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = async |probe: HttpProbe| {
            let probing = within(2000, NetworkProbe::Http(probe));
            let answering = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(answer).await.unwrap();
                String::from_utf8(head).unwrap()
            };
            let (result, head) = tokio::join!(probing, answering);
            result.unwrap();
            head.replace(&port.to_string(), "PORT")
        };
        let plain = asked(healthz(port)).await;
        assert_eq!(
            plain,
            "GET /healthz HTTP/1.1\r\nhost: [::1]:PORT\r\nuser-agent: platform-healthcheck\r\n\r\n"
        );
        let named = asked(HttpProbe {
            host: Some("shop.example.com".to_owned()),
            headers: BTreeMap::from([
                ("User-Agent".to_owned(), "mine".to_owned()),
                ("X-Forwarded-Proto".to_owned(), "https".to_owned()),
            ]),
            ..healthz(port)
        })
        .await;
        assert_eq!(
            named,
            "GET /healthz HTTP/1.1\r\nhost: shop.example.com\r\nuser-agent: mine\r\nx-forwarded-proto: https\r\n\r\n"
        );
    }

    async fn check(answer: &'static str) -> Result<(), String> {
        let port = server(answer).await;
        let result = within(300, NetworkProbe::Http(healthz(port))).await;
        result.map_err(|reason| reason.replace(&port.to_string(), "PORT"))
    }

    #[tokio::test]
    async fn an_http_probe_passes_by_its_status() {
        assert_eq!(check("HTTP/1.1 204 No Content\r\n\r\n").await, Ok(()));
        assert_eq!(check("HTTP/1.1 302 Found\r\n\r\n").await, Ok(()));
        assert_eq!(
            check("HTTP/1.1 503 Service Unavailable\r\n\r\n")
                .await
                .unwrap_err(),
            "GET /healthz on port PORT answered 503 Service Unavailable"
        );
        assert_eq!(check("").await.unwrap_err(), "no answer");
        assert!(
            check("SSH-2.0-x\r\n")
                .await
                .unwrap_err()
                .starts_with("GET /healthz on port PORT")
        );
    }

    #[tokio::test]
    async fn a_tcp_probe_needs_a_listener() {
        let port = server("").await;
        assert_eq!(within(1000, NetworkProbe::Tcp { port }).await, Ok(()));
        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let refused = within(1000, NetworkProbe::Tcp { port }).await.unwrap_err();
        assert!(refused.starts_with("cannot connect to port"), "{refused}");
    }
}
