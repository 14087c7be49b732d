//! The worker: a tick every few seconds, until SIGTERM.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::config::Config;
use crate::log;

pub(crate) fn run(config: &Config) -> Result<(), String> {
    let mut signals = signals()?;
    let tick = Duration::from_secs(config.tick_seconds.max(1));
    signals
        .set_read_timeout(Some(tick))
        .map_err(|error| format!("cannot set the tick: {error}"))?;
    log(&format!(
        "worker: started, a tick every {} s",
        tick.as_secs()
    ));
    let mut ticks = 0_u64;
    loop {
        let asked_to_stop = signals.read_exact(&mut [0]);
        if asked_to_stop.is_ok() {
            break;
        }
        // Nothing came within a tick.
        ticks += 1;
        log(&format!("worker: tick {ticks}"));
    }
    log(&format!("worker: asked to stop after {ticks} ticks"));
    Ok(())
}

/// A stream with a byte to read once SIGTERM or SIGINT came.
pub(crate) fn signals() -> Result<UnixStream, String> {
    let failed = |error: std::io::Error| format!("cannot wait for signals: {error}");
    let (read, write) = UnixStream::pair().map_err(failed)?;
    for signal in [SIGTERM, SIGINT] {
        let write = write.try_clone().map_err(failed)?;
        signal_hook::low_level::pipe::register(signal, write).map_err(failed)?;
    }
    Ok(read)
}
