//! `platform network doctor` over machines: a path that is broken, one that is too narrow, a clock, and a machine that is off.

use serde_json::Value;

use crate::machines::{Machines, isolated, run, wait_for};

/// What the command prints as JSON, whether or not it finds something, and whether it succeeded.
fn doctor(machines: &Machines, members: &[&str]) -> (bool, Value) {
    let mut arguments = vec!["network", "doctor", "--format", "json"];
    arguments.extend(members);
    let output = machines.command(&arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let diagnosis = serde_json::from_slice(&output.stdout);
    let diagnosis = diagnosis.unwrap_or_else(|error| panic!("{error}: {errors}"));
    (output.status.success(), diagnosis)
}

fn codes(diagnosis: &Value) -> Vec<String> {
    let findings = diagnosis["findings"].as_array().unwrap();
    let code = |finding: &Value| finding["code"].as_str().unwrap().to_owned();
    findings.iter().map(code).collect()
}

fn on(machine: &str, program: &str, arguments: &[&str]) {
    let output = Machines::on(machine, program)
        .args(arguments)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
}

#[test]
fn the_doctor_names_what_is_broken_and_what_to_do() {
    if !isolated("doctor::the_doctor_names_what_is_broken_and_what_to_do") {
        return;
    }
    let mut machines = Machines::start(2);
    wait_for("members that reach each other", || doctor(&machines, &[]).0);
    let (is_ok, diagnosis) = doctor(&machines, &[]);
    assert!(is_ok && codes(&diagnosis).is_empty(), "{diagnosis:#}");
    let members = diagnosis["members"].as_array().unwrap();
    assert_eq!(members.len(), 3, "{diagnosis:#}");
    for member in members {
        assert_eq!(member["state"], "measured");
        assert!(member["clock_ahead_ms"].as_i64().unwrap().abs() <= 10);
        let links = member["links"].as_object().unwrap();
        assert_eq!(links.len(), 2);
        assert!(links.values().all(|link| link["mtu"] == 1420), "{links:#?}");
    }
    let (ok, text) = machines.cli(&["network", "doctor"]);
    assert!(ok && text.contains("nothing is wrong"), "{text}");

    // Nothing of n1 arrives at n2.
    on(
        "n2",
        "nft",
        &[
            "add table ip broken; add chain ip broken in { type filter hook input priority 0; }; add rule ip broken in ip saddr 198.18.7.11 udp dport 51820 drop",
        ],
    );
    let (is_ok, diagnosis) = doctor(&machines, &["n1"]);
    assert!(!is_ok && codes(&diagnosis) == ["one_way"], "{diagnosis:#}");
    let (ok, text) = machines.cli(&["network", "doctor"]);
    assert!(
        !ok && text.contains("no packet from n1 arrives at n2"),
        "{text}"
    );
    assert!(
        text.contains("let UDP port 51820 in on n2 (198.18.7.12) from n1 (198.18.7.11)"),
        "{text}"
    );
    on("n2", "nft", &["delete table ip broken"]);

    // The network of n2 takes 1460 bytes, and cuts nothing that comes from elsewhere: the switch drops it.
    run("ip", &["-n", "n2", "link", "set", "eth0", "mtu", "1460"]);
    let (is_ok, diagnosis) = doctor(&machines, &[]);
    assert!(
        !is_ok && codes(&diagnosis)[0] == "mtu_too_large",
        "{diagnosis:#}"
    );
    let finding = &diagnosis["findings"][0];
    assert_eq!(finding["members"][0]["node"], "n2", "{finding:#}");
    let mend = finding["mend"].as_str().unwrap();
    assert!(mend.contains("platform network set --mtu 1380"), "{mend}");
    machines.ok(&["network", "set", "--mtu", "1380"]);
    wait_for("packets that fit", || doctor(&machines, &[]).0);
    run("ip", &["-n", "n2", "link", "set", "eth0", "mtu", "1500"]);
    machines.ok(&["network", "set", "--mtu", "1420"]);
    wait_for("packets of the whole size again", || {
        doctor(&machines, &[]).0
    });

    // A machine whose agent is gone answers in the tunnel still, and not the server.
    machines.kill("n2");
    let (is_ok, diagnosis) = doctor(&machines, &[]);
    assert!(!is_ok, "{diagnosis:#}");
    let finding = &diagnosis["findings"][0];
    assert!(
        finding["code"] == "no_measurement" || finding["code"] == "not_asked",
        "{finding:#}"
    );
    let found = finding["found"].as_str().unwrap();
    assert!(found.contains("it is reached in the tunnel by"), "{found}");
}
