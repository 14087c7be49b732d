//! What the agent needs of its machine and of the server, as traits: the seam under the executor.
//!
//! The agent and the instance tasks reach everything outside of the process through [`Host`]. The
//! adapters in [`crate::adapters`] are the real machine; crate `simulation` has a simulated one. Both
//! pass the tests in [`crate::conformance`].
//!
//! Every call may take long, and none blocks the thread that polls it. A call whose future is dropped
//! before it is ready may have happened or not.
//!
//! Time is the runtime's ([`crate::Clock`]): a simulation pauses it. Deliberately absent: the streams
//! that a user reads or writes (logs, exec), which decide nothing; they are served beside the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::node::{CachedImage, DesiredState, InstanceReport, ReportAnswer, ReportDelta};
use futures_util::future::BoxFuture;
use guest_protocol::LogRecord;
use microvm::{Nic, VmHealth};
use model::image::ImageConfig;
use model::instance::{AttachedVolume, EgressPolicy, InstanceSpec, PinnedImage, SecretBundle};
use model::{Digest, Generation, InstanceId, ProcessName, Timestamp, VolumeId};
use node_network::Endpoint;
use overlay::address_plan::egress_address;
use overlay::ingress::edge_port;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

pub use crate::ended_logs::EndedLogOwner;
pub use crate::node_disk::DiskUse;

/// Everything that the agent acts through.
#[derive(Debug, Clone)]
pub struct Host {
    /// The VMs.
    pub vmm: Arc<dyn Vmm>,
    /// The node's network.
    pub network: Arc<dyn Network>,
    /// Images and their root disks.
    pub images: Arc<dyn Images>,
    /// Scratch disks and volumes.
    pub disks: Arc<dyn Disks>,
    /// The control plane.
    pub server: Arc<dyn Server>,
    /// The agent's own files.
    pub files: Arc<dyn Files>,
    /// The instances' logs.
    pub logs: Arc<dyn Logs>,
}

/// Why a call failed: the operation, its subject, its causes, on one line for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct HostError {
    /// For people.
    pub reason: String,
    /// Whether trying again may help.
    pub transient: bool,
}

impl HostError {
    /// A failure that may pass.
    pub fn transient(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            transient: true,
        }
    }

    /// A failure that stays.
    pub fn permanent(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            transient: false,
        }
    }
}

/// The outcome of a call.
pub type HostResult<T> = Result<T, HostError>;

/// The VMs of this machine. A VM outlives the agent.
pub trait Vmm: Debug + Send + Sync {
    /// Whether the tap of a VM outlives it and has to be released.
    fn leaves_tap(&self) -> bool;

    /// Boots a VM. After an error nothing of it runs.
    fn boot(&self, vm: VmRequest) -> BoxFuture<'_, HostResult<Box<dyn Vm>>>;

    /// The instances whose VM was booted before, running or just ended. An instance may have a VM and nothing else.
    fn list(&self) -> BoxFuture<'_, HostResult<Vec<InstanceId>>>;

    /// The VM of an instance that was booted before, running or just ended; `None` when there is
    /// none. After an error it is not known whether one runs, and nothing was changed.
    fn adopt(&self, id: InstanceId) -> BoxFuture<'_, HostResult<Option<Box<dyn Vm>>>>;

    /// Listens where the guest of an instance dials, in place of an earlier listener.
    fn listen(&self, id: InstanceId) -> BoxFuture<'_, HostResult<Box<dyn GuestListener>>>;

    /// Removes sockets, console and record of a VM that ended. No error when there is nothing.
    fn remove(&self, id: InstanceId) -> BoxFuture<'_, HostResult<()>>;
}

/// What a VM is made of.
#[derive(Debug)]
pub struct VmRequest {
    /// The instance.
    pub instance: InstanceId,
    /// CPU request, in thousandths of a core.
    pub cpu_millis: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// The read-only root disk, `/dev/vda`.
    pub root: PathBuf,
    /// The VM's own disks, from `/dev/vdb` on: scratch, then the volumes.
    pub disks: Vec<PathBuf>,
    /// The guest's network interface.
    pub nic: Nic,
}

/// A VM that was booted or adopted. Dropping it leaves the VM as it is.
pub trait Vm: Debug + Send + Sync {
    /// Waits for the VM's end and says how it ended. Cancel-safe; at once when it ended before.
    fn ended(&self) -> BoxFuture<'_, String>;

    /// Ends the VM and waits until nothing of it runs.
    fn kill(&self) -> BoxFuture<'_, ()>;

