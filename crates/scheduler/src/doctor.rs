//! `platform network doctor`: what each member is asked to measure, and what the measurements mean (ADR 0004).
//!
//! A member's answer is about its own links only, and no answer takes away what another member says: a link is well when both of its ends that measured say
//! so. So a member that lies makes itself look ill, and hides nothing that others see.

mod findings;
mod groups;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr};

use api::enrollment::Member;
use api::member::MeasurementRequest;
use model::{NodeId, Timestamp};
use overlay::topology::{Mode, Topology};

pub use findings::{findings, is_healthy};

/// How many members that are no peers each member is asked to reach by way of hubs. Members ask for different ones, so that every member is asked by as many.
const RELAYED: usize = 16;

/// A member that has a place in the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The member.
    pub member: Member,
    /// Its name.
    pub name: String,
    /// Where its peers first try to reach it. Absent: nowhere.
    pub endpoint: Option<SocketAddr>,
    /// The hub through which it sends and gets everything; absent for a hub, and in a mesh.
    pub home: Option<NodeId>,
}

/// What the measurements are of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overview {
    /// The cluster's /48, as its first address.
    pub prefix: Ipv6Addr,
    /// MTU of the overlay, in bytes.
    pub mtu: u32,
    /// The members that have a place, by their numbers.
    pub placed: BTreeMap<NodeId, Placed>,
}

/// What each member is to measure, who is to measure anything. `only`: the members whose links are measured, from both ends; absent: all. It costs what there are peers.
pub fn requests(
    topology: &Topology,
    mode: Mode,
    only: Option<&BTreeSet<NodeId>>,
    run: u64,
    within_ms: u64,
) -> BTreeMap<NodeId, MeasurementRequest> {
    let members: Vec<NodeId> = topology.members().collect();
    let mut requests = BTreeMap::new();
    for (place, member) in members.iter().enumerate() {
        let own = topology.peers(*member);
        let is_whole = only.is_none_or(|only| only.contains(member));
        let wanted = |other: &NodeId| is_whole || only.is_some_and(|only| only.contains(other));
        let peers = (!is_whole).then(|| -> BTreeSet<NodeId> {
            own.keys().filter(|peer| wanted(peer)).copied().collect()
        });
        let relayed = match mode {
            Mode::Mesh => BTreeSet::new(),
            Mode::Hubs { .. } => {
                let others = sample(&members, place, run);
                let others = others.filter(|other| {
                    topology.is_relayed(*member, *other)
                        && !own.contains_key(other)
                        && wanted(other)
                });
                others.collect()
            }
        };
        if peers.as_ref().is_some_and(BTreeSet::is_empty) && relayed.is_empty() {
            continue;
        }
        let request = MeasurementRequest {
            run,
            peers,
            relayed,
            within_ms,
        };
        requests.insert(*member, request);
    }
    requests
}

/// Some of the others: as many for each member, others in each run, and each member asked by as many.
fn sample(members: &[NodeId], place: usize, run: u64) -> impl Iterator<Item = NodeId> {
    let count = members.len();
    let stride = (count.saturating_sub(1) / RELAYED).max(1);
    let stride_of_run = stride as u64;
    let offset = usize::try_from(run % stride_of_run).unwrap_or(0);
    (0..RELAYED)
        .map(move |step| 1 + offset + step * stride)
        .filter(move |distance| *distance < count)
        .map(move |distance| members[(place + distance) % count])
}

/// By how many milliseconds a member's clock is ahead of the server's at least; negative: behind. `given_at` and `answered_at` are by the server's clock,
/// `received_at` and `sent_at` by the member's, as of NTP (RFC 5905, 8). What the way may have taken is not counted as the clock's.
pub fn clock_ahead(
    given_at: Timestamp,
    received_at: Timestamp,
    sent_at: Timestamp,
    answered_at: Timestamp,
) -> i64 {
    let at = |time: Timestamp| i128::from(time.0);
    let ahead = i128::midpoint(
        at(received_at) - at(given_at),
        at(sent_at) - at(answered_at),
    );
    let way = (at(answered_at) - at(given_at)) - (at(sent_at) - at(received_at));
    let error = (way.max(0) + 1) / 2;
    let least = ahead.signum() * (ahead.abs() - error).max(0);
    i64::try_from(least).unwrap_or(if least > 0 { i64::MAX } else { i64::MIN })
}

#[cfg(test)]
mod tests;
