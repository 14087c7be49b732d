//! Which connections the kernel hands to the forwarder ([`crate::forward`]), decided by two BPF programs.
//!
//! An app that listens on IPv4 or on loopback only is not found at the instance's address, which is IPv6. A
//! listener of ours on the same port would be found there, and would make the app's own bind of that port fail, at
//! once or later. So the forwarder has one listener on a port of its own, and
//! - a `sock_ops` program counts the guest's listeners per port and kind, as they begin and end;
//! - an `sk_lookup` program, which the kernel asks when it looks for the listener of a new connection, names the
//!   forwarder's listener for a port that has none on IPv6 and one that may be reached otherwise.
//!
//! So nothing polls, no port is taken, and a listener on IPv6 is found from the moment on at which it exists. An app on
//! IPv6 pays for a look into one hash map per connection.
//!
//! Who listens on `0.0.0.0` wants to be reached by all. Who listens on loopback (`127.0.0.1`, `::1`) wants not to be,
//! unless the manifest declares the port. The node's root is let in all the same, for `platform forward`: a connection from the node's
//! address and from a reserved port (below 1024).
//!
//! The programs are assembled here, by hand: there is no compiler and no loader for them in this workspace, and they are
//! hundred and thirty instructions. Absent on purpose: UDP.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use crate::assembler::{Assembler, Helper, Label, R0, R1, R2, R3, R4, R6, R7, R9, R10};
use crate::sys::{self, BpfMap};

/// Most ports with a count. A port keeps its count for good, so that no end of a listener is missed. Listeners on further
/// ports are not forwarded to.
const MAX_PORTS: u32 = 8192;
/// Most ports with a count of listeners on loopback that the manifest does not declare. Programs open many of them for a moment: the
/// kernel drops the count that was not used for longest, and the node does not reach that listener then.
const MAX_PRIVATE_PORTS: u32 = 1024;
/// Bytes of such a count.
const PRIVATE_BYTES: u32 = 4;
/// The part of a port, as the kernel has it in network order in a number of this machine, that is 0 in a reserved one: in its first byte, all
/// but the lowest two bits.
const NOT_RESERVED: i32 = 0xfc;
/// Bytes of a port's counts: one number of 4 bytes for each [`Count`].
const COUNTS_BYTES: u32 = 16;

// From linux/bpf.h.
const BPF_MAP_TYPE_HASH: u32 = 1;
const BPF_MAP_TYPE_LRU_HASH: u32 = 9;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_NOEXIST: i32 = 1;
const BPF_PROG_TYPE_SOCK_OPS: u32 = 13;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_CGROUP_SOCK_OPS: u32 = 3;
const BPF_SK_LOOKUP: u32 = 36;
const BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB: i32 = 5;
const BPF_SOCK_OPS_STATE_CB: i32 = 10;
const BPF_SOCK_OPS_TCP_LISTEN_CB: i32 = 11;
const BPF_SOCK_OPS_STATE_CB_FLAG: i32 = 4;
const BPF_TCP_LISTEN: i32 = 10;
const SK_PASS: i32 = 1;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
const IPPROTO_TCP: i32 = 6;

/// The numbers of a port, by their offset in its entry.
#[derive(Debug, Clone, Copy)]
enum Count {
    /// Listeners that are found at the instance's address.
    Ipv6 = 0,
    /// Listeners on every IPv4 address, or on the instance's.
    Ipv4 = 4,
    /// Listeners on loopback.
    Loopback = 8,
    /// 1 for a port that the manifest declares.
    Declared = 12,
}

/// Offsets in `struct bpf_sk_lookup`.
mod lookup {
    pub(super) const FAMILY: i16 = 8;
    pub(super) const PROTOCOL: i16 = 12;
    pub(super) const REMOTE_IP6: i16 = 20;
    pub(super) const REMOTE_PORT: i16 = 36;
    pub(super) const LOCAL_IP6: i16 = 44;
    pub(super) const LOCAL_PORT: i16 = 60;
}

