//! How many answers a second one core gives. `make bench` runs it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use resolver::agent::Resolver;
use support::{instance, machine, names, runtime};
use test_namespaces::{isolated, shell, within};

/// Answers a second of one core that are promised (issue 14).
const PROMISED: f64 = 20_000.0;
/// Questions on their way at a time.
const WINDOW: usize = 64;
const MEASURED: Duration = Duration::from_secs(5);

/// CPU time of a process, in clock ticks.
fn ticks(pid: &str) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
#[ignore = "a measurement: make bench"]
fn bench_answers_a_second() {
    if !isolated("bench_answers_a_second") {
        return;
    }
    let (options, runtime) = (machine(), runtime());
    runtime.block_on(async {
        let resolver = Resolver::ensure(&options).await.unwrap();
        let mut update = names(&[]);
        // An env of a thousand instances, with process types of ten.
        for id in 0x100..0x100 + 1000 {
            let (id, named) = instance("shop", &format!("p{}", id / 10), id, true);
            update.instances.insert(id, named);
        }
        resolver.update(update).await.unwrap();
        let pid = shell("pgrep --full 'name-server [r]esolver'");
        for (what, name, kind) in [
            ("AAAA of 10 instances", "p30.prod.shop.internal.", RecordType::AAAA),
            ("AAAA of one instance", "0000012c.p30.prod.shop.internal.", RecordType::AAAA),
            ("SRV of 10 instances", "p30.prod.shop.internal.", RecordType::SRV),
            ("no such name", "nothing.prod.shop.internal.", RecordType::AAAA),
        ] {
            let mut message = Message::query();
            message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
            let question = message.to_vec().unwrap();
            let before = ticks(pid.trim());
            let (answers, took) = within("guest1", move || {
                let socket = UdpSocket::bind("100.64.0.1:0").unwrap();
                socket.connect("192.0.0.3:53").unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
                let mut buffer = [0; 1500];
                for _ in 0..WINDOW {
                    socket.send(&question).unwrap();
                }
                let begun = Instant::now();
                let mut answers = 0_u32;
                while begun.elapsed() < MEASURED {
                    // One that was lost is asked again.
                    if socket.recv(&mut buffer).is_ok() {
                        answers += 1;
                    }
                    socket.send(&question).unwrap();
                }
                (answers, begun.elapsed())
            });
            // 100 ticks a second: the kernel's constant for all programs.
            let cpu = f64::from(u32::try_from(ticks(pid.trim()) - before).unwrap()) / 100.0;
            let a_second = f64::from(answers) / took.as_secs_f64();
            let a_core = f64::from(answers) / cpu;
            eprintln!("{what}: {a_second:.0} answers/s beside the one who asks, {a_core:.0} a second of CPU");
            assert!(a_core >= PROMISED, "{what}: {a_core:.0} answers a second of CPU");
        }
        let memory = fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap();
        eprintln!("memory: {}", memory.lines().find(|line| line.starts_with("VmHWM")).unwrap());
        Resolver::remove(&options.run_dir).await.unwrap();
    });
}
