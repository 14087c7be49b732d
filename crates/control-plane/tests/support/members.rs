//! Machines that join, and what they are answered.

use std::time::Duration;

use api::enrollment::{EnrollRequest, EnrollResponse};
use api::user::CreateTokenRequest;
use api_client::{ApiClient, ClientError};
use identity::{EnrollmentToken, MemberKey};
use model::{Generation, NodeId, Timestamp};

use super::{Joined, Server};

/// No wait.
pub(crate) const NOW: Duration = Duration::ZERO;

pub(crate) fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> (u16, String) {
    match result.unwrap_err() {
        ClientError::Api { status, error, .. } => (status, error.code),
        error => panic!("{error:?}"),
    }
}

pub(crate) fn forbidden(code: &str) -> (u16, String) {
    (403, code.to_owned())
}

pub(crate) async fn enroll(
    server: &Server,
    token: &EnrollmentToken,
    request: &EnrollRequest,
) -> Result<EnrollResponse, ClientError> {
    let verifier = identity::pinned_root(token.ca_fingerprint);
    ApiClient::enroll(&server.ready.url, verifier, request).await
}

pub(crate) fn member(server: &Server, response: &EnrollResponse, key: &MemberKey) -> ApiClient {
    let (ca, certificate) = (&response.ca_pem, &response.certificate_pem);
    ApiClient::member(&server.ready.url, ca, certificate, &key.key_pem()).unwrap()
}

pub(crate) async fn token_of(server: &Server, request: &CreateTokenRequest) -> EnrollmentToken {
    let made = server.user.create_token(request).await.unwrap();
    made.token.parse().unwrap()
}

/// The same member, at a server that answers at another address.
pub(crate) fn at(server: &Server, joined: &Joined) -> ApiClient {
    let response = &joined.response;
    let (ca, certificate) = (&response.ca_pem, &response.certificate_pem);
    ApiClient::member(&server.ready.url, ca, certificate, &joined.key_pem).unwrap()
}

pub(crate) async fn desired(client: &ApiClient) -> Result<NodeId, ClientError> {
    let state = client.desired(Generation::default(), NOW).await?;
    Ok(state.unwrap().node)
}

pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp(u64::try_from(since.unwrap().as_millis()).unwrap())
}
