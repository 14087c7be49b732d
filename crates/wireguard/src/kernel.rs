//! The kernel's WireGuard: a link by rtnetlink, its peers by generic netlink (linux/wireguard.h).
//!
//! Only differences are set, in messages of a bounded size. An endpoint is set where another is recorded than at the last call; after a restart of the
//! agent, where the peer's last handshake is so old that no session is left, because the one that is seen is right then.

mod messages;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blocking_work::blocking;

use crate::link::{Place, refused};
use crate::netlink::{Netlink, within};
use crate::options::{InterfaceError, InterfaceOptions};
use crate::settings::{Settings, Status};
use messages::Wireguard;

/// Pause between two looks whether the link is there.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// An interface of the kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    place: Place,
    /// What was set last by this agent.
    last: Arc<Mutex<Option<Settings>>>,
}

impl Kernel {
    /// Finds it, or makes it. Absent: the kernel has no WireGuard.
    pub(crate) async fn ensure(options: &InterfaceOptions) -> Result<Option<Self>, InterfaceError> {
        let (place, options) = (Place::from(options), options.clone());
        let name = options.name.clone();
        let made = blocking(move || ensure(&place, &options).map(|is| is.then_some(place))).await;
        let made = made.map_err(|source| refused("make the link", &name, source))?;
        Ok(made.map(|place| Self {
            place,
            last: Arc::default(),
        }))
    }

    pub(crate) async fn set(&self, settings: &Settings) -> Result<Status, InterfaceError> {
        let (place, last, settings) = (self.place.clone(), self.last.clone(), settings.clone());
        let set = blocking(move || {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            let wireguard = open(&place)?;
            let before = wireguard.get(&place.name)?;
            for change in messages::changes(&before, last.as_ref(), &settings) {
                wireguard.set(&place.name, change)?;
            }
            *last = Some(settings);
            Ok(wireguard.get(&place.name)?.into_status())
        });
        set.await
            .map_err(|source| refused("set the peers", &self.place.name, source))
    }

    pub(crate) async fn status(&self) -> Result<Status, InterfaceError> {
        let place = self.place.clone();
        let read = blocking(move || Ok(open(&place)?.get(&place.name)?.into_status()));
        read.await
            .map_err(|source| refused("read the peers", &self.place.name, source))
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) async fn ended(&self) {
        loop {
            let place = self.place.clone();
            // Where it cannot be looked at, it is made again.
            if !blocking(move || place.find().is_ok_and(|link| link.is_some())).await {
                return;
            }
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }
}

fn open(place: &Place) -> io::Result<Wireguard> {
    within(place.namespace.as_deref(), || {
        Wireguard::open(Netlink::open(netlink_sys::protocols::NETLINK_GENERIC)?)
    })
}

/// Blocks.
fn ensure(place: &Place, options: &InterfaceOptions) -> io::Result<bool> {
    match place.find()? {
        Some(link) if link.is_wireguard => {}
        found => {
            if found.is_some() {
                place.remove_link()?;
            }
            match place.add_wireguard(options.mtu) {
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(false),
                made => made?,
            }
        }
    }
    let wireguard = open(place)?;
    if wireguard.get(&place.name)?.port != options.port {
        wireguard.set(&place.name, messages::port(options.port))?;
    }
    place.set(options.mtu)?;
    Ok(true)
}
