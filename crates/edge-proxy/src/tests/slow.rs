//! Clients that are slow on purpose, and those that are not. Time stands still in these tests but when all wait for it.

use std::io;

use tokio::io::{DuplexStream, duplex};

use super::*;
use crate::connection;
use crate::forward::{Ends, Scheme};
use crate::limits::{MIN_BYTES_PER_SECOND, SLOW_GRACE};

/// A connection of a client in memory, which holds so many bytes each way, to an edge that leads to this backend.
fn client_of(backend: SocketAddr, bytes: usize) -> DuplexStream {
    let edge = Arc::new(Edge::default());
    edge.routes.take(&table(1, &[backend], None));
    let (client, near) = duplex(bytes);
    let ends = Ends {
        client: ([192, 0, 2, 1], 1000).into(),
        edge: ([192, 0, 2, 2], 80).into(),
        scheme: Scheme::Http,
    };
    tokio::spawn(connection::serve(
        edge,
        near,
        ends,
        connection::Taken::Nothing,
        CancellationToken::new(),
    ));
    client
}

/// Takes a whole body, then answers.
async fn takes_all() -> SocketAddr {
    backend(|mut stream| async move {
        let head = head(&mut stream).await;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        let length: u64 = length.unwrap().parse().unwrap();
        let mut body = stream.take(length);
        if tokio::io::copy(&mut body, &mut tokio::io::sink())
            .await
            .unwrap()
            == length
        {
            answer(&mut body.into_inner(), "all of it").await;
        }
    })
    .await
}

/// Sends a body of so many pieces, one every 50 s; what is answered, and after how many seconds.
async fn sends(pieces: usize, bytes_each: usize) -> (String, u64) {
    let backend = takes_all().await;
    tokio::time::pause();
    let (mut read, mut write) = tokio::io::split(client_of(backend, 1 << 20));
    let begun = crate::timer::now();
    let length = pieces * bytes_each;
    let sending = tokio::spawn(async move {
        let head = format!(
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        write.write_all(head.as_bytes()).await?;
        for _ in 0..pieces {
            tokio::time::sleep(Duration::from_secs(50)).await;
            write.write_all(&vec![b'x'; bytes_each]).await?;
        }
        Ok::<_, io::Error>(())
    });
    let mut answer = String::new();
    let _ = read.read_to_string(&mut answer).await;
    let took = (crate::timer::now() - begun).as_secs();
    sending.abort();
    (answer, took)
}

#[tokio::test]
async fn a_body_that_drips_ends() {
    let (answer, took) = sends(1000, 1).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    let grace = SLOW_GRACE.as_secs();
    assert!((grace..grace + 20).contains(&took), "{took} s");
}

#[tokio::test]
async fn a_body_of_the_least_rate_comes_through() {
    let bytes_each = usize::try_from(MIN_BYTES_PER_SECOND).unwrap() * 50;
    let (answer, took) = sends(40, bytes_each).await;
    assert!(answer.ends_with("all of it"), "{answer}");
    assert!(took >= 2000, "{took} s");
}

/// Asks for much, and reads so many bytes every 50 s, so often at most; how much came, and after how many seconds.
async fn reads(pieces: usize, bytes_each: usize) -> (usize, u64) {
    const MUCH: usize = 400_000;
    let backend = backend(|mut stream| async move {
        head(&mut stream).await;
        answer(&mut stream, &"x".repeat(MUCH)).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    tokio::time::pause();
    let mut client = client_of(backend, 1024);
    let ask = b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    client.write_all(ask).await.unwrap();
    let begun = crate::timer::now();
    let mut came = 0;
    let mut piece = vec![0; bytes_each];
    for _ in 0..pieces {
        match client.read_exact(&mut piece).await {
            Ok(bytes) => came += bytes,
            Err(_) => break,
        }
        tokio::time::sleep(Duration::from_secs(50)).await;
    }
    (came, (crate::timer::now() - begun).as_secs())
}

#[tokio::test]
async fn a_client_that_takes_an_answer_drop_by_drop_is_cut_off() {
    let (came, took) = reads(1000, 100).await;
    assert!(came < 20_000, "{came}");
    // What was on its way is read still, at the same pace.
    assert!(took < 1000, "{took} s");
}

#[tokio::test]
async fn a_client_that_takes_an_answer_at_the_least_rate_gets_it() {
    let bytes_each = usize::try_from(MIN_BYTES_PER_SECOND).unwrap() * 50;
    let (came, took) = reads(33, bytes_each).await;
    assert_eq!(came, 33 * bytes_each);
    assert!(took >= 1500, "{took} s");
}

#[tokio::test]
async fn an_app_may_be_silent_for_as_long_as_it_likes_within_its_answer() {
    let backend = backend(|mut stream| async move {
        head(&mut stream).await;
        let begin = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
        stream.write_all(begin.as_bytes()).await.unwrap();
        for number in 0..5 {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            let event = format!("data: {number}\n\n");
            stream.write_all(event.as_bytes()).await.unwrap();
        }
    })
    .await;
    tokio::time::pause();
    let mut client = client_of(backend, 1024);
    let ask = b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    client.write_all(ask).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("data: 4\n\n"), "{answer}");
}
