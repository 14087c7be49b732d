//! Messages between members and the server: recorded for each protocol version, and tolerant of added fields.
//!
//! `fixtures/protocol_N/` holds messages of version N. They are never changed: a server reads those of its own version
//! and of the one before.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use api::edge::{
    CertificateTable, ChallengeTable, HostCertificateRequest, HostCertificateResponse, RouteTable,
};
use api::enrollment::{EnrollRequest, EnrollResponse};
use api::member::{Measurement, MeasurementRequest};
use api::node::{
    DesiredState, InstanceReport, LogLine, PullSecret, RefusalKind, ReportAnswer, ReportDelta,
    SignalAnswer, StreamRefused, StreamRequest, StreamWanted,
};
use api::user::{DeployRequest, RegistryLoginRequest, RolloutStatus};
use model::Timestamp;
use model::instance::InstanceState;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Objects whose keys are data: names of hosts, of variables, numbers of members.
const MAPS: &[&str] = &["routes", "certificates", "variables", "links", "relayed"];
/// Objects whose one key is the name of a variant.
const VARIANTS: &[&str] = &["wanted", "member"];

/// Adds a field to every struct in the message.
fn add_fields(json: &mut Value, is_struct: bool) {
    match json {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                let name = name.as_str();
                add_fields(value, !MAPS.contains(&name) && !VARIANTS.contains(&name));
            }
            if is_struct {
                fields.insert("added_later".to_owned(), json!({"in": ["version", 99]}));
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| add_fields(value, true)),
        _ => {}
    }
}

/// The message is read and written as it was recorded, and read all the same with added fields.
fn check<T: Serialize + DeserializeOwned>(recorded: &str) {
    let recorded: Value = serde_json::from_str(recorded).unwrap();
    let message: T = serde_json::from_value(recorded.clone()).unwrap();
    assert_eq!(serde_json::to_value(&message).unwrap(), recorded);
    let mut newer = recorded.clone();
    add_fields(&mut newer, true);
    assert_ne!(newer, recorded);
    let message: T = serde_json::from_value(newer).unwrap();
    assert_eq!(serde_json::to_value(&message).unwrap(), recorded);
}

#[test]
fn messages_of_protocol_version_2_are_read_with_and_without_added_fields() {
    check::<DesiredState>(include_str!("fixtures/protocol_2/desired_state.json"));
    check::<RouteTable>(include_str!("fixtures/protocol_2/route_table.json"));
    check::<EnrollRequest>(include_str!("fixtures/protocol_2/enroll_request.json"));
    check::<EnrollResponse>(include_str!("fixtures/protocol_2/enroll_response.json"));
    check::<Vec<StreamRequest>>(include_str!("fixtures/protocol_2/stream_requests.json"));
    check::<StreamRefused>(include_str!("fixtures/protocol_2/stream_refused.json"));
    check::<SignalAnswer>(include_str!("fixtures/protocol_2/signal_answer.json"));
    check::<LogLine>(include_str!("fixtures/protocol_2/log_line.json"));
    check::<PullSecret>(include_str!("fixtures/protocol_2/pull_secret.json"));
}

#[test]
fn messages_that_protocol_version_3_added_are_read_with_and_without_added_fields() {
    check::<ReportDelta>(include_str!("fixtures/protocol_3/report_delta.json"));
    check::<ReportAnswer>(include_str!("fixtures/protocol_3/report_answer.json"));
    check::<ReportAnswer>(include_str!(
        "fixtures/protocol_3/report_answer_with_interval.json"
    ));
    check::<MeasurementRequest>(include_str!("fixtures/protocol_3/measurement_request.json"));
    check::<Measurement>(include_str!("fixtures/protocol_3/measurement.json"));
}

#[test]
fn messages_that_protocol_version_4_added_are_read_with_and_without_added_fields() {
    check::<CertificateTable>(include_str!("fixtures/protocol_4/certificate_table.json"));
    check::<HostCertificateRequest>(include_str!(
        "fixtures/protocol_4/host_certificate_request.json"
    ));
    check::<HostCertificateResponse>(include_str!(
        "fixtures/protocol_4/host_certificate_response.json"
    ));
    check::<ChallengeTable>(include_str!("fixtures/protocol_4/challenge_table.json"));
    check::<StreamRefused>(include_str!("fixtures/protocol_4/stream_refused.json"));
}

