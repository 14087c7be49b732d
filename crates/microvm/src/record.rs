//! `vm.json`: what an agent that starts again needs to find a VM.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use model::InstanceId;
use serde::{Deserialize, Serialize};

use crate::process::Identity;
use crate::{AdoptError, Driver};

/// The one version that is read and written.
const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    version: u32,
    /// The boot of the machine that the processes belong to.
    pub(crate) boot_id: String,
    pub(crate) instance: InstanceId,
    pub(crate) driver: Driver,
    /// Their cgroup, where they have one.
    pub(crate) cgroup: Option<PathBuf>,
    /// Both are written while the process still waits before its exec.
    pub(crate) vsock_device: Option<Identity>,
    /// Absent: the boot did not come that far.
    pub(crate) vmm: Option<Identity>,
}

pub(crate) fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("vm.json")
}

/// The record while it is written: there still where an agent was killed at that.
pub(crate) fn unfinished(run_dir: &Path) -> PathBuf {
    run_dir.join("vm.json.new")
}

impl Record {
    pub(crate) fn new(
        boot_id: String,
        instance: InstanceId,
        driver: Driver,
        cgroup: Option<PathBuf>,
    ) -> Self {
        Self {
            version: VERSION,
            boot_id,
            instance,
            driver,
            cgroup,
            vsock_device: None,
            vmm: None,
        }
    }

    /// Replaces the record by rename. It need not survive the machine, as the processes do not.
    pub(crate) fn write(&self, run_dir: &Path) -> io::Result<()> {
        let temporary = unfinished(run_dir);
        fs::write(&temporary, serde_json::to_vec_pretty(self)?)?;
        fs::rename(temporary, path(run_dir))
    }

    pub(crate) fn read(run_dir: &Path) -> Result<Option<Self>, AdoptError> {
        let path = path(run_dir);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(AdoptError::File {
                    operation: "read",
                    path,
                    source,
                });
            }
        };
        let record: Self = serde_json::from_slice(&text).map_err(|error| AdoptError::Record {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        if record.version != VERSION {
            return Err(AdoptError::Record {
                path,
                reason: format!("its version is {}, ours {VERSION}", record.version),
            });
        }
        Ok(Some(record))
    }
}
