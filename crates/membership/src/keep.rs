//! Keeps a member one: follows the membership and the overlay, says how it is reached, renews the certificate, and replaces the keys when a user
//! wants that.
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

use api::error_code;
use api::member::{Approval, CertificateRequest, MeasurementRequest, MemberState, OverlayReport};
use api_client::{ApiClient, ClientError};
use blocking_work::blocking;
use display::Repeated;
use identity::{MemberCertificate, MemberKey, WireguardKey};
use model::{Generation, Timestamp};
use tokio::sync::watch;

use crate::keys::{self, Keys};
use crate::overlay::OverlayState;
use crate::{JoinError, Membership};

/// How long one poll waits.
const POLL_WAIT: Duration = Duration::from_secs(25);
/// Pause after a call that failed; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause after a call that failed.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// How long a member says nothing of its links when none of them began to answer or ceased to.
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// How long it is waited for the interface and the rules to follow, before the server is asked again.
const APPLY_WAIT: Duration = Duration::from_secs(2);
/// Shortest time between two reports.
const REPORT_PAUSE: Duration = Duration::from_secs(1);

/// Why a step failed. It is tried again.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Call(#[from] ClientError),
    #[error(transparent)]
    Keep(#[from] JoinError),
}

/// Keeps a member one for ever. `client` has its credentials replaced, for its clones too. `overlay` is told who the peers are, whenever that
/// changes; it begins as [`OverlayState::load`] gives it. What `report` holds is reported to the server: at once where the underlay or what
/// answers changed, else now and then. `measure` is told what the server asks this member to measure; whoever has the other end answers it.
pub async fn keep(
    membership: Membership,
    data_dir: PathBuf,
    client: ApiClient,
    overlay: watch::Sender<OverlayState>,
    report: watch::Receiver<OverlayReport>,
    measure: watch::Sender<Option<MeasurementRequest>>,
) {
    let key = overlay.subscribe();
    let keeper = Keeper {
        membership,
        data_dir,
        client: client.clone(),
        overlay,
        report: report.clone(),
        applied: Generation::default(),
        position: (0, 0),
        is_kept: true,
        measure,
    };
    tokio::join!(follow(keeper), report_links(client, key, report));
}

