//! Messages between members and the server: recorded for each protocol version, and tolerant of added fields.
//!
//! `fixtures/protocol_N/` holds messages of version N. They are never changed: a server reads those of its own version
//! and of the one before.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use api::edge::RouteTable;
use api::enrollment::{EnrollRequest, EnrollResponse};
use api::node::{
    DesiredState, LogLine, NodeReport, PullSecret, SignalAnswer, StreamRefused, StreamRequest,
    StreamWanted,
};
use api::user::{DeployRequest, RegistryLoginRequest, RolloutStatus};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Objects whose keys are data: names of hosts, of variables.
const MAPS: &[&str] = &["routes", "variables"];
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
    check::<NodeReport>(include_str!("fixtures/protocol_2/node_report.json"));
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
