//! Archives made byte by byte, honest or not, and layers of them.

use std::io::Write as _;
use std::path::Path;

use model::Digest;
use oci::{Compression, LayerFile};

use sha2::{Digest as _, Sha256};

/// A header to be; the defaults are those of an empty file.
#[derive(Clone)]
pub(crate) struct Header<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) type_flag: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime: i64,
    pub(crate) link: &'a [u8],
    pub(crate) device: (u32, u32),
}

impl Default for Header<'_> {
    fn default() -> Self {
        Self {
            name: b"file",
            type_flag: b'0',
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 1_000_000_000,
            link: b"",
            device: (0, 0),
        }
    }
}

/// An archive on its way.
#[derive(Clone, Default)]
pub(crate) struct Tar(pub(crate) Vec<u8>);

fn put_number(field: &mut [u8], value: i64) {
    let digits = field.len() - 1;
    if value >= 0 && value < 1 << (3 * digits) {
        field[..digits].copy_from_slice(format!("{value:0digits$o}").as_bytes());
    } else {
        let bytes = value.to_be_bytes();
        let fill = if value < 0 { 0xff } else { 0 };
        field.fill(fill);
        let start = field.len().saturating_sub(8);
        let skip = 8 - (field.len() - start);
        field[start..].copy_from_slice(&bytes[skip..]);
        field[0] = (field[0] & 0x7f) | 0x80;
    }
}

impl Tar {
    /// A header with a right checksum, and nothing after it.
    pub(crate) fn raw(
        &mut self,
        header: &Header<'_>,
        edit: impl FnOnce(&mut [u8; 512]),
    ) -> &mut Self {
        let mut block = [0_u8; 512];
        let name = &header.name[..header.name.len().min(100)];
        block[..name.len()].copy_from_slice(name);
        put_number(&mut block[100..108], header.mode.into());
        put_number(&mut block[108..116], header.uid.into());
        put_number(&mut block[116..124], header.gid.into());
        put_number(
            &mut block[124..136],
            i64::try_from(header.size).unwrap_or(-1),
        );
        put_number(&mut block[136..148], header.mtime);
        block[156] = header.type_flag;
        let link = &header.link[..header.link.len().min(100)];
        block[157..157 + link.len()].copy_from_slice(link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        put_number(&mut block[329..337], header.device.0.into());
        put_number(&mut block[337..345], header.device.1.into());
        edit(&mut block);
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
        self
    }

    /// An entry with its content.
    pub(crate) fn entry(&mut self, header: &Header<'_>, content: &[u8]) -> &mut Self {
        let mut header = header.clone();
        header.size = content.len() as u64;
        let long = |bytes: &[u8]| bytes.len() > 100;
        if long(header.name) {
            self.long(b'L', header.name);
        }
        if long(header.link) {
            self.long(b'K', header.link);
        }
        self.raw(&header, |_| {}).content(content)
    }

    /// Content and zeros up to the next block.
    pub(crate) fn content(&mut self, content: &[u8]) -> &mut Self {
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// GNU's long names.
    pub(crate) fn long(&mut self, type_flag: u8, name: &[u8]) -> &mut Self {
        let content = [name, b"\0"].concat();
        self.entry(
            &Header {
                name: b"././@LongLink",
                type_flag,
                ..Header::default()
            },
            &content,
        )
    }

    /// An extended header of these records.
    pub(crate) fn pax(&mut self, records: &[(&str, &[u8])]) -> &mut Self {
        self.pax_of_type(b'x', records)
    }

    /// The same, global or not.
    pub(crate) fn pax_of_type(&mut self, type_flag: u8, records: &[(&str, &[u8])]) -> &mut Self {
        let mut content = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length += 1;
            }
            content.extend_from_slice(format!("{length} {key}=").as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        self.entry(
            &Header {
                name: b"PaxHeaders/x",
                type_flag,
                ..Header::default()
            },
            &content,
        )
    }

    pub(crate) fn file(&mut self, name: &str, content: &[u8]) -> &mut Self {
        self.entry(
            &Header {
                name: name.as_bytes(),
                ..Header::default()
            },
            content,
        )
    }

    pub(crate) fn directory(&mut self, name: &str) -> &mut Self {
        let header = Header {
            name: name.as_bytes(),
            type_flag: b'5',
            mode: 0o755,
            ..Header::default()
        };
        self.entry(&header, b"")
    }

    pub(crate) fn symlink(&mut self, name: &str, target: &str) -> &mut Self {
        self.link_of_type(b'2', name, target)
    }

    pub(crate) fn hard_link(&mut self, name: &str, target: &str) -> &mut Self {
        self.link_of_type(b'1', name, target)
    }

    fn link_of_type(&mut self, type_flag: u8, name: &str, target: &str) -> &mut Self {
        let header = Header {
            name: name.as_bytes(),
            type_flag,
            link: target.as_bytes(),
            ..Header::default()
        };
        self.entry(&header, b"")
    }

    /// With the two blocks of zeros at the end.
    pub(crate) fn finish(&self) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }

    /// A layer of this archive in `dir`.
    pub(crate) fn layer(&self, dir: &Path) -> LayerFile {
        layer_of(dir, &self.finish(), Compression::None)
    }
}

/// The digest of bytes.
pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

/// A layer of this archive, compressed, as a file in `dir`.
pub(crate) fn layer_of(dir: &Path, archive: &[u8], compression: Compression) -> LayerFile {
    let stored = match compression {
        Compression::None => archive.to_vec(),
        Compression::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(archive).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zstd => zstd::encode_all(archive, 1).unwrap(),
        Compression::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            encoder.write_all(archive).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Xz => {
            let options = lzma_rust2::XzOptions::with_preset(0);
            let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
            encoder.write_all(archive).unwrap();
            encoder.finish().unwrap()
        }
    };
    stored_layer(dir, &stored, archive, compression)
}

/// A layer with these stored bytes.
pub(crate) fn stored_layer(
    dir: &Path,
    stored: &[u8],
    archive: &[u8],
    compression: Compression,
) -> LayerFile {
    let digest = digest(stored);
    let path = dir.join(digest.hex());
    std::fs::write(&path, stored).unwrap();
    LayerFile {
        path,
        offset: 0,
        size: stored.len() as u64,
        digest,
        diff_id: self::digest(archive),
        compression,
    }
}
