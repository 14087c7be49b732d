//! Where a member's interface is.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::RwLock;
use wireguard::interface::{Interface, InterfaceOptions};

/// Where a member's interface is, and how it is made.
#[derive(Debug, Clone)]
pub struct Place {
    /// The link's name.
    pub link: String,
    /// The file of the link's network namespace; absent: the caller's.
    pub namespace: Option<PathBuf>,
    /// The program `platform`.
    pub program: PathBuf,
    /// A folder of the role for control sockets.
    pub run_dir: PathBuf,
    /// Whether the kernel's WireGuard is not to be used.
    pub force_userspace: bool,
}

impl Place {
    pub(crate) fn options(&self, port: u16, mtu: u32) -> InterfaceOptions {
        InterfaceOptions {
            name: self.link.clone(),
            namespace: self.namespace.clone(),
            port,
            mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            program: self.program.clone(),
            run_dir: self.run_dir.clone(),
            force_userspace: self.force_userspace,
        }
    }
}

/// The interface that there is, for whoever asks how it is.
pub(crate) type Current = Arc<RwLock<Option<Arc<Interface>>>>;
