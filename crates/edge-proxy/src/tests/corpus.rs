//! Every request of `fixtures/requests.corpus`, over real sockets: refused, or the same to both sides.

use super::*;

/// What an app understood of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Understood {
    line: String,
    body: Vec<u8>,
}

/// A request's head and body, as an app reads them that knows RFC 9112 and nothing else; `None`: it ended before it was whole.
async fn understand(stream: &mut BufReader<TcpStream>) -> Option<Understood> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let value = |name: &str| {
        let mut values = head.split("\r\n").filter_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        });
        let value = values.next();
        assert_eq!(values.next(), None, "{name} twice: {head}");
        value
    };
    // Whoever reads it: there is one form of each.
    for line in head.split("\r\n") {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        if name.eq_ignore_ascii_case("content-length") {
            let number: u64 = value.trim().parse().unwrap();
            assert_eq!(value, format!(" {number}"), "{head}");
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            assert_eq!(value, " chunked", "{head}");
        }
    }
    let mut body = Vec::new();
    match (value("content-length"), value("transfer-encoding")) {
        (Some(length), None) => {
            body.resize(length.parse().unwrap(), 0);
            stream.read_exact(&mut body).await.ok()?;
        }
        (None, Some(encoding)) => {
            assert!(encoding.eq_ignore_ascii_case("chunked"), "{head}");
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).await.ok()?;
                let size = line.strip_suffix("\r\n")?;
                let size = size.split(';').next().unwrap();
                let size = usize::from_str_radix(size, 16).unwrap();
                if size == 0 {
                    break;
                }
                let mut data = vec![0; size + 2];
                stream.read_exact(&mut data).await.ok()?;
                assert!(data.ends_with(b"\r\n"));
                body.extend_from_slice(&data[..size]);
            }
            let mut line = String::new();
            while line != "\r\n" {
                line.clear();
                if stream.read_line(&mut line).await.ok()? == 0 {
                    return None;
                }
            }
        }
        (None, None) => {}
        both => panic!("{both:?}: {head}"),
    }
    let line = head.split("\r\n").next().unwrap().to_owned();
    Some(Understood { line, body })
}

struct Case {
    name: String,
    expected: String,
    bytes: Vec<u8>,
}

fn cases() -> Vec<Case> {
    let text = include_str!("../fixtures/requests.corpus");
    let mut cases: Vec<Case> = Vec::new();
    for line in text.split('\n') {
        if let Some(name) = line.strip_prefix("== ") {
            cases.push(Case {
                name: name.to_owned(),
                expected: String::new(),
                bytes: Vec::new(),
            });
            continue;
        }
        let Some(case) = cases.last_mut() else {
            continue;
        };
        match line.strip_prefix("-- ") {
            Some(expected) => case.expected = expected.to_owned(),
            None => case.bytes.extend(bytes_of(line.as_bytes())),
        }
    }
    cases
}

/// The bytes that a line of the corpus stands for.
fn bytes_of(line: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut at = 0;
    while at < line.len() {
        let rest = &line[at..];
        let star = rest.iter().position(|byte| *byte == b'*');
        let times = star.and_then(|star| {
            let digits = std::str::from_utf8(rest.get(1..star)?).ok()?;
            Some((star, digits.parse::<usize>().ok()?))
        });
        match (rest, times) {
            ([b'{', ..], Some((star, times))) => {
                let mut depth = 0;
                let end = rest.iter().position(|byte| {
                    depth += i32::from(*byte == b'{') - i32::from(*byte == b'}');
                    depth == 0
                });
                let end = end.unwrap();
                bytes.extend(bytes_of(&rest[star + 1..end]).repeat(times));
                at += end + 1;
            }
            ([b'\\', b'x', high, low, ..], _) => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).unwrap();
                bytes.push(u8::from_str_radix(digits, 16).unwrap());
                at += 4;
            }
            ([b'\\', escape, ..], _) => {
                bytes.push(match escape {
                    b'r' => b'\r',
                    b'n' => b'\n',
                    b't' => b'\t',
                    b'0' => 0,
                    other => *other,
                });
                at += 2;
            }
            ([byte, ..], _) => {
                bytes.push(*byte);
                at += 1;
            }
            ([], _) => unreachable!("the loop ends first"),
        }
    }
    bytes
}

#[tokio::test]
async fn each_request_of_the_corpus_is_refused_or_the_same_to_both_sides() {
    let cases = cases();
    assert!(cases.len() > 100, "{}", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let app = backend({
            let seen = Arc::clone(&seen);
            move |mut stream| {
                let seen = Arc::clone(&seen);
                async move {
                    while let Some(request) = understand(&mut stream).await {
                        seen.lock().unwrap().push(request);
                        answer(&mut stream, "ok").await;
                    }
                }
            }
        })
        .await;
        let edge = TestEdge::start(&[app]).await;
        let (mut read, mut write) = edge.connect().await.into_split();
        let expected: Vec<&str> = case.expected.split(' ').collect();
        let [kind, number] = expected[..] else {
            panic!("{}: {}", case.name, case.expected);
        };
        let mut bytes = case.bytes.clone();
        if kind == "same" {
            bytes.extend_from_slice(
                b"GET /probe HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n",
            );
        }
        // The edge may close before it has all.
        let sending = tokio::spawn(async move {
            let _ = write.write_all(&bytes).await;
            write
        });
        let mut answers = Vec::new();
        let read = tokio::time::timeout(SOON, read.read_to_end(&mut answers)).await;
        drop(sending.await.unwrap());
        let answers = String::from_utf8_lossy(&answers).into_owned();
        let seen = seen.lock().unwrap().clone();
        let parts = answers.split("HTTP/1.1 ");
        let statuses = parts
            .filter(|part| part.starts_with(|c: char| c.is_ascii_digit()))
            .count();
        let is_right = match kind {
            "refused" => {
                answers.starts_with(&format!("HTTP/1.1 {number} "))
                    && statuses == 1
                    && answers.contains("Connection: close\r\n")
                    && seen.is_empty()
            }
            "same" => {
                let number: usize = number.parse().unwrap();
                answers.matches("HTTP/1.1 200 ").count() == number + 1
                    && seen.len() == number + 1
                    && seen[number].line == "GET /probe HTTP/1.1"
                    && seen.iter().all(|seen| !seen.line.contains("smuggled"))
            }
            other => panic!("{}: {other}", case.name),
        };
        if !matches!(read, Ok(Ok(_))) || !is_right {
            let answer = answers.lines().next().unwrap_or_default();
            wrong.push(format!(
                "{} ({}): {answer:?}, the app saw {seen:?}",
                case.name, case.expected
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
