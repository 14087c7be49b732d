//! `simulate`: replays one run of the simulation, or makes many.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Parser;
use simulation::{Outcome, run};

/// Simulates clusters under faults. A run is a seed: the same seed is the same run.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask simulate")]
struct Options {
    /// Replay this run and print its trace.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Make this many runs, on all processors.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The seed of the first of them.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// End with the first seed whose violation has this text, and print it as JSON; for `cargo xtask mutations`.
    #[arg(long, conflicts_with = "seed")]
    expect: Option<String>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    match (options.seed, options.expect) {
        (Some(seed), _) => replay(seed),
        (None, Some(expected)) => find(options.first, options.seeds, &expected),
        (None, None) => many(options.first, options.seeds),
    }
}

fn replay(seed: u64) -> Result<()> {
    let outcome = run(seed);
    for line in &outcome.trace {
        print(line);
    }
    match outcome.violation {
        Some(violation) => bail!("seed {seed}: {violation}"),
        None => Ok(()),
    }
}

/// Prints a line of a trace, which is this program's output.
#[allow(clippy::print_stdout, reason = "a trace is this program's output")]
fn print(line: &str) {
    println!("{line}");
}

/// Makes runs on all processors, while `goes_on` says so of the next one's number.
fn on_all_processors(
    goes_on: impl Fn(u64) -> bool + Sync,
    make: impl Fn(u64) + Sync,
) -> Result<()> {
    let threads = std::thread::available_parallelism()?.get();
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if !goes_on(at) {
                        return;
                    }
                    make(at);
                }
            });
        }
    });
    Ok(())
}

/// Looks for the first seed with the expected violation.
fn find(first: u64, count: u64, expected: &str) -> Result<()> {
    // The number of the first run that has it, so far.
    let least = AtomicU64::new(u64::MAX);
    let found: Mutex<Vec<Outcome>> = Mutex::default();
    let others: Mutex<BTreeMap<String, u64>> = Mutex::default();
    let goes_on = |at| at < count.min(least.load(Ordering::Relaxed));
    on_all_processors(goes_on, |at| {
        let outcome = run(first.wrapping_add(at));
        let Some(violation) = &outcome.violation else {
            return;
        };
        if violation.contains(expected) {
            least.fetch_min(at, Ordering::Relaxed);
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            found.push(outcome);
        } else {
            let mut others = others.lock().unwrap_or_else(PoisonError::into_inner);
            let line = violation.lines().next().unwrap_or_default().to_owned();
            others.entry(line).or_insert(outcome.seed);
        }
    })?;
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let Some(outcome) = found.iter().min_by_key(|outcome| outcome.seed) else {
        let others = others.into_inner().unwrap_or_else(PoisonError::into_inner);
        bail!("none of {count} runs says: {expected}\nothers: {others:#?}");
    };
    let violation = outcome.violation.as_deref().unwrap_or_default();
    print(
        &serde_json::json!({
            "seed": outcome.seed,
            "step": outcome.violated_after,
            "violation": violation.lines().next(),
        })
        .to_string(),
    );
    Ok(())
}

fn many(first: u64, count: u64) -> Result<()> {
    let begun = Instant::now();
    let steps = AtomicU64::new(0);
    let failed: Mutex<Vec<Outcome>> = Mutex::default();
    on_all_processors(
        |at| at < count,
        |at| {
            let outcome = run(first.wrapping_add(at));
            steps.fetch_add(outcome.steps, Ordering::Relaxed);
            if outcome.violation.is_some() {
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                failed.push(outcome);
            }
        },
    )?;
    let millis = begun.elapsed().as_millis().max(1);
    let steps = steps.into_inner();
    print(&format!(
        "{count} runs, {steps} steps in {millis} ms: {} steps a second",
        u128::from(steps) * 1000 / millis
    ));
    let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.sort_by_key(|outcome| outcome.seed);
    let Some(worst) = failed.iter().min_by_key(|outcome| outcome.trace.len()) else {
        return Ok(());
    };
    for line in &worst.trace {
        print(line);
    }
    for outcome in &failed {
        let violation = outcome.violation.as_deref().unwrap_or_default();
        let line = violation.lines().next().unwrap_or_default();
        print(&format!("seed {}: {line}", outcome.seed));
    }
    bail!(
        "{} of {count} runs failed; the shortest trace is above. Replay one: cargo xtask simulate --seed {}",
        failed.len(),
        worst.seed
    );
}
