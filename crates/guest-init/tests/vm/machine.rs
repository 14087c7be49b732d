//! A real guest under QEMU (TCG), with this test as its node.
//!
//! Simpler than the node's own driver, and independent of it: these are tests of init.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use guest_protocol::{
    BootConfig, BootFailure, BootProgress, Channel, Forwarded, Frame as _, FrameBuffer, GuestFrame,
    GuestNetwork, GuestStats, Hello, HostFrame, IGNORABLE, LogRecord, NodeTime, Phase, Stream,
};
use microvm::{DriverKind, GuestKernel, Machine};
use model::instance::ExitEvent;

/// Longest that anything awaited may take; two busy cores without KVM are slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// The tools of this machine that a guest test needs.
pub(crate) struct Tools {
    /// The kernel that a node would boot here.
    kernel: GuestKernel,
    vsock_device: PathBuf,
}

impl Tools {
    /// Finds them, or prints what is missing: the test is then skipped, unless
    /// `PLATFORM_REQUIRE_VM` is set.
    pub(crate) fn find() -> Option<Self> {
        match Self::look() {
            Ok(tools) => Some(tools),
            Err(missing) => {
                assert!(
                    std::env::var_os("PLATFORM_REQUIRE_VM").is_none(),
                    "{missing}"
                );
                eprintln!("skipped: {missing}");
                None
            }
        }
    }

    /// Runs a test of what depends on the kernel on each one that is here: Debian's, and the platform's own where
    /// `make kernel` has built it.
    pub(crate) fn on_each_kernel(test: fn(&Self)) {
        let Some(tools) = Self::find() else { return };
        test(&tools);
        let directory = tools.kernel.kernel.parent().unwrap();
        if tools.kernel.machine == Machine::Microvm {
            test(&Self {
                kernel: GuestKernel::debian(directory),
                ..tools
            });
        } else {
            eprintln!("on Debian's kernel alone: `make kernel` builds the platform's own");
        }
    }

    fn look() -> Result<Self, String> {
        let guest = std::env::var_os("PLATFORM_GUEST_DIR").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"),
            PathBuf::from,
        );
        let kernel = GuestKernel::in_directory(&guest).map_err(|error| error.to_string())?;
        let vsock_device = std::env::var_os("PLATFORM_VHOST_DEVICE_VSOCK")
            .map(PathBuf::from)
            .or_else(|| in_path("vhost-device-vsock"))
            .ok_or("no vhost-device-vsock in PATH or PLATFORM_VHOST_DEVICE_VSOCK")?;
        for program in ["qemu-system-x86_64", "mke2fs"] {
            in_path(program).ok_or(format!("no {program} in PATH"))?;
        }
        if !Path::new("/bin/busybox").exists() {
            return Err("no /bin/busybox: install busybox-static".to_owned());
        }
        Ok(Self {
            kernel,
            vsock_device,
        })
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(program))
        .find(|file| file.exists())
}

