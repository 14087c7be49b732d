//! What the measurements mean: each finding says what, where, why, and what to do.

// ring: the findings of all kinds share what they are of.

mod members;
mod sizes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use api::enrollment::Member;
use api::member::LinkMeasurement;
use api::user::{DiagnosedMember, FindingSeverity, MeasurementState, NetworkFinding};
use model::NodeId;
use overlay::address_plan::locate;

use self::sizes::fragmented;
use super::Overview;
use super::groups::groups;

/// How many members a finding names.
const NAMED: usize = 5;
/// Echoes that are needed to speak of loss; so many lost, and so many of a hundred, are worth a word.
const MIN_ECHOES: u32 = 5;
const MIN_LOST: u32 = 2;
const MIN_LOST_PERCENT: u32 = 10;
/// The least size at which a link shows whether Packet Too Big comes back, in bytes: members send what is 8 bytes larger than the least MTU, and find sizes up to 4 bytes.
const TOO_BIG_BYTES: u32 = 1280 + 8 + 4;
/// Kinds of links, as `ip -d link` names them, that are tunnels.
const TUNNELS: [&str; 16] = [
    "wireguard",
    "tun",
    "none",
    "ppp",
    "gre",
    "gretap",
    "ip6gre",
    "ip6gretap",
    "ipip",
    "ip6tnl",
    "sit",
    "vti",
    "vti6",
    "xfrm",
    "vxlan",
    "geneve",
];
/// The switch that has `platform wireguard` do without the kernel's cutting and joining of packets.
const NO_OFFLOAD: &str = "PLATFORM_WIREGUARD_NO_OFFLOAD=1";

/// An end of a link in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    From(NodeId),
    To(NodeId),
}

impl End {
    fn number(self) -> NodeId {
        match self {
            Self::From(number) | Self::To(number) => number,
        }
    }

    /// The members of ends that are of one kind, and whether links begin there.
    fn of_group(ends: &[Self]) -> (Vec<NodeId>, bool) {
        let begins = matches!(ends, [Self::From(_), ..]);
        (ends.iter().map(|end| end.number()).collect(), begins)
    }
}

/// A link as one end measured it.
#[derive(Clone, Copy)]
struct Measured<'a> {
    from: NodeId,
    to: NodeId,
    link: &'a LinkMeasurement,
}

/// Whether one end of a link found nothing to say of it.
pub fn is_healthy(link: &LinkMeasurement, mtu: u32) -> bool {
    let echoes = link.echoes;
    let is_fragmented = fragmented(link, mtu).is_some();
    echoes.answered > 0
        && lost_percent(link).is_none()
        && link.mtu.is_none_or(|measured| measured >= mtu)
        && link.packet_too_big != Some(false)
        && link
            .segments
            .is_none_or(|segments| segments.single && segments.large)
        && !is_fragmented
        && !is_by_tunnel(link)
}

/// What is not as it should be: what does not work first.
pub fn findings(overview: &Overview, members: &[DiagnosedMember]) -> Vec<NetworkFinding> {
    let mut all = Findings {
        overview,
        members,
        states: members
            .iter()
            .filter_map(|member| Some((member.number?, member.state)))
            .collect(),
        found: Vec::new(),
    };
    all.of_members();
    all.of_answers();
    all.of_sizes();
    all.of_packet_too_big();
    all.of_segments();
    all.of_relays();
    all.of_endpoints();
    all.of_loss();
    all.of_tunnels();
    all.of_clocks();
    all.found.sort_by_key(|finding| finding.severity);
    all.found
}

struct Findings<'a> {
    overview: &'a Overview,
    members: &'a [DiagnosedMember],
    states: BTreeMap<NodeId, MeasurementState>,
    found: Vec<NetworkFinding>,
}

impl<'a> Findings<'a> {
    fn add(
        &mut self,
        code: &str,
        severity: FindingSeverity,
        numbers: impl IntoIterator<Item = NodeId>,
        texts: [String; 3],
    ) {
        let placed = &self.overview.placed;
        let members = (numbers.into_iter())
            .filter_map(|number| Some(placed.get(&number)?.member))
            .collect();
        self.add_of(code, severity, members, texts);
    }

