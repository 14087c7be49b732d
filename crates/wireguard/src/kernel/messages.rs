//! The messages of linux/wireguard.h, and which of them make one state another. Only [`Wireguard`] talks.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netlink_packet_core::NetlinkMessage;
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute,
    WireguardCmd, WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};

use crate::netlink::Netlink;
use crate::settings::{Key, Offloads, PeerSettings, PeerStatus, Prefix, Settings, Status};

/// Peers and prefixes of one message at most: it stays far below the 64 KiB of one attribute.
const MAX_ENTRIES: usize = 256;
/// A session ends after so long without a handshake (WireGuard, 6.1: Reject-After-Time).
const SESSION: Duration = Duration::from_secs(180);

/// What the kernel knows of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) allowed: Vec<Prefix>,
    /// In seconds; 0: none.
    pub(super) keepalive: u16,
    pub(super) handshake_age: Option<Duration>,
    pub(super) received: u64,
    pub(super) sent: u64,
}

/// What the kernel knows of an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) port: u16,
    pub(super) private_key: Option<[u8; 32]>,
    pub(super) peers: BTreeMap<Key, Peer>,
}

impl Device {
    pub(super) fn into_status(self) -> Status {
        let status = |peer: Peer| PeerStatus {
            endpoint: peer.endpoint,
            handshake_age_ms: (peer.handshake_age)
                .and_then(|age| u64::try_from(age.as_millis()).ok()),
            received: peer.received,
            sent: peer.sent,
        };
        let peers = self.peers.into_iter();
        Status {
            peers: peers.map(|(key, peer)| (key, status(peer))).collect(),
            offloads: Offloads {
                tun: true,
                sent_at_once: 1,
            },
            port: self.port,
            ..Status::default()
        }
    }
}

/// The messages that make the state `before` that of the settings: removals first, because a prefix that goes to another peer now is taken from the
/// first. `last`: the settings before these, as far as they are known.
pub(super) fn changes(
    before: &Device,
    last: Option<&Settings>,
    settings: &Settings,
) -> Vec<Vec<WireguardAttribute>> {
    let mut messages = Vec::new();
    let key = settings.private_key.0.0;
    if before.private_key != Some(key) {
        messages.push(vec![WireguardAttribute::PrivateKey(key)]);
    }
    let mut peers = Vec::new();
    for gone in before
        .peers
        .keys()
        .filter(|key| !settings.peers.contains_key(key))
    {
        peers.push(WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(gone.0),
            WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
        ]));
    }
    for (key, wanted) in &settings.peers {
        let recorded = last.and_then(|last| last.peers.get(key));
        let known = before.peers.get(key);
        let seen = settings.seen(key).filter(|_| known.is_none());
        let moved = seen.map(|endpoint| PeerSettings {
            endpoint: Some(endpoint),
            ..wanted.clone()
        });
        let wanted = moved.as_ref().unwrap_or(wanted);
        peers.extend(peer_changes(*key, known, recorded, wanted));
    }
    // A message of several peers, up to the bound; a peer of more prefixes is several entries already.
    let mut message = Vec::new();
    let mut entries = 0;
    for peer in peers {
        let size = 1 + prefixes_of(&peer);
        if entries + size > MAX_ENTRIES && !message.is_empty() {
            messages.push(vec![WireguardAttribute::Peers(std::mem::take(
                &mut message,
            ))]);
            entries = 0;
        }
        entries += size;
        message.push(peer);
    }
    if !message.is_empty() {
        messages.push(vec![WireguardAttribute::Peers(message)]);
    }
    messages
}

fn prefixes_of(peer: &WireguardPeer) -> usize {
    peer.0.iter().fold(0, |sum, attribute| match attribute {
        WireguardPeerAttribute::AllowedIps(allowed) => sum + allowed.len(),
        _ => sum,
    })
}

