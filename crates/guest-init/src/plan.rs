//! The boot plan: from a [`BootConfig`] to the list of steps, in order. Pure; `execute` performs the steps.
//!
//! The order is that of ADR 0003: disks, the overlay and the switch to it; the kernel's
//! file systems; names and network; the user, resolved by the image's files; the
//! files that belong to that user; the app. From the switch on, every path is a path of the app's root.
//!
//! `pivot_root` cannot leave the kernel's first root (`rootfs`), so the switch is its equivalent for
//! an initramfs: empty the old root, move the overlay over `/`, chroot. Nothing of the old root can
//! be reached or is left in memory.
//!
//! Absent on purpose: fsck (the kernel replays a volume's journal; a volume that does not mount
//! fails the boot with the kernel's reason), swap, and anything that depends on the image's
//! content: it may have no shell, no `/etc/passwd` and no directory at all.

use std::fmt;
use std::net::Ipv6Addr;

use guest_protocol::{BootConfig, GuestNetwork, ProxyPort, SECRETS_DIR, VOLUMES_DIR, VolumeMount};
use model::instance::SecretBundle;

/// Where the read-only root disk is mounted until the overlay holds it.
pub(crate) const LOWER: &str = "/lower";
/// Where the scratch disk is mounted until the overlay holds it.
pub(crate) const SCRATCH: &str = "/scratch";
/// Where the overlay is mounted before it becomes `/`.
pub(crate) const NEW_ROOT: &str = "/root";
/// The app's cgroup.
pub(crate) const APP_CGROUP: &str = "/sys/fs/cgroup/app";
/// The PROXY adapter's cgroup.
pub(crate) const ADAPTER_CGROUP: &str = "/sys/fs/cgroup/proxy";
/// The forwarder's cgroup.
pub(crate) const FORWARD_CGROUP: &str = "/sys/fs/cgroup/forward";
/// The one network interface, as the kernel names the first.
pub(crate) const INTERFACE: &str = "eth0";

/// How to mount, beside the file system's own options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everything allowed, as on any root.
    Plain,
    /// Read-only.
    ReadOnly,
    /// No device nodes.
    NoDevices,
    /// No set-user-id programs; devices allowed.
    NoSetuid,
    /// No set-user-id programs and no device nodes.
    Data,
    /// As [`Self::Data`], and no programs.
    NoPrograms,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// A description, for the step's name.
    pub(crate) what: String,
    /// Device, or the file system's name.
    pub(crate) source: String,
    /// Made when missing.
    pub(crate) target: String,
    /// File system type.
    pub(crate) filesystem: &'static str,
    /// Flags.
    pub(crate) access: Access,
    /// The file system's options.
    pub(crate) options: &'static str,
}

/// One step of the boot. Its [`Display`](fmt::Display) form is `name: detail`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Mount a disk once its device exists.
    MountDisk(Mount),
    /// Mount the overlay of [`SCRATCH`] over [`LOWER`].
    MountOverlay,
    /// Make the overlay `/` and remove the initramfs.
    SwitchRoot,
    /// Mount one of the kernel's file systems.
    Mount(Mount),
    /// Mount `/run` in memory, with a copy of the image's.
    MountRun,
    /// Links such as `/dev/stdout`.
    DeviceLinks,
    /// Devices whose driver may not be loaded yet, and modules on demand.
    Modules,
    /// One kernel setting.
    Setting {
        /// File below `/proc/sys`.
        name: &'static str,
        /// The value to write.
        value: &'static str,
    },
    /// Set the guest's name, in the kernel and in `/etc`.
    Hostname(String),
    /// Add the missing lines to `/etc/hosts`.
    Hosts(GuestNetwork, String),
    /// Write the name servers to `/etc/resolv.conf`.
    Resolvers(GuestNetwork),
    /// Configure loopback and the one interface.
    Network(GuestNetwork),
    /// Resolve the user by the image's files.
    ResolveUser(String),
    /// Write the secrets to a tmpfs, readable by the user only.
    Secrets(Vec<SecretBundle>),
    /// Mount a volume and give it to the user.
    MountVolume(VolumeMount, Mount),
    /// Make a directory that the image's config names.
    Directory {
        /// A description, for the step's name.
        what: &'static str,
        /// Made with its parents when missing.
        path: String,
    },
    /// Make the app's cgroup, with the memory controller.
    Cgroup,
    /// Have connections forwarded to where the app listens, if it does not on the instance's address: these ports on
    /// loopback too.
    Forward(Ipv6Addr, Vec<u16>),
    /// Start the PROXY adapter on the instance's address.
    StartAdapter(Ipv6Addr, Vec<ProxyPort>),
    /// Start the app.
    StartApp,
}

