//! `fmt` and `normalize`, on many manifests and on much that is none.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use manifest::{Manifest, fmt, normalize};
use proptest::prelude::*;
use proptest::sample::select;

/// Statements of a manifest, well and badly laid out; each is whole lines.
fn statements() -> impl Strategy<Value = String> {
    select(vec![
        "command = ['/srv/shop', \"serve\"]",
        "command = [ # why\n  \"/srv/shop\" # program\n  , # comma\n  # last\n]",
        "user = \"shop\" # drops privileges",
        "init = 'image'",
        "egress = 'none'",
        "env = { B = \"2\", A = \"1\" }",
        "env.C = '''\nlines\n'''",
        "secrets = [\n\n\"database\"]",
        "secrets = [ {mode='0400', name=\"tls\"}, # one\n \"database\" ]",
        "stop = {timeout=\"5s\",signal='SIGINT'}",
        "restart.policy = \"on-failure\"",
        "restart.max_retries = 3",
        "resources = { cpu = 1 }",
        "resources.memory = \"512MiB\"",
        "scaling.max = 4",
        "ports = [{ port = 8080 }, # first\n { port = 9000, protocol = 'tcp' }]",
        "volumes = []",
        "deploy . \"auto_revert\" = false",
        "deploy.strategy = 'canary'",
        "deploy.min_healthy = \"1m30s\"",
        "deploy.deadline = \"10m\"",
        "deploy.release_command = [ \"migrate\" ]",
        "labels = {disk = 'nvme', \"example.com/gpu\" = \"a100\"}",
        "healthcheck = { type = \"tcp\", port = 8080 }",
        "liveness = { type = \"command\", command = [\"true\"] }",
        "",
        "# a comment",
        "  # another",
    ])
    .prop_map(str::to_owned)
}

fn headers() -> impl Strategy<Value = String> {
    select(vec![
        "[processes.web]",
        "[processes.worker]",
        "[ processes . api ] # header",
        "[processes.web.stop]",
        "[processes.web.env]",
        "[processes.worker.scaling]",
        "[processes.worker.resources]",
        "[[processes.web.ports]]\nport = 8080",
        "[[processes.web.ports]]\nport = 81",
        "[[processes.worker.volumes]]\nname = \"data\"\nsize = \"1GiB\"\nowner = \"33\"\npath = '/data'",
        "[processes.web.healthcheck]\ntype = \"http\"\nport = 8080",
        "[processes.web.healthcheck]\ntype = \"http\"\nport = 8080\nhost = 'a.b'\nheaders = { X-B = 'c', A = \"d\" }",
        "[env]\nX = \"1\" # one\nA = '2'",
        "[routes]\n\"shop.example.com\" = { port = 8080, process = \"web\" }",
        "[routes.\"b.example.com\"]\nport = 8080",
        "[routes.\"c.example.com\"]\nport = 8080\nsticky = true\nidle_timeout = '2m'\nmax_requests = 9\nhard_limit = 3\nrate_limit = 10\nburst = 20",
        "[[tcp_routes]]\nlisten = 30432\nport = 8080\nsticky = true",
        "[[tcp_routes]]\nport = 8080\nlisten = 30433\ntls = 'terminate' # here\nalpn = [\"a\", 'b']\nhost = 'db.example.com'",
        "[routes.\"c.example.com\"]\nport = 8080\nhttp = \"redirect\"\nhsts = { max_age = \"8760h\" }",
    ])
    .prop_map(str::to_owned)
}

/// A text that is a manifest more often than not, with comments everywhere.
fn manifests() -> impl Strategy<Value = String> {
    let body = prop::collection::vec(statements(), 0..4);
    let gap = select(vec![
        "",
        "\n",
        "# note\n",
        "# note\n\n",
        "\n# note\n",
        "\n# note\n\n",
        "#\n\n\n",
    ]);
    let section = (gap, headers(), body).prop_map(|(gap, header, body)| {
        let lines: Vec<_> = body.iter().map(|line| format!("{line}\n")).collect();
        format!("{gap}{header}\n{}", lines.concat())
    });
    let first = select(vec![
        "",
        "# file\n\n",
        "\n# app\n",
        "image = \"a@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"\n",
    ]);
    (first, prop::collection::vec(section, 0..7), any::<bool>()).prop_map(
        |(first, sections, crlf)| {
            let text = format!("{first}app = 'shop' # name\n{}", sections.concat());
            if crlf {
                text.replace('\n', "\r\n")
            } else {
                text
            }
        },
    )
}

