//! `vm.json`: what an agent that starts again needs to find a VM.
//!
//! The file has a version and is read tolerantly, in the way of `state_file`. Each version has a fixture in
//! `tests/fixtures/vm-record`. It need not survive the machine, as its processes do not, so it is not synced.
//!
//! A record that is there and cannot be read is an error, and never means that there is no VM.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use model::InstanceId;
use process_handle::Identity;
use serde::{Deserialize, Serialize};
use state_file::StateFormat;

use crate::{AdoptError, DriverKind, run_dir};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The boot of the machine that the processes belong to.
    pub(crate) boot_id: String,
    pub(crate) instance: InstanceId,
    pub(crate) driver: DriverKind,
    /// Their cgroup, where they have one.
    pub(crate) cgroup: Option<PathBuf>,
    /// Written, as `vmm` is, while the process still waits before its exec.
    pub(crate) vsock_device: Option<Identity>,
    /// Absent: the boot did not come that far.
    pub(crate) vmm: Option<Identity>,
}

impl StateFormat for Record {
    /// The next version comes with an upgrade from this one ([`StateFormat::upgrade`]).
    const VERSION: u32 = 1;
}

impl Record {
    pub(crate) fn new(
        boot_id: String,
        instance: InstanceId,
        driver: DriverKind,
        cgroup: Option<PathBuf>,
    ) -> Self {
        Self {
            boot_id,
            instance,
            driver,
            cgroup,
            vsock_device: None,
            vmm: None,
        }
    }

    /// Replaces the record by rename.
    pub(crate) fn write(&self, run_dir: &Path) -> io::Result<()> {
        let temporary = run_dir::unfinished_record(run_dir);
        fs::write(
            &temporary,
            state_file::encode(self).map_err(io::Error::other)?,
        )?;
        fs::rename(temporary, run_dir::record(run_dir))
    }

    /// The record of a run directory; nothing when there is none.
    pub(crate) fn read(run_dir: &Path) -> Result<Option<Self>, AdoptError> {
        let path = run_dir::record(run_dir);
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
        match state_file::decode(&text) {
            Ok(record) => Ok(Some(record)),
            Err(source) => Err(AdoptError::Record { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    /// The record of each fixture, by the version in its name.
    fn fixtures() -> Vec<(u32, String)> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vm-record");
        let mut found: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
                let version = name.strip_prefix("version-").unwrap().parse().unwrap();
                (version, fs::read_to_string(path).unwrap())
            })
            .collect();
        found.sort();
        found
    }

    #[test]
    fn every_version_of_the_record_is_read() {
        for (_, text) in fixtures() {
            let record: Record = state_file::decode(text.as_bytes()).unwrap();
            assert_eq!(
                record,
                Record {
                    boot_id: "0f2c7e0a-7d3f-4a53-9d53-6c2b1b5f3a10".to_owned(),
                    instance: InstanceId(0xab),
                    driver: DriverKind::QemuTcg,
                    cgroup: Some("/sys/fs/cgroup/platform/vm-000000ab".into()),
                    vsock_device: Some(Identity {
                        pid: 4242,
                        start_time: 981_234,
                        exe: "/usr/local/bin/vhost-device-vsock".into(),
                    }),
                    vmm: Some(Identity {
                        pid: 4243,
                        start_time: 981_240,
                        exe: "/usr/bin/qemu-system-x86_64".into(),
                    }),
                }
            );
        }
    }

    #[test]
    fn vm_json_of_each_version_is_read_with_and_without_added_fields() {
        let fixtures = fixtures();
        let texts: Vec<&str> = fixtures.iter().map(|(_, text)| text.as_str()).collect();
        state_file::fixtures::check::<Record>(&texts);
    }

    #[test]
    fn fields_of_a_later_program_do_not_hide_a_vm() {
        let (_, newest) = fixtures().pop().unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&newest).unwrap();
        value["snapshot"] = "none".into();
        value["vmm"]["cgroup_id"] = 7.into();
        let text = value.to_string();
        let record: Record = state_file::decode(text.as_bytes()).unwrap();
        assert_eq!(record.vmm.unwrap().pid, 4243);
    }
}
