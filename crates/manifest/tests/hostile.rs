//! Texts made to hurt: each is refused or read in bounded time, without a panic.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "these tests measure time; what they test has no clock"
)]

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use manifest::{
    Code, Colour, MAX_DIAGNOSTICS, MAX_KEY_BYTES, MAX_TEXT_BYTES, Manifest, diff, fmt, render,
    to_json,
};

/// Far above what any of them takes (tenths of a second), for a machine that does other things.
const LIMIT: Duration = Duration::from_secs(10);
/// Size of most texts: what takes time out of proportion shows here, and tests stay quick.
const LARGE: usize = MAX_TEXT_BYTES / 8;

fn codes(text: &str) -> Vec<Code> {
    let head: String = text.chars().take(40).collect();
    let start = Instant::now();
    let result = Manifest::from_toml("hostile.toml", text);
    let diagnostics = match result {
        Ok(decoded) => decoded.warnings,
        Err(errors) => {
            assert!(!errors.is_empty());
            errors
        }
    };
    assert!(diagnostics.len() <= MAX_DIAGNOSTICS + 1);
    let shown = render(text, &diagnostics, Colour::Never);
    assert!(
        shown.len() < 1024 * 1024,
        "{} bytes of diagnostics",
        shown.len()
    );
    let _ = to_json(&diagnostics);
    let took = start.elapsed();
    assert!(took < LIMIT, "{head:?} took {took:?} to read");
    let start = Instant::now();
    if let Ok(formatted) = fmt("hostile.toml", text) {
        let _ = diff("hostile.toml", text, &formatted);
        assert!(fmt("hostile.toml", &formatted).is_ok_and(|again| again == formatted));
    }
    let formatting = start.elapsed();
    assert!(formatting < LIMIT, "{head:?} took {formatting:?} to format");
    diagnostics.iter().map(|d| d.code).collect()
}

fn repeat(piece: &str, bytes: usize) -> String {
    piece.repeat(bytes / piece.len())
}

fn numbered(bytes: usize, line: impl Fn(usize) -> String) -> String {
    let mut out = String::new();
    for number in 0.. {
        let line = line(number);
        if out.len() + line.len() > bytes {
            break;
        }
        out.push_str(&line);
    }
    out
}

#[test]
fn eight_mebibytes() {
    for piece in ["a", "[", "\"", "a = 1\n", "=", "\u{202e}", "\0", "[[a]]\n"] {
        assert_eq!(
            codes(&repeat(piece, 8 * 1024 * 1024)),
            [Code::TooLarge],
            "{piece:?}"
        );
    }
}

#[test]
fn large_texts_of_every_kind() {
    for piece in [
        "a",
        "[",
        "]",
        "{",
        "}",
        "\"",
        "'",
        "\"\"\"",
        "'''",
        "=",
        ".",
        ",",
        "#",
        "\n",
        "\r",
        "\0",
        "\t",
        "\u{7f}",
        "\u{feff}",
        "\u{202e}",
        "\\",
        "a=",
        "a.",
        "[[",
        "[a]\n",
        "[[a]]\n",
        "a=1\n",
        "a=[",
        "a={",
        "a=[1,",
        "a=\"\\",
        "[a.b.c]\n",
        "# x\n",
        "\n\n#x\n\n",
        "[[a.b]]\n",
        "é=1\n",
        "a='''\n",
        "x = 99999999999999999999\n",
        "[processes.web]\n",
        "\"\\u0000\"=1\n",
        "- a\n",
        "a = \u{201c}x\u{201d}\n",
        "[a]\nb=1\n",
        "{a=1,",
        "a.b=1\n",
        "1=nan\n",
    ] {
        codes(&repeat(piece, LARGE));
    }
}

#[test]
fn the_largest_texts() {
    for piece in ["=", "[a]\n", "\r", "a=1\n"] {
        codes(&repeat(piece, MAX_TEXT_BYTES));
    }
    codes(&numbered(MAX_TEXT_BYTES, |n| format!("[t{n}]\nk = {n}\n")));
}