impl Step {
    /// The name of the step, for a boot failure.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::MountDisk(mount) | Self::Mount(mount) | Self::MountVolume(_, mount) => {
                format!("mount {}", mount.what)
            }
            Self::MountOverlay => "mount the overlay".to_owned(),
            Self::SwitchRoot => "switch to the overlay".to_owned(),
            Self::MountRun => "mount /run".to_owned(),
            Self::DeviceLinks => "make device links".to_owned(),
            Self::Modules => "offer kernel modules".to_owned(),
            Self::Setting { name, .. } => format!("set {name}"),
            Self::Hostname(_) => "set the hostname".to_owned(),
            Self::Hosts(..) => "write /etc/hosts".to_owned(),
            Self::Resolvers(_) => "write /etc/resolv.conf".to_owned(),
            Self::Network(_) => "set up the network".to_owned(),
            Self::ResolveUser(_) => "find the user".to_owned(),
            Self::Secrets(_) => "write the secrets".to_owned(),
            Self::Directory { what, .. } => format!("make the {what}"),
            Self::Cgroup => "make the app's cgroup".to_owned(),
            Self::Forward(..) => "prepare the forwarder".to_owned(),
            Self::StartAdapter(..) => "start the PROXY adapter".to_owned(),
            Self::StartApp => "start the app".to_owned(),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name())?;
        match self {
            Self::MountDisk(mount) | Self::Mount(mount) | Self::MountVolume(_, mount) => write!(
                f,
                "{} on {}, {} {:?} {}",
                mount.source, mount.target, mount.filesystem, mount.access, mount.options
            ),
            Self::MountOverlay => write!(f, "{SCRATCH} over {LOWER} on {NEW_ROOT}"),
            Self::SwitchRoot => write!(f, "{NEW_ROOT} becomes /"),
            Self::MountRun | Self::DeviceLinks | Self::Modules | Self::StartApp => Ok(()),
            Self::Setting { value, .. } => f.write_str(value),
            Self::Hostname(name) => f.write_str(name),
            Self::Hosts(network, name) => {
                write!(f, "{name} is {} and {}", network.address, network.ipv4)
            }
            Self::Resolvers(network) => write!(f, "{:?}", network.resolvers),
            Self::Network(network) => write!(
                f,
                "{INTERFACE} {}/128 {}/32 via {} mtu {}",
                network.address, network.ipv4, network.gateway, network.mtu
            ),
            Self::ResolveUser(user) => write!(f, "{user:?}"),
            Self::Secrets(bundles) => {
                let names: Vec<_> = bundles
                    .iter()
                    .map(|bundle| format!("{SECRETS_DIR}/{}", bundle.name))
                    .collect();
                f.write_str(&names.join(" "))
            }
            Self::Directory { path, .. } => f.write_str(path),
            Self::Cgroup => f.write_str(APP_CGROUP),
            Self::Forward(address, ports) => write!(f, "{address}, loopback of {ports:?}"),
            Self::StartAdapter(address, ports) => ports.iter().try_for_each(|port| {
                write!(
                    f,
                    "[{address}]:{} to {} by {:?} for {} & {} ",
                    port.ingress, port.port, port.mode, port.peers, port.peers_mask
                )
            }),
        }
    }
}

