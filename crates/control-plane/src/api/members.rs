//! What nodes and edges have in common: the membership that they follow, their certificates, and what users decide about them (ADR 0004).

use api::enrollment::Member;
use api::error_code;
use api::member::{
    Approval, CertificateRequest, CertificateResponse, MemberState, NodeKey, OverlayChanges,
};
use api::user::{
    Acknowledgement, Acknowledgements, AcknowledgementsQuery, EdgeRow, RevokeResponse,
};
use axum::Json;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use identity::{CaError, is_wireguard_public_key, key_fingerprint, public_key_of_request};
use model::{EdgeId, Generation, Incarnation};
use scheduler::apply::{Command, KeyChange};
use scheduler::cluster_state::{ClusterState, MemberIdentity};
use scheduler::membership::node_keys;
use serde::Deserialize;

use super::extract::{Body, Params, Path, granted};
use crate::access::{ClusterAdmin, ClusterViewer};
use crate::callers::{KnownCaller, Peer};
use crate::clock::now;
use crate::failure::ApiFailure;
use crate::members::until_cut;
use crate::state::{App, Published, Topic};

/// Ends what a member has under way when it is revoked.
pub(super) async fn while_a_member(app: &App, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>();
    let key = peer
        .and_then(|peer| peer.0.as_ref())
        .map(|shown| &shown.key);
    let Some(member) = key.and_then(|key| app.member_of(key)) else {
        return next.run(request).await;
    };
    let answered = until_cut(app, member, next.run(request)).await;
    answered.unwrap_or_else(|| {
        let message = format!("{member} was revoked");
        ApiFailure::new(StatusCode::FORBIDDEN, error_code::REVOKED, message).into_response()
    })
}

/// The query of a member's poll; fields of a newer member are ignored.
#[derive(Debug, Deserialize)]
pub(crate) struct MemberPoll {
    #[serde(default)]
    after: u64,
    #[serde(default)]
    incarnation: Incarnation,
    /// Absent: a member of before the overlay.
    session: Option<u64>,
    #[serde(default)]
    seen: u64,
    /// Absent: a member that measures nothing.
    measured: Option<u64>,
    #[serde(default)]
    wait_ms: u64,
}