/// What changes of a peer: nothing, one entry, or one for each part of its prefixes.
fn peer_changes(
    key: Key,
    before: Option<&Peer>,
    recorded: Option<&PeerSettings>,
    wanted: &PeerSettings,
) -> Vec<WireguardPeer> {
    let mut attributes = Vec::new();
    let is_recorded_anew = match (before, recorded) {
        (None, _) => true,
        (Some(_), Some(recorded)) => recorded.endpoint != wanted.endpoint,
        // Who set it is not known. A session that lives shows that it is right.
        (Some(before), None) => before.handshake_age.is_none_or(|age| age > SESSION),
    };
    if let Some(endpoint) = wanted.endpoint
        && is_recorded_anew
        && before.and_then(|before| before.endpoint) != Some(endpoint)
    {
        attributes.push(WireguardPeerAttribute::Endpoint(endpoint));
    }
    let keepalive = wanted.keepalive.unwrap_or(0);
    if before.map_or(0, |before| before.keepalive) != keepalive {
        attributes.push(WireguardPeerAttribute::PersistentKeepalive(keepalive));
    }
    let sorted = |prefixes: &[Prefix]| {
        let mut sorted = prefixes.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        sorted
    };
    let allowed = sorted(&wanted.allowed);
    let is_allowed_before = before.is_some_and(|before| sorted(&before.allowed) == allowed);
    if before.is_some() && is_allowed_before && attributes.is_empty() {
        return Vec::new();
    }
    let mut flags = WireguardPeerFlags::empty();
    if before.is_some() {
        // Nothing is made again that somebody removed meanwhile: the next call sees that.
        flags |= WireguardPeerFlags::UpdateOnly;
    }
    if !is_allowed_before {
        flags |= WireguardPeerFlags::ReplaceAllowedIps;
    }
    let mut first = vec![WireguardPeerAttribute::PublicKey(key.0)];
    first.push(WireguardPeerAttribute::Flags(flags));
    first.append(&mut attributes);
    let mut parts = if is_allowed_before {
        [].chunks(1)
    } else {
        allowed.chunks(MAX_ENTRIES - 1)
    };
    if let Some(part) = parts.next() {
        first.push(allowed_ips(part));
    }
    let mut entries = vec![WireguardPeer(first)];
    entries.extend(parts.map(|part| {
        WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(key.0),
            WireguardPeerAttribute::Flags(WireguardPeerFlags::UpdateOnly),
            allowed_ips(part),
        ])
    }));
    entries
}

fn allowed_ips(prefixes: &[Prefix]) -> WireguardPeerAttribute {
    let one = |prefix: &Prefix| {
        WireguardAllowedIp(vec![
            WireguardAllowedIpAttr::Family(WireguardAddressFamily::Ipv6),
            WireguardAllowedIpAttr::IpAddr(IpAddr::V6(prefix.address)),
            WireguardAllowedIpAttr::Cidr(prefix.bits),
        ])
    };
    WireguardPeerAttribute::AllowedIps(prefixes.iter().map(one).collect())
}

/// The message that has the interface listen at this port.
pub(super) fn port(port: u16) -> Vec<WireguardAttribute> {
    vec![WireguardAttribute::ListenPort(port)]
}

/// What messages of the kernel say of an interface. A peer of many prefixes is in several of them.
pub(super) fn read(messages: Vec<WireguardMessage>, now: SystemTime) -> Device {
    let mut device = Device::default();
    for attribute in messages.into_iter().flat_map(|message| message.attributes) {
        match attribute {
            WireguardAttribute::ListenPort(port) => device.port = port,
            WireguardAttribute::PrivateKey(key) => device.private_key = Some(key),
            WireguardAttribute::Peers(peers) => {
                for peer in peers {
                    read_peer(&mut device.peers, peer, now);
                }
            }
            _ => {}
        }
    }
    device
}

fn read_peer(peers: &mut BTreeMap<Key, Peer>, peer: WireguardPeer, now: SystemTime) {
    let key = peer.0.iter().find_map(|attribute| match attribute {
        WireguardPeerAttribute::PublicKey(key) => Some(Key(*key)),
        _ => None,
    });
    let Some(known) = key.map(|key| peers.entry(key).or_default()) else {
        return;
    };
    for attribute in peer.0 {
        match attribute {
            WireguardPeerAttribute::Endpoint(endpoint) => {
                known.endpoint = Some((endpoint.ip().to_canonical(), endpoint.port()).into());
            }
            WireguardPeerAttribute::PersistentKeepalive(seconds) => known.keepalive = seconds,
            WireguardPeerAttribute::LastHandshake(at) => {
                known.handshake_age = handshake_age(at.seconds, at.nano_seconds, now);
            }
            WireguardPeerAttribute::RxBytes(bytes) => known.received = bytes,
            WireguardPeerAttribute::TxBytes(bytes) => known.sent = bytes,
            WireguardPeerAttribute::AllowedIps(allowed) => {
                known.allowed.extend(allowed.iter().filter_map(prefix));
            }
            _ => {}
        }
    }
}

