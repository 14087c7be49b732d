//! The client and its calls.

use std::sync::Arc;
use std::time::Duration;

use api::edge::RouteTable;
use api::enrollment::{EnrollRequest, EnrollResponse};
use api::exec::EXEC_PROTOCOL;
use api::node::{DesiredState, NodeReport, PullSecret, StreamRefused, StreamRequest};
use api::protocol::{PROTOCOL_HEADER, PROTOCOL_VERSION};
use api::user::{
    CreateTokenRequest, CreateTokenResponse, DeployRequest, DeployResponse, EnvRow, ImageRow,
    InstanceRow, LogsQuery, NodeRow, RegistryLoginRequest, RegistryRow, RolloutStatus,
    ScaleRequest, SecretRow, SetSecretsRequest, VolumeRow,
};
use api::user::{ExecQuery, SignalRequest, StatsRow};
use api::{ApiError, paths};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use guest_protocol::Frame;
use model::instance::SecretBundle;
use model::{EnvKey, Generation, InstanceId, ReleaseNumber, VolumeId};
use reqwest::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use rustls::RootCertStore;
use rustls::client::WantsClientCert;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{ClientConfig, ClientError, ExecStream, LogStream, NodeExec, UserExec};

/// Longest wait for a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the answer to a call that does not wait for anything itself.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for the answer to a deploy: the server asks a registry meanwhile.
pub const DEPLOY_TIMEOUT: Duration = Duration::from_secs(120);
/// How much longer than the wait of a long poll its answer may take.
pub const ANSWER_GRACE: Duration = Duration::from_secs(10);
/// Largest answer that is read, in bytes (streams excepted).
pub const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;
/// Idle time after which the kernel asks whether the other end still lives.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// A caller of the API. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct ApiClient {
    server: String,
    base: Url,
    http: reqwest::Client,
    token: Option<String>,
}

impl std::fmt::Debug for ApiClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiClient")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// Making a client.
impl ApiClient {
    /// A user, by the token in the configuration.
    pub fn user(config: &ClientConfig) -> Result<Self, ClientError> {
        let tls = with_root(&config.server, &config.ca_pem)?.with_no_client_auth();
        Self::new(&config.server, tls, Some(config.token.clone()))
    }

    /// A node or an edge, by the certificate it got when it enrolled and the key it made.
    pub fn member(
        server_url: &str,
        ca_pem: &str,
        certificate_pem: &str,
        key_pem: &str,
    ) -> Result<Self, ClientError> {
        let setup = |cause: String| ClientError::Setup {
            server: server_url.to_owned(),
            cause,
        };
        let chain = CertificateDer::pem_slice_iter(certificate_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| setup(format!("the client certificate: {e}")))?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|e| setup(format!("the client key: {e}")))?;
        let tls = with_root(server_url, ca_pem)?
            .with_client_auth_cert(chain, key)
            .map_err(|e| setup(format!("the client certificate and key: {e}")))?;
        Self::new(server_url, tls, None)
    }

    /// Joins the cluster: the one call without token or certificate. The server is checked by
    /// `verifier`, which is `identity::pinned_root` of the fingerprint in the enrollment token.
    pub async fn enroll(
        server_url: &str,
        verifier: Arc<dyn ServerCertVerifier>,
        request: &EnrollRequest,
    ) -> Result<EnrollResponse, ClientError> {
        let tls = tls_builder(server_url)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        let client = Self::new(server_url, tls, None)?;
        client
            .call("enrolling", client.post(paths::ENROLL).json(request))
            .await
    }

    fn new(
        server_url: &str,
        tls: rustls::ClientConfig,
        token: Option<String>,
    ) -> Result<Self, ClientError> {
        let setup = |cause: String| ClientError::Setup {
            server: server_url.to_owned(),
            cause,
        };
        let base = Url::parse(server_url).map_err(|e| setup(e.to_string()))?;
        if base.scheme() != "https" || base.host_str().is_none() {
            return Err(setup(
                "the URL must be of the form https://host:port".to_owned(),
            ));
        }
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .default_headers(protocol_headers())
            .tcp_keepalive(KEEPALIVE)
            .tcp_nodelay(true)
            .build()
            .map_err(|e| setup(e.to_string()))?;
        Ok(Self {
            server: server_url.trim_end_matches('/').to_owned(),
            base,
            http,
            token,
        })
    }

    /// The server's URL.
    pub fn server(&self) -> &str {
        &self.server
    }
}

