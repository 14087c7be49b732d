//! The roles as services of systemd: what a package installs as `platform-ROLE.service`.

use std::path::Path;

use blocking_work::blocking;
use tokio::process::Command;

use crate::failure::Failure;
use crate::output::note;

/// It is there where systemd is the machine's init (sd_booted(3)).
const SYSTEMD_RUNS: &str = "/run/systemd/system";
/// Where units are (systemd.unit(5)).
const UNIT_FOLDERS: [&str; 3] = [
    "/etc/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// What this process makes from now on is closed to other users of the machine.
pub(crate) fn close_to_others() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

/// The unit of a role: `platform-node.service`.
pub(crate) fn unit(role: &str) -> String {
    format!("platform-{role}.service")
}

/// Whether systemd runs here and has the unit of this role.
pub(crate) async fn has_unit(role: &str) -> bool {
    let unit = unit(role);
    blocking(move || {
        Path::new(SYSTEMD_RUNS).is_dir()
            && UNIT_FOLDERS
                .iter()
                .any(|folder| Path::new(folder).join(&unit).exists())
    })
    .await
}

/// How a role is started once it is set up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start<'a> {
    /// `server`, `node` or `edge`.
    pub(crate) role: &'a str,
    /// Where the role's data is.
    pub(crate) data_dir: &'a Path,
    /// Where its unit looks for it.
    pub(crate) unit_data_dir: &'a Path,
    /// The user wants to start it.
    pub(crate) by_hand: bool,
    /// One that runs goes by what is not so any more.
    pub(crate) restart: bool,
}

/// Enables and starts the unit of the role, so that it comes back with the machine. Where it cannot, says what starts the role.
pub(crate) async fn start(start: Start<'_>) -> Result<(), Failure> {
    let Start { role, .. } = start;
    if start.data_dir != start.unit_data_dir {
        note(format!(
            "start it: platform {role} --data-dir {}",
            start.data_dir.display()
        ));
        return Ok(());
    }
    if !has_unit(role).await {
        note(format!("start it: platform {role}"));
        return Ok(());
    }
    let unit = unit(role);
    if start.by_hand {
        note(format!("start it: systemctl enable --now {unit}"));
        return Ok(());
    }
    systemctl(&["enable", "--quiet", &unit], &unit).await?;
    let verb = if start.restart { "restart" } else { "start" };
    systemctl(&[verb, &unit], &unit).await?;
    note(format!("{unit} runs, and starts with the machine"));
    Ok(())
}

async fn systemctl(words: &[&str], unit: &str) -> Result<(), Failure> {
    let output = Command::new("systemctl").args(words).output().await;
    let output = output.map_err(|error| {
        Failure::from(anyhow::Error::new(error).context("cannot run systemctl"))
    })?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!(
        "cannot start {unit}: {}",
        crate::output::one_line(stderr.trim())
    ))
    .hint(format!("its log: journalctl -u {unit} -n 30")))
}

/// Says that changed options are used from the next start of the role on.
pub(crate) fn note_changed(role: &str) {
    note(format!(
        "the options are kept; {role} uses them when it is started again: systemctl restart {}",
        unit(role)
    ));
}
