//! Which VMM runs the guests of this node: facts first, then a pure choice with its reason.

use std::path::PathBuf;

use contract::api::DriverChoice;
use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::programs;

/// How guests are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// QEMU on the processor's own virtualization.
    QemuKvm,
    /// QEMU translating the guest's instructions: slower, needs nothing of the machine.
    QemuTcg,
}

impl Driver {
    /// The name in reports: `qemu-kvm`, `qemu-tcg`.
    pub fn name(self) -> &'static str {
        match self {
            Self::QemuKvm => "qemu-kvm",
            Self::QemuTcg => "qemu-tcg",
        }
    }
}

/// What is known about `/dev/kvm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmFact {
    /// It is there and the user a VMM runs as may open it.
    Usable,
    /// There is none.
    Absent,
    /// It is there and cannot be used; why.
    Unusable(String),
}

/// Facts about this machine, as [`probe`] found them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Firecracker's binary, where there is one.
    pub firecracker: Option<PathBuf>,
    /// QEMU's version line, where it is installed.
    pub qemu: Option<String>,
    /// Whether the processor says it can run guests (`vmx` or `svm`). A `/dev/kvm` without it is a
    /// software KVM, which opens and then does not run ordinary guests.
    pub hardware_virtualization: bool,
    /// `/dev/kvm`.
    pub kvm: KvmFact,
}

/// The driver of this node, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The driver.
    pub driver: Driver,
    /// Why this one, for people.
    pub reason: String,
}

impl From<Choice> for DriverChoice {
    fn from(choice: Choice) -> Self {
        Self {
            name: choice.driver.name().to_owned(),
            reason: choice.reason,
        }
    }
}

/// No VMM is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no VMM is installed; hint: apt-get install qemu-system-x86")]
pub struct NoDriver;

/// Chooses the driver: QEMU with KVM where the processor virtualizes and `/dev/kvm` can be used,
/// else QEMU with TCG.
///
/// # Errors
/// QEMU is not installed.
pub fn choose_driver(probe: &Probe) -> Result<Choice, NoDriver> {
    let qemu = probe.qemu.as_deref().ok_or(NoDriver)?;
    let because = match (&probe.kvm, probe.hardware_virtualization) {
        (KvmFact::Usable, true) => None,
        (KvmFact::Usable, false) => {
            Some("/dev/kvm opens, but the processor has neither vmx nor svm".to_owned())
        }
        (KvmFact::Absent, _) => Some("there is no /dev/kvm".to_owned()),
        (KvmFact::Unusable(why), true) => Some(format!("/dev/kvm cannot be used: {why}")),
        (KvmFact::Unusable(_), false) => Some("the processor has neither vmx nor svm".to_owned()),
    };
    let firecracker = match &probe.firecracker {
        Some(path) if because.is_none() => format!(
            "; {} is installed, but this version does not drive it",
            path.display()
        ),
        _ => String::new(),
    };
    Ok(match because {
        None => Choice {
            driver: Driver::QemuKvm,
            reason: format!(
                "the processor virtualizes and /dev/kvm is usable; {qemu}{firecracker}"
            ),
        },
        Some(because) => Choice {
            driver: Driver::QemuTcg,
            reason: format!("{because}; {qemu}"),
        },
    })
}

/// Looks at this machine.
pub async fn probe() -> Probe {
    let cpuinfo = tokio::fs::read_to_string("/proc/cpuinfo")
        .await
        .unwrap_or_default();
    Probe {
        firecracker: programs::find("firecracker"),
        qemu: qemu_version().await,
        hardware_virtualization: virtualizes(&cpuinfo),
        kvm: kvm_fact(),
    }
}

fn virtualizes(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_whitespace().any(|f| f == "vmx" || f == "svm"))
}

async fn qemu_version() -> Option<String> {
    let output = tokio::process::Command::new(programs::find(programs::QEMU)?)
        .arg("--version")
        .output()
        .await
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().next()?.split_whitespace().nth(3)?.to_owned();
    Some(format!("QEMU {version}"))
}

fn kvm_fact() -> KvmFact {
    use std::os::unix::fs::MetadataExt as _;
    let path = "/dev/kvm";
    let Ok(metadata) = std::fs::metadata(path) else {
        return KvmFact::Absent;
    };
    if let Err(errno) = accessat(
        CWD,
        path,
        Access::READ_OK | Access::WRITE_OK,
        AtFlags::EACCESS,
    ) {
        return KvmFact::Unusable(errno.to_string());
    }
    // A root agent gives its VMMs users of their own, who get the device's group and no more.
    let by_group = metadata.mode() & 0o060 == 0o060 && metadata.gid() != 0;
    let by_everyone = metadata.mode() & 0o006 == 0o006;
    if rustix::process::geteuid().is_root() && !by_group && !by_everyone {
        return KvmFact::Unusable(
            "only root may open it; hint: chgrp kvm /dev/kvm; chmod g+rw /dev/kvm".to_owned(),
        );
    }
    KvmFact::Usable
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(kvm: KvmFact, hardware: bool, firecracker: bool, expected: &Expect) {
        let probe = Probe {
            firecracker: firecracker.then(|| PathBuf::from("/usr/bin/firecracker")),
            qemu: Some("QEMU 7.2.22".to_owned()),
            hardware_virtualization: hardware,
            kvm,
        };
        let told = match choose_driver(&probe) {
            Ok(choice) => format!("{}: {}", choice.driver.name(), choice.reason),
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&told);
    }

    #[test]
    fn hardware_kvm_is_used() {
        check(
            KvmFact::Usable,
            true,
            false,
            &expect!["qemu-kvm: the processor virtualizes and /dev/kvm is usable; QEMU 7.2.22"],
        );
        check(
            KvmFact::Usable,
            true,
            true,
            &expect![
                "qemu-kvm: the processor virtualizes and /dev/kvm is usable; QEMU 7.2.22; /usr/bin/firecracker is installed, but this version does not drive it"
            ],
        );
    }

    #[test]
    fn software_kvm_is_not() {
        check(
            KvmFact::Usable,
            false,
            true,
            &expect![
                "qemu-tcg: /dev/kvm opens, but the processor has neither vmx nor svm; QEMU 7.2.22"
            ],
        );
    }

    #[test]
    fn no_kvm_or_no_rights() {
        check(
            KvmFact::Absent,
            false,
            false,
            &expect!["qemu-tcg: there is no /dev/kvm; QEMU 7.2.22"],
        );
        check(
            KvmFact::Unusable("Permission denied".to_owned()),
            true,
            false,
            &expect!["qemu-tcg: /dev/kvm cannot be used: Permission denied; QEMU 7.2.22"],
        );
    }

    #[test]
    fn flags_are_words() {
        assert!(virtualizes("flags\t\t: fpu svm\n"));
        assert!(!virtualizes("flags\t\t: fpu svme\nvmx flags: x\n"));
    }
}
