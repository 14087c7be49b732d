//! The links of the machine's own network, by their addresses: by which one it sends, and what kind of link that is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use crate::NetworkError;
use crate::command::run;

/// A link of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostLink {
    /// Its name.
    pub name: String,
    /// Its kind, as `ip -d link` names it: `wireguard`, `tun`, `veth`. Empty: a device.
    pub kind: String,
}

/// The link of each address that the machine has.
///
/// # Errors
/// A refusal of `ip`.
pub async fn host_links() -> Result<BTreeMap<IpAddr, HostLink>, NetworkError> {
    let text = run(&["ip", "-json", "-details", "address", "show"], "").await?;
    Ok(by_address(&text))
}

/// From what `ip` says. What cannot be read of it is not known.
fn by_address(text: &str) -> BTreeMap<IpAddr, HostLink> {
    #[derive(Deserialize)]
    struct Link {
        ifname: String,
        #[serde(default)]
        link_type: String,
        linkinfo: Option<LinkInfo>,
        #[serde(default)]
        addr_info: Vec<Address>,
    }
    #[derive(Deserialize)]
    struct LinkInfo {
        info_kind: Option<String>,
    }
    #[derive(Deserialize)]
    struct Address {
        local: Option<IpAddr>,
    }
    let links: Vec<Link> = serde_json::from_str(text.trim()).unwrap_or_default();
    let mut found = BTreeMap::new();
    for link in links {
        let kind = link.linkinfo.and_then(|info| info.info_kind);
        let kind = kind.unwrap_or_else(|| match link.link_type.as_str() {
            // Tunnels of a kernel that names no kind of them.
            "none" | "ppp" => link.link_type.clone(),
            _ => String::new(),
        });
        for address in link.addr_info.iter().filter_map(|address| address.local) {
            let link = HostLink {
                name: link.ifname.clone(),
                kind: kind.clone(),
            };
            found.insert(address, link);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn the_kind_of_a_link_is_found_by_an_address_of_it() {
        let text = r#"[
            {"ifname":"lo","link_type":"loopback","addr_info":[{"family":"inet","local":"127.0.0.1"}]},
            {"ifname":"eth0","link_type":"ether","linkinfo":{"info_kind":"veth"},"addr_info":[{"local":"10.0.0.1"},{"local":"fe80::1"}]},
            {"ifname":"ens3","link_type":"ether","addr_info":[{"local":"10.0.1.1"}]},
            {"ifname":"wg0","link_type":"none","linkinfo":{"info_kind":"wireguard"},"addr_info":[{"local":"10.8.0.2"}]},
            {"ifname":"ppp0","link_type":"ppp","addr_info":[{"local":"10.9.0.2"},{}]}
        ]"#;
        let found = by_address(text);
        let kind = |address: &str| found[&address.parse::<IpAddr>().unwrap()].kind.clone();
        assert_eq!(kind("10.0.0.1"), "veth");
        assert_eq!(kind("10.0.1.1"), "");
        assert_eq!(kind("10.8.0.2"), "wireguard");
        assert_eq!(kind("10.9.0.2"), "ppp");
        assert_eq!(found[&"10.8.0.2".parse::<IpAddr>().unwrap()].name, "wg0");
        assert_eq!(by_address("nonsense"), BTreeMap::new());
    }
}