/// The tree of a tiny image: busybox, users, nothing else.
pub(crate) fn busybox_tree(root: &Path) {
    for directory in ["bin", "etc"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let applets = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines() {
        if applet != "busybox" {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nshop:x:1000:100:Shop:/home/shop:/bin/sh\n",
    )
    .unwrap();
    fs::write(
        root.join("etc/group"),
        "root:x:0:\nusers:x:100:\nvideo:x:44:shop\n",
    )
    .unwrap();
}

/// The boot config of most tests: `sh -c <script>` as root.
pub(crate) fn config(script: &str) -> BootConfig {
    BootConfig {
        hostname: "web-1".to_owned(),
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        environment: vec![
            ("PATH".to_owned(), "/bin".to_owned()),
            ("PLATFORM_APP".to_owned(), "shop".to_owned()),
        ],
        working_dir: "/".to_owned(),
        user: String::new(),
        stop_signal: "SIGTERM".to_owned(),
        init: model::instance::Init::Platform,
        network: GuestNetwork {
            address: "fd00:1::15".parse().unwrap(),
            ipv4: "100.64.0.15".parse().unwrap(),
            // QEMU's own router.
            gateway: "fe80::2".parse().unwrap(),
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

/// Makes an ext4 file system, from a tree or empty.
pub(crate) fn make_disk(path: &Path, megabytes: u32, tree: Option<&Path>) {
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-t", "ext4", "-F"]);
    if let Some(tree) = tree {
        command.arg("-d").arg(tree);
    }
    command.arg(path).arg(format!("{megabytes}M"));
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    command.env("PATH", path).stdout(Stdio::null());
    assert!(command.status().unwrap().success());
}

/// What the node received, and how it behaves.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) hellos: Vec<Hello>,
    pub(crate) started: u32,
    pub(crate) exits: Vec<ExitEvent>,
    pub(crate) failures: Vec<BootFailure>,
    /// How far the boot was, each time that the guest said so.
    pub(crate) progress: Vec<BootProgress>,
    pub(crate) stats: Vec<GuestStats>,
    /// Ports that are forwarded to.
    pub(crate) forwarded: Vec<u16>,
    pub(crate) logs: BTreeMap<u64, LogRecord>,
    pub(crate) logs_sent_again: u32,
    pub(crate) exec: BTreeMap<u32, ExecSeen>,
    /// Questions for the time.
    pub(crate) times_asked: u32,
    /// How far the node's clock is ahead of this machine's, in nanoseconds.
    pub(crate) clock_offset_nanos: i128,
    /// Do not read the log channel.
    pub(crate) hold_logs: bool,
    /// Read no channel.
    pub(crate) hold_all: bool,
    /// Close each channel when it would be read, whatever waits there.
    killed: bool,
    /// Control and log channels that are served.
    served: u32,
    /// Read logs and do not acknowledge them.
    pub(crate) no_log_acks: bool,
    /// The bytes that answer a guest that waits for its boot config.
    boot: Vec<u8>,
    control: Option<UnixStream>,
    log: Option<UnixStream>,
}

/// What an exec session received.
#[derive(Default)]
pub(crate) struct ExecSeen {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) exit: Option<ExitEvent>,
    /// Why the guest ran no command.
    pub(crate) refused: Option<String>,
    stream: Option<UnixStream>,
}

impl Seen {
    /// The lines of a stream, put together from their pieces.
    pub(crate) fn lines(&self, stream: Stream) -> Vec<String> {
        let mut lines = self.lines_and_clock(stream);
        // A guest whose machine was busy sets its clock, and says so: whatever else it says is what a test is about.
        if stream == Stream::Platform {
            lines.retain(|line| !line.starts_with("the clock was set by "));
        }
        lines
    }

    /// The same, and what the guest said of its clock.
    pub(crate) fn lines_and_clock(&self, stream: Stream) -> Vec<String> {
        let mut lines = Vec::new();
        let mut line = Vec::new();
        for record in self.logs.values().filter(|record| record.stream == stream) {
            line.extend_from_slice(&record.line);
            if !record.partial {
                lines.push(String::from_utf8_lossy(&line).into_owned());
                line.clear();
            }
        }
        lines
    }

    fn phases(&self, wanted: Channel) -> Vec<Phase> {
        self.hellos
            .iter()
            .filter(|hello| hello.channel == wanted)
            .map(|hello| hello.phase.clone())
            .collect()
    }

    /// Phases of the control channel's hellos.
    pub(crate) fn control_phases(&self) -> Vec<Phase> {
        self.phases(Channel::Control)
    }

    /// Phases of the log channel's hellos.
    pub(crate) fn log_phases(&self) -> Vec<Phase> {
        self.phases(Channel::Log)
    }
}

type Shared = Arc<(Mutex<Seen>, Condvar)>;

/// A running guest. Dropping it ends its processes.
pub(crate) struct Guest {
    directory: tempfile::TempDir,
    processes: Vec<Child>,
    shared: Shared,
    since: Instant,
}

/// A guest before its boot.
pub(crate) struct Plan<'a> {
    pub(crate) tools: &'a Tools,
    pub(crate) config: BootConfig,
    pub(crate) memory_megabytes: u32,
    /// Disks after root and scratch.
    pub(crate) volumes: Vec<PathBuf>,
    /// The tree of the root disk.
    pub(crate) tree: &'a dyn Fn(&Path),
    /// Most bytes that the root disk gives in a second; 0: as many as it can.
    pub(crate) root_bytes_per_second: u32,
    /// The tap of its interface; absent: QEMU's own network.
    pub(crate) tap: Option<&'a str>,
    /// Whether the node is of a later version, whose boot config has fields that this version lacks and comes
    /// after a frame of an unknown type.
    pub(crate) newer_node: bool,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(tools: &'a Tools, config: BootConfig) -> Self {
        Self {
            tools,
            config,
            memory_megabytes: 256,
            volumes: Vec::new(),
            tree: &busybox_tree,
            root_bytes_per_second: 0,
            tap: None,
            newer_node: false,
        }
    }

    /// Starts it.
    pub(crate) fn boot(self) -> Guest {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let tree = at("tree");
        fs::create_dir(&tree).unwrap();
        (self.tree)(&tree);
        make_disk(&at("root.ext4"), 32, Some(&tree));
        make_disk(&at("scratch.ext4"), 64, None);

        let shared: Shared = Arc::default();
        shared.0.lock().unwrap().boot = boot_frame(&self);
        let listener = UnixListener::bind(at("vsock_1024")).unwrap();
        std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let shared = Arc::clone(&shared);
                    std::thread::spawn(move || serve(stream, &shared));
                }
            }
        });

        let device = Command::new(&self.tools.vsock_device)
            .arg("--socket")
            .arg(at("vhost.sock"))
            .arg("--uds-path")
            .arg(at("vsock"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(at("vsock.log")).unwrap())
            .spawn()
            .unwrap();
        let mut guest = Guest {
            processes: vec![device],
            shared,
            since: Instant::now(),
            directory,
        };
        let until = Instant::now() + PATIENCE;
        while !guest.path("vhost.sock").exists() {
            assert!(Instant::now() < until, "vhost-device-vsock made no socket");
            std::thread::sleep(Duration::from_millis(2));
        }
        guest.since = Instant::now();
        let qemu = qemu(&guest, &self);
        guest.processes.insert(0, qemu);
        guest
    }
}

