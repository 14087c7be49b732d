//! What a VM is made of.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use model::InstanceId;

use crate::{DriverKind, GuestKernel};

/// Most virtual processors of one VM.
pub const MAX_VCPUS: u32 = 64;
/// What one VM may read and write on its disks, all together under QEMU and each under Firecracker: bytes a second. So
/// that one guest does not have the node's disk for itself.
pub(crate) const DISK_BYTES_PER_SECOND: u64 = 512 * 1024 * 1024;
/// The same in requests a second.
pub(crate) const DISK_OPERATIONS_PER_SECOND: u64 = 20_000;
/// Least memory of one VM, in bytes: the kernel and the initramfs need it.
pub const MIN_MEMORY_BYTES: u64 = 64 * 1024 * 1024;

/// Everything that one VM is made of. It is consumed by booting, so that no file descriptor of it
/// stays open in the agent.
#[derive(Debug)]
pub struct VmSpec {
    /// The instance.
    pub instance: InstanceId,
    /// Its directory for sockets, console and record; made when missing, belongs to this VM only.
    pub run_dir: PathBuf,
    /// How to run it.
    pub driver: DriverKind,
    /// What it boots.
    pub kernel: GuestKernel,
    /// Virtual processors, 1 to [`MAX_VCPUS`]: the requested cores, rounded up.
    pub vcpus: u32,
    /// Processor time under contention, in thousandths of a core.
    pub cpu_millis: u32,
    /// Memory of the guest, in bytes, at least [`MIN_MEMORY_BYTES`]; rounded down to a MiB. It is a
    /// hard cap.
    pub memory_bytes: u64,
    /// Disks in the guest's order: `/dev/vda` first.
    pub disks: Vec<Disk>,
    /// Its NIC.
    pub nic: Option<Nic>,
}

/// One raw disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The image; always raw, whatever its content claims to be.
    pub path: PathBuf,
    /// Read-only at the VMM, and shared with other VMs. Otherwise this VM's alone; what the guest
    /// discards is given back to the host.
    pub read_only: bool,
}

/// The guest's end of a tap.
#[derive(Debug)]
pub struct Nic {
    /// The tap, with virtio-net headers.
    pub tap: OwnedFd,
    /// The MAC address of the guest's NIC.
    pub mac: [u8; 6],
}

impl VmSpec {
    /// Why no VM can be made of this, if none can.
    pub(crate) fn problem(&self) -> Option<String> {
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            return Some(format!(
                "{} virtual processors; 1 to {MAX_VCPUS} are possible",
                self.vcpus
            ));
        }
        if self.memory_bytes < MIN_MEMORY_BYTES {
            return Some(format!(
                "{} bytes of memory; at least {MIN_MEMORY_BYTES} are needed",
                self.memory_bytes
            ));
        }
        let most = self.kernel.machine.max_disks(self.driver);
        if self.disks.len() > most {
            return Some(format!(
                "{} disks; at most {most} are possible",
                self.disks.len()
            ));
        }
        None
    }
}
