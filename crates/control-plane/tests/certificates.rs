//! Certificates of hosts over a real server: who adds them, what is refused, and what edges are told.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use api::certificates::AddCertificateRequest;
use api::edge::{CertificateTable, HasRoutes, HostCertificateRequest};
use api::enrollment::EnrollRole;
use api::event::{EventKind, EventsQuery};
use api_client::{ApiClient, ClientError};
use identity::{HostCertificate, MemberKey, SealKey, certified_key};
use rcgen::{CertificateParams, KeyPair};
use support::registry::Registry;
use support::*;

const DAY: i64 = 24 * 60 * 60;

/// A certificate of its own issuer for these names, which ends in so many days.
fn certificate(names: &[&str], days: i64) -> AddCertificateRequest {
    let key = KeyPair::generate().unwrap();
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    let now = std::time::SystemTime::now().into();
    let seconds = |count: i64| Duration::from_secs(count.unsigned_abs());
    params.not_before = now;
    params.not_before -= seconds(400 * DAY);
    params.not_after = now;
    if days < 0 {
        params.not_after -= seconds(days * DAY);
    } else {
        params.not_after += seconds(days * DAY);
    }
    AddCertificateRequest {
        name: None,
        chain_pem: params.self_signed(&key).unwrap().pem(),
        key_pem: key.serialize_pem(),
    }
}

fn has(table: &CertificateTable) -> HasRoutes {
    HasRoutes {
        generation: table.generation,
        session: table.session,
    }
}

/// The same member, at a server that answers at another address.
fn at(server: &Server, joined: &Joined) -> ApiClient {
    let response = &joined.response;
    ApiClient::member(
        &server.ready.url,
        &response.ca_pem,
        &response.certificate_pem,
        &joined.key_pem,
    )
    .unwrap()
}

async fn next_table(edge: &ApiClient, has: HasRoutes) -> CertificateTable {
    edge.edge_certificates(has, PATIENCE)
        .await
        .unwrap()
        .unwrap()
}

