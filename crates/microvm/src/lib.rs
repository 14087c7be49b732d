//! Boots one microVM, watches it, finds it again after a restart of the agent, and ends it
//! (ADR 0001, ADR 0003).
//!
//! Two drivers ([`Driver`]) that give the same VM: the same kernel and boot arguments, disks in
//! their order, tap, vsock by Unix sockets in the hybrid convention (`<uds>_<port>` for what the guest
//! dials), console in a file of bounded size, cap on memory, share of the processors, limits on what goes through
//! its disks.
//! - **QEMU**, with KVM or TCG: two processes, QEMU and `vhost-device-vsock`; neither outlives the other.
//! - **Firecracker** under its jailer, with hardware KVM: one process.
//!
//! All of them outlive the agent: own session, no pipe to it, no file of it.
//!
//! ```text
//!  boot ──> (vsock device recorded, started) ──> VMM recorded, started ──> running ──> ended
//!   │ fails: all killed                                                     ^
//!   └ agent dies: adopt() kills what is left          adopt() finds both ───┘
//! ```
//!
//! - A process is written to `<run dir>/vm.json` while it still waits before its exec, so there is
//!   no moment at which an agent that is killed leaves one that nobody knows of.
//! - It is known by boot id, pid, start time and executable, so a reused pid is never taken for it,
//!   and signals go by pidfd.
//! - When the agent is root, each VM runs as a user of its own ([`VMM_UIDS`]), without privileges, under its
//!   VMM's seccomp filter. QEMU is in network and IPC namespaces with nothing in them, and what it
//!   uses is opened before and handed over. Firecracker is in a jail that holds what it uses.
//! - The serial console goes to a FIFO that the processes hold open. While the agent lives it
//!   moves what comes into a file of bounded size; while it does not, the kernel keeps the first
//!   64 KiB and the rest is dropped. So a guest can neither fill the host's disk nor be blocked by a
//!   reader that went away, and the last words are there after either dies.
//!
//! Deliberately absent: the network (`node-network` makes the tap), making of disks (`root-disk`),
//! the guest's protocol, and any policy: when to boot or restart is `cluster`'s decision.

// The tests' own guest is written from outside of this crate.
#[cfg(test)]
extern crate self as microvm;

mod adopt;
mod boot;
mod cgroup;
mod console;
mod driver;
mod error;
mod firecracker;
mod kernel;
mod obstacle;
mod process;
mod programs;
mod qemu;
mod record;
mod run_dir;
mod spawn;
mod spec;
mod tsc;
mod vm;

pub use boot::boot;
pub use console::console_tail;
pub use driver::{Choice, Driver, KvmFact, NoDriver, Probe, choose_driver, probe};
pub use error::{AdoptError, BootError, StatusError};
pub use kernel::{GuestKernel, Machine};
pub use obstacle::Obstacle;
pub use programs::{ProgramsError, check_programs};
pub use run_dir::{guest_socket, listen_for_guest};
pub use spawn::VMM_UIDS;
pub use spec::{Disk, MAX_VCPUS, MIN_MEMORY_BYTES, Nic, VmSpec};
pub use vm::{HowEnded, Vm, VmEnd, VmStatus};