/// The boot config as its node sends it.
fn boot_frame(plan: &Plan<'_>) -> Vec<u8> {
    let frame = HostFrame::Boot(Box::new(plan.config.clone()));
    if !plan.newer_node {
        return frame.encode();
    }
    let (frame_type, body) = frame.parts();
    let body = String::from_utf8(body).unwrap();
    let body = body.replacen('{', r#"{"cores":{"pinned":[1]},"#, 1);
    let body = body.replacen(r#""network":{"#, r#""network":{"mptcp":true,"#, 1);
    [
        raw_frame(IGNORABLE | 1, b"news"),
        raw_frame(frame_type, body.as_bytes()),
    ]
    .concat()
}

/// A frame of any type.
pub(crate) fn raw_frame(frame_type: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 1).unwrap();
    [&length.to_le_bytes()[..], &[frame_type], body].concat()
}

fn qemu(guest: &Guest, plan: &Plan<'_>) -> Child {
    let Plan {
        tools,
        memory_megabytes,
        volumes,
        root_bytes_per_second,
        tap,
        ..
    } = plan;
    let network = match tap {
        None => "user,id=n0,ipv6-prefix=fd00:1::,ipv6-prefixlen=64,restrict=on".to_owned(),
        Some(tap) => format!("tap,id=n0,ifname={tap},script=no,downscript=no"),
    };
    let root = (guest.path("root.ext4"), "on");
    let scratch = (guest.path("scratch.ext4"), "off");
    let others = volumes.iter().map(|path| (path.clone(), "off"));
    let disks: Vec<_> = [root, scratch].into_iter().chain(others).collect();
    let kernel = tools.kernel.for_disks(DriverKind::QemuTcg, disks.len());
    eprintln!("kernel: {}", kernel.kernel.display());
    // The machine, its bus's suffix of device names, and options of the network device.
    let (machine, bus, nic) = match kernel.machine {
        Machine::Pc => (
            "pc,usb=off,vmport=off,smbus=off,hpet=off",
            "pci",
            ",romfile=",
        ),
        Machine::Microvm => ("microvm,acpi=off", "device", ""),
    };
    let mut command = Command::new("qemu-system-x86_64");
    command
        .arg("-M")
        .arg(format!("{machine},accel=tcg,memory-backend=mem"))
        .arg("-object")
        .arg(format!(
            "memory-backend-memfd,id=mem,size={memory_megabytes}M,share=on"
        ))
        .arg("-m")
        .arg(format!("{memory_megabytes}M"))
        .args(["-cpu", "max", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-no-reboot"])
        .args(["-global", "virtio-mmio.force-legacy=false"])
        .arg("-kernel")
        .arg(&kernel.kernel)
        .arg("-initrd")
        .arg(&kernel.initramfs)
        .arg("-append")
        .arg(kernel.arguments(DriverKind::QemuTcg))
        .arg("-serial")
        .arg(format!("file:{}", guest.path("console.log").display()))
        .arg("-device")
        .arg(format!("virtio-rng-{bus}"))
        .arg("-chardev")
        .arg(format!(
            "socket,id=c0,path={}",
            guest.path("vhost.sock").display()
        ))
        .arg("-device")
        .arg(format!("vhost-user-vsock-{bus},chardev=c0"))
        .args(["-netdev", &network])
        .arg("-device")
        .arg(format!("virtio-net-{bus},netdev=n0{nic}"));
    for (number, (path, read_only)) in disks.iter().enumerate() {
        let rate = if number == 0 {
            *root_bytes_per_second
        } else {
            0
        };
        command
            .arg("-drive")
            .arg(format!(
                "if=none,id=d{number},format=raw,file={},read-only={read_only},throttling.bps-total={rate}",
                path.display()
            ))
            .arg("-device")
            .arg(format!("virtio-blk-{bus},drive=d{number}"));
    }
    let log = fs::File::create(guest.path("qemu.log")).unwrap();
    command.stdin(Stdio::null()).stderr(log).spawn().unwrap()
}

impl Guest {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The guest's console.
    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("console.log")).unwrap_or_default())
            .into_owned()
    }

    /// Time since QEMU was started.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Waits until QEMU ends.
    pub(crate) fn wait_for_power_off(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.processes[0].try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < until,
                "QEMU did not end\n{}",
                self.console()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the node received so far.
    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.shared.0.lock().unwrap()
    }

    /// Changes how the node behaves.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen());
        self.shared.1.notify_all();
    }

    /// Waits until the node received what `find` looks for.
    pub(crate) fn wait<T>(&self, what: &str, mut find: impl FnMut(&Seen) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        let mut seen = self.seen();
        loop {
            if let Some(found) = find(&seen) {
                return found;
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "waited for {what}; failures {:?}, exits {:?}, console:\n{}\nstdout {:?}\nstderr {:?}",
                seen.failures,
                seen.exits,
                self.console(),
                seen.lines(Stream::Stdout),
                seen.lines(Stream::Stderr),
            );
            seen = self.shared.1.wait_timeout(seen, left).unwrap().0;
        }
    }

    /// Waits until the app runs.
    pub(crate) fn wait_started(&self) {
        self.wait("the start", |seen| (seen.started > 0).then_some(()));
    }

    /// Waits for a line of standard output that begins with `start`, and returns it.
    pub(crate) fn wait_line(&self, start: &str) -> String {
        self.wait(start, |seen| {
            seen.lines(Stream::Stdout)
                .into_iter()
                .find(|line| line.starts_with(start))
        })
    }

    /// Waits for the app's end, acknowledges it, and waits for the power-off.
    pub(crate) fn finish(&mut self) -> ExitEvent {
        let event = self.wait("the exit", |seen| seen.exits.first().cloned());
        self.send(&HostFrame::ExitAck);
        assert!(self.wait_for_power_off().success(), "QEMU failed");
        event
    }

    /// Sends a frame on the control channel.
    pub(crate) fn send(&self, frame: &HostFrame) {
        self.send_bytes(&frame.encode());
    }

    /// Sends a frame on the control channel of a guest that may dial once more: on a busy machine it gives up a channel whose answers are late.
    pub(crate) fn send_however_often_it_dials(&self, frame: &HostFrame) {
        loop {
            let (control, dialled) = self.wait("control", |seen| {
                let control = seen.control.as_ref()?.try_clone().unwrap();
                Some((control, seen.control_phases().len()))
            });
            match (&control).write_all(&frame.encode()) {
                Ok(()) => return,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe),
            }
            self.wait("hello once more", |seen| {
                (seen.control_phases().len() > dialled).then_some(())
            });
        }
    }

    /// Sends bytes on the control channel.
    pub(crate) fn send_bytes(&self, bytes: &[u8]) {
        let control = self.wait("control", |seen| {
            seen.control
                .as_ref()
                .map(|stream| stream.try_clone().unwrap())
        });
        (&control).write_all(bytes).unwrap();
    }

    /// Sends a frame on an exec channel, once it is connected.
    pub(crate) fn send_exec(&self, session: u32, frame: &HostFrame) {
        let stream = self.wait("the exec channel", |seen| {
            Some(
                seen.exec
                    .get(&session)?
                    .stream
                    .as_ref()?
                    .try_clone()
                    .unwrap(),
            )
        });
        (&stream).write_all(&frame.encode()).unwrap();
    }

    /// Breaks the control and log channels, as a node that is restarted does.
    pub(crate) fn break_connections(&self) {
        let mut seen = self.seen();
        for stream in [seen.control.take(), seen.log.take()].into_iter().flatten() {
            stream.shutdown(Shutdown::Both).unwrap();
        }
    }

    /// Ends all connections as a node does that is killed: with bytes of the guest unread on the control and log channels. The
    /// guest's vsock device never hears of such an end.
    pub(crate) fn kill_with_unread_bytes(&self) {
        self.change(|seen| seen.hold_all = true);
        for _ in 0..2 {
            self.send(&HostFrame::Stats);
        }
        self.wait("bytes that wait on both channels", |seen| {
            let waits = |stream: &UnixStream| rustix::io::ioctl_fionread(stream).unwrap() > 0;
            let both = [seen.control.as_ref()?, seen.log.as_ref()?];
            both.into_iter().all(waits).then_some(())
        });
        self.change(|seen| {
            (seen.control, seen.log) = (None, None);
            for exec in seen.exec.values_mut() {
                exec.stream = None;
            }
            (seen.hold_all, seen.killed) = (false, true);
        });
        self.wait("the end of all connections", |seen| {
            (seen.served == 0).then_some(())
        });
        self.change(|seen| seen.killed = false);
    }

    /// Breaks an exec channel.
    pub(crate) fn break_exec(&self, session: u32) {
        let stream = self
            .seen()
            .exec
            .get_mut(&session)
            .and_then(|exec| exec.stream.take());
        stream.unwrap().shutdown(Shutdown::Both).unwrap();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            eprintln!("console:\n{}", self.console());
        }
    }
}

