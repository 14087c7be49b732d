//! How machines join, prove who they are, and leave (ADR 0004).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::edge::HasRoutes;
use api::enrollment::{EnrollRole, Hardware, Member};
use api::error_code;
use api::member::{Approval, CertificateRequest, OverlayReport};
use api::user::CreateTokenRequest;
use api_client::{ApiClient, ClientError};
use control_plane::RestoreOptions;
use futures_util::future::join_all;
use identity::{
    ClusterCa, EnrollmentToken, KeyEncryptionKey as _, MemberCertificate, MemberKey, SealKey,
};
use membership::{Applicant, Membership, OverlayState, UnderlayOptions};
use model::{Generation, NodeId, Timestamp};
use sqlx::{Connection as _, SqliteConnection};
use store::{SKIPPED_NUMBERS, Store, StoredKeys};
use support::members::*;
use support::*;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// The CA of a server that was stopped, from its folder: what only the server has.
async fn ca_of(folder: &Path) -> ClusterCa {
    let file = std::fs::read(folder.join(control_plane::KEY_FILE)).unwrap();
    let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
    let key = SealKey::load(file["key"].as_str().unwrap()).unwrap();
    let url = format!("sqlite:{}", folder.join("platform.db").display());
    let store = Store::open(&url).await.unwrap();
    let record = store.cluster().await.unwrap().unwrap();
    store.close().await;
    let StoredKeys::Wrapped { ca_key, .. } = &record.keys else {
        panic!("{:?}", record.keys);
    };
    let context = format!("the CA's key of cluster {}", record.settings.id);
    let ca_key = key.unwrap(ca_key, &context).unwrap();
    ClusterCa::load(&record.ca_cert_pem, &String::from_utf8_lossy(&ca_key)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn case_a_lost_answer_asked_again_is_the_same_node() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let token = server.token(EnrollRole::Node).await;
    assert_eq!(token.server.as_deref(), Some(server.ready.url.as_str()));
    let key = MemberKey::generate().unwrap();
    let request = enroll_request(&token, &key);
    let first = enroll(&server, &token, &request).await.unwrap();
    let again = enroll(&server, &token, &request).await.unwrap();
    assert_eq!((first.member, &first.name), (again.member, &again.name));
    let other = enroll_request(&token, &MemberKey::generate().unwrap());
    let refused = refusal(enroll(&server, &token, &other).await);
    assert_eq!(refused, (401, error_code::TOKEN_REFUSED.to_owned()));
    assert_eq!(server.user.nodes().await.unwrap().len(), 1);
    for response in [&first, &again] {
        let node = desired(&member(&server, response, &key)).await.unwrap();
        assert_eq!(Member::Node(node), first.member);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_64_uses_of_one_token_at_once_are_one_node() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let token = server.token(EnrollRole::Node).await;
    let requests: Vec<_> = (0..64)
        .map(|_| enroll_request(&token, &MemberKey::generate().unwrap()))
        .collect();
    let all = join_all(
        requests
            .iter()
            .map(|request| enroll(&server, &token, request)),
    )
    .await;
    let (joined, refused): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
    assert_eq!(joined.len(), 1);
    for refused in refused {
        let (status, _) = refusal(refused);
        assert!(status == 401, "{status}");
    }
    assert_eq!(server.user.nodes().await.unwrap().len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_used_revoked_and_expired_tokens_are_refused_alike_and_waiting_for_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let [used, revoked, role] = [
        server.token(EnrollRole::Node).await,
        server.token(EnrollRole::Node).await,
        server.token(EnrollRole::Edge).await,
    ];
    let short = CreateTokenRequest::new(EnrollRole::Node, 1);
    let expired = token_of(&server, &short).await;
    let unknown = EnrollmentToken::generate(used.ca_fingerprint, None).unwrap();
    let request = enroll_request(&used, &MemberKey::generate().unwrap());
    enroll(&server, &used, &request).await.unwrap();
    let listed = server.user.tokens().await.unwrap();
    assert_eq!(listed.len(), 4);
    let of = |token: &EnrollmentToken| identity::hex(&token.secret_hash())[..12].to_owned();
    let row = listed.iter().find(|row| row.id == of(&used)).unwrap();
    assert_eq!(row.used_by, Some(Member::Node(NodeId(1))));
    assert_eq!(row.by.as_deref(), Some("admin"));
    server.user.revoke_token(&of(&revoked)).await.unwrap();
    let again = server.user.revoke_token(&of(&revoked)).await;
    assert_eq!(refusal(again), (404, "token_not_found".to_owned()));
    let ends = listed.iter().find(|row| row.id == of(&expired)).unwrap();
    eventually("the token has expired", async || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        (now.as_millis() > u128::from(ends.expires_at.0)).then_some(())
    })
    .await;

    // Somebody else holds the lock of the store: whoever waited for a write would get another answer.
    let url = format!("sqlite:{}", folder.path().join("platform.db").display());
    let mut holder = SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE")
        .execute(&mut holder)
        .await
        .unwrap();
    let mut said = Vec::new();
    for token in [&unknown, &used, &revoked, &expired] {
        let request = enroll_request(token, &MemberKey::generate().unwrap());
        let error = enroll(&server, token, &request).await.unwrap_err();
        let ClientError::Api { status, error, .. } = error else {
            panic!("{error:?}");
        };
        said.push((status, error));
    }
    assert!(said.windows(2).all(|pair| pair[0] == pair[1]), "{said:?}");
    assert_eq!(said[0].1.code, error_code::TOKEN_REFUSED);
    // A token for another role is told so, and is not spent.
    let mut wrong = enroll_request(&role, &MemberKey::generate().unwrap());
    wrong.role = Some(EnrollRole::Node);
    let refused = refusal(enroll(&server, &role, &wrong).await);
    assert_eq!(refused, forbidden("token_other_role"));
    sqlx::raw_sql("ROLLBACK")
        .execute(&mut holder)
        .await
        .unwrap();
    holder.close().await.unwrap();
    wrong.role = Some(EnrollRole::Edge);
    enroll(&server, &role, &wrong).await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_a_year_off_is_named_and_spends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let token = server.token(EnrollRole::Node).await;
    let mut request = enroll_request(&token, &MemberKey::generate().unwrap());
    for (sent_at, which) in [
        (now().0 + 366 * DAY_MS, "ahead of"),
        (now().0 - 366 * DAY_MS, "behind"),
    ] {
        request.sent_at = Some(Timestamp(sent_at));
        let error = enroll(&server, &token, &request).await.unwrap_err();
        assert_eq!(error.code(), Some("clock_skew"));
        let text = error.to_string();
        assert!(text.contains(" days, ") && text.contains(which), "{text}");
    }
    request.sent_at = Some(now());
    enroll(&server, &token, &request).await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_refused_again_and_again_is_told_to_wait_and_members_join_all_the_same()
{
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let token = server.token(EnrollRole::Node).await;
    let unknown = EnrollmentToken::generate(token.ca_fingerprint, None).unwrap();
    let wrong = enroll_request(&unknown, &MemberKey::generate().unwrap());
    let limited = eventually("a request to wait", async || {
        let error = enroll(&server, &unknown, &wrong).await.unwrap_err();
        (error.code() == Some("too_many_enrollments")).then_some(error)
    });
    let limited = limited.await;
    assert!(limited.is_transient() && limited.retry_after().is_some());
    // The token was not looked at. It is good once the address may ask again.
    let request = enroll_request(&token, &MemberKey::generate().unwrap());
    eventually("the machine joins", async || {
        enroll(&server, &token, &request).await.ok()
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_a_store_restored_from_before_a_node_joined_lets_neither_act_as_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let server = Server::start(dir).await;
    let (stays_id, stays) = server.join_node().await;
    let used_later = server.token(EnrollRole::Edge).await;
    let file = dir.join("backup.db");
    control_plane::backup(dir, None, &file).await.unwrap();
    let key = MemberKey::generate().unwrap();
    let request = enroll_request(&used_later, &key);
    let (lost_id, lost) = server.join_node().await;
    let (_, later) = server.join_node().await;
    enroll(&server, &used_later, &request).await.unwrap();
    server.stop().await;
    let restore = RestoreOptions {
        file,
        data_dir: dir.to_owned(),
        store: None,
        rehearse: false,
    };
    control_plane::restore(&restore).await.unwrap();
    let server = Server::start(dir).await;
    assert_eq!(desired(&at(&server, &stays)).await.unwrap(), stays_id);

    // The store does not know that this token was used.
    let other = enroll_request(&used_later, &MemberKey::generate().unwrap());
    let refused = enroll(&server, &used_later, &other).await;
    assert_eq!(
        refusal(refused),
        (401, error_code::TOKEN_REFUSED.to_owned())
    );

    // No machine that joins gets the number of one that was forgotten, whether that one has called or not.
    let (new_id, _) = server.join_node().await;
    assert_eq!(new_id.0, stays_id.0 + SKIPPED_NUMBERS + 1);
    server.stop().await;

    // It does where a database of before was put back by other means.
    let url = format!("sqlite:{}", dir.join("platform.db").display());
    let mut db = SqliteConnection::connect(&url).await.unwrap();
    let sql = format!(
        "UPDATE cluster SET last_node = {}; DELETE FROM nodes WHERE id = {}",
        stays_id.0, new_id.0
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
        .execute(&mut db)
        .await
        .unwrap();
    db.close().await.unwrap();
    let server = Server::start(dir).await;
    let (again_id, again) = server.join_node().await;
    assert_eq!(again_id, lost_id);
    let refused = desired(&at(&server, &lost)).await;
    assert_eq!(refusal(refused), forbidden(error_code::NOT_A_MEMBER));
    assert_eq!(desired(&at(&server, &again)).await.unwrap(), again_id);
    let renewal = CertificateRequest {
        csr_pem: MemberKey::load(&lost.key_pem)
            .unwrap()
            .csr_pem("x")
            .unwrap(),
        replaces_key: false,
        wireguard_public_key: None,
    };
    let renewed = at(&server, &lost).certificate(&renewal).await;
    assert_eq!(refusal(renewed), forbidden(error_code::NOT_A_MEMBER));

    // The number of one that has shown itself is not given again.
    let refused = desired(&at(&server, &later)).await;
    assert_eq!(refusal(refused), forbidden(error_code::NOT_A_MEMBER));
    let (next_id, _) = server.join_node().await;
    assert_eq!(next_id, NodeId(4));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_an_expired_certificate_renews_and_opens_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let server = Server::start(dir).await;
    let (id, joined) = server.join_node().await;
    let (revoked_id, revoked) = server.join_node().await;
    server.user.revoke(Member::Node(revoked_id)).await.unwrap();
    server.stop().await;
    let ca = ca_of(dir).await;
    let server = Server::start(dir).await;
    // Of a month ago, and of a server whose clock was a year ahead.
    for issued in [now().0 - 38 * DAY_MS, now().0 + 365 * DAY_MS] {
        let of = |joined: &Joined, id| {
            let key = MemberKey::load(&joined.key_pem).unwrap();
            let csr = key.csr_pem("box").unwrap();
            let signed = ca.sign_member(&csr, Member::Node(id), Timestamp(issued));
            let client = ApiClient::member(
                &server.ready.url,
                ca.certificate_pem(),
                &signed.unwrap(),
                &key.key_pem(),
            );
            let request = CertificateRequest {
                csr_pem: csr,
                replaces_key: false,
                wireguard_public_key: None,
            };
            (client.unwrap(), request)
        };
        let (client, request) = of(&joined, id);
        for refused in [
            desired(&client).await.map(drop),
            client
                .member_state(Generation::default(), (0, 0), NOW)
                .await
                .map(drop),
            client
                .instance_secrets(model::InstanceId(1))
                .await
                .map(drop),
        ] {
            let refused = refusal(refused);
            assert_eq!(refused, forbidden(error_code::CERTIFICATE_EXPIRED));
        }
        // Another key cannot be had so.
        let other = CertificateRequest {
            csr_pem: MemberKey::generate().unwrap().csr_pem("x").unwrap(),
            ..request.clone()
        };
        let refused = refusal(client.certificate(&other).await);
        assert_eq!(refused, (422, "other_key".to_owned()));
        let renewed = client.certificate(&request).await.unwrap();
        let certificate = MemberCertificate::of_pem(&renewed.certificate_pem).unwrap();
        assert!(certificate.is_current(now()));
        client
            .replace_credentials(&renewed.ca_pem, &renewed.certificate_pem, &joined.key_pem)
            .unwrap();
        assert_eq!(desired(&client).await.unwrap(), id);
        // One that was revoked does not renew.
        let (client, request) = of(&revoked, revoked_id);
        let refused = refusal(client.certificate(&request).await);
        assert_eq!(refused, forbidden(error_code::REVOKED));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_keeps_itself_one_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("server");
    let server = Server::start(&dir).await;
    let made = server.token(EnrollRole::Node).await.to_string();
    let node_dir = folder.path().join("node");
    let mut applicant = Applicant {
        role: EnrollRole::Edge,
        server: None,
        token: Some(made),
        name: "box".to_owned(),
        region: "home".to_owned(),
        hardware: hardware(),
        underlay: UnderlayOptions {
            port: 40_001,
            advertise: None,
        },
    };
    // The wrong role: the keys stay for the right one, and the token is not spent.
    let error = Membership::load_or_join(&node_dir, &applicant).await;
    let error = error.unwrap_err();
    assert!(
        display::chain(&error).contains("is for the role node"),
        "{error}"
    );
    applicant.role = EnrollRole::Node;
    let joined = Membership::load_or_join(&node_dir, &applicant)
        .await
        .unwrap();
    assert!(!node_dir.join("keys.json").exists());
    server.stop().await;

    // Its server was away for a month: the certificate is out of its dates.
    let ca = ca_of(&dir).await;
    let key = MemberKey::load(&joined.key_pem).unwrap();
    let csr = key.csr_pem("box").unwrap();
    let month_ago = Timestamp(now().0 - 38 * DAY_MS);
    let mut away = joined.clone();
    away.certificate_pem = ca.sign_member(&csr, joined.member, month_ago).unwrap();
    let server = eventually("the server is back", async || {
        Server::try_start_at(&dir, &joined.server).await
    });
    let server = server.await;
    let client = away.client().unwrap();
    let refused = desired(&client).await;
    assert_eq!(refusal(refused), forbidden(error_code::CERTIFICATE_EXPIRED));
    let overlay = OverlayState::load(&away, &node_dir).await;
    assert!(overlay.peers.is_empty() && overlay.private_key.base64().is_some());
    let overlay = tokio::sync::watch::Sender::new(overlay);
    let mut told = overlay.subscribe();
    let report = OverlayReport {
        underlay: membership::underlay(&joined.server, applicant.underlay).await,
        ..OverlayReport::default()
    };
    let report = tokio::sync::watch::Sender::new(report);
    let said = report.subscribe();
    let nothing = tokio::sync::watch::Sender::new(None);
    let keeping = membership::keep(
        away,
        node_dir.clone(),
        client.clone(),
        overlay,
        said,
        nothing,
    );
    let keeping = tokio::spawn(keeping);
    eventually("the certificate is renewed", async || {
        desired(&client).await.ok()
    })
    .await;
    let kept = Membership::load(&node_dir).unwrap().unwrap();
    let renewed = MemberCertificate::of_pem(&kept.certificate_pem).unwrap();
    assert!(renewed.is_current(now()));

    // It learns of its peers, and says so.
    let (other, _) = server.join_node().await;
    let peers = tokio::time::timeout(PATIENCE, told.wait_for(|state| !state.peers.is_empty()));
    assert!(peers.await.unwrap().unwrap().peers.contains_key(&other));
    // It is on the disk, so that a start needs no server.
    eventually("the peers are kept", async || {
        let kept = OverlayState::load(&joined, &node_dir).await;
        kept.peers.contains_key(&other).then_some(())
    })
    .await;
    // It is reached elsewhere: its peers are told.
    report.send_modify(|report| report.underlay.port = 40_002);
    eventually("the other port is recorded", async || {
        let members = server.user.network().await.unwrap().members;
        let own = members.into_iter().find(|row| row.member == joined.member);
        (own?.endpoint?.port() == 40_002).then_some(())
    })
    .await;

    // Other keys, as a user wants it.
    server.user.rotate_keys(joined.member).await.unwrap();
    let changed = eventually("other keys", async || {
        let kept = Membership::load(&node_dir).unwrap().unwrap();
        (kept.key_pem != joined.key_pem).then_some(kept)
    });
    let changed = changed.await;
    assert_ne!(changed.wireguard_private_key, joined.wireguard_private_key);
    let old = eventually("the old key is none any more", async || {
        let old = joined.client().unwrap();
        desired(&client).await.ok()?;
        desired(&old).await.err()
    });
    assert_eq!(old.await.code(), Some(error_code::NOT_A_MEMBER));
    assert!(!node_dir.join("next-keys.json").exists());
    keeping.abort();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_a_thousand_members_renew_at_once_without_a_write() {
    const MEMBERS: usize = 1000;
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let mut members = Vec::new();
    for _ in 0..MEMBERS {
        members.push(server.join(EnrollRole::Edge).await);
    }
    // Somebody else holds the lock of the store: a renewal waits for no write.
    let url = format!("sqlite:{}", folder.path().join("platform.db").display());
    let mut holder = SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("BEGIN IMMEDIATE")
        .execute(&mut holder)
        .await
        .unwrap();
    let renewals = members.iter().map(|joined| async {
        let key = MemberKey::load(&joined.key_pem).unwrap();
        let request = CertificateRequest {
            csr_pem: key.csr_pem("box").unwrap(),
            replaces_key: false,
            wireguard_public_key: None,
        };
        joined.client.health().await.unwrap();
        (&joined.client, request)
    });
    let mut ready = Vec::new();
    for renewal in renewals {
        ready.push(renewal.await);
    }
    let all = join_all(ready.iter().map(|(client, request)| async move {
        let asked = Instant::now();
        client.certificate(request).await.unwrap();
        asked.elapsed()
    }));
    let mut took = all.await;
    took.sort();
    let p99 = took[MEMBERS * 99 / 100 - 1];
    assert!(p99 < Duration::from_secs(1), "p99 {p99:?}");
    sqlx::raw_sql("ROLLBACK")
        .execute(&mut holder)
        .await
        .unwrap();
    holder.close().await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_a_member_that_is_revoked_with_streams_open_is_cut_off_and_each_peer_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (id, joined) = server.join_node().await;
    let joined = Arc::new(joined);
    let (peer_id, peer) = server.join_node().await;
    let edge = server.join(EnrollRole::Edge).await;
    let following = peer
        .client
        .member_state(Generation::default(), (0, 0), NOW)
        .await;
    let before = following.unwrap().unwrap();
    let told = before.overlay.unwrap();
    assert!(told.peers.contains_key(&id) && told.peers.len() == 2);
    let has = (told.session, told.counter);

    // Long polls that are under way end at once.
    let polls = tokio::spawn({
        let joined = Arc::clone(&joined);
        async move {
            let wait = Duration::from_secs(25);
            let state = joined.client.desired(Generation::default(), NOW).await;
            let has = state.unwrap().unwrap().generation;
            tokio::join!(
                joined.client.desired(has, wait),
                joined.client.streams(wait),
            )
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let revoked = server.user.revoke(Member::Node(id)).await.unwrap();
    let (desired_ended, streams_ended) = polls.await.unwrap();
    // Polls that nobody ends are answered, at the end of their time.
    assert!(desired_ended.is_err() && streams_ended.is_err());
    for _ in 0..3 {
        let refused = refusal(desired(&joined.client).await);
        assert_eq!(refused, forbidden(error_code::REVOKED));
    }
    // Its certificate is good by its dates, and opens nothing.
    let renewal = CertificateRequest {
        csr_pem: MemberKey::load(&joined.key_pem)
            .unwrap()
            .csr_pem("x")
            .unwrap(),
        replaces_key: false,
        wireguard_public_key: None,
    };
    let refused = refusal(at(&server, &joined).certificate(&renewal).await);
    assert_eq!(refused, forbidden(error_code::REVOKED));

    // Who has applied it says so by asking for what is newer.
    let acknowledged = async || {
        let all = server.user.acknowledgements(revoked.counter).await.unwrap();
        let members = all.members.into_iter();
        members
            .map(|row| (row.member, row.acknowledged))
            .collect::<Vec<_>>()
    };
    let (node, edge_member) = (Member::Node(peer_id), edge.response.member);
    assert_eq!(acknowledged().await, [(node, false), (edge_member, false)]);
    let newer = peer
        .client
        .member_state(before.generation, has, PATIENCE)
        .await;
    let newer = newer.unwrap().unwrap();
    let told = newer.overlay.unwrap();
    assert_eq!(told.removed, std::collections::BTreeSet::from([id]));
    let has = (told.session, told.counter);
    let nothing = peer
        .client
        .member_state(newer.generation, has, NOW)
        .await
        .unwrap();
    assert_eq!(nothing, None);
    assert_eq!(acknowledged().await, [(node, true), (edge_member, false)]);
    // Asked again, it is revoked still.
    let again = server.user.revoke(Member::Node(id)).await.unwrap();
    assert_eq!(again.counter, revoked.counter);
    let row = server.user.nodes().await.unwrap().remove(0);
    assert!(matches!(row.approval, Approval::Revoked { .. }));
    server.user.remove_node(id, true).await.unwrap();
    let refused = refusal(desired(&at(&server, &joined)).await);
    assert_eq!(refused.0, 403);

    // An edge as well.
    server.user.revoke(edge_member).await.unwrap();
    let routes = at(&server, &edge).routes(HasRoutes::default(), NOW).await;
    assert_eq!(refusal(routes), forbidden(error_code::REVOKED));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_waits_for_approval_may_do_nothing_before() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let request = CreateTokenRequest {
        approve: true,
        region: Some("north".to_owned()),
        ..CreateTokenRequest::new(EnrollRole::Node, 600)
    };
    let token = token_of(&server, &request).await;
    let key = MemberKey::generate().unwrap();
    let response = enroll(&server, &token, &enroll_request(&token, &key)).await;
    let response = response.unwrap();
    assert!(response.pending);
    assert_eq!(response.region.as_deref(), Some("north"));
    let client = member(&server, &response, &key);
    let refused = refusal(desired(&client).await);
    assert_eq!(refused, forbidden(error_code::NOT_APPROVED));
    let state = client
        .member_state(Generation::default(), (0, 0), NOW)
        .await;
    let state = state.unwrap().unwrap();
    let told = state.overlay.unwrap();
    assert_eq!(state.approval, Approval::Pending);
    assert!(told.peers.is_empty());
    let has = (told.session, told.counter);
    let row = server.user.nodes().await.unwrap().remove(0);
    assert_eq!(
        (row.approval, row.region.as_str()),
        (Approval::Pending, "north")
    );
    let shown = MemberCertificate::of_pem(&response.certificate_pem).unwrap();
    assert_eq!(row.key, Some(identity::key_fingerprint(&shown.key)));
    server.user.approve(response.member).await.unwrap();
    let state = client.member_state(state.generation, has, PATIENCE).await;
    assert_eq!(state.unwrap().unwrap().approval, Approval::Approved);
    desired(&client).await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_machine_comes_back_under_its_name_and_the_old_key_opens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (id, old) = server.join_node().await;
    let request = CreateTokenRequest {
        replaces: Some(Member::Node(id)),
        ..CreateTokenRequest::new(EnrollRole::Node, 600)
    };
    let token = token_of(&server, &request).await;
    desired(&old.client).await.unwrap();
    let key = MemberKey::generate().unwrap();
    let response = enroll(&server, &token, &enroll_request(&token, &key)).await;
    let response = response.unwrap();
    assert_eq!(response.member, Member::Node(id));
    assert_eq!(response.name, old.response.name);
    desired(&member(&server, &response, &key)).await.unwrap();
    let refused = refusal(desired(&at(&server, &old)).await);
    assert_eq!(refused, forbidden(error_code::NOT_A_MEMBER));
    // What was revoked may come back so, too.
    server.user.revoke(Member::Node(id)).await.unwrap();
    let token = token_of(&server, &request).await;
    let key = MemberKey::generate().unwrap();
    let again = enroll(&server, &token, &enroll_request(&token, &key)).await;
    desired(&member(&server, &again.unwrap(), &key))
        .await
        .unwrap();
    let wrong = CreateTokenRequest {
        replaces: Some(Member::Node(id)),
        ..CreateTokenRequest::new(EnrollRole::Edge, 600)
    };
    let refused = refusal(server.user.create_token(&wrong).await);
    assert_eq!(refused, (422, "replaces_other_role".to_owned()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_the_key_of_a_member_from_before_keys_were_recorded_is_recorded_once() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let server = Server::start(dir).await;
    let (id, joined) = server.join_node().await;
    server.stop().await;
    let url = format!("sqlite:{}", dir.join("platform.db").display());
    let mut db = SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("UPDATE nodes SET public_key = NULL")
        .execute(&mut db)
        .await
        .unwrap();
    db.close().await.unwrap();
    let ca = ca_of(dir).await;
    let server = Server::start(dir).await;
    assert_eq!(desired(&at(&server, &joined)).await.unwrap(), id);
    // From then on another key with the same number is nobody's.
    let other = MemberKey::generate().unwrap();
    let csr = other.csr_pem("box").unwrap();
    let certificate = ca.sign_member(&csr, Member::Node(id), now()).unwrap();
    let (ca_pem, key_pem) = (ca.certificate_pem(), other.key_pem());
    let client = ApiClient::member(&server.ready.url, ca_pem, &certificate, &key_pem);
    let refused = refusal(desired(&client.unwrap()).await);
    assert_eq!(refused, forbidden(error_code::NOT_A_MEMBER));
    assert_eq!(desired(&at(&server, &joined)).await.unwrap(), id);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_a_node_that_claims_more_memory_is_named_and_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path()).await;
    let (id, joined) = server.join_node().await;
    let mut claims = report(Generation::default(), Vec::new());
    claims.hardware = Hardware {
        memory_bytes: 1 << 50,
        ..hardware()
    };
    joined.client.report_all(&claims).await.unwrap();
    let row = server.user.nodes().await.unwrap().remove(0);
    assert_eq!(row.hardware.memory_bytes, hardware().memory_bytes);
    assert_eq!(row.claimed.unwrap().memory_bytes, 1 << 50);
    server.user.approve(Member::Node(id)).await.unwrap();
    let row = server.user.nodes().await.unwrap().remove(0);
    assert_eq!(row.hardware.memory_bytes, 1 << 50);
    assert_eq!(row.claimed, None);
    server.stop().await;
}
