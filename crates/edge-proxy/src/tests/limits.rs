//! What the settings of a route say: where a client goes, how much may be under way, how often a client may ask, how long its connection is kept.

use model::{RateLimit, RouteSettings};

use super::*;

fn sticky() -> RouteSettings {
    RouteSettings {
        sticky: true,
        ..RouteSettings::default()
    }
}

/// The cookie that an answer sets, and what was answered.
fn cookie_and_text(answer: &str) -> (Option<String>, String) {
    let line = answer
        .lines()
        .find_map(|line| line.strip_prefix("Set-Cookie: "));
    let pair = line.map(|line| line.split(';').next().unwrap().to_owned());
    (pair, answer.rsplit("\r\n").next().unwrap().to_owned())
}

async fn get_with(edge: &TestEdge, more: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nHost: a.test\r\n{more}Connection: close\r\n\r\n");
    edge.exchange(&request).await
}

#[tokio::test]
async fn a_client_goes_to_the_instance_that_its_cookie_names() {
    let all = [
        replies_with("one").await,
        replies_with("two").await,
        replies_with("three").await,
    ];
    let edge = TestEdge::with_settings(&all, sticky()).await;
    let first = get_with(&edge, "").await;
    assert!(
        first.contains("; Path=/; HttpOnly; SameSite=Lax\r\n"),
        "{first}"
    );
    assert!(first.contains("\r\n\r\none"), "{first}");
    let (cookie, text) = cookie_and_text(&first);
    let with = format!("Cookie: a=b; {}\r\nX: y\r\n", cookie.unwrap());
    // Also at another edge, which knows the instances in another order, and more of them.
    let mut others = [all[2], all[0], all[1], replies_with("four").await];
    others.reverse();
    let other = TestEdge::with_settings(&others, sticky()).await;
    for edge in [&edge, &other] {
        for _ in 0..4 {
            assert_eq!(
                cookie_and_text(&get_with(edge, &with).await),
                (None, text.clone())
            );
        }
    }
    // Who has none has a turn; who has a wrong one is given another.
    for wrong in [
        "",
        "Cookie: platform_sticky=nonsense\r\n",
        "Cookie: \u{e9};=;;\r\n",
    ] {
        assert!(cookie_and_text(&get_with(&edge, wrong).await).0.is_some());
    }
    // Its instance is gone.
    edge.edge.routes.take(&table_with(2, &all[1..], sticky()));
    let (cookie, text) = cookie_and_text(&get_with(&edge, &with).await);
    assert!(cookie.is_some() && text != "one", "{text}");
}

#[tokio::test]
async fn a_client_whose_instance_refuses_goes_to_another_from_then_on() {
    let (dead, alive) = (nobody().await, replies_with("alive").await);
    let edge = TestEdge::with_settings(&[dead, alive], sticky()).await;
    let route = edge.edge.routes.find("a.test").unwrap();
    let cookie = route.cookies.as_ref().unwrap().set(0, false).unwrap();
    let with = format!("Cookie: {}\r\n", cookie.split(';').next().unwrap());
    for _ in 0..2 {
        let (cookie, text) = cookie_and_text(&get_with(&edge, &with).await);
        assert_eq!(text, "alive");
        assert!(cookie.is_some());
    }
}

#[tokio::test]
async fn the_cookie_is_for_https_alone_where_the_client_came_by_it() {
    let backend = replies_with("one").await;
    let proxies = TrustedProxies::new(vec!["127.0.0.1".parse().unwrap()]);
    let edge = Edge {
        trusted_proxies: proxies,
        ..Edge::default()
    };
    let edge = TestEdge::with_table(edge, table_with(1, &[backend], sticky())).await;
    let by_https = get_with(&edge, "X-Forwarded-Proto: https\r\n").await;
    assert!(
        by_https.contains("; SameSite=Lax; Secure\r\n"),
        "{by_https}"
    );
    let by_http = get_with(&edge, "").await;
    assert!(by_http.contains("; SameSite=Lax\r\n"), "{by_http}");
}