    fn add_of(
        &mut self,
        code: &str,
        severity: FindingSeverity,
        members: Vec<Member>,
        [found, why, mend]: [String; 3],
    ) {
        self.found.push(NetworkFinding {
            code: code.to_owned(),
            severity,
            members,
            found,
            why,
            mend,
        });
    }

    /// Every link, as each of its ends measured it.
    fn links(&self) -> impl Iterator<Item = Measured<'a>> + use<'a> {
        let placed = &self.overview.placed;
        self.members.iter().flat_map(move |member| {
            let links = member.number.map(|from| {
                (member.links.iter())
                    .filter(|(to, _)| placed.contains_key(to))
                    .map(move |(to, link)| Measured {
                        from,
                        to: *to,
                        link,
                    })
            });
            links.into_iter().flatten()
        })
    }

    fn has_measured(&self, number: NodeId) -> bool {
        let state = self.states.get(&number);
        matches!(
            state,
            Some(MeasurementState::Measured | MeasurementState::Failed)
        )
    }

    fn name(&self, number: NodeId) -> String {
        let placed = self.overview.placed.get(&number);
        placed.map_or_else(|| number.to_string(), |placed| placed.name.clone())
    }

    fn names(&self, numbers: &[NodeId]) -> String {
        let more = numbers.len().saturating_sub(NAMED);
        let names: Vec<_> = (numbers.iter().take(NAMED))
            .map(|number| self.name(*number))
            .collect();
        let names = names.join(", ");
        if more > 0 {
            format!("{names} and {more} more")
        } else {
            names
        }
    }

    /// Whether anybody reaches a member that did not measure. Where nobody does, its own finding says so.
    fn is_lost_to_all(&self, number: NodeId) -> bool {
        // The finding of one that is too old is no error: that nobody reaches it is.
        !self.has_measured(number)
            && self.states.get(&number) != Some(&MeasurementState::TooOld)
            && !self
                .links()
                .any(|measured| measured.to == number && measured.link.echoes.answered > 0)
    }

    /// Links by which no echo comes back.
    fn of_answers(&mut self) {
        let mut pairs: BTreeMap<(NodeId, NodeId), Vec<Measured<'a>>> = BTreeMap::new();
        // An end that sent nothing says nothing.
        for measured in self.links().filter(|of| of.link.echoes.sent > 0) {
            let (from, to) = (measured.from, measured.to);
            let pair = (from.min(to), from.max(to));
            pairs.entry(pair).or_default().push(measured);
        }
        let lost: BTreeSet<NodeId> = (self.overview.placed.keys())
            .filter(|number| self.is_lost_to_all(**number))
            .copied()
            .collect();
        let (mut one_way, mut silent, mut closed, mut half) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for ((one, other), ends) in &pairs {
            let silent_ends = (ends.iter())
                .filter(|end| end.link.echoes.answered == 0)
                .count();
            if silent_ends == 0 || lost.contains(one) || lost.contains(other) {
                continue;
            }
            let gets = |number: NodeId| {
                let end = ends.iter().find(|end| end.from == number);
                end.map(|end| end.link.received_bytes > 0)
            };
            if silent_ends < ends.len() {
                half.push((*one, *other));
                continue;
            }
            match (gets(*one), gets(*other)) {
                (Some(true), Some(false)) => one_way.push((End::From(*one), End::To(*other))),
                (Some(false), Some(true)) => one_way.push((End::From(*other), End::To(*one))),
                (Some(true) | None, Some(true) | None) => silent.push((*one, *other)),
                (Some(false) | None, Some(false) | None) => closed.push((*one, *other)),
            }
        }
        self.one_way(one_way);
        for (common, others) in groups(closed) {
            self.closed(&common, &others);
        }
        for (common, others) in groups(silent) {
            let (name, names) = (self.names(&common), self.names(&others));
            self.add(
                "no_answer",
                FindingSeverity::Error,
                common.into_iter().chain(others),
                [
                    format!("packets of WireGuard arrive between {name} and {names}, and no echo comes back in the tunnel"),
                    "a rule of one of the machines drops what comes out of the tunnel, or one of them does not know the other as its peer yet".to_owned(),
                    format!("restart the agents of {name} and {names}, which load their rules and peers again; their logs say what they could not do"),
                ],
            );
        }
        for (common, others) in groups(half) {
            let (name, names) = (self.names(&common), self.names(&others));
            self.add(
                "half_answered",
                FindingSeverity::Error,
                common.into_iter().chain(others),
                [
                    format!("between {name} and {names} echoes of one end come back, and those of the other do not"),
                    "the path broke or was mended meanwhile, or a rule of one machine drops echoes that the other asks for".to_owned(),
                    "run this again; where it stays, look at `nft list ruleset` of both machines for rules about ICMPv6".to_owned(),
                ],
            );
        }
    }