/// The steps that turn a guest with this config into a running app, in order.
pub(crate) fn boot_plan(config: &BootConfig) -> Vec<Step> {
    let disk = |what: &str, source: &str, target: &str, access, options| {
        Step::MountDisk(Mount {
            what: what.to_owned(),
            source: source.to_owned(),
            target: target.to_owned(),
            filesystem: "ext4",
            access,
            options,
        })
    };
    let kernel = |target: &str, filesystem: &'static str, access, options| {
        Step::Mount(Mount {
            what: target.to_owned(),
            source: filesystem.to_owned(),
            target: target.to_owned(),
            filesystem,
            access,
            options,
        })
    };
    let mut steps = vec![
        disk(
            "root disk",
            &config.root_device,
            LOWER,
            Access::ReadOnly,
            "",
        ),
        // The scratch disk does not outlive its VM, so fsync need not wait for the host's disk.
        disk(
            "scratch disk",
            &config.scratch_device,
            SCRATCH,
            Access::Plain,
            "barrier=0",
        ),
        Step::MountOverlay,
        Step::SwitchRoot,
        kernel("/proc", "proc", Access::NoPrograms, ""),
        kernel("/sys", "sysfs", Access::NoPrograms, ""),
        kernel("/dev", "devtmpfs", Access::NoSetuid, ""),
        kernel(
            "/dev/pts",
            "devpts",
            Access::NoSetuid,
            "gid=5,mode=620,ptmxmode=666",
        ),
        kernel("/dev/shm", "tmpfs", Access::Data, "mode=1777"),
        kernel("/dev/mqueue", "mqueue", Access::NoPrograms, ""),
        Step::DeviceLinks,
        Step::Modules,
        Step::MountRun,
        kernel("/sys/fs/cgroup", "cgroup2", Access::NoPrograms, ""),
        // Users other than root may listen on port 80 and send pings: the VM is the boundary.
        Step::Setting {
            name: "net/ipv4/ip_unprivileged_port_start",
            value: "0",
        },
        Step::Setting {
            name: "net/ipv4/ping_group_range",
            value: "0 2147483647",
        },
        // What Elasticsearch and Redis ask the machine for, which only root may set. The VM's memory is the bound.
        Step::Setting {
            name: "vm/max_map_count",
            value: "262144",
        },
        Step::Setting {
            name: "vm/overcommit_memory",
            value: "1",
        },
        Step::Setting {
            name: "net/core/somaxconn",
            value: "4096",
        },
        Step::Hostname(config.hostname.clone()),
        Step::Hosts(config.network.clone(), config.hostname.clone()),
    ];
    if !config.network.resolvers.is_empty() {
        steps.push(Step::Resolvers(config.network.clone()));
    }
    steps.push(Step::Network(config.network.clone()));
    steps.push(Step::ResolveUser(config.user.clone()));
    if !config.secrets.is_empty() {
        steps.push(Step::Secrets(config.secrets.clone()));
    }
    for volume in &config.volumes {
        steps.push(Step::MountVolume(
            volume.clone(),
            Mount {
                what: format!("volume {}", volume.name),
                source: volume.device.clone(),
                target: format!("{VOLUMES_DIR}/{}", volume.name),
                filesystem: "ext4",
                access: Access::NoDevices,
                // Damage that the kernel finds must not spread.
                options: "errors=remount-ro",
            },
        ));
    }
    for path in &config.image_volumes {
        steps.push(Step::Directory {
            what: "image's volume",
            path: path.clone(),
        });
    }
    steps.push(Step::Directory {
        what: "working directory",
        path: config.working_dir.clone(),
    });
    steps.push(Step::Cgroup);
    steps.push(Step::Forward(config.network.address, config.ports.clone()));
    if !config.proxy.is_empty() {
        // The adapter dials the app for each of its connections: closed ones in TIME-WAIT must not use up its
        // ports.
        steps.push(Step::Setting {
            name: "net/ipv4/tcp_tw_reuse",
            value: "1",
        });
        steps.push(Step::StartAdapter(
            config.network.address,
            config.proxy.clone(),
        ));
    }
    steps.push(Step::StartApp);
    steps
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeMap;

    use expect_test::{Expect, expect};
    use guest_protocol::{BootConfig, GATEWAY, GuestNetwork, ProxyPort, VolumeMount};
    use model::instance::{Init, ProxyProtocol, SecretBundle};

    use super::{Step, boot_plan};

    fn minimal() -> BootConfig {
        BootConfig {
            hostname: "web-1".to_owned(),
            argv: vec!["/app".to_owned()],
            environment: Vec::new(),
            working_dir: "/".to_owned(),
            user: String::new(),
            stop_signal: "SIGTERM".to_owned(),
            init: Init::Platform,
            network: GuestNetwork {
                address: "fd00::1:0:2".parse().unwrap(),
                ipv4: "100.64.0.2".parse().unwrap(),
                gateway: GATEWAY,
                mtu: 1420,
                resolvers: Vec::new(),
                search: Vec::new(),
            },
            root_device: "/dev/vda".to_owned(),
            scratch_device: "/dev/vdb".to_owned(),
            volumes: Vec::new(),
            image_volumes: Vec::new(),
            secrets: Vec::new(),
            proxy: Vec::new(),
            ports: Vec::new(),
            attached: false,
            secret_modes: BTreeMap::new(),
        }
    }

    #[allow(clippy::needless_pass_by_value, reason = "expect! makes a value")]
    fn check(config: &BootConfig, expected: Expect) {
        let lines: Vec<_> = boot_plan(config)
            .iter()
            .map(|step| step.to_string().trim_end().to_owned())
            .collect();
        expected.assert_eq(&(lines.join("\n") + "\n"));
    }

    #[test]
    fn a_minimal_config_has_the_standard_steps() {
        check(
            &minimal(),
            expect![[r#"
            mount root disk: /dev/vda on /lower, ext4 ReadOnly
            mount scratch disk: /dev/vdb on /scratch, ext4 Plain barrier=0
            mount the overlay: /scratch over /lower on /root
            switch to the overlay: /root becomes /
            mount /proc: proc on /proc, proc NoPrograms
            mount /sys: sysfs on /sys, sysfs NoPrograms
            mount /dev: devtmpfs on /dev, devtmpfs NoSetuid
            mount /dev/pts: devpts on /dev/pts, devpts NoSetuid gid=5,mode=620,ptmxmode=666
            mount /dev/shm: tmpfs on /dev/shm, tmpfs Data mode=1777
            mount /dev/mqueue: mqueue on /dev/mqueue, mqueue NoPrograms
            make device links:
            offer kernel modules:
            mount /run:
            mount /sys/fs/cgroup: cgroup2 on /sys/fs/cgroup, cgroup2 NoPrograms
            set net/ipv4/ip_unprivileged_port_start: 0
            set net/ipv4/ping_group_range: 0 2147483647
            set vm/max_map_count: 262144
            set vm/overcommit_memory: 1
            set net/core/somaxconn: 4096
            set the hostname: web-1
            write /etc/hosts: web-1 is fd00::1:0:2 and 100.64.0.2
            set up the network: eth0 fd00::1:0:2/128 100.64.0.2/32 via fe80::1 mtu 1420
            find the user: ""
            make the working directory: /
            make the app's cgroup: /sys/fs/cgroup/app
            prepare the forwarder: fd00::1:0:2, loopback of []
            start the app:
        "#]],
        );
    }

    #[test]
    fn a_full_config_has_a_step_for_each_part() {
        let mut config = minimal();
        config.user = "shop:staff".to_owned();
        config.working_dir = "/srv/shop".to_owned();
        config.network.resolvers = vec!["fd00::53".parse().unwrap()];
        config.volumes = vec![
            VolumeMount {
                path: None,
                owner: None,
                device: "/dev/vdc".to_owned(),
                name: "data".to_owned(),
            },
            VolumeMount {
                path: None,
                owner: None,
                device: "/dev/vdd".to_owned(),
                name: "media".to_owned(),
            },
        ];
        config.image_volumes = vec!["/var/lib/shop".to_owned()];
        config.secrets = vec![SecretBundle {
            name: "database".to_owned(),
            files: BTreeMap::from([("password".to_owned(), b"hunter2".to_vec())]),
        }];
        config.ports = vec![8080];
        config.proxy = vec![ProxyPort {
            ingress: 61001,
            port: 8080,
            mode: ProxyProtocol::Strip,
            peers: "fd00::".parse().unwrap(),
            peers_mask: "ffff:ffff:ffff:0:ffff:ffff::".parse().unwrap(),
        }];
        check(
            &config,
            expect![[r#"
            mount root disk: /dev/vda on /lower, ext4 ReadOnly
            mount scratch disk: /dev/vdb on /scratch, ext4 Plain barrier=0
            mount the overlay: /scratch over /lower on /root
            switch to the overlay: /root becomes /
            mount /proc: proc on /proc, proc NoPrograms
            mount /sys: sysfs on /sys, sysfs NoPrograms
            mount /dev: devtmpfs on /dev, devtmpfs NoSetuid
            mount /dev/pts: devpts on /dev/pts, devpts NoSetuid gid=5,mode=620,ptmxmode=666
            mount /dev/shm: tmpfs on /dev/shm, tmpfs Data mode=1777
            mount /dev/mqueue: mqueue on /dev/mqueue, mqueue NoPrograms
            make device links:
            offer kernel modules:
            mount /run:
            mount /sys/fs/cgroup: cgroup2 on /sys/fs/cgroup, cgroup2 NoPrograms
            set net/ipv4/ip_unprivileged_port_start: 0
            set net/ipv4/ping_group_range: 0 2147483647
            set vm/max_map_count: 262144
            set vm/overcommit_memory: 1
            set net/core/somaxconn: 4096
            set the hostname: web-1
            write /etc/hosts: web-1 is fd00::1:0:2 and 100.64.0.2
            write /etc/resolv.conf: [fd00::53]
            set up the network: eth0 fd00::1:0:2/128 100.64.0.2/32 via fe80::1 mtu 1420
            find the user: "shop:staff"
            write the secrets: /run/secrets/database
            mount volume data: /dev/vdc on /mnt/volumes/data, ext4 NoDevices errors=remount-ro
            mount volume media: /dev/vdd on /mnt/volumes/media, ext4 NoDevices errors=remount-ro
            make the image's volume: /var/lib/shop
            make the working directory: /srv/shop
            make the app's cgroup: /sys/fs/cgroup/app
            prepare the forwarder: fd00::1:0:2, loopback of [8080]
            set net/ipv4/tcp_tw_reuse: 1
            start the PROXY adapter: [fd00::1:0:2]:61001 to 8080 by Strip for fd00:: & ffff:ffff:ffff:0:ffff:ffff::
            start the app:
        "#]],
        );
    }

    #[test]
    fn no_step_shows_a_secret() {
        let mut config = minimal();
        config.secrets = vec![SecretBundle {
            name: "database".to_owned(),
            files: BTreeMap::from([("password".to_owned(), b"hunter2".to_vec())]),
        }];
        let plan = boot_plan(&config);
        assert!(plan.iter().any(|step| matches!(step, Step::Secrets(_))));
        for step in plan {
            assert!(!format!("{step} {step:?}").contains("hunter2"));
            assert!(!format!("{step:?}").contains("104, 117"));
        }
    }
}
