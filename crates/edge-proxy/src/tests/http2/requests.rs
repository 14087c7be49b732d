//! Requests over HTTP/2: every rule of docs/edge.md holds as for HTTP/1.1.

use super::wire::*;
use super::*;

/// A backend that answers with the head of each request, and then its body.
async fn tells() -> SocketAddr {
    backend(|mut stream| async move {
        loop {
            let mut asked = head(&mut stream).await;
            if asked.is_empty() {
                return;
            }
            let length = asked.to_ascii_lowercase();
            let length = length
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            if let Some(length) = length {
                let mut body = vec![0; length.parse().unwrap()];
                stream.read_exact(&mut body).await.unwrap();
                asked.push_str(&String::from_utf8(body).unwrap());
            }
            answer(&mut stream, &asked).await;
        }
    })
    .await
}

#[tokio::test]
async fn an_app_gets_a_request_of_http_1_1() {
    let edge = TestEdge::start(&[tells().await]).await;
    let client = super::Client::connect(&edge).await;
    let asked = Request::builder()
        .uri("http://A.test:8080/p?q=1")
        .header("accept", "text/html")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .header("x_under", "1")
        .header("x-forwarded-for", "6.6.6.6")
        .header("x-real-ip", "6.6.6.6")
        .body(())
        .unwrap();
    let (status, headers, body) = client.get(asked).await;
    assert_eq!(status, 200);
    let id = body
        .lines()
        .find_map(|line| line.strip_prefix("X-Request-Id: "));
    let (id, date) = (id.unwrap(), headers["date"].to_str().unwrap());
    assert!(date.ends_with(" GMT"), "{date}");
    let wanted = format!(
        "GET /p?q=1 HTTP/1.1\r\nHost: A.test:8080\r\naccept: text/html\r\ncookie: a=1; b=2\r\n\
         X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: A.test:8080\r\n\
         Forwarded: for=127.0.0.1;host=\"A.test:8080\";proto=http\r\nX-Real-IP: 127.0.0.1\r\nX-Request-Id: {id}\r\n"
    );
    assert_eq!(body, wanted);
    // A body with its length, and one without.
    let post = Request::post("http://a.test/")
        .header("content-length", "4")
        .body(())
        .unwrap();
    let mut requests = client.0.clone().ready().await.unwrap();
    let (response, mut sending) = requests.send_request(post, false).unwrap();
    sending
        .send_data(Bytes::from_static(b"body"), true)
        .unwrap();
    let (_, _, told) = whole(soon(response).await.unwrap()).await;
    assert!(
        told.contains("\r\ncontent-length: 4\r\n") && told.ends_with("body"),
        "{told}"
    );
}

#[tokio::test]
async fn a_trusted_proxy_is_believed() {
    let edge = TestEdge::trusting(&[tells().await], &["127.0.0.0/8"]).await;
    let client = super::Client::connect(&edge).await;
    let asked = Request::builder()
        .uri("http://a.test/")
        .header("x-forwarded-for", "203.0.113.7")
        .header("x-forwarded-proto", "https")
        .header("x-request-id", "theirs")
        .body(())
        .unwrap();
    let (_, _, body) = client.get(asked).await;
    for line in [
        "X-Forwarded-For: 203.0.113.7, 127.0.0.1\r\n",
        "X-Forwarded-Proto: https\r\n",
        "X-Real-IP: 203.0.113.7\r\n",
        "X-Request-Id: theirs\r\n",
    ] {
        assert!(body.contains(line), "{line}: {body}");
    }
}

