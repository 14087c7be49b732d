//! Clients' habits: what comes early, late, half or never.

use super::*;

#[tokio::test]
async fn case_an_early_413_reaches_a_client_that_still_sends() {
    for waits in [false, true] {
        // The app answers by the head alone, and closes with the body unread.
        let address = backend(move |mut stream| async move {
            head(&mut stream).await;
            if waits {
                let _ = stream.read_exact(&mut [0; 100_000]).await;
            }
            let answer = "HTTP/1.1 413 Payload Too Large\r\nContent-Length: 8\r\nConnection: close\r\n\r\ntoo big\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
        })
        .await;
        let edge = TestEdge::start(&[address]).await;
        let (mut read, mut write) = edge.connect().await.into_split();
        let sending = tokio::spawn(async move {
            let head = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 50000000\r\n\r\n";
            write.write_all(head.as_bytes()).await.unwrap();
            let piece = [b'x'; 65536];
            // Until the edge has enough of it.
            while write.write_all(&piece).await.is_ok() {}
        });
        let mut answer = Vec::new();
        // It may end by a reset, when all was read.
        let _ = soon(read.read_to_end(&mut answer)).await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(answer.ends_with("too big\n"), "{answer}");
        assert!(answer.contains("Connection: close\r\n"), "{answer}");
        sending.abort();
    }
}

#[tokio::test]
async fn a_client_that_waits_for_100_gets_it_when_an_app_has_the_head() {
    let address = backend(|mut stream| async move {
        let head = head(&mut stream).await;
        assert!(!head.to_lowercase().contains("expect"), "{head}");
        let mut body = [0; 5];
        stream.read_exact(&mut body).await.unwrap();
        // Of the app's own, which comes late.
        stream
            .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
            .await
            .unwrap();
        answer(&mut stream, std::str::from_utf8(&body).unwrap()).await;
    })
    .await;
    let edge = TestEdge::start(&[address]).await;
    let mut stream = BufReader::new(edge.connect().await);
    let head_of = "POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\n";
    stream.write_all(head_of.as_bytes()).await.unwrap();
    assert_eq!(soon(head(&mut stream)).await, "HTTP/1.1 100 Continue\r\n");
    stream.write_all(b"hello").await.unwrap();
    let mut rest = String::new();
    soon(stream.read_to_string(&mut rest)).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200 "), "{rest}");
    assert!(rest.ends_with("hello"), "{rest}");
    // No app: no 100.
    let edge = TestEdge::start(&[nobody().await]).await;
    let answer = edge.exchange(head_of).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}

#[tokio::test]
async fn a_client_that_has_closed_its_sending_side_gets_its_answer() {
    let go = CancellationToken::new();
    let edge = TestEdge::start(&[waits_for(go.clone()).await]).await;
    for request in [
        "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc",
    ] {
        let mut stream = edge.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = vec![0; 15];
        soon(stream.read_exact(&mut answer)).await.unwrap();
        go.cancel();
        soon(stream.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.ends_with(b"begundone"));
    }
    // Within its body, there is nothing to wait for.
    let mut stream = edge.connect().await;
    let half = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 30\r\n\r\nabc";
    stream.write_all(half.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 "),
        "{answer}"
    );
    assert!(!answer.ends_with("done"), "{answer}");
}

