//! Boots one microVM, watches it, finds it again after a restart of the agent, and ends it
//! (ADR 0001, ADR 0003).
//!
//! A VM is two processes: QEMU, and `vhost-device-vsock`, which carries the guest's vsock to Unix
//! sockets by the hybrid convention (`<uds>_<port>` for what the guest dials). Both outlive the
//! agent: own session, no pipe to it, no file of it. Neither outlives the other.
//!
//! ```text
//!  boot ──> vsock device recorded, started ──> VMM recorded, started ──> running ──> ended
//!   │ fails: both killed                                                    ^
//!   └ agent dies: adopt() kills what is left          adopt() finds both ───┘
//! ```
//!
//! - A process is written to `<run dir>/vm.json` while it still waits before its exec, so there is
//!   no moment at which an agent that is killed leaves one that nobody knows of.
//! - It is known by boot id, pid, start time and executable, so a reused pid is never taken for it,
//!   and signals go by pidfd.
//! - When the agent is root, each VM runs as a user of its own ([`VMM_UIDS`]), without privileges,
//!   in network and IPC namespaces with nothing in them, under QEMU's seccomp filter; disks and
//!   sockets are opened before and handed over.
//! - The serial console goes to a FIFO that both processes hold open. While the agent lives it
//!   moves what comes into a file of bounded size; while it does not, the kernel keeps the first
//!   64 KiB and the rest is dropped. So a guest can neither fill the host's disk nor be blocked by a
//!   reader that went away, and the last words are there after either dies.
//!
//! Deliberately absent: the network (`node-network` makes the tap), making of disks (`root-disk`),
//! the guest's protocol, and any policy: when to boot or restart is `cluster`'s decision. A
//! Firecracker driver has its place beside [`Driver`]'s other variants and is not here yet.

mod adopt;
mod boot;
mod cgroup;
mod console;
mod driver;
mod error;
mod kernel;
mod process;
mod programs;
mod qemu;
mod qmp;
mod record;
mod run_dir;
mod spawn;
mod spec;
mod tsc;
mod vm;

pub use boot::boot;
pub use console::console_tail;
pub use driver::{Choice, Driver, KvmFact, NoDriver, Probe, choose_driver, probe};
pub use error::{AdoptError, BootError, QmpError};
pub use kernel::{GuestKernel, Machine};
pub use programs::{Programs, ProgramsError};
pub use run_dir::{guest_socket, listen_for_guest};
pub use spawn::VMM_UIDS;
pub use spec::{Disk, MAX_DISKS, MAX_VCPUS, MIN_MEMORY_BYTES, Nic, VmSpec};
pub use vm::{HowEnded, Vm, VmEnd, VmStatus};
