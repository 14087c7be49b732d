//! The link of an interface, whoever carries its packets: whether it is there, up, and how large its packets may be (rtnetlink(7)).

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::path::{Path, PathBuf};

use blocking_work::blocking;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NetlinkMessage};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::netlink::{Netlink, within};
use crate::options::{InterfaceError, InterfaceOptions};

/// What is known of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) is_wireguard: bool,
    pub(crate) is_up: bool,
    pub(crate) mtu: u32,
}

/// Where a link is, and its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) namespace: Option<PathBuf>,
}

impl From<&InterfaceOptions> for Place {
    fn from(options: &InterfaceOptions) -> Self {
        Self {
            name: options.name.clone(),
            namespace: options.namespace.clone(),
        }
    }
}

impl Place {
    /// The link, if it is there. Blocks.
    pub(crate) fn find(&self) -> io::Result<Option<Link>> {
        match self
            .socket()?
            .get(message(RouteNetlinkMessage::GetLink(self.named())))
        {
            Ok(answers) => Ok(answers.into_iter().find_map(read)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a link of WireGuard, whose socket is in the namespace of the thread. An error of `EOPNOTSUPP` says that the kernel has none. Blocks.
    pub(crate) fn add_wireguard(&self, mtu: u16) -> io::Result<()> {
        let mut link = self.named();
        link.attributes.push(LinkAttribute::Mtu(u32::from(mtu)));
        link.attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(
                InfoKind::Wireguard,
            )]));
        // Its socket belongs to the namespace of the request, the link to the named one: no moment in between, in which it is elsewhere.
        let namespace = self
            .namespace
            .as_deref()
            .map(std::fs::File::open)
            .transpose()?;
        if let Some(namespace) = &namespace {
            link.attributes
                .push(LinkAttribute::NetNsFd(RawFd::from(namespace.as_raw_fd())));
        }
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        Netlink::open(NETLINK_ROUTE)?.change(message(RouteNetlinkMessage::NewLink(link)), flags)
    }

    /// Sets the link up, with this MTU. Blocks.
    pub(crate) fn set(&self, mtu: u16) -> io::Result<()> {
        let mut link = self.named();
        link.attributes.push(LinkAttribute::Mtu(u32::from(mtu)));
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.socket()?
            .change(message(RouteNetlinkMessage::SetLink(link)), 0)
    }

    /// Removes the link, if it is there. A process whose TUN device it is ends by that. Blocks.
    pub(crate) fn remove_link(&self) -> io::Result<()> {
        if let Some(namespace) = &self.namespace
            && !is_namespace(namespace)
        {
            return Ok(());
        }
        match self
            .socket()?
            .change(message(RouteNetlinkMessage::DelLink(self.named())), 0)
        {
            Err(error) if !is_absent(&error) => Err(error),
            _ => Ok(()),
        }
    }

    fn socket(&self) -> io::Result<Netlink> {
        within(self.namespace.as_deref(), || Netlink::open(NETLINK_ROUTE))
    }

    fn named(&self) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.attributes
            .push(LinkAttribute::IfName(self.name.clone()));
        link
    }
}

/// Removes the link of these options.
pub(crate) async fn remove(options: &InterfaceOptions) -> Result<(), InterfaceError> {
    let place = Place::from(options);
    let deleted = blocking(move || place.remove_link()).await;
    deleted.map_err(|source| refused("remove the link", &options.name, source))
}

/// An error of the kernel, with what to do.
pub(crate) fn refused(what: &'static str, name: &str, source: io::Error) -> InterfaceError {
    let hint = match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "run this as root, with CAP_NET_ADMIN and CAP_SYS_ADMIN"
        }
        Some(libc::EADDRINUSE) => "another program listens at this UDP port: give another one",
        Some(libc::ENOENT) => "the network namespace is not there: is the node's network made?",
        _ => "`ip -d link` shows what is there",
    };
    InterfaceError::Kernel {
        what,
        name: name.to_owned(),
        hint,
        source,
    }
}

/// The namespace of a node that is down has no name, so no link either.
fn is_namespace(path: &Path) -> bool {
    path.exists()
}

fn is_absent(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENODEV)
}

fn message(message: RouteNetlinkMessage) -> NetlinkMessage<RouteNetlinkMessage> {
    NetlinkMessage::from(message)
}

fn read(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(link) = message else {
        return None;
    };
    let mut found = Link {
        is_wireguard: false,
        is_up: link.header.flags.contains(LinkFlags::Up),
        mtu: 0,
    };
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => found.mtu = mtu,
            LinkAttribute::LinkInfo(infos) => {
                found.is_wireguard = infos.contains(&LinkInfo::Kind(InfoKind::Wireguard));
            }
            _ => {}
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn a_link_is_found_by_its_name() {
        let place = |name: &str| Place {
            name: name.to_owned(),
            namespace: None,
        };
        let found = place("lo").find().unwrap().unwrap();
        assert!(!found.is_wireguard && found.mtu > 0, "{found:?}");
        assert_eq!(place("no-such-link").find().unwrap(), None);
    }
}
