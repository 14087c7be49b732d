//! An interface of this machine, by the kernel's WireGuard where the kernel has it, else by a process of its own.
//!
//! ```text
//!   kernel:     link ----------------------- socket of the namespace in which the link was made
//!   userspace:  link (TUN) -- `platform wireguard`, unprivileged -- socket of the agent's namespace
//! ```
//!
//! Both outlive the agent. No record is kept of either: a link is found by its name and namespace, a process by its control socket, and an agent that
//! starts goes on with what is there ([`Interface::ensure`]). Only differences are set, so the session of a peer that stays goes on.
//!
//! Deliberately absent: addresses, routes and rules of the link (`node-network`), and who is whose peer.

use std::io;
use std::path::Path;

use blocking_work::blocking;
use process_handle::udp_port_holder;

use crate::kernel::Kernel;
use crate::link;
pub use crate::options::{InterfaceError, InterfaceOptions, MAX_MTU, MIN_MTU};
use crate::settings::{Settings, Status};
use crate::userspace::{self, Userspace};

/// Who carries the packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The kernel.
    Kernel,
    /// A process of its own.
    Userspace,
}

/// An interface. Dropping it leaves it alone; [`Interface::remove`] does not.
#[derive(Debug)]
pub struct Interface(Which);

#[derive(Debug)]
enum Which {
    Kernel(Kernel),
    Userspace(Userspace),
}

impl Interface {
    /// Finds the interface that is there, whoever made it, and makes it where there is none, or one of another port. The MTU is set where it differs, without a break.
    /// May be called at any time; its calls for one interface wait for each other. The link is up afterwards.
    ///
    /// # Errors
    /// Options that are impossible, a refusal of the kernel (the port or the name is taken, this process is not root), or that the process does not start.
    pub async fn ensure(options: &InterfaceOptions) -> Result<Self, InterfaceError> {
        options.check()?;
        let _one_at_a_time = userspace::lock(options).await?;
        let found = Self::find_or_make(options).await;
        // Where it could not be made because its port is another's, that is the reason.
        match found {
            Err(InterfaceError::Start(_) | InterfaceError::Kernel { .. }) => {
                let port = options.port;
                match blocking(move || udp_port_holder(port)).await {
                    Some(holder) => Err(InterfaceError::Port {
                        name: options.name.clone(),
                        port,
                        holder,
                    }),
                    None => found,
                }
            }
            found => found,
        }
    }

    async fn find_or_make(options: &InterfaceOptions) -> Result<Self, InterfaceError> {
        if let Some(found) = Userspace::find(options).await? {
            found.set_mtu(options).await?;
            return Ok(Self(Which::Userspace(found)));
        }
        let by_kernel = if options.force_userspace {
            None
        } else {
            Kernel::ensure(options).await?
        };
        if let Some(kernel) = by_kernel {
            return Ok(Self(Which::Kernel(kernel)));
        }
        // A link without a process that answers, or one of the kernel where it is not to be.
        link::remove(options).await?;
        let made = Userspace::start(options).await?;
        made.set_mtu(options).await?;
        Ok(Self(Which::Userspace(made)))
    }

    /// Who carries its packets.
    pub fn kind(&self) -> Kind {
        match self.0 {
            Which::Kernel(_) => Kind::Kernel,
            Which::Userspace(_) => Kind::Userspace,
        }
    }

    /// Makes key and peers those of the settings. Only what differs is set: the session of a peer that stays goes on, and where a peer was seen
    /// since stays, unless another endpoint is recorded for it than at the last call.
    ///
    /// # Errors
    /// Settings that contradict themselves ([`Settings::check`]), a refusal of the kernel, or a process that is gone: see [`Self::ended`].
    pub async fn set(&self, settings: &Settings) -> Result<Status, InterfaceError> {
        settings.check()?;
        match &self.0 {
            Which::Kernel(kernel) => kernel.set(settings).await,
            Which::Userspace(process) => process.set(settings).await,
        }
    }

    /// How it is.
    ///
    /// # Errors
    /// A refusal of the kernel, or a process that is gone.
    pub async fn status(&self) -> Result<Status, InterfaceError> {
        match &self.0 {
            Which::Kernel(kernel) => kernel.status().await,
            Which::Userspace(process) => process.status().await,
        }
    }

    /// Whether its link is up with this MTU, in bytes. Somebody may have set it down, or to another; [`Self::ensure`] puts it right. What cannot be looked at
    /// counts as right.
    pub async fn is_set(&self, mtu: u32) -> bool {
        let place = match &self.0 {
            Which::Kernel(kernel) => kernel.place(),
            Which::Userspace(process) => process.place(),
        };
        let place = place.clone();
        let found = blocking(move || place.find()).await;
        found.map_or(true, |link| {
            link.is_some_and(|link| link.is_up && link.mtu == mtu)
        })
    }

    /// Waits until the interface is gone: its process ended, or was ended because it did not answer, or somebody removed the link. [`Self::ensure`] makes it again.
    pub async fn ended(&self) {
        match &self.0 {
            Which::Kernel(kernel) => kernel.ended().await,
            Which::Userspace(process) => process.ended().await,
        }
    }

    /// Whether somebody stopped its process (SIGSTOP): nothing passes then. [`Self::ensure`] makes it again. Never so of the kernel's.
    pub fn is_stopped(&self) -> bool {
        match &self.0 {
            Which::Kernel(_) => false,
            Which::Userspace(process) => process.is_stopped(),
        }
    }

    /// The names of the interfaces that were made with this folder for control sockets, also of those that are gone. Blocks.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn names_in(run_dir: &Path) -> io::Result<Vec<String>> {
        userspace::names_in(run_dir)
    }

    /// Whether the link of this name is there, or its process. What cannot be looked at counts as gone.
    pub async fn is_there(options: &InterfaceOptions) -> bool {
        let (options, place) = (options.clone(), link::Place::from(options));
        let is_there = move || {
            userspace::is_running(&options) || place.find().is_ok_and(|link| link.is_some())
        };
        blocking(is_there).await
    }

    /// Removes the interface of this name: the link, the process and its control socket. It is no error when nothing was there.
    ///
    /// # Errors
    /// A refusal of the kernel.
    pub async fn remove(options: &InterfaceOptions) -> Result<(), InterfaceError> {
        options.check()?;
        let _one_at_a_time = userspace::lock(options).await?;
        userspace::end(options).await?;
        link::remove(options).await
    }
}
