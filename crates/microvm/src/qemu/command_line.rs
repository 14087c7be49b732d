//! QEMU's command line. Pure: files and sockets are open already, and go by their numbers.

use std::ffi::OsString;

use model::InstanceId;

use crate::spec::{DISK_BYTES_PER_SECOND, DISK_OPERATIONS_PER_SECOND};
use crate::{DriverKind, Machine};

/// Memory for translated code under TCG, in MiB; QEMU's own default is 1 GiB. Small is enough: the
/// kernel and an app need some tens.
const TRANSLATION_BUFFER_MIB: u32 = 64;

/// What a command line follows from.
pub(crate) struct CommandLine {
    pub(crate) instance: InstanceId,
    pub(crate) driver: DriverKind,
    pub(crate) machine: Machine,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: i32,
    pub(crate) initramfs: i32,
    pub(crate) boot_arguments: String,
    /// Number and whether it is read-only.
    pub(crate) disks: Vec<(i32, bool)>,
    /// Number of the tap, and the MAC address.
    pub(crate) nic: Option<(i32, [u8; 6])>,
    /// Connected to the vsock device.
    pub(crate) vsock: i32,
    /// Listens for the monitor's clients.
    pub(crate) monitor: i32,
    /// The console's FIFO.
    pub(crate) console: i32,
}

/// Sets of file descriptors that QEMU opens as `/dev/fdset/<n>`: the console, then the disks.
const CONSOLE_SET: usize = 1;
const FIRST_DISK_SET: usize = 2;

impl CommandLine {
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut words: Vec<String> = Vec::new();
        let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
        let accelerator = match self.driver {
            DriverKind::QemuKvm => "kvm".to_owned(),
            _ => format!("tcg,tb-size={TRANSLATION_BUFFER_MIB}"),
        };
        let processor = match self.driver {
            DriverKind::QemuKvm => "host",
            _ => "max",
        };
        // The machine, and what its bus calls our devices.
        let (machine, bus) = match self.machine {
            Machine::Pc => ("pc,usb=off,vmport=off,smbus=off,hpet=off", "pci"),
            Machine::Microvm => ("microvm,acpi=off", "device"),
        };
        add("-name", format!("instance-{}", self.instance));
        add("-machine", format!("{machine},memory-backend=memory"));
        add("-accel", accelerator);
        add("-cpu", processor.to_owned());
        add("-smp", self.vcpus.to_string());
        add("-m", format!("{}M", self.memory_mib));
        // Shared: the vsock device reads the guest's queues in it.
        add(
            "-object",
            format!(
                "memory-backend-memfd,id=memory,size={}M,share=on",
                self.memory_mib
            ),
        );
        add(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned(),
        );
        add("-display", "none".to_owned());
        add("-kernel", format!("/proc/self/fd/{}", self.kernel));
        add("-initrd", format!("/proc/self/fd/{}", self.initramfs));
        add("-append", self.boot_arguments.clone());
        add("-add-fd", format!("fd={},set={CONSOLE_SET}", self.console));
        add(
            "-chardev",
            format!("file,id=console,path=/dev/fdset/{CONSOLE_SET},append=on"),
        );
        add("-serial", "chardev:console".to_owned());
        add(
            "-chardev",
            format!("socket,id=monitor,fd={},server=on,wait=off", self.monitor),
        );
        add("-mon", "chardev=monitor,mode=control".to_owned());
        if self.machine == Machine::Microvm {
            // Modern virtio only, which vsock is.
            add("-global", "virtio-mmio.force-legacy=false".to_owned());
        }
        if !self.disks.is_empty() {
            add(
                "-object",
                format!(
                    "throttle-group,id=limit,x-bps-total={DISK_BYTES_PER_SECOND},\
                     x-iops-total={DISK_OPERATIONS_PER_SECOND}"
                ),
            );
        }
        for (index, (number, read_only)) in self.disks.iter().enumerate() {
            let set = FIRST_DISK_SET + index;
            add("-add-fd", format!("fd={number},set={set}"));
            // Shared by many VMs: nothing to lock against. What the guest discards of its own
            // is given back to the host.
            let (access, file_access) = if *read_only {
                ("read-only=on", "read-only=on,file.locking=off")
            } else {
                ("read-only=off,discard=unmap", "discard=unmap")
            };
            add(
                "-blockdev",
                format!(
                    "driver=raw,node-name=disk{index},{access},file.{file_access},\
                     file.driver=file,file.filename=/dev/fdset/{set}"
                ),
            );
            add(
                "-blockdev",
                format!(
                    "driver=throttle,node-name=limited{index},{access},throttle-group=limit,\
                     file=disk{index}"
                ),
            );
            add(
                "-device",
                // An error on the host's disk, a full one too, is the guest's to handle: QEMU's own default pauses the
                // whole guest until somebody lets it go on.
                format!(
                    "virtio-blk-{bus},drive=limited{index},num-queues=1,werror=report,rerror=report"
                ),
            );
        }
        if let Some((tap, mac)) = self.nic {
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            add("-netdev", format!("tap,id=net,fd={tap},vhost=off"));
            add(
                "-device",
                match self.machine {
                    // Nothing of a boot by network.
                    Machine::Pc => format!("virtio-net-pci,netdev=net,mac={mac},romfile="),
                    Machine::Microvm => format!("virtio-net-device,netdev=net,mac={mac}"),
                },
            );
        }
        add("-device", format!("virtio-rng-{bus}"));
        add("-chardev", format!("socket,id=vsock,fd={}", self.vsock));
        add("-device", format!("vhost-user-vsock-{bus},chardev=vsock"));
        let flags = ["-nodefaults", "-no-user-config", "-no-reboot"];
        flags
            .into_iter()
            .map(OsString::from)
            .chain(words.into_iter().map(OsString::from))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::boot_arguments;
    use expect_test::expect;

