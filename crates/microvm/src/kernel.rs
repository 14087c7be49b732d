//! Kernel, initramfs and boot arguments: the same for every instance.
//!
//! The arguments were chosen by measuring Debian's cloud kernel 6.1 under TCG, on two cores that
//! compiled meanwhile (256 MiB, start of QEMU to init, and processor time to power-off; 8 rounds,
//! variants in turn, all 56 boots came up):
//!
//! | variant | init, median (least) | processor, median (least) |
//! |---|---|---|
//! | `quiet no_timer_check random.trust_cpu=on` | 5.2 (3.7) s | 4.5 (4.0) s |
//! | + `cryptomgr.notests 8250.nr_uarts=1 i8042.noaux i8042.nokbd` | 4.3 (3.5) s | 3.9 (3.6) s |
//! | + `tsc_early_khz tsc=reliable`: what we use | 4.0 (3.2) s | 4.1 (3.2) s |
//! | + `mitigations=off` | 4.6 (3.3) s | 4.2 (3.1) s |
//! | + qboot in SeaBIOS's place | 4.0 (3.1) s | 3.9 (3.1) s |
//!
//! No gain beyond the noise, so left out: `mitigations=off`, qboot, an uncompressed kernel by PVH,
//! `thread=single`, a translation buffer of 32 or 256 MiB, `nokaslr`, other processor models.

use std::io;
use std::path::{Path, PathBuf};

use crate::DriverKind;

/// The machine that a kernel is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// An ordinary PC with PCI and ACPI: what Debian's kernel needs, from a bzImage. QEMU only.
    Pc,
    /// Virtio devices by MMIO, named on the command line, and an MP table: what the platform's own
    /// kernel is built for, an ELF file entered by PVH. QEMU's `microvm`, and Firecracker.
    Microvm,
}

impl Machine {
    /// Most disks of one VM on this machine: root, scratch and volumes.
    pub fn max_disks(self, driver: DriverKind) -> usize {
        match (self, driver) {
            // QEMU's microvm has eight places, of which NIC, randomness and vsock take three.
            (Self::Microvm, DriverKind::QemuKvm | DriverKind::QemuTcg) => 5,
            // Interrupts, of which Firecracker has 19 to give and those three have theirs.
            (Self::Microvm, DriverKind::Firecracker) => 16,
            // Slots of PCI.
            (Self::Pc, _) => 24,
        }
    }
}

/// A kernel with its initramfs: Debian's, made ready by `cargo xtask guest`, or the platform's own,
/// built by `cargo xtask kernel`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestKernel {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs, with `platform-init` as `/init` and the modules this kernel needs.
    pub initramfs: PathBuf,
    /// The machine it is made for.
    pub machine: Machine,
}

/// Boot arguments of every guest, in this one place.
///
/// - `console=ttyS0 quiet`: the console carries errors only.
/// - `panic=-1`: a panic ends the VM at once, by a reboot that no VMM follows.
/// - `no_timer_check`: the check of the timer's wiring waits for ticks, which a busy host delays.
/// - `random.trust_cpu=on`: no wait for entropy; a virtio-rng feeds it from the host as well.
/// - `8250.nr_uarts=1 i8042.noaux i8042.nokbd`: no search for devices that are not there.
const BOOT_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 no_timer_check random.trust_cpu=on \
     8250.nr_uarts=1 i8042.noaux i8042.nokbd";
/// How a guest of QEMU reboots, which ends it: by a triple fault, without looking for firmware.
const QEMU_REBOOT: &str = "reboot=t";
/// How a guest of Firecracker does: by the keyboard controller, the one way it listens to.
const FIRECRACKER_REBOOT: &str = "reboot=k";
/// Debian's kernel would test its own ciphers at every boot; the platform's has no such tests.
const NO_CIPHER_TESTS: &str = "cryptomgr.notests";

