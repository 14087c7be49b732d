//! Manifests that are read, and the diagnostics of those that cannot be.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use expect_test::expect;
use manifest::{Manifest, normalize};
use model::PlainHttp;
use support::{check, check_lines};

/// The manifest of the design, one key a line.
const SHOP: &str = include_str!("manifests/shop.toml");

#[test]
fn the_whole_manifest() {
    check(
        SHOP,
        expect![[r#"
        fine
    "#]],
    );
    let decoded = Manifest::from_toml("platform.toml", SHOP).unwrap();
    expect![[r#"
        Manifest {
            app: AppName(
                "shop",
            ),
            image: None,
            env: {
                "RUST_LOG": "info",
            },
            processes: {
                ProcessName(
                    "web",
                ): Process {
                    command: Some(
                        [
                            "/srv/shop",
                            "serve",
                        ],
                    ),
                    user: Some(
                        "shop",
                    ),
                    init: None,
                    env: {
                        "ROLE": "web",
                    },
                    secrets: [
                        "database",
                    ],
                    secret_modes: {},
                    egress: All,
                    stop: StopPolicy {
                        signal: Some(
                            "SIGTERM",
                        ),
                        timeout_ms: 10000,
                    },
                    restart: RestartPolicy {
                        when: Always,
                        max_retries: 10,
                    },
                    ports: [
                        Port {
                            port: 8080,
                            protocol: Http,
                            proxy_protocol: Some(
                                Strip,
                            ),
                        },
                    ],
                    healthcheck: Some(
                        HealthCheck {
                            probe: Http {
                                port: 8080,
                                path: "/healthz",
                                host: None,
                                headers: {},
                            },
                            interval_ms: 5000,
                            timeout_ms: 2000,
                            grace_ms: 15000,
                            healthy: 2,
                            unhealthy: 3,
                        },
                    ),
                    liveness: None,
                    region: None,
                    labels: {},
                    resources: Resources {
                        cpu_millis: 500,
                        memory_bytes: 268435456,
                        scratch_bytes: 1073741824,
                    },
                    scaling: Scaling {
                        min: 2,
                        max: 6,
                    },
                    volumes: [
                        Volume {
                            name: "data",
                            size_bytes: 1073741824,
                            path: None,
                            owner: None,
                        },
                    ],
                    deploy: Deploy {
                        strategy: Rolling,
                        max_unavailable: 0,
                        max_surge: 1,
                        auto_revert: true,
                        min_healthy_ms: 10000,
                        deadline_ms: Some(
                            600000,
                        ),
                        release_command: None,
                    },
                },
            },
            routes: {
                "shop.example.com": RouteTarget {
                    process: ProcessName(
                        "web",
                    ),
                    port: 8080,
                    settings: RouteSettings {
                        sticky: false,
                        idle_timeout_ms: None,
                        max_requests: None,
                        hard_limit: None,
                        rate_limit: None,
                        http: None,
                        hsts: None,
                        tls: None,
                        alpn: [],
                    },
                },
            },
        }
    "#]]
    .assert_debug_eq(&decoded.manifest);
}

#[test]
fn the_smallest_manifest() {
    let text = "app = 'shop'";
    check(
        text,
        expect![[r#"
        fine
    "#]],
    );
    let decoded = Manifest::from_toml("platform.toml", text).unwrap();
    expect![[r#"{"app":"shop","env":{},"processes":{"web":{"deploy":{"auto_revert":true,"max_surge":1,"max_unavailable":0,"min_healthy":"10s","strategy":"rolling"},"egress":"all","env":{},"ports":[],"resources":{"cpu":0.25,"memory":"256MiB","scratch":"1GiB"},"restart":{"max_retries":10,"policy":"always"},"scaling":{"max":1,"min":1},"secrets":[],"stop":{"timeout":"10s"},"volumes":[]}},"routes":{}}"#]].assert_eq(&normalize(&decoded.manifest));
}

#[test]
fn each_route_says_what_becomes_of_plain_http() {
    let text = "app = 'shop'\n[processes.web]\nports = [{ port = 80 }]\n[routes]\na = { port = 80 }\nb = { port = 80, http = 'serve' }\n\
                c = { port = 80, http = 'redirect', hsts = { max_age = '8760h', include_subdomains = true, preload = true } }";
    let decoded = Manifest::from_toml("platform.toml", text).unwrap();
    let settings = |host: &str| &decoded.manifest.routes[host].settings;
    assert!(settings("a").is_default());
    assert_eq!(settings("b").http, Some(PlainHttp::Serve));
    let hsts = settings("c").hsts.unwrap();
    assert_eq!(
        (hsts.max_age_seconds, hsts.include_subdomains, hsts.preload),
        (31_536_000, true, true)
    );
    // What is normalized means the same.
    let again = manifest::fmt("platform.toml", text).unwrap();
    let again = Manifest::from_toml("platform.toml", &again).unwrap();
    assert_eq!(again.manifest, decoded.manifest);
    let canonical = normalize(&decoded.manifest);
    let again = Manifest::from_toml("platform.toml", text).unwrap();
    assert_eq!(normalize(&again.manifest), canonical);
    assert!(canonical.contains(r#""http":"serve""#), "{canonical}");
    // A release of before the keys.
    let mut stored = serde_json::to_value(&decoded.manifest).unwrap();
    stored["routes"]["b"]
        .as_object_mut()
        .unwrap()
        .remove("settings");
    let before: Manifest = serde_json::from_value(stored).unwrap();
    assert!(before.routes["b"].settings.is_default());
}

#[test]
fn a_process_has_its_own_egress_or_the_manifests() {
    let text = "app = 'shop'\negress = 'internet'\n[processes.web]\n[processes.job]\negress = 'none'\n[processes.sync]\negress = 'all'";
    let decoded = Manifest::from_toml("platform.toml", text).unwrap();
    let egress: Vec<_> = (decoded.manifest.processes.iter())
        .map(|(name, process)| format!("{name} {}", process.egress.as_str()))
        .collect();
    assert_eq!(egress, ["job none", "sync all", "web internet"]);
    // What is normalized means the same.
    let again = Manifest::from_toml(
        "platform.toml",
        &manifest::fmt("platform.toml", text).unwrap(),
    )
    .unwrap();
    assert_eq!(again.manifest, decoded.manifest);
    // A release from before the key has everything, as it had then.
    let mut stored = serde_json::to_value(&decoded.manifest).unwrap();
    for process in stored["processes"].as_object_mut().unwrap().values_mut() {
        process.as_object_mut().unwrap().remove("egress");
    }
    let before: Manifest = serde_json::from_value(stored).unwrap();
    assert!(
        before
            .processes
            .values()
            .all(|process| process.egress.is_all())
    );
}

#[test]
fn nothing_at_all() {
    check(
        "",
        expect![[r#"
        error[missing_key]: missing key `app`
        --> platform.toml:1:1
         = help: add it, such as `app = "shop"`
    "#]],
    );
}

#[test]
fn many_mistakes_at_once() {
    check(
        r#"
app = "Shop_1"
image = "nginx:1.25"
colour = "red"

[env]
PLATFORM_APP = "x"
"A=B" = "x"
PORT = 80

[processes.web]
cmd = ["/srv/shop"]
command = "/srv/shop serve"
memory = "1GiB"
stop = { signal = "TERM", timeout = "10 sec" }
restart = { policy = "sometimes", max_retrys = 3 }

[processes.web.ports]
port = 8080

[processes.web.healthcheck]
type = "tcp"
path = "/"
interval = "1ms"

[processes.web.resources]
cpu = "0.5"
memory = "256MB"

[processes.web.scaling]
min = 3
max = 2

[[processes.web.volumes]]
nme = "data"

[processes.worker]
user = "root:root:root"

[processes.worker.deploy]
max_surge = 0

[[processes.worker.ports]]
port = 0
[[processes.worker.ports]]
port = 9000
protocol = "tcp"
[[processes.worker.ports]]
port = 9000

[routes]
"Shop.example.com" = { process = "web", port = 8080 }
"a.example.com" = { process = "wroker", port = 8080 }
"b.example.com" = { process = "worker" }
"#,
        expect![[r#"
            error[invalid_value]: `Shop_1` is not a valid name
             --> platform.toml:2:7
              |
            2 | app = "Shop_1"
              |       ^^^^^^^^ app
              |
              = help: write `shop-1`; a name is one DNS label: 1 to 63 lowercase letters, digits and hyphens, starting with a letter and not ending with a hyphen

            error[image_by_tag]: the image `nginx:1.25` is not pinned by digest
             --> platform.toml:3:9
              |
            3 | image = "nginx:1.25"
              |         ^^^^^^^^^^^^ image
              |
              = help: a tag can move, and then a release would not be what was tested: write `name@sha256:...`, or leave `image` out and give the tag to `platform deploy`, which resolves it once and says what it pinned

            error[unknown_key]: unknown key `colour`
             --> platform.toml:4:1
              |
            4 | colour = "red"
              | ^^^^^^ colour
              |
              = help: keys here: `app`, `image`, `egress`, `env`, `processes`, `routes`, `tcp_routes`

            error[reserved_name]: `PLATFORM_APP` is a name that the platform keeps for itself
             --> platform.toml:7:16
              |
            7 | PLATFORM_APP = "x"
              |                ^^^ env.PLATFORM_APP
              |
              = help: choose a name that does not start with `PLATFORM_`

            error[invalid_value]: `A=B` is not a valid name of a variable
             --> platform.toml:8:1
              |
            8 | "A=B" = "x"
              | ^^^^^ env."A=B"
              |
              = help: use 1 to 255 characters without `=` and NUL, such as `RUST_LOG` or `discovery.type`

            error[wrong_type]: expected a string, found an integer
             --> platform.toml:9:8
              |
            9 | PORT = 80
              |        ^^ env.PORT
              |
              = help: write it in quotes: "80"

            error[unknown_key]: unknown key `cmd`
              --> platform.toml:12:1
               |
            12 | cmd = ["/srv/shop"]
               | ^^^ processes.web.cmd
               |
               = help: did you mean `command`?

            error[wrong_type]: expected a list, found a string
              --> platform.toml:13:11
               |
            13 | command = "/srv/shop serve"
               |           ^^^^^^^^^^^^^^^^^ processes.web.command
               |
               = help: write a list: ["/srv/shop", "serve"]

            error[unknown_key]: unknown key `memory`
              --> platform.toml:14:1
               |
            14 | memory = "1GiB"
               | ^^^^^^ processes.web.memory
               |
               = help: it belongs to `resources`: write `resources.memory`

            error[not_allowed]: `TERM` is not allowed here
              --> platform.toml:15:19
               |
            15 | stop = { signal = "TERM", timeout = "10 sec" }
               |                   ^^^^^^ processes.web.stop.signal
               |
               = help: did you mean "SIGTERM"?

            error[invalid_value]: `10 sec` is not a duration
              --> platform.toml:15:37
               |
            15 | stop = { signal = "TERM", timeout = "10 sec" }
               |                                     ^^^^^^^^ processes.web.stop.timeout
               |
               = help: write "10s"; units are ms, s, m and h

            error[not_allowed]: `sometimes` is not allowed here
              --> platform.toml:16:22
               |
            16 | restart = { policy = "sometimes", max_retrys = 3 }
               |                      ^^^^^^^^^^^ processes.web.restart.policy
               |
               = help: allowed: "always", "on-failure", "never"

            error[unknown_key]: unknown key `max_retrys`
              --> platform.toml:16:35
               |
            16 | restart = { policy = "sometimes", max_retrys = 3 }
               |                                   ^^^^^^^^^^ processes.web.restart.max_retrys
               |
               = help: did you mean `max_retries`?

            error[wrong_type]: expected a list, found a table
              --> platform.toml:18:1
               |
            18 | [processes.web.ports]
               | ^^^^^^^^^^^^^^^^^^^^^ processes.web.ports
               |
               = help: write `[[processes.web.ports]]`, once for each

            error[missing_key]: missing key `port`, which `type = "tcp"` needs
              --> platform.toml:21:1
               |
            21 | [processes.web.healthcheck]
               | ^^^^^^^^^^^^^^^^^^^^^^^^^^^ processes.web.healthcheck.port
               |
               = help: add it, such as `port = 8080`

            error[not_with_this]: `path` does not go with `type = "tcp"`
              --> platform.toml:23:1
               |
            23 | path = "/"
               | ^^^^ processes.web.healthcheck.path
               |
               = help: remove it, or write `type = "http"`

            error[out_of_range]: `1ms` is out of range
              --> platform.toml:24:12
               |
            24 | interval = "1ms"
               |            ^^^^^ processes.web.healthcheck.interval
               |
               = help: write a value from "100ms" to "1h"

            error[wrong_type]: expected a number, found a string
              --> platform.toml:27:7
               |
            27 | cpu = "0.5"
               |       ^^^^^ processes.web.resources.cpu
               |
               = help: write it without quotes: 0.5

            error[invalid_value]: `256MB` is not a size
              --> platform.toml:28:10
               |
            28 | memory = "256MB"
               |          ^^^^^^^ processes.web.resources.memory
               |
               = help: write "256MiB"; units are KiB, MiB, GiB and TiB

            error[min_above_max]: `min` is 3 and `max` is 2
              --> platform.toml:31:7
               |
            31 | min = 3
               |       ^ processes.web.scaling.min
               |
               = help: `max` must be at least `min`: write `max = 3` or `min = 2`

            error[missing_key]: missing key `name`
              --> platform.toml:34:1
               |
            34 | [[processes.web.volumes]]
               | ^^^^^^^^^^^^^^^^^^^^^^^^^ processes.web.volumes[0].name
               |
               = help: is `nme` meant to be it?

            error[missing_key]: missing key `size`
              --> platform.toml:34:1
               |
            34 | [[processes.web.volumes]]
               | ^^^^^^^^^^^^^^^^^^^^^^^^^ processes.web.volumes[0].size
               |
               = help: add it, such as `size = "1GiB"`

            error[unknown_key]: unknown key `nme`
              --> platform.toml:35:1
               |
            35 | nme = "data"
               | ^^^ processes.web.volumes[0].nme
               |
               = help: did you mean `name`?

            error[invalid_value]: `root:root:root` is not a user
              --> platform.toml:38:8
               |
            38 | user = "root:root:root"
               |        ^^^^^^^^^^^^^^^^ processes.worker.user
               |
               = help: write a name or number of the image's users, with a group if wanted: "shop" or "1000:1000"

            error[no_progress]: `max_surge` and `max_unavailable` are both 0: no instance could be replaced
              --> platform.toml:41:13
               |
            41 | max_surge = 0
               |             ^ processes.worker.deploy.max_surge
               |
               = help: let one of them be at least 1

            error[out_of_range]: `0` is out of range
              --> platform.toml:44:8
               |
            44 | port = 0
               |        ^ processes.worker.ports[0].port
               |
               = help: write a value from 1 to 65535

            error[duplicate]: the port `9000` is there twice
              --> platform.toml:49:8
               |
            49 | port = 9000
               |        ^^^^ processes.worker.ports[2].port
               |
               = help: it is also at `processes.worker.ports[1].port`; remove one

            error[invalid_value]: `Shop.example.com` is not a host name
              --> platform.toml:52:1
               |
            52 | "Shop.example.com" = { process = "web", port = 8080 }
               | ^^^^^^^^^^^^^^^^^^ routes."Shop.example.com"
               |
               = help: write "shop.example.com": in lowercase, without scheme, port, path and trailing dot

            error[unknown_process]: there is no process `wroker`
              --> platform.toml:53:31
               |
            53 | "a.example.com" = { process = "wroker", port = 8080 }
               |                               ^^^^^^^^ routes."a.example.com".process
               |
               = help: did you mean "worker"?

            error[missing_key]: missing key `port`
              --> platform.toml:54:19
               |
            54 | "b.example.com" = { process = "worker" }
               |                   ^^^^^^^^^^^^^^^^^^^^^^ routes."b.example.com".port
               |
               = help: add it, such as `port = 8080`
        "#]],
    );
}

#[test]
fn text_that_is_not_toml_is_a_syntax_error() {
    for (text, expected) in [
        (
            "app = shop",
            expect![[r#"
                syntax 1:7 app: `shop` is not a value [put the text in quotes: "shop"]
            "#]],
        ),
        (
            "app: shop\n",
            expect![[r#"
                syntax 1:1 : a key and its value are joined by `=`, not by `:` [this looks like YAML; manifests are TOML: https://toml.io/en/v1.0.0]
            "#]],
        ),
        (
            "---\napp: shop\n",
            expect![[r#"
                syntax 2:1 : a key and its value are joined by `=`, not by `:` [this looks like YAML; manifests are TOML: https://toml.io/en/v1.0.0]
            "#]],
        ),
        (
            "{ \"app\": \"shop\" }",
            expect![[r#"
                syntax 1:1 : invalid key-value pair [this looks like JSON; manifests are TOML: https://toml.io/en/v1.0.0]
            "#]],
        ),
        (
            "app = \"shop",
            expect![[r#"
                syntax 1:12 app: invalid basic string, expected `"` [-]
            "#]],
        ),
        (
            "app = 'shop' image = 'x'",
            expect![[r#"
            syntax 1:14 app: unexpected key or value, expected a new line, `#` [-]
        "#]],
        ),
        (
            "app = “shop”",
            expect![[r#"
                syntax 1:7 app: typographic quotes do not enclose a text [use straight quotes: " or ']
            "#]],
        ),
        (
            "app =",
            expect![[r#"
                syntax 1:6 app: there is no value [write one after the `=`]
            "#]],
        ),
        (
            "[processes.web\ncommand = []",
            expect![[r#"
                syntax 1:15 processes.web: unclosed table, expected `]` [-]
            "#]],
        ),
        (
            "[[processes.web.ports]\nport = 1",
            expect![[r#"
                syntax 1:23 processes.web.ports: unclosed array table, expected `]` [-]
            "#]],
        ),
        (
            "app = 'a'\napp = 'b'",
            expect![[r#"
            duplicate_key 2:1 app: `app` is defined twice [it is already defined in line 1; keep one of them]
        "#]],
        ),
        (
            "[env]\nA = '1'\n[processes.web]\n[env]\nB = '2'",
            expect![[r#"
                missing_key 1:1 app: missing key `app` [add it, such as `app = "shop"`]
                duplicate_key 4:2 env: `env` is defined twice [it is already defined in line 1; keep one of them]
            "#]],
        ),
        (
            "[processes.web]\nports = []\n[[processes.web.ports]]\nport = 1",
            expect![[r#"
                missing_key 1:1 app: missing key `app` [add it, such as `app = "shop"`]
                duplicate_key 3:17 processes.web.ports: `ports` is defined twice [it is already defined in line 2; keep one of them]
            "#]],
        ),
        (
            "env = { A = '1' }\n[env.B]",
            expect![[r#"
                missing_key 1:1 app: missing key `app` [add it, such as `app = "shop"`]
                duplicate_key 2:2 env: `env` cannot be extended: it is already defined as an inline table [it is already defined in line 1; keep one of them]
            "#]],
        ),
        (
            "app = 'shop'\nprocesses.web.deploy.auto_revert = yes",
            expect![[r#"
                syntax 2:36 processes.web.deploy.auto_revert: `yes` is not a value [write `true`]
            "#]],
        ),
        (
            "app = 'shop'\nprocesses.web.user = null",
            expect![[r#"
                syntax 2:22 processes.web.user: `null` is not a value [TOML has no null: leave the key out]
            "#]],
        ),
        (
            "app = \"sh\\op\"",
            expect![[r#"
                syntax 1:11 app: this escape does not exist [there are \b \t \n \f \r \" \\ \uXXXX and \UXXXXXXXX; a text in single quotes has no escapes]
            "#]],
        ),
        (
            "app = 'shop'\nprocesses.web.scaling = { min = 01, max = 2_ }",
            expect![[r#"
                syntax 2:33 processes.web.scaling.min: unexpected leading zero [-]
                syntax 2:44 processes.web.scaling.max: `_` may only go between digits [-]
            "#]],
        ),
    ] {
        check_lines(text, expected);
    }
}

const ESCAPES: &str = r#"
app = "shop"
env.A = "\e[0m\x41"
"#;

#[test]
fn text_of_toml_1_1_is_refused_with_advice() {
    for (text, expected) in [
        (
            "app = 'shop'\nenv = { A = '1', }",
            expect![[r#"
            toml_1_1 2:16 env.A: a comma after the last value of an inline table [that is TOML 1.1, manifests are TOML 1.0: remove the comma before the `}`]
        "#]],
        ),
        (
            "app = 'shop'\nenv = {\n  A = '1', # one\n  B = '2'\n}",
            expect![[r#"
                toml_1_1 2:8 env: a new line within an inline table [that is TOML 1.1, manifests are TOML 1.0: write the table on one line, or as a `[table]` of its own]
            "#]],
        ),
        (
            ESCAPES,
            expect![[r#"
            toml_1_1 3:10 env.A: the escape `\e` or `\x` [that is TOML 1.1, manifests are TOML 1.0: write it as `\u00XX`]
            toml_1_1 3:15 env.A: the escape `\e` or `\x` [that is TOML 1.1, manifests are TOML 1.0: write it as `\u00XX`]
        "#]],
        ),
        (
            "app = 'shop'\nat = 07:32",
            expect![[r#"
                unknown_key 2:1 at: unknown key `at` [keys here: `app`, `image`, `egress`, `env`, `processes`, `routes`, `tcp_routes`]
                toml_1_1 2:6 at: a time without seconds [that is TOML 1.1, manifests are TOML 1.0: write the seconds as well, such as `07:32:00`]
            "#]],
        ),
    ] {
        check_lines(text, expected);
    }
}

#[test]
fn mistakes_beside_a_broken_value_are_told_too() {
    check_lines(
        "app = shop\nimage = 'nginx'\n[processes.web]\nuser = \"\\q\"\nreplicas = 3\n",
        expect![[r#"
            syntax 1:7 app: `shop` is not a value [put the text in quotes: "shop"]
            image_by_tag 2:9 image: the image `nginx` is not pinned by digest [a tag can move, and then a release would not be what was tested: write `name@sha256:...`, or leave `image` out and give the tag to `platform deploy`, which resolves it once and says what it pinned]
            syntax 4:10 processes.web.user: this escape does not exist [there are \b \t \n \f \r \" \\ \uXXXX and \UXXXXXXXX; a text in single quotes has no escapes]
            unknown_key 5:1 processes.web.replicas: unknown key `replicas` [did you mean `scaling`?]
        "#]],
    );
}

#[test]
fn meaning() {
    let head = "app = 'shop'\n";
    for (text, expected) in [
        (
            "processes = {}",
            expect![[r#"
            wrong_length 2:13 processes: `processes` is empty [name at least one, or leave it out]
        "#]],
        ),
        (
            "command = ['x']",
            expect![[r#"
            unknown_key 2:1 command: unknown key `command` [it belongs to one of the `processes`: write it under `[processes.web]`]
        "#]],
        ),
        (
            "memory = '1GiB'",
            expect![[r#"
                unknown_key 2:1 memory: unknown key `memory` [it belongs to one of the `processes`: write it under `[processes.web.resources]`]
            "#]],
        ),
        (
            "[[processes]]",
            expect![[r#"
                wrong_type 2:1 processes: expected a table, found a list [name each: write `[processes.web]`]
            "#]],
        ),
        (
            "[routes]\na = { port = 80 }",
            expect![[r#"
            unknown_port 3:14 routes.a.port: process `web` has no port 80 [add it: `[[processes.web.ports]]` with `port = 80`]
        "#]],
        ),
        (
            "[routes]\na = { port = 80, process = 'api' }",
            expect![[r#"
                unknown_process 3:28 routes.a.process: there is no process `api` [there is "web"]
            "#]],
        ),
        (
            "[routes]\na = 'web'",
            expect![[r#"
                wrong_type 3:5 routes.a: expected a table, found a string [such as { port = 8080 }]
            "#]],
        ),
        (
            "[routes]\n'https://Shop.example.com/' = { port = 80 }",
            expect![[r#"
                invalid_value 3:1 routes."https://Shop.example.com/": `https://Shop.example.com/` is not a host name [write "shop.example.com": in lowercase, without scheme, port, path and trailing dot]
            "#]],
        ),
        (
            "[routes]\n'*.example.com' = { port = 80 }",
            expect![[r#"
            invalid_value 3:1 routes."*.example.com": `*.example.com` is not a host name [wildcards are not supported; name each host]
        "#]],
        ),
        (
            "[routes]\na = { port = 80 }\n[processes.web]\nports = [{ port = 80 }]",
            expect![[r#"
                no_healthcheck 3:1 routes.a: process `web` has no health check: it gets requests as soon as port 80 accepts connections [add `[processes.web.healthcheck]` with `type = "http"` and `port = 80`]
            "#]],
        ),
        (
            "[routes]\na = { port = 80, sticky = 'yes', idle_timeout = '100ms', max_requests = 0, hard_limit = 9000, burst = 5 }\nb = { port = 80, rate_limit = 'x', burst = 5 }\n[[processes.web.ports]]\nport = 80\n[processes.web.healthcheck]\ntype = 'tcp'\nport = 80",
            expect![[r#"
                wrong_type 3:27 routes.a.sticky: expected a boolean, found a string [write `true` or `false`]
                out_of_range 3:49 routes.a.idle_timeout: `100ms` is out of range [write a value from "1s" to "1h"]
                out_of_range 3:73 routes.a.max_requests: `0` is out of range [write a value from 1 to 5000]
                out_of_range 3:89 routes.a.hard_limit: `9000` is out of range [write a value from 1 to 5000]
                conflict 3:103 routes.a.burst: missing key `rate_limit`, which `burst` needs [add it, such as `rate_limit = 5`, or remove `burst`]
                wrong_type 4:31 routes.b.rate_limit: expected an integer, found a string [such as 10]
            "#]],
        ),
        (
            "[routes]\na = { port = 80 }\n[processes.web]\nports = [{ port = 80, protocol = 'tcp' }]",
            expect![[r#"
                not_http 3:14 routes.a.port: port 80 of process `web` is `tcp`, which has no host names [give the port `protocol = "http"` or `"h2c"`, or lead a port of edges to it: `[[tcp_routes]]`]
            "#]],
        ),
        (
            "[processes.web]\nports = [{ port = 80, protocol = 'h2c', proxy_protocol = 'v2' }]",
            expect![[r#"
                not_with_this 3:41 processes.web.ports[0].proxy_protocol: `proxy_protocol` does not go with `protocol = "h2c"` [remove it, or write `protocol = "http"` or `protocol = "tcp"`]
            "#]],
        ),
        (
            "[routes]\na = { port = 80 }\n[processes.web]\nports = [{ port = 80, protocol = 'h2c' }]\nhealthcheck = { type = 'http', port = 80 }",
            expect![[r#"
                probe_protocol 6:39 processes.web.healthcheck.port: port 80 is `h2c`, and the check asks by HTTP/1.1 [write `type = "tcp"`, unless the app speaks HTTP/1.1 there, too]
            "#]],
        ),
        (
            "[routes]\na = { port = 80, http = 'block', hsts = { preload = true } }",
            expect![[r#"
                unknown_port 3:14 routes.a.port: process `web` has no port 80 [add it: `[[processes.web.ports]]` with `port = 80`]
                not_allowed 3:25 routes.a.http: `block` is not allowed here [allowed: "redirect", "serve"]
                missing_key 3:41 routes.a.hsts.max_age: missing key `max_age` [add it, such as `max_age = "8760h"`]
            "#]],
        ),
        (
            "[routes]\na = { port = 80, hsts = { max_age = '720h', preload = true } }\n[[processes.web.ports]]\nport = 80\n[processes.web.healthcheck]\ntype = 'tcp'\nport = 80",
            expect![[r#"
                conflict 3:55 routes.a.hsts.preload: `preload` goes with a `max_age` of a year or more and `include_subdomains = true` only [write `hsts = { max_age = "8760h", include_subdomains = true, preload = true }`, or leave `preload` out]
            "#]],
        ),
        (
            "[processes.web]\nsecrets = ['a', 'b', 'a']",
            expect![[r#"
            duplicate 3:22 processes.web.secrets[2]: the secret bundle `a` is there twice [it is also at `processes.web.secrets[0]`; remove one]
        "#]],
        ),
        (
            "[processes.web]\nenv = { PORT = '80' }\nports = [{ port = 81 }]",
            expect![[r#"
                overridden 3:16 processes.web.env.PORT: `PORT` is "80", but the first port is 81 [leave it out: the platform sets `PORT` to the first of the `ports`]
            "#]],
        ),
        (
            "[processes.web]\ninit = 'tini'",
            expect![[r#"
                not_allowed 3:8 processes.web.init: `tini` is not allowed here [allowed: "platform", "image"]
            "#]],
        ),
        (
            "egress = 'private'",
            expect![[r#"
                not_allowed 2:10 egress: `private` is not allowed here [allowed: "all", "internet", "none"]
            "#]],
        ),
        (
            "[processes.web]\negress = 'nothing'",
            expect![[r#"
                not_allowed 3:10 processes.web.egress: `nothing` is not allowed here [allowed: "all", "internet", "none"]
            "#]],
        ),
        (
            "[processes.web]\negres = 'none'",
            expect![[r#"
                unknown_key 3:1 processes.web.egres: unknown key `egres` [did you mean `egress`?]
            "#]],
        ),
        (
            "[processes.web]\nuser = '4294967295'",
            expect![[r#"
            out_of_range 3:8 processes.web.user: `4294967295` is not the number of a user [numbers of users and groups are from 0 to 4294967294]
        "#]],
        ),
        (
            "[processes.web]\nhealthcheck = { type = 'http' }",
            expect![[r#"
                missing_key 3:15 processes.web.healthcheck.port: missing key `port`, which `type = "http"` needs [add it, such as `port = 8080`]
            "#]],
        ),
        (
            "[processes.web]\nhealthcheck = { port = 80 }",
            expect![[r#"
                missing_key 3:15 processes.web.healthcheck.type: missing key `type` [add it, such as `type = "http"`]
            "#]],
        ),
        (
            "[processes.web]\nhealthcheck = { type = 'http', port = 80, path = 'healthz' }",
            expect![[r#"
                unknown_port 3:39 processes.web.healthcheck.port: process `web` has no port 80 [add it: `[[processes.web.ports]]` with `port = 80`]
                invalid_value 3:50 processes.web.healthcheck.path: `healthz` is not an absolute path [write "/healthz"]
            "#]],
        ),
        (
            "[processes.web]\nports = [{ port = 80 }]\nhealthcheck = { type = 'tcp', port = 80, host = 'a', headers = {} }",
            expect![[r#"
                not_with_this 4:42 processes.web.healthcheck.host: `host` does not go with `type = "tcp"` [remove it, or write `type = "http"`]
                not_with_this 4:54 processes.web.healthcheck.headers: `headers` does not go with `type = "tcp"` [remove it, or write `type = "http"`]
            "#]],
        ),
        (
            "[processes.web]\nports = [{ port = 80 }]\nhealthcheck = { type = 'http', port = 80, host = 'A:80', headers = { 'X:' = 'a', B = ' a' } }",
            expect![[r#"
                invalid_value 4:50 processes.web.healthcheck.host: `A:80` is not a host name [write "a": in lowercase, without scheme, port, path and trailing dot]
                invalid_value 4:70 processes.web.healthcheck.headers."X:": `X:` is not the name of a header [write 1 to 64 letters, digits and hyphens without a colon, such as `X-Forwarded-Proto`]
                invalid_value 4:86 processes.web.healthcheck.headers.B: ` a` is not the value of a header [use printable ASCII characters, with spaces only between them]
            "#]],
        ),
        (
            "[processes.web]\nports = [{ port = 80 }]\nhealthcheck = { type = 'http', port = 80, headers = { host = 'a', Connection = 'close', X-A = 'a', x-a = 'b' } }",
            expect![[r#"
                not_allowed 4:62 processes.web.healthcheck.headers.host: `host` is not allowed here [write it as `healthcheck.host`]
                not_allowed 4:80 processes.web.healthcheck.headers.Connection: `Connection` is not allowed here [it is about the connection, which the node makes; leave it out]
                duplicate 4:106 processes.web.healthcheck.headers.x-a: the header `x-a` is there twice [the case of letters makes no difference; remove one]
            "#]],
        ),
        (
            "[processes.web]\nhealthcheck = { type = 'command', command = [] }",
            expect![[r#"
                wrong_length 3:45 processes.web.healthcheck.command: `command` is empty [leave the key out, or give it a value]
            "#]],
        ),
        (
            "[processes.web]\nscaling = { max = 0 }",
            expect![[r#"
            out_of_range 3:19 processes.web.scaling.max: `0` is out of range [write a value from 1 to 1000]
        "#]],
        ),
        (
            "[processes.web]\nscaling = { min = 5, max = 2 }",
            expect![[r#"
                min_above_max 3:19 processes.web.scaling.min: `min` is 5 and `max` is 2 [`max` must be at least `min`: write `max = 5` or `min = 2`]
            "#]],
        ),
        (
            "[processes.web]\nresources = { cpu = 0.0005 }",
            expect![[r#"
                out_of_range 3:21 processes.web.resources.cpu: `0.0005` is out of range [write a value from 0.01 to 256]
            "#]],
        ),
        (
            "[processes.web]\nresources = { cpu = 0.1234, memory = '100000KiB' }",
            expect![[r#"
                out_of_range 3:21 processes.web.resources.cpu: `0.1234` is finer than a thousandth of a core [write 0.123]
                out_of_range 3:38 processes.web.resources.memory: `100000KiB` is not a whole number of 1MiB [write "98MiB"]
            "#]],
        ),
        (
            "[processes.web]\nstop = { timeout = 10, signal = 15 }",
            expect![[r#"
                wrong_type 3:20 processes.web.stop.timeout: expected a duration such as "10s", found an integer [write it with its unit: "10s"]
                wrong_type 3:33 processes.web.stop.signal: expected a string, found an integer [such as "SIGTERM"]
            "#]],
        ),
        (
            "[processes.web]\nvolumes = [{ name = 'a', size = '1GB' }, { name = 'a', size = '1GiB' }]",
            expect![[r#"
                invalid_value 3:33 processes.web.volumes[0].size: `1GB` is not a size [write "1GiB"; units are KiB, MiB, GiB and TiB]
            "#]],
        ),
        (
            "[processes.web]\nvolumes = [{ name = 'a' }, { name = 'b', size = '1GiB' }, { name = 'b', size = '1GiB' }]",
            expect![[r#"
                missing_key 3:12 processes.web.volumes[0].size: missing key `size` [add it, such as `size = "1GiB"`]
                duplicate 3:68 processes.web.volumes[2].name: the volume `b` is there twice [it is also at `processes.web.volumes[1].name`; remove one]
            "#]],
        ),
        (
            "[processes.web]\nsecrets = ['a', { name = 'b', mode = '0400' }, { name = 'c', mode = '444' }, { mode = '0444' }, 7, { name = 'a' }]",
            expect![[r#"
                invalid_value 3:69 processes.web.secrets[2].mode: `444` is not a mode [write four octal digits whose first is 0 and by which the owner reads the file, such as "0444" or "0400"]
                missing_key 3:78 processes.web.secrets[3].name: missing key `name` [add it, such as `name = "database"`]
                wrong_type 3:97 processes.web.secrets[4]: expected a name, found an integer [write it in quotes: "7"]
                duplicate 3:100 processes.web.secrets[5]: the secret bundle `a` is there twice [it is also at `processes.web.secrets[0]`; remove one]
            "#]],
        ),
        (
            "[processes.web]\nvolumes = [{ name = 'a', size = '1GiB', path = '/data/../x' }, { name = 'b', size = '1GiB', path = '/run/secrets/x' }, \
             { name = 'c', size = '1GiB', path = '/run', owner = 'a b' }, { name = 'd', size = '1GiB', path = '/data' }, \
             { name = 'e', size = '1GiB', path = '/data' }]",
            expect![[r#"
                invalid_value 3:48 processes.web.volumes[0].path: `/data/../x` is not a path in the guest [write it from the root on, without `.`, `..` and a slash at the end, such as "/var/lib/mysql"]
                reserved_name 3:100 processes.web.volumes[1].path: `/run/secrets` is a place that the platform keeps for itself [a volume is at `/mnt/volumes/<name>` anyway; `path` is for images that keep their data elsewhere]
                reserved_name 3:156 processes.web.volumes[2].path: a volume at `/run` would hide what the platform has there [name a directory in it, such as "/run/data"]
                invalid_value 3:172 processes.web.volumes[2].owner: `a b` is not a user [write a name or number of the image's users, with a group if wanted: "shop" or "1000:1000"]
                duplicate 3:264 processes.web.volumes[4].path: the path `/data` is there twice [the volume `d` has it as well]
            "#]],
        ),
        (
            "[processes.Web_1]",
            expect![[r#"
            invalid_value 2:12 processes.Web_1: `Web_1` is not a valid name [write `web-1`; a name is one DNS label: 1 to 63 lowercase letters, digits and hyphens, starting with a letter and not ending with a hyphen]
        "#]],
        ),
        (
            "image = 'docker.io/library/nginx@sha256:abc'",
            expect![[r#"
                invalid_value 2:9 image: `sha256:abc` is not a digest [a digest is `sha256:` and 64 lowercase hexadecimal digits]
            "#]],
        ),
    ] {
        check_lines(&format!("{head}{text}"), expected);
    }
}
