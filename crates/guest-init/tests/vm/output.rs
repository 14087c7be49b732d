//! The app's output on its way to a node that is present, slow or gone.

use std::time::Instant;

use guest_protocol::{HostFrame, LogRecord, MAX_LOG_PIECE_BYTES, Phase, Stream};

use crate::machine::{Plan, Tools, config};

#[test]
fn every_byte_arrives_in_order_and_long_lines_in_pieces() {
    let Some(tools) = Tools::find() else { return };
    let script = "seq 1 20000; head -c 40000 /dev/zero | tr '\\0' x; echo; printf '\\377\\n'";
    let mut guest = Plan::new(&tools, config(script)).boot();
    guest.wait_started();
    let since = Instant::now();
    guest.finish();
    let elapsed = since.elapsed().as_secs_f64();
    let seen = guest.seen();
    let lines = seen.lines(Stream::Stdout);
    assert_eq!(lines.len(), 20002);
    assert!(
        lines[..20000]
            .iter()
            .zip(1..)
            .all(|(line, number)| *line == number.to_string())
    );
    assert_eq!(lines[20000].len(), 40000);
    let of_app = |record: &&LogRecord| record.stream == Stream::Stdout;
    let last = seen.logs.values().rfind(of_app);
    assert_eq!(last.unwrap().line, [0xff]);
    assert!(
        seen.logs
            .values()
            .all(|record| record.line.len() <= MAX_LOG_PIECE_BYTES)
    );
    assert!(seen.logs.values().all(|record| record.dropped == 0));
    assert_eq!(
        seen.logs.values().filter(|record| record.partial).count(),
        2
    );
    assert_eq!(seen.logs.values().filter(of_app).count(), 20004);
    // Init may have a line of its own: on a busy machine it puts the guest's clock right.
    let numbers = 1..=u64::try_from(seen.logs.len()).unwrap();
    assert!(
        seen.logs.keys().copied().eq(numbers),
        "numbers count up from 1"
    );
    let times: Vec<_> = seen.logs.values().map(|record| record.at_nanos).collect();
    assert!(times.is_sorted() && times[0] > 1_700_000_000_000_000_000);
    eprintln!("20004 records in {elapsed:.2} s, power-off included");
}

#[test]
fn a_guest_dials_a_restarted_node_and_loses_no_line() {
    let Some(tools) = Tools::find() else { return };
    let script = "echo first; while [ ! -e /go ]; do sleep 0.05; done; seq 1 3000; exit 5";
    let mut guest = Plan::new(&tools, config(script)).boot();
    guest.wait_line("first");
    guest.change(|seen| seen.no_log_acks = true);
    guest.send(&HostFrame::Exec(guest_protocol::ExecRequest {
        session: 9,
        argv: ["touch", "/go"].map(str::to_owned).to_vec(),
        terminal: None,
        terminal_type: None,
        main: false,
    }));
    guest.wait_line("100");
    guest.break_connections();
    guest.wait("hello again", |seen| {
        let both = seen.control_phases().len() == 2 && seen.log_phases().len() == 2;
        both.then_some(())
    });
    guest.change(|seen| seen.no_log_acks = false);
    let event = guest.wait("the exit", |seen| seen.exits.first().cloned());
    assert_eq!(event.exit_code, 5);
    // The node disconnects before it has recorded the end.
    guest.break_connections();
    guest.wait("the exit again", |seen| {
        (seen.exits.len() == 2).then_some(())
    });
    guest.finish();
    let seen = guest.seen();
    assert_eq!(seen.started, 1);
    assert_eq!(seen.exits[0], seen.exits[1]);
    assert_eq!(seen.control_phases().last(), Some(&Phase::Exited));
    assert!(seen.logs_sent_again > 0);
    let lines = seen.lines(Stream::Stdout);
    assert_eq!(lines.len(), 3001);
    assert!(
        lines[1..]
            .iter()
            .zip(1..)
            .all(|(line, number)| *line == number.to_string())
    );
}

