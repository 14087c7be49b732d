//! The challenge of a 401 answer (RFC 9110, 11.6.1; distribution spec, token authentication).

/// The kind of authentication that a registry requires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token from the service at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// The best challenge among these header values: bearer before basic.
pub(crate) fn choose<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
    let mut best = None;
    for (scheme, parameters) in headers.flat_map(parse) {
        let get = |name: &str| {
            parameters
                .iter()
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("bearer") {
            if let Some(realm) = get("realm") {
                return Some(Challenge::Bearer {
                    realm,
                    service: get("service"),
                    scope: get("scope"),
                });
            }
        } else if scheme.eq_ignore_ascii_case("basic") {
            best = Some(Challenge::Basic);
        }
    }
    best
}

/// A scheme and its parameters.
type Parsed = (String, Vec<(String, String)>);

/// `Bearer realm="..",service=".." , Basic realm=x` -> its schemes with their parameters. Text that does
/// not parse ends the list.
fn parse(header: &str) -> Vec<Parsed> {
    let mut challenges: Vec<Parsed> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', ',', '\t']);
        let end = rest.find(['=', ' ', ',', '\t']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return challenges;
        }
        let Some(value) = after.strip_prefix('=') else {
            challenges.push((word.to_owned(), Vec::new()));
            rest = after;
            continue;
        };
        let value = match value.strip_prefix('"') {
            None => {
                let end = value.find([',', ' ']).unwrap_or(value.len());
                rest = &value[end..];
                value[..end].to_owned()
            }
            Some(quoted) => {
                let Some((value, after)) = unquote(quoted) else {
                    return challenges;
                };
                rest = after;
                value
            }
        };
        let Some((_, parameters)) = challenges.last_mut() else {
            return challenges;
        };
        parameters.push((word.to_owned(), value));
    }
}

/// Reads to the closing quote; `\x` is `x`.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[index + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use expect_test::{Expect, expect};

    use super::*;

    #[allow(
        clippy::needless_pass_by_value,
        reason = "expect![] reads better by value"
    )]
    fn check(headers: &[&str], expected: Expect) {
        let text = match choose(headers.iter().copied()) {
            None => "none".to_owned(),
            Some(Challenge::Basic) => "basic".to_owned(),
            Some(Challenge::Bearer {
                realm,
                service,
                scope,
            }) => {
                format!("bearer {realm} {service:?} {scope:?}")
            }
        };
        expected.assert_eq(&text);
    }

    #[test]
    fn challenges_of_registries_are_parsed() {
        check(
            &[
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
            ],
            expect![[
                r#"bearer https://auth.docker.io/token Some("registry.docker.io") Some("repository:a/b:pull,push")"#
            ]],
        );
        check(&[r#"Basic realm="basic-realm""#], expect!["basic"]);
        check(
            &["basic realm=x", r#"BEARER Realm = "x""#],
            expect!["basic"],
        );
        check(
            &[r#"Negotiate, Basic realm="a, \"b\"", Bearer realm=https://x/y"#],
            expect!["bearer https://x/y None None"],
        );
        check(&["Bearer"], expect!["none"]);
        check(&[r#"Bearer realm="unclosed"#], expect!["none"]);
        check(&["=, ==", ""], expect!["none"]);
        check(&[r#"realm="x""#], expect!["none"]);
    }

    proptest::proptest! {
        #[test]
        fn any_header_is_parsed(header in "\\PC{0,60}") {
            let _ = choose([header.as_str()].into_iter());
        }
    }
}