    fn line(driver: DriverKind, machine: Machine) -> String {
        let line = CommandLine {
            instance: InstanceId(0xab),
            driver,
            machine,
            vcpus: 2,
            memory_mib: 256,
            kernel: 10,
            initramfs: 11,
            boot_arguments: boot_arguments(driver, machine, Some(2_300_000)),
            disks: vec![(12, true), (13, false)],
            nic: Some((14, [2, 1, 0, 0, 0, 0xab])),
            vsock: 15,
            monitor: 16,
            console: 17,
        };
        let text: Vec<String> = line
            .arguments()
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        text.join(" ").replace(" -", "\n-")
    }

    #[test]
    fn command_line_of_debians_kernel_under_tcg() {
        expect![[r#"
            -nodefaults
            -no-user-config
            -no-reboot
            -name instance-000000ab
            -machine pc,usb=off,vmport=off,smbus=off,hpet=off,memory-backend=memory
            -accel tcg,tb-size=64
            -cpu max
            -smp 2
            -m 256M
            -object memory-backend-memfd,id=memory,size=256M,share=on
            -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
            -display none
            -kernel /proc/self/fd/10
            -initrd /proc/self/fd/11
            -append console=ttyS0 quiet panic=-1 no_timer_check random.trust_cpu=on 8250.nr_uarts=1 i8042.noaux i8042.nokbd reboot=t cryptomgr.notests tsc_early_khz=2300000 tsc=reliable
            -add-fd fd=17,set=1
            -chardev file,id=console,path=/dev/fdset/1,append=on
            -serial chardev:console
            -chardev socket,id=monitor,fd=16,server=on,wait=off
            -mon chardev=monitor,mode=control
            -object throttle-group,id=limit,x-bps-total=536870912,x-iops-total=20000
            -add-fd fd=12,set=2
            -blockdev driver=raw,node-name=disk0,read-only=on,file.read-only=on,file.locking=off,file.driver=file,file.filename=/dev/fdset/2
            -blockdev driver=throttle,node-name=limited0,read-only=on,throttle-group=limit,file=disk0
            -device virtio-blk-pci,drive=limited0,num-queues=1,werror=report,rerror=report
            -add-fd fd=13,set=3
            -blockdev driver=raw,node-name=disk1,read-only=off,discard=unmap,file.discard=unmap,file.driver=file,file.filename=/dev/fdset/3
            -blockdev driver=throttle,node-name=limited1,read-only=off,discard=unmap,throttle-group=limit,file=disk1
            -device virtio-blk-pci,drive=limited1,num-queues=1,werror=report,rerror=report
            -netdev tap,id=net,fd=14,vhost=off
            -device virtio-net-pci,netdev=net,mac=02:01:00:00:00:ab,romfile=
            -device virtio-rng-pci
            -chardev socket,id=vsock,fd=15
            -device vhost-user-vsock-pci,chardev=vsock"#]].assert_eq(&line(DriverKind::QemuTcg, Machine::Pc));
    }

    #[test]
    fn command_line_of_the_platforms_kernel_under_kvm() {
        expect![[r#"
            -nodefaults
            -no-user-config
            -no-reboot
            -name instance-000000ab
            -machine microvm,acpi=off,memory-backend=memory
            -accel kvm
            -cpu host
            -smp 2
            -m 256M
            -object memory-backend-memfd,id=memory,size=256M,share=on
            -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
            -display none
            -kernel /proc/self/fd/10
            -initrd /proc/self/fd/11
            -append console=ttyS0 quiet panic=-1 no_timer_check random.trust_cpu=on 8250.nr_uarts=1 i8042.noaux i8042.nokbd reboot=t
            -add-fd fd=17,set=1
            -chardev file,id=console,path=/dev/fdset/1,append=on
            -serial chardev:console
            -chardev socket,id=monitor,fd=16,server=on,wait=off
            -mon chardev=monitor,mode=control
            -global virtio-mmio.force-legacy=false
            -object throttle-group,id=limit,x-bps-total=536870912,x-iops-total=20000
            -add-fd fd=12,set=2
            -blockdev driver=raw,node-name=disk0,read-only=on,file.read-only=on,file.locking=off,file.driver=file,file.filename=/dev/fdset/2
            -blockdev driver=throttle,node-name=limited0,read-only=on,throttle-group=limit,file=disk0
            -device virtio-blk-device,drive=limited0,num-queues=1,werror=report,rerror=report
            -add-fd fd=13,set=3
            -blockdev driver=raw,node-name=disk1,read-only=off,discard=unmap,file.discard=unmap,file.driver=file,file.filename=/dev/fdset/3
            -blockdev driver=throttle,node-name=limited1,read-only=off,discard=unmap,throttle-group=limit,file=disk1
            -device virtio-blk-device,drive=limited1,num-queues=1,werror=report,rerror=report
            -netdev tap,id=net,fd=14,vhost=off
            -device virtio-net-device,netdev=net,mac=02:01:00:00:00:ab
            -device virtio-rng-device
            -chardev socket,id=vsock,fd=15
            -device vhost-user-vsock-device,chardev=vsock"#]].assert_eq(&line(DriverKind::QemuKvm, Machine::Microvm));
    }
}
