//! `--watch`: a list again and again, until it is enough.

use std::fs::File;
use std::io::{IsTerminal as _, Read as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::failure::Failure;
use crate::json_shapes::Watched;
use crate::output::{self, Format, Table, note};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(2);
/// To the top left, and nothing below.
pub(crate) const CLEAR: &str = "\x1b[H\x1b[J";

/// Whether a list is shown again and again.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct WatchArguments {
    /// Look again every 2 s, until `q` or Ctrl-C; with `--format json`, an array a line whenever something changed
    #[arg(long, short)]
    pub(crate) watch: bool,
}

/// Shows what `look` finds, whenever it is otherwise than before. A server that does not answer for a while is asked again.
pub(crate) async fn show<T: Serialize>(
    shape: Watched<T>,
    format: Format,
    mut look: impl AsyncFnMut() -> Result<Vec<T>, Failure>,
    table: impl Fn(&[T]) -> Table,
) -> Result<(), Failure> {
    let mut ends = Ends::listen()?;
    let on_terminal = std::io::stdout().is_terminal() && format == Format::Text;
    let mut shown = None;
    let mut failing = false;
    loop {
        let looked = tokio::select! {
            looked = look() => looked,
            () = ends.asked() => return Ok(()),
        };
        match looked {
            Ok(rows) => {
                failing = false;
                let text = match format {
                    Format::Json => output::json_rows(&shape, &rows)?,
                    Format::Text => table(&rows).text(),
                };
                if shown.as_ref() != Some(&text) {
                    let clear = if on_terminal { CLEAR } else { "" };
                    output::write(&format!("{clear}{text}"))?;
                    shown = Some(text);
                }
            }
            // Before anything was shown, the input may be wrong; later, what cannot come right by itself ends it.
            Err(failure) if shown.is_none() || !failure.may_pass() => return Err(failure),
            Err(failure) => {
                if !std::mem::replace(&mut failing, true) {
                    // Its status is of a command that ends.
                    let _ = failure.report();
                    note("looking again");
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = ends.asked() => return Ok(()),
        }
    }
}

/// What ends the display: `q`, Ctrl-C, SIGTERM. The terminal is given back, which a signal's own action would not do.
pub(crate) struct Ends {
    keys: Option<Keys>,
    interrupt: Signal,
    terminate: Signal,
}

impl Ends {
    pub(crate) fn listen() -> Result<Self, Failure> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            keys: Keys::read()?,
        })
    }

    /// Ready when the display is to end. What came before is not lost.
    pub(crate) async fn asked(&mut self) {
        let quit = async {
            match &mut self.keys {
                Some(keys) => keys.quit().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = quit => {}
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The keys of the terminal, one at a time and not shown. The terminal is as it was once this is dropped.
struct Keys {
    terminal: File,
    before: Termios,
    quit: mpsc::Receiver<()>,
}

impl Keys {
    /// Nothing where standard input is no terminal.
    fn read() -> Result<Option<Self>, Failure> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let terminal = File::from(stdin.as_fd().try_clone_to_owned()?);
        let before = tcgetattr(&terminal).map_err(std::io::Error::from)?;
        let mut one_at_a_time = before.clone();
        one_at_a_time
            .local_modes
            .remove(LocalModes::ICANON | LocalModes::ECHO);
        tcsetattr(&terminal, OptionalActions::Now, &one_at_a_time).map_err(std::io::Error::from)?;
        let (sender, quit) = mpsc::channel(1);
        // A read of a terminal cannot be called off: the thread ends with the process.
        std::thread::spawn(move || {
            let mut key = [0];
            let mut input = std::io::stdin().lock();
            while matches!(input.read(&mut key), Ok(1)) {
                if matches!(key, [b'q' | b'Q']) {
                    let _ = sender.blocking_send(());
                    return;
                }
            }
        });
        Ok(Some(Self {
            terminal,
            before,
            quit,
        }))
    }

    async fn quit(&mut self) {
        if self.quit.recv().await.is_none() {
            // Standard input has ended: no key will come.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // There is nobody to be told.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}
