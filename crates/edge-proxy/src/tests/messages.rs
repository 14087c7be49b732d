//! What passes of messages and what does not, as bytes.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A backend that answers each request with these bytes, and keeps the heads that it got.
async fn answers_with(bytes: &'static str) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&heads);
    let address = backend(move |mut stream| {
        let heads = Arc::clone(&kept);
        async move {
            loop {
                let head = head(&mut stream).await;
                if head.is_empty() {
                    return;
                }
                heads.lock().unwrap().push(head);
                stream.write_all(bytes.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    (address, heads)
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// What an app gets of these header lines.
async fn app_gets(edge: &TestEdge, heads: &Mutex<Vec<String>>, lines: &str) -> String {
    let request = format!("GET /x HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n{lines}\r\n");
    let answer = edge.exchange(&request).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    heads.lock().unwrap().pop().unwrap()
}

/// What a client gets of this answer.
async fn client_gets(answer: &'static str, request: &str) -> String {
    let address = backend(move |mut stream| async move {
        head(&mut stream).await;
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let edge = TestEdge::start(&[address]).await;
    edge.exchange(request).await
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
const GET_10: &str = "GET / HTTP/1.0\r\nHost: a.test\r\n\r\n";

fn without_date(answer: &str) -> String {
    let lines = answer.split_inclusive("\r\n");
    lines.filter(|line| !line.starts_with("Date: ")).collect()
}

#[tokio::test]
async fn case_names_of_headers_travel_as_written_and_those_with_underscores_do_not() {
    let (address, heads) =
        answers_with("HTTP/1.1 200 OK\r\nX-Jenkins-JNLP-Port: 50000\r\ncontent-LENGTH: 0\r\n\r\n")
            .await;
    let edge = TestEdge::start(&[address]).await;
    let request = "POST / HTTP/1.1\r\nhoST: a.test\r\nSOAPAction: x\r\nX_Forwarded_For: 6.6.6.6\r\n\
                   b: 1\r\nConnection: close\r\nA:2\r\ncontent-Length: 0\r\n\r\n";
    let answer = edge.exchange(request).await;
    assert!(
        answer.contains("\r\nX-Jenkins-JNLP-Port: 50000\r\ncontent-LENGTH: 0\r\n"),
        "{answer}"
    );
    let head = heads.lock().unwrap().pop().unwrap();
    let own = "POST / HTTP/1.1\r\nhoST: a.test\r\nSOAPAction: x\r\nb: 1\r\nA:2\r\ncontent-Length: 0\r\nX-Forwarded-For";
    assert!(head.starts_with(own), "{head}");
}

#[tokio::test]
async fn case_upgrades_that_cannot_be_carried_are_not_offered_to_apps() {
    let (address, heads) = answers_with(OK).await;
    let edge = TestEdge::start(&[address]).await;
    for offer in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n",
        "Connection: upgrade\r\nUpgrade: HTTP/2.0\r\n",
        "Upgrade: websocket\r\n",
    ] {
        let head = app_gets(&edge, &heads, offer).await.to_lowercase();
        assert!(
            !head.contains("upgrade") && !head.contains("http2-"),
            "{head}"
        );
    }
    let offer = "Connection: keep-alive, Upgrade\r\nUpgrade: h2c, websocket, TLS/1.2\r\n";
    let head = app_gets(&edge, &heads, offer).await;
    assert!(
        head.ends_with("Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        "{head}"
    );
}

#[tokio::test]
async fn what_is_between_two_neighbours_goes() {
    let (address, heads) = answers_with(
        "HTTP/1.1 200 OK\r\nConnection: X-Hop, Keep-Alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nX: y\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    let edge = TestEdge::start(&[address]).await;
    let lines = "Connection: X-Secret, Cookie\r\nX-Secret: 1\r\nTE: trailers\r\nKeep-Alive: 5\r\nProxy-Authorization: x\r\n\
                 Proxy-Connection: keep-alive\r\nCookie: named\r\nExpect: 100-continue\r\nStays: 1\r\n";
    let head = app_gets(&edge, &heads, lines).await;
    let own = "GET /x HTTP/1.1\r\nHost: a.test\r\nStays: 1\r\nX-Forwarded-For";
    assert!(head.starts_with(own), "{head}");
    let answer = edge.exchange(GET).await;
    let expected = "HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert_eq!(without_date(&answer), expected);
    assert!(answer.contains("\r\nDate: "), "{answer}");
}

#[tokio::test]
async fn case_one_bad_line_of_an_app_is_dropped_and_named_in_the_log() {
    let (log, _guard) = logged();
    let answer = "HTTP/1.1 200 OK\r\nSecured by Excellent Serv : x\r\nnonsense\r\nContent-Length: 2\r\nX: a\0b\r\n\r\nok";
    let answer = client_gets(answer, GET).await;
    let expected = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    assert_eq!(without_date(&answer), expected);
    let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
    for line in ["Secured by Excellent Serv : x", "nonsense", "X: a b"] {
        let logged = log.lines().find(|logged| logged.contains(line));
        let logged = logged.unwrap_or_else(|| panic!("{line}: {log}"));
        assert!(
            logged.contains("a/prod") && logged.contains("WARN"),
            "{logged}"
        );
    }
}

#[tokio::test]
async fn what_apps_write_loosely_is_written_properly() {
    for (answer, expected) in [
        // Folded, bare line feeds, a space before the colon, no reason.
        (
            "HTTP/1.1 200 OK\r\nX: a\r\n  b\r\n\tc\r\nContent-Length: 2\r\n\r\nok",
            "200 OK\r\nX: a    b  \tc\r\nContent-Length: 2\r\n",
        ),
        (
            "HTTP/1.0 200 Fine\nX: y\nContent-Length: 2\n\nok",
            "200 Fine\r\nX: y\r\nContent-Length: 2\r\n",
        ),
        (
            "HTTP/1.1 200\r\nContent-Length : 2\r\n\r\nok",
            "200 \r\nContent-Length: 2\r\n",
        ),
        // One length in several ways.
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
            "200 OK\r\nContent-Length: 2\r\n",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
            "200 OK\r\nContent-Length: 2\r\n",
        ),
        // And in forms that not everybody reads.
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 002\r\n\r\nok",
            "200 OK\r\nContent-Length: 2\r\n",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length:\t2\t\r\n\r\nok",
            "200 OK\r\nContent-Length: 2\r\n",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length:2\r\n\r\nok",
            "200 OK\r\nContent-Length: 2\r\n",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n 2\r\n\r\nok",
            "200 OK\r\nContent-Length: 2\r\n",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding:identity\r\nContent-Length: 2\r\n\r\nok",
            "200 OK\r\nContent-Length: 2\r\n",
        ),
    ] {
        let got = without_date(&client_gets(answer, GET).await);
        assert_eq!(
            got,
            format!("HTTP/1.1 {expected}Connection: close\r\n\r\nok")
        );
    }
    for answer in [
        "HTTP/2 200 OK\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2,\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, \r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
    ] {
        let got = client_gets(answer, GET).await;
        assert!(got.starts_with("HTTP/1.1 502 "), "{answer:?}: {got}");
    }
}

#[tokio::test]
async fn case_of_both_lengths_of_an_app_transfer_encoding_wins() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n\
                  14\r\n0123456789abcdefghij\r\n0\r\n\r\n";
    let got = without_date(&client_gets(answer, GET).await);
    let expected = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
                    14\r\n0123456789abcdefghij\r\n0\r\n\r\n";
    assert_eq!(got, expected);
}

/// Whatever letters, spaces and zeros an app writes: a client gets one form.
#[tokio::test]
async fn chunks_of_an_app_are_told_in_one_form() {
    for line in [
        "Transfer-Encoding:chunked",
        "transfer-encoding: Chunked",
        "Transfer-Encoding : \tCHUNKED ",
        "Transfer-Encoding:\r\n chunked",
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\n{line}\r\n\r\n2\r\nok\r\n0\r\n\r\n");
        let got = without_date(&client_gets(answer.leak(), GET).await);
        let expected = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        assert_eq!(got, expected, "{line}");
    }
}

#[tokio::test]
async fn trailers_and_interim_answers_pass() {
    let answer = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n\
                  HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2;x\r\nok\r\n0\r\nX_Sum: 1\r\n\r\n";
    let got = without_date(&client_gets(answer, GET).await);
    let expected = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n\
                    HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
                    2;x\r\nok\r\n0\r\nX_Sum: 1\r\n\r\n";
    assert_eq!(got, expected);
    // HTTP/1.0 knows neither.
    let got = without_date(&client_gets(answer, GET_10).await);
    assert_eq!(
        got,
        "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nConnection: close\r\n\r\nok"
    );
}

#[tokio::test]
async fn an_answer_is_whole_without_trailers_that_are_none() {
    let long = format!("X: {}\r\n\r\n", "y".repeat(10_000));
    for trailers in [
        "nonsense\r\nX: y\r\n\r\n",
        "X: y\r\n z\r\n\r\n",
        "X: y\n\n",
        "Content-Length: 1\r\n\r\n",
        "X: \x01\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nothers",
        &long,
    ] {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let answer: &'static str = format!("{head}2\r\nok\r\n0\r\n{trailers}").leak();
        let got = without_date(&client_gets(answer, GET).await);
        let expected = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        assert_eq!(got, expected, "{trailers}");
        let got = without_date(&client_gets(answer, GET_10).await);
        let expected = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok";
        assert_eq!(got, expected, "{trailers}");
    }
    // Where it ends on the app's connection is not known: no request goes there again.
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nbad\r\n\r\n";
    let address = backend(move |mut stream| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            while !head(&mut stream).await.is_empty() {
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    });
    let edge = TestEdge::start(&[address.await]).await;
    let kept = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let got = edge.exchange(&format!("{kept}{GET}")).await;
    assert_eq!(got.matches(" 200 OK").count(), 2, "{got}");
    assert_eq!(connections.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn clients_of_http_1_0_are_served_in_their_way() {
    let (address, _) = answers_with(OK).await;
    let edge = TestEdge::start(&[address]).await;
    let got = without_date(&edge.exchange(GET_10).await);
    assert_eq!(
        got,
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    );
    let kept = "GET / HTTP/1.0\r\nHost: a.test\r\nConnection: Keep-Alive\r\n\r\n";
    let got = without_date(&edge.exchange(&format!("{kept}{GET_10}")).await);
    let first = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok";
    assert!(got.starts_with(first), "{got}");
    assert!(got.ends_with("Connection: close\r\n\r\nok"), "{got}");
}

#[tokio::test]
async fn a_body_that_ends_with_its_connection_comes_in_chunks_and_one_that_is_cut_is_not_whole() {
    let got = client_gets("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello", GET).await;
    let expected = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    assert_eq!(without_date(&got), expected);
    let got = client_gets("HTTP/1.0 200 OK\r\n\r\nhello", GET_10).await;
    assert_eq!(
        without_date(&got),
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello"
    );
    let got = client_gets(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        GET,
    )
    .await;
    assert!(got.starts_with("HTTP/1.1 502 "), "{got}");
    let (log, _guard) = logged();
    for cut in [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\nx\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel",
    ] {
        log.lock().unwrap().clear();
        let got = client_gets(cut, GET).await;
        assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
        assert!(!got.ends_with("0\r\n\r\n"), "{got}");
        let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        assert!(log.contains("an answer was cut off"), "{log}");
    }
}

/// A client of HTTP/1.0 is told the end of such a body by the end of the connection alone.
#[tokio::test]
async fn a_body_that_breaks_off_is_a_reset_to_who_has_no_other_way_to_know() {
    let address = backend(|mut stream| async move {
        head(&mut stream).await;
        let begin = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhel";
        stream.write_all(begin.as_bytes()).await.unwrap();
        // The client's word that it has that.
        let _ = stream.read_u8().await;
        rustix::net::sockopt::set_socket_linger(stream.get_ref(), Some(Duration::ZERO)).unwrap();
    });
    let edge = TestEdge::start(&[address.await]).await;
    let mut stream = BufReader::new(edge.connect().await);
    let ask = "POST / HTTP/1.0\r\nHost: a.test\r\nContent-Length: 1\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.unwrap();
    let told = soon(head(&mut stream)).await;
    assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
    let mut body = vec![0; 3];
    soon(stream.read_exact(&mut body)).await.unwrap();
    stream.write_u8(0).await.unwrap();
    let error = soon(stream.read_to_end(&mut body)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(body, b"hel");
}

/// What an upgraded connection carries may have no end of its own.
#[tokio::test]
async fn a_tunnel_that_breaks_is_a_reset_to_the_other_end() {
    let (told, mut come) = tokio::sync::mpsc::unbounded_channel();
    let address = backend(move |mut stream| {
        let told = told.clone();
        async move {
            head(&mut stream).await;
            let switch =
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
            stream.write_all(switch.as_bytes()).await.unwrap();
            let _ = told.send(stream.into_inner());
        }
    });
    let edge = TestEdge::start(&[address.await]).await;
    let reset = |stream: TcpStream| {
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    };
    let ends = async |mut stream: TcpStream| {
        let read = soon(stream.read(&mut [0])).await;
        read.map_err(|error| error.kind())
    };
    let broken = Err(std::io::ErrorKind::ConnectionReset);
    let mut opened = async || {
        let mut stream = BufReader::new(edge.connect().await);
        let ask = b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
        stream.write_all(ask).await.unwrap();
        assert!(soon(head(&mut stream)).await.starts_with("HTTP/1.1 101 "));
        (stream.into_inner(), soon(come.recv()).await.unwrap())
    };
    let (client, app) = opened().await;
    reset(app);
    assert_eq!(ends(client).await, broken);
    let (client, app) = opened().await;
    reset(client);
    assert_eq!(ends(app).await, broken);
    // One that both end is none.
    let (mut client, mut app) = opened().await;
    client.shutdown().await.unwrap();
    assert_eq!(soon(app.read(&mut [0])).await.unwrap(), 0);
    app.shutdown().await.unwrap();
    assert_eq!(ends(client).await, Ok(0));
    // And one that is cut off at a shutdown is.
    let (client, app) = opened().await;
    edge.edge.end_tunnels.cancel();
    assert_eq!(ends(client).await, broken);
    assert_eq!(ends(app).await, broken);
}

#[tokio::test]
async fn answers_without_a_body_keep_the_connection() {
    for (method, answer) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        ("HEAD", "HTTP/1.1 200 OK\r\n\r\n"),
        (
            "GET",
            "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        ),
    ] {
        let (address, heads) = answers_with(answer).await;
        let edge = TestEdge::start(&[address]).await;
        let one = format!("{method} / HTTP/1.1\r\nHost: a.test\r\n\r\n");
        let last = format!("{method} / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
        let got = edge.exchange(&format!("{one}{one}{last}")).await;
        assert_eq!(got.matches("HTTP/1.1 ").count(), 3, "{got}");
        assert!(got.ends_with("Connection: close\r\n\r\n"), "{got}");
        assert_eq!(heads.lock().unwrap().len(), 3);
        assert_eq!(
            got.contains("Content-Length: 5"),
            answer.contains(": 5"),
            "{got}"
        );
        assert!(!got.contains("Transfer-Encoding"), "{got}");
    }
}

#[tokio::test]
async fn the_edge_says_who_the_client_is_and_under_which_id_the_request_is_known() {
    let (address, heads) = answers_with(OK).await;
    let edge = TestEdge::start(&[address]).await;
    let claims = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: bank.test\r\n\
                  X-Forwarded-Port: 443\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nX-Request-Id: mine\r\n";
    let head = app_gets(&edge, &heads, claims).await;
    let (rest, id) = head.split_once("X-Request-Id: ").unwrap();
    let expected = "GET /x HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\n\
                    X-Forwarded-Host: a.test\r\nForwarded: for=127.0.0.1;host=\"a.test\";proto=http\r\nX-Real-IP: 127.0.0.1\r\n";
    assert_eq!(rest, expected);
    assert_eq!(id.trim().len(), 16, "{id}");
    let other = app_gets(&edge, &heads, "").await;
    assert!(!other.contains(id.trim()), "{other}");
}

#[tokio::test]
async fn case_what_a_trusted_proxy_says_of_the_client_is_kept() {
    let (address, heads) = answers_with(OK).await;
    let edge = TestEdge::trusting(&[address], &["127.0.0.0/8"]).await;
    let said = "X-Forwarded-For: 6.6.6.6, 203.0.113.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.test\r\n\
                X-Forwarded-Port: 443\r\nForwarded: for=203.0.113.7\r\nX-Request-Id: theirs-1\r\n";
    let head = app_gets(&edge, &heads, said).await;
    let expected = "GET /x HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 6.6.6.6, 203.0.113.7, 127.0.0.1\r\nX-Forwarded-Proto: https\r\n\
                    X-Forwarded-Host: shop.test\r\nX-Forwarded-Port: 443\r\n\
                    Forwarded: for=203.0.113.7, for=127.0.0.1;host=\"a.test\";proto=http\r\nX-Real-IP: 203.0.113.7\r\nX-Request-Id: theirs-1\r\n";
    assert_eq!(head, expected);
    let head = app_gets(&edge, &heads, "X-Request-Id: a\"b\r\n").await;
    assert!(
        head.contains("X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\n"),
        "{head}"
    );
    assert!(!head.contains("a\"b"), "{head}");
}

/// Each proxy writes behind what it was told: what a client says itself is before that, and is not believed.
#[tokio::test]
async fn of_several_values_that_counts_which_was_said_by_the_proxy_that_named_the_client() {
    let (address, heads) = answers_with(OK).await;
    let edge = TestEdge::trusting(&[address], &["127.0.0.0/8"]).await;
    for (said, expected) in [
        // What the client claims, and what the proxy says of it.
        (
            "X-Forwarded-For: 6.6.6.6, 203.0.113.7\r\nX-Forwarded-Proto: https, http\r\nX-Forwarded-Host: bank.test, shop.test\r\n\
             X-Forwarded-Port: 443,80\r\n",
            ["http", "shop.test", "80"],
        ),
        // In lines of their own.
        (
            "X-Forwarded-Proto: https\r\nX-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: bank.test\r\n\
             X-Forwarded-Host: shop.test\r\nX-Forwarded-Port: 443\r\nX-Forwarded-Port: 80\r\n",
            ["http", "shop.test", "80"],
        ),
        // A trusted proxy behind the first says how that one came.
        (
            "X-Forwarded-For: 6.6.6.6, 203.0.113.7, 127.0.0.9\r\nX-Forwarded-Proto: wss, https, http\r\n\
             X-Forwarded-Host: bank.test, shop.test, inner.test\r\nX-Forwarded-Port: 1, 443, 80\r\n",
            ["https", "shop.test", "443"],
        ),
        // One behind that passes on what the first said.
        (
            "X-Forwarded-For: 203.0.113.7, 127.0.0.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.test\r\nX-Forwarded-Port: 443\r\n",
            ["https", "shop.test", "443"],
        ),
        // No client is named.
        (
            "X-Forwarded-Proto: https, http\r\nX-Forwarded-Host: bank.test, shop.test\r\nX-Forwarded-Port: 443, 80\r\n",
            ["http", "shop.test", "80"],
        ),
    ] {
        let head = app_gets(&edge, &heads, said).await;
        let [proto, host, port] = expected;
        let expected = format!(
            "\r\nX-Forwarded-Proto: {proto}\r\nX-Forwarded-Host: {host}\r\nX-Forwarded-Port: {port}\r\nForwarded: "
        );
        assert!(head.contains(&expected), "{said}: {head}");
    }
}

#[tokio::test]
async fn a_header_of_the_proxy_protocol_is_read_from_trusted_proxies_only() {
    let (address, heads) = answers_with(OK).await;
    let header = crate::proxy_header::encode(
        "203.0.113.7:4000".parse().unwrap(),
        "198.51.100.1:80".parse().unwrap(),
        None,
    );
    let mut bytes = header.clone();
    bytes.extend_from_slice(GET.as_bytes());
    let edge = TestEdge::trusting(&[address], &["127.0.0.1"]).await;
    let mut stream = edge.connect().await;
    // In two pieces, as it may come.
    stream.write_all(&bytes[..7]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    stream.write_all(&bytes[7..]).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let head = heads.lock().unwrap().pop().unwrap();
    assert!(head.contains("X-Forwarded-For: 203.0.113.7\r\n"), "{head}");
    assert!(head.contains("X-Real-IP: 203.0.113.7\r\n"), "{head}");
    // The client of a proxy is not trusted itself.
    let claim =
        "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n";
    let mut stream = edge.connect().await;
    stream
        .write_all(&[&header, claim.as_bytes()].concat())
        .await
        .unwrap();
    answer.clear();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    let head = heads.lock().unwrap().pop().unwrap();
    assert!(!head.contains("6.6.6.6"), "{head}");
    // And who is no trusted proxy speaks HTTP.
    let edge = TestEdge::trusting(&[address], &["192.0.2.0/24"]).await;
    let mut stream = edge.connect().await;
    stream.write_all(&bytes).await.unwrap();
    answer.clear();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn errors_are_json_where_that_is_asked_for_and_have_no_body_for_head() {
    let edge = TestEdge::start(&[]).await;
    for accept in ["application/json", "text/html;q=0.5, Application/JSON; q=1"] {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: b.test\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
        );
        let answer = edge.exchange(&request).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains("Content-Type: application/problem+json"),
            "{head}"
        );
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(problem["status"], 404);
        assert_eq!(problem["title"], "no app answers for `b.test`");
        let id = problem["request_id"].as_str().unwrap();
        assert!(head.contains(&format!("X-Request-Id: {id}")), "{head}");
    }
    let answer = edge
        .exchange("HEAD / HTTP/1.1\r\nHost: b.test\r\nConnection: close\r\n\r\n")
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 404 ") && answer.ends_with("\r\n\r\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn what_is_refused_is_json_too_where_its_head_came_whole() {
    let edge = TestEdge::start(&[]).await;
    let many = "X: y\r\n".repeat(140);
    let accept = "Accept: text/plain;q=0.5, application/json\r\n";
    for (status, line, headers) in [
        (400, "GET / HTTP/1.1", "Host: a.test\r\nHost: b.test\r\n"),
        (400, "GET / HTTP/1.1", ""),
        (
            400,
            "GET / HTTP/1.1",
            "Host: a.test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        ),
        (
            400,
            "GET / HTTP/1.0",
            "Host: a.test\r\nTransfer-Encoding: chunked\r\n",
        ),
        (405, "CONNECT a.test:443 HTTP/1.1", "Host: a.test\r\n"),
        (431, "GET / HTTP/1.1", &*format!("Host: a.test\r\n{many}")),
        (505, "GET / HTTP/3.0", "Host: a.test\r\n"),
    ] {
        // Before what is wrong, and after it.
        for fields in [format!("{accept}{headers}"), format!("{headers}{accept}")] {
            let answer = edge.exchange(&format!("{line}\r\n{fields}\r\n")).await;
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(
                head.contains("Content-Type: application/problem+json"),
                "{line} {headers}: {head}"
            );
            let problem: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(problem["status"], status, "{line} {headers}");
        }
        let answer = edge.exchange(&format!("{line}\r\n{headers}\r\n")).await;
        assert!(answer.contains("Content-Type: text/plain"), "{answer}");
    }
    // What follows is not the same client's wish.
    let answer = edge
        .exchange(
            "GET / HTTP/1.1\r\nHost: b.test\r\nAccept: application/json\r\n\r\nGET  / HTTP/1.1\n",
        )
        .await;
    let (_, refused) = answer.split_once("HTTP/1.1 400 ").unwrap();
    assert!(refused.contains("Content-Type: text/plain"), "{answer}");
}

#[tokio::test]
async fn options_of_the_server_itself_is_answered() {
    let edge = TestEdge::start(&[replies_with("never").await]).await;
    let answer = edge
        .exchange("OPTIONS * HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\nAllow: GET, HEAD, "),
        "{answer}"
    );
    assert!(answer.contains("Content-Length: 0\r\n"), "{answer}");
}

#[tokio::test]
async fn an_error_page_of_the_operator_is_in_the_place_of_the_edges_text() {
    let dir = tempfile::tempdir().unwrap();
    let page = "<!doctype html><p>Sorry. Tell us {{request_id}}</p>";
    std::fs::write(dir.path().join("5xx.html"), page).unwrap();
    let edge = TestEdge::start(&[]).await;
    (edge.edge.error_pages).set(&crate::error_pages::read(dir.path()).unwrap());
    let answer = edge.get("a.test").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(
        answer.contains("Content-Type: text/html; charset=utf-8\r\n"),
        "{answer}"
    );
    let id = answer
        .lines()
        .find_map(|line| line.strip_prefix("X-Request-Id: "));
    assert!(
        answer.ends_with(&page.replace("{{request_id}}", id.unwrap())),
        "{answer}"
    );
    // Where JSON is asked for, that is told; and other statuses have the edge's text.
    let json = edge
        .exchange("GET / HTTP/1.1\r\nHost: a.test\r\nAccept: application/json\r\nConnection: close\r\n\r\n")
        .await;
    assert!(json.contains("application/problem+json"), "{json}");
    assert!(edge.get("other.test").await.contains("404: no app answers"));
}
