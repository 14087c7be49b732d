//! `platform-init`, PID 1 of every guest (ADR 0003): gets its boot config from the node, makes the image's
//! standard environment, starts the app, reaps its orphans, and reports its end.
//!
//! One thread, no async. Where to find what:
//! - [`early`]: in the initramfs, devices and kernel modules;
//! - [`supervise`]: the life of a guest from boot to power off, and the loop while the app runs;
//! - [`boot`]: the boot config from the node, and the boot; [`plan`] decides the steps of the boot, [`execute`] performs them;
//! - [`app`], [`namespace`]: the app and the namespaces it lives in; [`namespace_init`]: their PID 1, which is this program
//!   under another name;
//! - [`modules`]: kernel modules that are loaded on demand;
//! - [`volume`]: a volume's places, content and owner; [`unmount`]: its end;
//! - [`link`]: connections to the node; [`logs`]: the app's output; [`exec`]: commands beside it; [`oom`]: kills for
//!   want of memory;
//! - [`adapter`] and [`forward`]: the processes of the PROXY adapter and of the forwarder (`proxy_adapter`), which are this program
//!   under other names ([`confined`]); [`bpf`], [`assembler`]: which connections are forwarded;
//! - pure: [`user`], [`signals`], [`etc`]; system calls: [`sys`], [`spawn`], [`netlink`].
//!
//! However init ends, the machine is powered off: it never hangs in silence. Absent on purpose:
//! restarting the app (a restart is a fresh guest), a shell to fall back to, and configuration by
//! kernel command line.

mod adapter;
mod app;
mod assembler;
mod boot;
mod bpf;
mod clock;
mod confined;
mod console;
mod early;
mod etc;
mod exec;
mod execute;
mod forward;
mod link;
mod logs;
mod modules;
mod namespace;
mod namespace_init;
mod netlink;
mod oom;
mod output;
mod plan;
mod progress;
mod run_dir;
mod signals;
mod spawn;
mod stats;
mod supervise;
mod sys;
mod unmount;
mod user;
mod volume;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Init has no arguments that are not UTF-8.
    let mut arguments = std::env::args_os().filter_map(|argument| argument.into_string().ok());
    match arguments.next().as_deref() {
        Some(proxy_adapter::ADAPTER_NAME) => {
            proxy_adapter::run_adapter(arguments, sys::inherited);
            return ExitCode::FAILURE;
        }
        Some(proxy_adapter::FORWARDER_NAME) => {
            proxy_adapter::run_forwarder(arguments, sys::inherited);
            return ExitCode::FAILURE;
        }
        Some(namespace_init::NAME) => return namespace_init::run(),
        Some(namespace_init::PLACEHOLDER) => namespace_init::hold_place(),
        Some(modules::MODPROBE) => {
            return if modules::modprobe(arguments) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
        }
        _ => {}
    }
    if std::process::id() != 1 {
        console::print("this program runs as PID 1 of a guest only");
        return ExitCode::from(2);
    }
    if let Err(error) = supervise::run() {
        console::print(&error.to_string());
    }
    // A reboot ends the VM on Firecracker and on QEMU without ACPI. It does not return; if it did, the
    // kernel would panic for the loss of its init, and reboot for that.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    ExitCode::FAILURE
}
