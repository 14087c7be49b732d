//! WebSockets over HTTP/2 (RFC 8441): a stream that becomes a tunnel to an upgrade of HTTP/1.1.

use super::wire::*;
use super::*;

use h2::ext::Protocol;

fn connect(uri: &str, protocol: &'static str) -> Request<()> {
    let mut request = Request::builder()
        .method("CONNECT")
        .uri(uri)
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "chat")
        .header("origin", "http://a.test")
        .body(())
        .unwrap();
    request
        .extensions_mut()
        .insert(Protocol::from_static(protocol));
    request
}

/// An app that opens a WebSocket, and sends each byte back with one more; says what it was asked.
async fn app(asked: Arc<Mutex<String>>) -> SocketAddr {
    backend(move |mut stream| {
        let asked = Arc::clone(&asked);
        async move {
            let head = head(&mut stream).await;
            *asked.lock().unwrap() = head;
            let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                          Sec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: chat\r\n\r\nhello";
            stream.write_all(switch.as_bytes()).await.unwrap();
            let mut byte = [0];
            while stream.read_exact(&mut byte).await.is_ok() {
                stream.write_all(&byte.map(|byte| byte + 1)).await.unwrap();
            }
            stream.write_all(b"bye").await.unwrap();
        }
    })
    .await
}

async fn open(
    client: &super::Client,
    request: Request<()>,
) -> (Response<h2::RecvStream>, h2::SendStream<Bytes>) {
    let mut requests = client.0.clone().ready().await.unwrap();
    let (response, body) = requests.send_request(request, false).unwrap();
    (soon(response).await.unwrap(), body)
}

#[tokio::test]
async fn a_stream_becomes_a_websocket() {
    let asked = Arc::new(Mutex::new(String::new()));
    let edge = TestEdge::start(&[app(Arc::clone(&asked)).await]).await;
    let client = super::Client::connect(&edge).await;
    // Once the SETTINGS of the edge are there, it is known that it may be asked.
    client.get(request("GET", "http://b.test/")).await;
    assert!(client.0.is_extended_connect_protocol_enabled());
    let (response, mut body) = open(&client, connect("http://a.test/chat?x", "websocket")).await;
    let (parts, mut answer) = response.into_parts();
    assert_eq!(parts.status, 200);
    assert_eq!(parts.headers["sec-websocket-protocol"], "chat");
    for absent in ["sec-websocket-accept", "connection", "upgrade"] {
        assert!(!parts.headers.contains_key(absent), "{absent}");
    }
    let head = asked.lock().unwrap().clone();
    assert!(
        head.starts_with("GET /chat?x HTTP/1.1\r\nHost: a.test\r\n"),
        "{head}"
    );
    for line in [
        "Connection: Upgrade\r\n",
        "Upgrade: websocket\r\n",
        "sec-websocket-version: 13\r\n",
        "origin: http://a.test\r\n",
        "X-Forwarded-For: 127.0.0.1\r\n",
    ] {
        assert!(head.contains(line), "{line}: {head}");
    }
    let key = head
        .lines()
        .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "));
    assert_eq!(key.unwrap().len(), 24, "{head}");
    assert!(!head.contains("chunked"), "{head}");
    let mut seen = Vec::new();
    while seen != b"hello" {
        seen.extend(soon(answer.data()).await.unwrap().unwrap());
    }
    for byte in [1_u8, 5, 200] {
        body.send_data(Bytes::copy_from_slice(&[byte]), false)
            .unwrap();
        assert_eq!(soon(answer.data()).await.unwrap().unwrap(), vec![byte + 1]);
    }
    // The other streams of the connection go on.
    let (status, ..) = client.get(request("GET", "http://b.test/")).await;
    assert_eq!(status, 404);
    // An end of one direction is told to the other.
    body.send_data(Bytes::new(), true).unwrap();
    assert_eq!(text(&mut answer).await, "bye");
}

