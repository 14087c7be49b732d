//! Answering a 401: user name and password, or a token from the service that the registry names.

use base64::Engine as _;
use reqwest::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;

use crate::auth::{self, Challenge};
use crate::credentials::Credential;
use crate::document::printable;
use crate::error::Problem;
use crate::limits::MAX_TOKEN_ANSWER_BYTES;
use crate::transport::{Failure, Place, Transport, host_of, is_plain};

/// What a token service says; either name is in use.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Transport {
    /// Answers a 401: looks for a credential, and gets a token where one is wanted.
    pub(crate) async fn authenticate(
        &self,
        place: &Place,
        response: &Response,
    ) -> Result<HeaderValue, Failure> {
        let found = self.credentials.find(&place.registry).await;
        let credential = found.map_err(|source| Problem::Credentials {
            host: place.registry.clone(),
            source,
        })?;
        self.answer_challenge(place, response, credential).await
    }

    /// The same with this credential. A place without a repository asks for no more than to be let in.
    pub(crate) async fn answer_challenge(
        &self,
        place: &Place,
        response: &Response,
        credential: Option<Credential>,
    ) -> Result<HeaderValue, Failure> {
        let host = &place.registry;
        let denied = |reason: &str| Problem::Denied {
            host: host.clone(),
            reason: reason.to_owned(),
        };
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let challenge = auth::choose(headers.iter().filter_map(|value| value.to_str().ok()))
            .ok_or_else(|| denied("it asks for a kind of authentication that is not known"))?;
        match challenge {
            Challenge::Basic => match credential {
                Some(Credential::Basic { user, password }) => {
                    let pair = format!("{user}:{password}");
                    let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
                    secret_header(&format!("Basic {encoded}"))
                        .ok_or_else(|| denied("the credential is not text").into())
                }
                _ => Err(denied("it wants a user name and password").into()),
            },
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => {
                let token = self
                    .token(place, &realm, service, scope, credential)
                    .await?;
                secret_header(&format!("Bearer {token}"))
                    .ok_or_else(|| denied("its token service gives no proper token").into())
            }
        }
    }

    /// Asks the token service that the registry named.
    async fn token(
        &self,
        place: &Place,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
        credential: Option<Credential>,
    ) -> Result<String, Failure> {
        let host = &place.registry;
        let unsafe_realm = |reason: &'static str| Problem::UnsafeRedirect {
            host: host.clone(),
            target: printable(realm),
            reason,
        };
        let mut url = Url::parse(realm)
            .map_err(|_| unsafe_realm("its token service has no proper address"))?;
        let plain = url.scheme() == "http"
            && is_plain(&self.plain, host)
            && is_plain(&self.plain, &host_of(&url));
        if url.scheme() != "https" && !plain {
            return Err(unsafe_realm("its token service does not speak HTTPS").into());
        }
        let scope = narrowed(scope, &place.repository);
        let client = self.client(&host_of(&url));
        let request = match credential {
            Some(Credential::IdentityToken(refresh)) => {
                let mut form = Url::parse("form:").map_err(Failure::passing)?;
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
        let response = self.send(host, request).await?;
        if !response.status().is_success() {
            return Err(match response.status() {
                // What the token service does not know, the user is not allowed to see.
                StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => Problem::Denied {
                    host: host.clone(),
                    reason: format!("its token service answers {}", response.status()),
                }
                .into(),
                _ => self.refusal(place, "token", response).await,
            });
        }
        let bytes = self
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
                reason: "its token service gives no token".to_owned(),
            })?)
    }
}

/// Never more than to read this repository, whatever the registry suggests; without one, nothing.
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
