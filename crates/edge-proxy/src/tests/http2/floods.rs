//! Clients that ask for work without end, or take nothing: each is cut off, or costs a bounded amount, and others are served meanwhile.

use super::wire::*;
use super::*;

const CALM: u32 = 11;

/// Sends this again and again until the edge ends the connection; returns the code of its GOAWAY, if that came through.
async fn flood(edge: &TestEdge, begin: &[u8], again: impl Fn(u32) -> Vec<u8>) -> Option<u32> {
    let mut wire = Wire::connect(edge).await;
    wire.send(begin).await;
    let (mut read, mut write) = tokio::io::split(wire.0);
    // A client that reads, so that its answers are no reason to wait.
    let reading = tokio::spawn(async move {
        let mut goaway = None;
        let mut head = [0; 9];
        while read.read_exact(&mut head).await.is_ok() {
            let [a, b, c, kind, ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            if read.read_exact(&mut payload).await.is_err() {
                break;
            }
            if kind == GOAWAY {
                goaway = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
        goaway
    });
    soon(async {
        for at in 0_u32.. {
            let mut bytes = Vec::new();
            for part in 0..50 {
                bytes.extend(again(50 * at + part));
            }
            if write.write_all(&bytes).await.is_err() || reading.is_finished() {
                return;
            }
        }
    })
    .await;
    soon(reading).await.unwrap()
}

async fn is_served(edge: &TestEdge) {
    let client = super::Client::connect(edge).await;
    let (status, _, body) = client.get(request("GET", "http://a.test/")).await;
    assert_eq!((status, body.as_str()), (200, "ok"));
}

/// What is sent again, by how often it was.
type Again = Box<dyn Fn(u32) -> Vec<u8>>;

#[tokio::test]
async fn floods_of_frames_end_the_connection() {
    let edge = TestEdge::start(&[replies_with("ok").await]).await;
    let open = post(1);
    let none: &[u8] = &[];
    let many = |frame: Vec<u8>| -> Again { Box::new(move |_| frame.clone()) };
    let block_begins = frame(HEADERS, 0, 1, &block(GET));
    let rows: Vec<(&str, &[u8], Again)> = vec![
        ("PING", none, many(frame(PING, 0, 0, b"01234567"))),
        (
            "PING that was never sent",
            none,
            many(frame(PING, ACK, 0, b"01234567")),
        ),
        ("SETTINGS", none, many(settings(&[(4, 1000)]))),
        (
            "PRIORITY",
            none,
            many(frame(PRIORITY, 0, 9, &[0, 0, 0, 0, 1])),
        ),
        ("WINDOW_UPDATE", none, many(window_update(0, 1))),
        ("unknown", none, many(frame(99, 0, 0, b""))),
        ("empty DATA", &open, many(frame(DATA, 0, 1, b""))),
        (
            "padded empty DATA",
            &open,
            many(frame(DATA, PADDED, 1, &[0])),
        ),
        (
            "CONTINUATION",
            &block_begins,
            many(frame(CONTINUATION, 0, 1, b"")),
        ),
        (
            "CONTINUATION with headers",
            &block_begins,
            many(frame(CONTINUATION, 0, 1, &block(&[("x", "y")]))),
        ),
        (
            "rapid reset",
            none,
            Box::new(|at| [get(2 * at + 1), reset(2 * at + 1, 8)].concat()),
        ),
        (
            "rapid reset by a window of nothing",
            none,
            Box::new(|at| [post(2 * at + 1), window_update(2 * at + 1, 0)].concat()),
        ),
        (
            "malformed requests",
            none,
            Box::new(|at| headers(END_HEADERS | END_STREAM, 2 * at + 1, &[("X", "y")])),
        ),
    ];
    for (name, begin, again) in rows {
        let code = flood(&edge, begin, again).await;
        // Some attacks are over before the GOAWAY is read: what they still send makes the kernel reset the connection.
        assert!(
            code.is_none_or(|code| [1, CALM].contains(&code)),
            "{name}: {code:?}"
        );
        is_served(&edge).await;
    }
    until(|| edge.edge.streams.available_permits() == crate::limits::MAX_ALL_STREAMS).await;
}

/// One request after the other, each taken back when it is under way at the instance: none is waited for.
#[tokio::test]
async fn requests_that_are_taken_back_one_by_one_end_the_connection_too() {
    let requests = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&requests);
    let silent = backend(move |mut stream| {
        let counted = Arc::clone(&counted);
        async move {
            if !head(&mut stream).await.is_empty() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
            let _ = stream.read_u8().await;
        }
    });
    let edge = TestEdge::start(&[silent.await]).await;
    let mut wire = Wire::connect(&edge).await;
    let most = u32::try_from(crate::limits::MAX_RESETS).unwrap() + 1;
    for at in 0..most {
        wire.send(&get(2 * at + 1)).await;
        until(|| requests.load(Ordering::SeqCst) > at).await;
        wire.send(&reset(2 * at + 1, 8)).await;
    }
    assert_eq!(wire.goaway().await, Some(CALM));
    assert_eq!(requests.load(Ordering::SeqCst), most);
}

/// As calls of gRPC end whose answers are a stream.
#[tokio::test]
async fn streams_that_are_reset_when_their_answer_has_begun_are_no_flood() {
    let endless = backend(|mut stream| async move {
        head(&mut stream).await;
        let begin = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n";
        let _ = stream.write_all(begin.as_bytes()).await;
        let _ = stream.read_u8().await;
    });
    let edge = TestEdge::start(&[endless.await]).await;
    let mut wire = Wire::connect(&edge).await;
    let count = u32::try_from(crate::limits::MAX_RESETS).unwrap() + 100;
    for at in 0..count {
        let stream = 2 * at + 1;
        wire.send(&get(stream)).await;
        let answer = wire.find(|frame| frame.is(HEADERS, stream)).await;
        assert!(answer.is_some(), "the connection ended at request {at}");
        wire.send(&reset(stream, 8)).await;
    }
    wire.send(&get(2 * count + 1)).await;
    let answer = wire.find(|frame| frame.is(HEADERS, 2 * count + 1)).await;
    assert!(answer.is_some());
}

#[tokio::test]
async fn a_client_that_has_its_pings_answered_and_asks_for_something_is_served() {
    let edge = TestEdge::start(&[replies_with("ok").await]).await;
    let mut wire = Wire::connect(&edge).await;
    for at in 0..1500 {
        let stream = 2 * at + 1;
        wire.send(
            &[
                frame(PING, 0, 0, b"01234567"),
                window_update(0, 1),
                get(stream),
            ]
            .concat(),
        )
        .await;
        let end = wire.find(|frame| frame.stream == stream && frame.ends_stream());
        assert!(end.await.is_some(), "{at}");
    }
}

/// Answers that nobody takes hold their streams, and no others; what waits for the client is not read from the instance.
#[tokio::test]
async fn a_client_without_a_window_costs_what_was_read_and_no_more() {
    const BYTES: u64 = 64 << 20;
    let sent = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let large = backend(move |mut stream| {
        let counted = Arc::clone(&counted);
        async move {
            head(&mut stream).await;
            let start = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n");
            stream.write_all(start.as_bytes()).await.unwrap();
            let piece = [b'x'; 16 * 1024];
            while stream.write_all(&piece).await.is_ok() {
                counted.fetch_add(piece.len() as u64, Ordering::SeqCst);
            }
        }
    });
    let edge = TestEdge::start(&[large.await]).await;
    let mut wire = Wire::raw(&edge).await;
    // The client takes nothing of the first 8 answers, and then all of one.
    let begin = [PREFACE, &settings(&[(4, 0)]), &window_update(0, 1 << 30)].concat();
    wire.send(&begin).await;
    for at in 0..8 {
        wire.send(&get(2 * at + 1)).await;
        let head = wire.find(|frame| frame.is(HEADERS, 2 * at + 1)).await;
        assert!(head.is_some());
    }
    wire.send(&[get(17), window_update(17, 1 << 30)].concat())
        .await;
    let mut taken = 0;
    while taken < BYTES {
        let frame = wire.find(|frame| frame.kind == DATA).await.unwrap();
        assert_eq!(frame.stream, 17);
        taken += frame.payload.len() as u64;
    }
    // What the kernel holds of the 8 others is all that was read of them.
    let of_others = sent.load(Ordering::SeqCst) - BYTES;
    assert!(of_others < 8 * (8 << 20), "{of_others}");
    // A client that is gone leaves nothing behind.
    drop(wire);
    until(|| edge.edge.streams.available_permits() == crate::limits::MAX_ALL_STREAMS).await;
}

/// A body that the instance does not read is not read from the client beyond the window, and other streams of the connection go on.
#[tokio::test]
async fn an_instance_that_takes_nothing_holds_up_its_own_stream_only() {
    let address = backend(|mut stream| async move {
        let head = head(&mut stream).await;
        if head.starts_with("POST") {
            // It holds the connection, and reads nothing.
            std::future::pending::<()>().await;
        }
        answer(&mut stream, "ok").await;
    });
    let edge = TestEdge::start(&[address.await]).await;
    let client = super::Client::connect(&edge).await;
    let mut requests = client.0.clone().ready().await.unwrap();
    let (_response, mut body) = requests
        .send_request(request("POST", "http://a.test/"), false)
        .unwrap();
    // Until the window of the stream is not opened any more.
    let mut sent = 0_usize;
    loop {
        body.reserve_capacity(16 * 1024);
        let room = tokio::time::timeout(
            Duration::from_millis(500),
            std::future::poll_fn(|context| body.poll_capacity(context)),
        );
        let Ok(room) = room.await else { break };
        let room = room.unwrap().unwrap();
        body.send_data(Bytes::from(vec![b'x'; room]), false)
            .unwrap();
        sent += room;
        assert!(sent < 64 << 20, "all of it is taken");
    }
    let (status, _, text) = client.get(request("GET", "http://a.test/")).await;
    assert_eq!((status, text.as_str()), (200, "ok"));
}

/// After how many seconds the edge closes on a client that sends these bytes and no more, and what it said.
async fn closes_after(bytes: &[u8]) -> (u64, Vec<u8>) {
    let edge = TestEdge::start(&[]).await;
    let mut wire = Wire::raw(&edge).await;
    wire.0.write_all(bytes).await.unwrap();
    let begun = tokio::time::Instant::now();
    let mut rest = Vec::new();
    let _ = wire.0.read_to_end(&mut rest).await;
    (begun.elapsed().as_secs(), rest)
}

#[tokio::test(start_paused = true)]
async fn a_preface_has_the_time_of_a_head() {
    let (seconds, _) = closes_after(&PREFACE[..20]).await;
    assert_eq!(seconds, 30);
}

#[tokio::test(start_paused = true)]
async fn a_block_has_the_time_of_a_head() {
    let half = frame(HEADERS, END_STREAM, 1, &block(GET));
    let (seconds, _) = closes_after(&[PREFACE, &settings(&[]), &half].concat()).await;
    assert_eq!(seconds, 30);
}

#[tokio::test(start_paused = true)]
async fn a_frame_has_the_time_of_a_head() {
    let half = get(1);
    let (seconds, _) = closes_after(&[PREFACE, &settings(&[]), &half[..12]].concat()).await;
    assert_eq!(seconds, 30);
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_requests_is_told_that_it_ends() {
    let (seconds, rest) = closes_after(&[PREFACE, &settings(&[])].concat()).await;
    assert!((75..=80).contains(&seconds), "{seconds}");
    let goaway = [0, 0, 8, GOAWAY, 0];
    assert!(rest.windows(5).any(|begin| begin == goaway), "{rest:?}");
}

/// A client whose request is under way is asked whether it is there.
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_answer_a_ping_is_gone() {
    let silent = backend(|mut stream| async move {
        head(&mut stream).await;
        let start = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
        stream.write_all(start.as_bytes()).await.unwrap();
        let _ = stream.read_u8().await;
    });
    let edge = TestEdge::start(&[silent.await]).await;
    let mut wire = Wire::connect(&edge).await;
    wire.0.write_all(&get(1)).await.unwrap();
    // It answers a few, and then no more.
    for _ in 0..4 {
        let ping = loop {
            let mut head = [0; 9];
            wire.0.read_exact(&mut head).await.unwrap();
            let [a, b, c, kind, flags, ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            wire.0.read_exact(&mut payload).await.unwrap();
            if kind == PING && flags & ACK == 0 {
                break payload;
            }
        };
        wire.0.write_all(&frame(PING, ACK, 0, &ping)).await.unwrap();
    }
    let begun = tokio::time::Instant::now();
    let mut rest = Vec::new();
    let _ = wire.0.read_to_end(&mut rest).await;
    let seconds = begun.elapsed().as_secs();
    assert!((89..=91).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn a_client_has_its_share_of_streams_and_connections() {
    let edge = TestEdge::start(&[replies_with("ok").await]).await;
    let client = "127.0.0.1".parse().unwrap();
    let shares = edge.edge.shares.clone();
    let most = crate::limits::MAX_CONNECTIONS_PER_CLIENT;
    let wire = super::Client::connect(&edge).await;
    wire.get(request("GET", "http://a.test/")).await;
    // All but the connection's are taken.
    let mut taken: Vec<_> = (1..most).map(|_| shares.take(client)).collect();
    assert!(taken.iter().all(Option::is_some));
    let (status, headers, _) = wire.get(request("GET", "http://a.test/")).await;
    assert_eq!(
        (status, headers["retry-after"].to_str().unwrap()),
        (429, "2")
    );
    // Nor do they take the places of others, also where what they are told is not read.
    let places = edge.edge.streams.available_permits();
    let mut deaf = h2::client::Builder::new();
    let unread = super::Client::of(&edge, deaf.initial_window_size(0)).await;
    taken.pop();
    let mut refused = Vec::new();
    for _ in 0..100 {
        let mut requests = unread.0.clone().ready().await.unwrap();
        let (response, _) = requests
            .send_request(request("GET", "http://a.test/"), true)
            .unwrap();
        refused.push(soon(response).await.unwrap().status());
    }
    assert!(refused.iter().all(|status| *status == 429), "{refused:?}");
    assert_eq!(edge.edge.streams.available_permits(), places);
    drop(taken);
    let (status, ..) = wire.get(request("GET", "http://a.test/")).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn where_there_is_no_room_for_more_streams_the_next_is_refused_unseen() {
    let edge = TestEdge::start(&[replies_with("ok").await]).await;
    let most = u32::try_from(crate::limits::MAX_ALL_STREAMS).unwrap();
    let all = Arc::clone(&edge.edge.streams)
        .try_acquire_many_owned(most)
        .unwrap();
    let client = super::Client::connect(&edge).await;
    let error = client
        .ask(request("GET", "http://a.test/"))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Some(h2::Reason::REFUSED_STREAM));
    drop(all);
    is_served(&edge).await;
}

/// A request whose body is so many DATA frames of a byte.
fn in_single_bytes(stream: u32, frames: usize) -> Vec<u8> {
    let mut bytes = post(stream);
    for _ in 1..frames {
        bytes.extend(frame(DATA, 0, stream, b"x"));
    }
    bytes.extend(frame(DATA, END_STREAM, stream, b"x"));
    bytes
}

#[tokio::test]
async fn a_connection_on_which_thousands_of_frames_have_waited_ends_when_it_is_idle() {
    let edge = TestEdge::start(&[replies_with("ok").await]).await;
    let all = edge.edge.waiting_frames.available_permits();
    let mut wire = Wire::connect(&edge).await;
    // As many as most clients ever send at once are nothing.
    wire.send(&in_single_bytes(1, 400)).await;
    let is_answer = |stream| move |frame: &Frame| frame.kind == HEADERS && frame.stream == stream;
    wire.find(is_answer(1)).await.unwrap();
    wire.send(&in_single_bytes(3, 10_000)).await;
    wire.find(is_answer(3)).await.unwrap();
    let left = edge.edge.waiting_frames.available_permits();
    assert!(left < all - 1000, "{left} of {all}");
    // It is told that it ends (NO_ERROR), and gives all back.
    assert_eq!(wire.goaway().await, Some(0));
    while wire.next().await.is_some() {}
    until(|| edge.edge.waiting_frames.available_permits() == all).await;
    is_served(&edge).await;
}

#[tokio::test]
async fn where_there_is_no_room_for_more_waiting_frames_a_connection_ends() {
    let edge = TestEdge::start(&[replies_with("ok").await]).await;
    let all = u32::try_from(edge.edge.waiting_frames.available_permits()).unwrap();
    let _taken = edge.edge.waiting_frames.try_acquire_many(all).unwrap();
    let mut wire = Wire::connect(&edge).await;
    wire.send(&in_single_bytes(1, 10_000)).await;
    assert_eq!(wire.goaway().await, Some(CALM));
    is_served(&edge).await;
}
