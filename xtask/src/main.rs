//! Chores of the repository, run as `cargo xtask <chore>`. A chore is a module; this file only
//! names them.

mod guest;

use clap::Parser;

/// The chores.
#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of the repository")]
enum Chore {
    /// Build what every guest boots: platform-init, its initramfs, and the kernel, in target/guest.
    Guest(guest::Options),
}

fn main() -> anyhow::Result<()> {
    match Chore::parse() {
        Chore::Guest(options) => guest::run(&options),
    }
}
