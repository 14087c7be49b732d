//! Names of variables and hosts: which are taken, and what is reported of names that lack their quotes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use expect_test::expect;
use manifest::{Manifest, normalize};
use support::check_lines;

#[test]
fn case_a_variable_has_any_name_that_an_image_can_have() {
    let text = "app = \"search\"\n[env]\n\"discovery.type\" = \"single-node\"\n\"node.max-count\" = \"1\"\n\
                \"2 be\" = \"x\"\n[processes.web]\nenv = { \"xpack.security.enabled\" = \"false\" }\n";
    let manifest = Manifest::from_toml("platform.toml", text).unwrap().manifest;
    let names: Vec<_> = manifest.env.keys().map(String::as_str).collect();
    assert_eq!(names, ["2 be", "discovery.type", "node.max-count"]);
    let web = &manifest.processes[&"web".parse().unwrap()];
    assert_eq!(web.env["xpack.security.enabled"], "false");
    let normal = normalize(&manifest);
    assert!(normal.contains("\"discovery.type\""), "{normal}");

    let with = |lines: &str| format!("app = 'search'\n[processes.web]\n[env]\n{lines}");
    for (lines, expected) in [
        (
            "'A=B' = 'x'",
            expect![[r#"
            invalid_value 4:1 env."A=B": `A=B` is not a valid name of a variable [use 1 to 255 characters without `=` and NUL, such as `RUST_LOG` or `discovery.type`]
        "#]],
        ),
        (
            "'' = 'x'",
            expect![[r#"
            invalid_value 4:1 env."": `` is not a valid name of a variable [use 1 to 255 characters without `=` and NUL, such as `RUST_LOG` or `discovery.type`]
        "#]],
        ),
        (
            "'a\u{0}b' = 'x'",
            expect![[r#"
            syntax 4:3 env."a\\u{0}b": invalid literal string [remove the control character; in a value, write it as `\u00XX`]
        "#]],
        ),
    ] {
        check_lines(&with(lines), expected);
    }
    check_lines(
        &with(&format!("{} = 'x'", "n".repeat(256))),
        expect![[r#"
            invalid_value 4:1 env.nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn…: `nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn…` is not a valid name of a variable [use 1 to 255 characters without `=` and NUL, such as `RUST_LOG` or `discovery.type`]
        "#]],
    );
}

#[test]
fn case_a_name_with_dots_is_told_to_be_quoted_at_its_place() {
    let with = |lines: &str| format!("app = 'search'\n[processes.web]\n{lines}");
    for (lines, expected) in [
        (
            "[env]\ndiscovery.type = 'single-node'\nA = 'x'",
            expect![[r#"
                unquoted_name 4:1 env."discovery.type": `discovery.type` is not in quotes, so that each dot begins a table [quote the name: `"discovery.type" = …`]
            "#]],
        ),
        (
            "[env]\ndiscovery.type = 'single-node'\ndiscovery.seed.hosts = ''",
            expect![[r#"
                unquoted_name 4:11 env."discovery.type": `discovery.type` is not in quotes, so that each dot begins a table [quote the name: `"discovery.type" = …`]
                unquoted_name 5:16 env."discovery.seed.hosts": `discovery.seed.hosts` is not in quotes, so that each dot begins a table [quote the name: `"discovery.seed.hosts" = …`]
            "#]],
        ),
        (
            "[env.discovery]\ntype = 'single-node'",
            expect![[r#"
            unquoted_name 3:6 env."discovery.type": `discovery.type` is not in quotes, so that each dot begins a table [quote the name: `"discovery.type" = …`]
        "#]],
        ),
        (
            "env = { xpack.security.enabled = 'false' }",
            expect![[r#"
                unquoted_name 3:9 processes.web.env."xpack.security.enabled": `xpack.security.enabled` is not in quotes, so that each dot begins a table [quote the name: `"xpack.security.enabled" = …`]
            "#]],
        ),
        (
            "[env]\nA = { b = 'x' }",
            expect![[r#"
            wrong_type 4:5 env.A: expected a string, found a table [such as "info"]
        "#]],
        ),
        (
            "[routes]\nshop.example.com = { port = 8080 }",
            expect![[r#"
                unquoted_name 4:1 routes."shop.example.com": `shop.example.com` is not in quotes, so that each dot begins a table [quote the host: `"shop.example.com" = …`]
            "#]],
        ),
        (
            "[routes.shop.example.com]\nport = 8080",
            expect![[r#"
            unquoted_name 3:9 routes."shop.example.com": `shop.example.com` is not in quotes, so that each dot begins a table [quote the host: `[routes."shop.example.com"]`]
        "#]],
        ),
        (
            "[routes]\nshop.example.com.port = 8080",
            expect![[r#"
            unquoted_name 4:1 routes."shop.example.com": `shop.example.com` is not in quotes, so that each dot begins a table [quote the host: `"shop.example.com"`]
        "#]],
        ),
        (
            "[routes]\nshop.example.com = 'web'",
            expect![[r#"
            unquoted_name 4:1 routes."shop.example.com": `shop.example.com` is not in quotes, so that each dot begins a table [quote the host: `"shop.example.com" = …`]
        "#]],
        ),
        (
            "[routes]\nexample.com = 8080\nexample.org = ['web', 8080]",
            expect![[r#"
                unquoted_name 4:9 routes."example.com": `example.com` is not in quotes, so that each dot begins a table [quote the host: `"example.com" = …`]
                unquoted_name 5:9 routes."example.org": `example.org` is not in quotes, so that each dot begins a table [quote the host: `"example.org" = …`]
            "#]],
        ),
        (
            "[routes]\nlocalhost.prot = 8080",
            expect![[r#"
                missing_key 4:1 routes.localhost.port: missing key `port` [is `prot` meant to be it?]
                unknown_key 4:11 routes.localhost.prot: unknown key `prot` [did you mean `port`?]
            "#]],
        ),
        (
            "[routes.shop]\nexample.com = 8080",
            expect![[r#"
                unquoted_name 3:9 routes."shop.example.com": `shop.example.com` is not in quotes, so that each dot begins a table [quote the host: `"shop.example.com" = …`]
            "#]],
        ),
        (
            "[routes.localhost]\nprot = 8080",
            expect![[r#"
            missing_key 3:1 routes.localhost.port: missing key `port` [is `prot` meant to be it?]
            unknown_key 4:1 routes.localhost.prot: unknown key `prot` [did you mean `port`?]
        "#]],
        ),
    ] {
        check_lines(&with(lines), expected);
    }
}

/// Names that are no bare keys for another reason than a dot.
#[test]
fn case_a_name_with_a_star_a_port_or_a_blank_is_told_to_be_quoted() {
    for (text, expected) in [
        (
            "[routes]\n*.example.com = { port = 80 }\n",
            expect![[r#"
            syntax 2:1 routes."*": invalid unquoted key [quote the name: `"*.example.com" = …`]
        "#]],
        ),
        (
            "[routes]\nshop.example.com:8080 = { port = 80 }\n",
            expect![[r#"
                syntax 2:17 routes.shop.example."com:8080": invalid unquoted key [quote the name: `"shop.example.com:8080" = …`]
            "#]],
        ),
        (
            "[routes.*.example.com]\nport = 80\n",
            expect![[r#"
            syntax 1:9 routes."*": invalid unquoted key [quote the name: `[routes."*.example.com"]`]
        "#]],
        ),
        (
            "[env]\nmy var = \"x\"\n",
            expect![[r#"
            syntax 2:4 env.my: key with no value [quote the name: `"my var" = …`]
        "#]],
        ),
    ] {
        check_lines(text, expected);
    }
}

#[test]
fn case_a_yaml_file_is_told_to_be_one_once() {
    for (text, expected) in [
        (
            "# compose\nservices:\n  web:\n    image: nginx\n    ports:\n      - \"80:80\"\n    environment:\n      - A=b\n",
            expect![[r#"
                syntax 2:1 : a key and its value are joined by `=`, not by `:` [this looks like YAML; manifests are TOML: https://toml.io/en/v1.0.0]
            "#]],
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: shop\n",
            expect![[r#"
                syntax 1:1 : a key and its value are joined by `=`, not by `:` [this looks like YAML; manifests are TOML: https://toml.io/en/v1.0.0]
            "#]],
        ),
        (
            "app: \"shop\"\nprocesses:\n  web: {}\n",
            expect![[r#"
            syntax 1:1 : a key and its value are joined by `=`, not by `:` [this looks like YAML; manifests are TOML: https://toml.io/en/v1.0.0]
        "#]],
        ),
        // TOML with one wrong line is TOML.
        (
            "app: shop\n[processes.web]\n",
            expect![[r#"
            syntax 1:4 "app:": invalid unquoted key [a key and its value are joined by `=`: `key = "value"`]
            syntax 1:6 "app:": key with no value [a key and its value are joined by `=`: `key = "value"`]
        "#]],
        ),
        (
            "app: shop\nimage = 'x'\n",
            expect![[r#"
            syntax 1:4 "app:": invalid unquoted key [a key and its value are joined by `=`: `key = "value"`]
            syntax 1:6 "app:": key with no value [a key and its value are joined by `=`: `key = "value"`]
        "#]],
        ),
    ] {
        check_lines(text, expected);
    }
}
