//! The one-time token that a machine joins with. It stands on no command line, where everyone on the machine could read it.

use std::io::{BufRead as _, BufReader, IsTerminal as _, Read};
use std::path::{Path, PathBuf};

use blocking_work::blocking;
use clap::Args;

use crate::failure::Failure;

/// The variable that may have the token in place of a file.
pub(crate) const TOKEN_VARIABLE: &str = "PLATFORM_TOKEN";
/// Longest line that is read as a token, in bytes: its server's URL is in it.
const MAX_TOKEN_BYTES: u64 = 4096;

/// Where the token is.
#[derive(Debug, Args)]
pub(crate) struct TokenArguments {
    /// File with the one-time token of `platform tokens create`, `-` for standard input; $PLATFORM_TOKEN
    /// may have it instead
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl TokenArguments {
    /// Whether a file is named.
    pub(crate) fn is_given(&self) -> bool {
        self.token_file.is_some()
    }

    /// The token, if there is one.
    pub(crate) async fn read(&self) -> Result<Option<String>, Failure> {
        let Some(path) = self.token_file.clone() else {
            // A variable that is set to nothing counts as absent.
            let token = std::env::var(TOKEN_VARIABLE).unwrap_or_default();
            return Ok(Some(token.trim().to_owned()).filter(|token| !token.is_empty()));
        };
        blocking(move || read_file(&path)).await.map(Some)
    }
}

/// A file with a secret, `-` for standard input, which is asked for where that is a terminal.
#[derive(Debug, Clone)]
pub(crate) struct SecretFile(PathBuf);

impl std::str::FromStr for SecretFile {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(PathBuf::from(text)))
    }
}

impl SecretFile {
    /// Its first line. `what` is asked for.
    pub(crate) async fn read(&self, what: &str) -> Result<String, Failure> {
        let Self(path) = self.clone();
        if path == Path::new("-") && std::io::stdin().is_terminal() {
            crate::output::note(format!("{what}, then Enter:"));
        }
        blocking(move || read_file(&path)).await
    }
}

/// Blocks.
fn read_file(path: &Path) -> Result<String, Failure> {
    let read = if path == Path::new("-") {
        first_line(std::io::stdin().lock())
    } else {
        std::fs::File::open(path).and_then(first_line)
    };
    let name = if path == Path::new("-") {
        "standard input".to_owned()
    } else {
        path.display().to_string()
    };
    match read {
        Ok(line) if line.is_empty() => Err(Failure::new(format!("{name} has no token"))
            .hint("`platform tokens create` prints one for a machine, `platform users tokens create` one for a user")),
        Ok(line) => Ok(line),
        Err(error) => Err(Failure::from(
            anyhow::Error::new(error).context(format!("cannot read the token from {name}")),
        )),
    }
}

/// The first line, without blanks around it.
fn first_line(file: impl Read) -> std::io::Result<String> {
    let mut line = String::new();
    BufReader::new(file.take(MAX_TOKEN_BYTES)).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_token_is_the_first_line_of_its_file() {
        assert_eq!(first_line(&b" pt1_abc \nmore"[..]).unwrap(), "pt1_abc");
        assert_eq!(first_line(&b"pt1_abc"[..]).unwrap(), "pt1_abc");
        assert_eq!(first_line(&b"\n"[..]).unwrap(), "");
        assert!(first_line(&b"\xff\n"[..]).is_err());
        let endless = first_line(std::io::repeat(b'a')).unwrap();
        assert_eq!(endless.len() as u64, MAX_TOKEN_BYTES);
    }
}
