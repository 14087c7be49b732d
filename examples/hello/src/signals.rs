//! Signals that ask the app to stop.

use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGINT, SIGTERM};

/// A stream that has a byte to read once SIGTERM or SIGINT came.
pub(crate) fn signals() -> Result<UnixStream, String> {
    let failed = |error: std::io::Error| format!("cannot wait for signals: {error}");
    let (read, write) = UnixStream::pair().map_err(failed)?;
    for signal in [SIGTERM, SIGINT] {
        let write = write.try_clone().map_err(failed)?;
        signal_hook::low_level::pipe::register(signal, write).map_err(failed)?;
    }
    Ok(read)
}