    /// Packets go from `To` to `From`, and do not arrive the other way.
    fn one_way(&mut self, pairs: Vec<(End, End)>) {
        for (common, others) in groups(pairs) {
            let ((common, begins), (others, _)) = (End::of_group(&common), End::of_group(&others));
            let (senders, receivers) = if begins {
                (common, others)
            } else {
                (others, common)
            };
            let (from, to) = (self.names(&senders), self.names(&receivers));
            let ports = self.ports(&senders, &receivers);
            self.add(
                "one_way",
                FindingSeverity::Error,
                senders.iter().chain(&receivers).copied(),
                [
                    format!(
                        "no packet from {from} arrives at {to}; those from {to} arrive at {from}"
                    ),
                    format!("a firewall or a router on the way from {from} to {to} drops UDP"),
                    format!("{ports}; see also that nothing on {from} keeps it from going out"),
                ],
            );
        }
    }

    /// No packet arrives, either way.
    fn closed(&mut self, common: &[NodeId], others: &[NodeId]) {
        let (name, names) = (self.names(common), self.names(others));
        let placed = |number: &NodeId| self.overview.placed.get(number);
        let has_no_endpoint =
            |number: &NodeId| placed(number).is_some_and(|placed| placed.endpoint.is_none());
        let numbers = common.iter().chain(others).copied();
        let is_edge = |number: NodeId| {
            placed(&number).is_some_and(|placed| matches!(placed.member, Member::Edge(_)))
        };
        let mend = if numbers.clone().any(is_edge) {
            "forward the port of the edge, and say where by `platform edge join --advertise`: hubs relay nothing of edges"
        } else {
            "`platform network set --mode hubs` has them meet at a hub; or forward the port and say where by `platform node join --advertise`"
        };
        if numbers.clone().all(|number| has_no_endpoint(&number)) {
            self.add(
                "no_endpoint",
                FindingSeverity::Error,
                numbers,
                [
                    format!("nobody knows where {name} and {names} are reached: they cannot call each other"),
                    "all of them are behind a NAT that forwards nothing, or did not say how they are reached".to_owned(),
                    mend.to_owned(),
                ],
            );
            return;
        }
        let ports = self.ports(others, common);
        self.add(
            "udp_blocked",
            FindingSeverity::Error,
            numbers,
            [
                format!("no packet arrives between {name} and {names}, either way"),
                "UDP is blocked between them, there is no route, or the recorded endpoint is not where they are".to_owned(),
                format!("{ports}, and the same the other way; `platform network` shows the endpoints, and `platform node join --advertise` says others"),
            ],
        );
    }

