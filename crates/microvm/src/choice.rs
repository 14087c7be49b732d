//! Chooses the driver of this node: facts first, then a pure choice with its reason.

use api::node::DriverChoice;
use blocking_work::blocking;
use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::programs::{self, FirecrackerPrograms, ProgramsError};
use crate::{DriverKind, GuestKernel, Machine};

/// What is known about `/dev/kvm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmFact {
    /// It is there and the user a VMM runs as may open it.
    Usable,
    /// It is there, and only root may open it. Firecracker's jailer makes its own.
    RootOnly,
    /// There is none.
    Absent,
    /// It is there and cannot be used; why.
    Unusable(String),
}

/// Facts about this machine, as [`probe`] found them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Firecracker's version line, where it is installed; or what of it is missing.
    pub firecracker: Result<String, String>,
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
    pub driver: DriverKind,
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

/// No VMM is installed that can run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no VMM can run here: {0}, and QEMU is not installed; hint: apt-get install qemu-system-x86"
)]
pub struct NoDriver(String);

/// Chooses the driver: Firecracker where it is installed, the processor virtualizes, and the kernel
/// is the platform's own; else QEMU with KVM where the processor virtualizes and `/dev/kvm` can be
/// used; else QEMU with TCG. The reason says what decided, and which kernel guests boot.
///
/// # Errors
/// Firecracker cannot be used, and QEMU is not installed.
pub fn choose_driver(probe: &Probe, kernel: &GuestKernel) -> Result<Choice, NoDriver> {
    let boots = match kernel.machine {
        Machine::Microvm => "guests boot the platform's kernel",
        Machine::Pc => "guests boot Debian's kernel",
    };
    let no_firecracker = match firecracker(probe, kernel.machine) {
        Ok(version) => {
            return Ok(Choice {
                driver: DriverKind::Firecracker,
                reason: format!("the processor virtualizes; {version} under its jailer; {boots}"),
            });
        }
        Err(why) => why,
    };
    let Some(qemu) = &probe.qemu else {
        return Err(NoDriver(no_firecracker));
    };
    Ok(match no_kvm(probe) {
        None => Choice {
            driver: DriverKind::QemuKvm,
            reason: format!(
                "the processor virtualizes and /dev/kvm is usable; {no_firecracker}; {qemu}; {boots}"
            ),
        },
        Some(because) => Choice {
            driver: DriverKind::QemuTcg,
            reason: format!("{because}; {qemu}; {boots}"),
        },
    })
}

/// Firecracker's version, or why it is not used.
fn firecracker(probe: &Probe, machine: Machine) -> Result<&str, String> {
    let version = probe.firecracker.as_ref().map_err(Clone::clone)?;
    match (&probe.kvm, probe.hardware_virtualization, machine) {
        (KvmFact::Usable | KvmFact::RootOnly, true, Machine::Microvm) => Ok(version),
        (KvmFact::Usable | KvmFact::RootOnly, true, Machine::Pc) => Err(format!(
            "{version} needs the platform's own kernel (make kernel)"
        )),
        _ => Err(format!("{version} needs hardware KVM")),
    }
}

/// Why QEMU cannot use KVM, if it cannot.
fn no_kvm(probe: &Probe) -> Option<String> {
    match (&probe.kvm, probe.hardware_virtualization) {
        (KvmFact::Usable, true) => None,
        (KvmFact::Usable | KvmFact::RootOnly, false) => {
            Some("/dev/kvm is there, but the processor has neither vmx nor svm".to_owned())
        }
        (KvmFact::RootOnly, true) => Some(
            "only root may open /dev/kvm (hint: chgrp kvm /dev/kvm; chmod g+rw /dev/kvm)"
                .to_owned(),
        ),
        (KvmFact::Absent, _) => Some("there is no /dev/kvm".to_owned()),
        (KvmFact::Unusable(why), true) => Some(format!("/dev/kvm cannot be used: {why}")),
        (KvmFact::Unusable(_), false) => Some("the processor has neither vmx nor svm".to_owned()),
    }
}

/// Looks at this machine.
pub async fn probe() -> Probe {
    let cpuinfo = tokio::fs::read_to_string("/proc/cpuinfo")
        .await
        .unwrap_or_default();
    Probe {
        firecracker: firecracker_version().await,
        qemu: qemu_version().await,
        hardware_virtualization: virtualizes(&cpuinfo),
        kvm: blocking(kvm_fact).await,
    }
}

fn virtualizes(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_whitespace().any(|f| f == "vmx" || f == "svm"))
}

async fn qemu_version() -> Option<String> {
    let program = blocking(|| programs::find(programs::QEMU)).await?;
    let version = version_word(&program, 3).await?;
    Some(format!("QEMU {version}"))
}

