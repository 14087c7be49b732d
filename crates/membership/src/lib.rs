//! Joins the cluster once, and keeps the credentials: the same for nodes and edges (ADR 0004).
//!
//! The keys are made here and never leave the machine. The first time, a one-time token is needed;
//! its fingerprint of the CA is the only trust the machine starts with. Afterwards the certificate
//! on disk is enough, and a token is not looked at.
//!
//! ```text
//!   (nothing) --> keys.json --- EnrollNode ---> member.json --> (keys.json is removed)
//! ```
//!
//! The keys are durable before the server hears of them: a machine that restarts at any moment, or whose answer was lost, asks again
//! with the same keys and is the same member. [`keep()`] renews the certificate and follows the membership.

mod keep;
mod keys;
mod overlay;

use std::path::{Path, PathBuf};

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::enrollment::{EnrollRequest, EnrollResponse, EnrollRole, Hardware, Member};
use api::error_code;
use api_client::{ApiClient, ClientError};
use blocking_work::blocking;
use identity::{EnrollmentToken, KeyError, MemberCertificate, TokenError};
use model::{NodeId, Timestamp};
use process_handle::{PortHolder, udp_port_holder};
use serde::{Deserialize, Serialize};
use state_file::{StateFileError, StateFormat};

use crate::keys::Keys;

pub use crate::keep::keep;
pub use crate::overlay::{
    OverlayState, UnderlayOptions, WireguardPrivateKey, server_addresses, underlay,
};

/// What to do about [`JoinError::PortTaken`].
pub const PORT_HINT: &str = "name another one by --overlay-port: each member on a machine needs its own; or end that program (`platform node down` and \
    `platform edge down` end what a former member left)";
/// How often the server is asked again where its answer did not come. Asked again, it answers the same.
const LOST_ANSWERS: u32 = 4;
/// Pause before that.
const LOST_ANSWER_PAUSE: Duration = Duration::from_secs(1);

/// Who this machine is in the cluster, and what proves it.
#[derive(Clone, Serialize, Deserialize)]
pub struct Membership {
    /// The server's URL.
    pub server: String,
    /// The node or the edge.
    pub member: Member,
    /// Its name in the cluster.
    pub name: String,
    /// Its region.
    pub region: String,
    /// The cluster's random id.
    pub cluster: String,
    /// The cluster's /48, as its first address.
    pub cluster_prefix: std::net::Ipv6Addr,
    /// MTU of the overlay, in bytes.
    pub mtu: u32,
    /// The cluster's CA, PEM.
    pub ca_pem: String,
    /// Our certificate, PEM.
    pub certificate_pem: String,
    /// Our private key, PEM.
    pub key_pem: String,
    /// Our WireGuard private key, base64. Absent: an edge joined before edges had one; [`keep()`] makes it.
    pub wireguard_private_key: Option<String>,
    /// Our number in the overlay, as the answer to the join said it. That of a node is its id's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay_number: Option<NodeId>,
    /// Whether a user has to approve it first, as far as the answer to a join just now said.
    #[serde(skip)]
    pub pending: bool,
}

/// Sets aside who this machine was, so that it can join anew: as `member.json.before`. [`take_back`] undoes it.
///
/// The keys of a join that was interrupted stay: asked again, it shows the same ones, and is the same member.
///
/// # Errors
/// The files cannot be changed.
pub async fn leave(data_dir: &Path) -> Result<(), StateFileError> {
    let data_dir = data_dir.to_owned();
    blocking(move || {
        keys::remove(&data_dir, keys::NEXT)?;
        OverlayState::remove(&data_dir)?;
        let file = Membership::file(&data_dir);
        rename(&file, &before(&file))
    })
    .await
}

/// Undoes [`leave`] where the machine has not joined since: it is who it was.
///
/// # Errors
/// The files cannot be changed.
pub async fn take_back(data_dir: &Path) -> Result<(), StateFileError> {
    let file = Membership::file(data_dir);
    blocking(move || {
        if file.exists() {
            return Ok(());
        }
        rename(&before(&file), &file)
    })
    .await
}

/// Where a membership is set aside.
fn before(file: &Path) -> PathBuf {
    file.with_extension("json.before")
}

