//! platform-init's boot on this machine itself, measured without a VM (`make bench`): the boot config
//! from standard input, the whole boot plan, the app, its output. It has init's own modules, and lacks
//! the parts that need a guest: the vsock link, and the cgroup's memory controller, which the machine may use.
//!
//! It must be PID 1 of namespaces of its own, with a root directory that may be emptied.

#![allow(
    dead_code,
    unused_imports,
    reason = "only a part of init's modules is used"
)]

#[path = "../src/adapter.rs"]
mod adapter;
#[path = "../src/app.rs"]
mod app;
#[path = "../src/assembler.rs"]
mod assembler;
#[path = "../src/boot.rs"]
mod boot;
#[path = "../src/bpf.rs"]
mod bpf;
#[path = "../src/clock.rs"]
mod clock;
#[path = "../src/confined.rs"]
mod confined;
#[path = "../src/console.rs"]
mod console;
#[path = "../src/early.rs"]
mod early;
#[path = "../src/etc.rs"]
mod etc;
#[path = "../src/exec.rs"]
mod exec;
#[path = "../src/execute.rs"]
mod execute;
#[path = "../src/forward.rs"]
mod forward;
#[path = "../src/link.rs"]
mod link;
#[path = "../src/logs.rs"]
mod logs;
#[path = "../src/modules.rs"]
mod modules;
#[path = "../src/namespace.rs"]
mod namespace;
#[path = "../src/namespace_init.rs"]
mod namespace_init;
#[path = "../src/netlink.rs"]
mod netlink;
#[path = "../src/oom.rs"]
mod oom;
#[path = "../src/output.rs"]
mod output;
#[path = "../src/plan.rs"]
mod plan;
#[path = "../src/progress.rs"]
mod progress;
#[path = "../src/run_dir.rs"]
mod run_dir;
#[path = "../src/signals.rs"]
mod signals;
#[path = "../src/spawn.rs"]
mod spawn;
#[path = "../src/stats.rs"]
mod stats;
#[path = "../src/supervise.rs"]
mod supervise;
#[path = "../src/sys.rs"]
mod sys;
#[path = "../src/unmount.rs"]
mod unmount;
#[path = "../src/user.rs"]
mod user;
#[path = "../src/volume.rs"]
mod volume;

use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;
use std::time::Instant;

use guest_protocol::{Channel, FrameBuffer, HostFrame};
use rustix::event::{PollFd, PollFlags, poll};

fn main() -> ExitCode {
    if std::process::id() != 1 {
        console::print("this program runs as PID 1 of a measurement only");
        return ExitCode::from(2);
    }
    match boot() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::print(&error);
            ExitCode::FAILURE
        }
    }
}

fn boot() -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    let _signals = sys::signal_fd().map_err(text)?;
    early::prepare().map_err(|error| error.to_string())?;
    let mut frames = FrameBuffer::default();
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes).map_err(text)?;
    frames.push(&bytes);
    let Ok(Some(HostFrame::Boot(config))) = frames.next() else {
        return Err("standard input has no boot config".to_owned());
    };
    let mut booted = execute::Booted::default();
    // Nothing answers here, and no step takes long enough to be reported.
    let now = Instant::now();
    let mut control = link::Link::new(Channel::Control, now);
    let mut clock = clock::ClockSync::new(now);
    let mut progress = progress::Progress::new(&mut control, &mut clock, now);
    for step in plan::boot_plan(&config) {
        let done = match &step {
            plan::Step::Cgroup => std::fs::create_dir(plan::APP_CGROUP).map_err(|e| e.to_string()),
            step => execute::perform(step, &config, &mut booted, &mut progress)
                .map_err(|e| e.to_string()),
        };
        done.map_err(|error| format!("{}: {error}", step.name()))?;
    }
    let app = booted.app.ok_or("the boot plan starts no app")?;
    let mut output = [0; 4096];
    loop {
        let mut polled = [PollFd::new(&app.stdout, PollFlags::IN)];
        poll(&mut polled, None).map_err(|error| error.to_string())?;
        match rustix::io::read(&app.stdout, &mut output) {
            Ok(0) => return Ok(()),
            Ok(length) => io::stdout().write_all(&output[..length]).map_err(text)?,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}
