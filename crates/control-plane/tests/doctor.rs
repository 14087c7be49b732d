//! `platform network doctor` at the server: whom it asks, what it waits for, and what it believes. The members are clients that speak the API.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use api::enrollment::{EnrollRole, Member};
use api::member::{
    Echoes, LinkMeasurement, MAX_RELAYED, Measurement, MeasurementRequest, UnderlayPath,
};
use api::paths;
use api::user::{DoctorRequest, MeasurementState, NetworkDiagnosis};
use api_client::ApiClient;
use model::{Generation, NodeId, Timestamp};
use support::members::{NOW, now, refusal};
use support::*;

const WAIT: Duration = Duration::from_secs(20);

fn well() -> LinkMeasurement {
    LinkMeasurement {
        endpoint: Some("198.18.7.3:51820".parse().unwrap()),
        handshake_age_seconds: Some(3),
        received_bytes: 5000,
        echoes: Echoes {
            sent: 10,
            answered: 10,
            fastest_us: Some(300),
        },
        mtu: Some(1420),
        packet_too_big: Some(true),
        segments: None,
        underlay: Some(UnderlayPath {
            mtu: Some(1500),
            interface: "eth0".to_owned(),
            kind: String::new(),
        }),
    }
}

/// A member that follows the membership and measures; it says once that it has nothing, so that the server knows it.
async fn calls(client: &ApiClient) {
    let polled = client
        .member_state_to_measure(Generation::default(), (0, 0), 0, NOW)
        .await;
    assert_eq!(polled.unwrap().unwrap().measure, None);
}

/// What a member is asked to measure.
async fn asked(client: &ApiClient) -> MeasurementRequest {
    let mut applied = Generation::default();
    let mut position = (0, 0);
    loop {
        let polled = client.member_state_to_measure(applied, position, 0, WAIT);
        let state = polled.await.unwrap().expect("nothing is asked");
        applied = state.generation;
        if let Some(overlay) = state.overlay {
            position = (overlay.session, overlay.counter);
        }
        if let Some(request) = state.measure {
            return request;
        }
    }
}

fn answer(request: &MeasurementRequest, links: &[u16], at: Timestamp) -> Measurement {
    Measurement {
        run: request.run,
        received_at: at,
        sent_at: at,
        kernel: "6.1.0".to_owned(),
        links: links
            .iter()
            .map(|number| (NodeId(*number), well()))
            .collect(),
        ..Measurement::default()
    }
}

