//! The file of a backup: a database of SQLite, and a last line with the SHA-256 of all before it, so that a flipped bit is found.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

/// What the last line begins with; then the digest (`sha256:` and 64 digits), and its end.
const MARK: &[u8] = b"\nplatform-backup ";
const DIGEST: usize = "sha256:".len() + 64;
const LINE: usize = MARK.len() + DIGEST + 1;

/// What the last line of a file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checksum {
    /// The file is as it was written.
    Right,
    /// It is not.
    Wrong,
    /// There is none: an older platform wrote it, or its end is missing.
    Missing,
}

/// Adds the last line to a database, and makes the file durable. Blocks.
pub(crate) fn add_checksum(path: &Path) -> io::Result<()> {
    let mut file = File::options().read(true).append(true).open(path)?;
    let digest = digest(&mut file, u64::MAX, &mut io::sink())?;
    let mut line = MARK.to_vec();
    line.extend_from_slice(digest.as_bytes());
    line.push(b'\n');
    file.write_all(&line)?;
    file.sync_all()
}

/// Copies the database in a backup to a file that is not there yet, and says whether it is as it was written. Blocks.
pub(crate) fn take_out(backup: &Path, to: &Path) -> io::Result<Checksum> {
    let mut file = File::open(backup)?;
    let length = file.metadata()?.len();
    let before = length.checked_sub(LINE as u64);
    let mut said = None;
    if let Some(before) = before {
        let mut line = [0; LINE];
        file.seek(SeekFrom::Start(before))?;
        file.read_exact(&mut line)?;
        let digits = line.strip_prefix(MARK);
        said = digits
            .and_then(|digits| digits.strip_suffix(b"\n"))
            .map(<[u8]>::to_vec);
        file.rewind()?;
    }
    let mut copy = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    let database = said.as_ref().and(before).unwrap_or(length);
    let digest = digest(&mut file, database, &mut copy)?;
    Ok(match said {
        None => Checksum::Missing,
        Some(said) if said == digest.as_bytes() => Checksum::Right,
        Some(_) => Checksum::Wrong,
    })
}

/// The digest of so many bytes, which are copied, too.
fn digest(from: &mut impl Read, bytes: u64, to: &mut impl io::Write) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut from = from.take(bytes);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        to.write_all(&buffer[..count])?;
    }
    Ok(model::Digest::from_sha256(&hasher.finalize().into()).to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn every_flipped_byte_is_found_and_a_missing_end_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (backup, to) = (folder.path().join("backup"), folder.path().join("to"));
        let take_out = || {
            let checksum = super::take_out(&backup, &to).unwrap();
            let content = std::fs::read(&to).unwrap();
            std::fs::remove_file(&to).unwrap();
            (checksum, content)
        };
        for database in [&b""[..], b"SQLite format 3", &[7; 70_000]] {
            std::fs::write(&backup, database).unwrap();
            assert_eq!(take_out(), (Checksum::Missing, database.to_vec()));
            add_checksum(&backup).unwrap();
            assert_eq!(take_out(), (Checksum::Right, database.to_vec()));
            let whole = std::fs::read(&backup).unwrap();
            for at in (0..whole.len()).step_by(1 + database.len() / 100) {
                let mut flipped = whole.clone();
                flipped[at] ^= 1;
                std::fs::write(&backup, &flipped).unwrap();
                assert_ne!(take_out().0, Checksum::Right, "byte {at}");
            }
            std::fs::write(&backup, &whole[..whole.len() - 1]).unwrap();
            assert_eq!(take_out().0, Checksum::Missing);
        }
    }
}
