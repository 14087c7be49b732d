//! What a guest boots: kernel, initramfs and the boot arguments, the same for every instance.
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

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use crate::Driver;

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

/// Boot arguments of every guest, in this one place.
///
/// - `console=ttyS0 quiet`: the console carries errors and last words only.
/// - `reboot=t panic=-1`: a panic ends the VM (with QEMU's `-no-reboot`) at once.
/// - `no_timer_check`: the check of the timer's wiring waits for ticks, which a busy host delays.
/// - `random.trust_cpu=on`: no wait for entropy; a virtio-rng feeds it from the host as well.
/// - `cryptomgr.notests`: the kernel does not test its own ciphers at every boot.
/// - `8250.nr_uarts=1 i8042.noaux i8042.nokbd`: no search for devices that are not there.
const BOOT_ARGUMENTS: &str = "console=ttyS0 reboot=t panic=-1 quiet no_timer_check \
     random.trust_cpu=on cryptomgr.notests 8250.nr_uarts=1 i8042.noaux i8042.nokbd";

/// Boot arguments for a guest of this driver. Under TCG `tsc_early_khz` and `tsc=reliable` come
/// with them (see `tsc`), where the host's counter is constant; KVM has a clock of its own.
pub(crate) fn boot_arguments(driver: Driver, tsc_khz: Option<u64>) -> String {
    let mut arguments = BOOT_ARGUMENTS.to_owned();
    if let (Driver::QemuTcg, Some(khz)) = (driver, tsc_khz) {
        // Writing to a String cannot fail.
        let _ = write!(arguments, " tsc_early_khz={khz} tsc=reliable");
    }
    arguments
}

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
