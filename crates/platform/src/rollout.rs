//! Watches a release come up, and shows it: a line per instance that changes in place on a
//! terminal, a line per change elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anstyle::{AnsiColor, Style};
use api::MAX_WAIT_MS;
use api::node::InstanceReport;
use api::user::{InstanceRow, RolloutPhase, RolloutStatus};
use api_client::{ApiClient, ClientError};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use model::instance::{InstanceState, Runs};
use model::{EnvKey, InstanceId, ReleaseNumber};

use crate::failure::Failure;
use crate::output::{note, one_line};

/// Pause before the server is asked again after it could not be reached.
const RETRY: Duration = Duration::from_secs(1);
/// Shortest time between two lines about the same instance in the same state, where lines are
/// not redrawn in place.
const DETAIL_PAUSE: Duration = Duration::from_secs(2);
/// Time between two pictures of the spinner.
const SPINNER_TICK: Duration = Duration::from_millis(120);

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default();
const BUSY: Style = AnsiColor::Yellow.on_default();
const FAINT: Style = Style::new().dimmed();

/// Follows the rollout of a release to its end, showing it on standard error. Gives the last
/// status, whichever way it ended.
pub(crate) async fn watch(
    client: &ApiClient,
    env: &EnvKey,
    release: ReleaseNumber,
    timeout: Duration,
) -> Result<RolloutStatus, Failure> {
    let deadline = Instant::now() + timeout;
    let mut shown = Progress::new(release);
    let mut after = None;
    let mut unreachable = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            shown.end();
            return Err(Failure::new(format!(
                "release {release} of {env} is still rolling out after {} s",
                timeout.as_secs()
            ))
            .hint("it goes on without us: `platform ps` shows how, --timeout waits longer"));
        }
        let wait = left.min(Duration::from_millis(MAX_WAIT_MS));
        match client.rollout(env, Some(release), after, wait).await {
            Ok(status) => {
                if unreachable {
                    shown.print("the server is back");
                }
                unreachable = false;
                after = Some(status.revision);
                shown.show(&status);
                if status.phase != RolloutPhase::Rolling {
                    shown.end();
                    return Ok(status);
                }
            }
            Err(error) if error.is_transient() => {
                if !unreachable {
                    shown.print(&format!(
                        "{error}; the rollout goes on, waiting for the server"
                    ));
                }
                unreachable = true;
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => {
                shown.end();
                return Err(ClientError::into(error));
            }
        }
    }
}

/// Why a release does not serve: the reason, and the failures and last log lines of its instances that the reason does
/// not have.
pub(crate) fn explain(status: &RolloutStatus) -> String {
    let mut text = if status.reason.is_empty() {
        "no reason was given".to_owned()
    } else {
        status
            .reason
            .trim()
            .lines()
            .map(one_line)
            .collect::<Vec<_>>()
            .join("\n")
    };
    for row in status
        .instances
        .iter()
        .filter(|row| row.release == status.release)
    {
        let Some(report) = &row.report else { continue };
        let words = what_happened(report);
        // Ten instances that fail alike need one explanation.
        let is_printed = text.contains(&words)
            && report
                .log_tail
                .last()
                .is_none_or(|last| text.contains(&one_line(last)));
        if is_printed {
            continue;
        }
        text.push_str(&format!(
            "\n{} {} on {}",
            row.process, row.id, row.node_name
        ));
        if !words.is_empty() {
            text.push_str(&format!(": {words}"));
        }
        for line in &report.log_tail {
            text.push_str(&format!("\n  | {}", one_line(line)));
        }
    }
    text
}

fn what_happened(report: &InstanceReport) -> String {
    let failure = report.failure.as_deref().map(one_line);
    let exit = report.last_exit.as_ref().map(ToString::to_string);
    match (failure, exit) {
        (Some(failure), Some(exit)) if !failure.contains(&exit) => format!("{failure} ({exit})"),
        (Some(failure), _) => failure,
        (None, Some(exit)) => format!("ended: {exit}"),
        (None, None) => String::new(),
    }
}