/// Steps for ever.
async fn follow(mut keeper: Keeper) {
    let mut pause = FIRST_PAUSE;
    let (mut refused, mut fails) = (Repeated::default(), false);
    loop {
        match keeper.step().await {
            Ok(()) => {
                if std::mem::replace(&mut fails, false) {
                    tracing::info!("the membership is followed again");
                }
                pause = FIRST_PAUSE;
            }
            Err(error) => {
                let reason = display::chain(&error);
                fails = true;
                if refused.is_due(tokio::time::Instant::now(), &reason) {
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
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
        }
    }
}

/// Says to the server how this member is reached, and what it knows of its links.
async fn report_links(
    client: ApiClient,
    mut key: watch::Receiver<OverlayState>,
    mut report: watch::Receiver<OverlayReport>,
) {
    let mut pause = FIRST_PAUSE;
    let mut refused = Repeated::default();
    loop {
        let public_key = public_key(&key.borrow_and_update());
        let Some(public_key) = public_key else {
            // It is made just now.
            if key.changed().await.is_err() {
                return;
            }
            continue;
        };
        let mut said = report.borrow_and_update().clone();
        said.wireguard_public_key = Some(public_key);
        match client.report_overlay(&said).await {
            Ok(()) => {
                pause = FIRST_PAUSE;
                tokio::time::sleep(REPORT_PAUSE).await;
                until_worth_saying(&said, &mut key, &mut report).await;
            }
            Err(error) => {
                let reason = display::chain(&error);
                if refused.is_due(tokio::time::Instant::now(), &reason) {
                    tracing::warn!(
                        reason,
                        hint = error.hint(),
                        "cannot say how this machine is reached; trying again"
                    );
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
        }
    }
}

/// Waits until something is to be said that the server does not know, or until it is time to say how the links are.
async fn until_worth_saying(
    said: &OverlayReport,
    key: &mut watch::Receiver<OverlayState>,
    report: &mut watch::Receiver<OverlayReport>,
) {
    let news = async {
        let gone = report.wait_for(|now| is_news(said, now)).await.is_err();
        if gone {
            // Whoever knew of the links is gone.
            std::future::pending::<()>().await;
        }
    };
    let rekeyed = async {
        let other = |state: &OverlayState| public_key(state) != said.wireguard_public_key;
        let gone = key.wait_for(other).await.is_err();
        if gone {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = news => {}
        () = rekeyed => {}
        // A server that began to lead since knows nothing.
        () = tokio::time::sleep(REPORT_EVERY) => {}
    }
}

/// Whether the server is to hear of it at once: the member is reached otherwise, its end of the overlay fails or is mended, a link had its first handshake, or one
/// began to answer or ceased to.
fn is_news(said: &OverlayReport, now: &OverlayReport) -> bool {
    let links = |report: &OverlayReport| {
        let links = report.links.iter();
        let known: Vec<_> = links
            .map(|(id, link)| (*id, link.handshake_age_seconds.is_some(), link.answers))
            .filter(|(_, is_up, answers)| *is_up || answers.is_some())
            .collect();
        known
    };
    said.underlay != now.underlay || said.error != now.error || links(said) != links(now)
}

/// The WireGuard public key by which this member is known; absent: it has none that can be read.
fn public_key(state: &OverlayState) -> Option<String> {
    let key = WireguardKey::load(state.private_key.base64()?).ok()?;
    Some(key.public_base64().to_owned())
}

struct Keeper {
    membership: Membership,
    data_dir: PathBuf,
    client: ApiClient,
    overlay: watch::Sender<OverlayState>,
    /// Who follows it says there what is applied.
    report: watch::Receiver<OverlayReport>,
    /// What of the membership was applied.
    applied: Generation,
    /// What of the overlay was applied: up to this counter of this session.
    position: (u64, u64),
    /// Whether the overlay on disk is the one that was applied. It is not after a disk was full.
    is_kept: bool,
    /// What was asked for last.
    measure: watch::Sender<Option<MeasurementRequest>>,
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.unwrap_or_default().as_millis();
    Timestamp(u64::try_from(millis).unwrap_or(u64::MAX))
}

impl Keeper {
    /// Renews where that is due, and follows the membership for a while.
    async fn step(&mut self) -> Result<(), StepError> {
        if self.membership.wireguard_private_key.is_none() {
            self.make_wireguard_key().await?;
        }
        if self.is_due() {
            self.renew().await?;
        }
        self.keep_overlay().await;
        let measured = self.measure.borrow().as_ref().map_or(0, |asked| asked.run);
        let polled = self
            .client
            .member_state_to_measure(self.applied, self.position, measured, POLL_WAIT)
            .await;
        match polled {
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
        if state.measure.is_some() {
            self.measure.send_replace(state.measure);
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
                "waiting for approval: `platform {}s approve {}`",
                self.membership.member.role(),
                self.membership.member
            );
        }
        if let Some(changes) = state.overlay {
            let (session, counter) = (changes.session, changes.counter);
            if (changes.since).is_some_and(|since| (session, since) != self.position) {
                // It is a difference to something else: the next poll asks for all.
                self.position = (0, 0);
                return Ok(());
            }
            // Who is a peer no longer is dropped before anything else, a full disk included.
            let changed = self.overlay.send_if_modified(|known| known.apply(changes));
            self.is_kept &= !changed;
            self.keep_overlay().await;
            // What is named to the server as applied is: until then it says the same again, and what has changed since with it.
            if !self.is_applied().await {
                return Ok(());
            }
            self.position = (session, counter);
        }
        self.applied = state.generation;
        Ok(())
    }

    /// Waits a moment until interface and rules are as the overlay says. False: they are not yet.
    async fn is_applied(&mut self) -> bool {
        let revision = self.overlay.borrow().revision;
        let applied = self
            .report
            .wait_for(|report| report.applied >= Some(revision));
        matches!(tokio::time::timeout(APPLY_WAIT, applied).await, Ok(Ok(_)))
    }

    /// Writes the overlay to disk where it is not there yet. A full disk keeps nobody from hearing who is a peer no longer.
    async fn keep_overlay(&mut self) {
        if self.is_kept {
            return;
        }
        let overlay = self.overlay.borrow().clone();
        match overlay.keep(&self.data_dir).await {
            Ok(()) => self.is_kept = true,
            Err(error) => tracing::warn!(
                reason = display::chain(&error),
                "cannot keep who the peers are: a start without a server would go by those of before; trying again"
            ),
        }
    }

    /// An edge that joined before edges were members of the overlay has no WireGuard key.
    async fn make_wireguard_key(&mut self) -> Result<(), StepError> {
        let key = WireguardKey::generate().map_err(JoinError::Key)?;
        let mut changed = self.membership.clone();
        changed.wireguard_private_key = Some(key.private_base64().to_owned());
        self.set(changed).await?;
        tracing::info!(member = %self.membership.member, "this machine has a WireGuard key");
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
        let data_dir = self.data_dir.clone();
        let keys = blocking(move || Keys::load_or_make(&data_dir, keys::NEXT)).await?;
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
        self.overlay.send_if_modified(|known| {
            let before = known.revision;
            known.set_key(&changed);
            known.revision != before
        });
        self.membership = changed;
        Ok(())
    }
}
