//! The steps in the initramfs before the boot config is known: devices and the kernel's modules.

use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::modules;

/// Names of module files, one a line, in load order. Absent where the kernel has every module built in.
const MODULE_ORDER: &str = "/modules/order";

/// Why the guest cannot ask for its boot config.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EarlyError {
    /// devtmpfs cannot be mounted.
    #[error("mount devtmpfs: {0}")]
    Devices(io::Error),
    /// The list of modules cannot be read.
    #[error("{MODULE_ORDER}: {0}")]
    Order(io::Error),
    /// The kernel refuses a module.
    #[error("{module}: {source}")]
    Module {
        /// Its file.
        module: String,
        /// Why.
        source: io::Error,
    },
}

impl EarlyError {
    /// The name of the step, for the node.
    pub(crate) fn step(&self) -> &'static str {
        match self {
            Self::Devices(_) => "mount /dev",
            Self::Order(_) | Self::Module { .. } => "load kernel modules",
        }
    }
}

/// Mounts `/dev` and loads the modules.
///
/// # Errors
/// The kernel refuses either.
pub(crate) fn prepare() -> Result<(), EarlyError> {
    match mount("devtmpfs", "/dev", "devtmpfs", MountFlags::empty(), None) {
        // The kernel did it already.
        Ok(()) | Err(Errno::BUSY) => {}
        Err(error) => return Err(EarlyError::Devices(error.into())),
    }
    let order = match fs::read_to_string(MODULE_ORDER) {
        Ok(order) => order,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(EarlyError::Order(error)),
    };
    for module in order.lines().filter(|line| !line.is_empty()) {
        modules::load(&Path::new("/modules").join(module)).map_err(|source| {
            EarlyError::Module {
                module: module.to_owned(),
                source,
            }
        })?;
    }
    Ok(())
}