/// A length is one form to the app, and is refused where it is not one number.
#[tokio::test]
async fn a_length_is_told_in_one_form() {
    let edge = TestEdge::start(&[tells().await]).await;
    let client = super::Client::connect(&edge).await;
    let asked = |lengths: &[&str], host: &str| {
        let mut asked = Request::post(format!("http://{host}/"));
        for length in lengths {
            asked = asked.header("content-length", *length);
        }
        asked.body(()).unwrap()
    };
    let send = async |asked: Request<()>| {
        let mut requests = client.0.clone().ready().await.unwrap();
        let (response, mut sending) = requests.send_request(asked, false).unwrap();
        sending
            .send_data(Bytes::from_static(b"body"), true)
            .unwrap();
        soon(response).await
    };
    let (_, _, told) = whole(send(asked(&["004"], "a.test")).await.unwrap()).await;
    assert!(told.contains("\r\ncontent-length: 4\r\n"), "{told}");
    for lengths in [
        &["+4"][..],
        &["4, 4"],
        &["4,"],
        &["4", "4"],
        &["4", "5"],
        &["0x4"],
    ] {
        match send(asked(lengths, "a.test")).await {
            Ok(response) => assert_eq!(response.status(), 400, "{lengths:?}"),
            Err(error) => assert_eq!(error.reason(), Some(h2::Reason::PROTOCOL_ERROR)),
        }
    }
    // And a host is one, too.
    let response = send(asked(&["4"], "a.test..")).await.unwrap();
    assert_eq!(response.status(), 400);
}

#[tokio::test]
async fn what_is_refused_is_json_over_http_2_too() {
    let edge = TestEdge::start(&[]).await;
    let client = super::Client::connect(&edge).await;
    for (method, uri, refused) in [
        ("GET", "http://a.test../", 400),
        ("GET", "http://user@a.test/", 400),
        ("CONNECT", "a.test:443", 405),
    ] {
        let mut request = request(method, uri);
        let accept = http::HeaderValue::from_static("application/json");
        request.headers_mut().insert("accept", accept);
        let (status, headers, body) = client.get(request).await;
        assert_eq!(status, refused, "{uri}");
        assert_eq!(headers["content-type"], "application/problem+json", "{uri}");
        let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(problem["status"], refused);
        assert_eq!(
            headers["x-request-id"],
            problem["request_id"].as_str().unwrap()
        );
    }
}

#[tokio::test]
async fn the_edge_answers_by_itself_as_over_http_1_1() {
    let edge = TestEdge::start(&[]).await;
    let client = super::Client::connect(&edge).await;
    let (status, headers, body) = client.get(request("GET", "http://b.test/")).await;
    assert_eq!(status, 404);
    assert!(body.contains("no app answers for `b.test`"), "{body}");
    for absent in ["connection", "keep-alive", "transfer-encoding"] {
        assert!(!headers.contains_key(absent), "{absent}");
    }
    assert_eq!(headers["x-request-id"].len(), 16);
    let (status, headers, _) = client.get(request("GET", "http://a.test/")).await;
    assert_eq!(
        (status, headers["retry-after"].to_str().unwrap()),
        (503, "2")
    );
    let json = Request::get("http://b.test/")
        .header("accept", "application/json")
        .body(())
        .unwrap();
    let (_, headers, body) = client.get(json).await;
    assert_eq!(headers["content-type"], "application/problem+json");
    assert!(body.contains("\"status\":404"), "{body}");
    // HEAD has the headers of GET, and no body.
    let (status, headers, body) = client.get(request("HEAD", "http://b.test/")).await;
    assert_eq!((status, body.as_str()), (404, ""));
    assert_ne!(headers["content-length"], "0");
    let mut wire = Wire::connect(&edge).await;
    let fields = [
        (":method", "OPTIONS"),
        (":scheme", "http"),
        (":path", "*"),
        (":authority", "b.test"),
    ];
    wire.send(&headers_of(1, &fields)).await;
    let head = wire.find(|frame| frame.is(HEADERS, 1)).await.unwrap();
    assert!(head.ends_stream() && head.payload[0] == 0x88, "{head:?}");
    // A target of 16 KiB is too long, and so are headers of that.
    let long = format!("/{}", "x".repeat(15_000));
    let fields = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", &long),
        (":authority", "b.test"),
    ];
    wire.send(&headers_of(3, &fields)).await;
    let head = wire.find(|frame| frame.is(HEADERS, 3)).await.unwrap();
    assert_eq!(head.payload[0], 0x8d, "{head:?}");
    let large = Request::get("http://b.test/")
        .header("x", "x".repeat(17_000))
        .body(())
        .unwrap();
    let answer = client.ask(large).await.unwrap();
    assert_eq!(answer.status(), 431);
    let mut many = request("GET", "http://b.test/");
    for at in 0..=crate::limits::MAX_HEADERS {
        let name = http::HeaderName::from_bytes(format!("x{at}").as_bytes()).unwrap();
        many.headers_mut()
            .insert(name, http::HeaderValue::from_static("y"));
    }
    let (status, ..) = client.get(many).await;
    assert_eq!(status, 431);
}

