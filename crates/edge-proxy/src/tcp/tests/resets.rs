//! Connections that break: each end learns of it by a reset, and takes nothing that was cut off for whole.

use model::TlsMode;
use rustls::ProtocolVersion;
use tokio::sync::mpsc;

use super::tls::{WithTls, by_name, client, handshake, mode, terminate};
use super::*;
use crate::certificates::tests::certificate;

/// An app that sends this to each client, and whose ends of the connections come here.
async fn app(says: &'static [u8]) -> (SocketAddr, mpsc::UnboundedReceiver<TcpStream>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (told, come) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(says).await.unwrap();
            let _ = told.send(stream);
        }
    });
    (address, come)
}

/// Ends a connection by a reset.
fn reset(stream: TcpStream) {
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// How a connection ends: what came, and whether its end was a reset.
async fn ends<S: tokio::io::AsyncRead + Unpin>(mut stream: S) -> (Vec<u8>, bool) {
    let mut came = Vec::new();
    let read = soon(stream.read_to_end(&mut came)).await;
    let kind = read.err().map(|error| error.kind());
    (came, kind == Some(io::ErrorKind::ConnectionReset))
}

/// An edge with a port, at which a route leads to this app.
async fn edge(to: SocketAddr) -> (Running, u16) {
    let port = free_port().await;
    let running = Running::start("1-65535");
    assert!(running.edge.routes.take(&table(1, &[(port, &[to])])));
    (running, port)
}

#[tokio::test]
async fn a_reset_of_the_app_is_one_to_the_client_behind_what_was_said() {
    let (to, mut come) = app(b"hello").await;
    let (running, port) = edge(to).await;
    let mut from = connection(port).await;
    let theirs = soon(come.recv()).await.unwrap();
    let mut said = [0; 5];
    soon(from.read_exact(&mut said)).await.unwrap();
    reset(theirs);
    assert_eq!(ends(from).await, (Vec::new(), true));
    // Also by who has closed its sending side and waits for the answer.
    let mut from = connection(port).await;
    from.shutdown().await.unwrap();
    let mut theirs = soon(come.recv()).await.unwrap();
    assert_eq!(soon(theirs.read(&mut [0])).await.unwrap(), 0);
    soon(from.read_exact(&mut said)).await.unwrap();
    reset(theirs);
    assert_eq!(ends(from).await, (Vec::new(), true));
    running.stop().await;
}

#[tokio::test]
async fn a_reset_of_the_client_is_one_to_the_app_behind_what_was_said() {
    let (to, mut come) = app(b"").await;
    let (running, port) = edge(to).await;
    let mut from = connection(port).await;
    from.write_all(b"hello").await.unwrap();
    let mut theirs = soon(come.recv()).await.unwrap();
    soon(theirs.read_exact(&mut [0; 5])).await.unwrap();
    reset(from);
    assert_eq!(ends(theirs).await, (Vec::new(), true));
    running.stop().await;
}

/// A server that refuses what is still being sent says so, and closes without having read it, which is a reset.
#[tokio::test]
async fn what_an_app_said_before_it_went_arrives_also_when_it_is_being_sent_something() {
    let (to, mut come) = app(b"").await;
    let (running, port) = edge(to).await;
    let (mut read, mut write) = connection(port).await.into_split();
    let sending = tokio::spawn(async move {
        let piece = [b'x'; 16 * 1024];
        while write.write_all(&piece).await.is_ok() {}
        write
    });
    let mut theirs = soon(come.recv()).await.unwrap();
    soon(theirs.read_exact(&mut [0; 1])).await.unwrap();
    theirs.write_all(b"too large").await.unwrap();
    reset(theirs);
    let mut came = Vec::new();
    let _ = soon(read.read_to_end(&mut came)).await;
    assert_eq!(came, b"too large");
    soon(sending).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn a_connection_that_the_edge_cuts_off_or_does_not_take_is_reset() {
    let (to, mut come) = app(b"").await;
    let (running, port) = edge(to).await;
    let from = connection(port).await;
    let theirs = soon(come.recv()).await.unwrap();
    running.edge.end_tunnels.cancel();
    assert_eq!(ends(from).await, (Vec::new(), true));
    assert_eq!(ends(theirs).await, (Vec::new(), true));
    running.stop().await;
    // No instance takes it.
    let dead = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().await));
    let (running, port) = edge(dead).await;
    assert_eq!(ends(connection(port).await).await, (Vec::new(), true));
    running.stop().await;
}

#[tokio::test]
async fn resets_pass_the_edges_tls_both_ways_and_so_does_an_end_that_tls_was_not_told_of() {
    let kept = certificate(&["db.example.com"], 30);
    let ((to, mut come), port) = (app(b"hello").await, free_port().await);
    let routes = [(port, "db.example.com", terminate(&[]), to)];
    let edge = WithTls::start(&[("db", &kept)], &by_name(1, &routes)).await;
    for version in [ProtocolVersion::TLSv1_2, ProtocolVersion::TLSv1_3] {
        let trusting = client(&[&kept], &[], version);
        let open = async || handshake(&trusting, port, "db.example.com").await.unwrap();
        let mut said = [0; 5];
        // Of the app.
        let mut from = open().await;
        let theirs = soon(come.recv()).await.unwrap();
        soon(from.read_exact(&mut said)).await.unwrap();
        reset(theirs);
        assert_eq!(ends(from).await, (Vec::new(), true));
        // Of the client.
        let mut from = open().await;
        from.write_all(b"hello").await.unwrap();
        let mut theirs = soon(come.recv()).await.unwrap();
        soon(theirs.read_exact(&mut said)).await.unwrap();
        reset(from.into_inner().0);
        assert_eq!(ends(theirs).await, (Vec::new(), true));
        // An end without the alert close_notify: TLS does not know whether that was all.
        let mut from = open().await;
        from.write_all(b"hello").await.unwrap();
        let mut theirs = soon(come.recv()).await.unwrap();
        soon(theirs.read_exact(&mut said)).await.unwrap();
        from.get_mut().0.shutdown().await.unwrap();
        assert_eq!(ends(theirs).await, (Vec::new(), true));
        // What was said is not lost when the other way breaks.
        let (mut read, mut write) = tokio::io::split(open().await);
        let sending = tokio::spawn(async move {
            let piece = [b'x'; 16 * 1024];
            while write.write_all(&piece).await.is_ok() {}
        });
        let mut theirs = soon(come.recv()).await.unwrap();
        soon(theirs.read_exact(&mut [0; 1])).await.unwrap();
        theirs.write_all(b", no").await.unwrap();
        reset(theirs);
        let mut came = Vec::new();
        let _ = soon(read.read_to_end(&mut came)).await;
        assert_eq!(came, b"hello, no");
        soon(sending).await.unwrap();
    }
    edge.running.stop().await;
}

#[tokio::test]
async fn resets_pass_tls_that_ends_at_the_app() {
    let own = certificate(&["own.example.com"], 30);
    let ((to, mut come), port) = (app(b"").await, free_port().await);
    let routes = [(port, "own.example.com", mode(TlsMode::Passthrough), to)];
    let running = Running::with("1-65535", KeptPorts::default(), &by_name(1, &routes));
    let trusting = client(&[&own], &[], ProtocolVersion::TLSv1_3);
    let begun = tokio::spawn(async move { handshake(&trusting, port, "own.example.com").await });
    reset(soon(come.recv()).await.unwrap());
    let refused = soon(begun).await.unwrap().unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionReset);
    running.stop().await;
}
