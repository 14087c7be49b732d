//! What we promise of boots, init and output, measured under TCG (`make bench`); the goals are ADR 0003's.
//!
//! Each measurement is a median, of rounds in which the variants take turns. None of this runs in `make test`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    clippy::cast_precision_loss,
    reason = "measurements, printed for people"
)]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use guest_protocol::{BootConfig, Frame as _, HostFrame, ProxyPort};
use microvm::{Disk, GuestKernel, Machine, Nic, Vm, boot};
use model::instance::ProxyProtocol;
use model::{InstanceId, NodeId};
use node_network::{Endpoint, Network, NetworkSettings};
use support::node::{Node, Seen, config, make_disk};
use support::{guest_dir, in_a_network_of_its_own, pid_of, processes_of, spec, with_programs};

/// Rounds of what takes a second each.
const ROUNDS: usize = 12;
/// Guests at once.
const MANY: u32 = 20;
const SCRATCH_MIB: u32 = 64;

/// Both kernels, where both are there.
fn kernels() -> Vec<(&'static str, GuestKernel)> {
    let Some(guest) = guest_dir() else {
        return Vec::new();
    };
    let mut kernels = vec![("Debian's kernel", GuestKernel::debian(&guest))];
    let own = GuestKernel::platform(&guest);
    if own.kernel.exists() {
        kernels.push(("the platform's kernel", own));
    } else {
        eprintln!("NOT MEASURED: the platform's own kernel; hint: make kernel");
    }
    kernels
}

fn measured(what: &str, value: f64, unit: &str, goal: &str) {
    eprintln!("{what:<58} {value:>8.2} {unit:<4} ({goal})");
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What all guests of a measurement share.
struct Bench {
    dir: tempfile::TempDir,
    network: Network,
    root: PathBuf,
    booted: u32,
}

/// One guest and its node.
struct Guest {
    vm: Vm,
    node: Node,
    instance: InstanceId,
    since: Instant,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("bin")).unwrap();
        fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
        for applet in ["sh", "cat", "sleep", "grep", "yes", "head", "true"] {
            std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).unwrap();
        }
        compile("app", &[], &tree.join("bin/app"));
        compile("answer", &[], &tree.join("bin/answer"));
        let root = dir.path().join("root.ext4");
        make_disk(&root, 64, Some(&tree));
        let network = Network::ensure(&NetworkSettings {
            suffix: "bench".to_owned(),
            cluster_prefix: "fd12:3456:789a::".parse().unwrap(),
            node: NodeId(3),
            mtu: 1420,
        })
        .await
        .unwrap();
        Self {
            dir,
            network,
            root,
            booted: 0,
        }
    }

    async fn boot(&mut self, kernel: &GuestKernel, config: BootConfig) -> Guest {
        self.boot_at(kernel, config).await.0
    }

    /// Boots a guest, and says where it is in the network.
    async fn boot_at(&mut self, kernel: &GuestKernel, mut config: BootConfig) -> (Guest, Endpoint) {
        self.booted += 1;
        let instance = InstanceId(0xe000_0000 + self.booted);
        let suffix = u16::try_from(self.booted).unwrap();
        let address = Ipv6Addr::new(0xfd12, 0x3456, 0x789a, 3, 0, 7, 0xe000, suffix);
        config.network.address = address;
        let run_dir = self.dir.path().join(instance.to_string());
        let node = Node::listen(&run_dir, config);
        let scratch = run_dir.join("scratch.ext4");
        make_disk(&scratch, SCRATCH_MIB, None);
        let member = Endpoint {
            instance,
            address,
            ipv4: std::net::Ipv4Addr::new(100, 64, 0, 2),
            egress: model::instance::EgressPolicy::All,
            edge_ports: std::collections::BTreeSet::new(),
        };
        let tap = self.network.create_tap(&member).await.unwrap();
        let mut spec = spec(instance, &run_dir, kernel.clone());
        spec.disks = vec![
            Disk {
                path: self.root.clone(),
                read_only: true,
            },
            Disk {
                path: scratch,
                read_only: false,
            },
        ];
        spec.nic = Some(Nic {
            tap: tap.fd,
            mac: tap.mac,
        });
        let since = Instant::now();
        let vm = boot(spec).await.unwrap();
        let guest = Guest {
            vm,
            node,
            instance,
            since,
        };
        (guest, member)
    }
}