fn codes(diagnosis: &NetworkDiagnosis) -> Vec<&str> {
    let codes = diagnosis.findings.iter();
    codes.map(|finding| finding.code.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_call_measure_and_what_they_say_is_theirs_alone() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let refused = server
        .user
        .diagnose_network(&DoctorRequest::default())
        .await;
    assert_eq!(refusal(refused), (409, "nothing_to_measure".to_owned()));
    let (_, one) = server.join_node().await;
    let (_, two) = server.join_node().await;
    let edge = server.join(EnrollRole::Edge).await;
    // A member of before measures nothing.
    let (_, old) = server.join_node().await;
    let followed = old
        .client
        .member_state(Generation::default(), (0, 0), NOW)
        .await;
    assert!(followed.unwrap().is_some());
    for member in [&one, &two, &edge] {
        calls(&member.client).await;
    }

    let user = server.user.clone();
    let running =
        tokio::spawn(async move { user.diagnose_network(&DoctorRequest::default()).await });
    let request = asked(&one.client).await;
    assert_eq!(
        (request.peers.clone(), request.relayed.clone()),
        (None, BTreeSet::new())
    );
    assert!(request.run > 0 && request.within_ms > 10_000);
    // One that did not get it is given it again; one that has it is not.
    assert_eq!(asked(&one.client).await, request);
    let again = one
        .client
        .member_state_to_measure(Generation::default(), (0, 0), request.run, NOW)
        .await;
    assert_eq!(again.unwrap().unwrap().measure, None);
    // One at a time.
    let refused = server
        .user
        .diagnose_network(&DoctorRequest::default())
        .await;
    assert_eq!(refusal(refused), (409, "doctor_runs".to_owned()));

    // More than it may say, something else than it was asked, and of members that are none of its peers.
    let mut much = answer(&request, &[2], now());
    much.relayed = (1..=u16::try_from(MAX_RELAYED).unwrap() + 1)
        .map(|number| (NodeId(number), Echoes::default()))
        .collect();
    let refused = one.client.report_measurement(&much).await;
    assert_eq!(refusal(refused), (422, "too_many_links".to_owned()));
    let mut other = answer(&request, &[2], now());
    other.run ^= 1;
    let refused = one.client.report_measurement(&other).await;
    assert_eq!(refusal(refused), (409, "not_waited_for".to_owned()));
    let mut said = answer(&request, &[2, 3, 4, 1, 700], now());
    said.kernel = "k".repeat(1 << 20);
    said.relayed.insert(NodeId(2), Echoes::default());
    one.client.report_measurement(&said).await.unwrap();
    // Once.
    let refused = one.client.report_measurement(&said).await;
    assert_eq!(refusal(refused), (409, "not_waited_for".to_owned()));

    // Its clock is two minutes ahead.
    let request = asked(&two.client).await;
    let late = Timestamp(now().0 + 120_000);
    let mut said = answer(&request, &[1, 3], late);
    let lost = said.links.get_mut(&NodeId(1)).unwrap();
    lost.mtu = Some(1400);
    lost.underlay.as_mut().unwrap().mtu = Some(1460);
    two.client.report_measurement(&said).await.unwrap();
    let request = asked(&edge.client).await;
    let mut said = answer(&request, &[1, 2], now());
    said.failure = Some("no\u{1b}[2Jrights".to_owned());
    edge.client.report_measurement(&said).await.unwrap();

    // The one that measures nothing is not waited for.
    let diagnosis = running.await.unwrap().unwrap();
    assert!(diagnosis.took_ms < 15_000, "{}", diagnosis.took_ms);
    let states: Vec<_> = diagnosis.members.iter().map(|of| of.state).collect();
    assert_eq!(
        states,
        [
            MeasurementState::Measured,
            MeasurementState::Measured,
            MeasurementState::TooOld,
            MeasurementState::Failed,
        ]
    );
    let first = &diagnosis.members[0];
    let links: Vec<u16> = first.links.keys().map(|number| number.0).collect();
    assert_eq!(links, [2, 3, 4], "of its peers only");
    assert!(first.relayed.is_empty() && first.kernel.len() <= 128);
    // Two times in milliseconds are compared: one more is none.
    assert!(first.clock_ahead_ms.unwrap().abs() <= 10);
    let ahead = diagnosis.members[1].clock_ahead_ms.unwrap();
    assert!((100_000..=120_010).contains(&ahead), "{ahead}");
    assert_eq!(
        codes(&diagnosis),
        [
            "measurement_failed",
            "mtu_too_large",
            "clock_skew",
            "too_old"
        ]
    );
    assert!(diagnosis.findings[1].mend.contains("--mtu 1380"));
    assert!(!diagnosis.findings[0].why.contains('\u{1b}'));
    assert!(diagnosis.has_errors());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_does_not_answer_is_named_and_a_user_who_left_waits_for_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (_, one) = server.join_node().await;
    let (_, two) = server.join_node().await;
    for member in [&one, &two] {
        calls(&member.client).await;
    }
    // A run whose user leaves is over.
    let user = server.user.clone();
    let left = tokio::spawn(async move { user.diagnose_network(&DoctorRequest::default()).await });
    let request = asked(&one.client).await;
    left.abort();
    eventually("the run is over", async || {
        let refused = one
            .client
            .report_measurement(&answer(&request, &[2], now()))
            .await;
        match refused {
            // It was still waited for.
            Ok(()) => None,
            Err(_) => {
                let next = one
                    .client
                    .member_state_to_measure(Generation::default(), (0, 0), 0, NOW)
                    .await;
                next.unwrap().unwrap().measure.is_none().then_some(())
            }
        }
    })
    .await;

    let user = server.user.clone();
    let running = tokio::spawn(async move {
        let members = ["n2".to_owned()].into();
        user.diagnose_network(&DoctorRequest { members }).await
    });
    // Both ends of the links of the one that is named are measured.
    let request = asked(&one.client).await;
    assert_eq!(request.peers, Some(BTreeSet::from([NodeId(2)])));
    one.client
        .report_measurement(&answer(&request, &[2], now()))
        .await
        .unwrap();
    let diagnosis = running.await.unwrap().unwrap();
    assert_eq!(codes(&diagnosis), ["no_measurement"]);
    let found = &diagnosis.findings[0];
    assert_eq!(found.members, [Member::Node(NodeId(2))]);
    assert!(
        found.found.contains("it is reached in the tunnel by"),
        "{}",
        found.found
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_alone_have_the_network_measured_and_names_have_to_be_members() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (_, one) = server.join_node().await;
    server.join_node().await;
    let refused = one.client.diagnose_network(&DoctorRequest::default()).await;
    assert_eq!(refusal(refused).0, 403);
    let members = ["nobody".to_owned()].into();
    let refused = server
        .user
        .diagnose_network(&DoctorRequest { members })
        .await;
    assert_eq!(refusal(refused), (404, "member_not_found".to_owned()));
    let members = (0..5000).map(|number| number.to_string()).collect();
    let refused = server
        .user
        .diagnose_network(&DoctorRequest { members })
        .await;
    assert_eq!(refusal(refused), (422, "too_many_members".to_owned()));
    // What nobody asked for is not taken.
    let request = MeasurementRequest {
        run: 1,
        peers: None,
        relayed: BTreeSet::new(),
        within_ms: 1,
    };
    let refused = one
        .client
        .report_measurement(&answer(&request, &[2], now()))
        .await;
    assert_eq!(refusal(refused), (409, "not_waited_for".to_owned()));
    assert_eq!(paths::NETWORK_DOCTOR, "/v1/network/doctor");
    server.stop().await;
}