/// What anyone may ask.
impl ApiClient {
    /// Whether the server answers.
    pub async fn health(&self) -> Result<(), ClientError> {
        self.call_empty("asking for the server's health", self.get(paths::HEALTH))
            .await
    }
}

/// A node's calls.
impl ApiClient {
    /// The node's desired state, once it is newer than `after`; `None` when nothing newer came
    /// within `wait`.
    pub async fn desired(
        &self,
        after: Generation,
        wait: Duration,
    ) -> Result<Option<DesiredState>, ClientError> {
        let request = self
            .get(paths::NODE_DESIRED)
            .query(&[("after", after.0)])
            .query(&[("wait_ms", millis(wait))]);
        self.poll("fetching the desired state", request, wait).await
    }

    /// What to show to a registry that an instance of this node comes from; `None` when the cluster is not logged
    /// in there.
    pub async fn pull_secret(&self, registry: &str) -> Result<Option<PullSecret>, ClientError> {
        let request = self
            .get(paths::NODE_PULL_SECRET)
            .query(&[("registry", registry)]);
        self.poll("asking for a pull secret", request, Duration::ZERO)
            .await
    }

    /// Tells the server what the node sees and does.
    pub async fn report(&self, report: &NodeReport) -> Result<(), ClientError> {
        self.call_empty("reporting", self.post(paths::NODE_REPORT).json(report))
            .await
    }

    /// The secret bundles that an instance of this node boots with.
    pub async fn instance_secrets(&self, id: InstanceId) -> Result<Vec<SecretBundle>, ClientError> {
        let request = self.get(paths::NODE_SECRETS);
        let request = request.query(&[("instance", id.to_string())]);
        self.call("fetching secret bundles", request).await
    }

    /// Streams that the node is asked to open; empty when none was asked for within `wait`.
    pub async fn streams(&self, wait: Duration) -> Result<Vec<StreamRequest>, ClientError> {
        let request = self
            .get(paths::NODE_STREAMS)
            .query(&[("wait_ms", millis(wait))]);
        Ok(self
            .poll("asking for streams to open", request, wait)
            .await?
            .unwrap_or_default())
    }

    /// Sends a stream that was asked for. Returns when the body has ended or the reader has left,
    /// whichever comes first; both are fine.
    pub async fn open_stream<S, E>(&self, stream: &str, body: S) -> Result<(), ClientError>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let operation = "sending a stream";
        let path = paths::NODE_STREAM.replace("{stream}", stream);
        let request = self.post(&path).body(reqwest::Body::wrap_stream(body));
        let response = self.send(operation, request, Duration::ZERO).await?;
        self.accepted(operation, response).await.map(|_| ())
    }

    /// Answers a stream that asked for one value.
    pub async fn answer_stream<T: Serialize>(
        &self,
        stream: &str,
        answer: &T,
    ) -> Result<(), ClientError> {
        let path = paths::NODE_STREAM.replace("{stream}", stream);
        self.call_empty("answering a call", self.post(&path).json(answer))
            .await
    }

    /// Says that the node cannot open a stream that was asked for.
    pub async fn refuse_stream(
        &self,
        stream: &str,
        refused: &StreamRefused,
    ) -> Result<(), ClientError> {
        let path = paths::NODE_STREAM_REFUSED.replace("{stream}", stream);
        self.call_empty("refusing a stream", self.post(&path).json(refused))
            .await
    }

    /// Opens a stream that asked for a command: its user is at the other end.
    pub async fn open_exec(&self, stream: &str) -> Result<NodeExec, ClientError> {
        let path = paths::NODE_STREAM.replace("{stream}", stream);
        self.upgrade("opening a command's stream", self.get(&path))
            .await
    }
}

/// An edge's calls.
impl ApiClient {
    /// The route table, once it is newer than `after`; `None` when nothing newer came within
    /// `wait`.
    pub async fn routes(
        &self,
        after: Generation,
        wait: Duration,
    ) -> Result<Option<RouteTable>, ClientError> {
        let request = self
            .get(paths::EDGE_ROUTES)
            .query(&[("after", after.0)])
            .query(&[("wait_ms", millis(wait))]);
        self.poll("fetching the routes", request, wait).await
    }
}

