//! What is open when another process has taken the place of the edge's.

use super::*;

/// As an edge does whose clients are another's: a token that ends what is open.
fn hand_over(edge: &TestEdge) -> CancellationToken {
    let stop = CancellationToken::new();
    edge.edge.handed_over.set(stop.clone()).unwrap();
    edge.shutdown.cancel();
    stop
}

async fn until(mut holds: impl FnMut() -> bool) {
    soon(async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// An app that answers, or opens a WebSocket and sends each byte back.
async fn app() -> SocketAddr {
    backend(|mut stream| async move {
        loop {
            let head = head(&mut stream).await;
            if head.is_empty() {
                return;
            }
            if !head.contains("pgrade: websocket") {
                answer(&mut stream, "ok").await;
                continue;
            }
            let switch =
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            stream.write_all(switch.as_bytes()).await.unwrap();
            while let Ok(byte) = stream.read_u8().await {
                stream.write_u8(byte).await.unwrap();
            }
        }
    })
    .await
}

async fn ask(stream: &mut BufReader<TcpStream>, more: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nHost: a.test\r\n{more}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    soon(head(stream)).await
}

#[tokio::test]
async fn a_connection_without_a_request_is_not_closed_before_the_next_one_is_answered() {
    let edge = TestEdge::start(&[app().await]).await;
    let mut idle = BufReader::new(edge.connect().await);
    assert!(ask(&mut idle, "").await.starts_with("HTTP/1.1 200 "));
    let mut body = [0; 2];
    idle.read_exact(&mut body).await.unwrap();
    let mut new = BufReader::new(edge.connect().await);
    let mut websocket = BufReader::new(edge.connect().await);
    until(|| edge.edge.metrics.open_connections() == 3).await;

    let stop = hand_over(&edge);
    soon(async {
        while TcpStream::connect(edge.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for stream in [&mut idle, &mut new] {
        let head = ask(stream, "").await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(head.contains("Connection: close\r\n"), "{head}");
        let mut rest = String::new();
        soon(stream.read_to_string(&mut rest)).await.unwrap();
        assert_eq!(rest, "ok");
    }
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let head = ask(&mut websocket, upgrade).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    websocket.write_u8(7).await.unwrap();
    assert_eq!(soon(websocket.read_u8()).await.unwrap(), 7);
    assert!(!edge.served.is_finished());

    stop.cancel();
    soon(edge.served).await.unwrap();
    assert!(soon(websocket.read_u8()).await.is_err());
}

#[tokio::test]
async fn a_stop_closes_connections_without_a_request() {
    let edge = TestEdge::start(&[app().await]).await;
    let mut idle = BufReader::new(edge.connect().await);
    until(|| edge.edge.metrics.open_connections() == 1).await;
    let stop = hand_over(&edge);
    stop.cancel();
    soon(edge.served).await.unwrap();
    assert!(soon(idle.read_u8()).await.is_err());
}
