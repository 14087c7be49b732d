//! Packets that are lost for their size, or cut: what fits, and what to set.

// ring: the findings of all kinds share what they are of.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use api::member::{LinkMeasurement, MIN_OVERLAY_MTU, WIREGUARD_OVERHEAD};
use api::user::FindingSeverity;
use model::NodeId;

use super::super::groups::groups;
use super::{End, Findings, Measured, pairs};

/// The bytes that WireGuard adds over IPv4: 20 of IPv4, 8 of UDP, 32 of its own.
const OVERHEAD_V4: u32 = 60;
impl Findings<'_> {
    /// The MTU that fits everywhere, as far as was measured.
    fn fitting(&self) -> u32 {
        let mtu = self.overview.mtu;
        let of = |measured: Measured<'_>| {
            let inside = measured.link.mtu.filter(|size| *size < mtu);
            let outside = fragmented(measured.link, mtu);
            let outside = outside.map(|underlay| underlay.saturating_sub(WIREGUARD_OVERHEAD));
            inside.into_iter().chain(outside).min()
        };
        let least = self.links().filter_map(of).min();
        least.unwrap_or(mtu).max(MIN_OVERLAY_MTU)
    }

    /// Packets that are lost for their size, or cut.
    pub(super) fn of_sizes(&mut self) {
        let (mtu, fits) = (self.overview.mtu, self.fitting());
        let set =
            format!("`platform network set --mtu {fits}`: links, taps and running guests follow");
        let mut too_large: BTreeMap<(NodeId, NodeId), u32> = BTreeMap::new();
        let mut cut: BTreeMap<(End, End), u32> = BTreeMap::new();
        for Measured { from, to, link } in self.links() {
            if let Some(size) = link.mtu.filter(|size| *size < mtu) {
                let known = too_large
                    .entry((from.min(to), from.max(to)))
                    .or_insert(size);
                *known = size.min(*known);
            }
        }
        for Measured { from, to, link } in self.links() {
            let is_lost = too_large.contains_key(&(from.min(to), from.max(to)));
            if let Some(underlay) = fragmented(link, mtu).filter(|_| !is_lost) {
                cut.insert((End::From(from), End::To(to)), underlay);
            }
        }
        for (common, others) in groups(too_large.keys().copied()) {
            let size = (pairs(&common, &others))
                .filter_map(|pair| too_large.get(&pair).copied())
                .min()
                .unwrap_or(mtu);
            let (name, names) = (self.names(&common), self.names(&others));
            let numbers = common.into_iter().chain(others);
            if size < MIN_OVERLAY_MTU {
                self.add(
                    "mtu_below_least",
                    FindingSeverity::Error,
                    numbers,
                    [
                        format!("packets of {MIN_OVERLAY_MTU} bytes are lost in the tunnel between {name} and {names}, and smaller ones arrive"),
                        "the network between them takes less than WireGuard needs, and drops the fragments".to_owned(),
                        format!("the overlay has no smaller MTU: the network between the machines has to take {} bytes, or fragments of UDP (firewalls and security groups drop them)", MIN_OVERLAY_MTU + WIREGUARD_OVERHEAD),
                    ],
                );
            } else {
                self.add(
                    "mtu_too_large",
                    FindingSeverity::Error,
                    numbers,
                    [
                        format!("packets of {mtu} bytes, the cluster's MTU, are lost in the tunnel between {name} and {names}: the largest that arrives has {size}"),
                        "the network between them has a smaller MTU than 1500 or another tunnel, and the fragments of WireGuard's packets are dropped".to_owned(),
                        set.clone(),
                    ],
                );
            }
        }
        for (common, others) in groups(cut.keys().copied()) {
            self.cut(&cut, &common, &others, &set);
        }
    }

    /// Packets of WireGuard that are cut on the way.
    fn cut(&mut self, cut: &BTreeMap<(End, End), u32>, common: &[End], others: &[End], set: &str) {
        let ((common, begins), (others, _)) = (End::of_group(common), End::of_group(others));
        let (from, to) = if begins {
            (&common, &others)
        } else {
            (&others, &common)
        };
        let ends = from.iter().flat_map(|from| {
            let to = to.iter();
            to.map(|to| (End::From(*from), End::To(*to)))
        });
        let least = ends.filter_map(|ends| cut.get(&ends).copied()).min();
        let least = least.unwrap_or_default();
        let way = format!("from {} to {}", self.names(from), self.names(to));
        let numbers = common.iter().chain(&others).copied();
        let found = format!(
            "WireGuard's packets {way} are cut into fragments: the network there takes {least} bytes"
        );
        let needed = MIN_OVERLAY_MTU + WIREGUARD_OVERHEAD;
        if least < needed {
            let now = if self.overview.mtu > MIN_OVERLAY_MTU {
                format!(
                    "; `platform network set --mtu {MIN_OVERLAY_MTU}` makes the fragments fewer"
                )
            } else {
                String::new()
            };
            self.add(
                "fragmented",
                FindingSeverity::Warning,
                numbers,
                [
                    found,
                    format!("the overlay needs packets of {MIN_OVERLAY_MTU} bytes, which have {needed} outside of the tunnel: below that they are fragmented whatever the MTU is. It works, costs more than twice the packets, and stops where a firewall drops fragments"),
                    format!("raise the MTU of the network between the machines to {needed} or more{now}"),
                ],
            );
        } else {
            let mtu = self.overview.mtu;
            self.add(
                "fragmented",
                FindingSeverity::Warning,
                numbers,
                [
                    found,
                    format!("the cluster's MTU {mtu} and what WireGuard adds do not fit into that. It works, costs twice the packets, and stops where a firewall drops fragments"),
                    set.to_owned(),
                ],
            );
        }
    }
}

/// The MTU of the way outside of the tunnel, where the largest packet of the overlay does not fit into it and is cut.
pub(super) fn fragmented(link: &LinkMeasurement, mtu: u32) -> Option<u32> {
    let overhead = match link.endpoint? {
        SocketAddr::V4(_) => OVERHEAD_V4,
        SocketAddr::V6(_) => WIREGUARD_OVERHEAD,
    };
    let underlay = link.underlay.as_ref()?.mtu?;
    (mtu + overhead > underlay).then_some(underlay)
}