/// A user's calls.
impl ApiClient {
    /// Makes a one-time enrollment token.
    pub async fn create_token(
        &self,
        request: &CreateTokenRequest,
    ) -> Result<CreateTokenResponse, ClientError> {
        self.call("creating a token", self.post(paths::TOKENS).json(request))
            .await
    }

    /// Every node.
    pub async fn nodes(&self) -> Result<Vec<NodeRow>, ClientError> {
        self.call("listing nodes", self.get(paths::NODES)).await
    }

    /// Every registry that the cluster is logged in to.
    pub async fn registries(&self) -> Result<Vec<RegistryRow>, ClientError> {
        self.call("listing registries", self.get(paths::REGISTRIES))
            .await
    }

    /// Logs the cluster in to a registry.
    pub async fn registry_login(
        &self,
        request: &RegistryLoginRequest,
    ) -> Result<RegistryRow, ClientError> {
        let request = self
            .post(paths::REGISTRIES)
            .json(request)
            .timeout(DEPLOY_TIMEOUT);
        self.answer("logging in to a registry", request, DEPLOY_TIMEOUT)
            .await
    }

    /// Logs the cluster out of a registry.
    pub async fn registry_logout(&self, registry: &str) -> Result<(), ClientError> {
        let request = self
            .request(Method::DELETE, paths::REGISTRIES)
            .query(&[("registry", registry)]);
        self.call_empty("logging out of a registry", request).await
    }

    /// The image caches of the nodes that are online.
    pub async fn images(&self) -> Result<Vec<ImageRow>, ClientError> {
        self.call("listing images", self.get(paths::IMAGES)).await
    }

    /// Every instance, or those of one env.
    pub async fn instances(&self, env: Option<&EnvKey>) -> Result<Vec<InstanceRow>, ClientError> {
        let mut request = self.get(paths::INSTANCES);
        if let Some(key) = env {
            request = request.query(&[("app", key.app.as_str()), ("env", key.env.as_str())]);
        }
        self.call("listing instances", request).await
    }

    /// Runs a command beside the app of an instance.
    pub async fn exec(
        &self,
        instance: InstanceId,
        query: &ExecQuery,
    ) -> Result<UserExec, ClientError> {
        let request = self.get(&instance_path(paths::EXEC, instance)).query(query);
        self.upgrade("running a command", request).await
    }

    /// Sends a signal to the app of an instance.
    pub async fn signal(
        &self,
        instance: InstanceId,
        request: &SignalRequest,
    ) -> Result<(), ClientError> {
        let path = instance_path(paths::SIGNAL, instance);
        self.call_empty("sending a signal", self.post(&path).json(request))
            .await
    }

    /// The stats of every instance, or of those of one env.
    pub async fn stats(&self, env: Option<&EnvKey>) -> Result<Vec<StatsRow>, ClientError> {
        let mut request = self.get(paths::STATS);
        if let Some(key) = env {
            request = request.query(&[("app", key.app.as_str()), ("env", key.env.as_str())]);
        }
        self.call("asking for stats", request).await
    }

    /// Every env.
    pub async fn envs(&self) -> Result<Vec<EnvRow>, ClientError> {
        self.call("listing envs", self.get(paths::ENVS)).await
    }

    /// Records a release of the env; its rollout begins.
    pub async fn deploy(
        &self,
        env: &EnvKey,
        request: &DeployRequest,
    ) -> Result<DeployResponse, ClientError> {
        let request = self
            .post(&env_path(paths::ENV, env))
            .json(request)
            .timeout(DEPLOY_TIMEOUT);
        self.answer("deploying", request, DEPLOY_TIMEOUT).await
    }

    /// How the rollout of a release goes (absent: of the newest), once its revision is another
    /// than `after`; the same again when nothing changed within `wait`.
    pub async fn rollout(
        &self,
        env: &EnvKey,
        release: Option<ReleaseNumber>,
        after: Option<u64>,
        wait: Duration,
    ) -> Result<RolloutStatus, ClientError> {
        let mut request = self
            .get(&env_path(paths::ROLLOUT, env))
            .query(&[("wait_ms", millis(wait))]);
        if let Some(release) = release {
            request = request.query(&[("release", release.0)]);
        }
        if let Some(revision) = after {
            request = request.query(&[("after", revision)]);
        }
        let limit = wait + ANSWER_GRACE;
        self.answer("asking for the rollout", request.timeout(limit), limit)
            .await
    }