#[test]
fn many_different_keys_and_tables() {
    let full = LARGE;
    codes(&numbered(full, |n| format!("k{n}=1\n")));
    codes(&numbered(full, |n| format!("[t{n}]\n")));
    codes(&numbered(full, |n| format!("[[a.b{n}]]\n# c\n")));
    codes(&numbered(full, |n| format!("a.k{n}.x = {n}\n")));
    codes(&numbered(full, |n| format!("[processes.p{n}]\n")));
    codes(&numbered(full, |n| {
        format!("[[processes.web.ports]]\nport = {}\n", n % 65536)
    }));
    let head = "app = \"shop\"\n[env]\n";
    codes(&(head.to_owned() + &numbered(full - 64, |n| format!("PLATFORM_{n} = \"\"\n"))));
    let head = "app = \"shop\"\n[routes]\n";
    codes(&(head.to_owned() + &numbered(full - 64, |n| format!("h{n} = {{ port = 80 }}\n"))));
    // A long header, then many short keys: the path of each is long.
    let header = format!("[{}]\n", vec!["x".repeat(1024); 31].join("."));
    codes(&(header.clone() + &numbered(full - header.len(), |n| format!("k{n}=1\n"))));
    // The path of each table is long: formatted, it would be gigabytes.
    let path = vec!["x".repeat(1024); 25].join(".");
    codes(&format!(
        "{path} = {{ {} }}",
        numbered(full / 4, |n| format!("a{n}.b=1,")) + "z = 1"
    ));
    codes(&(format!("[{path}]\n") + &numbered(full / 4, |n| format!("a{n}.b=1\n"))));
    codes(&numbered(full, |n| format!("a = {n}\n")));
    let mut items = String::from("a = [");
    items.push_str(&numbered(full - 16, |n| format!("{n}, # {n}\n")));
    items.push(']');
    codes(&items);
}

#[test]
fn long_keys() {
    let long = "k".repeat(MAX_KEY_BYTES);
    assert_eq!(
        codes(&format!("app = \"shop\"\n{long} = 1")),
        [Code::UnknownKey]
    );
    assert_eq!(
        codes(&format!("app = \"shop\"\n{long}k = 1")),
        [Code::WrongLength]
    );
    assert_eq!(codes(&format!("[a.\"{long}\"]")), [Code::WrongLength]);
}

#[test]
fn ten_thousand_deep() {
    for depth in [33, 1_000, 10_000, 100_000] {
        for (open, close) in [("[", "]"), ("{a=", "}")] {
            let text = format!("a = {}1{}", open.repeat(depth), close.repeat(depth));
            assert_eq!(codes(&text), [Code::TooDeep], "{open} {depth}");
            assert!(codes(&format!("a = {}", open.repeat(depth))).contains(&Code::TooDeep));
        }
        let path = vec!["a"; depth].join(".");
        assert_eq!(codes(&format!("[{path}]")), [Code::TooDeep]);
        assert_eq!(codes(&format!("[[{path}]]")), [Code::TooDeep]);
        assert_eq!(codes(&format!("{path} = 1")), [Code::TooDeep]);
        assert_eq!(codes(&format!("x = {{ {path} = 1 }}")), [Code::TooDeep]);
    }
    // What is just allowed is an unknown key and no more.
    let text = format!("app = \"shop\"\na = {}1{}", "[".repeat(32), "]".repeat(32));
    assert_eq!(codes(&text), [Code::UnknownKey]);
}

#[test]
fn bytes_that_are_no_text() {
    for bytes in [
        &b"\xff\xfea\0p\0p\0"[..],
        b"app = \"\xff\"",
        b"\xf0\x9f",
        b"a\0p\0p\0\xff",
    ] {
        let errors = Manifest::from_bytes("hostile.toml", bytes).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(errors[0].code, Code::Encoding);
    }
    let large = vec![0xff; 8 * 1024 * 1024];
    assert!(Manifest::from_bytes("hostile.toml", &large).is_err());
}

