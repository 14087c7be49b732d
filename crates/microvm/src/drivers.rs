//! The drivers of this crate.

use crate::DriverKind;
use crate::driver::Driver;
use crate::firecracker::Firecracker;
use crate::qemu::Qemu;

/// The driver of this kind.
pub(crate) fn of(kind: DriverKind) -> &'static dyn Driver {
    match kind {
        DriverKind::Firecracker => &Firecracker,
        DriverKind::QemuKvm | DriverKind::QemuTcg => &Qemu,
    }
}
