//! The overlay: what users see and set of it, what members say of it, and the directories of nodes (ADR 0004).

use std::collections::BTreeMap;
use std::time::Instant;

use api::enrollment::Member;
use api::member::{
    DEFAULT_OVERLAY_PORT, MAX_OVERLAY_ERROR_BYTES, MAX_OVERLAY_MTU, MAX_REPORTED_LINKS,
    MIN_OVERLAY_MTU, OverlayReport, WIREGUARD_OVERHEAD,
};
use api::node::DirectoryChanges;
use api::user::{NetworkMember, NetworkSettingsRequest, NetworkStatus, NetworkWarning};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use identity::is_wireguard_public_key;
use overlay::private_networks::PrivateNetworks;
use overlay::topology::{HUBS, MESH_UP_TO, Mode};
use scheduler::apply::Command;
use scheduler::cluster_state::ClusterState;
use scheduler::numbers::next_overlay_number;
use scheduler::peers::{hub_role, number_of};
use scheduler::underlay::{RecordedUnderlay, UnderlayRefused, record};
use serde::Deserialize;

use super::extract::{Body, Params, granted};
use super::members::wireguard_key_invalid;
use crate::access::{ClusterAdmin, ClusterViewer};
use crate::callers::{KnownCaller, NodeCaller, SeenFrom};
use crate::clock::now;
use crate::failure::ApiFailure;
use crate::state::{App, Published, Topic};

/// How many of a kind a warning names.
const NAMED: usize = 5;

/// 422: why what a member says of its underlay is not recorded.
pub(crate) fn underlay_refused(refusal: &UnderlayRefused) -> ApiFailure {
    let failure = ApiFailure::refused("underlay_refused", refusal.to_string());
    match refusal {
        UnderlayRefused::InsideOfTheCluster(_) | UnderlayRefused::NoEndpoint(_) => failure.hint(
            "`--advertise` takes an address of the machine's own network, such as 203.0.113.7",
        ),
        UnderlayRefused::NoPort => failure.hint("`--overlay-port` takes 1 to 65535"),
    }
}