/// Absent where there was none, which the kernel calls the year 1970.
fn handshake_age(seconds: i64, nanoseconds: i64, now: SystemTime) -> Option<Duration> {
    let at = Duration::new(
        u64::try_from(seconds).ok()?,
        u32::try_from(nanoseconds).ok()?,
    );
    if at.is_zero() {
        return None;
    }
    // A clock that was set back meanwhile makes it new.
    Some(now.duration_since(UNIX_EPOCH + at).unwrap_or_default())
}

fn prefix(allowed: &WireguardAllowedIp) -> Option<Prefix> {
    let (mut address, mut bits) = (None, None);
    for attribute in &allowed.0 {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(IpAddr::V6(v6)) => address = Some(*v6),
            WireguardAllowedIpAttr::Cidr(cidr) => bits = Some(*cidr),
            _ => {}
        }
    }
    let (address, bits) = address.zip(bits)?;
    Some(Prefix { address, bits })
}

/// Talks to the kernel.
pub(super) struct Wireguard {
    netlink: Netlink,
    family: u16,
}

impl Wireguard {
    /// Asks which number the kernel's WireGuard has. Blocks.
    pub(super) fn open(netlink: Netlink) -> io::Result<Self> {
        let mut message = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName("wireguard".to_owned())],
        });
        message.finalize();
        let answers = netlink.get(NetlinkMessage::from(message))?;
        let family = answers
            .iter()
            .flat_map(|answer| &answer.payload.nlas)
            .find_map(|nla| {
                if let GenlCtrlAttrs::FamilyId(family) = nla {
                    Some(*family)
                } else {
                    None
                }
            });
        let family = family.ok_or_else(|| io::Error::from_raw_os_error(libc::EOPNOTSUPP))?;
        Ok(Self { netlink, family })
    }

    /// Blocks.
    pub(super) fn get(&self, name: &str) -> io::Result<Device> {
        let message = self.message(WireguardCmd::GetDevice, name, Vec::new());
        let answers = self.netlink.dump(message)?;
        let messages = answers.into_iter().map(|answer| answer.payload).collect();
        Ok(read(messages, SystemTime::now()))
    }

    /// Blocks.
    pub(super) fn set(&self, name: &str, change: Vec<WireguardAttribute>) -> io::Result<()> {
        let message = self.message(WireguardCmd::SetDevice, name, change);
        self.netlink.change(message, 0)
    }

    fn message(
        &self,
        cmd: WireguardCmd,
        name: &str,
        mut attributes: Vec<WireguardAttribute>,
    ) -> NetlinkMessage<GenlMessage<WireguardMessage>> {
        attributes.insert(0, WireguardAttribute::IfName(name.to_owned()));
        let mut message = GenlMessage::from_payload(WireguardMessage { cmd, attributes });
        message.set_resolved_family_id(self.family);
        message.finalize();
        NetlinkMessage::from(message)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use netlink_packet_core::{Emitable as _, ParseableParametrized as _};
    use netlink_packet_generic::GenlHeader;
    use proptest::prelude::*;

    use super::*;
    use crate::settings::PrivateKey;

    fn peer(
        endpoint: Option<&str>,
        allowed: std::ops::Range<u16>,
        keepalive: Option<u16>,
    ) -> PeerSettings {
        let prefix = |number| Prefix {
            address: std::net::Ipv6Addr::new(0xfd12, 0, 0, number, 0, 0, 0, 0),
            bits: 64,
        };
        PeerSettings {
            endpoint: endpoint.map(|endpoint| endpoint.parse().unwrap()),
            allowed: allowed.map(prefix).collect(),
            keepalive,
        }
    }

    fn settings(peers: impl IntoIterator<Item = (u8, PeerSettings)>) -> Settings {
        Settings {
            private_key: PrivateKey(Key([9; 32])),
            inside: Prefix {
                address: "fd12::".parse().unwrap(),
                bits: 48,
            },
            peers: peers
                .into_iter()
                .map(|(key, peer)| (Key([key; 32]), peer))
                .collect(),
            seen: BTreeMap::new(),
        }
    }

    /// What the kernel does with messages (drivers/net/wireguard/netlink.c), as far as they are ours.
    fn apply(device: &mut Device, messages: Vec<Vec<WireguardAttribute>>) {
        for attribute in messages.into_iter().flatten() {
            match attribute {
                WireguardAttribute::PrivateKey(key) => device.private_key = Some(key),
                WireguardAttribute::Peers(peers) => {
                    for peer in peers {
                        apply_peer(device, peer);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn apply_peer(device: &mut Device, peer: WireguardPeer) {
        let mut flags = WireguardPeerFlags::empty();
        let mut key = Key([0; 32]);
        for attribute in &peer.0 {
            match attribute {
                WireguardPeerAttribute::PublicKey(public) => key = Key(*public),
                WireguardPeerAttribute::Flags(of) => flags = *of,
                _ => {}
            }
        }
        if flags.contains(WireguardPeerFlags::RemoveMe) {
            device.peers.remove(&key);
            return;
        }
        if flags.contains(WireguardPeerFlags::UpdateOnly) && !device.peers.contains_key(&key) {
            return;
        }
        if flags.contains(WireguardPeerFlags::ReplaceAllowedIps)
            && let Some(known) = device.peers.get_mut(&key)
        {
            known.allowed.clear();
        }
        for attribute in &peer.0 {
            if let WireguardPeerAttribute::AllowedIps(allowed) = attribute {
                for prefix in allowed.iter().filter_map(super::prefix) {
                    for other in device.peers.values_mut() {
                        other.allowed.retain(|of| *of != prefix);
                    }
                }
            }
        }
        read_peer(&mut device.peers, peer, SystemTime::UNIX_EPOCH);
    }

    fn state(device: &Device) -> BTreeMap<Key, (Option<SocketAddr>, Vec<Prefix>, u16)> {
        let state = |peer: &Peer| {
            let mut allowed = peer.allowed.clone();
            allowed.sort_unstable();
            (peer.endpoint, allowed, peer.keepalive)
        };
        device
            .peers
            .iter()
            .map(|(key, peer)| (*key, state(peer)))
            .collect()
    }

    #[test]
    fn messages_are_bounded_and_read_as_they_were_written() {
        let many = settings((0..200).map(|key| {
            let first = u16::from(key) * 20;
            (
                key,
                peer(Some("[fd99::1]:51820"), first..first + 20, Some(25)),
            )
        }));
        let messages = changes(&Device::default(), None, &many);
        assert!(messages.len() > 10, "{}", messages.len());
        for attributes in &messages {
            let message = WireguardMessage {
                cmd: WireguardCmd::SetDevice,
                attributes: attributes.clone(),
            };
            assert!(message.buffer_len() < 40_000, "{}", message.buffer_len());
            let mut bytes = vec![0; message.buffer_len()];
            message.emit(&mut bytes);
            let header = GenlHeader {
                cmd: message.cmd.into(),
                version: 1,
            };
            let read = WireguardMessage::parse_with_param(&bytes, header).unwrap();
            assert_eq!(read, message);
        }
        let mut device = Device::default();
        apply(&mut device, messages);
        assert_eq!(device.peers.len(), 200);
        assert!(changes(&device, Some(&many), &many).is_empty());
        // One peer of very many prefixes is several entries.
        let one = settings([(1, peer(None, 0..1000, None))]);
        let mut device = Device::default();
        let messages = changes(&device, None, &one);
        apply(&mut device, messages);
        assert_eq!(device.peers[&Key([1; 32])].allowed.len(), 1000);
    }

    #[test]
    fn an_endpoint_is_set_where_another_is_recorded_and_not_where_it_moved() {
        let at = |endpoint| settings([(1, peer(Some(endpoint), 0..1, None))]);
        let recorded = at("10.0.0.1:51820");
        let key = Key([1; 32]);
        let mut device = Device::default();
        apply(&mut device, changes(&Device::default(), None, &recorded));
        let moved = "10.0.0.7:1".parse().ok();
        if let Some(known) = device.peers.get_mut(&key) {
            known.endpoint = moved;
            known.handshake_age = Some(Duration::from_secs(100));
        }
        assert!(changes(&device, Some(&recorded), &recorded).is_empty());
        // An agent that has just started does not know what was recorded; the session lives.
        assert!(changes(&device, None, &recorded).is_empty());
        let mut now = device.clone();
        apply(
            &mut now,
            changes(&device, Some(&recorded), &at("10.0.0.8:51820")),
        );
        assert_eq!(now.peers[&key].endpoint, "10.0.0.8:51820".parse().ok());
        // No session is left: what is recorded is the better guess.
        for age in [None, Some(Duration::from_secs(181))] {
            let mut silent = device.clone();
            if let Some(known) = silent.peers.get_mut(&key) {
                known.handshake_age = age;
            }
            let found = changes(&silent, None, &recorded);
            apply(&mut silent, found);
            assert_eq!(silent.peers[&key].endpoint, "10.0.0.1:51820".parse().ok());
        }
        // A link that was removed and made again has its peers where they were seen, and one that is there does not look at it.
        let mut again = recorded.clone();
        again.seen.extend(moved.map(|endpoint| (key, endpoint)));
        let mut device = Device::default();
        apply(&mut device, changes(&Device::default(), None, &again));
        assert_eq!(device.peers[&key].endpoint, moved);
        assert!(changes(&device, Some(&again), &recorded).is_empty());
        again.seen.insert(key, "10.0.0.9:1".parse().unwrap());
        assert!(changes(&device, Some(&recorded), &again).is_empty());
    }

    #[test]
    fn a_handshake_that_never_was_has_no_age() {
        let now = UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(handshake_age(0, 0, now), None);
        assert_eq!(handshake_age(-1, 0, now), None);
        assert_eq!(handshake_age(990, 0, now), Some(Duration::from_secs(10)));
        assert_eq!(handshake_age(2000, 0, now), Some(Duration::ZERO));
    }

    fn any_settings() -> impl Strategy<Value = Settings> {
        // Each prefix goes to one peer at most, as `Settings::check` demands.
        let owners = prop::collection::vec(0_u8..6, 12);
        let peers =
            prop::collection::btree_map(0_u8..6, (0_u16..3, prop::option::of(1_u16..3)), 0..6);
        (owners, peers).prop_map(|(owners, peers)| {
            let mut settings = settings(peers.into_iter().map(|(key, (at, keepalive))| {
                let endpoint = (at > 0).then(|| format!("10.0.0.{at}:51820"));
                (key, peer(endpoint.as_deref(), 0..0, keepalive))
            }));
            for (number, owner) in (0..).zip(owners) {
                if let Some(peer) = settings.peers.get_mut(&Key([owner; 32])) {
                    peer.allowed.push(Prefix {
                        address: std::net::Ipv6Addr::new(0xfd12, 0, 0, number, 0, 0, 0, 0),
                        bits: 64,
                    });
                }
            }
            settings
        })
    }

    proptest! {
        #[test]
        fn any_state_becomes_any_other(steps in prop::collection::vec(any_settings(), 1..6)) {
            let mut device = Device::default();
            let mut last: Option<Settings> = None;
            for wanted in steps {
                let before = device.clone();
                let messages = changes(&before, last.as_ref(), &wanted);
                apply(&mut device, messages);
                let prefixes = |settings: &PeerSettings| {
                    let mut sorted = settings.allowed.clone();
                    sorted.sort_unstable();
                    sorted
                };
                prop_assert_eq!(device.peers.len(), wanted.peers.len());
                for (key, (endpoint, allowed, keepalive)) in state(&device) {
                    let peer = &wanted.peers[&key];
                    prop_assert_eq!(allowed, prefixes(peer));
                    prop_assert_eq!(keepalive, peer.keepalive.unwrap_or(0));
                    prop_assert!(peer.endpoint.is_none() || endpoint == peer.endpoint);
                }
                prop_assert!(changes(&device, Some(&wanted), &wanted).is_empty());
                last = Some(wanted);
            }
        }
    }
}
