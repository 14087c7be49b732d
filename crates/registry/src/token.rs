//! The answer to a 401: user name and password, or a token from the service that the registry names.

use base64::Engine as _;
use display::one_line;
use reqwest::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;

use crate::challenge::{self, Challenge};
use crate::credentials::Credential;
use crate::error::{LoginState, Problem};
use crate::http::{Failure, Http, PLAIN_HTTP, Repository, host_of};
use crate::limits::{MAX_MESSAGE_BYTES, MAX_TOKEN_ANSWER_BYTES};

/// The answer of a token service; both names are in use.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

/// The answer to a 401.
pub(crate) struct Answer {
    /// `None`: the registry did not say what it wants, and no credential is known. The request may be made again: some
    /// registries answer so on a bad day.
    pub(crate) authorization: Option<HeaderValue>,
    /// Whether it was made with a credential.
    pub(crate) has_credential: bool,
    /// Whether the registry itself reads the credential; else its token service did.
    pub(crate) is_basic: bool,
}

/// The answer to a 401. At the root of a registry's API (an empty repository) no scope is requested.
pub(crate) async fn answer(
    http: &Http,
    repository: &Repository,
    response: &Response,
    credential: Option<Credential>,
) -> Result<Answer, Failure> {
    let host = &repository.registry;
    let denied = |reason: &str| Problem::Denied {
        host: host.clone(),
        login: LoginState::Unknown,
        reason: reason.to_owned(),
    };
    let headers = response.headers().get_all(WWW_AUTHENTICATE);
    let has_credential = credential.is_some();
    let basic = |credential: &Credential| match credential {
        Credential::Basic { user, password } => {
            let pair = format!("{user}:{password}");
            let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
            secret_header(&format!("Basic {encoded}"))
                .ok_or_else(|| denied("the credential is not text"))
                .map(Some)
        }
        Credential::IdentityToken(_) => Ok(None),
    };
    if headers.iter().next().is_none() {
        return Ok(Answer {
            authorization: credential.as_ref().map_or(Ok(None), basic)?,
            has_credential,
            is_basic: true,
        });
    }
    let challenge = challenge::choose(headers.iter().filter_map(|value| value.to_str().ok()))
        .ok_or_else(|| denied("it requires an unknown kind of authentication"))?;
    match challenge {
        Challenge::Basic => {
            let authorization = credential.as_ref().map_or(Ok(None), basic)?;
            let authorization =
                authorization.ok_or_else(|| denied("it requires a user name and password"))?;
            Ok(Answer {
                authorization: Some(authorization),
                has_credential,
                is_basic: true,
            })
        }
        Challenge::Bearer {
            realm,
            service,
            scope,
        } => {
            let token = token(http, repository, &realm, service, scope, credential).await?;
            let authorization = secret_header(&format!("Bearer {token}"))
                .ok_or_else(|| denied("its token service answers with a malformed token"))?;
            Ok(Answer {
                authorization: Some(authorization),
                has_credential,
                is_basic: false,
            })
        }
    }
}

/// Requests a token from the token service at `realm`.
async fn token(
    http: &Http,
    repository: &Repository,
    realm: &str,
    service: Option<String>,
    scope: Option<String>,
    credential: Option<Credential>,
) -> Result<String, Failure> {
    let host = &repository.registry;
    let unsafe_realm = |plain_host, reason: &'static str| Problem::UnsafeRedirect {
        host: host.clone(),
        target: one_line(realm, MAX_MESSAGE_BYTES),
        plain_host,
        reason,
    };
    let mut url = Url::parse(realm)
        .map_err(|_| unsafe_realm(None, "the address of its token service is malformed"))?;
    let service_host = host_of(&url);
    match url.scheme() {
        "https" => {}
        "http" if http.is_listed(&service_host) => {}
        "http" if http.is_plain(host) && http.is_plain(&service_host) => {}
        "http" => return Err(unsafe_realm(Some(service_host), PLAIN_HTTP).into()),
        _ => {
            let reason = "its token service speaks neither HTTPS nor HTTP";
            return Err(unsafe_realm(None, reason).into());
        }
    }
    http.check_not_here(host, &url)?;
    let scope = narrowed(scope, &repository.name);
    let client = http.client(&service_host);
    let asked = url.clone();
    let has_credential = credential.is_some();
    let request = match credential {
        Some(Credential::IdentityToken(refresh)) => {
            let mut form = Url::parse("form:").map_err(Failure::transient)?;
            if let Some(scope) = &scope {
                form.query_pairs_mut().append_pair("scope", scope);
            }
            form.query_pairs_mut()
                .append_pair("grant_type", "refresh_token")
                .append_pair("service", service.as_deref().unwrap_or(host))
                .append_pair("client_id", "platform")
                .append_pair("refresh_token", &refresh);
            client
                .post(url)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.query().unwrap_or_default().to_owned())
        }
        other => {
            {
                let mut query = url.query_pairs_mut();
                if let Some(service) = &service {
                    query.append_pair("service", service);
                }
                if let Some(scope) = &scope {
                    query.append_pair("scope", scope);
                }
            }
            match other {
                Some(Credential::Basic { user, password }) => {
                    client.get(url).basic_auth(user, Some(password))
                }
                _ => client.get(url),
            }
        }
    };
    // Its host is the one to name where it does not answer.
    let failed = |failure: Failure| match http.url(host, "") {
        Ok(registry) => failure.at(&asked, &registry),
        Err(_) => failure,
    };
    let response = http.send(request).await.map_err(failed)?;
    if !response.status().is_success() {
        let status = response.status();
        let login = if status == StatusCode::UNAUTHORIZED && has_credential {
            LoginState::Expired
        } else {
            LoginState::Unknown
        };
        return Err(match status {
            // A token service answers so for a repository that the user may not read.
            StatusCode::NOT_FOUND
            | StatusCode::BAD_REQUEST
            | StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN => Problem::Denied {
                host: host.clone(),
                login,
                reason: format!("its token service answers {status}"),
            }
            .into(),
            _ => http.refusal(repository, "token", &asked, response).await,
        });
    }
    let bytes = http
        .body(
            response,
            MAX_TOKEN_ANSWER_BYTES,
            "the token service's answer",
        )
        .await?;
    let answer: Option<TokenAnswer> = serde_json::from_slice(&bytes).ok();
    let token = answer.and_then(|answer| answer.token.or(answer.access_token));
    Ok(token
        .filter(|token| !token.is_empty())
        .ok_or_else(|| Problem::Denied {
            host: host.clone(),
            login: LoginState::Unknown,
            reason: "its token service answers without a token".to_owned(),
        })?)
}

/// The scope to request: at most to read this repository, whatever the registry suggests; none at the root.
fn narrowed(suggested: Option<String>, repository: &str) -> Option<String> {
    if repository.is_empty() {
        return None;
    }
    let own = format!("repository:{repository}:pull");
    Some(match suggested {
        Some(scope) if scope.starts_with(&format!("repository:{repository}:")) => own,
        Some(other) if !other.contains(":push") && !other.contains(":*") => other,
        _ => own,
    })
}

fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