    /// Which ports to let in, where.
    fn ports(&self, senders: &[NodeId], receivers: &[NodeId]) -> String {
        let endpoint = |number: &NodeId| self.overview.placed.get(number)?.endpoint;
        let at = |number: &NodeId| {
            let at = endpoint(number).map(|endpoint| endpoint.ip());
            at.map_or_else(
                || self.name(*number),
                |at| format!("{} ({at})", self.name(*number)),
            )
        };
        let some = |numbers: &[NodeId]| {
            let more = numbers.len().saturating_sub(NAMED);
            let all: Vec<_> = numbers.iter().take(NAMED).map(at).collect();
            let all = all.join(", ");
            if more > 0 {
                format!("{all} and {more} more")
            } else {
                all
            }
        };
        let ports: BTreeSet<u16> = (receivers.iter().filter_map(endpoint))
            .map(|endpoint| endpoint.port())
            .collect();
        let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
        let port = if ports.is_empty() {
            "the UDP port of the overlay".to_owned()
        } else {
            format!("UDP port {}", ports.join(", "))
        };
        format!(
            "let {port} in on {} from {}",
            some(receivers),
            some(senders)
        )
    }

    /// The links of which this is so at either end, whatever the other says.
    fn pairs_of(&self, is: impl Fn(&LinkMeasurement) -> bool) -> BTreeSet<(NodeId, NodeId)> {
        let are = self.links().filter(|of| is(of.link));
        are.map(|of| (of.from.min(of.to), of.from.max(of.to)))
            .collect()
    }

    /// Nodes of which no Packet Too Big comes back.
    fn of_packet_too_big(&mut self) {
        // Where what is to be answered is lost by its size, or as others are, it says nothing.
        let lost_otherwise = self.pairs_of(|link| {
            link.mtu.is_none_or(|size| size < TOO_BIG_BYTES) || lost_percent(link).is_some()
        });
        let lost = self.links().filter(|measured| {
            let (from, to) = (measured.from, measured.to);
            measured.link.packet_too_big == Some(false)
                && self.has_measured(to)
                && !lost_otherwise.contains(&(from.min(to), from.max(to)))
        });
        let lost: Vec<_> = lost
            .map(|measured| (End::From(measured.from), End::To(measured.to)))
            .collect();
        for (common, others) in groups(lost) {
            let ((common, begins), (others, _)) = (End::of_group(&common), End::of_group(&others));
            let (name, names) = (self.names(&common), self.names(&others));
            let found = if begins {
                format!("no Packet Too Big of {names} comes back to {name}")
            } else {
                format!("no Packet Too Big of {name} comes back to {names}")
            };
            self.add(
                "too_big_lost",
                FindingSeverity::Error,
                common.into_iter().chain(others),
                [
                    format!("{found}: a packet that is too large for a link was not answered by it"),
                    "a rule on one of the machines drops ICMPv6 errors. Connections hang where the MTU becomes smaller".to_owned(),
                    "let ICMPv6 type 2 pass (RFC 4890, 4.3.1): look for it in `nft list ruleset` of both machines and of their network namespaces `platform-..`; a restart of the agent loads its own rules again".to_owned(),
                ],
            );
        }
    }