/// What one instance does, as one line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    style: Style,
    /// The word for its state.
    state: String,
    /// What more is known.
    detail: String,
}

fn shown(row: &InstanceRow) -> Shown {
    let Some(report) = &row.report else {
        let state = if row.terminating {
            "terminating"
        } else {
            "created"
        };
        let (state, detail) = (state.to_owned(), "waiting for the node".to_owned());
        return Shown {
            style: BUSY,
            state,
            detail,
        };
    };
    let detail = one_line(&report.detail);
    let (style, state, detail) = match report.state {
        _ if row.terminating && report.failure.is_some() => {
            (BAD, "failed".to_owned(), what_happened(report))
        }
        _ if row.terminating => (FAINT, "terminating".to_owned(), String::new()),
        InstanceState::Running { .. } if !row.runs.is_app() => {
            (BUSY, "running".to_owned(), String::new())
        }
        InstanceState::Running { ready: true, .. } => (GOOD, "healthy".to_owned(), String::new()),
        InstanceState::Running { ready: false, .. } if detail.is_empty() => (
            BUSY,
            "running".to_owned(),
            "waiting for its health check".to_owned(),
        ),
        InstanceState::Failed => (BAD, "failed".to_owned(), what_happened(report)),
        InstanceState::Backoff => {
            let words = [what_happened(report), detail];
            let words: Vec<_> = words.into_iter().filter(|w| !w.is_empty()).collect();
            (BAD, "backoff".to_owned(), words.join("; "))
        }
        state => (BUSY, state.to_string(), detail),
    };
    Shown {
        style,
        state,
        detail,
    }
}

/// What is shown of a rollout so far.
struct Progress {
    release: ReleaseNumber,
    /// On a terminal: a spinner per instance.
    bars: Option<MultiProgress>,
    lines: BTreeMap<InstanceId, ProgressLine>,
    reason: String,
}

struct ProgressLine {
    shown: Shown,
    at: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    fn new(release: ReleaseNumber) -> Self {
        let bars = std::io::stderr()
            .is_terminal()
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Self {
            release,
            bars,
            lines: BTreeMap::new(),
            reason: String::new(),
        }
    }

