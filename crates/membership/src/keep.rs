//! Keeps a member one: follows the membership, renews the certificate, and replaces the keys when a user wants that.
//!
//! ```text
//!   follow ---- newer: trust these CAs, know these peers -------> follow, naming what was applied
//!     |                                        \- rotate -> next-keys.json -> certificate -> member.json -> by the new key
//!     +-- two thirds of the certificate's life, or it is refused as expired -> certificate -> member.json
//! ```
//!
//! Nothing ends because of it: what cannot be renewed now is tried again, and the server lets an expired certificate renew.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::enrollment::{EnrollRole, Member};
use api::error_code;
use api::member::{Approval, CertificateRequest, MemberState, Peer};
use api_client::{ApiClient, ClientError};
use blocking_work::blocking;
use identity::{MemberCertificate, MemberKey};
use model::{Generation, Timestamp};
use tokio::sync::watch;

use crate::keys::{self, Keys};
use crate::{JoinError, Membership};

/// How long one poll waits.
const POLL_WAIT: Duration = Duration::from_secs(25);
/// Pause after a call that failed; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause after a call that failed.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Why a step failed. It is tried again.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Call(#[from] ClientError),
    #[error(transparent)]
    Keep(#[from] JoinError),
}

/// Keeps a member one for ever. `client` has its credentials replaced, for its clones too; `peers` are told to whoever exchanges packets.
pub async fn keep(
    membership: Membership,
    data_dir: PathBuf,
    client: ApiClient,
    peers: watch::Sender<Vec<Peer>>,
) {
    let mut keeper = Keeper {
        membership,
        data_dir,
        client,
        peers,
        applied: Generation::default(),
    };
    let mut pause = FIRST_PAUSE;
    // The last failure, which is logged once.
    let mut last: Option<String> = None;
    loop {
        match keeper.step().await {
            Ok(()) => {
                if last.take().is_some() {
                    tracing::info!("the membership is followed again");
                }
                pause = FIRST_PAUSE;
            }
            Err(error) => {
                let reason = Some(display::chain(&error));
                if last != reason {
                    let hint = match &error {
                        StepError::Call(error) => error.hint(),
                        StepError::Keep(_) => None,
                    };
                    tracing::warn!(
                        reason,
                        hint,
                        "cannot follow the membership, or renew the certificate; trying again"
                    );
                }
                last = reason;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
        }
    }
}

struct Keeper {
    membership: Membership,
    data_dir: PathBuf,
    client: ApiClient,
    peers: watch::Sender<Vec<Peer>>,
    /// What of the membership was applied.
    applied: Generation,
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.unwrap_or_default().as_millis();
    Timestamp(u64::try_from(millis).unwrap_or(u64::MAX))
}

impl Keeper {
    /// Renews where that is due, and follows the membership for a while.
    async fn step(&mut self) -> Result<(), StepError> {
        if self.is_due() {
            self.renew().await?;
        }
        match self.client.member_state(self.applied, POLL_WAIT).await {
            Ok(None) => Ok(()),
            Ok(Some(state)) => self.apply(state).await,
            Err(error) if error.code() == Some(error_code::CERTIFICATE_EXPIRED) => {
                self.renew().await
            }
            Err(error) => Err(error.into()),
        }
    }

    fn is_due(&self) -> bool {
        // One that cannot be read is replaced.
        let known = MemberCertificate::of_pem(&self.membership.certificate_pem);
        known.map_or(true, |certificate| {
            now() >= certificate.renewal_due() || !certificate.is_of_first(&self.membership.ca_pem)
        })
    }

    async fn apply(&mut self, state: MemberState) -> Result<(), StepError> {
        if state.cluster != self.membership.cluster {
            tracing::error!(
                cluster = state.cluster,
                "refused the membership of another cluster"
            );
            tokio::time::sleep(FIRST_PAUSE).await;
            return Ok(());
        }
        if state.ca_pem != self.membership.ca_pem {
            let mut changed = self.membership.clone();
            changed.ca_pem = state.ca_pem;
            self.set(changed).await?;
            tracing::info!("the cluster has other CAs");
        }
        if state.rotate_keys {
            self.rotate().await?;
        }
        if state.approval == Approval::Pending {
            tracing::info!(
                member = %self.membership.member,
                "waiting for approval: `platform nodes approve {}`", self.membership.member
            );
        }
        self.peers.send_if_modified(|known| {
            let changed = *known != state.peers;
            *known = state.peers;
            changed
        });
        self.applied = state.generation;
        Ok(())
    }

    /// Has the certificate of the same key renewed.
    async fn renew(&mut self) -> Result<(), StepError> {
        let key = MemberKey::load(&self.membership.key_pem).map_err(JoinError::Key)?;
        let request = CertificateRequest {
            csr_pem: key.csr_pem(&self.membership.name).map_err(JoinError::Key)?,
            replaces_key: false,
            wireguard_public_key: None,
        };
        let answer = self.client.certificate(&request).await?;
        let mut changed = self.membership.clone();
        changed.certificate_pem = answer.certificate_pem;
        changed.ca_pem = answer.ca_pem;
        self.set(changed).await?;
        tracing::info!(member = %self.membership.member, "renewed the certificate");
        Ok(())
    }

    /// Has other keys certified. They are on disk before the server hears of them, and the member is known by both until it comes by the new
    /// ones.
    async fn rotate(&mut self) -> Result<(), StepError> {
        let role = match self.membership.member {
            Member::Node(_) => EnrollRole::Node,
            Member::Edge(_) => EnrollRole::Edge,
        };
        let data_dir = self.data_dir.clone();
        let keys = blocking(move || Keys::load_or_make(&data_dir, keys::NEXT, role)).await?;
        let csr = keys
            .member_key()
            .and_then(|key| key.csr_pem(&self.membership.name));
        let request = CertificateRequest {
            csr_pem: csr.map_err(JoinError::Key)?,
            replaces_key: true,
            wireguard_public_key: keys.wireguard_public_key().map_err(JoinError::Key)?,
        };
        let answer = self.client.certificate(&request).await?;
        let mut changed = self.membership.clone();
        changed.certificate_pem = answer.certificate_pem;
        changed.ca_pem = answer.ca_pem;
        changed.key_pem = keys.key_pem;
        changed.wireguard_private_key = keys.wireguard_private_key;
        self.set(changed).await?;
        let data_dir = self.data_dir.clone();
        let removed = blocking(move || keys::remove(&data_dir, keys::NEXT)).await;
        removed.map_err(JoinError::State)?;
        tracing::info!(member = %self.membership.member, "this machine has other keys");
        Ok(())
    }

    /// Keeps what was changed, then goes by it.
    async fn set(&mut self, changed: Membership) -> Result<(), StepError> {
        let (file, kept) = (Membership::file(&self.data_dir), changed.clone());
        let written = blocking(move || state_file::write(&file, &kept)).await;
        written.map_err(JoinError::State)?;
        self.client.replace_credentials(
            &changed.ca_pem,
            &changed.certificate_pem,
            &changed.key_pem,
        )?;
        self.membership = changed;
        Ok(())
    }
}
