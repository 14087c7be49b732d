//! The drivers by name.

/// The driver that runs a VM. Its name is also its name in a VM's record, so it never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriverKind {
    /// Firecracker under its jailer, on the processor's own virtualization.
    Firecracker,
    /// QEMU on the processor's own virtualization.
    QemuKvm,
    /// QEMU translating the guest's instructions: slower, needs nothing of the machine.
    QemuTcg,
}

impl DriverKind {
    /// The name in reports: `firecracker`, `qemu-kvm`, `qemu-tcg`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Firecracker => "firecracker",
            Self::QemuKvm => "qemu-kvm",
            Self::QemuTcg => "qemu-tcg",
        }
    }

    /// Whether a VM's tap outlives its VMM: Firecracker opens it by name, so it has to persist, and
    /// the caller of [`crate::boot`] removes it.
    pub fn leaves_tap(self) -> bool {
        match self {
            Self::Firecracker => true,
            Self::QemuKvm | Self::QemuTcg => false,
        }
    }

    /// Most memory that a VM takes of the host beside its guest's, in bytes: of the VMM and of the vsock device. It is
    /// measured (`tests/overhead.rs`), counted when an instance is placed, and allowed by the VM's cgroup.
    pub fn memory_overhead_bytes(self) -> u64 {
        const MIB: u64 = 1024 * 1024;
        match self {
            // Its makers promise less than 5 MiB; page tables and buffers come on top.
            Self::Firecracker => 16 * MIB,
            Self::QemuKvm => 64 * MIB,
            // The buffer of translated code alone is 64 MiB.
            Self::QemuTcg => 128 * MIB,
        }
    }
}
