//! The edge's place in the cluster: it enrolls once (ADR 0004), with a key made here that never
//! leaves the machine, and remembers who it is.

use std::path::Path;
use std::time::Duration;

use api_client::{ApiClient, ClientError};
use contract::api::{EnrollRequest, Hardware, Member};
use identity::{EnrollmentToken, MemberKey};
use serde::{Deserialize, Serialize};

use crate::limits::{FIRST_POLL_RETRY, MAX_POLL_RETRY};
use crate::{EdgeError, EdgeOptions, state_file};

const FILE: &str = "member.json";

/// What an enrolled edge keeps; the file is readable by its owner only, for the key in it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Membership {
    /// Who it is.
    member: Member,
    /// Its name in the cluster.
    name: String,
    /// The server's URL.
    server: String,
    /// The cluster's CA, PEM.
    ca_pem: String,
    /// Its client certificate, PEM.
    certificate_pem: String,
    /// Its key, PEM.
    key_pem: String,
}

/// A client with which the edge is known to the server. Enrolls if it never did; while the server
/// cannot be reached, it tries again.
pub(crate) async fn client(options: &EdgeOptions) -> Result<ApiClient, EdgeError> {
    let path = options.data_dir.join(FILE);
    let membership = match state_file::read::<Membership>(&path)? {
        Some(kept) => with_new_server(kept, options, &path)?,
        None => enroll(options, &path).await?,
    };
    tracing::info!(
        edge = %membership.member, name = membership.name, server = membership.server,
        "member of the cluster"
    );
    ApiClient::member(
        &membership.server,
        &membership.ca_pem,
        &membership.certificate_pem,
        &membership.key_pem,
    )
    .map_err(EdgeError::Client)
}

/// `--server` wins over the remembered URL: a server may move.
fn with_new_server(
    mut kept: Membership,
    options: &EdgeOptions,
    path: &Path,
) -> Result<Membership, EdgeError> {
    if options.token.is_some() {
        tracing::info!("enrolled already: the token is not needed");
    }
    if let Some(server) = options.server.as_ref().filter(|url| **url != kept.server) {
        kept.server.clone_from(server);
        state_file::write(path, &kept)?;
    }
    Ok(kept)
}

async fn enroll(options: &EdgeOptions, path: &Path) -> Result<Membership, EdgeError> {
    let (Some(server), Some(token)) = (&options.server, &options.token) else {
        return Err(EdgeError::NotEnrolled {
            data_dir: options.data_dir.clone(),
        });
    };
    let token: EnrollmentToken = token.parse()?;
    let key = MemberKey::generate()?;
    // The token works once: find out now whether the answer can be kept.
    state_file::prepare(path)?;
    let request = EnrollRequest {
        token: token.secret.text(),
        name: options.name.clone(),
        region: options.region.clone(),
        csr_pem: key.csr_pem(&options.name)?,
        wireguard_public_key: None,
        hardware: Hardware {
            arch: oci_arch().to_owned(),
            cpus: std::thread::available_parallelism()
                .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
            memory_bytes: 0,
        },
    };
    let answer = until_reached(server, async || {
        let verifier = identity::pinned_root(token.ca_fingerprint);
        ApiClient::enroll(server, verifier, &request).await
    })
    .await
    .map_err(EdgeError::Enroll)?;
    let membership = Membership {
        member: answer.member,
        name: answer.name,
        server: server.clone(),
        ca_pem: answer.ca_pem,
        certificate_pem: answer.certificate_pem,
        key_pem: key.key_pem(),
    };
    state_file::write(path, &membership)?;
    Ok(membership)
}

/// Calls again while the server cannot be reached. An answer, good or bad, is the result.
async fn until_reached<T>(
    server: &str,
    call: impl AsyncFn() -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let mut pause = FIRST_POLL_RETRY;
    loop {
        match call().await {
            Err(error @ ClientError::Connect { .. }) => {
                tracing::warn!(server, %error, "trying again in {} ms", pause.as_millis());
            }
            result => return result,
        }
        tokio::time::sleep(pause).await;
        pause = longer(pause);
    }
}

/// The next pause after this one.
pub(crate) fn longer(pause: Duration) -> Duration {
    (pause * 2).min(MAX_POLL_RETRY)
}

/// This machine's architecture in the OCI's words.
fn oci_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
