//! `platform manual`: the man pages, which the package has.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Command};

use crate::failure::Failure;

/// Write the man pages of every command to a folder
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct Arguments {
    /// The folder; it is there
    folder: PathBuf,
}

/// Writes the pages of `command`, which is the whole command line.
pub(crate) fn run(arguments: &Arguments, command: Command) -> Result<(), Failure> {
    clap_mangen::generate_to(command, &arguments.folder).with_context(|| {
        format!(
            "cannot write the man pages to {}",
            arguments.folder.display()
        )
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use clap::CommandFactory as _;
    use expect_test::expect_file;

    use super::*;
    use crate::cli::Cli;

    /// The sections of a command and of those below it.
    fn sections(command: &mut Command, path: &str, text: &mut String) {
        let help = command.render_long_help().to_string();
        let lines: Vec<_> = help.lines().map(str::trim_end).collect();
        let help = lines.join("\n");
        // Writing to a String cannot fail.
        let _ = write!(text, "\n## {path}\n\n```text\n{}\n```\n", help.trim_end());
        for below in command.get_subcommands_mut() {
            if below.is_hide_set() || below.get_name() == "help" {
                continue;
            }
            let path = format!("{path} {}", below.get_name());
            sections(below, &path, text);
        }
    }

    /// `UPDATE_EXPECT=1 cargo test --release -p platform docs_cli_md` writes the page.
    #[test]
    fn docs_cli_md_is_what_help_says() {
        let mut command = Cli::command().term_width(100);
        command.build();
        let mut text = "# The command line\n\n\
            What `--help` says of each command, written by a test: \
            `UPDATE_EXPECT=1 cargo test --release -p platform docs_cli_md`.\n"
            .to_owned();
        sections(&mut command, "platform", &mut text);
        expect_file!["../../../../docs/cli.md"].assert_eq(&text);
    }
}
