//! The repository's own tasks, run as `cargo xtask <task>`. A task is a module; this file only
//! names them.

mod apt;
mod deb;
mod guest;
mod kernel;
mod mutations;
mod simulate;
mod tidy;
mod tools;

use clap::Parser;

/// The tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", about = "The repository's own tasks")]
enum Task {
    /// Pack what is built as a Debian package, target/platform_VERSION_amd64.deb.
    Deb(deb::Options),
    /// Build what every guest boots: platform-init, its initramfs, and the kernel, in target/guest.
    Guest(guest::Options),
    /// Build the platform's own guest kernel, in target/guest, where guests find it. Takes minutes.
    Kernel(kernel::Options),
    /// Break each rule on purpose, and see the simulation catch it. Minutes.
    Mutations(mutations::Options),
    /// Simulate clusters under faults: `--seed N` replays one run, `--seeds N` makes many.
    Simulate(simulate::Options),
    /// Check what a reviewer should not have to look for: layers, rings, words, file sizes, documents.
    Tidy,
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Deb(options) => deb::run(&options),
        Task::Guest(options) => guest::run(&options),
        Task::Kernel(options) => kernel::run(&options),
        Task::Mutations(options) => mutations::run(&tools::root(), &options),
        Task::Simulate(options) => simulate::run(&tools::root(), &options),
        Task::Tidy => tidy::tidy(&tools::root()),
    }
}
