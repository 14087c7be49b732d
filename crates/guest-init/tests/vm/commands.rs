//! Commands beside the app, and stats.

use guest_protocol::{ExecRequest, HostFrame};

use crate::machine::{ExecSeen, Guest, Plan, Tools, config};

pub(crate) fn request(session: u32, argv: &[&str], terminal: Option<(u16, u16)>) -> HostFrame {
    let argv = argv.iter().map(|&word| word.to_owned()).collect();
    HostFrame::Exec(ExecRequest {
        session,
        argv,
        terminal,
        terminal_type: terminal.map(|_| "screen-256color".to_owned()),
        main: false,
    })
}

fn wait_output(guest: &Guest, session: u32, text: &str) {
    guest.wait(text, |seen| {
        let output = &seen.exec.get(&session)?.stdout;
        String::from_utf8_lossy(output).contains(text).then_some(())
    });
}

/// Standard output, standard error, exit code of a session that ended.
pub(crate) fn ended(guest: &Guest, session: u32) -> (String, String, u8) {
    guest.wait("the command's end", |seen| {
        let ExecSeen {
            stdout,
            stderr,
            exit,
            ..
        } = seen.exec.get(&session)?;
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        Some((text(stdout), text(stderr), exit.as_ref()?.exit_code))
    })
}

#[test]
fn commands_run_on_pipes_and_on_a_terminal_and_stats_are_answered() {
    let Some(tools) = Tools::find() else { return };
    let mut config = config("echo ready; exec sleep 1000");
    config.user = "shop".to_owned();
    let mut guest = Plan::new(&tools, config).boot();
    guest.wait_line("ready");

    // Pipes: both outputs apart, the app's user, the code.
    guest.send(&request(
        1,
        &["sh", "-c", "id -u; echo no >&2; exit 42"],
        None,
    ));
    assert_eq!(
        ended(&guest, 1),
        ("1000\n".to_owned(), "no\n".to_owned(), 42)
    );

    // Input, more than any buffer on the way, and its end.
    guest.send(&request(2, &["wc", "-c"], None));
    for _ in 0..40 {
        guest.send_exec(
            2,
            &HostFrame::ExecInput {
                bytes: vec![b'x'; 10_000],
            },
        );
    }
    guest.send_exec(2, &HostFrame::ExecInput { bytes: Vec::new() });
    assert_eq!(ended(&guest, 2), ("400000\n".to_owned(), String::new(), 0));

    // Much output, which arrives completely before the exit.
    guest.send(&request(3, &["head", "-c", "1000000", "/dev/zero"], None));
    assert_eq!(ended(&guest, 3).0.len(), 1_000_000);

    // A command that does not exist.
    guest.send(&request(4, &["nope"], None));
    let expected = (
        String::new(),
        "platform: command not found: nope\n".to_owned(),
        127,
    );
    assert_eq!(ended(&guest, 4), expected);

    // A terminal, its size, its new size, and its end of input.
    guest.send(&request(5, &["sh", "-i"], Some((24, 80))));
    let type_in = |text: &str| {
        guest.send_exec(
            5,
            &HostFrame::ExecInput {
                bytes: text.as_bytes().to_vec(),
            },
        );
    };
    type_in("stty size; tty; echo type=$TERM\n");
    wait_output(&guest, 5, "24 80");
    wait_output(&guest, 5, "/dev/pts/0");
    wait_output(&guest, 5, "type=screen-256color");
    guest.send_exec(
        5,
        &HostFrame::ExecResize {
            rows: 30,
            columns: 100,
        },
    );
    type_in("stty size\n");
    wait_output(&guest, 5, "30 100");
    type_in("exit 9\n");
    assert_eq!(ended(&guest, 5).2, 9);

    // A channel that breaks ends its command.
    guest.send(&request(6, &["sh", "-c", "echo up; exec sleep 999"], None));
    wait_output(&guest, 6, "up");
    guest.break_exec(6);
    guest.send(&request(
        7,
        &[
            "sh",
            "-c",
            "while pgrep -f 'sleep 999' | grep -qv $$; do :; done",
        ],
        None,
    ));
    assert_eq!(ended(&guest, 7).2, 0);

    guest.send(&HostFrame::Stats);
    let stats = guest.wait("stats", |seen| seen.stats.first().cloned());
    assert!(stats.cpu_micros > 0 && stats.processes >= 1, "{stats:?}");
    assert!(
        stats.memory_bytes > 0 && stats.memory_bytes < stats.memory_total_bytes,
        "{stats:?}"
    );
    assert!(stats.scratch_used_bytes > 0, "{stats:?}");

    guest.send(&HostFrame::Stop { timeout_ms: 1 });
    guest.finish();
}