fn headers_of(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    headers(END_HEADERS | END_STREAM, stream, fields)
}

#[tokio::test]
async fn many_streams_of_a_connection_are_answered_as_each_is_ready() {
    // The first request of all waits for the others.
    let (done, waits) = (CancellationToken::new(), CancellationToken::new());
    let told = (done.clone(), waits.clone());
    let address = backend(move |mut stream| {
        let (done, waits) = told.clone();
        async move {
            loop {
                let head = head(&mut stream).await;
                if head.is_empty() {
                    return;
                }
                if head.starts_with("GET /slow") {
                    waits.cancel();
                    done.cancelled().await;
                }
                answer(&mut stream, "ok").await;
            }
        }
    });
    let edge = TestEdge::start(&[address.await]).await;
    let client = super::Client::connect(&edge).await;
    let slow = {
        let client = client.clone();
        tokio::spawn(async move { client.get(request("GET", "http://a.test/slow")).await })
    };
    soon(waits.cancelled()).await;
    let mut all = Vec::new();
    for at in 0..100 {
        let client = client.clone();
        all.push(tokio::spawn(async move {
            client
                .get(request("GET", &format!("http://a.test/{at}")))
                .await
        }));
    }
    for one in all {
        assert_eq!(soon(one).await.unwrap().2, "ok");
    }
    assert!(!slow.is_finished());
    done.cancel();
    assert_eq!(soon(slow).await.unwrap().2, "ok");
    until(|| edge.edge.backends.idle_connections() > 0).await;
}