    /// Segments of TCP that do not arrive as they were sent.
    fn of_segments(&mut self) {
        let (mut large, mut none) = (Vec::new(), Vec::new());
        // Where packets of the whole size are lost, so are segments.
        let mtu = self.overview.mtu;
        let too_large = self.pairs_of(|link| link.mtu.is_some_and(|size| size < mtu));
        // Where packets are lost, TCP is slow: many segments take too long then, whatever the kernel does to them.
        let lossy = self.pairs_of(|link| link.echoes.answered < link.echoes.sent);
        let very_lossy = self.pairs_of(|link| lost_percent(link).is_some());
        for Measured { from, to, link } in self.links() {
            let pair = (from.min(to), from.max(to));
            // One that does not measure answers nothing.
            if too_large.contains(&pair) || !self.has_measured(to) {
                continue;
            }
            match link.segments {
                Some(segments) if !segments.single && !very_lossy.contains(&pair) => {
                    none.push((from, to));
                }
                Some(segments) if segments.single && !segments.large && !lossy.contains(&pair) => {
                    large.push((from, to));
                }
                _ => {}
            }
        }
        for (common, others) in groups(large) {
            let (name, names) = (self.names(&common), self.names(&others));
            let kernels = self.kernels(common.iter().chain(&others).copied());
            self.add(
                "large_segments_lost",
                FindingSeverity::Error,
                common.into_iter().chain(others),
                [
                    format!("TCP between {name} and {names} arrives segment by segment, and does not where the kernel cuts and joins many (GSO and GRO)"),
                    format!("a kernel mangles them: {kernels}. Those of Linux 7.0 and 7.1, and drivers of some network cards, do"),
                    format!("userspace: set {NO_OFFLOAD} for the agents of these machines and remove their link (docs/operations.md, \"Kernels that mangle packets\"); the kernel's WireGuard: `ethtool -K LINK gso off gro off tx-udp-segmentation off` on the link of the underlay, or another kernel"),
                ],
            );
        }
        for (common, others) in groups(none) {
            let (name, names) = (self.names(&common), self.names(&others));
            self.add(
                "tcp_lost",
                FindingSeverity::Error,
                common.into_iter().chain(others),
                [
                    format!("echoes come back between {name} and {names}, and what TCP sends does not, not even segment by segment"),
                    "a rule on one of the machines drops TCP in the tunnel, or something on the way changes packets".to_owned(),
                    "look for rules about TCP in `nft list ruleset` of both machines and of their network namespaces `platform-..`; a restart of the agent loads its own rules again".to_owned(),
                ],
            );
        }
    }

    /// The kernels of members, and who carries their packets.
    fn kernels(&self, numbers: impl Iterator<Item = NodeId>) -> String {
        let of = |number: NodeId| {
            let member = self.members.iter().find(|of| of.number == Some(number))?;
            let carrier = match member.carrier {
                Some(carrier) if carrier.is_kernel => "the kernel's WireGuard",
                Some(carrier) if !carrier.offload => "userspace, without offload",
                Some(_) => "userspace",
                None => return None,
            };
            Some(format!("{} has {} ({carrier})", member.name, member.kernel))
        };
        let all: Vec<_> = numbers.filter_map(of).take(NAMED).collect();
        all.join(", ")
    }

    /// Members that are not reached by way of hubs.
    fn of_relays(&mut self) {
        let mut lost = Vec::new();
        for member in self.members {
            let Some(from) = member.number else { continue };
            for (to, echoes) in &member.relayed {
                if echoes.sent > 0 && echoes.answered == 0 && self.has_measured(*to) {
                    lost.push((from.min(*to), from.max(*to)));
                }
            }
        }
        for (common, others) in groups(lost) {
            let (name, names) = (self.names(&common), self.names(&others));
            let home = |number: &NodeId| self.overview.placed.get(number)?.home;
            let homes: BTreeSet<NodeId> = common.iter().chain(&others).filter_map(home).collect();
            let homes: Vec<_> = homes.into_iter().collect();
            let homes = self.names(&homes);
            self.add(
                "not_relayed",
                FindingSeverity::Error,
                common.into_iter().chain(others),
                [
                    format!("{name} and {names} do not reach each other by way of their hubs"),
                    format!("a hub of theirs ({homes}) does not pass packets on, or hubs do not reach each other"),
                    "mend what is found of links of the hubs first; `platform nodes label HUB hub=never` has another one take a hub's place".to_owned(),
                ],
            );
        }
    }

    /// Endpoints that are in the tunnels themselves.
    fn of_endpoints(&mut self) {
        let prefix = self.overview.prefix;
        let is_inside = |endpoint: SocketAddr| match endpoint.ip() {
            IpAddr::V6(address) => locate(prefix, address).is_some(),
            IpAddr::V4(_) => false,
        };
        let inside = self
            .links()
            .filter(|measured| measured.link.endpoint.is_some_and(is_inside));
        let inside: Vec<_> = inside
            .map(|measured| (End::From(measured.from), End::To(measured.to)))
            .collect();
        for (common, others) in groups(inside) {
            let ((common, _), (others, _)) = (End::of_group(&common), End::of_group(&others));
            let (name, names) = (self.names(&common), self.names(&others));
            self.add(
                "endpoint_inside",
                FindingSeverity::Error,
                common.into_iter().chain(others),
                [
                    format!("between {name} and {names} an endpoint is within the cluster's own prefix {prefix}/48"),
                    "packets of WireGuard would have to go through the tunnel that they are".to_owned(),
                    "`platform node join --advertise` takes an address of the network between the machines".to_owned(),
                ],
            );
        }
    }

