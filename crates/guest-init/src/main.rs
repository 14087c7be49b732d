//! `platform-init`, PID 1 of every guest (ADR 0003): asks the node what to run, makes the image's
//! standard environment, starts the app, and is what a PID 1 is until the app ends.
//!
//! One thread, no async. The way through it:
//! - [`early`]: in the initramfs, devices and kernel modules;
//! - [`supervise`]: the whole course, and the loop while the app runs;
//! - [`plan`] decides the steps of the boot, [`execute`] performs them;
//! - [`link`]: connections to the node; [`logs`]: the app's output; [`exec`]: commands beside it;
//! - [`proxy`]: the PROXY adapter, this program again in a process that [`adapter`] starts;
//! - pure helpers: [`user`], [`signals`], [`etc`]; system calls: [`sys`], [`spawn`], [`netlink`].
//!
//! Whatever ends here ends with the machine powered off: never a silent hang. Absent on purpose:
//! restarting the app (a restart is a fresh guest), a shell to fall back to, and configuration by
//! kernel command line.

mod adapter;
mod early;
mod etc;
mod exec;
mod execute;
mod link;
mod logs;
mod netlink;
mod output;
mod plan;
mod proxy;
mod run_dir;
mod signals;
mod spawn;
mod stats;
mod supervise;
mod sys;
mod user;

use std::process::ExitCode;

/// Says something on the console, which only has init's last words and the kernel's.
pub(crate) fn console(text: &str) {
    eprintln!("platform-init: {text}");
}

fn main() -> ExitCode {
    // What is no text is no argument of ours.
    let mut arguments = std::env::args_os().filter_map(|argument| argument.into_string().ok());
    if arguments.next().as_deref() == Some(adapter::NAME) {
        adapter::main(arguments);
        return ExitCode::FAILURE;
    }
    if std::process::id() != 1 {
        console("this is PID 1 of a guest; it does nothing elsewhere");
        return ExitCode::from(2);
    }
    if let Err(error) = supervise::run() {
        console(&error.to_string());
    }
    // On QEMU without ACPI and on Firecracker a reboot is what ends the VM, and it never returns
    // here: should it, the kernel panics for the loss of its init, and reboots for that.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    ExitCode::FAILURE
}
