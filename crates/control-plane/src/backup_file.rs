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

/// Copies the database in a backup to a file that is not there yet, and says whether it is as it was written. One without the last line is not: it is
/// no backup, or its end is missing. Blocks.
pub(crate) fn take_out(backup: &Path, to: &Path) -> io::Result<bool> {
    let mut file = File::open(backup)?;
    let Some(database) = file.metadata()?.len().checked_sub(LINE as u64) else {
        return Ok(false);
    };
    let mut line = [0; LINE];
    file.seek(SeekFrom::Start(database))?;
    file.read_exact(&mut line)?;
    file.rewind()?;
    let mut copy = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    let digest = digest(&mut file, database, &mut copy)?;
    let said = (line.strip_prefix(MARK)).and_then(|digits| digits.strip_suffix(b"\n"));
    Ok(said == Some(digest.as_bytes()))
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
    fn every_flipped_byte_is_found_and_so_is_a_missing_or_a_longer_end() {
        let folder = tempfile::tempdir().unwrap();
        let backup = folder.path().join("backup");
        let mut number = 0;
        let mut take_out = || {
            number += 1;
            let to = folder.path().join(number.to_string());
            super::take_out(&backup, &to)
                .unwrap()
                .then(|| std::fs::read(&to).unwrap())
        };
        for database in [&b""[..], b"SQLite format 3", &[7; 70_000]] {
            std::fs::write(&backup, database).unwrap();
            assert_eq!(take_out(), None);
            add_checksum(&backup).unwrap();
            assert_eq!(take_out().as_deref(), Some(database));
            let whole = std::fs::read(&backup).unwrap();
            for at in (0..whole.len()).step_by(1 + database.len() / 100) {
                let mut flipped = whole.clone();
                flipped[at] ^= 1;
                std::fs::write(&backup, &flipped).unwrap();
                assert_eq!(take_out(), None, "byte {at}");
            }
            std::fs::write(&backup, &whole[..whole.len() - 1]).unwrap();
            assert_eq!(take_out(), None);
            std::fs::write(&backup, [&whole[..], b"\n"].concat()).unwrap();
            assert_eq!(take_out(), None);
        }
    }
}