/// A member says how it is reached, and what it knows of its links.
pub(crate) async fn report(
    State(app): State<App>,
    caller: KnownCaller,
    SeenFrom(from): SeenFrom,
    Body(report): Body<OverlayReport>,
) -> Result<StatusCode, ApiFailure> {
    let member = caller.member;
    if !caller.is_current {
        return Err(super::members::certificate_expired(member));
    }
    if report.links.len() > MAX_REPORTED_LINKS {
        return Err(ApiFailure::refused(
            "too_many_links",
            format!("a member says of at most {MAX_REPORTED_LINKS} links"),
        ));
    }
    if let Some(key) = &report.wireguard_public_key
        && !is_wireguard_public_key(key)
    {
        return Err(wireguard_key_invalid());
    }
    let cluster = app.cluster();
    let underlay = record(&report.underlay, from, cluster.settings.prefix)
        .map_err(|refusal| underlay_refused(&refusal))?;
    if is_news(&cluster, member, &report, underlay) {
        if let Err(wait) = app.overlay.may_move(member, Instant::now()) {
            let failure = ApiFailure::new(
                StatusCode::TOO_MANY_REQUESTS,
                "moves_too_often",
                format!("{member} was recorded at another endpoint a moment ago"),
            );
            return Err(failure.retry_after(wait));
        }
        let wireguard_key = report.wireguard_public_key.clone();
        app.change_by(member, move |cluster| {
            let number =
                match member {
                    Member::Edge(_)
                        if number_of(cluster, member).is_none() && wireguard_key.is_some() =>
                    {
                        let number = next_overlay_number(cluster, now());
                        Some(number.map_err(|error| {
                            ApiFailure::conflict("cluster_full", error.to_string())
                        })?)
                    }
                    _ => None,
                };
            let command = Command::SetUnderlay {
                member,
                number,
                wireguard_key,
                underlay,
            };
            Ok::<_, ApiFailure>((vec![command], ()))
        })
        .await?;
        tracing::info!(%member, endpoint = ?underlay.endpoint, behind_nat = underlay.is_behind_nat, "recorded how a member is reached");
    }
    if caller.is_approved {
        let error = report.error;
        let error = error.map(|error| display::one_line(&error, MAX_OVERLAY_ERROR_BYTES));
        app.overlay.record_error(member, error);
        let number = number_of(&app.cluster(), member);
        app.report_links(member, number, report.links).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Whether what a member says is other than what is recorded of it.
fn is_news(
    cluster: &ClusterState,
    member: Member,
    report: &OverlayReport,
    underlay: RecordedUnderlay,
) -> bool {
    let says_key = report.wireguard_public_key.is_some();
    match member {
        Member::Node(id) => cluster.nodes.get(&id).is_some_and(|node| {
            node.underlay != Some(underlay) || (node.wireguard_key.is_none() && says_key)
        }),
        Member::Edge(id) => cluster.edges.get(&id).is_some_and(|edge| {
            let has_place = edge.wireguard_key.is_some() && edge.number.is_some();
            edge.underlay != Some(underlay) || (!has_place && says_key)
        }),
    }
}

/// The query of a node's poll for its directory; fields of a newer node are ignored.
#[derive(Debug, Deserialize)]
pub(crate) struct DirectoryPoll {
    #[serde(default)]
    session: u64,
    #[serde(default)]
    after: u64,
    #[serde(default)]
    wait_ms: u64,
}

/// What changed in a node's directory, where that is known, else all of it.
pub(crate) async fn directory(
    State(app): State<App>,
    NodeCaller { node, .. }: NodeCaller,
    Params(poll): Params<DirectoryPoll>,
) -> Result<Response, ApiFailure> {
    let session = app.overlay.session;
    let seen = (poll.session == session).then_some(poll.after);
    let newer = app
        .wait_for(Topic::Directory(node), granted(poll.wait_ms), |published| {
            let index = &published.directory;
            let is_news = seen.is_none_or(|seen| index.has_news(node, seen));
            is_news.then(|| DirectoryChanges {
                cluster: published.cluster.settings.id.clone(),
                incarnation: published.cluster.incarnation,
                term: app.term,
                session,
                ..index.changes(node, seen)
            })
        })
        .await?;
    Ok(match newer {
        Some(changes) => {
            let (envs, removed) = (changes.envs.len(), changes.removed.len());
            tracing::debug!(%node, envs, removed, counter = changes.counter, "a node gets its directory");
            Json(changes).into_response()
        }
        None => StatusCode::NO_CONTENT.into_response(),
    })
}

/// The overlay, for people.
pub(crate) async fn show(
    State(app): State<App>,
    _: ClusterViewer,
) -> Result<Json<NetworkStatus>, ApiFailure> {
    Ok(Json(status(&app)))
}

/// A user changes settings of the overlay. Members follow live.
pub(crate) async fn set(
    State(app): State<App>,
    ClusterAdmin(user): ClusterAdmin,
    Body(request): Body<NetworkSettingsRequest>,
) -> Result<Json<NetworkStatus>, ApiFailure> {
    let NetworkSettingsRequest {
        mode,
        mtu,
        private_networks,
    } = request;
    if let Some(Err(refusal)) = private_networks.as_ref().map(PrivateNetworks::check) {
        return Err(ApiFailure::refused("private_networks_refused", refusal.to_string()).hint(
            "`--private-networks` takes networks with commas between, such as 10.1.0.0/16,192.168.7.0/24, or `none`, or `all`",
        ));
    }
    if let Some(mtu) = mtu.filter(|mtu| !(MIN_OVERLAY_MTU..=MAX_OVERLAY_MTU).contains(mtu)) {
        return Err(ApiFailure::refused(
            "mtu_out_of_range",
            format!("the overlay's MTU is {MIN_OVERLAY_MTU} to {MAX_OVERLAY_MTU} bytes, not {mtu}"),
        )
        .hint(format!(
            "it is the MTU of the machines' network without {WIREGUARD_OVERHEAD} bytes: 1420 of 1500, 1380 of 1460"
        )));
    }
    let private = private_networks.as_ref().map(ToString::to_string);
    let command = Command::SetNetwork {
        mode,
        mtu,
        private_networks,
    };
    app.change_by(&user, move |_| Ok::<_, ApiFailure>((vec![command], ())))
        .await?;
    tracing::warn!(user = %user.name, ?mode, ?mtu, private_networks = private, "the overlay's settings were changed");
    Ok(Json(status(&app)))
}

fn status(app: &App) -> NetworkStatus {
    let published = std::sync::Arc::clone(&app.published.borrow());
    let cluster = &published.cluster;
    let settings = &cluster.settings;
    let members: Vec<_> = cluster
        .approved_members()
        .filter_map(|member| network_member(app, &published, member))
        .collect();
    NetworkStatus {
        prefix: settings.prefix,
        mode: settings.mode,
        mtu: settings.mtu,
        private_networks: settings.private_networks.clone(),
        warnings: warnings(&members, settings.mode, settings.mtu),
        members,
    }
}

fn network_member(app: &App, published: &Published, member: Member) -> Option<NetworkMember> {
    let cluster = &published.cluster;
    let (region, underlay) = match member {
        Member::Node(id) => {
            let node = cluster.nodes.get(&id)?;
            (node.region.clone(), node.underlay)
        }
        Member::Edge(id) => {
            let edge = cluster.edges.get(&id)?;
            (edge.region.clone(), edge.underlay)
        }
    };
    let topology = published.peers.topology();
    // One that never said how it is reached has no place in the overlay.
    let number = number_of(cluster, member).filter(|number| topology.has(*number));
    let peers = number.map(|number| topology.peers(number));
    let peers = peers.unwrap_or_default();
    // What one last said before it fell silent, or of peers that it has no more, is not so now.
    let mut links = app.overlay.links_of(member);
    let is_silent = match member {
        Member::Node(id) => cluster.nodes.get(&id).is_some_and(|node| !node.is_online()),
        Member::Edge(_) => false,
    };
    links.retain(|peer, _| !is_silent && peers.contains_key(peer));
    Some(NetworkMember {
        member,
        name: cluster.member_name(member),
        region,
        number,
        role: hub_role(cluster, member),
        is_hub: number.is_some_and(|number| topology.is_hub(number)),
        // In a mesh there are no hubs, dead or not.
        is_dead: matches!(cluster.settings.mode, Mode::Hubs { .. })
            && number.is_some_and(|number| published.peers.dead().contains(&number)),
        home: number.and_then(|number| topology.home(number)),
        endpoint: underlay.and_then(|underlay| underlay.endpoint),
        is_behind_nat: underlay.is_some_and(|underlay| underlay.is_behind_nat),
        underlay_mtu: underlay.and_then(|underlay| underlay.mtu),
        peers: u32::try_from(peers.len()).unwrap_or(u32::MAX),
        links,
        error: app.overlay.error_of(member),
        is_behind: app.is_behind(member),
    })
}

/// The names of members; absent: there is none.
fn named<'m>(members: impl Iterator<Item = &'m NetworkMember>) -> Option<String> {
    let names: Vec<_> = members.map(|member| member.name.clone()).collect();
    (!names.is_empty()).then(|| some_of(names))
}

/// The first few, and how many more there are.
fn some_of(mut all: Vec<String>) -> String {
    let more = all.len().saturating_sub(NAMED);
    all.truncate(NAMED);
    let some = all.join(", ");
    if more > 0 {
        format!("{some} and {more} more")
    } else {
        some
    }
}

/// What is not as it should be, and what to do.
fn warnings(members: &[NetworkMember], mode: Mode, mtu: u32) -> Vec<NetworkWarning> {
    let mut warnings = Vec::new();
    let mut warn = |message: String, hint: String| warnings.push(NetworkWarning { message, hint });
    let placed = || members.iter().filter(|member| member.number.is_some());
    let count = placed().count();
    if mode == Mode::Mesh && count > MESH_UP_TO {
        warn(
            format!(
                "{count} members are a mesh, in which each has {} peers: a mesh is well up to {MESH_UP_TO}",
                count - 1
            ),
            "`platform network set --mode hubs` gives each two or three; connections go on"
                .to_owned(),
        );
    }
    let narrow = placed().filter_map(|member| member.underlay_mtu);
    if let Some(least) = narrow
        .min()
        .filter(|least| mtu + WIREGUARD_OVERHEAD > *least)
    {
        let of = named(placed().filter(|member| {
            member
                .underlay_mtu
                .is_some_and(|least| mtu + WIREGUARD_OVERHEAD > least)
        }));
        let fits = least.saturating_sub(WIREGUARD_OVERHEAD);
        let hint = if fits < MIN_OVERLAY_MTU {
            format!(
                "the overlay needs {MIN_OVERLAY_MTU}: `platform network set --mtu {MIN_OVERLAY_MTU}`; packets of WireGuard are fragmented where less than {} fit",
                MIN_OVERLAY_MTU + WIREGUARD_OVERHEAD
            )
        } else {
            format!("`platform network set --mtu {fits}`")
        };
        warn(
            format!(
                "the overlay's MTU {mtu} and WireGuard's {WIREGUARD_OVERHEAD} bytes do not fit into the network of {}, whose MTU is {least}",
                of.unwrap_or_default()
            ),
            hint,
        );
    }
    if let Some(old) = named(members.iter().filter(|member| member.number.is_none())) {
        warn(
            format!("{old}: not in the overlay, because it did not say how it is reached"),
            "upgrade `platform` on the machine, and see that its agent runs".to_owned(),
        );
    }
    for member in members {
        if let Some(error) = &member.error {
            let (name, role) = (&member.name, member.member.role());
            warn(
                format!("{name} cannot make its end of the overlay: {error}"),
                format!(
                    "`journalctl -u platform-{role}` on it says more; it tries again by itself"
                ),
            );
        }
    }
    if let Some(dead) = named(placed().filter(|member| member.is_dead)) {
        warn(
            format!("{dead}: does not answer as a hub, and others have its place"),
            "look at its machine; `platform nodes label NODE hub=never` keeps it from being one"
                .to_owned(),
        );
    }
    if matches!(mode, Mode::Hubs { .. }) {
        let mut hubs: BTreeMap<&str, usize> = BTreeMap::new();
        // Edges need none.
        let is_node = |member: &&NetworkMember| matches!(member.member, Member::Node(_));
        for member in placed().filter(is_node) {
            *hubs.entry(&member.region).or_default() += usize::from(member.is_hub);
        }
        for (region, _) in hubs.into_iter().filter(|(_, hubs)| *hubs < HUBS) {
            warn(
                format!("region {region} has fewer than {HUBS} hubs: it is cut off, or goes by another region's, when they fail"),
                "a node is a hub when others reach it without a NAT, or with `--advertise`; `platform nodes label NODE hub=preferred` makes it one".to_owned(),
            );
        }
    }
    let names: BTreeMap<_, _> = placed()
        .filter_map(|member| Some((member.number?, member.name.as_str())))
        .collect();
    let silent: Vec<String> = placed()
        .flat_map(|member| {
            let silent = member
                .links
                .iter()
                .filter(|(_, link)| link.answers == Some(false));
            silent.map(|(other, _)| {
                let other = names
                    .get(other)
                    .map_or_else(|| other.to_string(), |name| (*name).to_owned());
                format!("{} from {other}", member.name)
            })
        })
        .collect();
    if !silent.is_empty() {
        warn(
            format!("no answer in the tunnel: {}", some_of(silent)),
            format!(
                "a firewall has to let UDP in at their overlay port, {DEFAULT_OVERLAY_PORT} where `--overlay-port` named no other"
            ),
        );
    }
    warnings
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use api::member::LinkReport;
    use model::{EdgeId, NodeId};
    use overlay::topology::HubRole;

    use super::*;

    const HUBS_ONLY: Mode = Mode::Hubs { local_mesh: 0 };
    const MTU: u32 = 1420;

    fn node(number: u16) -> NetworkMember {
        NetworkMember {
            member: Member::Node(NodeId(number)),
            name: format!("web-{number}"),
            region: "eu".to_owned(),
            number: Some(NodeId(number)),
            role: HubRole::default(),
            is_hub: false,
            is_dead: false,
            home: None,
            endpoint: None,
            is_behind_nat: false,
            underlay_mtu: Some(1500),
            peers: 0,
            links: BTreeMap::new(),
            error: None,
            is_behind: false,
        }
    }

    fn nodes(count: usize) -> Vec<NetworkMember> {
        (1..=u16::try_from(count).unwrap()).map(node).collect()
    }

    /// The one warning that there is.
    fn only(members: &[NetworkMember], mode: Mode) -> (String, String) {
        let mut all = warnings(members, mode, MTU);
        assert_eq!(all.len(), 1, "{all:?}");
        let NetworkWarning { message, hint } = all.remove(0);
        (message, hint)
    }

    #[test]
    fn a_mesh_past_its_size_is_named_with_the_command_that_ends_it() {
        assert_eq!(warnings(&nodes(MESH_UP_TO), Mode::Mesh, MTU), []);
        let mut many = nodes(MESH_UP_TO);
        let mut edge = node(51);
        edge.member = Member::Edge(EdgeId(1));
        many.push(edge);
        let (message, hint) = only(&many, Mode::Mesh);
        assert!(
            message.starts_with("51 members are a mesh, in which each has 50 peers"),
            "{message}"
        );
        assert!(
            hint.contains("`platform network set --mode hubs`"),
            "{hint}"
        );
        for hub in &mut many[..HUBS] {
            hub.is_hub = true;
        }
        assert_eq!(warnings(&many, HUBS_ONLY, MTU), []);
        // One without a place in it is nobody's peer.
        many[50].number = None;
        let (message, hint) = only(&many, Mode::Mesh);
        assert!(
            message.starts_with("web-51: not in the overlay"),
            "{message}"
        );
        assert!(hint.contains("upgrade `platform`"), "{hint}");
    }

    #[test]
    fn what_the_mtu_does_not_fit_is_named_with_one_that_fits_or_that_none_does() {
        let mut members = nodes(7);
        for member in &mut members[..6] {
            member.underlay_mtu = Some(1460);
        }
        let (message, hint) = only(&members, Mode::Mesh);
        assert!(
            message.ends_with(
                "do not fit into the network of web-1, web-2, web-3, web-4, web-5 and 1 more, whose MTU is 1460"
            ),
            "{message}"
        );
        assert_eq!(hint, "`platform network set --mtu 1380`");
        members[6].underlay_mtu = Some(1280);
        let (_, hint) = only(&members, Mode::Mesh);
        assert!(
            hint.starts_with("the overlay needs 1280: `platform network set --mtu 1280`; packets of WireGuard are fragmented where less than 1360 fit"),
            "{hint}"
        );
    }

    #[test]
    fn dead_hubs_regions_with_too_few_and_silent_links_are_named() {
        let mut members = nodes(4);
        members[0].is_dead = true;
        members[1].is_hub = true;
        let answers = |answers| LinkReport {
            handshake_age_seconds: None,
            answers,
        };
        members[2].links = BTreeMap::from([
            (NodeId(1), answers(Some(false))),
            (NodeId(2), answers(Some(true))),
            (NodeId(4), answers(None)),
        ]);
        let all = warnings(&members, HUBS_ONLY, MTU);
        let messages: Vec<_> = all.iter().map(|warning| warning.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "web-1: does not answer as a hub, and others have its place",
                "region eu has fewer than 2 hubs: it is cut off, or goes by another region's, when they fail",
                "no answer in the tunnel: web-3 from web-1",
            ]
        );
        assert!(
            all[0]
                .hint
                .contains("`platform nodes label NODE hub=never`")
        );
        assert!(all[1].hint.contains("hub=preferred"));
        assert!(all[2].hint.contains("51820"));
    }
}