#[test]
fn hidden_and_control_characters() {
    for (text, code) in [
        ("app = \"sh\u{202e}op\"", Code::HiddenCharacter),
        ("app = \"shop\" # \u{2066}hidden", Code::HiddenCharacter),
        ("app = \"sh\0op\"", Code::Syntax),
        ("app = \"shop\" # \0", Code::Syntax),
        ("app = \"shop\"\rimage = \"x\"", Code::Syntax),
        ("app = \"shop\" # x\rimage = \"x\"", Code::Syntax),
        ("app = \"shop\"\n\u{feff}[env]", Code::Syntax),
        ("app = \"sh\\u0000op\"", Code::InvalidValue),
        (
            "app = \"shop\"\nenv = { A = \"\\u0000\" }",
            Code::InvalidValue,
        ),
    ] {
        let found = codes(text);
        assert!(found.contains(&code), "{text:?}: {found:?}");
    }
    // A byte order mark at the start is what some editors write; TOML ignores it.
    assert_eq!(codes("\u{feff}app = \"shop\""), []);
    // An escape shows what it is, so it is allowed.
    assert_eq!(codes("app = \"shop\"\nenv = { A = \"\\u202E\" }"), []);
}

#[test]
fn numbers_beyond_everything() {
    for (number, code) in [
        ("9223372036854775808", Code::Syntax),
        ("-9223372036854775809", Code::Syntax),
        ("0xFFFFFFFFFFFFFFFFF", Code::Syntax),
        ("9223372036854775807", Code::OutOfRange),
        ("-9223372036854775808", Code::OutOfRange),
        ("nan", Code::OutOfRange),
        ("-nan", Code::OutOfRange),
        ("inf", Code::OutOfRange),
        ("1e999", Code::Syntax),
        ("1e308", Code::OutOfRange),
        ("-0.0", Code::OutOfRange),
        ("0.0101", Code::OutOfRange),
        ("257", Code::OutOfRange),
    ] {
        let text = format!("app = \"shop\"\nprocesses.web.resources.cpu = {number}");
        assert_eq!(codes(&text), [code], "{number}");
    }
    for port in [
        "0",
        "65536",
        "-1",
        "1e3",
        "9223372036854775807",
        "4294975376",
    ] {
        let text = format!("app = \"shop\"\n[[processes.web.ports]]\nport = {port}");
        let found = codes(&text);
        assert!(
            matches!(found[..], [Code::OutOfRange | Code::WrongType]),
            "{port}: {found:?}"
        );
    }
    for size in [
        "999999TiB",
        "18446744073709551616MiB",
        "0MiB",
        "-1MiB",
        "65KiB",
    ] {
        let text = format!("app = \"shop\"\nprocesses.web.resources.memory = \"{size}\"");
        assert_eq!(codes(&text).len(), 1, "{size}");
    }
}

#[test]
fn a_long_line_is_shown_around_the_mistake() {
    let mut text = String::from("app = \"shop\"\nx = [");
    for _ in 0..1000 {
        write!(text, "\"é\", ").unwrap();
    }
    text.push_str("\"\\q\"]\n");
    let errors = Manifest::from_toml("hostile.toml", &text).unwrap_err();
    let shown = render(&text, &errors, Colour::Never);
    assert!(shown.contains("hostile.toml:2:5"), "{shown}");
    assert!(
        shown.lines().all(|line| line.chars().count() < 200),
        "{shown}"
    );
}

#[test]
fn case_variables_that_every_instance_would_carry_are_bounded() {
    let text = |shared: usize, own: usize| {
        format!(
            "app = \"shop\"\n[env]\nA = \"{}\"\nB = \"{}\"\n[processes.web.env]\nC = \"{}\"\nD = \"{}\"\n",
            "a".repeat(shared / 2),
            "b".repeat(shared / 2),
            "c".repeat(own / 2),
            "d".repeat(own / 2),
        )
    };
    // Four names of one byte, and the values.
    assert!(Manifest::from_toml("platform.toml", &text(32_768, 32_764)).is_ok());
    for (shared, own, path) in [(40_000, 30_000, "env"), (30_000, 40_000, "processes.web")] {
        let refused = Manifest::from_toml("platform.toml", &text(shared, own)).unwrap_err();
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].path, path);
        assert!(
            refused[0].message.contains("take 70004 bytes"),
            "{}",
            refused[0].message
        );
    }
}
