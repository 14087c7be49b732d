//! Targets of a fuzzer, with `bolero`: `cargo test` gives each some thousand inputs, and
//!
//! ```text
//! cargo install cargo-bolero
//! cargo bolero test --package manifest --sanitizer NONE --rustc-bootstrap --time 10m pieces_of_a_manifest
//! ```
//!
//! as many as one likes, led by coverage. `properties` says what is expected of manifests; here it
//! is only that nothing panics, that mistakes have a place in the text, and that `fmt` rests.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use manifest::{Colour, Manifest, diff, fmt, normalize, render, text, to_json};

/// Inputs of `cargo test`, a target.
const ITERATIONS: usize = 4000;
/// Longest input, in bytes.
const MAX_INPUT: usize = 2048;

/// What must hold of any bytes at all.
fn holds(bytes: &[u8]) {
    let read = Manifest::from_bytes("fuzz.toml", bytes);
    let Ok(text) = text("fuzz.toml", bytes) else {
        assert!(read.is_err());
        return;
    };
    if let Err(errors) = &read {
        assert!(!errors.is_empty());
        assert!(errors.is_sorted_by_key(|error| error.span.start));
        for error in errors {
            assert!(error.span.end <= text.len(), "{error:?}");
            assert!(error.line > 0 && error.column > 0, "{error:?}");
        }
        assert!(!render(text, errors, Colour::Always).is_empty());
        assert!(to_json(errors).is_array());
    }
    let Ok(formatted) = fmt("fuzz.toml", text) else {
        assert!(read.is_err());
        return;
    };
    assert_eq!(fmt("fuzz.toml", &formatted).as_ref(), Ok(&formatted));
    assert_eq!(
        diff("fuzz.toml", text, &formatted).is_empty(),
        text == formatted
    );
    let again = Manifest::from_toml("fuzz.toml", &formatted);
    assert_eq!(read.is_ok(), again.is_ok(), "{text}");
    if let (Ok(read), Ok(again)) = (read, again) {
        assert_eq!(normalize(&read.manifest), normalize(&again.manifest));
    }
}

#[test]
fn any_bytes() {
    bolero::check!()
        .with_iterations(ITERATIONS)
        .with_max_len(MAX_INPUT)
        .for_each(holds);
}

/// Each byte stands for a piece: a fuzzer that had to find `processes` by bytes would not get far.
#[test]
fn pieces_of_a_manifest() {
    bolero::check!()
        .with_iterations(ITERATIONS)
        .with_max_len(MAX_INPUT / 8)
        .for_each(|input: &[u8]| {
            let pieces = input
                .iter()
                .map(|byte| PIECES[usize::from(*byte) % PIECES.len()]);
            holds(pieces.collect::<String>().as_bytes());
        });
}

/// Whole lines, parts of lines, and what has no place in either.
const PIECES: [&str; 118] = [
    "app = \"shop\"\n",
    "image = \"a@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"\n",
    "[env]\n",
    "RUST_LOG = \"info\"\n",
    "PLATFORM_X = \"1\"\n",
    "[processes.web]\n",
    "[processes.worker]\n",
    "[processes.web.env]\n",
    "[processes.web.stop]\n",
    "[processes.web.restart]\n",
    "[processes.web.healthcheck]\n",
    "[processes.web.liveness]\n",
    "[processes.web.resources]\n",
    "[processes.web.scaling]\n",
    "[processes.web.deploy]\n",
    "[[processes.web.ports]]\n",
    "[[processes.web.volumes]]\n",
    "[routes]\n",
    "sticky = true\n",
    "idle_timeout = \"75s\"\n",
    "max_requests = 200\n",
    "hard_limit = 25\n",
    "rate_limit = 10\n",
    "burst = 20\n",
    "http = \"serve\"\n",
    "hsts = { max_age = \"720h\", preload = true }\n",
    "[processes]\n",
    "command = [\"/srv/shop\", 'serve']\n",
    "command = [ # why\n  \"/srv/shop\", # program\n]\n",
    "user = \"shop:4294967295\"\n",
    "region = \"eu-central\"\n",
    "init = \"image\"\n",
    "egress = \"internet\"\n",
    "secrets = [\"database\", \"database\"]\n",
    "secrets = [{ name = \"database\", mode = \"0400\" }]\n",
    "path = \"/var/lib/shop\"\n",
    "owner = \"1000:1000\"\n",
    "signal = \"SIGTERM\"\n",
    "timeout = \"10s\"\n",
    "policy = \"on-failure\"\n",
    "max_retries = 3\n",
    "port = 8080\n",
    "port = 0x1F90\n",
    "protocol = \"tcp\"\n",
    "proxy_protocol = \"v2\"\n",
    "type = \"http\"\n",
    "path = \"/healthz\"\n",
    "host = \"shop.example.com\"\n",
    "headers = { X-Forwarded-Proto = \"https\", host = 'a' }\n",
    "interval = \"5s\"\n",
    "grace = \"1500ms\"\n",
    "healthy = 2\n",
    "cpu = 0.5\n",
    "cpu = nan\n",
    "memory = \"256MiB\"\n",
    "scratch = \"1GiB\"\n",
    "min = 2\n",
    "max = 1\n",
    "name = \"data\"\n",
    "size = \"18446744073709551615KiB\"\n",
    "strategy = \"rolling\"\n",
    "max_surge = 0\n",
    "max_unavailable = 0\n",
    "auto_revert = true\n",
    "strategy = \"blue-green\"\n",
    "min_healthy = \"0s\"\n",
    "deadline = \"90s\"\n",
    "release_command = [\"migrate\"]\n",
    "labels = { disk = \"nvme\", 'a b' = \"\" }\n",
    "\"shop.example.com\" = { process = \"web\", port = 8080 }\n",
    "'*.example.com' = { process = \"wbe\", port = 1 }\n",
    "processes.web.scaling.max = 4\n",
    "stop = { signal = \"SIGINT\", timeout = \"1h\" }\n",
    "stop . timeout = '''\n1s'''\n",
    "ports = [{ port = 8080 }, { port = 8080 }]\n",
    "# a comment\n",
    "  # another\n\n",
    "#",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    "\t",
    " ",
    "=",
    " = ",
    ".",
    ",",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "\"",
    "'",
    "\"\"\"",
    "'''",
    "\\",
    "\\u202E",
    "\\U0010FFFF",
    "\\x",
    "a",
    "\"c d\"",
    "'e'",
    "é",
    "\u{202e}",
    "\u{feff}",
    "\0",
    "\u{7f}",
    "1",
    "-0.5",
    "1e999",
    "9223372036854775808",
    "0b102",
    "true",
    "1979-05-27T07:32:00Z",
    "07:32",
];
