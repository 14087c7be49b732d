//! How much a node may say: of each field, and in all. A node's agent keeps to it, and the server holds every report to it, so that a node
//! that says more hurts nobody but itself.
//!
//! Texts are cut. What is too many is left out. Numbers that no machine has are not believed: what was known before holds.

use super::{DriverChoice, EgressState, InstanceReport, MAX_LOG_TAIL, ReportDelta};
use crate::enrollment::Hardware;

/// Instances in one report, and instances of one node that the server does not know.
pub const MAX_REPORTED_INSTANCES: usize = 4096;
/// Volumes in one report, and volumes of one node that the server does not know.
pub const MAX_REPORTED_VOLUMES: usize = 4096;
/// Root disks in [`NodeReport::images`](super::NodeReport::images), and those that the server keeps of a node.
pub const MAX_REPORTED_IMAGES: usize = 500;
/// Longest name of a driver or an architecture, in bytes.
const MAX_NAME_BYTES: usize = 64;
/// Longest reason, detail or line of a log in a report, in bytes.
pub const MAX_TEXT_BYTES: usize = 2048;
/// Longest description of a failure, in bytes: with a chain of causes.
pub const MAX_FAILURE_BYTES: usize = 8192;
/// Largest number of processors of a machine.
pub const MAX_MACHINE_CPUS: u32 = 65_536;
/// Largest amount of memory or disk of a machine, in bytes: 1 EiB.
pub const MAX_MACHINE_BYTES: u64 = 1 << 60;
/// Largest other number: what JSON readers that use floats keep whole.
const MAX_NUMBER: u64 = 1 << 53;

/// What of a report was over its bound.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exceeded {
    /// The field, as `instances[1f].failure`.
    pub field: String,
    /// How it is over the bound, and what was done about it; for people.
    pub what: String,
}

impl std::fmt::Display for Exceeded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.field, self.what)
    }
}

/// What was found so far.
struct Bounds(Vec<Exceeded>);

impl Bounds {
    fn add(&mut self, field: String, what: String) {
        self.0.push(Exceeded { field, what });
    }

    fn text(&mut self, field: impl Fn() -> String, text: &mut String, most: usize) {
        let length = text.len();
        if length <= most {
            return;
        }
        let mut end = most;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        self.add(
            field(),
            format!("has {length} bytes and was cut: it may have {most}"),
        );
    }

    fn count<T>(&mut self, field: &str, items: &mut Vec<T>, most: usize) {
        let count = items.len();
        if count > most {
            items.truncate(most);
            self.add(
                field.to_owned(),
                format!("are {count}, of which {most} are taken"),
            );
        }
    }

    /// Whether a number is believed.
    fn number(&mut self, field: &str, number: u64, most: u64) -> bool {
        let is_believed = number <= most;
        if !is_believed {
            self.add(
                field.to_owned(),
                format!("is {number}, which is not believed: it is {most} at most"),
            );
        }
        is_believed
    }

    fn driver(&mut self, driver: &mut DriverChoice) {
        self.text(
            || "driver.name".to_owned(),
            &mut driver.name,
            MAX_NAME_BYTES,
        );
        let reason = || "driver.reason".to_owned();
        self.text(reason, &mut driver.reason, MAX_TEXT_BYTES);
    }

    fn egress(&mut self, egress: &mut EgressState) {
        let reason = || "egress.reason".to_owned();
        self.text(reason, &mut egress.reason, MAX_TEXT_BYTES);
    }

    /// Whether the hardware is believed.
    fn hardware(&mut self, hardware: &mut Hardware) -> bool {
        let arch = || "hardware.arch".to_owned();
        self.text(arch, &mut hardware.arch, MAX_NAME_BYTES);
        let disk = hardware.disk.unwrap_or_default();
        let overhead = hardware.overhead.unwrap_or_default();
        let numbers = [
            (
                "cpus",
                u64::from(hardware.cpus),
                u64::from(MAX_MACHINE_CPUS),
            ),
            ("memory_bytes", hardware.memory_bytes, MAX_MACHINE_BYTES),
            ("disk.total_bytes", disk.total_bytes, MAX_MACHINE_BYTES),
            (
                "disk.reserved_bytes",
                disk.reserved_bytes,
                MAX_MACHINE_BYTES,
            ),
            ("disk.images_bytes", disk.images_bytes, MAX_MACHINE_BYTES),
            ("disk.others_bytes", disk.others_bytes, MAX_MACHINE_BYTES),
            (
                "overhead.memory_bytes",
                overhead.memory_bytes,
                MAX_MACHINE_BYTES,
            ),
            (
                "overhead.disk_bytes",
                overhead.disk_bytes,
                MAX_MACHINE_BYTES,
            ),
        ];
        let mut is_believed = true;
        for (field, number, most) in numbers {
            is_believed &= self.number(&format!("hardware.{field}"), number, most);
        }
        is_believed
    }