/// Serves one connection from the guest.
fn serve(stream: UnixStream, shared: &Shared) {
    let channel = serve_frames(stream, shared);
    if matches!(channel, Some(Channel::Control | Channel::Log)) {
        shared.0.lock().unwrap().served -= 1;
        shared.1.notify_all();
    }
}

/// The same; returns which channel it was.
fn serve_frames(mut stream: UnixStream, shared: &Shared) -> Option<Channel> {
    let (seen, changed) = (&shared.0, &shared.1);
    let mut buffer = FrameBuffer::default();
    let mut bytes = vec![0; 64 * 1024];
    let mut channel = None;
    loop {
        {
            let mut seen = seen.lock().unwrap();
            while seen.hold_all || seen.hold_logs && channel == Some(Channel::Log) {
                seen = changed.wait(seen).unwrap();
            }
            if seen.killed {
                return channel;
            }
        }
        let length = match stream.read(&mut bytes) {
            Ok(0) | Err(_) => return channel,
            Ok(length) => length,
        };
        buffer.push(&bytes[..length]);
        let mut answers = Vec::new();
        let mut last_log = None;
        {
            let mut seen = seen.lock().unwrap();
            while let Some(frame) = buffer.next::<GuestFrame>().unwrap() {
                if let GuestFrame::Hello(hello) = &frame {
                    channel = Some(hello.channel);
                    seen.served += u32::from(!matches!(hello.channel, Channel::Exec { .. }));
                }
                if let GuestFrame::Log(record) = &frame {
                    last_log = Some(record.seq);
                }
                take(&mut seen, channel, frame, &stream, &mut answers);
            }
            if let Some(seq) = last_log.filter(|_| !seen.no_log_acks) {
                answers.extend(HostFrame::LogAck { seq }.encode());
            }
        }
        changed.notify_all();
        if stream.write_all(&answers).is_err() {
            return channel;
        }
    }
}

