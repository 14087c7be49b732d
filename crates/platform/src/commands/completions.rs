//! `platform completions`: what a shell completes the command line by.

use clap::{Args, Command};
use clap_complete::Shell;

use crate::failure::Failure;
use crate::output;

const EXAMPLES: &str = "\
Example:
  platform completions bash >/etc/bash_completion.d/platform
The package has those of bash, zsh and fish.";

/// Print what a shell completes this command line by
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the completions of `command`, which is the whole command line.
pub(crate) fn run(arguments: &Arguments, mut command: Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "platform", &mut script);
    output::write(&String::from_utf8(script)?)?;
    Ok(())
}
