//! The roles as services of systemd: what a package installs as `platform-ROLE.service`.

use std::path::Path;

use blocking_work::blocking;
use tokio::process::Command;

use crate::failure::Failure;
use crate::output::note;
use crate::printed::RoleStart;

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
    /// Folders that were given otherwise than its unit has them: the flag, and the folder.
    pub(crate) folders: &'a [(&'static str, &'a Path)],
    /// The user wants to start it.
    pub(crate) by_hand: bool,
    /// One that runs goes by what is not so any more.
    pub(crate) restart: bool,
}

impl Start<'_> {
    /// The command that starts the role where its unit does not: it has other folders. Absent: its unit has the same.
    fn by_command(&self) -> Option<String> {
        let mut command = format!("platform {}", self.role);
        let data_dir =
            (self.data_dir != self.unit_data_dir).then_some(("--data-dir", self.data_dir));
        let others = data_dir.iter().chain(self.folders);
        for (flag, folder) in others.clone() {
            command.push_str(&format!(" {flag} {}", folder.display()));
        }
        others.count().gt(&0).then_some(command)
    }
}

/// Enables and starts the unit of the role, so that it comes back with the machine. Where it cannot, says what starts the role.
pub(crate) async fn start(start: Start<'_>) -> Result<RoleStart, Failure> {
    let Start { role, .. } = start;
    let unit = unit(role);
    let command = match start.by_command() {
        Some(command) => Some(command),
        None if !has_unit(role).await => Some(format!("platform {role}")),
        None if start.by_hand => Some(format!("systemctl enable --now {unit}")),
        None => None,
    };
    if let Some(command) = command {
        note(format!("start it: {command}"));
        return Ok(RoleStart {
            started: false,
            command: Some(command),
        });
    }
    systemctl(&["enable", "--quiet", &unit], &unit).await?;
    let verb = if start.restart { "restart" } else { "start" };
    systemctl(&[verb, &unit], &unit).await?;
    note(format!("{unit} runs, and starts with the machine"));
    Ok(RoleStart {
        started: true,
        command: None,
    })
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

/// Says that changed options are used from the next start of the role on, which of an edge takes the place of the one that runs. Gives the command for that.
pub(crate) fn note_changed(role: &str) -> String {
    let verb = if role == "edge" { "reload" } else { "restart" };
    let command = format!("systemctl {verb} {}", unit(role));
    note(format!(
        "the options are kept; {role} uses them when it is started again: {command}"
    ));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_with_other_folders_is_started_by_a_command_that_has_them() {
        let start = |data_dir: &'static str, folders: &'static [(&'static str, &'static Path)]| {
            let start = Start {
                role: "node",
                data_dir: Path::new(data_dir),
                unit_data_dir: Path::new("/var/lib/platform/node"),
                folders,
                by_hand: false,
                restart: false,
            };
            start.by_command()
        };
        assert_eq!(start("/var/lib/platform/node", &[]), None);
        let command = start("/srv/node", &[]).unwrap_or_default();
        assert_eq!(command, "platform node --data-dir /srv/node");
        let run: &'static [(&'static str, &'static Path)] =
            Box::leak(Box::new([("--run-dir", Path::new("/run/other"))]));
        let command = start("/srv/node", run).unwrap_or_default();
        assert_eq!(
            command,
            "platform node --data-dir /srv/node --run-dir /run/other"
        );
        let command = start("/var/lib/platform/node", run).unwrap_or_default();
        assert_eq!(command, "platform node --run-dir /run/other");
    }
}