fn take(
    seen: &mut Seen,
    channel: Option<Channel>,
    frame: GuestFrame,
    stream: &UnixStream,
    answers: &mut Vec<u8>,
) {
    match frame {
        GuestFrame::Hello(hello) => {
            let copy = stream.try_clone().unwrap();
            match hello.channel {
                Channel::Control => {
                    seen.control = Some(copy);
                    if hello.phase == Phase::Waiting {
                        answers.extend(&seen.boot);
                    }
                }
                Channel::Log => seen.log = Some(copy),
                Channel::Exec { session } => {
                    seen.exec.entry(session).or_default().stream = Some(copy);
                }
            }
            seen.hellos.push(hello);
        }
        GuestFrame::Started => seen.started += 1,
        GuestFrame::BootFailed(failure) => seen.failures.push(failure),
        GuestFrame::Exited(event) => seen.exits.push(event),
        GuestFrame::Progressed(progress) => seen.progress.push(progress),
        GuestFrame::Stats(stats) => seen.stats.push(stats),
        GuestFrame::Forwarded(Forwarded { ports }) => seen.forwarded = ports,
        GuestFrame::Log(record) => {
            let seq = record.seq;
            if seen.logs.insert(seq, record).is_some() {
                seen.logs_sent_again += 1;
            }
        }
        GuestFrame::ExecOutput { stream, bytes } => {
            if let Some(Channel::Exec { session }) = channel {
                let exec = seen.exec.entry(session).or_default();
                match stream {
                    Stream::Stderr => exec.stderr.extend(bytes),
                    _ => exec.stdout.extend(bytes),
                }
            }
        }
        GuestFrame::ExecExited(event) => {
            if let Some(Channel::Exec { session }) = channel {
                seen.exec.entry(session).or_default().exit = Some(event);
            }
        }
        GuestFrame::ExecRefused { session, reason } => {
            seen.exec.entry(session).or_default().refused = Some(reason);
        }
        GuestFrame::TimeAsked(asked) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            let nanos = i128::try_from(now.as_nanos()).unwrap() + seen.clock_offset_nanos;
            let time = NodeTime {
                number: asked.number,
                unix_nanos: u64::try_from(nanos).unwrap(),
            };
            seen.times_asked += 1;
            answers.extend(HostFrame::Time(time).encode());
        }
        GuestFrame::ExecFailed { reason } => panic!("only a node sends this frame: {reason}"),
    }
}
