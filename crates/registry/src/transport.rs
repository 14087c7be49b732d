//! GET requests below a repository, authenticated; and the mirrors of a registry.
//!
//! One request is at most three: one with an authorization that was accepted before, which may have expired; one after a
//! 401, with a credential that is looked up again or a new token; and one without either between them, where the
//! registry answers an expired authorization with a 403. Then a 401 or 403 is final.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Response, StatusCode};

use crate::credentials::{Credential, Credentials};
use crate::error::{LoginState, Problem};
use crate::http::{Failure, Http, Repository};
use crate::limits::{AUTHORIZATION_LIFETIME, Limits, MIRROR_ATTEMPTS};
use crate::options::RegistryOptions;
use crate::progress::OnEvent;
use crate::token;

/// A repository at a registry or at a mirror of it, and the number of attempts there.
pub(crate) struct Endpoint {
    pub(crate) repository: Repository,
    pub(crate) attempts: u32,
}

/// A whole body within its limit.
pub(crate) struct Answer {
    pub(crate) content_type: Option<String>,
    /// `Docker-Content-Digest`.
    pub(crate) digest: Option<String>,
    pub(crate) bytes: Vec<u8>,
}

/// The way to every registry: HTTP clients, credentials, and what was accepted before.
pub(crate) struct Transport {
    pub(crate) http: Http,
    credentials: Credentials,
    /// Mirrors by the registry that they mirror.
    mirrors: BTreeMap<String, Vec<String>>,
    /// The `Authorization` that each repository accepted last, and when.
    accepted: Mutex<BTreeMap<Repository, (HeaderValue, Instant)>>,
}

impl Transport {
    pub(crate) fn new(options: RegistryOptions) -> Result<Self, reqwest::Error> {
        let RegistryOptions {
            insecure,
            mirrors,
            credentials,
            addresses,
            limits,
        } = options;
        Ok(Self {
            http: Http::new(insecure, addresses, limits)?,
            credentials,
            mirrors,
            accepted: Mutex::default(),
        })
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.http.limits
    }

    /// The mirrors of a repository, which are asked by digest before the registry itself. Their bytes are checked, so
    /// a mirror need not be trusted. A mirror receives the credential for its own name only.
    pub(crate) fn mirrors(&self, repository: &Repository) -> Vec<Endpoint> {
        let mirrors = self.mirrors.get(&repository.registry);
        let mirrors = mirrors.into_iter().flatten();
        mirrors
            .map(|mirror| Endpoint {
                repository: Repository {
                    registry: mirror.clone(),
                    name: repository.name.clone(),
                },
                attempts: MIRROR_ATTEMPTS.min(self.limits().attempts),
            })
            .collect()
    }

    /// The registry itself. It alone decides what a tag means, and its problem is the one that is reported.
    pub(crate) fn registry(&self, repository: &Repository) -> Endpoint {
        Endpoint {
            repository: repository.clone(),
            attempts: self.limits().attempts,
        }
    }

    /// Discards the authorizations for a registry, so that its credential is looked up again.
    pub(crate) fn discard_authorization(&self, registry: &str) {
        self.accepted()
            .retain(|repository, _| repository.registry != registry);
    }

    fn accepted(&self) -> MutexGuard<'_, BTreeMap<Repository, (HeaderValue, Instant)>> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A document of at most `limit` bytes. `what` is its name in errors, `path` its path below the
    /// repository: `manifests/latest`.
    pub(crate) async fn document(
        &self,
        endpoint: &Endpoint,
        path: &str,
        accept: &str,
        what: &str,
        limit: u64,
        on_event: &OnEvent<'_>,
    ) -> Result<Answer, Problem> {
        let repository = &endpoint.repository;
        let get = || async {
            let response = self.get(repository, path, accept, 0).await?;
            let header = |name: &str| {
                let value = response.headers().get(name)?;
                value.to_str().ok().map(str::to_owned)
            };
            Ok(Answer {
                content_type: header(CONTENT_TYPE.as_str()),
                digest: header("docker-content-digest"),
                bytes: self.http.body(response, limit, what).await?,
            })
        };
        self.http
            .retry(&repository.registry, endpoint.attempts, on_event, get)
            .await
    }