#[tokio::test]
async fn what_goes_with_a_websocket_is_refused_or_passed_on() {
    let refuses = backend(|mut stream| async move {
        let head = head(&mut stream).await;
        let status = if head.contains("/ok") {
            "200 OK"
        } else {
            "403 Forbidden"
        };
        let text = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno");
        stream.write_all(text.as_bytes()).await.unwrap();
    });
    let edge = TestEdge::start(&[refuses.await]).await;
    let client = super::Client::connect(&edge).await;
    client.get(request("GET", "http://b.test/")).await;
    // An app that opens none.
    let (response, _body) = open(&client, connect("http://a.test/", "websocket")).await;
    let (status, _, text) = whole(response).await;
    assert_eq!((status, text.as_str()), (403, "no"));
    // No app, another protocol, and a tunnel to anywhere.
    let (response, _body) = open(&client, connect("http://b.test/", "websocket")).await;
    assert_eq!(response.status(), 404);
    let (response, _body) = open(&client, connect("http://a.test/", "connect-udp")).await;
    assert_eq!(response.status(), 405);
    let mut wire = Wire::connect(&edge).await;
    let plain = [(":method", "CONNECT"), (":authority", "a.test:443")];
    wire.send(&headers(END_HEADERS, 1, &plain)).await;
    let head = wire.find(|frame| frame.is(HEADERS, 1)).await.unwrap();
    // `:status` by name 8 of the static table, and a value of 3 digits, which Huffman makes 2 bytes.
    assert!(!head.ends_stream());
    let body = wire.find(|frame| frame.is(DATA, 1)).await.unwrap();
    assert!(
        body.payload.starts_with(b"405: CONNECT is not offered"),
        "{body:?}"
    );
}

/// Any 2xx would say that it is open.
#[tokio::test]
async fn a_success_in_the_place_of_a_websocket_is_an_answer_of_the_edge() {
    let succeeds = replies_with("no WebSocket").await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("access.log");
    let target = crate::AccessLogTarget::File(file.clone());
    let edge = Edge {
        access_log: Some(crate::access_log::AccessLog::open(&target).unwrap()),
        ..Edge::default()
    };
    let edge = TestEdge::of(edge, &[succeeds], None).await;
    let client = super::Client::connect(&edge).await;
    client.get(request("GET", "http://b.test/")).await;
    let (response, _body) = open(&client, connect("http://a.test/", "websocket")).await;
    let (status, headers, text) = whole(response).await;
    assert_eq!(status, 502);
    let id = headers["x-request-id"].to_str().unwrap();
    assert!(text.contains(id), "{text}");
    let mut lines = Vec::new();
    until(|| {
        let text = std::fs::read_to_string(&file).unwrap();
        lines = text.lines().map(str::to_owned).collect();
        lines.len() == 2 && text.ends_with('\n')
    })
    .await;
    let line: serde_json::Value = serde_json::from_str(&lines[1]).unwrap();
    assert_eq!(
        (&line["status"], &line["request_id"]),
        (&502.into(), &id.into())
    );
    let error = line["error"].as_str().unwrap();
    assert!(
        error.contains("answered 200 in the place of 101"),
        "{error}"
    );
    // The connection goes on.
    assert_eq!(client.get(request("GET", "http://a.test/")).await.0, 200);
}

#[tokio::test]
async fn a_websocket_ends_with_a_shutdown_and_with_its_client() {
    let asked = Arc::new(Mutex::new(String::new()));
    let edge = TestEdge::start(&[app(asked).await]).await;
    let client = super::Client::connect(&edge).await;
    client.get(request("GET", "http://b.test/")).await;
    let (response, mut body) = open(&client, connect("http://a.test/", "websocket")).await;
    assert_eq!(response.status(), 200);
    let counted = || edge.edge.metrics.tunnels.get();
    until(|| counted() == 1).await;
    body.send_reset(h2::Reason::CANCEL);
    until(|| counted() == 0).await;
    let (mut response, _body) = open(&client, connect("http://a.test/", "websocket")).await;
    until(|| counted() == 1).await;
    edge.shutdown.cancel();
    soon(edge.served).await.unwrap();
    let error = loop {
        match soon(response.body_mut().data()).await {
            Some(Ok(_)) => {}
            other => break other,
        }
    };
    assert!(error.is_none_or(|error| error.is_err()));
}