async fn firecracker_version() -> Result<String, String> {
    let programs = blocking(FirecrackerPrograms::find)
        .await
        .map_err(|error| match error {
            ProgramsError::Missing { program, .. } => format!("{program} is not installed"),
            other @ ProgramsError::NotExecutable { .. } => other.to_string(),
        })?;
    if !rustix::process::geteuid().is_root() {
        return Err("Firecracker's jailer needs root".to_owned());
    }
    version_word(&programs.firecracker, 1)
        .await
        .map(|version| format!("Firecracker {version}"))
        .ok_or_else(|| format!("{} does not run", programs.firecracker.display()))
}

/// The word of this index in the first line of a program's `--version`.
async fn version_word(program: &std::path::Path, index: usize) -> Option<String> {
    let output = tokio::process::Command::new(program)
        .arg("--version")
        .output()
        .await
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next()?;
    Some(line.split_whitespace().nth(index)?.to_owned())
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
        return KvmFact::RootOnly;
    }
    KvmFact::Usable
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use std::path::Path;

    fn facts() -> Probe {
        Probe {
            firecracker: Err("firecracker is not installed".to_owned()),
            qemu: Some("QEMU 7.2.22".to_owned()),
            hardware_virtualization: true,
            kvm: KvmFact::Usable,
        }
    }

    fn with_firecracker() -> Probe {
        Probe {
            firecracker: Ok("Firecracker v1.16.1".to_owned()),
            ..facts()
        }
    }

    #[allow(clippy::needless_pass_by_value, reason = "expect! makes a value")]
    fn check(probe: Probe, kernel: fn(&Path) -> GuestKernel, expected: Expect) {
        let told = match choose_driver(&probe, &kernel(Path::new("/guest"))) {
            Ok(choice) => format!("{}: {}", choice.driver.name(), choice.reason),
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&told);
    }

    #[test]
    fn firecracker_with_hardware_kvm_comes_first() {
        check(
            with_firecracker(),
            GuestKernel::platform,
            expect![
                "firecracker: the processor virtualizes; Firecracker v1.16.1 under its jailer; guests boot the platform's kernel"
            ],
        );
        check(
            Probe {
                kvm: KvmFact::RootOnly,
                qemu: None,
                ..with_firecracker()
            },
            GuestKernel::platform,
            expect![
                "firecracker: the processor virtualizes; Firecracker v1.16.1 under its jailer; guests boot the platform's kernel"
            ],
        );
    }

    #[test]
    fn qemu_with_hardware_kvm_comes_second() {
        check(
            facts(),
            GuestKernel::platform,
            expect![
                "qemu-kvm: the processor virtualizes and /dev/kvm is usable; firecracker is not installed; QEMU 7.2.22; guests boot the platform's kernel"
            ],
        );
        check(
            with_firecracker(),
            GuestKernel::debian,
            expect![
                "qemu-kvm: the processor virtualizes and /dev/kvm is usable; Firecracker v1.16.1 needs the platform's own kernel (make kernel); QEMU 7.2.22; guests boot Debian's kernel"
            ],
        );
    }

    #[test]
    fn software_kvm_is_not_used() {
        check(
            Probe {
                hardware_virtualization: false,
                ..with_firecracker()
            },
            GuestKernel::platform,
            expect![
                "qemu-tcg: /dev/kvm is there, but the processor has neither vmx nor svm; QEMU 7.2.22; guests boot the platform's kernel"
            ],
        );
    }

    #[test]
    fn qemu_with_tcg_is_used_without_kvm_or_rights_to_it() {
        check(
            Probe {
                kvm: KvmFact::Absent,
                ..facts()
            },
            GuestKernel::debian,
            expect!["qemu-tcg: there is no /dev/kvm; QEMU 7.2.22; guests boot Debian's kernel"],
        );
        check(
            Probe {
                kvm: KvmFact::Unusable("Permission denied".to_owned()),
                ..facts()
            },
            GuestKernel::debian,
            expect![
                "qemu-tcg: /dev/kvm cannot be used: Permission denied; QEMU 7.2.22; guests boot Debian's kernel"
            ],
        );
        check(
            Probe {
                kvm: KvmFact::RootOnly,
                ..facts()
            },
            GuestKernel::debian,
            expect![
                "qemu-tcg: only root may open /dev/kvm (hint: chgrp kvm /dev/kvm; chmod g+rw /dev/kvm); QEMU 7.2.22; guests boot Debian's kernel"
            ],
        );
    }

    #[test]
    fn a_machine_without_a_vmm_is_told_what_to_install() {
        check(
            Probe {
                qemu: None,
                ..facts()
            },
            GuestKernel::platform,
            expect![
                "no VMM can run here: firecracker is not installed, and QEMU is not installed; hint: apt-get install qemu-system-x86"
            ],
        );
    }

    #[test]
    fn processor_flags_are_compared_as_words() {
        assert!(virtualizes("flags\t\t: fpu svm\n"));
        assert!(!virtualizes("flags\t\t: fpu svme\nvmx flags: x\n"));
    }
}
