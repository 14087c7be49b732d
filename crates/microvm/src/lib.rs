//! Boots a microVM, watches it, finds it again after a restart of the agent, and ends it (ADR 0001, ADR 0003).
//!
//! Two drivers ([`DriverKind`]) that give the same VM: the same kernel and boot arguments, disks in
//! their order, tap, vsock by Unix sockets in the hybrid convention (`<uds>_<port>` for what the guest
//! dials), console in a file of bounded size, cap on memory, share of the processors, limits on what goes through
//! its disks.
//! - **QEMU**, with KVM or TCG: two processes, QEMU and `vhost-device-vsock`; neither outlives the other.
//! - **Firecracker** under its jailer, with hardware KVM: one process.
//!
//! All of them outlive the agent: they are in sessions of their own and share no pipe or file with it.
//!
//! ```text
//!  boot ──> (vsock device recorded, started) ──> VMM recorded, started ──> running ──> ended
//!   │ fails: all processes are killed                                       ^
//!   └ agent is killed: adopt() kills the rest         adopt() finds both ───┘
//! ```
//!
//! - A process is recorded in `<run dir>/vm.json` while it still waits before its exec. So an agent that is killed
//!   at any moment leaves no process without a record.
//! - Boot id, pid, start time and executable identify a process (`process_handle`), so a reused pid is never taken
//!   for it, and signals go by pidfd.
//! - A record that was lost or cannot be read is written anew from the processes themselves ([`recover_records`]): each runs as
//!   its VM's user, executes one of our programs, and holds its VM's console open. [`end_leftovers`] ends what is found so.
//! - When the agent is root, each VM runs as a user of its own ([`VMM_UIDS`]), without privileges, under its
//!   VMM's seccomp filter. QEMU and its vsock device are in empty network and IPC namespaces, their files are opened before
//!   and handed over, and of the machine's files they see programs only (`view`). Firecracker is in a jail that holds its
//!   files.
//! - Programs and files may lie anywhere: below folders that others may not enter, on a file system mounted
//!   `noexec` (files only). A denied permission is an error that names what forbids it ([`Denial`]).
//! - The serial console goes to a FIFO that the processes hold open. A running agent moves its content into a file
//!   of bounded size; without an agent the kernel keeps the first 64 KiB and drops the rest. So a guest can
//!   neither fill the host's disk nor block on a missing reader, and the end of the console is there after the
//!   guest ends or the agent is killed.
//!
//! - A guest's disk that cannot grow on the host gives that guest an I/O error, and pauses nothing. The VMM is asked
//!   again and again whether its guest runs, and says so when a request to a disk failed ([`VmHealth`]).
//!
//! Deliberately absent: the network (`node-network` makes the tap), making of disks (`root-disk`),
//! the guest's protocol, and any policy: `node-core` decides when to boot or restart.

// The support module of the integration tests imports this crate by name.
#[cfg(test)]
extern crate self as microvm;

mod adopt;
mod boot;
mod cgroup;
mod child;
mod choice;
mod console;
mod denial;
mod driver;
mod drivers;
mod error;
mod firecracker;
mod health;
mod kernel;
mod kind;
mod leftover;
mod load;
mod monitor;
mod programs;
mod qemu;
mod record;
mod run_dir;
mod spawn;
mod spec;
mod status;
mod tsc;
mod view;
mod vm;

pub use boot::boot;
pub use choice::{Choice, KvmFact, NoDriver, Probe, choose_driver, probe};
pub use console::console_tail;
pub use denial::Denial;
pub use error::{AdoptError, BootError};
pub use health::VmHealth;
pub use kernel::{GuestKernel, Machine};
pub use kind::DriverKind;
pub use leftover::{end_leftovers, has_processes, recorded, recover_records};
pub use monitor::DiskFault;
pub use programs::{ProgramsError, check_programs};
pub use run_dir::{guest_socket, listen_for_guest, remove_run_dir};
pub use spawn::VMM_UIDS;
pub use spec::{Disk, MAX_VCPUS, MIN_MEMORY_BYTES, Nic, VmSpec};
pub use status::{StatusError, VmStatus};
pub use vm::{HowEnded, Vm, VmEnd};
