//! Signal names, as images and manifests write them: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.

/// The largest signal number of Linux.
const LAST: i32 = 64;
/// The first real-time signal that libc leaves to programs, as `kill -l` counts.
const RTMIN: i32 = 34;

const NAMES: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("RTMIN", RTMIN),
    ("RTMAX", LAST),
];

/// The number of a signal by its name, in either case, or by its number. `None`: there is no such signal.
pub(crate) fn number(text: &str) -> Option<i32> {
    let text = text.trim().to_ascii_uppercase();
    if let Ok(number) = text.parse::<i32>() {
        return (1..=LAST).contains(&number).then_some(number);
    }
    let name = text.strip_prefix("SIG").unwrap_or(&text);
    let real_time = |offset: &str, from: i32, sign: i32| {
        let offset = offset.parse::<u8>().ok()?;
        let number = from + sign * i32::from(offset);
        (RTMIN..=LAST).contains(&number).then_some(number)
    };
    if let Some(offset) = name.strip_prefix("RTMIN+") {
        return real_time(offset, RTMIN, 1);
    }
    if let Some(offset) = name.strip_prefix("RTMAX-") {
        return real_time(offset, LAST, -1);
    }
    NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn a_signal_is_found_by_name_number_or_real_time_offset() {
        for (text, expected) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("SigQuit", Some(3)),
            (" 9 ", Some(9)),
            ("SIGWINCH", Some(28)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMAX", Some(64)),
            ("SIGRTMIN+31", None),
            ("SIGRTMIN+-1", None),
            ("0", None),
            ("65", None),
            ("-15", None),
            ("", None),
            ("SIG", None),
            ("SIGNOPE", None),
        ] {
            assert_eq!(number(text), expected, "{text:?}");
        }
    }
}