/// Boot arguments for a guest. Under TCG `tsc_early_khz` and `tsc=reliable` come with them (see
/// `tsc`), where the host's counter is constant; KVM has a clock of its own.
pub(crate) fn boot_arguments(driver: DriverKind, machine: Machine, tsc_khz: Option<u64>) -> String {
    let mut arguments = BOOT_ARGUMENTS.to_owned();
    let mut add = |argument: &str| {
        arguments.push(' ');
        arguments.push_str(argument);
    };
    add(match driver {
        DriverKind::Firecracker => FIRECRACKER_REBOOT,
        DriverKind::QemuKvm | DriverKind::QemuTcg => QEMU_REBOOT,
    });
    if machine == Machine::Pc {
        add(NO_CIPHER_TESTS);
    }
    if let (DriverKind::QemuTcg, Some(khz)) = (driver, tsc_khz) {
        add(&format!("tsc_early_khz={khz} tsc=reliable"));
    }
    arguments
}

impl GuestKernel {
    /// The kernel of a directory: the platform's own where it was built (`vmlinux`), else Debian's (`vmlinuz`).
    ///
    /// # Errors
    /// Neither is there, or its initramfs is missing.
    pub fn in_directory(directory: &Path) -> io::Result<Self> {
        let own = Self::platform(directory);
        if own.kernel.is_file() {
            return own.complete();
        }
        Self::debian(directory).complete()
    }

    /// The boot arguments that a guest of this kernel gets from this driver. Measures this machine's
    /// time stamp counter the first time, which takes a moment.
    pub fn arguments(&self, driver: DriverKind) -> String {
        boot_arguments(driver, self.machine, crate::tsc::khz())
    }

    /// The platform's own kernel of a directory, whether it is there or not.
    pub fn platform(directory: &Path) -> Self {
        Self {
            kernel: directory.join("vmlinux"),
            initramfs: directory.join("initramfs-builtin.cpio"),
            machine: Machine::Microvm,
        }
    }

    /// Debian's kernel of a directory, whether it is there or not.
    pub fn debian(directory: &Path) -> Self {
        Self {
            kernel: directory.join("vmlinuz"),
            initramfs: directory.join("initramfs.cpio"),
            machine: Machine::Pc,
        }
    }

    /// This kernel, or Debian's beside it for a VM with more disks than this one's machine has
    /// places for.
    #[must_use]
    pub fn for_disks(&self, driver: DriverKind, disks: usize) -> Self {
        let debian = self.kernel.parent().map(Self::debian);
        match debian.map(Self::complete) {
            Some(Ok(debian)) if disks > self.machine.max_disks(driver) => debian,
            _ => self.clone(),
        }
    }

    fn complete(self) -> io::Result<Self> {
        for file in [&self.kernel, &self.initramfs] {
            if !file.is_file() {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    format!(
                        "{} is missing; hint: cargo xtask guest makes it",
                        file.display()
                    ),
                ));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn the_platforms_own_kernel_is_preferred_where_it_was_built() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| std::fs::write(dir.path().join(name), "").unwrap();
        let error = GuestKernel::in_directory(dir.path()).unwrap_err();
        assert!(error.to_string().contains("vmlinuz"), "{error}");
        make("vmlinuz");
        make("initramfs.cpio");
        let kernel = GuestKernel::in_directory(dir.path()).unwrap();
        assert_eq!(kernel.machine, Machine::Pc);
        make("vmlinux");
        let error = GuestKernel::in_directory(dir.path()).unwrap_err();
        assert!(error.to_string().contains("initramfs-builtin"), "{error}");
        make("initramfs-builtin.cpio");
        let kernel = GuestKernel::in_directory(dir.path()).unwrap();
        assert_eq!(kernel.machine, Machine::Microvm);
        let machine = |disks| kernel.for_disks(DriverKind::QemuTcg, disks).machine;
        assert_eq!([machine(5), machine(6)], [Machine::Microvm, Machine::Pc]);
    }
}