#[test]
fn case_a_guest_whose_node_was_killed_with_bytes_unread_dials_again_and_ends_its_commands() {
    let Some(tools) = Tools::find() else { return };
    let script = "n=0; while :; do n=$((n + 1)); echo $n; sleep 0.2; done";
    let guest = Plan::new(&tools, config(script)).boot();
    guest.wait_line("1");
    let exec = |session, script: &str| {
        HostFrame::Exec(guest_protocol::ExecRequest {
            session,
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
            terminal: None,
            terminal_type: None,
            main: false,
        })
    };
    // It waits for nothing from its channel.
    guest.send(&exec(1, "echo begun; exec sleep 12345"));
    guest.wait("the command", |seen| {
        let exec = seen.exec.get(&1)?;
        exec.stdout.starts_with(b"begun").then_some(())
    });
    // The node has answered for the time: the guest knows what to expect of it.
    guest.wait("a question for the time", |seen| {
        (seen.times_asked > 0).then_some(())
    });
    guest.kill_with_unread_bytes();
    let lines = guest.seen().lines(Stream::Stdout).len();
    guest.wait("hello again", |seen| {
        let both = seen.control_phases().len() >= 2 && seen.log_phases().len() >= 2;
        both.then_some(())
    });
    guest.wait("further lines", |seen| {
        (seen.lines(Stream::Stdout).len() > lines + 5).then_some(())
    });
    guest.send_however_often_it_dials(&exec(2, "pgrep -f 'sleep 12345' && echo runs || echo gone"));
    let said = guest.wait("the second command", |seen| {
        let exec = seen.exec.get(&2)?;
        exec.exit.as_ref()?;
        Some(String::from_utf8_lossy(&exec.stdout).into_owned())
    });
    assert!(said.ends_with("gone\n"), "{said}");
    let lines = guest.seen().lines(Stream::Stdout);
    assert!(
        lines
            .iter()
            .zip(1..)
            .all(|(line, number)| *line == number.to_string()),
        "{lines:?}"
    );
}

#[test]
fn a_node_that_does_not_read_loses_lines_and_never_blocks_the_app() {
    let Some(tools) = Tools::find() else { return };
    // 6 MB: more than every buffer on the way together.
    let line = "x".repeat(99);
    let script = format!(
        "echo first; while [ ! -e /go ]; do sleep 0.05; done; yes {line} | head -n 60000; \
         echo done > /written; while [ -e /written ]; do sleep 0.05; done; echo last"
    );
    let mut guest = Plan::new(&tools, config(&script)).boot();
    guest.wait_line("first");
    guest.change(|seen| seen.hold_logs = true);
    let exec = |session, script: &str| {
        HostFrame::Exec(guest_protocol::ExecRequest {
            session,
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
            terminal: None,
            terminal_type: None,
            main: false,
        })
    };
    guest.send(&exec(
        1,
        "touch /go; while [ ! -e /written ]; do sleep 0.05; done",
    ));
    let since = Instant::now();
    guest.wait("the app to have written all", |seen| {
        seen.exec.get(&1)?.exit.clone()
    });
    eprintln!(
        "6 MB written past a node that reads nothing in {:.2} s",
        since.elapsed().as_secs_f64()
    );
    guest.change(|seen| seen.hold_logs = false);
    guest.send(&exec(2, "rm /written"));
    guest.wait_line("last");
    guest.finish();
    let seen = guest.seen();
    let dropped: u64 = seen
        .logs
        .values()
        .map(|record| u64::from(record.dropped))
        .sum();
    let lines = seen.lines(Stream::Stdout);
    assert!(dropped > 0, "the buffers are bounded");
    assert_eq!(
        lines.len() as u64 + dropped,
        60_000 + 2,
        "each dropped line is counted"
    );
    let platform = seen.lines(Stream::Platform);
    assert!(
        platform
            .iter()
            .any(|line| line.contains("lines were dropped here")),
        "{platform:?}"
    );
}

#[test]
#[ignore = "a measurement, of use on an idle machine only"]
fn log_throughput() {
    let Some(tools) = Tools::find() else { return };
    let line = "x".repeat(99);
    let script = format!(
        "cat /proc/uptime; yes {line} | head -n 30000 > /lines; \
         while [ ! -e /go ]; do sleep 0.05; done; \
         for i in 0 1 2 3 4 5 6 7 8 9; do cat /lines; done; cat /proc/uptime; cat /proc/1/stat"
    );
    let mut guest = Plan::new(&tools, config(&script)).boot();
    guest.wait_started();
    eprintln!("QEMU start to Started {:.2} s", guest.age().as_secs_f64());
    let uptime = guest.wait("a line", |seen| seen.lines(Stream::Stdout).first().cloned());
    eprintln!("of which in the guest, until the app's first line: {uptime}");
    guest.send(&HostFrame::Exec(guest_protocol::ExecRequest {
        session: 1,
        argv: ["touch", "/go"].map(str::to_owned).to_vec(),
        terminal: None,
        terminal_type: None,
        main: false,
    }));
    let since = Instant::now();
    guest.wait("the exit", |seen| seen.exits.first().cloned());
    guest.wait("every line", |seen| {
        (seen.logs.len() >= 300_001).then_some(())
    });
    let seconds = since.elapsed().as_secs_f64();
    let dropped: u32 = guest
        .seen()
        .logs
        .values()
        .map(|record| record.dropped)
        .sum();
    let lines = guest.seen().lines(Stream::Stdout);
    eprintln!("{:?}", &lines[lines.len() - 2..]);
    eprintln!("{:.1} MB/s, {dropped} lines dropped", 30.0 / seconds);
    guest.finish();
}