/// Offsets in `struct bpf_sock_ops`.
mod ops {
    pub(super) const OP: i16 = 0;
    pub(super) const REPLY: i16 = 4;
    /// In the place of the reply.
    pub(super) const OLD_STATE: i16 = 4;
    pub(super) const FAMILY: i16 = 20;
    pub(super) const LOCAL_IP4: i16 = 28;
    pub(super) const LOCAL_IP6: i16 = 48;
    pub(super) const LOCAL_PORT: i16 = 68;
    pub(super) const CB_FLAGS: i16 = 84;
}

/// The words of an address, as the kernel has them: 4 bytes in network order as a number of this machine.
fn words(address: Ipv6Addr) -> [i32; 4] {
    let octets = address.octets();
    let word = |at: usize| {
        i32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
    };
    [word(0), word(4), word(8), word(12)]
}

/// The address of the node of an instance: the first of its /64 (ADR 0004).
fn node_of(address: Ipv6Addr) -> Ipv6Addr {
    let [a, b, c, d, ..] = address.segments();
    Ipv6Addr::new(a, b, c, d, 0, 0, 0, 1)
}

/// What the programs count and look up.
struct Maps {
    /// By port: its [`Count`]s.
    ports: BpfMap,
    /// By port: listeners on loopback, where `ports` has no counts.
    private: BpfMap,
    /// The forwarder's listener.
    forwarder: BpfMap,
}

/// Names the forwarder's listener for a new connection to a port of the instance's address that has no listener there. R9 says whether the
/// node's root makes it.
fn lookup_program(address: Ipv6Addr, maps: &Maps) -> Vec<[u8; 8]> {
    let Maps {
        ports,
        private,
        forwarder,
    } = maps;
    let mut program = Assembler::default();
    program.copy(R6, R1);
    program.load(R2, R6, lookup::FAMILY);
    program.goto_if_not_equal(R2, AF_INET6, Label::End);
    program.load(R2, R6, lookup::PROTOCOL);
    program.goto_if_not_equal(R2, IPPROTO_TCP, Label::End);
    for (offset, word) in (lookup::LOCAL_IP6..).step_by(4).zip(words(address)) {
        program.load(R2, R6, offset);
        program.goto_if_not_equal(R2, word, Label::End);
    }
    program.set(R9, 0);
    for (offset, word) in (lookup::REMOTE_IP6..)
        .step_by(4)
        .zip(words(node_of(address)))
    {
        program.load(R2, R6, offset);
        program.goto_if_not_equal(R2, word, Label::Stranger);
    }
    program.load(R2, R6, lookup::REMOTE_PORT);
    program.and(R2, NOT_RESERVED);
    program.goto_if_not_equal(R2, 0, Label::Stranger);
    program.set(R9, 1);
    program.label(Label::Stranger);
    program.load(R2, R6, lookup::LOCAL_PORT);
    program.store(R10, -4, R2);
    look_up(&mut program, ports);
    program.goto_if_null(R0, Label::Private);
    program.load(R1, R0, Count::Ipv6 as i16);
    program.goto_if_not_equal(R1, 0, Label::End);
    program.load(R1, R0, Count::Ipv4 as i16);
    program.goto_if_not_equal(R1, 0, Label::Steer);
    program.load(R1, R0, Count::Loopback as i16);
    program.goto_if_equal(R1, 0, Label::Private);
    program.load(R1, R0, Count::Declared as i16);
    program.goto_if_not_equal(R1, 0, Label::Steer);
    program.goto_if_equal(R9, 1, Label::Steer);
    program.goto(Label::End);
    program.label(Label::Private);
    program.goto_if_equal(R9, 0, Label::End);
    look_up(&mut program, private);
    program.goto_if_null(R0, Label::End);
    program.load(R1, R0, 0);
    program.goto_if_equal(R1, 0, Label::End);
    program.label(Label::Steer);
    program.store_value(R10, -4, 0);
    program.set_map(R1, forwarder);
    program.copy(R2, R10);
    program.add(R2, -4);
    program.call(Helper::MapLookup);
    program.goto_if_null(R0, Label::End);
    program.copy(R7, R0);
    program.copy(R1, R6);
    program.copy(R2, R7);
    program.set(R3, 0);
    program.call(Helper::SkAssign);
    program.copy(R1, R7);
    program.call(Helper::SkRelease);
    program.finish(SK_PASS)
}

