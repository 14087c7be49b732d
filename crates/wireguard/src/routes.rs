//! Which peer an address goes to: the longest prefix that covers it.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv6Addr;

use crate::settings::Prefix;

/// Prefixes and whose they are. A question costs a look for each length of prefix that there is, of which an overlay has three.
#[derive(Debug, Clone)]
pub(crate) struct Routes<T> {
    by_length: BTreeMap<u8, HashMap<u128, T>>,
}

impl<T: Copy> Routes<T> {
    pub(crate) fn new(prefixes: impl Iterator<Item = (Prefix, T)>) -> Self {
        let mut by_length: BTreeMap<u8, HashMap<u128, T>> = BTreeMap::new();
        for (prefix, owner) in prefixes {
            let bits = prefix.address.to_bits() & Prefix::mask(prefix.bits);
            by_length
                .entry(prefix.bits)
                .or_default()
                .insert(bits, owner);
        }
        Self { by_length }
    }

    pub(crate) fn find(&self, address: Ipv6Addr) -> Option<T> {
        let bits = address.to_bits();
        let mut lengths = self.by_length.iter().rev();
        lengths.find_map(|(length, owners)| owners.get(&(bits & Prefix::mask(*length))).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_decides() {
        let prefix = |address: &str, bits| Prefix {
            address: address.parse().unwrap_or(Ipv6Addr::UNSPECIFIED),
            bits,
        };
        let routes = Routes::new(
            [
                (prefix("fd00:1::", 48), 'c'),
                (prefix("fd00:1:0:2::", 64), 'm'),
                (prefix("fd00:1:0:3::2", 128), 'p'),
            ]
            .into_iter(),
        );
        let find = |address: &str| routes.find(address.parse().unwrap_or(Ipv6Addr::UNSPECIFIED));
        assert_eq!(find("fd00:1:0:2::1"), Some('m'));
        assert_eq!(find("fd00:1:0:3::2"), Some('p'));
        assert_eq!(find("fd00:1:0:3::1"), Some('c'));
        assert_eq!(find("fd00:2::1"), None);
        let all = Routes::new([(prefix("::", 0), 'a')].into_iter());
        assert_eq!(all.find(Ipv6Addr::LOCALHOST), Some('a'));
    }
}