    fn instance(&mut self, report: &mut InstanceReport) {
        let id = report.id;
        let field = |name: &'static str| move || format!("instances[{id}].{name}");
        self.text(field("detail"), &mut report.detail, MAX_TEXT_BYTES);
        if let Some(failure) = &mut report.failure {
            self.text(field("failure"), failure, MAX_FAILURE_BYTES);
        }
        if let Some(failure) = &mut report.liveness_failure {
            self.text(field("liveness_failure"), failure, MAX_TEXT_BYTES);
        }
        let lines = field("log_tail")();
        self.count(&lines, &mut report.log_tail, MAX_LOG_TAIL);
        for line in &mut report.log_tail {
            self.text(field("log_tail"), line, MAX_TEXT_BYTES);
        }
        if let Some(holds) = &report.holds {
            let (cpu, memory, disk) = (
                field("holds.cpu_millis")(),
                field("holds.memory_bytes")(),
                field("holds.disk_bytes")(),
            );
            let is_believed =
                self.number(&cpu, holds.cpu_millis, u64::from(MAX_MACHINE_CPUS) * 1000)
                    & self.number(&memory, holds.memory_bytes, MAX_MACHINE_BYTES)
                    & self.number(&disk, holds.disk_bytes, MAX_MACHINE_BYTES);
            if !is_believed {
                report.holds = None;
            }
        }
        let preparing = field("preparing_ms")();
        if !self.number(&preparing, report.preparing_ms, MAX_NUMBER) {
            report.preparing_ms = MAX_NUMBER;
        }
    }
}

impl ReportDelta {
    /// Brings the report within its bounds. Gives what was over them.
    pub fn bound(&mut self) -> Vec<Exceeded> {
        let mut bounds = Bounds(Vec::new());
        if let Some(driver) = &mut self.driver {
            bounds.driver(driver);
        }
        if let Some(egress) = &mut self.egress {
            bounds.egress(egress);
        }
        if let Some(hardware) = &mut self.hardware
            && !bounds.hardware(hardware)
        {
            self.hardware = None;
        }
        bounds.count("instances", &mut self.instances, MAX_REPORTED_INSTANCES);
        for report in &mut self.instances {
            bounds.instance(report);
        }
        let gone = &mut self.gone_instances;
        bounds.count("gone_instances", gone, MAX_REPORTED_INSTANCES);
        bounds.count("volumes", &mut self.volumes, MAX_REPORTED_VOLUMES);
        let gone = &mut self.gone_volumes;
        bounds.count("gone_volumes", gone, MAX_REPORTED_VOLUMES);
        bounds.count("images", &mut self.images, MAX_REPORTED_IMAGES);
        let is_named = |name: &String| name.len() <= MAX_TEXT_BYTES;
        self.images.retain(|cached| {
            let fits = is_named(&cached.image.registry) && is_named(&cached.image.repository);
            if !fits {
                let field = format!("images[{}]", cached.image.digest);
                bounds.add(
                    field,
                    format!("has a name of over {MAX_TEXT_BYTES} bytes and is left out"),
                );
            }
            fits
        });
        bounds.count("gone_images", &mut self.gone_images, MAX_REPORTED_IMAGES);
        bounds.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrollment::NodeDisk;
    use model::InstanceId;
    use model::instance::InstanceState;

    fn huge() -> ReportDelta {
        let long = "\u{e9}".repeat(MAX_FAILURE_BYTES);
        let instance = |id| InstanceReport {
            detail: if id == 0 { long.clone() } else { String::new() },
            failure: (id == 0).then(|| long.clone()),
            log_tail: vec![long.clone(); if id == 0 { 30 } else { 0 }],
            preparing_ms: u64::MAX,
            ..InstanceReport::new(InstanceId(id), InstanceState::Failed)
        };
        ReportDelta {
            driver: Some(DriverChoice {
                name: long.clone(),
                reason: long.clone(),
            }),
            egress: Some(EgressState {
                on: true,
                reason: long.clone(),
            }),
            hardware: Some(Hardware {
                arch: long.clone(),
                cpus: u32::MAX,
                memory_bytes: u64::MAX,
                disk: Some(NodeDisk {
                    total_bytes: u64::MAX,
                    ..NodeDisk::default()
                }),
                overhead: None,
            }),
            instances: (0..5000).map(instance).collect(),
            gone_instances: (0..9000).map(InstanceId).collect(),
            volumes: (0..9000).map(model::VolumeId).collect(),
            ..ReportDelta::default()
        }
    }

    #[test]
    fn a_report_within_its_bounds_stays_as_it_is() {
        let mut report = ReportDelta {
            hardware: Some(Hardware {
                cpus: 4,
                memory_bytes: 8 << 30,
                ..Hardware::default()
            }),
            instances: vec![InstanceReport {
                detail: "fetching 3 of 5 layers".to_owned(),
                ..InstanceReport::new(InstanceId(1), InstanceState::Preparing)
            }],
            ..ReportDelta::default()
        };
        let before = report.clone();
        assert_eq!(report.bound(), []);
        assert_eq!(report, before);
    }

    #[test]
    fn what_is_over_a_bound_is_cut_and_named() {
        let mut report = huge();
        let exceeded = report.bound();
        assert_eq!(report.instances.len(), MAX_REPORTED_INSTANCES);
        assert_eq!(report.volumes.len(), MAX_REPORTED_VOLUMES);
        assert_eq!(report.hardware, None);
        let first = &report.instances[0];
        assert!(first.detail.len() <= MAX_TEXT_BYTES);
        assert!((first.failure.as_ref()).is_some_and(|f| f.len() <= MAX_FAILURE_BYTES));
        assert_eq!(first.log_tail.len(), MAX_LOG_TAIL);
        for field in [
            "driver.name",
            "driver.reason",
            "egress.reason",
            "hardware.memory_bytes",
            "hardware.disk.total_bytes",
            "hardware.cpus",
            "instances",
            "instances[00000000].failure",
            "instances[00000000].preparing_ms",
            "gone_instances",
            "volumes",
        ] {
            assert!(exceeded.iter().any(|e| e.field == field), "{field}");
        }
        assert_eq!(report.bound(), [], "it is within the bounds now");
    }
}