#[tokio::test]
async fn bodies_stream_both_ways_with_trailers() {
    // Echoes a body in chunks, line by line, its trailers too.
    let address = backend(|mut stream| async move {
        let head = head(&mut stream).await;
        assert!(head.contains("Transfer-Encoding: chunked"), "{head}");
        let start = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(start.as_bytes()).await.unwrap();
        let mut line = String::new();
        while stream.read_line(&mut line).await.unwrap_or(0) > 0 {
            stream.write_all(line.as_bytes()).await.unwrap();
            line.clear();
        }
    });
    let edge = TestEdge::start(&[address.await]).await;
    let client = super::Client::connect(&edge).await;
    let mut requests = client.0.clone().ready().await.unwrap();
    let (response, mut sending) = requests
        .send_request(request("POST", "http://a.test/"), false)
        .unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    for text in ["ping\n", "pong\n", "more\n"] {
        sending
            .send_data(Bytes::from_static(text.as_bytes()), false)
            .unwrap();
        assert_eq!(soon(body.data()).await.unwrap().unwrap(), text);
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", http::HeaderValue::from_static("15"));
    sending.send_trailers(trailers.clone()).unwrap();
    assert!(soon(body.data()).await.is_none());
    assert_eq!(soon(body.trailers()).await.unwrap(), Some(trailers));
}

#[tokio::test]
async fn a_large_body_passes_whole_both_ways() {
    const BYTES: usize = 10 << 20;
    let address = backend(|mut stream| async move {
        head(&mut stream).await;
        let mut body = vec![0; BYTES];
        stream.read_exact(&mut body).await.unwrap();
        let start = "HTTP/1.1 200 OK\r\nContent-Type: x\r\n\r\n";
        stream.write_all(start.as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
    });
    let edge = TestEdge::start(&[address.await]).await;
    let client = super::Client::connect(&edge).await;
    let body: Vec<u8> = (0..BYTES)
        .map(|i| ((i * 31) >> 3).to_le_bytes()[0])
        .collect();
    let post = Request::post("http://a.test/")
        .header("content-length", BYTES)
        .body(())
        .unwrap();
    let mut requests = client.0.clone().ready().await.unwrap();
    let (response, mut sending) = requests.send_request(post, false).unwrap();
    let sent = body.clone();
    tokio::spawn(async move {
        let mut rest = Bytes::from(sent);
        while !rest.is_empty() {
            sending.reserve_capacity(rest.len());
            let room = std::future::poll_fn(|context| sending.poll_capacity(context)).await;
            let part = rest.split_to(room.unwrap().unwrap().min(rest.len()));
            sending.send_data(part, rest.is_empty()).unwrap();
        }
    });
    let mut answer = soon(response).await.unwrap().into_body();
    let mut got = Vec::new();
    while let Some(data) = soon(answer.data()).await {
        let data = data.unwrap();
        answer.flow_control().release_capacity(data.len()).unwrap();
        got.extend_from_slice(&data);
    }
    assert!(got == body, "{} bytes", got.len());
}

#[tokio::test]
async fn interim_answers_and_expectations_pass() {
    let address = backend(|mut stream| async move {
        let head = head(&mut stream).await;
        assert!(!head.to_ascii_lowercase().contains("expect"), "{head}");
        let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        stream.write_all(hints.as_bytes()).await.unwrap();
        let mut body = [0; 4];
        stream.read_exact(&mut body).await.unwrap();
        answer(&mut stream, "ok").await;
    });
    let edge = TestEdge::start(&[address.await]).await;
    let client = super::Client::connect(&edge).await;
    let post = Request::post("http://a.test/")
        .header("content-length", "4")
        .header("expect", "100-continue")
        .body(())
        .unwrap();
    let mut requests = client.0.clone().ready().await.unwrap();
    let (mut response, mut sending) = requests.send_request(post, false).unwrap();
    let mut interim = Vec::new();
    while interim.len() < 2 {
        let one = std::future::poll_fn(|context| response.poll_informational(context));
        let one = soon(one).await.unwrap().unwrap();
        if one.status() == 100 {
            sending
                .send_data(Bytes::from_static(b"body"), true)
                .unwrap();
        } else {
            assert_eq!(one.headers()["link"], "</a>");
        }
        interim.push(one.status().as_u16());
    }
    interim.sort_unstable();
    assert_eq!(interim, [100, 103]);
    assert_eq!(whole(soon(response).await.unwrap()).await.2, "ok");
}

#[tokio::test]
async fn an_early_answer_is_heard_and_the_rest_is_not_wanted() {
    let address = backend(|mut stream| async move {
        head(&mut stream).await;
        let text =
            "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig";
        stream.write_all(text.as_bytes()).await.unwrap();
        let _ = stream.read_u8().await;
    });
    let edge = TestEdge::start(&[address.await]).await;
    let client = super::Client::connect(&edge).await;
    // One that sends its body to the end, and one that waits to hear whether it is wanted.
    for sends_all in [true, false] {
        let mut requests = client.0.clone().ready().await.unwrap();
        let (response, mut sending) = requests
            .send_request(request("POST", "http://a.test/"), false)
            .unwrap();
        let some = Bytes::from_static(b"some");
        sending.send_data(some, false).unwrap();
        let (status, _, body) = whole(soon(response).await.unwrap()).await;
        assert_eq!((status, body.as_str()), (413, "big"));
        if sends_all {
            // More than its window: somebody reads it.
            for _ in 0..20 {
                sending.reserve_capacity(100_000);
                let room = std::future::poll_fn(|context| sending.poll_capacity(context));
                let room = soon(room).await.unwrap().unwrap();
                sending.send_data(vec![0; room].into(), false).unwrap();
            }
            sending.send_data(Bytes::new(), true).unwrap();
        } else {
            let reset = std::future::poll_fn(|context| sending.poll_reset(context));
            assert_eq!(soon(reset).await.unwrap(), h2::Reason::NO_ERROR);
        }
    }
}

#[tokio::test]
async fn odd_answers_of_apps_are_those_of_http_1_1() {
    for (bytes, status, headers, body) in [
        (
            "HTTP/1.1 200 OK\r\nX-Bad Line\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
            200,
            Some(("x", "a   b")),
            "ok",
        ),
        (
            "HTTP/1.1 200 OK\r\nX_Y: z\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\r\nuntil the end",
            200,
            Some(("x_y", "z")),
            "until the end",
        ),
        ("HTTP/1.1 204 No Content\r\n\r\n", 204, None, ""),
        (
            "HTTP/1.0 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
            404,
            None,
            "no",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 99\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            200,
            None,
            "ok",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            200,
            None,
            "",
        ),
        ("rubbish\r\n\r\n", 502, None, ""),
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
            502,
            None,
            "",
        ),
    ] {
        let address = backend(move |mut stream| async move {
            head(&mut stream).await;
            stream.write_all(bytes.as_bytes()).await.unwrap();
        });
        let edge = TestEdge::start(&[address.await]).await;
        let client = super::Client::connect(&edge).await;
        let (got, map, text) = client.get(request("GET", "http://a.test/")).await;
        assert_eq!(got, status, "{bytes}");
        if let Some((name, value)) = headers {
            assert_eq!(map[name], value, "{bytes}");
        }
        assert!(!map.contains_key("x-hop"));
        if status < 500 {
            assert_eq!(text, body, "{bytes}");
        }
    }
}

/// What is cut off is never taken for whole.
#[tokio::test]
async fn an_answer_that_breaks_is_reset() {
    for bytes in [
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nonly",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nonly\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nonly\r\nx\r\n",
    ] {
        let address = backend(move |mut stream| async move {
            head(&mut stream).await;
            stream.write_all(bytes.as_bytes()).await.unwrap();
        });
        let edge = TestEdge::start(&[address.await]).await;
        let client = super::Client::connect(&edge).await;
        // The reset may overtake what came before it.
        let error = match client.ask(request("GET", "http://a.test/")).await {
            Err(error) => error,
            Ok(answer) => {
                let mut body = answer.into_body();
                let error = loop {
                    match soon(body.data()).await {
                        Some(Ok(_)) => {}
                        other => break other,
                    }
                };
                error.expect("it ends as if it were whole").unwrap_err()
            }
        };
        assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR), "{bytes}");
        // The connection serves on.
        let (status, ..) = client.get(request("GET", "http://b.test/")).await;
        assert_eq!(status, 404);
    }
}

