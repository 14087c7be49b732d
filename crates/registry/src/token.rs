//! The answer to a 401: user name and password, or a token from the service that the registry names.

use base64::Engine as _;
use display::one_line;
use reqwest::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;

use crate::challenge::{self, Challenge};
use crate::credentials::Credential;
use crate::error::Problem;
use crate::http::{Failure, Http, Repository, host_of};
use crate::limits::{MAX_MESSAGE_BYTES, MAX_TOKEN_ANSWER_BYTES};

/// The answer of a token service; both names are in use.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

/// The `Authorization` that answers a 401. At the root of a registry's API (an empty repository) no scope is requested.
pub(crate) async fn authorization(
    http: &Http,
    repository: &Repository,
    response: &Response,
    credential: Option<Credential>,
) -> Result<HeaderValue, Failure> {
    let host = &repository.registry;
    let denied = |reason: &str| Problem::Denied {
        host: host.clone(),
        reason: reason.to_owned(),
    };
    let headers = response.headers().get_all(WWW_AUTHENTICATE);
    let challenge = challenge::choose(headers.iter().filter_map(|value| value.to_str().ok()))
        .ok_or_else(|| denied("it requires an unknown kind of authentication"))?;
    match challenge {
        Challenge::Basic => match credential {
            Some(Credential::Basic { user, password }) => {
                let pair = format!("{user}:{password}");
                let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
                secret_header(&format!("Basic {encoded}"))
                    .ok_or_else(|| denied("the credential is not text").into())
            }
            _ => Err(denied("it requires a user name and password").into()),
        },
        Challenge::Bearer {
            realm,
            service,
            scope,
        } => {
            let token = token(http, repository, &realm, service, scope, credential).await?;
            secret_header(&format!("Bearer {token}"))
                .ok_or_else(|| denied("its token service answers with a malformed token").into())
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
    let unsafe_realm = |reason: &'static str| Problem::UnsafeRedirect {
        host: host.clone(),
        target: one_line(realm, MAX_MESSAGE_BYTES),
        reason,
    };
    let mut url = Url::parse(realm)
        .map_err(|_| unsafe_realm("the address of its token service is malformed"))?;
    let plain = url.scheme() == "http" && http.is_plain(host) && http.is_plain(&host_of(&url));
    if url.scheme() != "https" && !plain {
        return Err(unsafe_realm("its token service does not speak HTTPS").into());
    }
    let scope = narrowed(scope, &repository.name);
    let client = http.client(&host_of(&url));
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
    let response = http.send(host, request).await?;
    if !response.status().is_success() {
        return Err(match response.status() {
            // A token service answers so for a repository that the user may not read.
            StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => Problem::Denied {
                host: host.clone(),
                reason: format!("its token service answers {}", response.status()),
            }
            .into(),
            _ => http.refusal(repository, "token", response).await,
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
