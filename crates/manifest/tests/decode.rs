//! What is read, and what is said about what cannot be.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use expect_test::{Expect, expect};
use manifest::{Colour, Manifest, normalize, render};

/// The manifest of the design, one key a line.
const SHOP: &str = include_str!("manifests/shop.toml");

/// What a person sees for this text.
fn check(text: &str, expected: Expect) {
    let shown = match Manifest::from_toml("platform.toml", text) {
        Ok(decoded) => render(text, &decoded.warnings, Colour::Never) + "fine\n",
        Err(errors) => render(text, &errors, Colour::Never),
    };
    expected.assert_eq(&shown);
}

#[test]
fn the_whole_manifest() {
    check(SHOP, expect![[r#"
        fine
    "#]]);
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
                    env: {
                        "ROLE": "web",
                    },
                    secrets: [
                        "database",
                    ],
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
                            },
                            interval_ms: 5000,
                            timeout_ms: 2000,
                            grace_ms: 15000,
                            healthy: 2,
                            unhealthy: 3,
                        },
                    ),
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
                        },
                    ],
                    deploy: Deploy {
                        strategy: Rolling,
                        max_unavailable: 0,
                        max_surge: 1,
                        auto_revert: true,
                    },
                },
            },
            routes: {
                "shop.example.com": RouteTarget {
                    process: ProcessName(
                        "web",
                    ),
                    port: 8080,
                },
            },
        }
    "#]].assert_debug_eq(&decoded.manifest);
}

#[test]
fn the_smallest_manifest() {
    let text = "app = 'shop'";
    check(text, expect![[r#"
        fine
    "#]]);
    let decoded = Manifest::from_toml("platform.toml", text).unwrap();
    expect![[r#"{"app":"shop","env":{},"processes":{"web":{"deploy":{"auto_revert":true,"max_surge":1,"max_unavailable":0,"strategy":"rolling"},"env":{},"ports":[],"resources":{"cpu":0.25,"memory":"256MiB","scratch":"1GiB"},"restart":{"max_retries":10,"policy":"always"},"scaling":{"max":1,"min":1},"secrets":[],"stop":{"timeout":"10s"},"volumes":[]}},"routes":{}}"#]].assert_eq(&normalize(&decoded.manifest));
}

#[test]
fn nothing_at_all() {
    check("", expect![[r#"
        error[missing_key]: missing key `app`
        --> platform.toml:1:1
         = help: add it, such as `app = "shop"`
    "#]]);
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
"A B" = "x"
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
              = help: keys here: `app`, `image`, `env`, `processes`, `routes`

            error[reserved_name]: `PLATFORM_APP` is a name that the platform keeps for itself
             --> platform.toml:7:16
              |
            7 | PLATFORM_APP = "x"
              |                ^^^ env.PLATFORM_APP
              |
              = help: choose a name that does not start with `PLATFORM_`

            error[invalid_value]: `A B` is not a valid name of a variable
             --> platform.toml:8:1
              |
            8 | "A B" = "x"
              | ^^^^^ env."A B"
              |
              = help: use 1 to 255 letters, digits and underscores, not starting with a digit, such as `RUST_LOG`

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