#[tokio::test]
async fn a_request_goes_to_another_instance_where_that_is_harmless() {
    let requests = Arc::new(AtomicU32::new(0));
    let backends = [
        hangs_up(Arc::clone(&requests)).await,
        replies_with("second").await,
    ];
    let edge = TestEdge::start(&backends).await;
    let client = super::Client::connect(&edge).await;
    for _ in 0..4 {
        assert_eq!(
            client.get(request("GET", "http://a.test/")).await.2,
            "second"
        );
    }
    assert!(requests.swap(0, Ordering::SeqCst) >= 1);
    let post = async || {
        let mut requests = client.0.clone().ready().await.unwrap();
        let (response, mut sending) = requests
            .send_request(request("POST", "http://a.test/"), false)
            .unwrap();
        sending.send_data(Bytes::from_static(b"abc"), true).unwrap();
        whole(soon(response).await.unwrap()).await.0
    };
    let mut statuses = [post().await, post().await];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 502]);
    assert_eq!(requests.load(Ordering::SeqCst), 1);
    let edge = TestEdge::start(&[nobody().await, replies_with("here").await]).await;
    let client = super::Client::connect(&edge).await;
    for _ in 0..4 {
        assert_eq!(client.get(request("GET", "http://a.test/")).await.2, "here");
    }
}

