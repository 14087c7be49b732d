//! The replacement of the cluster's CA (ADR 0004).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use api::enrollment::{EnrollRole, Member};
use api::error_code;
use api::member::CertificateRequest;
use api_client::ApiClient;
use identity::{ClusterCa, MemberCertificate, MemberKey};
use membership::{Applicant, Membership};
use support::members::*;
use support::*;

#[tokio::test(flavor = "multi_thread")]
async fn case_the_ca_is_replaced_with_a_node_away_and_nobody_is_locked_out() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("server");
    let server = Server::start(&dir).await;
    let (away_id, away) = server.join_node().await;
    let token = server.token(EnrollRole::Node).await;
    let node_dir = folder.path().join("node");
    let applicant = Applicant {
        role: EnrollRole::Node,
        server: None,
        token: Some(token.to_string()),
        name: "box".to_owned(),
        region: "home".to_owned(),
        hardware: hardware(),
        // Not the usual port: a cluster of this machine may have it.
        underlay: membership::UnderlayOptions {
            port: 40_010,
            advertise: None,
        },
    };
    let joined = Membership::load_or_join(&node_dir, &applicant)
        .await
        .unwrap();
    let client = joined.client().unwrap();
    let overlay = membership::OverlayState::load(&joined, &node_dir).await;
    let overlay = tokio::sync::watch::Sender::new(overlay);
    let report = tokio::sync::watch::Sender::new(api::member::OverlayReport::default());
    let said = report.subscribe();
    let keeping = membership::keep(
        joined.clone(),
        node_dir.clone(),
        client.clone(),
        overlay,
        said,
        tokio::sync::watch::Sender::new(None),
    );
    let keeping = tokio::spawn(keeping);
    let backup = dir.join("backup.db");
    control_plane::backup(&dir, None, &backup).await.unwrap();

    let early = server.token(EnrollRole::Edge).await;
    let before = server.user.ca().await.unwrap();
    let begun = server.user.rotate_ca(false).await.unwrap();
    assert_ne!(begun.fingerprint, before.fingerprint);
    assert!(begun.trusts_before);
    let again = refusal(server.user.rotate_ca(false).await);
    assert_eq!(again, (409, "ca_rotating".to_owned()));
    // The member that follows learns of it, and renews.
    let renewed = eventually("a certificate of the new CA", async || {
        let kept = Membership::load(&node_dir).unwrap().unwrap();
        let certificate = MemberCertificate::of_pem(&kept.certificate_pem).unwrap();
        let both = kept.ca_pem == begun.pem;
        (both && certificate.is_of_first(&kept.ca_pem)).then_some(kept)
    });
    let renewed = renewed.await;
    assert_ne!(renewed.certificate_pem, joined.certificate_pem);
    desired(&client).await.unwrap();
    // Tokens of before and of now let machines in.
    for token in [early, server.token(EnrollRole::Edge).await] {
        let request = enroll_request(&token, &MemberKey::generate().unwrap());
        enroll(&server, &token, &request).await.unwrap();
    }
    let finished = server.user.rotate_ca(true).await.unwrap();
    assert!(!finished.trusts_before);
    assert_eq!(
        refusal(server.user.rotate_ca(true).await),
        (409, "ca_not_rotating".to_owned())
    );
    eventually("only the new CA is trusted", async || {
        let kept = Membership::load(&node_dir).unwrap().unwrap();
        (kept.ca_pem == finished.pem).then_some(())
    })
    .await;
    desired(&client).await.unwrap();

    // A user and a node that know only the CA of before.
    let user = ApiClient::user(&server.config).unwrap();
    assert_eq!(user.nodes().await.unwrap().len(), 2);
    let back = at(&server, &away);
    let refused = desired(&back).await;
    assert_eq!(refusal(refused), forbidden(error_code::CERTIFICATE_EXPIRED));
    let key = MemberKey::load(&away.key_pem).unwrap();
    let request = CertificateRequest {
        csr_pem: key.csr_pem("box").unwrap(),
        replaces_key: false,
        wireguard_public_key: None,
    };
    let answer = back.certificate(&request).await.unwrap();
    assert_eq!(answer.ca_pem, finished.pem);
    back.replace_credentials(&answer.ca_pem, &answer.certificate_pem, &away.key_pem)
        .unwrap();
    assert_eq!(desired(&back).await.unwrap(), away_id);
    keeping.abort();

    // After a restart it is the same.
    server.stop().await;
    let server = eventually("the server is back", async || {
        Server::try_start_at(&dir, &joined.server).await
    });
    let server = server.await;
    assert_eq!(
        server.user.ca().await.unwrap().fingerprint,
        finished.fingerprint
    );
    desired(&client).await.unwrap();
    // Whoever makes a certificate for himself is nobody.
    let stranger = MemberKey::generate().unwrap();
    let own = ClusterCa::generate("mine", now()).unwrap();
    let csr = stranger.csr_pem("x").unwrap();
    let forged = own.sign_member(&csr, Member::Node(away_id), now()).unwrap();
    let forged = ApiClient::member(&joined.server, &finished.pem, &forged, &stranger.key_pem());
    let refused = refusal(desired(&forged.unwrap()).await);
    assert_eq!(refused, forbidden(error_code::NOT_A_MEMBER));
    server.stop().await;
}