/// Pieces of TOML in any order.
fn soup() -> impl Strategy<Value = String> {
    let pieces = select(vec![
        "a",
        "b",
        "\"c d\"",
        "'e'",
        ".",
        "=",
        "= ",
        " ",
        "\n",
        "\n",
        "\n\n",
        "\r\n",
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        ",",
        "1",
        "-0.5",
        "true",
        "\"x\"",
        "'y'",
        "\"\"\"z\n\"\"\"",
        "'''w'''",
        "# c",
        "# d\n",
        "1979-05-27",
        "07:32:00",
        "0x1F",
        "nan",
        "[a]\n",
        "[[a]]\n",
        "a = 1\n",
        "b.c = 2\n",
        "a = [1, 2]\n",
        "a = { b = 1 }\n",
        "x = [ # c\n 1 ]\n",
        "\t",
        "\\",
        "\u{e9}",
        "app = \"shop\"\n",
        "[processes.web]\n",
        "[env]\n",
        "\"\\u00e9\" = 1\n",
    ]);
    prop::collection::vec(pieces, 0..30).prop_map(|pieces| pieces.concat())
}

/// The comments of a text that `fmt` accepts. No text above has a `#` within a value.
fn comments(text: &str) -> Vec<String> {
    let mut all: Vec<String> = text
        .lines()
        .filter_map(|line| line.find('#').map(|at| line[at..].trim_end().to_owned()))
        .collect();
    all.sort();
    all
}

fn fmt_holds(text: &str) -> Result<bool, TestCaseError> {
    let Ok(once) = fmt("test.toml", text) else {
        return Ok(false);
    };
    let twice = fmt("test.toml", &once);
    prop_assert_eq!(twice.as_ref(), Ok(&once), "of {:?}", text);
    prop_assert_eq!(comments(&once), comments(text), "of {:?}", text);
    Ok(true)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    /// fmt(fmt x) = fmt x, normalize(fmt x) = normalize x, and no comment is lost.
    #[test]
    fn formatting_keeps_meaning_and_comments(text in manifests()) {
        fmt_holds(&text)?;
        let before = Manifest::from_toml("test.toml", &text);
        if let Ok(formatted) = fmt("test.toml", &text) {
            let after = Manifest::from_toml("test.toml", &formatted);
            prop_assert_eq!(before.is_ok(), after.is_ok());
            if let (Ok(before), Ok(after)) = (before, after) {
                prop_assert_eq!(normalize(&before.manifest), normalize(&after.manifest));
            }
        }
    }

    /// What is not a manifest, or not TOML, is formatted or refused, too.
    #[test]
    fn soup_is_formatted_or_refused(text in soup()) {
        fmt_holds(&text)?;
        match Manifest::from_toml("test.toml", &text) {
            Ok(_) => {}
            Err(errors) => {
                prop_assert!(!errors.is_empty());
                let places: Vec<usize> = errors.iter().map(|e| e.span.start).collect();
                prop_assert!(places.is_sorted(), "not in the order of the text: {:?}", errors);
                prop_assert!(errors.iter().all(|e| e.span.end <= text.len()));
                let shown = manifest::render(&text, &errors, manifest::Colour::Never);
                prop_assert!(!shown.is_empty());
            }
        }
    }

    #[test]
    fn any_text_at_all(text in ".*") {
        let _ = Manifest::from_toml("test.toml", &text).map_err(|errors| {
            manifest::render(&text, &errors, manifest::Colour::Always)
        });
        fmt_holds(&text).ok();
    }

    /// The canonical form is a manifest again, of the same meaning.
    #[test]
    fn normalizing_loses_nothing(text in manifests()) {
        let Ok(decoded) = Manifest::from_toml("test.toml", &text) else { return Ok(()) };
        let canonical = normalize(&decoded.manifest);
        let value: serde_json::Value = serde_json::from_str(&canonical).unwrap();
        let again = toml::to_string(&value).unwrap();
        let again = Manifest::from_toml("test.toml", &again);
        prop_assert_eq!(again.map(|d| d.manifest), Ok(decoded.manifest));
    }
}

/// The generator above makes manifests, not only mistakes.
#[test]
fn the_generator_makes_manifests() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut good = 0;
    for _ in 0..400 {
        let text = manifests().new_tree(&mut runner).unwrap().current();
        good += usize::from(Manifest::from_toml("test.toml", &text).is_ok());
    }
    assert!(good > 60, "only {good} of 400");
}