#[test]
fn a_stream_that_is_refused_for_a_reason_of_a_newer_node_is_one_that_it_does_not_know() {
    let recorded = include_str!("fixtures/protocol_4/stream_refused.json");
    let read = |value: Value| {
        let refused = changed(recorded, "/kind", value);
        serde_json::from_value::<StreamRefused>(refused)
            .unwrap()
            .kind
    };
    assert_eq!(read(json!("busy")), RefusalKind::Busy);
    assert_eq!(read(json!("asleep")), RefusalKind::Unsupported);
    let old = include_str!("fixtures/protocol_2/stream_refused.json");
    let old: StreamRefused = serde_json::from_str(old).unwrap();
    assert_eq!(old.kind, RefusalKind::Unsupported);
}

/// The recorded message with one value replaced.
fn changed(recorded: &str, pointer: &str, value: Value) -> Value {
    let mut message: Value = serde_json::from_str(recorded).unwrap();
    let place = message.pointer_mut(pointer);
    *place.unwrap_or_else(|| panic!("the message has no {pointer}")) = value;
    message
}

#[test]
fn an_instance_that_a_newer_node_reports_in_a_new_state_counts_as_neither_ready_nor_absent() {
    let recorded = include_str!("fixtures/protocol_3/report_delta.json");
    let read = |pointer: &str, value: Value| {
        serde_json::from_value::<ReportDelta>(changed(recorded, pointer, value))
    };
    let known: ReportDelta = serde_json::from_str(recorded).unwrap();
    // A state that is new, and a report whose other fields are: the other instances are as they were.
    for (pointer, value) in [
        ("/instances/0/state", json!("hibernated")),
        ("/instances/0/state", json!({"hibernated": {"since": 1}})),
        ("/instances/0/last_exit", json!("by itself")),
    ] {
        let report = read(pointer, value).unwrap();
        assert_eq!(report.instances.len(), known.instances.len());
        let (new, old) = (&report.instances[0], &known.instances[0]);
        assert_eq!(
            (new.id, new.state),
            (old.id, InstanceState::Unknown),
            "{pointer}"
        );
        assert_eq!(report.instances[1..], known.instances[1..]);
    }
    // Without its id nothing is known of whom it is: the message is refused rather than an instance missed.
    assert!(read("/instances/0/id", json!({"uuid": 1})).is_err());
    let report = read("/images/0/image", json!("an image in another way")).unwrap();
    assert_eq!(report.images[..], known.images[1..]);
}

/// The fields by which members of version 2 and users of `platform ps --format json` know the state of an instance.
#[test]
fn the_state_of_an_instance_is_one_value_and_three_fields_of_json() {
    let recorded: Value =
        serde_json::from_str(include_str!("fixtures/protocol_3/report_delta.json")).unwrap();
    let read = |state: &str, ready: bool, started_at: Option<u64>| {
        let mut report = recorded["instances"][0].clone();
        report["state"] = json!(state);
        report["ready"] = json!(ready);
        report["started_at"] = json!(started_at);
        serde_json::from_value::<InstanceReport>(report).unwrap()
    };
    let written = |report: &InstanceReport| {
        let json = serde_json::to_value(report).unwrap();
        (
            json["state"].clone(),
            json["ready"].clone(),
            json["started_at"].clone(),
        )
    };
    for ready in [false, true] {
        for at in [None, Some(5)] {
            let report = read("running", ready, at);
            let started_at = at.map(Timestamp);
            assert_eq!(report.state, InstanceState::Running { ready, started_at });
            assert_eq!(
                written(&report),
                (json!("running"), json!(ready), json!(at))
            );
        }
    }
    // What cannot be, and older programs could say, is read as what can.
    for (word, state) in [
        ("created", InstanceState::Created),
        ("preparing", InstanceState::Preparing),
        ("booting", InstanceState::Booting),
        ("stopping", InstanceState::Stopping),
        ("stopped", InstanceState::Stopped),
        ("backoff", InstanceState::Backoff),
        ("failed", InstanceState::Failed),
        ("unknown", InstanceState::Unknown),
    ] {
        let report = read(word, true, Some(5));
        assert_eq!(report.state, state);
        assert_eq!(written(&report), (json!(word), json!(false), Value::Null));
    }
}

