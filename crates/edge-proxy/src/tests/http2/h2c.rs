//! Apps that speak HTTP/2 (`protocol = "h2c"`): gRPC from end to end, and clients of every version.

use super::*;

use api::edge::AppProtocol;
use h2::RecvStream;
use h2::server::SendResponse;
use http::HeaderValue;

/// An edge that routes `a.test` to backends that speak HTTP/2.
pub(super) async fn edge_to(backends: &[SocketAddr]) -> TestEdge {
    let edge = TestEdge::start(&[]).await;
    let mut routes = table(2, backends, None);
    let route = routes.routes.get_mut("a.test").unwrap();
    route.protocol = AppProtocol::H2c;
    assert!(edge.edge.routes.take(&routes));
    edge
}

/// An app that treats each request as told, and how many connections it has had.
async fn app<F, Fut>(treat: F) -> (SocketAddr, Arc<AtomicU32>)
where
    F: Fn(Request<RecvStream>, SendResponse<Bytes>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let connections = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&connections);
    let address = backend(move |stream| {
        counted.fetch_add(1, Ordering::SeqCst);
        let treat = treat.clone();
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(treat(request, respond));
            }
        }
    });
    (address.await, connections)
}

/// One that answers with what it was asked, and its body.
async fn tells(mut request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let mut told = format!("{} {}\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        told.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    told.push_str(&text(request.body_mut()).await);
    let response = Response::builder().header("x-app", "1").body(()).unwrap();
    let mut body = respond.send_response(response, false).unwrap();
    body.send_data(told.into(), true).unwrap();
}

/// A server of gRPC that sends each message back, and its status in trailers.
async fn grpc(mut request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    assert_eq!(request.headers()["te"], "trailers");
    assert_eq!(request.headers()["content-type"], "application/grpc");
    let response = || Response::builder().header("content-type", "application/grpc");
    if request.uri().path() == "/shop.Orders/Fails" {
        // Trailers only: there is no message.
        let refused = response()
            .header("grpc-status", "7")
            .header("grpc-message", "not yours")
            .body(())
            .unwrap();
        respond.send_response(refused, true).unwrap();
        return;
    }
    let mut messages = respond
        .send_response(response().body(()).unwrap(), false)
        .unwrap();
    while let Some(message) = request.body_mut().data().await {
        let message = message.unwrap();
        let flow = request.body_mut().flow_control();
        flow.release_capacity(message.len()).unwrap();
        messages.send_data(message, false).unwrap();
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("grpc-message", HeaderValue::from_static(""));
    messages.send_trailers(trailers).unwrap();
}

fn call(method: &str) -> Request<()> {
    Request::post(format!("http://a.test/shop.Orders/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "5S")
        .body(())
        .unwrap()
}

fn message(text: &str) -> Bytes {
    let mut message = vec![0];
    message.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
    message.extend_from_slice(text.as_bytes());
    message.into()
}

async fn begin(
    client: &super::Client,
    request: Request<()>,
) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
    let mut requests = client.0.clone().ready().await.unwrap();
    requests.send_request(request, false).unwrap()
}

#[tokio::test]
async fn grpc_works_from_end_to_end() {
    let (address, connections) = app(grpc).await;
    let edge = edge_to(&[address]).await;
    let client = super::Client::connect(&edge).await;
    // Both directions at once, message by message.
    let (response, mut sending) = begin(&client, call("Follow")).await;
    let mut body = None;
    let mut response = Some(response);
    for text in ["one", "two", "three"] {
        sending.send_data(message(text), false).unwrap();
        if let Some(response) = response.take() {
            let response = soon(response).await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["content-type"], "application/grpc");
            body = Some(response.into_body());
        }
        let body = body.as_mut().unwrap();
        assert_eq!(soon(body.data()).await.unwrap().unwrap(), message(text));
    }
    sending.send_data(Bytes::new(), true).unwrap();
    let mut body = body.unwrap();
    assert!(soon(body.data()).await.is_none());
    let trailers = soon(body.trailers()).await.unwrap().unwrap();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["grpc-message"]),
        (&"0".parse().unwrap(), &HeaderValue::from_static(""))
    );
    // An error has no message and no trailers but its head.
    let (response, mut sending) = begin(&client, call("Fails")).await;
    sending.send_data(message("x"), true).unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!(
        (
            &response.headers()["grpc-status"],
            &response.headers()["grpc-message"]
        ),
        (
            &"7".parse().unwrap(),
            &HeaderValue::from_static("not yours")
        )
    );
    assert!(response.body().is_end_stream());
    // Many at once, from two clients, on one connection to the app.
    let other = super::Client::connect(&edge).await;
    let mut calls = Vec::new();
    for at in 0..80 {
        let client = if at % 2 == 0 {
            client.clone()
        } else {
            other.clone()
        };
        calls.push(tokio::spawn(async move {
            let (response, mut sending) = begin(&client, call("Echo")).await;
            let sent = message(&at.to_string());
            sending.send_data(sent.clone(), true).unwrap();
            let mut body = soon(response).await.unwrap().into_body();
            assert_eq!(soon(body.data()).await.unwrap().unwrap(), sent);
            let trailers = soon(body.trailers()).await.unwrap().unwrap();
            assert_eq!(trailers["grpc-status"], "0");
        }));
    }
    for call in calls {
        soon(call).await.unwrap();
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_client_of_http_1_1_reaches_such_an_app() {
    let (address, connections) = app(tells).await;
    let edge = edge_to(&[address]).await;
    for _ in 0..3 {
        let answer = edge
            .exchange(
                "POST /p?q HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nX-Own: 1\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\r\n\
                 4\r\nbody\r\n0\r\nX-Sum: 1\r\n\r\n",
            )
            .await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        for part in [
            "\r\nx-app: 1\r\n",
            "\r\nTransfer-Encoding: chunked\r\n",
            "POST http://a.test/p?q\n",
            "\nx-own: 1\n",
            "\nx-forwarded-for: 127.0.0.1\n",
            "\nte: trailers\n",
            "\nbody",
        ] {
            assert!(answer.contains(part), "{part}: {answer}");
        }
        for absent in ["x-hop", "\nconnection: ", "\nhost: "] {
            assert!(!answer.contains(absent), "{absent}: {answer}");
        }
        assert!(edge.get("a.test").await.contains("GET http://a.test/x\n"));
        let answer = edge
            .exchange("HEAD / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
            .await;
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_an_app_answers_arrives_as_it_is() {
    let (address, _) = app(|request: Request<RecvStream>, mut respond| async move {
        let response = Response::builder();
        match request.uri().path() {
            "/length" => {
                let response = response.header("content-length", "4").body(()).unwrap();
                let mut body = respond.send_response(response, false).unwrap();
                body.send_data("four".into(), true).unwrap();
            }
            "/nothing" => {
                let response = response.status(204).body(()).unwrap();
                respond.send_response(response, true).unwrap();
            }
            "/hints" => {
                let hints = Response::builder().status(103).header("link", "</a>");
                respond.send_informational(hints.body(()).unwrap()).unwrap();
                respond
                    .send_response(response.body(()).unwrap(), true)
                    .unwrap();
            }
            "/breaks" => {
                let mut body = respond
                    .send_response(response.body(()).unwrap(), false)
                    .unwrap();
                body.send_data("only".into(), false).unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
                body.send_reset(h2::Reason::INTERNAL_ERROR);
            }
            _ => respond.send_reset(h2::Reason::INTERNAL_ERROR),
        }
    })
    .await;
    let edge = edge_to(&[address]).await;
    let client = super::Client::connect(&edge).await;
    let (status, headers, body) = client.get(request("GET", "http://a.test/length")).await;
    assert_eq!(
        (status, body.as_str(), &headers["content-length"]),
        (200, "four", &"4".parse().unwrap())
    );
    let (status, headers, _) = client.get(request("GET", "http://a.test/nothing")).await;
    assert_eq!(
        (status, headers.contains_key("content-length")),
        (204, false)
    );
    let answer = edge
        .exchange("GET /hints HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n"),
        "{answer}"
    );
    assert!(answer.contains("content-length: 0\r\n"), "{answer}");
    let answer = client
        .ask(request("GET", "http://a.test/breaks"))
        .await
        .unwrap();
    let mut body = answer.into_body();
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), "only");
    assert!(soon(body.data()).await.unwrap().is_err());
    let (status, ..) = client.get(request("POST", "http://a.test/else")).await;
    assert_eq!(status, 502);
}

/// A stream that an app refuses was not looked at: another instance gets it, whatever the method is.
#[tokio::test]
async fn a_refused_stream_goes_to_another_instance() {
    let refused = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&refused);
    let (refuses, _) = app(move |_, mut respond| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move { respond.send_reset(h2::Reason::REFUSED_STREAM) }
    })
    .await;
    let (serves, _) = app(tells).await;
    let edge = edge_to(&[refuses, serves]).await;
    let client = super::Client::connect(&edge).await;
    for _ in 0..4 {
        let (status, ..) = client.get(request("POST", "http://a.test/")).await;
        assert_eq!(status, 200);
    }
    // What it got of a body is sent again.
    for _ in 0..4 {
        let (response, mut sending) = begin(&client, request("POST", "http://a.test/")).await;
        sending.send_data("some text".into(), true).unwrap();
        let response = soon(response).await.unwrap();
        assert_eq!(response.status(), 200);
        let told = text(&mut response.into_body()).await;
        assert!(told.ends_with("\nsome text"), "{told}");
    }
    assert!(refused.load(Ordering::SeqCst) >= 4);
}