/// Counts the listeners of the network namespace with this cookie. R7 has what is added, R9 the count.
fn count_program(address: Ipv6Addr, ipv4: Ipv4Addr, cookie: u64, maps: &Maps) -> Vec<[u8; 8]> {
    let Maps { ports, private, .. } = maps;
    let mut program = Assembler::default();
    program.copy(R6, R1);
    program.load(R2, R6, ops::OP);
    program.goto_if_equal(R2, BPF_SOCK_OPS_TCP_LISTEN_CB, Label::Listen);
    program.goto_if_equal(R2, BPF_SOCK_OPS_STATE_CB, Label::State);
    // "No answer" to the kernel's questions.
    program.set(R3, -1);
    program.store(R6, ops::REPLY, R3);
    program.goto_if_equal(R2, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, Label::Passive);
    program.goto(Label::End);

    // A connection inherits the flag of its listener: nothing of a connection's life is of interest.
    program.label(Label::Passive);
    program.load(R2, R6, ops::CB_FLAGS);
    program.copy(R3, R2);
    program.and(R3, BPF_SOCK_OPS_STATE_CB_FLAG);
    program.goto_if_equal(R3, 0, Label::End);
    program.and(R2, !BPF_SOCK_OPS_STATE_CB_FLAG);
    program.copy(R1, R6);
    program.call(Helper::SockOpsFlagsSet);
    program.goto(Label::End);

    program.label(Label::State);
    program.load(R2, R6, ops::OLD_STATE);
    program.goto_if_not_equal(R2, BPF_TCP_LISTEN, Label::End);
    program.set(R7, -1);
    program.goto(Label::Classify);

    program.label(Label::Listen);
    program.load(R2, R6, ops::CB_FLAGS);
    program.or(R2, BPF_SOCK_OPS_STATE_CB_FLAG);
    program.copy(R1, R6);
    program.call(Helper::SockOpsFlagsSet);
    program.set(R7, 1);

    program.label(Label::Classify);
    program.copy(R1, R6);
    program.call(Helper::NetnsCookie);
    program.set_wide(R1, 0, cookie);
    program.goto_if_different(R0, R1, Label::End);
    program.load(R2, R6, ops::FAMILY);
    program.goto_if_equal(R2, AF_INET6, Label::Ipv6);
    program.goto_if_not_equal(R2, AF_INET, Label::End);
    program.load(R4, R6, ops::LOCAL_IP4);
    program.goto(Label::Ipv4);

    program.label(Label::Ipv6);
    program.load(R1, R6, ops::LOCAL_IP6);
    program.load(R2, R6, ops::LOCAL_IP6 + 4);
    program.load(R3, R6, ops::LOCAL_IP6 + 8);
    program.load(R4, R6, ops::LOCAL_IP6 + 12);
    program.set(R9, Count::Ipv6 as i32);
    program.copy(R0, R1);
    program.or_register(R0, R2);
    program.goto_if_not_equal(R0, 0, Label::Own);
    let mapped = i32::from_ne_bytes([0, 0, 0xff, 0xff]);
    program.goto_if_equal(R3, mapped, Label::Ipv4);
    program.goto_if_not_equal(R3, 0, Label::End);
    program.goto_if_equal(R4, 0, Label::Apply);
    let one = i32::from_ne_bytes([0, 0, 0, 1]);
    program.goto_if_equal(R4, one, Label::CountLoopback);
    program.goto(Label::End);
    program.label(Label::Own);
    for (register, word) in [R1, R2, R3, R4].into_iter().zip(words(address)) {
        program.goto_if_not_equal(register, word, Label::End);
    }
    program.goto(Label::Apply);

    program.label(Label::Ipv4);
    program.goto_if_equal(R4, 0, Label::CountIpv4);
    program.goto_if_equal(R4, i32::from_ne_bytes(ipv4.octets()), Label::CountIpv4);
    let first_octet = i32::from_ne_bytes([0xff, 0, 0, 0]);
    program.and(R4, first_octet);
    let loopback = i32::from_ne_bytes([127, 0, 0, 0]);
    program.goto_if_equal(R4, loopback, Label::CountLoopback);
    program.goto(Label::End);
    program.label(Label::CountIpv4);
    program.set(R9, Count::Ipv4 as i32);
    program.goto(Label::Apply);
    program.label(Label::CountLoopback);
    program.set(R9, Count::Loopback as i32);

    program.label(Label::Apply);
    program.load(R2, R6, ops::LOCAL_PORT);
    program.store(R10, -4, R2);
    look_up(&mut program, ports);
    program.goto_unless_null(R0, Label::Add);
    // The first listener of this port. Declared ports have an entry: one on loopback is the app's own.
    program.goto_if_equal(R9, Count::Loopback as i32, Label::Private);
    program.goto_if_equal(R7, -1, Label::End);
    for offset in [-24, -20, -16, -12] {
        program.store_value(R10, offset, 0);
    }
    program.set_map(R1, ports);
    program.copy(R2, R10);
    program.add(R2, -4);
    program.copy(R3, R10);
    program.add(R3, -24);
    program.set(R4, BPF_NOEXIST);
    program.call(Helper::MapUpdate);
    look_up(&mut program, ports);
    program.goto_if_null(R0, Label::End);
    program.goto(Label::Add);

    program.label(Label::Private);
    program.set(R9, 0);
    look_up(&mut program, private);
    program.goto_unless_null(R0, Label::Add);
    program.goto_if_equal(R7, -1, Label::End);
    program.store_value(R10, -24, 1);
    program.set_map(R1, private);
    program.copy(R2, R10);
    program.add(R2, -4);
    program.copy(R3, R10);
    program.add(R3, -24);
    program.set(R4, BPF_NOEXIST);
    program.call(Helper::MapUpdate);
    program.goto(Label::End);

    program.label(Label::Add);
    program.add_register(R0, R9);
    program.goto_if_equal(R7, -1, Label::Remove);
    program.atomic_add(R0, R7);
    program.goto(Label::End);
    program.label(Label::Remove);
    // It began while there was no room for its count.
    program.load(R1, R0, 0);
    program.goto_if_equal(R1, 0, Label::End);
    program.atomic_add(R0, R7);
    program.finish(1)
}