    /// Links that lose packets.
    fn of_loss(&mut self) {
        let mut lost: BTreeMap<(NodeId, NodeId), u32> = BTreeMap::new();
        for Measured { from, to, link } in self.links() {
            if let Some(percent) = lost_percent(link) {
                let known = lost.entry((from.min(to), from.max(to))).or_default();
                *known = percent.max(*known);
            }
        }
        for (common, others) in groups(lost.keys().copied()) {
            let most = (pairs(&common, &others))
                .filter_map(|pair| lost.get(&pair))
                .max();
            let most = most.copied().unwrap_or_default();
            let (name, names) = (self.names(&common), self.names(&others));
            self.add(
                "loss",
                FindingSeverity::Warning,
                common.into_iter().chain(others),
                [
                    format!("up to {most}% of the echoes between {name} and {names} are lost"),
                    "the network between them is overloaded or broken, or one of the machines is".to_owned(),
                    "run this again, then look at the load of the machines, and at the network by `ping` and `mtr` outside of the tunnel".to_owned(),
                ],
            );
        }
    }

    /// Members that reach others by another tunnel.
    fn of_tunnels(&mut self) {
        let mut by: BTreeMap<(NodeId, String), Vec<NodeId>> = BTreeMap::new();
        for Measured { from, to, link } in self.links() {
            if let Some(underlay) = link.underlay.as_ref().filter(|_| is_by_tunnel(link)) {
                let kind = match underlay.kind.as_str() {
                    "none" => "a tunnel",
                    kind => kind,
                };
                let link = format!("{} ({kind})", underlay.interface);
                by.entry((from, link)).or_default().push(to);
            }
        }
        for ((from, link), to) in by {
            let (name, names) = (self.name(from), self.names(&to));
            self.add(
                "tunnel_in_tunnel",
                FindingSeverity::Warning,
                std::iter::once(from).chain(to),
                [
                    format!("{name} reaches {names} by {link}, which is a tunnel itself"),
                    "each packet is carried by two tunnels: both take from its size, and both cost".to_owned(),
                    "`platform node join --advertise` on those that are reached gives an address outside of that tunnel; where there is none, see that the MTU fits".to_owned(),
                ],
            );
        }
    }
}

/// Each of the ones with each of the others, the lower first.
fn pairs(ones: &[NodeId], others: &[NodeId]) -> impl Iterator<Item = (NodeId, NodeId)> {
    ones.iter().flat_map(move |one| {
        others
            .iter()
            .map(move |other| (*one.min(other), *one.max(other)))
    })
}

/// How many of a hundred echoes are lost, where that is worth a word and not all of them are.
fn lost_percent(link: &LinkMeasurement) -> Option<u32> {
    let echoes = link.echoes;
    let lost = echoes.sent.saturating_sub(echoes.answered);
    let percent = (100 * u64::from(lost)).checked_div(u64::from(echoes.sent))?;
    let percent = u32::try_from(percent).unwrap_or(100);
    let is_worth = echoes.sent >= MIN_ECHOES
        && echoes.answered > 0
        && lost >= MIN_LOST
        && percent >= MIN_LOST_PERCENT;
    is_worth.then_some(percent)
}

fn is_by_tunnel(link: &LinkMeasurement) -> bool {
    let underlay = link.underlay.as_ref();
    underlay.is_some_and(|underlay| TUNNELS.contains(&underlay.kind.as_str()))
}
