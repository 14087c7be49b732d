//! The secret bundles of one instance: fetched from the server when the instance is to boot, kept in
//! this process's memory for its next boots, and never written to a disk.
//!
//! So an agent that was restarted while the server is out of reach can do all but one thing: boot an instance
//! that has secrets. Such an instance waits, and says so; what runs goes on.

use std::sync::Mutex;
use std::time::Duration;

use model::instance::{InstanceSpec, SecretBundle};

use crate::host::{HostError, Progress, Server};

/// Pause before the server is asked again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The bundles of one instance, once they were fetched: its spec, and so they, never change.
#[derive(Debug, Default)]
pub(crate) struct Secrets(Mutex<Option<Vec<SecretBundle>>>);

impl Secrets {
    /// The bundles that `spec` names. Waits for as long as the server cannot be reached, and says so
    /// through `say`.
    pub(crate) async fn get(
        &self,
        server: &dyn Server,
        spec: &InstanceSpec,
        say: &Progress,
    ) -> Result<Vec<SecretBundle>, HostError> {
        if spec.secrets.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(known) = self.known() {
            return Ok(known);
        }
        let names: Vec<_> = spec.secrets.iter().map(|s| s.name.as_str()).collect();
        let names = names.join(", ");
        say(format!("fetching secret bundles: {names}"));
        loop {
            match server.secrets(spec.id).await {
                Ok(bundles) => {
                    *self.lock() = Some(bundles.clone());
                    return Ok(bundles);
                }
                Err(error) if error.transient => {
                    let cause = error.reason;
                    say(format!(
                        "waiting for the server, which has its secret bundles ({names}): {cause}"
                    ));
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// What was fetched already.
    pub(crate) fn known(&self) -> Option<Vec<SecretBundle>> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Vec<SecretBundle>>> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
