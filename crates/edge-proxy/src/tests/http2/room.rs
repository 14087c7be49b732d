//! Apps that allow few streams on a connection, or none: who finds no room waits for it, and no connection after the other is opened.

use tokio::io::{AsyncWrite, split};

use super::h2c::{edge_to, read_frame};
use super::wire::{ACK, END_HEADERS, END_STREAM, HEADERS, PING, SETTINGS, frame, settings};
use super::*;

/// What a test knows of an app, and tells it.
#[derive(Default)]
struct Told {
    connections: AtomicU32,
    /// PINGs that were answered: behind them its SETTINGS are known.
    pongs: AtomicU32,
    /// Requests that came.
    requests: AtomicU32,
    /// Where it writes, connection by connection.
    writers: Mutex<Vec<Writer>>,
}

type Writer = Arc<tokio::sync::Mutex<Box<dyn AsyncWrite + Send + Unpin>>>;

/// MAX_CONCURRENT_STREAMS (RFC 9113, 6.5.2).
const MAX_STREAMS: u16 = 3;

/// An app that allows so many streams on each connection, and answers when it may.
async fn app(streams: u32, go: CancellationToken) -> (SocketAddr, Arc<Told>) {
    let told = Arc::new(Told::default());
    let known = Arc::clone(&told);
    let address = backend(move |stream| {
        let (told, go) = (Arc::clone(&known), go.clone());
        async move {
            told.connections.fetch_add(1, Ordering::SeqCst);
            let (mut read, write) = split(stream);
            let write: Writer = Arc::new(tokio::sync::Mutex::new(Box::new(write)));
            told.writers.lock().unwrap().push(Arc::clone(&write));
            let begin = settings(&[(MAX_STREAMS, streams)]);
            write.lock().await.write_all(&begin).await.unwrap();
            read.read_exact(&mut [0; 24]).await.unwrap();
            loop {
                let Some((kind, flags, stream, payload)) = read_frame(&mut read).await else {
                    return;
                };
                let write = Arc::clone(&write);
                match (kind, flags & ACK) {
                    (SETTINGS, 0) => send(&write, &frame(SETTINGS, ACK, 0, b"")).await,
                    (PING, 0) => {
                        send(&write, &frame(PING, ACK, 0, &payload)).await;
                        told.pongs.fetch_add(1, Ordering::SeqCst);
                    }
                    (HEADERS, _) => {
                        told.requests.fetch_add(1, Ordering::SeqCst);
                        let go = go.clone();
                        tokio::spawn(async move {
                            go.cancelled().await;
                            // `:status 200` of the static table (RFC 7541, A).
                            let answer = frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x88]);
                            send(&write, &answer).await;
                        });
                    }
                    _ => {}
                }
            }
        }
    });
    (address.await, told)
}

async fn send(write: &Writer, bytes: &[u8]) {
    // The edge may have closed it.
    let _ = write.lock().await.write_all(bytes).await;
}

/// So many requests, as soon as all of them are at the instance, as far as the edge goes.
async fn asked(edge: &Arc<TestEdge>, many: usize) -> Vec<JoinHandle<String>> {
    let asked = (0..many).map(|_| {
        let edge = Arc::clone(edge);
        tokio::spawn(async move { edge.get("a.test").await })
    });
    let asked = asked.collect();
    let route = edge.edge.routes.find("a.test").unwrap();
    until(|| route.upstreams[0].load() == many).await;
    asked
}

#[tokio::test]
async fn an_app_that_allows_no_stream_has_one_connection_and_its_clients_are_told_to_ask_again() {
    let (address, told) = app(0, CancellationToken::new()).await;
    let edge = Arc::new(edge_to(&[address]).await);
    let asked = asked(&edge, 40).await;
    until(|| told.pongs.load(Ordering::SeqCst) > 0).await;
    // Nothing else is to come, so time passes as fast as it is waited for.
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    for asked in asked {
        let answer = asked.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains("Retry-After: 2\r\n"), "{answer}");
    }
    let seconds = begun.elapsed().as_secs();
    assert!((4..=6).contains(&seconds), "{seconds}");
    assert_eq!(told.connections.load(Ordering::SeqCst), 1);
    assert_eq!(told.requests.load(Ordering::SeqCst), 0);
    // It is not out: a connection to it was made.
    let route = edge.edge.routes.find("a.test").unwrap();
    assert!(!route.upstreams[0].is_out());
}

#[tokio::test]
async fn an_app_that_allows_streams_again_gets_those_who_wait() {
    let go = CancellationToken::new();
    go.cancel();
    let (address, told) = app(0, go).await;
    let edge = Arc::new(edge_to(&[address]).await);
    let asked = asked(&edge, 40).await;
    until(|| told.pongs.load(Ordering::SeqCst) > 0).await;
    assert_eq!(told.requests.load(Ordering::SeqCst), 0);
    let writer = Arc::clone(&told.writers.lock().unwrap()[0]);
    send(&writer, &settings(&[(MAX_STREAMS, 100)])).await;
    for asked in asked {
        let answer = soon(asked).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    assert_eq!(told.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_app_that_allows_one_stream_has_a_bounded_number_of_connections() {
    let go = CancellationToken::new();
    let (address, told) = app(1, go.clone()).await;
    let edge = Arc::new(edge_to(&[address]).await);
    let asked = asked(&edge, 300).await;
    until(|| told.requests.load(Ordering::SeqCst) >= 100).await;
    go.cancel();
    for asked in asked {
        let answer = soon(asked).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    let connections = told.connections.load(Ordering::SeqCst);
    assert!(connections <= 100, "{connections}");
}