impl Guest {
    /// Waits until the guest has said something.
    async fn until(&mut self, what: &str, done: impl Fn(&Seen) -> bool) -> Seen {
        let told = tokio::select! {
            seen = self.node.until(done) => seen,
            end = self.vm.ended() => Err(format!("{end:?}")),
        };
        told.unwrap_or_else(|error| {
            panic!(
                "{what}: {error}; {}",
                microvm::console_tail(self.vm.run_dir())
            )
        })
    }

    fn resident_mib(&self) -> f64 {
        let pid = pid_of(self.instance, self.vm.run_dir(), "qemu");
        let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
        kib(&status) / 1024.0
    }
}

/// A VM outlives its agent, so also a measurement that fails.
impl Drop for Guest {
    fn drop(&mut self) {
        for (pid, _) in processes_of(self.instance, self.vm.run_dir()) {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// The resident memory in a `/proc/<pid>/status` or a line of `smaps_rollup`, in KiB.
fn kib(told: &str) -> f64 {
    let line = told
        .lines()
        .find(|line| line.contains("Rss:") || line.contains("VmRSS:"));
    let line = line.unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A static program of `bench_programs`.
fn compile(name: &str, define: &[&str], to: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/bench_programs")
        .join(format!("{name}.c"));
    let status = Command::new("gcc")
        .args(["-O2", "-static", "-s"])
        .args(define)
        .arg("-o")
        .arg(to)
        .arg(source)
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
#[ignore = "a measurement: make bench"]
fn boots() {
    in_a_network_of_its_own("boots", async {
        let kernels = kernels();
        let mut bench = Bench::new().await;
        let mut seconds = vec![Vec::new(); kernels.len()];
        let mut resident = vec![Vec::new(); kernels.len()];
        for _ in 0..ROUNDS {
            for (index, (_, kernel)) in kernels.iter().enumerate() {
                let mut guest = bench.boot(kernel, config(&["sleep", "1000"])).await;
                guest.until("hello", |seen| seen.hello).await;
                seconds[index].push(guest.since.elapsed().as_secs_f64());
                resident[index].push(guest.resident_mib());
                guest.vm.kill().await;
            }
        }
        for (index, (name, _)) in kernels.iter().enumerate() {
            let of = |values: &[Vec<f64>]| median(&values[index]) / median(&values[0]);
            let time = format!("boot to init's hello, {name}");
            let goal = format!("{:.2} of Debian's; goal 0.50", of(&seconds));
            measured(&time, median(&seconds[index]), "s", &goal);
            let memory = format!("VMM's resident memory at 128 MiB, {name}");
            let goal = format!("{:.2} of Debian's; goal 0.50", of(&resident));
            measured(&memory, median(&resident[index]), "MiB", &goal);
        }
    });
}

#[test]
#[ignore = "a measurement: make bench"]
fn twenty_at_once() {
    in_a_network_of_its_own("twenty_at_once", async {
        for (name, kernel) in kernels() {
            let mut bench = Bench::new().await;
            let since = Instant::now();
            let mut guests = Vec::new();
            for _ in 0..MANY {
                guests.push(bench.boot(&kernel, config(&["sleep", "1000"])).await);
            }
            for guest in &mut guests {
                guest.until("start", |seen| seen.started).await;
            }
            let seconds = since.elapsed().as_secs_f64();
            let memory: f64 = guests.iter().map(Guest::resident_mib).sum();
            measured(
                &format!("20 guests of 128 MiB at once, all run, {name}"),
                seconds,
                "s",
                &format!("VMMs: {memory:.0} MiB"),
            );
            for guest in &guests {
                assert!(guest.vm.has_ended().is_none());
                guest.vm.kill().await;
            }
        }
    });
}

/// LOCAL, as an edge says it of its own connections.
const PROXY_HEADER: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// Asks `answer` for bytes, straight (8080) or through the adapter; for none, it answers by one.
fn ask(address: Ipv6Addr, port: u16, bytes: usize) -> std::io::Result<()> {
    let header = if port == 8080 { &b""[..] } else { PROXY_HEADER };
    let mut stream = TcpStream::connect((address, port))?;
    stream.write_all(&[header, format!("{bytes}\n").as_bytes()].concat())?;
    let (mut got, mut buffer) = (0, vec![0; 256 * 1024]);
    while got < bytes.max(1) {
        match stream.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            length => got += length,
        }
    }
    Ok(())
}

/// What the PROXY adapter costs: connections one after the other and a long download, straight and
/// through it in turns, in one guest; and its memory.
#[test]
#[ignore = "a measurement: make bench"]
fn the_adapters_share() {
    const CONNECTIONS: usize = 100;
    const BYTES: usize = 32 << 20;
    const HELD: usize = 1000;
    in_a_network_of_its_own("the_adapters_share", async {
        for (name, kernel) in kernels() {
            let mut bench = Bench::new().await;
            let mut config = config(&["answer"]);
            config.proxy = vec![ProxyPort {
                ingress: 61001,
                port: 8080,
                mode: ProxyProtocol::Strip,
                peers: "fd12:3456:789a::".parse().unwrap(),
                peers_mask: "ffff:ffff:ffff:0:ffff:ffff::".parse().unwrap(),
            }];
            let (mut guest, member) = bench.boot_at(&kernel, config).await;
            let address = member.address;
            bench.network.apply_rules(&[member]).await.unwrap();
            guest.until("start", |seen| seen.started).await;
            while ask(address, 8080, 1).is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            let (mut each, mut rates) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
            for _ in 0..ROUNDS {
                for (at, port) in [8080, 61001].into_iter().enumerate() {
                    let since = Instant::now();
                    for _ in 0..CONNECTIONS {
                        ask(address, port, 1).unwrap();
                    }
                    each[at].push(since.elapsed().as_secs_f64() * 1e3 / CONNECTIONS as f64);
                    let since = Instant::now();
                    ask(address, port, BYTES).unwrap();
                    rates[at].push(BYTES as f64 / 1e6 / since.elapsed().as_secs_f64());
                }
            }
            let against = |of: &[Vec<f64>; 2]| {
                let [straight, through] = [median(&of[0]), median(&of[1])];
                (
                    through,
                    format!("{straight:.2} straight, {:.2} of it", through / straight),
                )
            };
            let (value, ratio) = against(&each);
            measured(
                &format!("a connection through the adapter, {name}"),
                value,
                "ms",
                &ratio,
            );
            let (value, ratio) = against(&rates);
            measured(
                &format!("bytes through the adapter, {name}"),
                value,
                "MB/s",
                &ratio,
            );
            ask(address, 8080, 0).unwrap();
            let hold = |_| {
                let mut stream = TcpStream::connect((address, 61001)).unwrap();
                stream.write_all(&PROXY_HEADER[..10]).unwrap();
                stream
            };
            let held: Vec<_> = (0..HELD).map(hold).collect();
            ask(address, 8080, 0).unwrap();
            let seen = guest.until("memory", |seen| seen.lines.len() == 2).await;
            // They were: the last that came is served.
            let mut last = held.last().unwrap();
            last.write_all(&[&PROXY_HEADER[10..], b"1\n"].concat())
                .unwrap();
            last.read_exact(&mut [0]).unwrap();
            drop(held);
            let [idle, holding] = [kib(&seen.lines[0]), kib(&seen.lines[1])];
            measured(
                &format!("the adapter's resident memory, {name}"),
                idle / 1024.0,
                "MiB",
                &format!("{:.2} with {HELD} connections", holding / 1024.0),
            );
            guest.vm.kill().await;
        }
    });
}

/// From the hand-over of the machine to the app: platform-init, and a bare C init that makes the same mounts, alone
/// and with the other things that no init here can leave out, on the same kernel and disks.
#[test]
#[ignore = "a measurement: make bench"]
fn inits_share() {
    in_a_network_of_its_own("inits_share", async {
        let Some((name, kernel)) = kernels().pop() else {
            return;
        };
        if kernel.machine == Machine::Pc {
            eprintln!("NOT MEASURED: init's share: the bare init loads no modules; make kernel");
            return;
        }
        let mut bench = Bench::new().await;
        let program = |source: &str, define: &[&str]| {
            let path = bench.dir.path().join("program");
            compile(source, define, &path);
            fs::read(path).unwrap()
        };
        let start = program("start", &[]);
        let init = fs::read(guest_dir().unwrap().join("platform-init")).unwrap();
        let size = init.len() as f64 / 1024.0 / 1024.0;
        measured("platform-init, the program", size, "MiB", "goal 1.50");
        let inits = [
            ("platform-init", init),
            ("a bare C init", program("bare", &[])),
            (
                "one that asks the node",
                program("bare", &["-DTALK", "-DNETWORK"]),
            ),
        ];
        let kernels = inits.map(|(what, init)| {
            let initramfs = bench.dir.path().join(format!("{what}.cpio"));
            let programs = [("init", &start[..]), ("measured", &init)];
            (what, with_programs(kernel.clone(), &initramfs, &programs))
        });
        let mut millis = vec![Vec::new(); kernels.len()];
        for _ in 0..ROUNDS {
            for (index, (_, kernel)) in kernels.iter().enumerate() {
                let mut guest = bench.boot(kernel, config(&["app"])).await;
                let told = match index {
                    0 => {
                        let seen = guest.until("exit", |seen| seen.exited).await;
                        seen.lines.join("\n")
                    }
                    // Its app is PID 1, whose output is the console.
                    _ => guest.vm.ended().await.console_tail,
                };
                guest.vm.ended().await;
                millis[index].push(took(&told));
            }
        }
        let own = median(&millis[0]);
        for (index, (what, _)) in kernels.iter().enumerate() {
            let least = median(&millis[index]);
            let goal = format!(
                "platform-init takes {:.2} times that; goal 1.25",
                own / least
            );
            measured(&format!("to the app, {what}, {name}"), least, "ms", &goal);
        }
    });
}

/// The same without a VM, in namespaces over loop disks: init's own modules but for the vsock link and the memory
/// controller, against the bare C init.
#[test]
#[ignore = "a measurement: make bench"]
fn inits_share_natively() {
    const NATIVE_ROUNDS: usize = 60;
    let Some(guest) = guest_dir() else {
        return;
    };
    let init = guest.join("natively");
    if !init.exists() {
        eprintln!("NOT MEASURED: init's share natively; hint: cargo xtask guest --natively");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("bin")).unwrap();
    compile("app", &[], &tree.join("bin/app"));
    let disks = [dir.join("root.ext4"), dir.join("scratch.ext4")];
    make_disk(&disks[0], 64, Some(&tree));
    make_disk(&disks[1], SCRATCH_MIB, None);
    let loops = disks.map(|disk| LoopDisk::attach(&disk));
    let mut config = config(&["app"]);
    config.root_device.clone_from(&loops[0].0);
    config.scratch_device.clone_from(&loops[1].0);
    fs::write(
        dir.join("config"),
        HostFrame::Boot(Box::new(config)).encode(),
    )
    .unwrap();
    compile("start", &[], &dir.join("start"));
    fs::copy(&init, dir.join("init")).unwrap();
    let mut define = vec![
        format!("-DROOT_DISK=\"{}\"", loops[0].0),
        format!("-DSCRATCH_DISK=\"{}\"", loops[1].0),
        "-DNATIVELY".to_owned(),
    ];
    let bare = |name: &str| {
        let define: Vec<_> = define.iter().map(String::as_str).collect();
        compile("bare", &define, &dir.join(name));
    };
    bare("bare");
    define.push("-DNETWORK".to_owned());
    let define: Vec<_> = define.iter().map(String::as_str).collect();
    compile("bare", &define, &dir.join("network"));
    let programs = [
        ("init", "init's modules"),
        ("bare", "a bare C init"),
        ("network", "one with a network"),
    ];
    let mut millis = vec![Vec::new(); programs.len()];
    for _ in 0..NATIVE_ROUNDS {
        for (index, (program, _)) in programs.iter().enumerate() {
            millis[index].push(took(&natively(dir, program)));
        }
    }
    let own = median(&millis[0]);
    for (index, (_, what)) in programs.iter().enumerate() {
        let least = median(&millis[index]);
        let goal = format!("init takes {:.2} times that; goal 1.25", own / least);
        measured(&format!("to the app, natively, {what}"), least, "ms", &goal);
    }
}

/// A loop device, let go with this.
struct LoopDisk(String);

impl LoopDisk {
    fn attach(file: &Path) -> Self {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        Self(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// Runs a program of this directory as PID 1 of namespaces of its own, with a root directory in memory.
fn natively(dir: &Path, program: &str) -> String {
    const SCRIPT: &str = "
        mount -t tmpfs tmpfs /mnt
        cp \"$1/start\" /mnt/start; cp \"$1/$2\" /mnt/measured; cp \"$1/config\" /mnt/config
        mkdir /mnt/dev /mnt/old
        ip link add eth0 type veth peer name far; ip link set far up
        cd /mnt; pivot_root . old; cd /
        exec /start </config
    ";
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--pid", "--fork"])
        .args(["--net", "--uts", "--ipc", "--cgroup"])
        .args(["--", "sh", "-ec", SCRIPT, "sh"])
        .arg(dir)
        .arg(program)
        .output()
        .unwrap();
    // The app's cgroup is one of this machine's here: it goes with the run.
    let tidied = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--cgroup", "--"])
        .args(["sh", "-ec"])
        .arg("mount -t cgroup2 cgroup2 /mnt; [ ! -e /mnt/app ] || rmdir /mnt/app")
        .status()
        .unwrap();
    assert!(tidied.success());
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Milliseconds in the app's line.
fn took(told: &str) -> f64 {
    let line = told
        .lines()
        .find_map(|line| line.trim().strip_prefix("TOOK "));
    let nanos: f64 = line.unwrap_or_else(|| panic!("{told}")).parse().unwrap();
    nanos / 1e6
}

#[test]
#[ignore = "a measurement: make bench"]
fn output_and_stop() {
    const LINES: usize = 300_000;
    const LINE_BYTES: usize = 100;
    in_a_network_of_its_own("output_and_stop", async {
        let line = "x".repeat(LINE_BYTES - 1);
        let script = format!(
            "grep Rss: /proc/1/smaps_rollup; yes {line} | head -n {} > /lines; cat /lines >/dev/null; \
             echo GO; for i in 0 1 2 3 4 5 6 7 8 9; do cat /lines; done; exec sleep 1000",
            LINES / 10
        );
        for (name, kernel) in kernels() {
            let mut bench = Bench::new().await;
            let (mut rates, mut stops) = (Vec::new(), Vec::new());
            let (mut init, mut pid_1) = (0.0, 0.0);
            for _ in 0..3 {
                let mut guest = bench.boot(&kernel, config(&["sh", "-c", &script])).await;
                let seen = guest.until("go", |seen| seen.lines.iter().any(|l| l == "GO"));
                // The app sees PID 1 of its own namespace.
                pid_1 = kib(&seen.await.lines[0]);
                guest.node.send(HostFrame::Stats);
                let seen = guest.until("stats", |seen| seen.init_memory_bytes > 0);
                init = seen.await.init_memory_bytes as f64;
                let since = Instant::now();
                let whole = LINES * (LINE_BYTES - 1);
                let done = guest.until("lines", |seen| seen.bytes >= whole).await;
                let seconds = since.elapsed().as_secs_f64();
                assert_eq!(done.dropped, 0);
                rates.push((LINES * LINE_BYTES) as f64 / 1e6 / seconds);
                let since = Instant::now();
                guest.node.send(HostFrame::Stop { timeout_ms: 10_000 });
                guest.vm.ended().await;
                stops.push(since.elapsed().as_secs_f64());
            }
            measured(
                &format!("init's resident memory, {name}"),
                init / 1024.0 / 1024.0,
                "MiB",
                "goal 2.00",
            );
            measured(
                &format!("resident memory of PID 1 of the app's namespace, {name}"),
                pid_1 / 1024.0,
                "MiB",
                "none",
            );
            measured(
                &format!("output, app to node, {name}"),
                median(&rates),
                "MB/s",
                "goal 30",
            );
            measured(
                &format!("stop to gone, {name}"),
                median(&stops),
                "s",
                "goal 1",
            );
        }
    });
}