/// Looks up the port on the stack.
fn look_up(program: &mut Assembler, ports: &BpfMap) {
    program.set_map(R1, ports);
    program.copy(R2, R10);
    program.add(R2, -4);
    program.call(Helper::MapLookup);
}

/// The programs at work; they end when this value is dropped.
pub(crate) struct Steering {
    _maps: Maps,
    _links: [OwnedFd; 2],
}

impl Steering {
    /// Hands new connections to `address` to `forwarder`, a listening TCP socket of IPv6, where nothing listens for them.
    /// Counts the listeners that begin from now on in the cgroup and below it. `declared` are the ports at which
    /// listeners on loopback are reached too.
    ///
    /// # Errors
    /// The kernel lacks BPF, or refuses a program.
    pub(crate) fn begin(
        address: Ipv6Addr,
        ipv4: Ipv4Addr,
        declared: impl Iterator<Item = u16>,
        forwarder: BorrowedFd<'_>,
        network_namespace: BorrowedFd<'_>,
        cgroup: BorrowedFd<'_>,
    ) -> io::Result<Self> {
        let ports = BpfMap::create(
            BPF_MAP_TYPE_HASH,
            4,
            COUNTS_BYTES,
            MAX_PORTS,
            BPF_F_NO_PREALLOC,
        )?;
        for port in declared {
            let mut counts = [0; COUNTS_BYTES as usize];
            counts[Count::Declared as usize..].copy_from_slice(&1_u32.to_ne_bytes());
            ports.set(&u32::from(port).to_ne_bytes(), &counts)?;
        }
        let private = BpfMap::create(
            BPF_MAP_TYPE_LRU_HASH,
            4,
            PRIVATE_BYTES,
            MAX_PRIVATE_PORTS,
            0,
        )?;
        let forwarding = BpfMap::create(BPF_MAP_TYPE_SOCKMAP, 4, 4, 1, 0)?;
        forwarding.set(&[0; 4], &forwarder.as_raw_fd().to_ne_bytes())?;
        let cookie = sys::network_namespace_cookie(forwarder)?;
        let attach = |kind, attach, program: &[[u8; 8]], target| {
            let program = sys::bpf_program(kind, attach, program)?;
            sys::bpf_link(program.as_fd(), target, attach)
        };
        let maps = Maps {
            ports,
            private,
            forwarder: forwarding,
        };
        let count = count_program(address, ipv4, cookie, &maps);
        let lookup = lookup_program(address, &maps);
        let links = [
            attach(BPF_PROG_TYPE_SOCK_OPS, BPF_CGROUP_SOCK_OPS, &count, cgroup)?,
            attach(
                BPF_PROG_TYPE_SK_LOOKUP,
                BPF_SK_LOOKUP,
                &lookup,
                network_namespace,
            )?,
        ];
        Ok(Self {
            _maps: maps,
            _links: links,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs::{self, File};
    use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
    use std::os::fd::AsFd as _;
    use std::process::Command;
    use std::time::Instant;

    use super::Steering;

    const ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7);
    const IPV4: &str = "100.64.0.7";

    /// Where this machine has cgroup2, and a network namespace of this thread with the two addresses.
    fn privileged() -> Option<File> {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let cgroup = mounts.lines().find_map(|line| {
            let mut words = line.split(' ');
            let (target, kind) = (words.nth(1)?, words.next()?);
            (kind == "cgroup2").then_some(target)
        })?;
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        // SAFETY: only the network namespace of this thread changes.
        #[allow(unsafe_code, reason = "a test's own namespace")]
        unsafe {
            rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET).ok()?;
        }
        // The kernel answers before the route to a new address of IPv6 is there.
        let node = super::node_of(ADDRESS);
        let script = format!(
            "ip link set lo up; ip addr add {node}/128 dev lo nodad; ip addr add {ADDRESS}/128 dev lo nodad; ip addr add {IPV4}/32 dev lo
             for try in $(seq 1000); do
                 if ip -6 route show table local | grep -q {ADDRESS}; then exit; fi
                 sleep 0.01
             done
             exit 1"
        );
        let status = Command::new("sh").args(["-ec", &script]).status().unwrap();
        assert!(status.success());
        Some(File::open(cgroup).unwrap())
    }

    /// Connections that are measured.
    const MEASURED: u32 = 2000;

    /// What a connection to an app on IPv6 takes.
    fn micros_per_connection() -> f64 {
        let listener = TcpListener::bind((ADDRESS, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let since = Instant::now();
        for _ in 0..MEASURED {
            let stream = TcpStream::connect(address).unwrap();
            drop((stream, listener.accept().unwrap()));
        }
        since.elapsed().as_secs_f64() * 1e6 / f64::from(MEASURED)
    }

    #[test]
    fn connections_are_steered_to_the_forwarder_where_nothing_listens_on_ipv6_and_something_elsewhere()
     {
        let Some(cgroup) = privileged() else {
            assert!(std::env::var_os("PLATFORM_REQUIRE_VM").is_none());
            eprintln!("skipped: needs root and cgroup2");
            return;
        };
        let forwarder = TcpListener::bind("[::1]:6").unwrap();
        forwarder.set_nonblocking(true).unwrap();
        let namespace = File::open("/proc/thread-self/ns/net").unwrap();
        let without = micros_per_connection();
        let declared = [8080];
        let since = Instant::now();
        let _steering = Steering::begin(
            ADDRESS,
            IPV4.parse().unwrap(),
            declared.into_iter(),
            forwarder.as_fd(),
            namespace.as_fd(),
            cgroup.as_fd(),
        )
        .unwrap();
        let begun = since.elapsed().as_secs_f64() * 1e3;
        eprintln!(
            "{begun:.2} ms to begin; a connection to an app on IPv6: {without:.1} us without the programs, {:.1} us with them",
            micros_per_connection()
        );

        // Where a connection to a port of the instance goes.
        let reached = |port: u16| {
            let address = SocketAddr::from((ADDRESS, port));
            let Ok(_stream) = TcpStream::connect(address) else {
                return "nobody";
            };
            match forwarder.accept() {
                Ok((accepted, _)) => {
                    assert_eq!(accepted.local_addr().unwrap(), address);
                    "forwarder"
                }
                Err(_) => "app",
            }
        };
        for (address, port, expected) in [
            ("0.0.0.0", 8080, "forwarder"),
            ("0.0.0.0", 7070, "forwarder"),
            (IPV4, 7070, "forwarder"),
            ("127.0.0.1", 8080, "forwarder"),
            ("127.0.0.1", 7070, "nobody"),
            ("127.0.0.2", 8080, "forwarder"),
            ("[::1]", 8080, "forwarder"),
            ("[::1]", 7070, "nobody"),
            ("[::ffff:127.0.0.1]", 8080, "forwarder"),
            ("[::ffff:0.0.0.0]", 7070, "forwarder"),
            ("[::]", 8080, "app"),
            ("[::]", 7070, "app"),
            ("[fd00::7]", 7070, "app"),
        ] {
            let text = format!("{address}:{port}");
            for _ in 0..3 {
                assert_eq!(reached(port), "nobody", "before {text}");
                let listener = TcpListener::bind(&text).unwrap();
                assert_eq!(reached(port), expected, "{text}");
                drop(listener);
            }
            assert_eq!(reached(port), "nobody", "after {text}");
        }

        // The node's root, from a reserved port, reaches what listens on loopback too; nobody else does.
        let reached_from = |from: Ipv6Addr, reserved: bool, port: u16| {
            use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
            let dialled = |port_of_ours: u16| {
                let socket = socket(AddressFamily::INET6, SocketType::STREAM, None)?;
                sockopt::set_socket_reuseaddr(&socket, true)?;
                bind(&socket, &SocketAddr::from((from, port_of_ours)))?;
                connect(&socket, &SocketAddr::from((ADDRESS, port)))?;
                Ok::<_, rustix::io::Errno>(socket)
            };
            // One that was used a moment ago is not free towards the same port.
            let ports = if reserved { 900..1024 } else { 0..1 };
            for ours in ports {
                match dialled(ours) {
                    Ok(_open) => {
                        return match forwarder.accept() {
                            Ok(_) => "forwarder",
                            Err(_) => "app",
                        };
                    }
                    Err(rustix::io::Errno::ADDRNOTAVAIL | rustix::io::Errno::ADDRINUSE) => {}
                    Err(rustix::io::Errno::CONNREFUSED) => return "nobody",
                    Err(error) => panic!("from {from}: {error}"),
                }
            }
            panic!("no port is free");
        };
        let node = super::node_of(ADDRESS);
        for (address, port) in [("127.0.0.1", 7071), ("[::1]", 7071), ("127.0.0.1", 7070)] {
            for _ in 0..2 {
                assert_eq!(reached_from(node, true, port), "nobody");
                let listener = TcpListener::bind(format!("{address}:{port}")).unwrap();
                assert_eq!(reached_from(node, true, port), "forwarder");
                assert_eq!(reached_from(node, false, port), "nobody");
                assert_eq!(reached_from(ADDRESS, true, port), "nobody");
                let second = TcpListener::bind(format!("127.0.0.2:{port}")).unwrap();
                drop(listener);
                assert_eq!(reached_from(node, true, port), "forwarder");
                drop(second);
                assert_eq!(reached_from(node, true, port), "nobody");
            }
        }
        let open = TcpListener::bind("[::]:7071").unwrap();
        assert_eq!(reached_from(node, true, 7071), "app");
        drop(open);

        // First on IPv4, with an open connection, then on IPv6 too, and back.
        let v4 = TcpListener::bind("0.0.0.0:8080").unwrap();
        let open = TcpStream::connect((ADDRESS, 8080)).unwrap();
        let (accepted, _) = forwarder.accept().unwrap();
        let v6 = TcpListener::bind("[fd00::7]:8080").unwrap();
        assert_eq!(reached(8080), "app");
        drop(v4);
        assert_eq!(reached(8080), "app");
        drop((open, accepted, v6));
        assert_eq!(reached(8080), "nobody");
    }
}