#[tokio::test]
async fn an_app_that_speaks_something_else_or_is_gone_is_a_502() {
    let (log, _guard) = logged();
    for address in [replies_with("HTTP/1.1").await, nobody().await] {
        let edge = edge_to(&[address]).await;
        let answer = edge.get("a.test").await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        assert!(log.contains(&address.to_string()), "{log}");
    }
    let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
    assert!(
        log.contains("it does not speak HTTP/2 in clear text"),
        "{log}"
    );
}

/// A connection that its app ends is left: who comes next has another.
#[tokio::test]
async fn connections_are_opened_anew_when_the_app_ends_them() {
    let connections = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&connections);
    let address = backend(move |stream| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let (request, respond) = connection.accept().await.unwrap().unwrap();
            connection.graceful_shutdown();
            tokio::spawn(tells(request, respond));
            while connection.accept().await.is_some() {}
        }
    });
    let address = address.await;
    let edge = edge_to(&[address]).await;
    for at in 1..=3 {
        assert!(edge.get("a.test").await.contains("GET http://a.test/x\n"));
        assert_eq!(connections.load(Ordering::SeqCst), at);
        // Until the edge knows of the end.
        soon(async {
            while connections.load(Ordering::SeqCst) == at
                && edge.edge.backends.shared.count(address).await > 0
            {
                edge.edge.backends.sweep();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

/// An app that allows few streams gets as many connections as it takes.
#[tokio::test]
async fn an_app_has_no_more_streams_than_it_allows() {
    let at_once = Arc::new((AtomicU32::new(0), AtomicU32::new(0)));
    let told = Arc::clone(&at_once);
    let address = backend(move |stream| {
        let told = Arc::clone(&told);
        async move {
            let mut builder = h2::server::Builder::new();
            let mut connection = builder
                .max_concurrent_streams(2)
                .handshake::<_, Bytes>(stream)
                .await
                .unwrap();
            told.1.fetch_add(1, Ordering::SeqCst);
            while let Some(Ok((_, mut respond))) = connection.accept().await {
                let told = Arc::clone(&told);
                tokio::spawn(async move {
                    told.0.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    let response = Response::builder().body(()).unwrap();
                    respond.send_response(response, true).unwrap();
                });
            }
        }
    });
    let edge = edge_to(&[address.await]).await;
    let client = super::Client::connect(&edge).await;
    // The first one learns what is allowed.
    client.get(request("GET", "http://a.test/")).await;
    let mut all = Vec::new();
    for _ in 0..10 {
        let client = client.clone();
        all.push(tokio::spawn(async move {
            client.get(request("POST", "http://a.test/")).await.0
        }));
    }
    for one in all {
        assert_eq!(soon(one).await.unwrap(), 200);
    }
    assert_eq!(at_once.0.load(Ordering::SeqCst), 11);
    assert!(at_once.1.load(Ordering::SeqCst) > 1);
}

#[tokio::test]
async fn who_takes_a_request_back_takes_it_back_from_the_app() {
    let (begun, reset) = (CancellationToken::new(), CancellationToken::new());
    let told = (begun.clone(), reset.clone());
    let (address, _) = app(move |_, mut respond| {
        let (begun, reset) = told.clone();
        async move {
            begun.cancel();
            std::future::poll_fn(|context| respond.poll_reset(context))
                .await
                .unwrap();
            reset.cancel();
        }
    })
    .await;
    let edge = edge_to(&[address]).await;
    let client = super::Client::connect(&edge).await;
    let mut requests = client.0.clone().ready().await.unwrap();
    let (response, _) = requests
        .send_request(request("GET", "http://a.test/"), true)
        .unwrap();
    soon(begun.cancelled()).await;
    drop(response);
    soon(reset.cancelled()).await;
}

/// Many large answers at once: a client that takes nothing of its own holds up no other.
#[tokio::test]
async fn a_slow_client_holds_up_no_other_on_the_shared_connection() {
    let (address, connections) = app(|_, mut respond| async move {
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        let mut left = 4 << 20;
        while left > 0 {
            body.reserve_capacity(left);
            let Some(Ok(room)) = std::future::poll_fn(|context| body.poll_capacity(context)).await
            else {
                return;
            };
            let part = room.min(left);
            left -= part;
            if body.send_data(vec![b'x'; part].into(), left == 0).is_err() {
                return;
            }
        }
    })
    .await;
    let edge = edge_to(&[address]).await;
    // None of these reads more than the head.
    let mut slow = Vec::new();
    for _ in 0..20 {
        let client = super::Client::connect(&edge).await;
        slow.push((
            client.ask(request("GET", "http://a.test/")).await.unwrap(),
            client,
        ));
    }
    let client = super::Client::connect(&edge).await;
    let (_, _, body) = client.get(request("GET", "http://a.test/")).await;
    assert_eq!(body.len(), 4 << 20);
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

/// An app that goes while a stream is under way, as nginx after `keepalive_requests` and servers of gRPC at the connection's greatest age: that stream goes on, and
/// whoever comes next has another connection.
#[tokio::test]
async fn a_connection_that_goes_takes_no_request_any_more_and_keeps_what_it_has() {
    let connections = Arc::new(AtomicU32::new(0));
    let finish = Arc::new(tokio::sync::Notify::new());
    let (counted, finished) = (Arc::clone(&connections), Arc::clone(&finish));
    let address = backend(move |stream| {
        counted.fetch_add(1, Ordering::SeqCst);
        let finished = Arc::clone(&finished);
        async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                if request.uri().path() != "/long" {
                    tokio::spawn(tells(request, respond));
                    continue;
                }
                connection.graceful_shutdown();
                let finished = Arc::clone(&finished);
                tokio::spawn(async move {
                    let mut body = respond.send_response(Response::new(()), false).unwrap();
                    body.send_data("begun".into(), false).unwrap();
                    finished.notified().await;
                    body.send_data("ended".into(), true).unwrap();
                });
            }
        }
    });
    let edge = edge_to(&[address.await]).await;
    let client = super::Client::connect(&edge).await;
    let long = client.ask(request("GET", "http://a.test/long")).await;
    let mut long = long.unwrap().into_body();
    assert_eq!(soon(long.data()).await.unwrap().unwrap(), "begun");
    for at in 0..10 {
        let method = if at % 2 == 0 { "GET" } else { "POST" };
        let (status, ..) = client.get(request(method, "http://a.test/")).await;
        assert_eq!(status, 200);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 2);
    finish.notify_one();
    assert_eq!(soon(long.data()).await.unwrap().unwrap(), "ended");
}

/// Reads a frame: its kind, flags, stream and payload. `None`: the other side has closed.
pub(super) async fn read_frame(
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let [a, b, c, kind, flags, number @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some((kind, flags, u32::from_be_bytes(number), payload))
}

/// An app that goes just when a request comes has done nothing of it, and says so: the request has another connection, to the same instance and whatever its method is.
#[tokio::test]
async fn a_request_that_crosses_with_the_end_of_its_connection_is_made_again() {
    let connections = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&connections);
    let address = backend(move |mut stream| {
        let is_first = counted.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            if !is_first {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(tells(request, respond));
                }
                return;
            }
            stream.read_exact(&mut [0; 24]).await.unwrap();
            stream
                .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
                .await
                .unwrap();
            loop {
                match read_frame(&mut stream).await.unwrap() {
                    (4, 0, ..) => stream
                        .write_all(&[0, 0, 0, 4, 1, 0, 0, 0, 0])
                        .await
                        .unwrap(),
                    (6, 0, _, payload) => {
                        let pong = [&[0, 0, 8, 6, 1, 0, 0, 0, 0], &payload[..]].concat();
                        stream.write_all(&pong).await.unwrap();
                    }
                    (1, ..) => break,
                    _ => {}
                }
            }
            let goes = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            stream.write_all(&goes).await.unwrap();
            // Until the edge has closed it.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    let edge = edge_to(&[address.await]).await;
    let client = super::Client::connect(&edge).await;
    let (status, ..) = client.get(request("POST", "http://a.test/")).await;
    assert_eq!(status, 200);
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

/// Requests on one connection that an app suffers to be taken back: with more it ends the connection, as servers do since CVE-2023-44487.
const MOST_TAKEN_BACK: u32 = 100;

/// An app that answers `/long` in two parts, when it may end, and `/slow` never; and what it tells: its connections, and requests that came.
async fn ends_connections_with_many_resets(
    finish: Arc<tokio::sync::Notify>,
) -> (SocketAddr, Arc<(AtomicU32, AtomicU32)>) {
    let told = Arc::new((AtomicU32::new(0), AtomicU32::new(0)));
    let known = Arc::clone(&told);
    let address = backend(move |stream| {
        let (told, finish) = (Arc::clone(&known), Arc::clone(&finish));
        async move {
            told.0.fetch_add(1, Ordering::SeqCst);
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let (taken_back, is_enough) = (Arc::new(AtomicU32::new(0)), CancellationToken::new());
            let serving = async {
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    told.1.fetch_add(1, Ordering::SeqCst);
                    if request.uri().path() == "/slow" {
                        let (taken_back, is_enough) = (Arc::clone(&taken_back), is_enough.clone());
                        tokio::spawn(async move {
                            let reset = std::future::poll_fn(|context| respond.poll_reset(context));
                            let _ = reset.await;
                            if taken_back.fetch_add(1, Ordering::SeqCst) + 1 > MOST_TAKEN_BACK {
                                is_enough.cancel();
                            }
                        });
                        continue;
                    }
                    let finish = Arc::clone(&finish);
                    tokio::spawn(async move {
                        let mut body = respond.send_response(Response::new(()), false).unwrap();
                        body.send_data("begun".into(), false).unwrap();
                        finish.notified().await;
                        // It fails where the connection has ended.
                        let _ = body.send_data("ended".into(), true);
                    });
                }
            };
            is_enough.run_until_cancelled(serving).await;
        }
    });
    (address.await, told)
}

/// Clients that leave have the edge reset their streams. A connection with many of those takes no more, before the app ends it with what others have under way.
#[tokio::test]
async fn clients_that_leave_end_no_stream_of_others() {
    let finish = Arc::new(tokio::sync::Notify::new());
    let (address, told) = ends_connections_with_many_resets(Arc::clone(&finish)).await;
    let edge = edge_to(&[address]).await;
    let client = super::Client::connect(&edge).await;
    let long = client.ask(request("GET", "http://a.test/long")).await;
    let mut long = long.unwrap().into_body();
    assert_eq!(soon(long.data()).await.unwrap().unwrap(), "begun");
    for at in 0..3 * MOST_TAKEN_BACK {
        let leaves = super::Client::connect(&edge).await;
        let mut requests = leaves.0.clone().ready().await.unwrap();
        let slow = request("GET", "http://a.test/slow");
        let (response, _) = requests.send_request(slow, true).unwrap();
        let came = async {
            while told.1.load(Ordering::SeqCst) < at + 2 {
                tokio::task::yield_now().await;
            }
        };
        soon(came).await;
        drop(response);
        let reset = async {
            while edge.edge.backends.shared.streams(address).await > 1 {
                tokio::task::yield_now().await;
            }
        };
        soon(reset).await;
    }
    // Not one for each, either.
    let connections = told.0.load(Ordering::SeqCst);
    assert!((3..=20).contains(&connections), "{connections}");
    finish.notify_one();
    assert_eq!(soon(long.data()).await.unwrap().unwrap(), "ended");
}

/// Clients and apps of gRPC end each message's stream by a DATA frame without data, which is no flood, however many there are on a connection.
#[tokio::test]
async fn any_number_of_streams_ends_with_an_empty_frame() {
    let (address, connections) = app(|mut request: Request<RecvStream>, mut respond| async move {
        let told = text(request.body_mut()).await;
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        if !told.is_empty() {
            body.send_data(told.into(), false).unwrap();
        }
        body.send_data(Bytes::new(), true).unwrap();
    })
    .await;
    let edge = edge_to(&[address]).await;
    let client = super::Client::connect(&edge).await;
    for at in 0..300 {
        let (response, mut sending) = begin(&client, request("POST", "http://a.test/")).await;
        let told = if at % 2 == 0 { "told" } else { "" };
        if !told.is_empty() {
            sending.send_data(told.into(), false).unwrap();
        }
        sending.send_data(Bytes::new(), true).unwrap();
        let mut response = soon(response).await.unwrap();
        assert_eq!(text(response.body_mut()).await, told);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

/// As many small messages at once as the windows allow are no flood.
#[tokio::test]
async fn bursts_of_small_messages_pass() {
    let (address, _) = app(grpc).await;
    let edge = edge_to(&[address]).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(4 << 20);
    let client = super::Client::of(&edge, builder.initial_window_size(1 << 20)).await;
    let mut calls = Vec::new();
    for _ in 0..4 {
        let (response, mut sending) = begin(&client, call("Follow")).await;
        for _ in 0..2000 {
            sending
                .send_data(Bytes::from_static(&[7; 100]), false)
                .unwrap();
        }
        sending.send_data(Bytes::new(), true).unwrap();
        calls.push(response);
    }
    for response in calls {
        let mut body = soon(response).await.unwrap().into_body();
        let mut received = 0;
        while let Some(data) = soon(body.data()).await {
            let data = data.unwrap();
            received += data.len();
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        assert_eq!(received, 200_000);
    }
}

/// An app that fills the windows of several streams by frames of a byte, which their clients do not take, loses its connection: each such frame costs the edge
/// memory beside its byte.
#[tokio::test]
async fn an_app_that_sends_too_many_small_frames_loses_its_connection() {
    use super::wire::{ACK, DATA, END_HEADERS, GOAWAY, HEADERS, PING, SETTINGS, frame, settings};
    const CALM: u8 = 11;
    let window = crate::limits::BACKEND_STREAM_WINDOW;
    let (ended, end) = tokio::sync::oneshot::channel();
    let ended = Arc::new(Mutex::new(Some(ended)));
    let address = backend(move |stream| {
        let ended = Arc::clone(&ended);
        async move {
            let (mut read, mut write) = tokio::io::split(stream);
            write.write_all(&settings(&[])).await.unwrap();
            // One that only tries whether it can connect sends none.
            if read.read_exact(&mut [0; 24]).await.is_err() {
                return;
            }
            while let Some((kind, flags, stream, payload)) = read_frame(&mut read).await {
                match kind {
                    // The windows are those of the edge's SETTINGS from then on.
                    SETTINGS if flags & ACK == 0 => {
                        write
                            .write_all(&frame(SETTINGS, ACK, 0, b""))
                            .await
                            .unwrap();
                    }
                    PING if flags & ACK == 0 => {
                        let pong = frame(PING, ACK, 0, &payload);
                        write.write_all(&pong).await.unwrap();
                    }
                    HEADERS => {
                        // `:status 200` of the static table (RFC 7541, A).
                        let mut answer = frame(HEADERS, END_HEADERS, stream, &[0x88]);
                        for _ in 0..window {
                            answer.extend(frame(DATA, 0, stream, b"x"));
                        }
                        // The edge may end it in the midst of that.
                        let _ = write.write_all(&answer).await;
                    }
                    GOAWAY => {
                        if let Some(ended) = ended.lock().unwrap().take() {
                            ended.send(payload[7]).unwrap();
                        }
                        return;
                    }
                    _ => {}
                }
            }
        }
    });
    let edge = edge_to(&[address.await]).await;
    let mut builder = h2::client::Builder::new();
    let client = super::Client::of(&edge, builder.initial_window_size(0)).await;
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(client.ask(request("GET", "http://a.test/")).await);
    }
    assert_eq!(soon(end).await.unwrap(), CALM);
}
