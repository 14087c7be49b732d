//! Instances that refuse, break or are slow: who gets the requests meanwhile.

use std::time::Instant;

use super::*;
use crate::limits::{FIRST_RETRIES, RETRIES_PER_SECOND, RETRY_PERCENT};

async fn listen_at(address: SocketAddr, text: &'static str) {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            tokio::spawn(async move {
                while !head(&mut stream).await.is_empty() {
                    answer(&mut stream, text).await;
                }
            });
        }
    });
}

#[tokio::test]
async fn an_instance_that_refuses_gets_nothing_until_a_probe_reaches_it() {
    let (dead, alive) = (nobody().await, replies_with("alive").await);
    let edge = TestEdge::start(&[dead, alive]).await;
    for _ in 0..4 {
        assert!(edge.get("a.test").await.ends_with("alive"));
    }
    let route = edge.edge.routes.find("a.test").unwrap();
    let refuses = &route.upstreams[0];
    assert!(refuses.is_out() && !route.upstreams[1].is_out());
    // Without a request: by a probe.
    listen_at(dead, "back").await;
    soon(async {
        while refuses.is_out() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let answer = edge.get("a.test").await;
        seen.push(answer.rsplit("\r\n").next().unwrap().to_owned());
    }
    seen.sort();
    assert_eq!(seen, ["alive", "back"]);
}

#[tokio::test]
async fn where_all_refuse_they_are_asked_all_the_same() {
    let dead = nobody().await;
    let edge = TestEdge::start(&[dead]).await;
    assert!(edge.get("a.test").await.starts_with("HTTP/1.1 502 "));
    let route = edge.edge.routes.find("a.test").unwrap();
    assert!(route.upstreams[0].is_out());
    listen_at(dead, "back").await;
    // Whether a probe was first or not.
    assert!(edge.get("a.test").await.ends_with("back"));
    assert!(!route.upstreams[0].is_out());
}

#[tokio::test]
async fn an_app_that_fails_does_not_get_three_times_its_load() {
    let tries = Arc::new(AtomicU32::new(0));
    let mut backends = Vec::new();
    for _ in 0..3 {
        let tries = Arc::clone(&tries);
        let breaks = backend(move |mut stream| {
            let tries = Arc::clone(&tries);
            async move {
                if !head(&mut stream).await.is_empty() {
                    tries.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        backends.push(breaks.await);
    }
    let edge = TestEdge::start(&backends).await;
    let begun = Instant::now();
    let requests: u64 = 200;
    for _ in 0..requests {
        assert!(edge.get("a.test").await.starts_with("HTTP/1.1 502 "));
    }
    let by_time = begun.elapsed().as_millis() * u128::from(RETRIES_PER_SECOND) / 1000 + 1;
    let most = u128::from(requests + FIRST_RETRIES + requests * RETRY_PERCENT / 100) + by_time;
    let tries = u128::from(tries.load(Ordering::SeqCst));
    assert!(tries > u128::from(requests), "none was tried again");
    assert!(tries <= most, "{tries} tries, {most} at most");
}

#[tokio::test]
async fn an_instance_that_is_busy_is_passed_over() {
    let go = CancellationToken::new();
    let slow = waits_for(go.clone()).await;
    let edge = TestEdge::start(&[slow, replies_with("quick").await]).await;
    let mut waiting = begun(&edge).await;
    let route = edge.edge.routes.find("a.test").unwrap();
    assert_eq!(route.upstreams[0].load(), 1);
    // Of two, the other one is drawn half of the time at least, or has its turn.
    let mut quick = 0;
    for _ in 0..40 {
        let mut stream = edge.connect().await;
        let request = b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut first = vec![0; 60];
        let read = soon(stream.read(&mut first)).await.unwrap();
        quick += u32::from(!String::from_utf8_lossy(&first[..read]).contains("begun"));
    }
    assert!(quick >= 24, "{quick} of 40");
    go.cancel();
    let mut rest = String::new();
    soon(waiting.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "done");
    soon(async {
        while route.upstreams.iter().any(|upstream| upstream.load() > 0) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
