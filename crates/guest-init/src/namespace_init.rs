//! PID 1 of the app's PID namespace, where the image brings none: this program under another name.
//!
//! It does what PID 1 must do and no more: it reaps orphans, and passes the signals that processes of the app send to
//! PID 1 (`kill -HUP 1`) on to the app's main process. It has the app's user, environment and outputs. It knows
//! nothing of the node, and holds no descriptor but the standard streams.
//!
//! The main process is not its child but that of the guest's init, which waits for it exactly. When that
//! has ended, init sends `SIGCHLD`; this process ends once it has no children left, and the kernel kills what
//! remains.
//!
//! The kernel keeps from PID 1 every signal of its own namespace that it neither handles nor blocks, SIGKILL
//! among them: the app cannot end it but by a debugger, or by reboot(2), which end the app itself.

use std::process::ExitCode;

use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};

use crate::sys;

/// The name that it is started under.
pub(crate) const NAME: &str = "platform-init";
/// The name of the process that stands in the place of the app's main process, where a session is what the guest is for.
pub(crate) const PLACEHOLDER: &str = "platform-placeholder";
/// The main process's pid in the namespace: it is the first one after PID 1. The kernel gives it to no other process as
/// long as the namespace lives: it counts up, and starts again at 300.
pub(crate) const MAIN: i32 = 2;

/// Runs until the app has ended. Every signal must be blocked.
pub(crate) fn run() -> ExitCode {
    if std::process::id() != 1 {
        return ExitCode::FAILURE;
    }
    // For `ps`: the kernel has taken it from the path of this program.
    let _ = rustix::thread::set_name(c"platform-init");
    loop {
        match sys::next_signal() {
            libc::SIGCHLD => {
                let childless = reap();
                if childless && !main_exists() {
                    return ExitCode::SUCCESS;
                }
            }
            // The main process may have ended just now, or have become another user's.
            signal => drop(sys::kill(MAIN, signal)),
        }
    }
}

/// Does nothing until it is killed. Every signal must be blocked.
pub(crate) fn hold_place() -> ! {
    // For `ps`.
    let _ = rustix::thread::set_name(c"placeholder");
    loop {
        sys::next_signal();
    }
}

/// Reaps orphans. True: there are no children left.
fn reap() -> bool {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return false,
            Err(_) => return true,
        }
    }
}

fn main_exists() -> bool {
    match sys::kill(MAIN, 0) {
        Ok(()) => true,
        Err(error) => error.raw_os_error() != Some(libc::ESRCH),
    }
}