#[test]
fn a_spec_that_the_node_cannot_read_costs_no_other_and_is_kept_for_a_newer_agent() {
    let recorded = include_str!("fixtures/protocol_2/desired_state.json");
    let known: DesiredState = serde_json::from_str(recorded).unwrap();
    let when = json!("at-full-moon");
    let newer = changed(recorded, "/instances/0/restart/when", when);
    let desired: DesiredState = serde_json::from_value(newer.clone()).unwrap();
    assert_eq!(desired.instances[..], known.instances[1..]);
    let id = known.instances[0].id;
    let reason = desired.unreadable[&id].reason();
    assert!(reason.contains("at-full-moon"), "{reason}");
    let stored = serde_json::to_value(&desired).unwrap();
    let spec = &newer["instances"][0];
    assert!(stored["instances"].as_array().unwrap().contains(spec));
    let nameless = changed(recorded, "/instances/0", json!({}));
    assert!(serde_json::from_value::<DesiredState>(nameless).is_err());
}

#[test]
fn a_route_that_the_edge_cannot_read_costs_no_other_and_is_kept_for_a_newer_edge() {
    let recorded = include_str!("fixtures/protocol_2/route_table.json");
    let known: RouteTable = serde_json::from_str(recorded).unwrap();
    let (host, _) = known.routes.first_key_value().unwrap();
    let pointer = format!("/routes/{host}/proxy_protocol");
    let newer = changed(recorded, &pointer, json!("v3"));
    let table: RouteTable = serde_json::from_value(newer.clone()).unwrap();
    assert_eq!(table.routes.len(), known.routes.len() - 1);
    assert!(table.unreadable[host].reason().contains("v3"));
    assert_eq!(serde_json::to_value(&table).unwrap(), newer);
}

#[test]
fn a_stream_that_the_node_does_not_know_breaks_no_other() {
    let requests: Vec<StreamRequest> = serde_json::from_value(json!([
        {"stream": "1", "wanted": {"screenshot": {"instance": "00000001"}}},
        {"stream": "2", "wanted": "everything"},
        {"stream": "3", "wanted": {"stats": {"instances": []}}},
    ]))
    .unwrap();
    let named = |index: usize, name: &str| match &requests[index].wanted {
        StreamWanted::Unsupported { what } => what.starts_with(name),
        _ => false,
    };
    assert!(
        named(0, "screenshot: ") && named(1, "everything: "),
        "{requests:?}"
    );
    let instances = Vec::new();
    assert_eq!(requests[2].wanted, StreamWanted::Stats { instances });
    assert!(
        serde_json::to_value(&requests[0]).is_err(),
        "it is never sent"
    );
}

#[test]
fn a_request_of_a_user_is_strict_and_an_answer_is_read_tolerantly() {
    let deploy = json!({"manifest": "", "image": "", "imgae": ""});
    assert!(serde_json::from_value::<DeployRequest>(deploy).is_err());
    let login = |secret: Value| {
        let login = json!({"registry": "ghcr.io", "secret": secret});
        serde_json::from_value::<RegistryLoginRequest>(login).is_ok()
    };
    assert!(login(
        json!({"type": "basic", "user": "u", "password": "p"})
    ));
    assert!(login(json!({"type": "identity_token", "token": "t"})));
    assert!(!login(
        json!({"type": "basic", "user": "u", "password": "p", "pasword": "q"})
    ));
    let status = json!({
        "revision": 1, "release": 2, "phase": "rolling", "reason": "", "previous": null, "instances": [],
        "deadline": 5,
    });
    assert!(serde_json::from_value::<RolloutStatus>(status).is_ok());
}