/// What a member is told about the cluster, once it is newer than what it has applied.
pub(crate) async fn state(
    State(app): State<App>,
    caller: KnownCaller,
    Params(poll): Params<MemberPoll>,
) -> Result<Response, ApiFailure> {
    let member = caller.member;
    if !caller.is_current {
        return Err(certificate_expired(member));
    }
    let has = Generation {
        incarnation: poll.incarnation,
        counter: poll.after,
    };
    let session = app.overlay.session;
    let seen = (poll.session == Some(session)).then_some(poll.seen);
    app.members.applied(member, has, seen, now());
    app.members.measures(member, poll.measured.is_some());
    let wait = granted(poll.wait_ms);
    let newer = if poll.session.is_some() {
        let told = |published: &Published| {
            let index = &published.peers;
            let is_news = seen.is_none_or(|seen| index.concerned_at(member) > seen);
            let measured = poll.measured;
            let measure = measured.and_then(|run| app.doctor.request_for(member, run, now()));
            (is_news || measure.is_some()).then(|| {
                let cluster = &published.cluster;
                let changes = is_news.then(|| OverlayChanges {
                    servers: app.listens_at.clone(),
                    ..index.changes(cluster, member, session, seen)
                });
                MemberState {
                    measure,
                    ..member_state(&app, cluster, member, Vec::new(), changes)
                }
            })
        };
        app.wait_for(Topic::Member(member), wait, told).await?
    } else {
        let told = |published: &Published| {
            let cluster = &published.cluster;
            let newest = cluster.membership_generation();
            let has = has.within(newest.incarnation);
            (newest != has).then(|| {
                let is_approved = cluster
                    .identity(member)
                    .is_some_and(MemberIdentity::is_approved);
                let keys = is_approved.then(|| node_keys(cluster, member));
                member_state(&app, cluster, member, keys.unwrap_or_default(), None)
            })
        };
        app.wait_for(Topic::Membership, wait, told).await?
    };
    Ok(match newer {
        Some(state) => Json(state).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

/// 403: a certificate that is out of its dates.
pub(crate) fn certificate_expired(member: Member) -> ApiFailure {
    ApiFailure::new(
        StatusCode::FORBIDDEN,
        error_code::CERTIFICATE_EXPIRED,
        format!(
            "the certificate of {member} is out of its dates: it opens its renewal and nothing else"
        ),
    )
}

fn member_state(
    app: &App,
    cluster: &ClusterState,
    member: Member,
    peers: Vec<NodeKey>,
    overlay: Option<OverlayChanges>,
) -> MemberState {
    let identity = cluster.identity(member);
    let approval = identity
        .map(|identity| identity.approval)
        .unwrap_or_default();
    MemberState {
        cluster: cluster.settings.id.clone(),
        generation: cluster.membership_generation(),
        approval,
        peers,
        ca_pem: app.authority().trusted_pem(),
        rotate_keys: identity.is_some_and(|identity| identity.rotate_since.is_some()),
        overlay,
        measure: None,
    }
}

/// A member renews its certificate, or has another key certified. The first writes nothing, and waits for nobody.
pub(crate) async fn certificate(
    State(app): State<App>,
    caller: KnownCaller,
    Body(request): Body<CertificateRequest>,
) -> Result<Json<CertificateResponse>, ApiFailure> {
    let member = caller.member;
    let key = public_key_of_request(&request.csr_pem).map_err(|error| csr_refused(&error))?;
    if (key != caller.key) != request.replaces_key {
        return Err(ApiFailure::refused(
            "other_key",
            "a member renews the certificate of the key by which it comes, or has another key certified in its place",
        ));
    }
    if request.replaces_key {
        let wireguard_key = request.wireguard_public_key.clone();
        if let Some(key) = &wireguard_key
            && !is_wireguard_public_key(key)
        {
            return Err(wireguard_key_invalid());
        }
        app.change_by(member, move |cluster| {
            let identity = cluster.identity(member);
            let is_next = identity.is_some_and(|known| known.next_key.as_ref() == Some(&key));
            let change = KeyChange::Next { key, wireguard_key };
            // Asked again: the answer was lost.
            let command = (!is_next).then_some(Command::SetKeys { member, change });
            Ok::<_, ApiFailure>((command.into_iter().collect(), ()))
        })
        .await?;
    }
    let certificate_pem = app
        .authority()
        .current
        .sign_member(&request.csr_pem, member, now())
        .map_err(|error| ApiFailure::internal(&error))?;
    tracing::debug!(%member, replaces_key = request.replaces_key, "a member has a new certificate");
    Ok(Json(CertificateResponse {
        certificate_pem,
        ca_pem: app.authority().trusted_pem(),
    }))
}

/// 422: what is wrong with a certificate request.
pub(crate) fn csr_refused(error: &CaError) -> ApiFailure {
    match error {
        CaError::Request(_) => ApiFailure::refused("csr_refused", error.to_string()),
        error => ApiFailure::internal(error),
    }
}

/// 422: a WireGuard key is none.
pub(crate) fn wireguard_key_invalid() -> ApiFailure {
    ApiFailure::refused(
        "wireguard_key_invalid",
        "the WireGuard public key is not 32 bytes in base64",
    )
}

fn parsed(text: &str) -> Result<Member, ApiFailure> {
    text.parse().map_err(|_| {
        ApiFailure::bad_request(format!("`{text}` is neither a node (n1) nor an edge (e1)"))
    })
}

fn identity(cluster: &ClusterState, member: Member) -> Result<&MemberIdentity, ApiFailure> {
    let (code, list) = match member {
        Member::Node(_) => ("node_not_found", "`platform nodes`"),
        Member::Edge(_) => ("edge_not_found", "`platform edges`"),
    };
    cluster.identity(member).ok_or_else(|| {
        ApiFailure::not_found(code, format!("there is no member {member}"))
            .hint(format!("{list} lists those there are"))
    })
}

fn not_revoked(cluster: &ClusterState, member: Member) -> Result<&MemberIdentity, ApiFailure> {
    let identity = identity(cluster, member)?;
    match identity.approval {
        Approval::Approved | Approval::Pending => Ok(identity),
        Approval::Revoked { .. } => Err(ApiFailure::conflict(
            error_code::REVOKED,
            format!("{member} was revoked"),
        )
        .hint("`platform tokens create --replaces` lets its machine in again, with new keys")),
    }
}

/// A user lets a member in that waits for approval, and approves what hardware it claims.
pub(crate) async fn approve(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Path(member): Path<String>,
) -> Result<StatusCode, ApiFailure> {
    let member = parsed(&member)?;
    app.change_by(&user, move |cluster| {
        not_revoked(cluster, member)?;
        Ok::<_, ApiFailure>((vec![Command::Approve { member }], ()))
    })
    .await?;
    tracing::info!(user = %user.name, %member, "approved a member");
    app.wake.notify_one();
    Ok(StatusCode::NO_CONTENT)
}

/// A user revokes a member. Its streams and connections are closed before this is answered.
pub(crate) async fn revoke(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Path(member): Path<String>,
) -> Result<Json<RevokeResponse>, ApiFailure> {
    let member = parsed(&member)?;
    let (before, instances) = app
        .change_by(&user, move |cluster| {
            let approval = identity(cluster, member)?.approval;
            let instances = match member {
                Member::Node(id) => cluster.instances.count_on_node(id),
                Member::Edge(_) => 0,
            };
            let now = now();
            // Asked again: the answer was lost.
            let is_revoked = matches!(approval, Approval::Revoked { .. });
            let command = (!is_revoked).then_some(Command::Revoke { member, now });
            let known = (cluster.clone(), instances);
            Ok::<_, ApiFailure>((command.into_iter().collect(), known))
        })
        .await?;
    app.cut(&before, member);
    if let Member::Node(node) = member {
        app.reporting.remove(node);
    }
    tracing::warn!(user = %user.name, %member, instances, "revoked a member");
    app.wake.notify_one();
    let counter = app.published.borrow().cluster.last_membership;
    Ok(Json(RevokeResponse {
        counter,
        instances: u32::try_from(instances).unwrap_or(u32::MAX),
    }))
}

/// A user wants a member to have other keys.
pub(crate) async fn rotate_keys(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Path(member): Path<String>,
) -> Result<StatusCode, ApiFailure> {
    let member = parsed(&member)?;
    app.change_by(&user, move |cluster| {
        not_revoked(cluster, member)?;
        let now = now();
        Ok::<_, ApiFailure>((vec![Command::AskForKeys { member, now }], ()))
    })
    .await?;
    tracing::info!(user = %user.name, %member, "asked a member for other keys");
    Ok(StatusCode::NO_CONTENT)
}

/// Which members have applied a membership.
pub(crate) async fn acknowledgements(
    State(app): State<App>,
    _: ClusterViewer,
    Params(since): Params<AcknowledgementsQuery>,
) -> Result<Json<Acknowledgements>, ApiFailure> {
    let cluster = app.cluster();
    let members = cluster.approved_members().map(|member| {
        let (acknowledged, heard) = app.acknowledged(member, since.counter);
        Acknowledgement {
            member,
            name: cluster.member_name(member),
            acknowledged,
            heard,
        }
    });
    Ok(Json(Acknowledgements {
        members: members.collect(),
    }))
}

/// Every edge.
pub(crate) async fn edges(
    State(app): State<App>,
    _: ClusterViewer,
) -> Result<Json<Vec<EdgeRow>>, ApiFailure> {
    let cluster = app.cluster();
    let rows = cluster.edges.iter().map(|(id, edge)| EdgeRow {
        id: *id,
        name: edge.name.clone(),
        region: edge.region.clone(),
        enrolled_at: edge.enrolled_at,
        seen_at: app.members.seen_at(Member::Edge(*id)),
        approval: edge.identity.approval,
        key: edge.identity.key.as_ref().map(key_fingerprint),
    });
    Ok(Json(rows.collect()))
}

/// A user removes an edge that was revoked.
pub(crate) async fn remove_edge(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Path(edge): Path<EdgeId>,
) -> Result<StatusCode, ApiFailure> {
    let member = Member::Edge(edge);
    app.change_by(&user, move |cluster| {
        if !matches!(
            identity(cluster, member)?.approval,
            Approval::Revoked { .. }
        ) {
            return Err(ApiFailure::conflict(
                "edge_not_revoked",
                format!("{edge} may serve still"),
            )
            .hint(format!("`platform edges revoke {edge}` ends that first")));
        }
        Ok((vec![Command::RemoveEdge { edge }], ()))
    })
    .await?;
    tracing::info!(user = %user.name, %edge, "removed an edge");
    Ok(StatusCode::NO_CONTENT)
}