    /// How the guest is, as its VMM says: whether it runs, and which requests to its disks failed.
    fn health(&self) -> watch::Receiver<VmHealth>;

    /// How long the VM's threads were ready to run and had no processor, since its start. Absent: not known.
    fn waited(&self) -> BoxFuture<'_, Option<Duration>>;
}

/// Where a guest dials.
pub trait GuestListener: Debug + Send {
    /// The next connection. Cancel-safe.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Box<dyn GuestStream>>>;
}

/// A connection that a guest made.
pub trait GuestStream: AsyncRead + AsyncWrite + Debug + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Debug + Send + Unpin> GuestStream for S {}

/// The node's network.
pub trait Network: Debug + Send + Sync {
    /// Makes the tap of an instance, which must have no VM.
    fn create_tap(&self, endpoint: Endpoint) -> BoxFuture<'_, HostResult<Nic>>;

    /// Replaces all rules by those for exactly these instances. After an error the rules are as before.
    fn apply_rules(&self, endpoints: Vec<Endpoint>) -> BoxFuture<'_, HostResult<()>>;

    /// Removes the tap of an instance. No error when there is none.
    fn release(&self, id: InstanceId) -> BoxFuture<'_, HostResult<()>>;

    /// Makes sure that instances reach the internet.
    fn ensure_egress(&self) -> BoxFuture<'_, HostResult<Egress>>;

    /// What the agent reports of its instances has changed, or may have: names lead to those that are ready.
    fn set_reports(&self, _reports: &[InstanceReport]) {}

    /// Makes one health probe over the network.
    ///
    /// # Errors
    /// For people: what the instance did not do.
    fn probe(&self, address: Ipv6Addr, probe: NetworkProbe) -> BoxFuture<'_, Result<(), String>>;
}

/// A working egress.
pub struct Egress {
    /// For people: what provides it, or what is missing in it.
    pub reason: String,
    /// Ready when it has ended.
    pub ended: BoxFuture<'static, ()>,
}

/// A health probe that the node makes over the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkProbe {
    /// A TCP connection.
    Tcp {
        /// The port.
        port: u16,
    },
    /// GET; 200 to 399 is a success.
    Http(HttpProbe),
}

/// A request whose answer shows whether an instance is well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpProbe {
    /// The port.
    pub port: u16,
    /// The path, with a leading slash.
    pub path: String,
    /// The header `Host`. Absent: the instance's address and the port.
    pub host: Option<String>,
    /// Further headers, by name.
    pub headers: BTreeMap<String, String>,
}

/// Images and the root disks made of them.
pub trait Images: Debug + Send + Sync {
    /// Finds or makes the root disk of an image; `progress` is told each step, for people. After an
    /// error nothing half-made stays behind.
    fn prepare<'a>(
        &'a self,
        image: &'a PinnedImage,
        progress: &'a Progress,
    ) -> BoxFuture<'a, HostResult<PreparedImage>>;

    /// Pins the root disk of an image in the cache until the pin is dropped.
    fn pin(&self, digest: &Digest) -> ImagePin;

    /// Replaces the set of images that are pinned although no instance uses them: those of the last releases.
    fn set_pinned(&self, images: Vec<Digest>);

    /// The root disks in the cache, those last used first.
    fn list(&self) -> Vec<CachedImage>;

    /// Brings the cache within its budget.
    fn tidy(&self) -> BoxFuture<'_, ()>;

    /// Removes every image that nobody needs: the disk is full, or nearly.
    fn make_room(&self) -> BoxFuture<'_, ()>;
}

/// Hears what is being done, for people.
pub type Progress = dyn Fn(String) + Send + Sync;

/// Keeps a root disk in the cache while it exists.
pub type ImagePin = Box<dyn Debug + Send + Sync>;

/// An image that can be booted.
#[derive(Debug, Clone)]
pub struct PreparedImage {
    /// The read-only root disk, checked.
    pub disk: PathBuf,
    /// The image's config.
    pub config: ImageConfig,
}

/// Scratch disks and volumes.
pub trait Disks: Debug + Send + Sync {
    /// Makes a new, empty scratch disk, in place of an earlier one.
    fn make_scratch(&self, id: InstanceId, size_bytes: u64) -> BoxFuture<'_, HostResult<PathBuf>>;

    /// Removes the scratch disk of an instance. No error when there is none.
    fn remove_scratch(&self, id: InstanceId) -> BoxFuture<'_, HostResult<()>>;