#[test]
fn every_exit_code_and_every_signal_is_reported_exactly() {
    /// Commands that run at once, half of a guest's limit: those of the batch before may still be ending.
    const AT_ONCE: usize = 16;
    /// Signals whose default action does not end a process: CHLD, CONT, URG, WINCH, and those that stop it.
    const HARMLESS: [u8; 8] = [17, 18, 19, 20, 21, 22, 23, 28];
    let Some(tools) = Tools::find() else { return };
    let mut guest = Plan::new(&tools, config("echo ready; exec sleep 1000")).boot();
    guest.wait_line("ready");
    let words = |command: &str, last: String| {
        let words = command.split(' ').map(str::to_owned);
        words.chain([last]).collect::<Vec<_>>()
    };
    let codes = (0..=255).map(|code| (words("sh -c", format!("exit {code}")), code, None));
    // `timeout` sends the signal to its own child. A shell would ignore some signals.
    let signals = (1..=64)
        .filter(|signal| !HARMLESS.contains(signal))
        .map(|signal| {
            let argv = words(&format!("timeout -s {signal} 1 sleep"), "1000".to_owned());
            (argv, 128 + signal, Some(signal))
        });
    let all: Vec<_> = codes.chain(signals).zip(1..).collect();
    assert_eq!(all.len(), 256 + 64 - HARMLESS.len());
    for batch in all.chunks(AT_ONCE) {
        for ((argv, ..), session) in batch {
            let argv: Vec<_> = argv.iter().map(String::as_str).collect();
            guest.send(&request(*session, &argv, None));
        }
        for ((argv, code, signal), session) in batch {
            let exit = guest.wait("the end", |seen| seen.exec.get(session)?.exit.clone());
            assert_eq!((exit.exit_code, exit.signal), (*code, *signal), "{argv:?}");
            guest.break_exec(*session);
        }
    }
    // The app's own end is reported as exactly.
    guest.send(&HostFrame::Signal {
        signal: "64".to_owned(),
    });
    let event = guest.finish();
    assert_eq!((event.exit_code, event.signal), (192, Some(64)));
}

#[test]
fn a_guest_that_runs_no_more_commands_refuses_with_the_reason() {
    let Some(tools) = Tools::find() else { return };
    let mut guest = Plan::new(&tools, config("echo ready; exec sleep 1000")).boot();
    guest.wait_line("ready");
    let refused = |guest: &Guest, session| {
        guest.wait("the refusal", |seen| {
            seen.exec.get(&session)?.refused.clone()
        })
    };
    for session in 1..=32 {
        guest.send(&request(session, &["sleep", "1000"], None));
    }
    guest.send(&request(33, &["true"], None));
    assert_eq!(refused(&guest, 33), "32 commands are running in it already");
    guest.send(&HostFrame::Stop { timeout_ms: 1 });
    guest.wait("the exit", |seen| seen.exits.first().cloned());
    guest.send(&request(34, &["true"], None));
    assert_eq!(refused(&guest, 34), "its app is not running");
    guest.finish();
}

/// The session that the guest is for.
fn main_session(session: u32) -> HostFrame {
    HostFrame::Exec(ExecRequest {
        session,
        argv: Vec::new(),
        terminal: None,
        terminal_type: None,
        main: true,
    })
}

#[test]
fn an_attached_command_runs_once_on_its_sessions_streams_and_the_guest_ends_with_it() {
    let Some(tools) = Tools::find() else { return };
    let mut config = config("read word; echo got $word by $$; exit 3");
    config.attached = true;
    let mut guest = Plan::new(&tools, config.clone()).boot();
    guest.wait_started();
    // A command beside it is none of it.
    guest.send(&request(1, &["sh", "-c", "exit 5"], None));
    assert_eq!(ended(&guest, 1).2, 5);
    guest.break_exec(1);
    guest.send(&main_session(2));
    guest.send_exec(
        2,
        &HostFrame::ExecInput {
            bytes: b"water\n".to_vec(),
        },
    );
    let (stdout, _, code) = ended(&guest, 2);
    assert!(stdout.starts_with("got water by "), "{stdout}");
    assert_eq!(code, 3);
    guest.break_exec(2);
    // Its end is the guest's.
    let exit = guest.finish();
    assert_eq!((exit.exit_code, exit.signal), (3, None));

    // One whose user leaves ends with them.
    let mut left = Plan::new(&tools, {
        config.argv = ["sh", "-c", "echo on; exec sleep 1000"]
            .map(str::to_owned)
            .to_vec();
        config
    })
    .boot();
    left.wait_started();
    left.send(&main_session(7));
    wait_output(&left, 7, "on");
    left.break_exec(7);
    let exit = left.finish();
    assert_eq!((exit.exit_code, exit.signal), (129, Some(1)));
}