    /// One request below `/v2/<repository>/`, for the body from byte `offset` on. The answer has status 200,
    /// or 206 where `offset` is not 0.
    pub(crate) async fn get(
        &self,
        repository: &Repository,
        path: &str,
        accept: &str,
        offset: u64,
    ) -> Result<Response, Failure> {
        let path = format!("{}/{path}", repository.name);
        let url = self.http.url(&repository.registry, &path)?;
        let accepted = {
            let mut accepted = self.accepted();
            accepted.retain(|_, (_, since)| since.elapsed() < AUTHORIZATION_LIFETIME);
            accepted.get(repository).map(|(value, _)| value.clone())
        };
        let was_accepted = accepted.is_some();
        let mut authorization = accepted;
        let mut answered = None;
        loop {
            let mut headers = HeaderMap::new();
            if let Ok(accept) = HeaderValue::from_str(accept) {
                headers.insert(ACCEPT, accept);
            }
            if let Some(authorization) = &authorization {
                headers.insert(AUTHORIZATION, authorization.clone());
            }
            if offset > 0 {
                headers.insert(RANGE, bytes_from(offset));
            }
            let registry = &repository.registry;
            let response = self.http.get(registry, &url, headers).await?;
            // A 401 of a storage server that the registry redirected to is not the registry's challenge.
            let is_registry = response.url().host_str() == url.host_str()
                && response.url().port_or_known_default() == url.port_or_known_default();
            if is_registry && answered.is_none() {
                match response.status() {
                    StatusCode::UNAUTHORIZED => {
                        self.accepted().remove(repository);
                        let answer = self.authenticate(repository, &response).await?;
                        authorization.clone_from(&answer.authorization);
                        answered = Some(answer);
                        continue;
                    }
                    // Some registries answer so to a token that expired. Without it they say what they want.
                    StatusCode::FORBIDDEN if authorization.is_some() => {
                        self.accepted().remove(repository);
                        authorization = None;
                        continue;
                    }
                    _ => {}
                }
            }
            if response.status().is_success() && response.status().as_u16() != 204 {
                if let Some(value) = authorization.filter(|_| answered.is_some()) {
                    self.accepted()
                        .insert(repository.clone(), (value, Instant::now()));
                }
                return Ok(response);
            }
            let refused_login = answered.is_some_and(|answer| {
                let basic = response.status() == StatusCode::UNAUTHORIZED && answer.is_basic;
                answer.has_credential && (was_accepted || basic)
            });
            let failure = self.http.refusal(repository, &path, &url, response).await;
            return Err(if refused_login {
                expired(failure)
            } else {
                failure
            });
        }
    }

    /// Answers the registry's challenge with the credential that is known for it now.
    async fn authenticate(
        &self,
        repository: &Repository,
        response: &Response,
    ) -> Result<token::Answer, Failure> {
        let found = self.credentials.find(&repository.registry).await;
        let credential = found.map_err(|source| Problem::Credentials {
            host: repository.registry.clone(),
            source,
        })?;
        token::answer(&self.http, repository, response, credential).await
    }

    /// Tries a credential as `docker login` does: at the root of the registry's API.
    pub(crate) async fn log_in(
        &self,
        registry: &str,
        credential: &Credential,
    ) -> Result<(), Failure> {
        let root = Repository {
            registry: registry.to_owned(),
            name: String::new(),
        };
        let url = self.http.url(registry, "")?;
        let response = self.http.get(registry, &url, HeaderMap::new()).await?;
        let response = if response.status() == StatusCode::UNAUTHORIZED {
            let credential = Some(credential.clone());
            let answer = token::answer(&self.http, &root, &response, credential).await?;
            let mut headers = HeaderMap::new();
            if let Some(authorization) = answer.authorization {
                headers.insert(AUTHORIZATION, authorization);
            }
            self.http.get(registry, &url, headers).await?
        } else {
            response
        };
        if response.status().is_success() {
            Ok(())
        } else {
            Err(self.http.refusal(&root, "", &url, response).await)
        }
    }
}

/// The denial of a login that was good before.
fn expired(failure: Failure) -> Failure {
    match failure {
        Failure::Permanent(Problem::Denied { host, reason, .. }) => {
            let login = LoginState::Expired;
            Failure::Permanent(Problem::Denied {
                host,
                login,
                reason,
            })
        }
        other => other,
    }
}

/// Whether to ask the next endpoint after a mirror had this problem.
pub(crate) fn asks_on(mirror: &Endpoint, problem: &Problem) -> bool {
    tracing::info!(mirror = mirror.repository.registry, %problem, "a mirror failed");
    // A failing disk of this machine fails with every registry.
    !matches!(problem, Problem::Cache(_))
}

fn bytes_from(offset: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("bytes={offset}-"))
        .unwrap_or_else(|_| HeaderValue::from_static("bytes=0-"))
}
