//! The agent's limit of open files. Each instance takes some ten: two processes, a socket and its connections, a log, a
//! console, a tap while it is made.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files that the agent asks for: instances by the thousand.
const WANTED: u64 = 1 << 18;

/// Raises the limit to what is wanted, else to the most that this process may have. Logs what the limit is then, where it is less.
pub(crate) fn raise() {
    let now = getrlimit(Resource::Nofile);
    // Absent: there is no limit.
    let (Some(current), maximum) = (now.current, now.maximum) else {
        return;
    };
    if current >= WANTED {
        return;
    }
    let hard = maximum.unwrap_or(u64::MAX);
    let raised = Rlimit {
        current: Some(WANTED),
        maximum: Some(hard.max(WANTED)),
    };
    // Only root may raise the hard limit, and no process over the kernel's own (`fs.nr_open`).
    if setrlimit(Resource::Nofile, raised).is_ok() {
        return;
    }
    let most = Rlimit {
        current: Some(hard.min(WANTED)),
        maximum,
    };
    let limit = match setrlimit(Resource::Nofile, most) {
        Ok(()) => hard.min(WANTED),
        Err(_) => current,
    };
    if limit < WANTED {
        tracing::warn!(
            limit,
            wanted = WANTED,
            "the limit of open files bounds how many instances this node can run; hint: LimitNOFILE= of its service, or `ulimit -Hn`"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: &str = "OPEN_FILES_ALONE";

    /// In a process of its own, because the limit is the whole process's.
    #[test]
    fn case_the_limit_of_open_files_is_raised_from_a_login_shells() {
        if std::env::var_os(ALONE).is_some() {
            let low = Rlimit {
                current: Some(256),
                maximum: getrlimit(Resource::Nofile).maximum,
            };
            assert!(setrlimit(Resource::Nofile, low).is_ok());
            raise();
            let now = getrlimit(Resource::Nofile);
            let most = now.maximum.unwrap_or(u64::MAX).min(WANTED);
            assert!(now.current.unwrap_or(u64::MAX) >= most, "{now:?}");
            return;
        }
        let name = "open_files::tests::case_the_limit_of_open_files_is_raised_from_a_login_shells";
        let alone = std::env::current_exe().and_then(|program| {
            std::process::Command::new(program)
                .args(["--exact", name])
                .env(ALONE, "1")
                .output()
        });
        assert!(alone.is_ok_and(|alone| alone.status.success()));
    }
}