#[tokio::test]
async fn a_client_that_asks_too_often_is_told_when_it_may_again() {
    let settings = RouteSettings {
        rate_limit: Some(RateLimit {
            requests_per_second: 1,
            burst: 3,
        }),
        ..RouteSettings::default()
    };
    let backend = replies_with("one").await;
    let proxies = TrustedProxies::new(vec!["127.0.0.1".parse().unwrap()]);
    let edge = Edge {
        trusted_proxies: proxies,
        ..Edge::default()
    };
    let edge = TestEdge::with_table(edge, table_with(1, &[backend], settings)).await;
    let get = async |client: &str| get_with(&edge, &format!("X-Forwarded-For: {client}\r\n")).await;
    let mut refused = None;
    for _ in 0..10 {
        let answer = get("192.0.2.1").await;
        if answer.starts_with("HTTP/1.1 429 ") {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("ten requests at once");
    assert!(refused.contains("Retry-After: 1\r\n"), "{refused}");
    // Another client is not concerned, and neither is another route.
    assert!(get("192.0.2.2").await.starts_with("HTTP/1.1 200 "));
    // A connection that is kept goes on.
    let mut stream = BufReader::new(edge.connect().await);
    let ask = b"GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 192.0.2.3\r\n\r\n";
    let mut statuses = Vec::new();
    while statuses.len() < 10 && !statuses.contains(&"429".to_owned()) {
        stream.write_all(ask).await.unwrap();
        let head = soon(head(&mut stream)).await;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        let mut body = vec![0; length.unwrap().parse().unwrap()];
        soon(stream.read_exact(&mut body)).await.unwrap();
        statuses.push(head[9..12].to_owned());
    }
    assert_eq!(statuses[..3], ["200", "200", "200"]);
    assert_eq!(statuses.last().unwrap(), "429");
}

#[tokio::test]
async fn a_route_has_as_many_requests_as_it_may_have() {
    let go = CancellationToken::new();
    let settings = RouteSettings {
        max_requests: Some(2),
        ..RouteSettings::default()
    };
    let edge = TestEdge::with_settings(&[waits_for(go.clone()).await], settings).await;
    let mut under_way = [begun(&edge).await, begun(&edge).await];
    let refused = edge.get("a.test").await;
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    assert!(refused.contains("Retry-After: 2\r\n"), "{refused}");
    go.cancel();
    for stream in &mut under_way {
        let mut rest = String::new();
        soon(stream.read_to_string(&mut rest)).await.unwrap();
    }
    soon(async { while !edge.get("a.test").await.starts_with("HTTP/1.1 200 ") {} }).await;
}

#[tokio::test]
async fn a_request_waits_for_an_instance_that_has_fewer_than_its_limit() {
    let go = CancellationToken::new();
    let settings = RouteSettings {
        hard_limit: Some(1),
        ..RouteSettings::default()
    };
    let most = Arc::new(AtomicU32::new(0));
    let mut backends = Vec::new();
    for _ in 0..2 {
        let (most, now, go) = (Arc::clone(&most), Arc::new(AtomicU32::new(0)), go.clone());
        let one = backend(move |mut stream| {
            let (most, now, go) = (Arc::clone(&most), Arc::clone(&now), go.clone());
            async move {
                head(&mut stream).await;
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                go.cancelled().await;
                tokio::task::yield_now().await;
                now.fetch_sub(1, Ordering::SeqCst);
                answer(&mut stream, "done").await;
            }
        });
        backends.push(one.await);
    }
    let edge = Arc::new(TestEdge::with_settings(&backends, settings).await);
    let asked: Vec<_> = (0..20)
        .map(|_| {
            let edge = Arc::clone(&edge);
            tokio::spawn(async move { edge.get("a.test").await })
        })
        .collect();
    let route = edge.edge.routes.find("a.test").unwrap();
    soon(async {
        while route.upstreams.iter().any(|upstream| upstream.load() == 0) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    go.cancel();
    for asked in asked {
        let answer = soon(asked).await.unwrap();
        assert!(answer.ends_with("done"), "{answer}");
    }
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn where_no_instance_gets_free_in_time_the_client_is_told_to_ask_again() {
    let go = CancellationToken::new();
    let settings = RouteSettings {
        hard_limit: Some(1),
        ..RouteSettings::default()
    };
    let edge = TestEdge::with_settings(&[waits_for(go.clone()).await], settings).await;
    let _under_way = begun(&edge).await;
    let mut waits = BufReader::new(edge.connect().await);
    let ask = b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
    waits.write_all(ask).await.unwrap();
    // Nothing else is to come, so time passes as fast as it is waited for.
    tokio::time::pause();
    let mut answer = String::new();
    waits.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("Retry-After: 2\r\n"), "{answer}");
    go.cancel();
}

#[tokio::test]
async fn an_idle_connection_is_kept_as_long_as_its_route_says() {
    let settings = RouteSettings {
        idle_timeout_ms: Some(600_000),
        ..RouteSettings::default()
    };
    let edge = TestEdge::with_settings(&[replies_with("one").await], settings).await;
    let mut stream = BufReader::new(edge.connect().await);
    let ask = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    soon(head(&mut stream)).await;
    soon(stream.read_exact(&mut [0; 3])).await.unwrap();
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    let kept = begun.elapsed();
    assert!((590..=610).contains(&kept.as_secs()), "{kept:?}");
}