    /// Prints a line that stays.
    fn print(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.suspend(|| note(text)),
            None => note(text),
        }
    }

    fn show(&mut self, status: &RolloutStatus) {
        if status.reason != self.reason {
            self.reason.clone_from(&status.reason);
            // Where there are instances, their own lines say more.
            let unplaced = !status
                .instances
                .iter()
                .any(|row| row.release == self.release);
            if unplaced && !self.reason.is_empty() && status.phase == RolloutPhase::Rolling {
                self.print(&one_line(&self.reason));
            }
        }
        for row in &status.instances {
            self.show_instance(row);
        }
        let present: BTreeSet<_> = status.instances.iter().map(|row| row.id).collect();
        self.lines.retain(|id, line| {
            let stays = present.contains(id);
            if let (false, Some(bar)) = (stays, &line.bar) {
                bar.finish_and_clear();
            }
            stays
        });
    }

    fn show_instance(&mut self, row: &InstanceRow) {
        let now = Instant::now();
        let new = shown(row);
        if let Some(old) = self.lines.get(&row.id) {
            let only_detail = old.shown.state == new.state && self.bars.is_none();
            if old.shown == new || (only_detail && now - old.at < DETAIL_PAUSE) {
                return;
            }
        }
        let text = self.text(row, &new);
        let mut bar = self.lines.remove(&row.id).and_then(|line| line.bar);
        match &self.bars {
            None => note(&text),
            Some(bars) => {
                let bar = bar.get_or_insert_with(|| bars.add(spinner()));
                bar.set_message(anstream::adapter::strip_str(&text).to_string());
            }
        }
        self.lines.insert(
            row.id,
            ProgressLine {
                shown: new,
                at: now,
                bar,
            },
        );
    }

    fn text(&self, row: &InstanceRow, new: &Shown) -> String {
        let style = new.style;
        let release = if row.release == self.release {
            String::new()
        } else {
            format!(" {FAINT}({}){FAINT:#}", row.release)
        };
        let what = match row.runs {
            Runs::App => "",
            Runs::ReleaseCommand => " release command",
            Runs::Command { .. } => " command",
        };
        let mut text = format!(
            "{}{what} {} on {}{release}: {style}{}{style:#}",
            row.process, row.id, row.node_name, new.state
        );
        if !new.detail.is_empty() {
            text.push_str(&format!(", {}", new.detail));
        }
        text
    }

    /// Leaves the last state of each instance standing.
    fn end(&mut self) {
        for line in std::mem::take(&mut self.lines).into_values() {
            if let Some(bar) = line.bar {
                bar.abandon();
            }
        }
    }
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    // The template is fixed and right; the default one would do as well.
    if let Ok(style) = ProgressStyle::with_template("  {spinner} {wide_msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(SPINNER_TICK);
    bar
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    #![allow(clippy::needless_pass_by_value, reason = "reads better at the call")]

    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    use super::*;

    fn row(id: &str, report: Value) -> InstanceRow {
        serde_json::from_value(json!({
            "id": id,
            "env": { "app": "hello", "env": "prod" },
            "process": "web",
            "release": 2,
            "node": "n1",
            "node_name": "box",
            "address": "fd00::1",
            "terminating": false,
            "created_at": 0,
            "report": report,
        }))
        .unwrap()
    }

    fn report(state: &str, changes: Value) -> Value {
        let mut report = json!({
            "id": "0000000a", "state": state, "ready": false, "restarts": 0, "detail": "",
            "last_exit": null, "failure": null, "log_tail": [], "started_at": null,
        });
        for (key, value) in changes.as_object().unwrap() {
            report[key] = value.clone();
        }
        report
    }

    fn check(report: Value, expected: Expect) {
        let row = row("0000000a", report);
        let text = Progress::new(ReleaseNumber(2)).text(&row, &shown(&row));
        expected.assert_eq(&anstream::adapter::strip_str(&text).to_string());
    }

    #[test]
    fn each_step_of_an_instance_has_its_words() {
        check(
            Value::Null,
            expect!["web 0000000a on box: created, waiting for the node"],
        );
        check(
            report("preparing", json!({ "detail": "fetching 3 of 5 layers" })),
            expect!["web 0000000a on box: preparing, fetching 3 of 5 layers"],
        );
        check(
            report("booting", json!({})),
            expect!["web 0000000a on box: booting"],
        );
        check(
            report("running", json!({})),
            expect!["web 0000000a on box: running, waiting for its health check"],
        );
        check(
            report("running", json!({ "ready": true })),
            expect!["web 0000000a on box: healthy"],
        );
        let exit = json!({
            "exit_code": 137, "signal": 9, "oom_killed": true, "requested_stop": false, "at": 0,
        });
        check(
            report(
                "backoff",
                json!({ "last_exit": exit, "detail": "next start in 4 s" }),
            ),
            expect![
                "web 0000000a on box: backoff, ended: killed by signal 9 (exit code 137), out of memory; next start in 4 s"
            ],
        );
        check(
            report("failed", json!({ "failure": "cannot fetch\u{7}a layer" })),
            expect![[r"web 0000000a on box: failed, cannot fetch a layer"]],
        );
    }

    #[test]
    fn a_failure_is_explained_once_with_the_log_tail() {
        let exit = json!({
            "exit_code": 1, "signal": null, "oom_killed": false, "requested_stop": false, "at": 0,
        });
        let crashed = || {
            report(
                "failed",
                json!({ "last_exit": exit, "log_tail": ["starting", "no such table: shop"] }),
            )
        };
        let status = RolloutStatus {
            revision: 1,
            release: ReleaseNumber(2),
            phase: RolloutPhase::Failed,
            reason: "web could not become healthy".to_owned(),
            previous: None,
            instances: vec![row("0000000a", crashed()), row("0000000b", crashed())],
        };
        expect![[r"
            web could not become healthy
            web 0000000a on box: ended: exit code 1
              | starting
              | no such table: shop"]]
        .assert_eq(&explain(&status));
    }
}
