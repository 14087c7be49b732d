//! The worker: a tick every few seconds, until SIGTERM.

use std::io::Read as _;
use std::time::Duration;

use crate::config::Config;
use crate::log::log;
use crate::signals::signals;

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
        // No signal came within a tick.
        ticks += 1;
        log(&format!("worker: tick {ticks}"));
    }
    log(&format!("worker: asked to stop after {ticks} ticks"));
    Ok(())
}
