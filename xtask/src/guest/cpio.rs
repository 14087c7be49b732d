//! The `newc` archive that the kernel unpacks as its first root (its Documentation,
//! driver-api/early-userspace/buffer-format). Owner, time and device numbers are fixed, inode
//! numbers count up: the same entries give the same bytes.

use anyhow::{Context, Result, ensure};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive being written.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// A directory, mode 0755. Parents come before what is in them.
    pub(crate) fn directory(&mut self, path: &str) -> Result<()> {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// A regular file.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entry(path, REGULAR | mode, (0, 0), content)
    }

    /// A character device, by major and minor number.
    pub(crate) fn character_device(
        &mut self,
        path: &str,
        mode: u32,
        number: (u32, u32),
    ) -> Result<()> {
        self.entry(path, CHARACTER_DEVICE | mode, number, &[])
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn entry(&mut self, path: &str, mode: u32, rdev: (u32, u32), content: &[u8]) -> Result<()> {
        ensure!(
            !path.starts_with('/') && !path.contains('\0'),
            "bad path {path:?}"
        );
        self.entries += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let size = u32::try_from(content.len()).context("files in an initramfs are below 4 GiB")?;
        let name_size = u32::try_from(path.len() + 1)?;
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields = [
            self.entries,
            mode,
            0,
            0,
            links,
            0,
            size,
            0,
            0,
            rdev.0,
            rdev.1,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::Archive;

    /// The bytes of the format, by hand from its description.
    #[test]
    fn an_entry_is_a_head_a_name_and_a_content_each_padded_to_four() {
        let mut archive = Archive::default();
        archive.file("init", 0o755, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        let head = "070701000000010000\
                    81ED000000000000000000000001000000000000000500000000000000000000000000000000\
                    0000000500000000";
        assert_eq!(head.len(), 110);
        assert_eq!(std::str::from_utf8(&bytes[..110]).unwrap(), head);
        assert_eq!(&bytes[110..124], b"init\0\0hello\0\0\0");
        assert!(bytes[124..].starts_with(b"070701"));
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn the_same_entries_give_the_same_bytes() {
        let make = || {
            let mut archive = Archive::default();
            archive.directory("dev").unwrap();
            archive
                .character_device("dev/console", 0o600, (5, 1))
                .unwrap();
            archive.finish().unwrap()
        };
        assert_eq!(make(), make());
    }
}