    /// Sets how many instances of processes are wanted.
    pub async fn scale(&self, env: &EnvKey, request: &ScaleRequest) -> Result<EnvRow, ClientError> {
        let request = self.post(&env_path(paths::SCALE, env)).json(request);
        self.call("scaling", request).await
    }

    /// Begins to destroy the env; it is gone from [`Self::envs`] when nothing of it is left.
    pub async fn destroy(&self, env: &EnvKey) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &env_path(paths::ENV, env));
        self.call_empty("destroying", request).await
    }

    /// A new release as the wanted one, with the newest versions of its secret bundles.
    pub async fn redeploy(&self, env: &EnvKey) -> Result<DeployResponse, ClientError> {
        let request = self.post(&env_path(paths::REDEPLOY, env));
        self.call("deploying again", request).await
    }

    /// The secret bundles of an env.
    pub async fn secrets(&self, env: &EnvKey) -> Result<Vec<SecretRow>, ClientError> {
        let request = self.get(&env_path(paths::SECRETS, env));
        self.call("listing secret bundles", request).await
    }

    /// Makes a new version of a secret bundle.
    pub async fn set_secrets(
        &self,
        env: &EnvKey,
        bundle: &str,
        request: &SetSecretsRequest,
    ) -> Result<SecretRow, ClientError> {
        let path = env_path(paths::SECRET, env).replace("{bundle}", bundle);
        self.call("setting secrets", self.post(&path).json(request))
            .await
    }

    /// Deletes a secret bundle.
    pub async fn delete_secrets(&self, env: &EnvKey, bundle: &str) -> Result<(), ClientError> {
        let path = env_path(paths::SECRET, env).replace("{bundle}", bundle);
        let request = self.request(Method::DELETE, &path);
        self.call_empty("deleting a secret bundle", request).await
    }

    /// Every volume, or those of one env.
    pub async fn volumes(&self, env: Option<&EnvKey>) -> Result<Vec<VolumeRow>, ClientError> {
        let mut request = self.get(paths::VOLUMES);
        if let Some(key) = env {
            request = request.query(&[("app", key.app.as_str()), ("env", key.env.as_str())]);
        }
        self.call("listing volumes", request).await
    }

    /// Begins to delete a volume; it is gone from [`Self::volumes`] when its disk is.
    pub async fn delete_volume(&self, id: VolumeId) -> Result<(), ClientError> {
        let path = paths::VOLUME.replace("{volume}", &id.to_string());
        let request = self.request(Method::DELETE, &path);
        self.call_empty("deleting a volume", request).await
    }

    /// Log lines of the env. With `follow`, until the returned stream is dropped.
    pub async fn logs(&self, env: &EnvKey, query: &LogsQuery) -> Result<LogStream, ClientError> {
        let operation = "reading logs";
        let request = self.get(&env_path(paths::LOGS, env)).query(query);
        // No time limit on the whole: a stream may last for days.
        let response = self.send(operation, request, Duration::ZERO).await?;
        let response = self.accepted(operation, response).await?;
        Ok(LogStream::new(
            self.server.clone(),
            response.bytes_stream().boxed(),
        ))
    }
}

impl ApiClient {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        url.set_path(path);
        url.set_query(None);
        let request = self.http.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    fn post(&self, path: &str) -> RequestBuilder {
        self.request(Method::POST, path)
    }

    async fn send(
        &self,
        operation: &'static str,
        request: RequestBuilder,
        limit: Duration,
    ) -> Result<Response, ClientError> {
        request
            .send()
            .await
            .map_err(|e| ClientError::of_request(operation, &self.server, limit, e))
    }