    /// The disk of a volume, made when it never was. A disk that was made once and is gone is an
    /// error that stays.
    fn prepare_volume(&self, volume: AttachedVolume) -> BoxFuture<'_, HostResult<PathBuf>>;

    /// Every volume whose disk is here, sorted.
    fn list_volumes(&self) -> BoxFuture<'_, HostResult<Vec<VolumeId>>>;

    /// Removes the disk of a volume for good.
    fn remove_volume(&self, id: VolumeId) -> BoxFuture<'_, HostResult<()>>;

    /// What the node's disk holds, and who has how much of it.
    fn measure(&self) -> BoxFuture<'_, HostResult<DiskUse>>;
}

/// The control plane, which may be out of reach.
pub trait Server: Debug + Send + Sync {
    /// The node's desired state when its generation is not `after`; `None` when there was no other
    /// within `wait`.
    fn desired(
        &self,
        after: Generation,
        wait: Duration,
    ) -> BoxFuture<'_, HostResult<Option<DesiredState>>>;

    /// Sends a report, and gives what the server has.
    fn report(&self, report: ReportDelta) -> BoxFuture<'_, HostResult<ReportAnswer>>;

    /// The secret bundles of an instance of this node.
    fn secrets(&self, id: InstanceId) -> BoxFuture<'_, HostResult<Vec<SecretBundle>>>;
}

/// Small files, by path.
pub trait Files: Debug + Send + Sync {
    /// A file's content; `None` when there is none.
    fn read<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Option<Vec<u8>>>>;

    /// Replaces a file as a whole, making its folder. After `Ok` it survives a power cut; after an
    /// error the old content is there.
    fn replace<'a>(&'a self, path: &'a Path, bytes: Vec<u8>) -> BoxFuture<'a, io::Result<()>>;

    /// Gives a file another name in the same folder.
    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, io::Result<()>>;

    /// The names in a folder, sorted; none when there is no folder.
    fn list<'a>(&'a self, folder: &'a Path) -> BoxFuture<'a, io::Result<Vec<String>>>;

    /// Removes a folder and what is in it. No error when there is none.
    fn remove_folder<'a>(&'a self, folder: &'a Path) -> BoxFuture<'a, io::Result<()>>;
}

/// The logs of the instances.
pub trait Logs: Debug + Send + Sync {
    /// Opens the log of an instance, making it when there is none.
    fn open(&self, id: InstanceId, process: ProcessName)
    -> BoxFuture<'_, HostResult<Arc<dyn Log>>>;

    /// Keeps the log of an instance that is gone, for a while, apart from the instance's folder. A later instance of
    /// the same id begins with an empty log. No error when there is no log.
    fn keep(&self, owner: EndedLogOwner) -> BoxFuture<'_, HostResult<()>>;

    /// Deletes the logs of ended instances that are kept no longer.
    fn tidy(&self, now: Timestamp) -> BoxFuture<'_, ()>;
}

/// The log of one instance.
pub trait Log: Debug + Send + Sync {
    /// Marks the beginning of a boot, with a line for the reader.
    fn begin_boot(&self, at: Timestamp, line: String) -> BoxFuture<'_, io::Result<()>>;

    /// Adds a line of the platform's own.
    fn note(&self, at: Timestamp, line: String) -> BoxFuture<'_, io::Result<()>>;

    /// Writes a guest's records that are not there yet; the sequence number to acknowledge.
    fn append(&self, now: Timestamp, records: Vec<LogRecord>) -> BoxFuture<'_, io::Result<u64>>;

    /// The texts of the last `lines` records of the last boot.
    fn tail(&self, lines: usize) -> BoxFuture<'_, Vec<String>>;
}

/// An instance as the network knows it.
pub(crate) fn endpoint(spec: &InstanceSpec) -> Endpoint {
    let edge_ports = spec.ports.iter();
    let edge_ports = edge_ports.map(|port| edge_port(&spec.ports, port.port));
    Endpoint {
        edge_ports: edge_ports.collect(),
        ..endpoint_without_ports(spec.id, spec.address, spec.egress)
    }
}

/// An instance that edges do not reach.
pub(crate) fn endpoint_without_ports(
    id: InstanceId,
    address: Ipv6Addr,
    egress: EgressPolicy,
) -> Endpoint {
    Endpoint {
        instance: id,
        address,
        ipv4: egress_address(id),
        egress,
        edge_ports: BTreeSet::new(),
    }
}