#[tokio::test]
async fn a_bad_chunk_of_a_client_is_400_and_is_not_the_apps_fault() {
    let (log, _guard) = logged();
    let requests = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&requests);
    let address = backend(move |mut stream| {
        let seen = Arc::clone(&seen);
        async move {
            head(&mut stream).await;
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            seen.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let edge = TestEdge::start(&[address]).await;
    let mut stream = BufReader::new(edge.connect().await);
    let begin = "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    stream.write_all(begin.as_bytes()).await.unwrap();
    stream.write_all(b"nonsense\r\n").await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("the size of a chunk"), "{answer}");
    let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
    assert!(
        log.contains("a request did not come whole") && !log.contains("WARN"),
        "{log}"
    );
    // The app's connection ended, and nothing was sent again.
    soon(async {
        while requests.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_connection_goes_on_after_a_body_that_the_app_did_not_want() {
    let address = backend(|mut stream| async move {
        if !head(&mut stream).await.is_empty() {
            answer(&mut stream, "unread").await;
        }
        // Until the edge closes.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let edge = TestEdge::start(&[address]).await;
    let mut stream = BufReader::new(edge.connect().await);
    for _ in 0..2 {
        let begin = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 6\r\n\r\n";
        stream.write_all(begin.as_bytes()).await.unwrap();
        let answer = soon(head(&mut stream)).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && !answer.contains("close"),
            "{answer}"
        );
        let mut body = [0; 6];
        soon(stream.read_exact(&mut body)).await.unwrap();
        assert_eq!(&body, b"unread");
        stream.write_all(b"late.\n").await.unwrap();
    }
}

#[tokio::test]
async fn case_an_idle_connection_is_kept_for_more_than_a_minute() {
    let edge = TestEdge::start(&[replies_with("ok").await]).await;
    let mut kept = BufReader::new(edge.connect().await);
    let mut left = BufReader::new(edge.connect().await);
    let mut silent = edge.connect().await;
    let request = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n";
    for stream in [&mut kept, &mut left] {
        stream.write_all(request).await.unwrap();
        soon(head(stream)).await;
        soon(stream.read_exact(&mut [0; 2])).await.unwrap();
    }
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(70)).await;
    tokio::time::resume();
    kept.write_all(request).await.unwrap();
    assert!(soon(head(&mut kept)).await.starts_with("HTTP/1.1 200 "));
    // One that never said anything has ended before; one that is idle for longer ends.
    assert_eq!(soon(silent.read(&mut [0])).await.unwrap(), 0);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(10)).await;
    tokio::time::resume();
    assert_eq!(soon(left.read(&mut [0])).await.unwrap(), 0);
}

#[tokio::test]
async fn an_idle_client_gives_its_connection_to_the_backend_to_others() {
    let connections = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&connections);
    let address = backend(move |mut stream| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            while !head(&mut stream).await.is_empty() {
                answer(&mut stream, "ok").await;
            }
        }
    })
    .await;
    let edge = TestEdge::start(&[address]).await;
    let mut idle = BufReader::new(edge.connect().await);
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        .await
        .unwrap();
    soon(head(&mut idle)).await;
    soon(idle.read_exact(&mut [0; 2])).await.unwrap();
    tokio::time::pause();
    tokio::time::advance(crate::limits::BACKEND_HELD * 2).await;
    tokio::time::resume();
    soon(async {
        while edge.edge.backends.idle_connections() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(edge.get("a.test").await.ends_with("ok"));
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_client_has_its_share_of_the_connections() {
    let limit = rustix::process::Resource::Nofile;
    let most = rustix::process::getrlimit(limit).maximum;
    let all = rustix::process::Rlimit {
        current: most,
        maximum: most,
    };
    rustix::process::setrlimit(limit, all).unwrap();
    let app = replies_with("ok").await;
    let edge = TestEdge::start(&[app]).await;
    let mut open = Vec::new();
    for _ in 0..crate::limits::MAX_CONNECTIONS_PER_CLIENT {
        open.push(edge.connect().await);
    }
    let refused = edge.get("a.test").await;
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    assert!(refused.contains("Retry-After: "), "{refused}");
    drop(open);
    soon(async {
        while !edge.get("a.test").await.ends_with("ok") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // A trusted proxy has any number.
    let edge = TestEdge::trusting(&[app], &["127.0.0.1"]).await;
    let mut open = Vec::new();
    for _ in 0..=crate::limits::MAX_CONNECTIONS_PER_CLIENT {
        open.push(edge.connect().await);
    }
    assert!(edge.get("a.test").await.ends_with("ok"));
}

/// Clients beyond their share are told so, and most of them are not waited for: they take places of others, which they have no right to.
#[tokio::test]
async fn clients_that_are_refused_hold_no_places_of_others() {
    let edge = TestEdge::start(&[replies_with("ok").await]).await;
    let client = "127.0.0.1".parse().unwrap();
    let most = crate::limits::MAX_CONNECTIONS_PER_CLIENT;
    let taken: Vec<_> = (0..most).map(|_| edge.edge.shares.take(client)).collect();
    let mut refused = Vec::new();
    for at in 0..400 {
        let mut stream = edge.connect().await;
        if at % 2 == 0 {
            let ask = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
            stream.write_all(ask).await.unwrap();
        }
        let mut told = [0; 13];
        soon(stream.read_exact(&mut told)).await.unwrap();
        assert_eq!(&told, b"HTTP/1.1 429 ");
        // They do not go.
        refused.push(stream);
    }
    // The time of a place that is waited for does not pass: whoever runs is never idle.
    tokio::time::pause();
    let begun = std::time::Instant::now();
    while edge.edge.metrics.connections.get() > 200 {
        assert!(
            begun.elapsed() < SOON,
            "{} places",
            edge.edge.metrics.connections.get()
        );
        tokio::task::yield_now().await;
    }
    tokio::time::resume();
    drop((refused, taken));
}

#[tokio::test]
async fn a_host_has_its_share_of_the_requests() {
    let edge = TestEdge::start(&[replies_with("ok").await]).await;
    let route = edge.edge.routes.find("a.test").unwrap();
    let most = crate::limits::MAX_IN_FLIGHT_PER_HOST;
    let client = || std::net::IpAddr::from([192, 0, 2, 1]);
    let under_way: Vec<_> = (0..most).map(|_| route.admit(client).unwrap()).collect();
    assert!(route.admit(client).is_err());
    let refused = edge.get("a.test").await;
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(
        refused.contains("too many requests of this host"),
        "{refused}"
    );
    // Another table does not forget them.
    let other = replies_with("other").await;
    edge.edge.routes.take(&table(2, &[other], None));
    assert!(edge.get("a.test").await.starts_with("HTTP/1.1 503 "));
    drop(under_way);
    assert!(edge.get("a.test").await.ends_with("other"));
}

#[tokio::test]
async fn each_request_is_a_line_of_the_access_log() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("access.log");
    let app = backend(|mut stream| async move {
        while !head(&mut stream).await.is_empty() {
            answer(&mut stream, "ok").await;
        }
    })
    .await;
    let target = crate::AccessLogTarget::File(file.clone());
    let edge = TestEdge::of(
        Edge {
            access_log: Some(crate::access_log::AccessLog::open(&target).unwrap()),
            ..Edge::default()
        },
        &[app],
        None,
    )
    .await;
    edge.exchange("GET /p?secret=1 HTTP/1.1\r\nHost: A.test:80\r\nConnection: close\r\n\r\n")
        .await;
    edge.get("b.test").await;
    edge.exchange("GET / HTTP/1.1\r\n\r\n").await;
    let lines: Vec<serde_json::Value> = soon(async {
        loop {
            let text = std::fs::read_to_string(&file).unwrap();
            if text.matches('\n').count() == 3 {
                return text
                    .lines()
                    .map(|line| serde_json::from_str(line).unwrap())
                    .collect();
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let [served, unknown, refused] = &lines[..] else {
        panic!("{lines:?}");
    };
    for (key, expected) in [
        ("client", serde_json::json!("127.0.0.1")),
        ("scheme", serde_json::json!("http")),
        ("method", serde_json::json!("GET")),
        ("host", serde_json::json!("a.test")),
        ("path", serde_json::json!("/p")),
        ("status", serde_json::json!(200)),
        ("received_bytes", serde_json::json!(0)),
        ("sent_bytes", serde_json::json!(2)),
        ("backend", serde_json::json!(app.to_string())),
    ] {
        assert_eq!(served[key], expected, "{key}: {served}");
    }
    assert!(
        served["app_seconds"].as_f64().unwrap() <= served["seconds"].as_f64().unwrap(),
        "{served}"
    );
    assert!(served["time"].as_str().unwrap().ends_with('Z'), "{served}");
    assert_eq!(
        (&unknown["status"], &unknown["host"]),
        (&404.into(), &"b.test".into())
    );
    assert_eq!(unknown.get("app_seconds"), None);
    assert_eq!(
        (&refused["status"], &refused["host"]),
        (&400.into(), &"".into())
    );
    assert!(
        refused["error"].as_str().unwrap().contains("names no host"),
        "{refused}"
    );
    assert_ne!(unknown["request_id"], served["request_id"]);
}

/// The scheme is by what the client came to the proxy, whatever becomes of the request.
#[tokio::test]
async fn the_access_log_has_the_scheme_that_a_trusted_proxy_says() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("access.log");
    let target = crate::AccessLogTarget::File(file.clone());
    let edge = Edge {
        access_log: Some(crate::access_log::AccessLog::open(&target).unwrap()),
        trusted_proxies: TrustedProxies::new(vec!["127.0.0.1".parse().unwrap()]),
        ..Edge::default()
    };
    let edge = TestEdge::of(edge, &[replies_with("ok").await], None).await;
    let asks = [
        ("a.test", "X-Forwarded-Proto: https\r\n"),
        ("b.test", "X-Forwarded-Proto: https\r\n"),
        ("a.test", "X-Forwarded-Proto: https, http\r\n"),
        ("a.test", ""),
        // Each of one connection.
        ("b.test", "X-Forwarded-Proto: https\r\n"),
        ("", "X-Forwarded-Proto: https\r\n"),
    ];
    let asks = asks.map(|(host, line)| format!("GET / HTTP/1.1\r\nHost: {host}\r\n{line}\r\n"));
    let asks = asks.concat();
    edge.exchange(&asks).await;
    let schemes: Vec<String> = soon(async {
        loop {
            let text = std::fs::read_to_string(&file).unwrap();
            if text.matches('\n').count() == 6 {
                let entries = text.lines();
                let entries = entries.map(|line| serde_json::from_str(line).unwrap());
                return entries
                    .map(|entry: serde_json::Value| entry["scheme"].as_str().unwrap().to_owned())
                    .collect();
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    // What cannot be understood says nothing.
    assert_eq!(schemes, ["https", "https", "http", "http", "https", "http"]);
}

/// The clock of timers goes on so far.
async fn later(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_client_that_is_slow_with_its_head_or_body_is_not_waited_for_without_end() {
    let has_head = CancellationToken::new();
    let told = has_head.clone();
    let address = backend(move |mut stream| {
        let told = told.clone();
        async move {
            head(&mut stream).await;
            stream.read_exact(&mut [0; 2]).await.unwrap();
            told.cancel();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    })
    .await;
    let edge = TestEdge::start(&[address]).await;
    let mut slow_head = edge.connect().await;
    slow_head
        .write_all(b"GET / HTTP/1.1\r\nHost: a.t")
        .await
        .unwrap();
    let mut slow_body = edge.connect().await;
    let begin = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nab";
    slow_body.write_all(begin.as_bytes()).await.unwrap();
    soon(has_head.cancelled()).await;
    later(31).await;
    assert_eq!(soon(slow_head.read(&mut [0])).await.unwrap(), 0);
    later(30).await;
    let mut answer = String::new();
    soon(slow_body.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[tokio::test]
async fn a_client_that_reads_nothing_holds_a_bounded_part_of_its_answer() {
    const BYTES: usize = 64 << 20;
    let written = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&written);
    let address = backend(move |mut stream| {
        let counted = Arc::clone(&counted);
        async move {
            head(&mut stream).await;
            let start = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n");
            stream.write_all(start.as_bytes()).await.unwrap();
            let piece = vec![b'x'; 1 << 16];
            for _ in 0..BYTES >> 16 {
                stream.write_all(&piece).await.unwrap();
                counted.fetch_add(1 << 16, Ordering::SeqCst);
            }
        }
    })
    .await;
    let edge = TestEdge::start(&[address]).await;
    let mut stream = edge.connect().await;
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    // Until nothing moves any more.
    let mut before = 0;
    soon(async {
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = written.load(Ordering::SeqCst);
            if now > 0 && now == before {
                return;
            }
            before = now;
        }
    })
    .await;
    // What the kernel has of two connections, and the edge's buffer.
    assert!(before < 40 << 20, "{before} bytes were taken");
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.len() > BYTES, "{}", answer.len());
}