    /// Asks for exec frames instead of HTTP from here on.
    async fn upgrade<Heard: Frame>(
        &self,
        operation: &'static str,
        request: RequestBuilder,
    ) -> Result<ExecStream<Heard>, ClientError> {
        let request = request
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, EXEC_PROTOCOL);
        let sending = self.send(operation, request, REQUEST_TIMEOUT);
        let timed_out = |_| ClientError::TimedOut {
            operation,
            server: self.server.clone(),
            limit: REQUEST_TIMEOUT,
        };
        let response = tokio::time::timeout(REQUEST_TIMEOUT, sending)
            .await
            .map_err(timed_out)??;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let response = self.accepted(operation, response).await?;
            return Err(ClientError::Answer {
                operation,
                server: self.server.clone(),
                cause: format!("status {} instead of 101", response.status()),
            });
        }
        let upgraded = response
            .upgrade()
            .await
            .map_err(|e| ClientError::of_request(operation, &self.server, REQUEST_TIMEOUT, e))?;
        Ok(ExecStream::new(upgraded))
    }

    /// The response, when the server did not say no.
    async fn accepted(
        &self,
        operation: &'static str,
        response: Response,
    ) -> Result<Response, ClientError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.body(operation, response, REQUEST_TIMEOUT).await?;
        match serde_json::from_slice::<ApiError>(&body) {
            Ok(error) => Err(ClientError::Api {
                operation,
                status: status.as_u16(),
                error,
            }),
            Err(_) => Err(ClientError::Answer {
                operation,
                server: self.server.clone(),
                cause: format!("status {status} without an error of this API"),
            }),
        }
    }

    async fn body(
        &self,
        operation: &'static str,
        response: Response,
        limit: Duration,
    ) -> Result<Bytes, ClientError> {
        let mut body = BytesMut::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk =
                chunk.map_err(|e| ClientError::of_request(operation, &self.server, limit, e))?;
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(ClientError::Answer {
                    operation,
                    server: self.server.clone(),
                    cause: format!("it is over {MAX_ANSWER_BYTES} bytes"),
                });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    async fn parsed<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        response: Response,
        limit: Duration,
    ) -> Result<T, ClientError> {
        let body = self.body(operation, response, limit).await?;
        serde_json::from_slice(&body).map_err(|e| ClientError::Answer {
            operation,
            server: self.server.clone(),
            cause: e.to_string(),
        })
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        request: RequestBuilder,
        limit: Duration,
    ) -> Result<T, ClientError> {
        let response = self.send(operation, request, limit).await?;
        let response = self.accepted(operation, response).await?;
        self.parsed(operation, response, limit).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        request: RequestBuilder,
    ) -> Result<T, ClientError> {
        self.answer(operation, request.timeout(REQUEST_TIMEOUT), REQUEST_TIMEOUT)
            .await
    }

    async fn call_empty(
        &self,
        operation: &'static str,
        request: RequestBuilder,
    ) -> Result<(), ClientError> {
        let request = request.timeout(REQUEST_TIMEOUT);
        let response = self.send(operation, request, REQUEST_TIMEOUT).await?;
        self.accepted(operation, response).await.map(|_| ())
    }

    /// A long poll: 204 means that nothing came.
    async fn poll<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        request: RequestBuilder,
        wait: Duration,
    ) -> Result<Option<T>, ClientError> {
        let limit = wait + ANSWER_GRACE;
        let response = self.send(operation, request.timeout(limit), limit).await?;
        let response = self.accepted(operation, response).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        self.parsed(operation, response, limit).await.map(Some)
    }
}

/// Which protocol version the caller speaks; the server looks at it for members.
fn protocol_headers() -> HeaderMap {
    let name = HeaderName::from_static(PROTOCOL_HEADER);
    HeaderMap::from_iter([(name, HeaderValue::from(PROTOCOL_VERSION))])
}

fn env_path(template: &str, env: &EnvKey) -> String {
    template
        .replace("{app}", env.app.as_str())
        .replace("{env}", env.env.as_str())
}

fn instance_path(template: &str, instance: InstanceId) -> String {
    template.replace("{instance}", &instance.to_string())
}

fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
}

fn tls_builder(
    server_url: &str,
) -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::WantsVerifier>, ClientError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| ClientError::Setup {
            server: server_url.to_owned(),
            cause: e.to_string(),
        })
}

fn with_root(
    server_url: &str,
    ca_pem: &str,
) -> Result<rustls::ConfigBuilder<rustls::ClientConfig, WantsClientCert>, ClientError> {
    let setup = |cause: String| ClientError::Setup {
        server: server_url.to_owned(),
        cause: format!("the cluster's CA: {cause}"),
    };
    let mut roots = RootCertStore::empty();
    let certificate =
        CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| setup(e.to_string()))?;
    roots.add(certificate).map_err(|e| setup(e.to_string()))?;
    Ok(tls_builder(server_url)?.with_root_certificates(roots))
}
