//! What a guest boots: kernel, initramfs and the boot arguments, the same for every instance.

use std::io;
use std::path::{Path, PathBuf};

/// The machine that a kernel is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Machine {
    /// An ordinary PC with PCI and ACPI: what Debian's kernel needs, from a bzImage.
    Pc,
}

/// A kernel with its initramfs. Made by `cargo xtask guest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestKernel {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs, with `platform-init` as `/init`.
    pub initramfs: PathBuf,
    /// The machine it is made for.
    pub machine: Machine,
}

/// Boot arguments, in this one place.
///
/// - `console=ttyS0 quiet`: the console carries errors and last words only.
/// - `reboot=t panic=-1`: a panic ends the VM (with QEMU's `-no-reboot`) at once.
/// - `no_timer_check`: the check of the timer's wiring waits for ticks, which a busy host delays.
/// - `random.trust_cpu=on`: no wait for entropy; a virtio-rng feeds it from the host as well.
pub(crate) const BOOT_ARGUMENTS: &str =
    "console=ttyS0 reboot=t panic=-1 quiet no_timer_check random.trust_cpu=on";

impl GuestKernel {
    /// The artifacts of `cargo xtask guest` in a directory: `vmlinuz` and `initramfs.cpio`.
    ///
    /// # Errors
    /// One of them is not there.
    pub fn in_directory(directory: &Path) -> io::Result<Self> {
        let kernel = Self {
            kernel: directory.join("vmlinuz"),
            initramfs: directory.join("initramfs.cpio"),
            machine: Machine::Pc,
        };
        for file in [&kernel.kernel, &kernel.initramfs] {
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
        Ok(kernel)
    }
}
