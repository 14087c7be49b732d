//! The text of `/etc/hosts` and `/etc/resolv.conf`. Pure; an image's own lines are kept.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `/etc/hosts`: the image's lines, and lines for localhost and the guest's own name where they are missing. The name
/// has an IPv4 address too, because programs without IPv6 look themselves up.
pub(crate) fn hosts(existing: &[u8], hostname: &str, address: Ipv6Addr, ipv4: Ipv4Addr) -> Vec<u8> {
    let mut added = String::new();
    let loopback = |line: &[&[u8]], address: &[u8]| {
        line.first() == Some(&address) && line[1..].contains(&b"localhost".as_slice())
    };
    let lines: Vec<Vec<&[u8]>> = existing.split(|byte| *byte == b'\n').map(words).collect();
    for (address, names) in [
        ("127.0.0.1", "localhost"),
        ("::1", "localhost ip6-localhost ip6-loopback"),
    ] {
        if !lines.iter().any(|line| loopback(line, address.as_bytes())) {
            let _ = writeln!(added, "{address}\t{names}");
        }
    }
    let named = |line: &Vec<&[u8]>| line.iter().skip(1).any(|name| *name == hostname.as_bytes());
    if !lines.iter().any(named) {
        let _ = writeln!(added, "{address}\t{hostname}\n{ipv4}\t{hostname}");
    }
    let mut text = existing.to_vec();
    if !added.is_empty() && text.last().is_some_and(|byte| *byte != b'\n') {
        text.push(b'\n');
    }
    text.extend_from_slice(added.as_bytes());
    text
}

/// The words of a line, without its comment.
fn words(line: &[u8]) -> Vec<&[u8]> {
    let line = line.split(|byte| *byte == b'#').next().unwrap_or_default();
    line.split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
        .collect()
}

/// `/etc/resolv.conf` with these name servers and search domains.
pub(crate) fn resolv_conf(resolvers: &[IpAddr], search: &[String]) -> String {
    let mut text = String::new();
    for resolver in resolvers {
        let _ = writeln!(text, "nameserver {resolver}");
    }
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::needless_raw_string_hashes, reason = "expect-test writes them")]

    use std::net::{Ipv4Addr, Ipv6Addr};

    use expect_test::{Expect, expect};

    use super::{hosts, resolv_conf};

    const ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7);
    const IPV4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 7);

    #[allow(clippy::needless_pass_by_value, reason = "expect! makes a value")]
    fn check(existing: &str, expected: Expect) {
        let text = hosts(existing.as_bytes(), "web-1", ADDRESS, IPV4);
        expected.assert_eq(&String::from_utf8_lossy(&text));
        assert_eq!(
            hosts(&text, "web-1", ADDRESS, IPV4),
            text,
            "a second time adds nothing"
        );
    }

    #[test]
    fn an_image_without_hosts_gets_localhost_and_its_name() {
        check(
            "",
            expect![[r#"
            127.0.0.1	localhost
            ::1	localhost ip6-localhost ip6-loopback
            fd00::7	web-1
            100.64.0.7	web-1
        "#]],
        );
    }

    #[test]
    fn an_image_with_its_own_lines_keeps_them() {
        check(
            "# ours\n127.0.0.1 localhost # loop\n10.0.0.1 db web-10\n::1 ip6-localhost",
            expect![[r#"
                # ours
                127.0.0.1 localhost # loop
                10.0.0.1 db web-10
                ::1 ip6-localhost
                ::1	localhost ip6-localhost ip6-loopback
                fd00::7	web-1
                100.64.0.7	web-1
            "#]],
        );
    }

    #[test]
    fn a_name_that_the_image_has_is_left_alone() {
        check(
            "127.0.0.1 localhost web-1\n::1 localhost\n",
            expect![[r#"
            127.0.0.1 localhost web-1
            ::1 localhost
        "#]],
        );
    }

    #[test]
    fn resolv_conf_names_each_resolver() {
        expect![[r#"
            nameserver fd00::7
            nameserver 192.0.0.3
        "#]]
        .assert_eq(&resolv_conf(
            &[ADDRESS.into(), Ipv4Addr::new(192, 0, 0, 3).into()],
            &[],
        ));
        expect![[r#"
            nameserver 192.0.0.3
            search prod.shop.internal internal
        "#]]
        .assert_eq(&resolv_conf(
            &[Ipv4Addr::new(192, 0, 0, 3).into()],
            &["prod.shop.internal".to_owned(), "internal".to_owned()],
        ));
    }
}
