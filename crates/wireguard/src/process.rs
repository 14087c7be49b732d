//! The process that is an interface (`platform wireguard`): it opens what it needs, gives up what it does not need any more, and carries packets.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use process_handle::detached::{self, StepError, cannot};

use crate::control::Control;
use crate::device::{Device, Options, Underlay};
use crate::netlink::enter;
use crate::sandbox::SANDBOX;

/// Longest wait for the port, and the pause between two tries.
const PORT_PATIENCE: Duration = Duration::from_secs(2);
const PORT_PAUSE: Duration = Duration::from_millis(20);

/// What the process is started with.
#[derive(Debug, Clone)]
pub struct ProcessOptions {
    /// The name of the TUN device.
    pub name: String,
    /// The file of the network namespace in which that is; absent: the one of the caller.
    pub namespace: Option<PathBuf>,
    /// The UDP port, in the network namespace of the caller.
    pub port: u16,
    /// The largest packet within the tunnels, in bytes.
    pub mtu: u16,
    /// Where it listens for its agent.
    pub control: PathBuf,
    /// Whether the kernel may cut and join packets of the TUN device.
    pub offload: bool,
}

/// Why the process ended.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Of the interface.
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
    /// Something else that it needs.
    #[error(transparent)]
    Step(#[from] StepError),
}

/// Carries packets until the agent says to end, or the link is removed. The process has one thread, is in a session of its own, and gives up its rights before the
/// first packet: afterwards it is the user nobody, without a capability, in a list of system calls.
///
/// # Errors
/// What it needs is not there, or the link is gone.
pub fn run(options: &ProcessOptions) -> Result<(), ProcessError> {
    detached::begin()?;
    let underlay = bind(options.port)?;
    let control = Control::listen(&options.control).map_err(cannot("listen for the agent"))?;
    if let Some(namespace) = &options.namespace {
        enter(namespace).map_err(cannot("enter the network namespace of the link"))?;
    }
    let device = Device::new(
        underlay,
        &Options {
            name: options.name.clone(),
            mtu: options.mtu,
            offload: options.offload,
        },
    )?;
    detached::serve(&SANDBOX)?;
    device.serve(control)?;
    Ok(())
}

/// The socket. A process of this interface whose link was removed a moment ago may still have the port.
fn bind(port: u16) -> Result<Underlay, ProcessError> {
    let given_up = Instant::now() + PORT_PATIENCE;
    loop {
        match Underlay::bind(port) {
            Err(error) if error.is_in_use() && Instant::now() < given_up => {
                std::thread::sleep(PORT_PAUSE);
            }
            bound => return Ok(bound?),
        }
    }
}
