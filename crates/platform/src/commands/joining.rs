//! What `platform node join` and `platform edge join` have in common.

use std::time::{Duration, Instant};

use api::enrollment::Member;
use api_client::ClientError;
use membership::Membership;

use crate::failure::Failure;
use crate::output::{self, note};

/// How long a join waits for a server that cannot be reached.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause before it asks again, unless the server names another.
const PAUSE: Duration = Duration::from_secs(1);

/// After which pause the server is asked again; absent where it would answer the same.
pub(super) fn pause_after(error: &ClientError) -> Option<Duration> {
    (error.is_transient()).then(|| error.retry_after().unwrap_or(PAUSE))
}

/// Joins, and tries again for a minute while the server cannot be reached. `unreached`: the pause before that, where the error is of this kind.
pub(super) async fn patiently<E: std::fmt::Display>(
    join: impl AsyncFn() -> Result<Membership, E>,
    unreached: impl Fn(&E) -> Option<Duration>,
) -> Result<Membership, E> {
    let began = Instant::now();
    loop {
        match join().await {
            Err(error) if began.elapsed() < PATIENCE => match unreached(&error) {
                Some(pause) => {
                    note(format!("{error}; trying again"));
                    tokio::time::sleep(pause).await;
                }
                None => return Err(error),
            },
            joined => return joined,
        }
    }
}

/// Prints who this machine is, and what it waits for.
pub(super) fn print(joined: &Membership) -> Result<(), Failure> {
    let (member, name) = (joined.member, &joined.name);
    output::line(format!("joined as {member} ({name})"))?;
    if joined.pending {
        if let Some(key) = joined.key_fingerprint() {
            note(format!("key: {key}"));
        }
        let list = match member {
            Member::Node(_) => "nodes",
            Member::Edge(_) => "edges",
        };
        note(format!(
            "waits for approval: compare the key, then `platform {list} approve {member}`"
        ));
    }
    Ok(())
}