/// No error where there is no such file. Blocks.
fn rename(from: &Path, to: &Path) -> Result<(), StateFileError> {
    match std::fs::rename(from, to) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(StateFileError::Io {
            operation: "rename",
            path: from.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Who wants to join.
#[derive(Debug, Clone)]
pub struct Applicant {
    /// As what.
    pub role: EnrollRole,
    /// The server's URL, `https://host:port`. Absent: the token's.
    pub server: Option<String>,
    /// The one-time token.
    pub token: Option<String>,
    /// Wanted name.
    pub name: String,
    /// Region the machine is in.
    pub region: String,
    /// What the machine has.
    pub hardware: Hardware,
    /// How its peers reach it, as far as its operator says.
    pub underlay: UnderlayOptions,
}

/// Why the machine is not a member.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It never joined, and nothing to join with was given.
    #[error("this machine has not joined a cluster yet, and no {missing} was given")]
    NothingGiven {
        /// `server` or `token`.
        missing: &'static str,
    },
    /// The token is none.
    #[error("cannot read the enrollment token")]
    Token(#[from] TokenError),
    /// Keys cannot be made.
    #[error("cannot make keys")]
    Key(#[from] KeyError),
    /// The keys that it made and joins with are none.
    #[error("cannot use the keys in `{}`", path.display())]
    KeysDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        source: KeyError,
    },
    /// The UDP port of its WireGuard is somebody else's. No token is spent.
    #[error("UDP port {port}, at which others are to reach this machine, is taken by {holder}")]
    PortTaken {
        /// The port.
        port: u16,
        /// Who has it.
        holder: PortHolder,
    },
    /// The server refused, or cannot be reached.
    #[error("cannot enroll")]
    Enroll(#[source] ClientError),
    /// The server answered as if this were another kind of member.
    #[error("the server enrolled this {wanted} as {got}: the token is for another role")]
    WrongRole {
        /// The role that this machine has.
        wanted: EnrollRole,
        /// The kind of member that the server enrolled this machine as.
        got: Member,
    },
    /// The credentials cannot be read or kept.
    #[error("cannot keep the credentials")]
    State(#[from] StateFileError),
}

impl StateFormat for Membership {
    const VERSION: u32 = 1;
}

impl Membership {
    /// Where the credentials are, in a role's data folder.
    pub fn file(data_dir: &Path) -> PathBuf {
        data_dir.join("member.json")
    }

    /// The membership on disk, if there is one. Blocks.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, StateFileError> {
        state_file::read(&Self::file(data_dir))
    }

    /// The membership on disk; without one, joins and keeps it.
    ///
    /// # Errors
    /// See [`JoinError`]. The token is spent only when the server accepted it.
    pub async fn load_or_join(data_dir: &Path, applicant: &Applicant) -> Result<Self, JoinError> {
        let file = Self::file(data_dir);
        let loaded = {
            let data_dir = data_dir.to_owned();
            blocking(move || Self::load(&data_dir)).await?
        };
        if let Some(mut known) = loaded {
            // The server may have moved; who it is, its certificate says.
            if let Some(server) = applicant
                .server
                .as_ref()
                .filter(|url| **url != known.server)
            {
                known.server.clone_from(server);
                let changed = known.clone();
                blocking(move || state_file::write(&file, &changed)).await?;
            }
            return Ok(known);
        }
        let token = applicant.token.as_ref();
        let token: Option<EnrollmentToken> = token.map(|text| text.parse()).transpose()?;
        let of_token = token.as_ref().and_then(|token| token.server.as_ref());
        let server = applicant.server.as_ref().or(of_token);
        let server = server.ok_or(JoinError::NothingGiven { missing: "server" })?;
        let token = token
            .as_ref()
            .ok_or(JoinError::NothingGiven { missing: "token" })?;
        let port = applicant.underlay.port;
        if let Some(holder) = blocking(move || udp_port_holder(port)).await {
            return Err(JoinError::PortTaken { port, holder });
        }
        let mut keys = joining_keys(data_dir).await?;
        let mut answer = enroll(server, token, applicant, &keys).await;
        if let Err(JoinError::Enroll(error)) = &answer
            && error.code() == Some(error_code::KEY_TAKEN)
        {
            // Of a join whose answer was lost, and whose member was revoked since. Nothing was spent: the token is for a machine, whatever its keys.
            let folder = data_dir.to_owned();
            blocking(move || keys::remove(&folder, keys::JOINING)).await?;
            keys = joining_keys(data_dir).await?;
            answer = enroll(server, token, applicant, &keys).await;
        }
        let answer = answer?;
        let right = match applicant.role {
            EnrollRole::Node => matches!(answer.member, Member::Node(_)),
            EnrollRole::Edge => matches!(answer.member, Member::Edge(_)),
        };
        if !right {
            return Err(JoinError::WrongRole {
                wanted: applicant.role,
                got: answer.member,
            });
        }
        let membership = Self {
            server: server.clone(),
            member: answer.member,
            name: answer.name,
            region: answer.region.unwrap_or_else(|| applicant.region.clone()),
            cluster: answer.cluster,
            cluster_prefix: answer.cluster_prefix,
            mtu: answer.mtu,
            ca_pem: answer.ca_pem,
            certificate_pem: answer.certificate_pem,
            key_pem: keys.key_pem,
            wireguard_private_key: keys.wireguard_private_key,
            overlay_number: answer.number,
            pending: answer.pending,
        };
        let (joined, data_dir) = (membership.clone(), data_dir.to_owned());
        blocking(move || {
            state_file::write(&file, &joined)?;
            keys::remove(&data_dir, keys::JOINING)
        })
        .await?;
        let pending = answer.pending;
        tracing::info!(member = %membership.member, name = %membership.name, pending, "joined the cluster");
        Ok(membership)
    }

    /// The key by which it is known, for people to compare; absent: its certificate cannot be read.
    pub fn key_fingerprint(&self) -> Option<String> {
        let certificate = MemberCertificate::of_pem(&self.certificate_pem).ok()?;
        Some(identity::key_fingerprint(&certificate.key))
    }

    /// A client of the API as this member.
    ///
    /// # Errors
    /// The credentials are damaged.
    pub fn client(&self) -> Result<ApiClient, ClientError> {
        ApiClient::member(
            &self.server,
            &self.ca_pem,
            &self.certificate_pem,
            &self.key_pem,
        )
    }
}

/// The keys that a machine joins with: durable before anybody hears of them.
async fn joining_keys(data_dir: &Path) -> Result<Keys, JoinError> {
    let data_dir = data_dir.to_owned();
    blocking(move || Keys::load_or_make(&data_dir, keys::JOINING)).await
}

/// `EnrollNode`. Where its answer does not come it is asked again, which is safe: the keys are the same.
async fn enroll(
    server: &str,
    token: &EnrollmentToken,
    applicant: &Applicant,
    keys: &Keys,
) -> Result<EnrollResponse, JoinError> {
    let mut asked = 1;
    let underlay = overlay::underlay(server, applicant.underlay).await;
    loop {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let millis = since.unwrap_or_default().as_millis();
        let request = EnrollRequest {
            role: Some(applicant.role),
            token: token.secret.text(),
            name: applicant.name.clone(),
            region: applicant.region.clone(),
            csr_pem: keys.member_key()?.csr_pem(&applicant.name)?,
            wireguard_public_key: keys.wireguard_public_key()?,
            underlay: Some(underlay),
            hardware: applicant.hardware.clone(),
            sent_at: Some(Timestamp(u64::try_from(millis).unwrap_or(u64::MAX))),
        };
        let verifier = identity::pinned_root(token.ca_fingerprint);
        match ApiClient::enroll(server, verifier, &request).await {
            Err(error @ (ClientError::Interrupted { .. } | ClientError::TimedOut { .. }))
                if asked < LOST_ANSWERS =>
            {
                asked += 1;
                tracing::warn!(%error, "asking again, with the same keys");
                tokio::time::sleep(LOST_ANSWER_PAUSE).await;
            }
            answered => return answered.map_err(JoinError::Enroll),
        }
    }
}

impl std::fmt::Debug for Membership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Membership")
            .field("server", &self.server)
            .field("member", &self.member)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    async fn refusal(server: Option<&str>, token: Option<&str>) -> String {
        let dir = tempfile::tempdir().unwrap();
        // The usual port may belong to a node of this machine.
        let any_port = std::net::UdpSocket::bind((std::net::Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        let port = any_port.local_addr().unwrap().port();
        drop(any_port);
        let applicant = Applicant {
            role: EnrollRole::Node,
            server: server.map(str::to_owned),
            token: token.map(str::to_owned),
            name: "box".to_owned(),
            region: "home".to_owned(),
            hardware: Hardware::default(),
            underlay: UnderlayOptions {
                port,
                advertise: None,
            },
        };
        let error = Membership::load_or_join(dir.path(), &applicant)
            .await
            .unwrap_err();
        assert!(
            Membership::load(dir.path()).unwrap().is_none(),
            "nothing is kept"
        );
        error.to_string()
    }

    /// The file of each version, oldest first.
    const FIXTURES: [&str; 1] = [include_str!("fixtures/member/version-1.json")];

    #[test]
    fn member_json_of_each_version_is_read_with_and_without_added_fields() {
        state_file::fixtures::check::<Membership>(&FIXTURES);
    }

    #[tokio::test]
    async fn a_member_json_of_a_newer_version_is_kept_and_no_token_is_spent() {
        let dir = tempfile::tempdir().unwrap();
        let newer = FIXTURES[0].replace("\"version\": 1", "\"version\": 99");
        std::fs::write(Membership::file(dir.path()), &newer).unwrap();
        let applicant = Applicant {
            role: EnrollRole::Node,
            server: Some("https://127.0.0.1:1".to_owned()),
            token: Some(
                EnrollmentToken::generate([7; 32], None)
                    .unwrap()
                    .to_string(),
            ),
            name: "box".to_owned(),
            region: "home".to_owned(),
            hardware: Hardware::default(),
            // Not the usual port: a cluster of this machine may have it.
            underlay: UnderlayOptions {
                port: 40_004,
                advertise: None,
            },
        };
        let joined = Membership::load_or_join(dir.path(), &applicant).await;
        let error = joined.unwrap_err();
        assert!(matches!(error, JoinError::State(_)), "{error}");
        let kept = std::fs::read_to_string(Membership::file(dir.path())).unwrap();
        assert_eq!(kept, newer);
    }

    #[tokio::test]
    async fn a_machine_that_joins_anew_shows_the_same_keys_until_it_has_joined_or_is_who_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let file = Membership::file(dir.path());
        std::fs::write(&file, FIXTURES[0]).unwrap();
        leave(dir.path()).await.unwrap();
        assert!(Membership::load(dir.path()).unwrap().is_none());
        let keys = joining_keys(dir.path()).await.unwrap();
        // The answer is lost, and the same is asked again.
        leave(dir.path()).await.unwrap();
        let again = joining_keys(dir.path()).await.unwrap();
        assert_eq!(again.key_pem, keys.key_pem);
        // It is refused for good: the machine is who it was.
        take_back(dir.path()).await.unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), FIXTURES[0]);
        // And asked once more, with the keys that the server may know.
        leave(dir.path()).await.unwrap();
        let again = joining_keys(dir.path()).await.unwrap();
        assert_eq!(again.key_pem, keys.key_pem);
        // One that has joined is not taken back.
        let joined = FIXTURES[0].replace("\"name\": \"", "\"name\": \"other-");
        std::fs::write(&file, &joined).unwrap();
        take_back(dir.path()).await.unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), joined);
    }

    #[tokio::test]
    async fn a_missing_server_or_token_is_named() {
        let url = "https://127.0.0.1:1";
        assert!(refusal(None, None).await.ends_with("no server was given"));
        assert!(
            refusal(Some(url), None)
                .await
                .ends_with("no token was given")
        );
        assert_eq!(
            refusal(Some(url), Some("nonsense")).await,
            "cannot read the enrollment token"
        );
        let token = EnrollmentToken::generate([7; 32], None)
            .unwrap()
            .to_string();
        assert_eq!(refusal(Some(url), Some(&token)).await, "cannot enroll");
    }
}
