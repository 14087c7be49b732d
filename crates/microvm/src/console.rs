//! The serial console and the standard error of a VM's processes, in files of bounded size.
//!
//! Both processes hold the FIFO open for reading and writing, so a write never fails for want of a reader. The FIFO
//! is non-blocking, and QEMU and the vsock device drop output that does not fit, so no writer blocks. The pump
//! moves the FIFO's content into `console.log`, and renames that file at its bound.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blocking_work::blocking;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::io::Errno;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use crate::run_dir::{console_fifo, remove_if_there};

/// Bound of `console.log` and of the one before it, in bytes each.
const MAX_LOG_BYTES: u64 = 64 * 1024;
/// Bytes of the end that [`console_tail`] gives.
const MAX_TAIL_BYTES: u64 = 4 * 1024;
/// Bytes of one read; a file may exceed its bound by this much.
const READ_BYTES: usize = 16 * 1024;
/// Pause after each read. A guest writes its serial console byte by byte, and a flood must not wake the agent for
/// each byte. Output that the FIFO cannot hold meanwhile is lost.
const READ_PAUSE: Duration = Duration::from_millis(20);
/// Longest wait for the pump once both processes have ended.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

fn log(run_dir: &Path) -> PathBuf {
    run_dir.join("console.log")
}

fn log_before(run_dir: &Path) -> PathBuf {
    run_dir.join("console.log.1")
}

/// The ends of the FIFO that a VM's processes are given.
pub(crate) struct Ends {
    /// Keeps the FIFO's content while no agent runs; no process reads from it.
    pub(crate) keeper: File,
    /// The end that they write to.
    pub(crate) writer: File,
}

/// Makes a new console; the files of an earlier one are removed.
pub(crate) fn make(run_dir: &Path) -> io::Result<Ends> {
    for path in [console_fifo(run_dir), log(run_dir), log_before(run_dir)] {
        remove_if_there(&path)?;
    }
    let fifo = console_fifo(run_dir);
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    let mut open = OpenOptions::new();
    open.write(true).custom_flags(libc::O_NONBLOCK);
    // Opened for both, a FIFO opens without waiting for another end.
    let keeper = open.clone().read(true).open(&fifo)?;
    let writer = open.open(&fifo)?;
    Ok(Ends { keeper, writer })
}

/// Moves the FIFO's content to the file until both processes have ended.
pub(crate) struct Pump {
    task: JoinHandle<()>,
}

impl Pump {
    /// Blocks while the FIFO is opened; the caller has entered the runtime.
    pub(crate) fn start(run_dir: &Path) -> io::Result<Self> {
        let receiver = pipe::OpenOptions::new().open_receiver(console_fifo(run_dir))?;
        let run_dir = run_dir.to_owned();
        Ok(Self {
            task: tokio::spawn(async move { pump(receiver, &run_dir).await }),
        })
    }

    /// Waits until all output is in the file. Called when both processes have ended.
    pub(crate) async fn finish(mut self) {
        if tokio::time::timeout(DRAIN_TIMEOUT, &mut self.task)
            .await
            .is_err()
        {
            self.task.abort();
        }
    }

    /// Leaves the rest of the output to the next pump.
    pub(crate) fn leave(self) {
        self.task.abort();
    }
}

async fn pump(mut receiver: pipe::Receiver, run_dir: &Path) {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        // Registered with the runtime only while the FIFO is empty: else each byte would wake the agent.
        if receiver.readable().await.is_err() {
            return;
        }
        let Ok(fifo) = receiver.into_nonblocking_fd() else {
            return;
        };
        match rustix::io::read(&fifo, &mut buffer) {
            Ok(0) => return,
            // A full disk loses console output, never the VM.
            Ok(count) => {
                let (dir, bytes) = (run_dir.to_owned(), buffer[..count].to_vec());
                if let Err(error) = blocking(move || append(&dir, &bytes)).await {
                    tracing::debug!(%error, run_dir = %run_dir.display(), "console output lost");
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return,
        }
        tokio::time::sleep(READ_PAUSE).await;
        receiver = match pipe::Receiver::from_owned_fd(fifo) {
            Ok(receiver) => receiver,
            Err(_) => return,
        };
    }
}

fn append(run_dir: &Path, bytes: &[u8]) -> io::Result<()> {
    let path = log(run_dir);
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)?;
    file.write_all(bytes)?;
    if file.metadata()?.len() >= MAX_LOG_BYTES {
        fs::rename(path, log_before(run_dir))?;
    }
    Ok(())
}

/// The end of a VM's console: the last output of the kernel, init, QEMU or the vsock device. Control characters
/// are removed, because the guest chose them. Empty when there is no console. Blocks.
pub fn console_tail(run_dir: &Path) -> String {
    let mut bytes = end_of(&log(run_dir)).unwrap_or_default();
    let missing = usize::try_from(MAX_TAIL_BYTES).unwrap_or(usize::MAX) - bytes.len();
    if missing > 0 {
        let before = end_of(&log_before(run_dir)).unwrap_or_default();
        let start = before.len().saturating_sub(missing);
        bytes.splice(..0, before[start..].iter().copied());
    }
    display::lines(&String::from_utf8_lossy(&bytes))
}

/// As [`console_tail`], away from the runtime's workers.
pub(crate) async fn read_tail(run_dir: &Path) -> String {
    let run_dir = run_dir.to_owned();
    blocking(move || console_tail(&run_dir)).await
}

fn end_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(MAX_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn the_console_file_is_bounded_and_its_tail_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..20_000 {
            append(dir.path(), format!("line {number}\n").as_bytes()).unwrap();
        }
        let size = |path: PathBuf| fs::metadata(path).map_or(0, |m| m.len());
        assert!(size(log(dir.path())) + size(log_before(dir.path())) <= 2 * MAX_LOG_BYTES + 4096);
        assert!(console_tail(dir.path()).ends_with("line 19998\nline 19999"));
    }

    #[tokio::test]
    async fn console_writers_never_block_without_a_reader() {
        let dir = tempfile::tempdir().unwrap();
        let mut ends = make(dir.path()).unwrap();
        let mut written = 0;
        let error = loop {
            match ends.writer.write(&[b'x'; 1024]) {
                Ok(count) => written += count,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let pump = Pump::start(dir.path()).unwrap();
        drop(ends);
        pump.finish().await;
        let size = |path: PathBuf| fs::metadata(path).map_or(0, |m| m.len());
        let kept = size(log(dir.path())) + size(log_before(dir.path()));
        assert_eq!(kept, u64::try_from(written).unwrap());
    }
}
