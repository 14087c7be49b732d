//! The one layout.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use expect_test::{Expect, expect};
use manifest::{Colour, diff, fmt, render};

const SHOP: &str = include_str!("manifests/shop.toml");

fn check(text: &str, expected: Expect) {
    let formatted = fmt("platform.toml", text).unwrap();
    expected.assert_eq(&formatted);
    assert_eq!(
        fmt("platform.toml", &formatted).unwrap(),
        formatted,
        "it changed again"
    );
}

#[test]
fn a_formatted_manifest_stays_as_it_is() {
    assert_eq!(fmt("platform.toml", SHOP).unwrap(), SHOP);
    assert_eq!(fmt("platform.toml", "").unwrap(), "");
}

#[test]
fn keys_get_their_order_and_tables_their_form() {
    check(
        r#"
image='a@sha256:x'
app   = 'shop'
processes.worker.scaling.min = 0
routes = { "b.example.com" = { port = 80, process = "web" }, a = { port = 80 } }
[processes.web]
resources = { memory = "1GiB", cpu = 1 }
ports = [{ port = 8080 }, { protocol = "tcp", port = 9000 }]
command = [ "/srv/shop"
  , "serve" ]
[processes.web.stop]
timeout = "5s"
signal = "SIGINT"
[env]
B = "2"
"A" = "1"
"#,
        expect![[r#"
            app = "shop"
            image = "a@sha256:x"

            [env]
            A = "1"
            B = "2"

            [processes.web]
            command = ["/srv/shop", "serve"]
            stop = { signal = "SIGINT", timeout = "5s" }

            [[processes.web.ports]]
            port = 8080

            [[processes.web.ports]]
            port = 9000
            protocol = "tcp"

            [processes.web.resources]
            cpu = 1
            memory = "1GiB"

            [processes.worker.scaling]
            min = 0

            [routes]
            a = { port = 80 }
            "b.example.com" = { process = "web", port = 80 }
        "#]],
    );
}

#[test]
fn comments_stay_with_what_they_belong_to() {
    check(
        r#"

# Copyright of the file.
# Second line.

# what we sell
image = "x"   # by digest
app = "shop" # the shop
# routes = {}

# floating, before the process

[processes.web] # the front
# about the whole process

# user first
user = "shop"   #root is not needed
command = [ # the list
   "/srv/shop", # program
   # the way
   "serve"
   # no more
]

# stop it
stop = { timeout = "5s" } # soon
# env = { ROLE = "web" }

[[processes.web.ports]]
# the port
port = 8080


# second port
[[processes.web.ports]] # for metrics
port = 9000

[processes.web.restart] # seldom
policy = "never"

[processes.web.env]
# a role
ROLE = "web"

# the end
# of it

# really
"#,
        expect![[r##"
            # Copyright of the file.
            # Second line.

            app = "shop" # the shop
            # routes = {}

            # what we sell
            image = "x" # by digest

            # floating, before the process

            [processes.web] # the front
            # about the whole process

            command = [
                # the list
                "/srv/shop", # program
                # the way
                "serve",
                # no more
            ]

            # user first
            user = "shop" #root is not needed

            # stop it
            stop = { timeout = "5s" } # soon
            # env = { ROLE = "web" }

            restart = { policy = "never" } # seldom

            [processes.web.env]
            # a role
            ROLE = "web"

            [[processes.web.ports]]
            # the port
            port = 8080

            # second port
            [[processes.web.ports]] # for metrics
            port = 9000

            # the end
            # of it

            # really
        "##]],
    );
}

#[test]
fn values_longer_than_a_line_are_split() {
    let long = "x".repeat(60);
    let text = format!(
        r#"
        app = "shop"
        [processes.web]
        env = {{ A = "{long}", B = "{long}" }}
        command = ["{long}", "{long}"]
        "#
    );
    check(
        &text,
        expect![[r#"
        app = "shop"

        [processes.web]
        command = [
            "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        ]

        [processes.web.env]
        A = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
        B = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
    "#]],
    );
}

#[test]
fn unknown_keys_are_kept_last() {
    check(
        r#"
zebra = { b = 1, a = [1, { c = 2 }] }
[tool.other]
x = 1
[[tool.list]]
y.z = 2
[[tool.list.deep]]
[app]
"#,
        expect![[r#"
            zebra = { b = 1, a = [1, { c = 2 }] }

            [app]

            [tool.other]
            x = 1

            [[tool.list]]

            [tool.list.y]
            z = 2

            [[tool.list.deep]]
        "#]],
    );
}

#[test]
fn spellings_stay() {
    let text = r#"
a = 0x1F
b = 1_000
c = '''
  as it
 is'''
d = 'C:\x'
e = +1.50
"f g" = 1979-05-27T07:32:00Z
'ü' = inf
"#;
    check(
        &text.replace("inf\n", "inf\r\n"),
        expect![[r#"
        a = 0x1F
        b = 1_000
        c = '''
          as it
         is'''
        d = 'C:\x'
        e = +1.50
        "f g" = 1979-05-27T07:32:00Z
        "ü" = inf
    "#]],
    );
}

#[test]
fn a_difference_is_shown() {
    let before = "image = 'x'\napp = \"shop\"\n";
    let after = fmt("platform.toml", before).unwrap();
    expect![[r#"
        --- platform.toml
        +++ platform.toml (formatted)
        @@ -1,2 +1,2 @@
        -image = 'x'
         app = "shop"
        +image = "x"
    "#]]
    .assert_eq(&diff("platform.toml", before, &after));
    assert_eq!(diff("platform.toml", &after, &after), "");
}

#[test]
fn text_that_is_not_toml_is_not_formatted() {
    let text = "app = shop\n[x\n";
    let errors = fmt("platform.toml", text).unwrap_err();
    let shown = render(text, &errors, Colour::Never);
    expect![[r#"
        error[syntax]: `shop` is not a value
         --> platform.toml:1:7
          |
        1 | app = shop
          |       ^^^^ app
          |
          = help: put the text in quotes: "shop"

        error[syntax]: unclosed table, expected `]`
         --> platform.toml:2:3
          |
        2 | [x
          |   ^ x
    "#]]
    .assert_eq(&shown);
}