async fn refused(server: &Server, request: AddCertificateRequest) -> (String, String) {
    let error = server.user.add_certificate(&request).await.unwrap_err();
    (error.code().unwrap().to_owned(), error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_has_a_certificate_that_a_user_adds_until_it_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let edge = server.join(EnrollRole::Edge).await;
    let first = next_table(&edge.client, HasRoutes::default()).await;
    assert!(first.since.is_none() && first.certificates.is_empty());
    let tickets = first.tickets.clone().unwrap();
    SealKey::load(&tickets.current).unwrap();

    // It waits for the next one.
    let waiting = tokio::spawn({
        let (client, has) = (edge.client.clone(), has(&first));
        async move { next_table(&client, has).await }
    });
    let request = certificate(&["shop.example.com", "*.shop.example.com"], 60);
    let row = server.user.add_certificate(&request).await.unwrap();
    assert_eq!(row.name, "shop.example.com");
    assert_eq!(row.hosts, ["shop.example.com", "*.shop.example.com"]);
    assert_eq!((row.by.as_str(), row.expires_soon), ("admin", false));
    let change = waiting.await.unwrap();
    assert_eq!(change.since, Some(first.generation.counter));
    let sent = &change.certificates["shop.example.com"];
    assert_eq!(
        (&sent.chain_pem, &sent.key_pem),
        (&request.chain_pem, &request.key_pem)
    );
    assert_eq!(change.tickets, None);
    assert_eq!(server.user.certificates().await.unwrap(), [row]);

    // The next one of the same name takes its place, and it ends soon.
    let next = certificate(&["shop.example.com"], 13);
    assert!(
        server
            .user
            .add_certificate(&next)
            .await
            .unwrap()
            .expires_soon
    );
    let change = next_table(&edge.client, has(&change)).await;
    assert_eq!(
        change.certificates["shop.example.com"].key_pem,
        next.key_pem
    );

    // What is kept outlives the server; an edge of the session before is told all.
    server.stop().await;
    let server = Server::start(folder.path()).await;
    let client = at(&server, &edge);
    let again = next_table(&client, has(&change)).await;
    assert_eq!(again.since, None);
    assert_eq!(again.certificates, change.certificates);
    assert_eq!(again.tickets, Some(tickets));

    server
        .user
        .remove_certificate("shop.example.com")
        .await
        .unwrap();
    let change = next_table(&client, has(&again)).await;
    assert!(change.certificates.is_empty() && change.removed.contains("shop.example.com"));
    let error = server
        .user
        .remove_certificate("shop.example.com")
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some("certificate_not_found"));
    assert!(server.user.certificates().await.unwrap().is_empty());

    let query = EventsQuery {
        kind: Some("certificate".to_owned()),
        after: Some(0),
        ..EventsQuery::default()
    };
    let events = server
        .user
        .events(&query, Duration::ZERO)
        .await
        .unwrap()
        .events;
    let kinds: Vec<_> = events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds[..2], [EventKind::CertificateAdded; 2]);
    assert!(kinds.contains(&EventKind::CertificateExpiring), "{kinds:?}");
    assert_eq!(kinds.last(), Some(&EventKind::CertificateRemoved));
    assert!(
        events
            .iter()
            .all(|event| !event.message.contains("PRIVATE"))
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let good = certificate(&["a.example.com"], 60);
    let other = certificate(&["a.example.com"], 60);
    let with = |change: fn(&mut AddCertificateRequest, &AddCertificateRequest)| {
        let mut request = good.clone();
        change(&mut request, &other);
        request
    };
    for (request, code) in [
        (
            with(|one, other| one.key_pem.clone_from(&other.key_pem)),
            "certificate_other_key",
        ),
        (
            with(|one, _| one.key_pem = "no key".to_owned()),
            "certificate_key_invalid",
        ),
        (
            with(|one, _| one.chain_pem = String::new()),
            "certificate_chain_invalid",
        ),
        (
            with(|one, other| one.chain_pem += &other.chain_pem.replace("MII", "MIJ")),
            "certificate_chain_invalid",
        ),
        (
            with(|one, _| one.name = Some("../x".to_owned())),
            "certificate_name_invalid",
        ),
        (certificate(&["127.0.0.1"], 60), "certificate_hosts_invalid"),
        (certificate(&["a.example.com"], -1), "certificate_expired"),
    ] {
        let secret = request
            .key_pem
            .lines()
            .nth(1)
            .unwrap_or("no line")
            .to_owned();
        let (found, message) = refused(&server, request).await;
        assert_eq!(found, code, "{message}");
        assert!(!message.contains(&secret), "{message}");
    }
    assert!(server.user.certificates().await.unwrap().is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_edges_that_may_do_what_edges_do_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (_, node) = server.join_node().await;
    let ask = HostCertificateRequest {
        host: "hello.localhost".to_owned(),
        csr_pem: MemberKey::generate().unwrap().csr_pem("x").unwrap(),
    };
    let forbidden = |error: ClientError| assert_eq!(error.code(), Some("forbidden"), "{error}");
    for client in [&node.client, &server.user] {
        let poll = client
            .edge_certificates(HasRoutes::default(), Duration::ZERO)
            .await;
        let error = poll.unwrap_err();
        assert!(
            matches!(error.code(), Some("forbidden" | "unauthorized")),
            "{error}"
        );
        let error = client.host_certificate(&ask).await.unwrap_err();
        assert!(
            matches!(error.code(), Some("forbidden" | "unauthorized")),
            "{error}"
        );
    }
    let poll = node
        .client
        .edge_certificates(HasRoutes::default(), Duration::ZERO)
        .await;
    forbidden(poll.unwrap_err());
    let edge = server.join(EnrollRole::Edge).await;
    next_table(&edge.client, HasRoutes::default()).await;
    server.user.revoke(edge.response.member).await.unwrap();
    let poll = edge
        .client
        .edge_certificates(HasRoutes::default(), Duration::ZERO)
        .await;
    assert_eq!(poll.unwrap_err().code(), Some("revoked"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ingress_ca_signs_for_hosts_that_are_routed_and_stays_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    server.join_node().await;
    let edge = server.join(EnrollRole::Edge).await;
    let ca = server.user.ingress_ca().await.unwrap();
    let key = MemberKey::generate().unwrap();
    let ask = |host: &str| HostCertificateRequest {
        host: host.to_owned(),
        csr_pem: key.csr_pem("x").unwrap(),
    };
    let error = edge.client.host_certificate(&ask("shop.localhost")).await;
    assert_eq!(error.unwrap_err().code(), Some("host_not_routed"));

    let digest = registry.push("shop", "amd64", "one").await;
    let image = format!("{}/shop@{digest}", registry.host);
    let text = manifest("shop");
    server.deploy(&env_key("shop", "prod"), &text, &image).await;
    let signed = eventually("a certificate of a host that is routed", async || {
        edge.client
            .host_certificate(&ask("shop.localhost"))
            .await
            .ok()
    })
    .await;
    let (certificate, _) = certified_key(&signed.chain_pem, &key.key_pem()).unwrap();
    assert_eq!(certificate.hosts, ["shop.localhost"]);
    assert!(signed.chain_pem.ends_with(&ca.ca_pem));
    // No CA of members.
    assert!(!server.config.ca_pem.contains(ca.ca_pem.trim()));
    assert!(HostCertificate::of_pem(&server.config.ca_pem).is_err());

    server.stop().await;
    let server = Server::start(folder.path()).await;
    assert_eq!(server.user.ingress_ca().await.unwrap(), ca);
    server.stop().await;
}