#[tokio::test]
async fn a_request_that_is_taken_back_ends_at_the_instance() {
    let (begun, ended) = (CancellationToken::new(), CancellationToken::new());
    let told = (begun.clone(), ended.clone());
    let address = backend(move |mut stream| {
        let (begun, ended) = told.clone();
        async move {
            head(&mut stream).await;
            begun.cancel();
            let _ = stream.read_u8().await;
            ended.cancel();
        }
    });
    let edge = TestEdge::start(&[address.await]).await;
    let mut wire = Wire::connect(&edge).await;
    wire.send(&get(1)).await;
    soon(begun.cancelled()).await;
    wire.send(&reset(1, 8)).await;
    soon(ended.cancelled()).await;
    until(|| edge.edge.streams.available_permits() == crate::limits::MAX_ALL_STREAMS).await;
}

#[tokio::test]
async fn a_shutdown_lets_requests_finish_and_takes_no_new_ones() {
    let go = CancellationToken::new();
    let edge = TestEdge::start(&[waits_for(go.clone()).await]).await;
    let mut wire = Wire::connect(&edge).await;
    wire.send(&get(1)).await;
    let begun = wire.find(|frame| frame.is(DATA, 1)).await.unwrap();
    assert_eq!(begun.payload, b"begun");
    // A second connection has nothing under way.
    let mut idle = Wire::connect(&edge).await;
    assert!(idle.find(|frame| frame.is(SETTINGS, 0)).await.is_some());
    edge.shutdown.cancel();
    // First: any request that is on its way is taken still; a PING tells when none can be.
    let goaway = wire.find(|frame| frame.kind == GOAWAY).await.unwrap();
    assert_eq!(
        (goaway.code(), &goaway.payload[..4]),
        (0, &[0x7f, 0xff, 0xff, 0xff][..])
    );
    let ping = wire.find(|frame| frame.is(PING, 0)).await.unwrap();
    wire.send(&frame(PING, ACK, 0, &ping.payload)).await;
    let goaway = wire.find(|frame| frame.kind == GOAWAY).await.unwrap();
    assert_eq!(&goaway.payload[..4], [0, 0, 0, 1]);
    let ping = idle.find(|frame| frame.is(PING, 0)).await.unwrap();
    idle.send(&frame(PING, ACK, 0, &ping.payload)).await;
    while idle.next().await.is_some() {}
    assert!(!edge.served.is_finished());
    go.cancel();
    let end = wire.find(Frame::ends_stream).await.unwrap();
    assert_eq!(end.payload, b"done");
    while wire.next().await.is_some() {}
    soon(edge.served).await.unwrap();
}

/// Two clients in one: HTTP/1.1 and HTTP/2 at the same port.
#[tokio::test]
async fn the_port_serves_both_versions() {
    let edge = TestEdge::start(&[replies_with("ok").await]).await;
    for _ in 0..2 {
        assert!(edge.get("a.test").await.ends_with("ok"));
        let client = super::Client::connect(&edge).await;
        assert_eq!(client.get(request("GET", "http://a.test/")).await.2, "ok");
    }
}

#[tokio::test]
async fn the_access_log_and_the_metrics_have_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("access.log");
    let target = crate::AccessLogTarget::File(file.clone());
    let edge = Edge {
        access_log: Some(crate::access_log::AccessLog::open(&target).unwrap()),
        ..Edge::default()
    };
    let edge = TestEdge::of(edge, &[replies_with("four").await], None).await;
    let client = super::Client::connect(&edge).await;
    client.get(request("GET", "http://a.test/p?secret=1")).await;
    let mut line = String::new();
    until(|| {
        line = std::fs::read_to_string(&file).unwrap();
        line.ends_with('\n')
    })
    .await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    for (key, value) in [
        ("method", "GET"),
        ("host", "a.test"),
        ("path", "/p"),
        ("scheme", "http"),
    ] {
        assert_eq!(line[key], value);
    }
    assert_eq!(
        (&line["status"], &line["sent_bytes"]),
        (&200.into(), &4.into())
    );
    let mut registry = prometheus_client::registry::Registry::default();
    edge.edge.metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let counted = "platform_edge_requests_total{app=\"a\",env=\"prod\",status=\"2xx\"} 1";
    assert!(text.contains(counted), "{text}");
}
