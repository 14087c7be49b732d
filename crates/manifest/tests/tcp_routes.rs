//! TCP routes: diagnostics, and what they mean.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use expect_test::expect;
use manifest::{Manifest, normalize};
use model::TlsMode;
use support::check_lines;

#[test]
fn what_does_not_go_together_is_told() {
    let head = "app = 'shop'\n";
    for (text, expected) in [
        (
            "[[tcp_routes]]\nlisten = 30080\nport = 80\n[[tcp_routes]]\nlisten = 25\nport = 80\n[[processes.web.ports]]\nport = 80\nprotocol = 'tcp'",
            expect![[r#"
                port_of_edges 6:10 tcp_routes[1].listen: edges listen at port 25 only where their operators allow it [take one of 30000 to 32767, or run each edge with `--tcp-ports 30000-32767,25`]
            "#]],
        ),
        (
            "[[tcp_routes]]\nlisten = 30080\nport = 80\n[[tcp_routes]]\nlisten = 30080\nport = 81\nprocess = 'db'\n[[tcp_routes]]\nport = 80",
            expect![[r#"
                unknown_port 4:8 tcp_routes[0].port: process `web` has no port 80 [add it: `[[processes.web.ports]]` with `port = 80`]
                duplicate 6:10 tcp_routes[1].listen: the port of edges `30080` is there twice [it is also at `tcp_routes[0].listen`; remove one]
                unknown_process 8:11 tcp_routes[1].process: there is no process `db` [there is "web"]
                missing_key 9:1 tcp_routes[2].listen: missing key `listen` [add it, such as `listen = 30432`]
            "#]],
        ),
        (
            "[[tcp_routes]]\nlisten = 30080\nport = 80\nhost = 'a.b'\ntls = 'terminate'\n[[tcp_routes]]\nlisten = 30080\nport = 80\nhost = 'c.b'\ntls = 'passthrough'\n[[tcp_routes]]\nlisten = 30080\nport = 80\nhost = 'a.b'\ntls = 'passthrough'\nalpn = ['h2']\n[[tcp_routes]]\nlisten = 30080\nport = 80\n[[processes.web.ports]]\nport = 80\nprotocol = 'tcp'",
            expect![[r#"
                duplicate 15:8 tcp_routes[2].host: the host `a.b` is there twice at port of edges 30080 [it is also at `tcp_routes[0].host`; remove one]
                conflict 17:1 tcp_routes[2].alpn: `alpn` goes with `tls = "terminate"` only [remove it: where TLS ends at the app, the app says what it offers]
                conflict 19:10 tcp_routes[3].listen: port of edges 30080 is for a host and for whoever connects [give both a `host` and `tls`, or one of them another port; the other is at `tcp_routes[0].host`]
            "#]],
        ),
        (
            "[[tcp_routes]]\nlisten = 30080\nport = 80\nhost = 'a.b'\n[[tcp_routes]]\nlisten = 30081\nport = 80\ntls = 'terminate'\n[[tcp_routes]]\nlisten = 30082\nport = 80\nhost = 'A'\ntls = 'both'\nalpn = ['a b', '']\n[[processes.web.ports]]\nport = 80\nprotocol = 'tcp'",
            expect![[r#"
                conflict 5:8 tcp_routes[0].host: missing key `tls`, which `host` needs: only by TLS does a client name its host [add `tls = "terminate"`, where edges have the certificate, or `tls = "passthrough"`, where the app has it; or remove `host`]
                conflict 9:7 tcp_routes[1].tls: missing key `host`, which `tls` needs [add it, such as `host = "db.example.com"`, or remove `tls`: then all is passed on, TLS too]
                invalid_value 13:8 tcp_routes[2].host: `A` is not a host name [write "a": in lowercase, without scheme, port, path and trailing dot]
                not_allowed 14:7 tcp_routes[2].tls: `both` is not allowed here [allowed: "terminate", "passthrough"]
                invalid_value 15:9 tcp_routes[2].alpn[0]: `a b` is no name of a protocol [write 1 to 64 visible ASCII characters, such as `postgresql` or `h2`]
                invalid_value 15:16 tcp_routes[2].alpn[1]: `` is no name of a protocol [write 1 to 64 visible ASCII characters, such as `postgresql` or `h2`]
            "#]],
        ),
    ] {
        check_lines(&format!("{head}{text}"), expected);
    }
}

#[test]
fn a_route_for_one_host_has_a_name_and_settings_of_its_own() {
    let text = "app = 'shop'\n[[processes.web.ports]]\nport = 5432\nprotocol = 'tcp'\n\
                [[tcp_routes]]\nlisten = 30432\nhost = 'a.example.com'\ntls = 'terminate'\nalpn = ['postgresql', 'x']\nport = 5432\n\
                [[tcp_routes]]\nlisten = 30432\nhost = 'b.example.com'\ntls = 'passthrough'\nport = 5432\n\
                [[tcp_routes]]\nlisten = 30433\nport = 5432\n";
    let decoded = Manifest::from_toml("platform.toml", text).unwrap();
    let routes = &decoded.manifest.routes;
    let names: Vec<_> = routes.keys().map(String::as_str).collect();
    let expected = [
        "tcp:30433",
        "tls:a.example.com:30432",
        "tls:b.example.com:30432",
    ];
    assert_eq!(names, expected);
    let settings = expected.map(|name| &routes[name].settings);
    assert!(settings[0].is_default());
    assert_eq!(
        settings.map(|settings| settings.tls),
        [None, Some(TlsMode::Terminate), Some(TlsMode::Passthrough)]
    );
    assert_eq!(settings[1].alpn, ["postgresql", "x"]);
    // What is normalized means the same.
    let again = manifest::fmt("platform.toml", text).unwrap();
    let again = Manifest::from_toml("platform.toml", &again).unwrap();
    assert_eq!(again.manifest, decoded.manifest);
    let written = normalize(&decoded.manifest);
    for key in [r#""host":"a.example.com""#, r#""tls":"terminate""#] {
        assert!(written.contains(key), "{written}");
    }
}
