//! The client: how it is made, and how it sends a request and reads the answer. Its calls are in [`member`] and [`user`],
//! by kind of caller.

mod access;
mod certificates;
mod member;
mod user;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use api::enrollment::{EnrollRequest, EnrollResponse};
use api::protocol::{PROTOCOL_HEADER, PROTOCOL_VERSION};
use api::user::Paged;
use api::{ApiError, IDEMPOTENCY_KEY, error_code, paths};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use guest_protocol::Frame;
use model::OrgName;
use reqwest::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, LINK, UPGRADE};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use rustls::RootCertStore;
use rustls::client::WantsClientCert;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::de::DeserializeOwned;

use crate::error::was_turned_away;
use crate::{ClientConfig, ClientError, ExecStream};

/// Longest wait for a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the answer to a call that does not wait for anything itself.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for the answer to a deploy: the server asks a registry meanwhile.
pub const DEPLOY_TIMEOUT: Duration = Duration::from_secs(120);
/// How much longer than the wait of a long poll its answer may take.
pub const ANSWER_GRACE: Duration = Duration::from_secs(10);
/// Largest answer that is read, in bytes (streams excepted): the desired state of a node with thousands of instances that carry all the variables
/// that a manifest may give them (64 KiB each).
pub const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;
/// Idle time after which the kernel asks whether the other end still lives.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How long a user's call waits for a server that leads: longer than a takeover takes.
const LEADER_PATIENCE: Duration = Duration::from_secs(15);
/// Pause before a server is asked again where none leads.
const LEADER_PAUSE: Duration = Duration::from_millis(500);
/// How long a server is asked again that closes connections before it knows whose they are: many come at once from this address.
const TURNED_AWAY_PATIENCE: Duration = Duration::from_secs(5);
/// How often a member's connection is asked whether the server still lives: one that is silent is left for the next server.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// How long the answer may take.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// A caller of the API. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct ApiClient {
    server: String,
    servers: Arc<Servers>,
    /// Shared by clones: a member's are others once it has another certificate.
    clients: Arc<RwLock<Clients>>,
    token: Option<String>,
    /// The org of apps that its calls make.
    org: Option<OrgName>,
}

/// What makes the connections.
#[derive(Clone)]
struct Clients {
    /// A member's polls and reports, on one HTTP/2 connection; every call of others, on HTTP/1.1.
    http: reqwest::Client,
    /// Streams of logs and commands, each on an HTTP/1.1 connection of its own: one that its reader holds up holds up no other.
    streams: reqwest::Client,
}

/// The servers of a cluster, of which any may be asked.
struct Servers {
    urls: Vec<Url>,
    /// The one that is asked now.
    current: AtomicUsize,
}

impl Servers {
    /// `https://host:port`, or several of them with commas between.
    fn parse(text: &str) -> Result<Self, String> {
        let mut urls = Vec::new();
        for text in text.split(',') {
            let url = Url::parse(text.trim()).map_err(|e| e.to_string())?;
            if url.scheme() != "https" || url.host_str().is_none() {
                return Err("the URL must be of the form https://host:port".to_owned());
            }
            urls.push(url);
        }
        Ok(Self {
            urls,
            current: AtomicUsize::new(0),
        })
    }

    fn current(&self) -> (usize, &Url) {
        // blocks: a number in memory
        let current = self.current.load(Ordering::Relaxed) % self.urls.len();
        (current, &self.urls[current])
    }

    /// This one does not answer: the next one is asked from now on, unless another call has seen to that.
    fn leave(&self, current: usize) {
        let next = (current + 1) % self.urls.len();
        let _ = self
            .current
            .compare_exchange(current, next, Ordering::Relaxed, Ordering::Relaxed);
    }
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
    ///
    /// Here and in the other two, the server may be several with commas between: when one cannot be reached or does not answer in
    /// time, the next one is asked.
    pub fn user(config: &ClientConfig) -> Result<Self, ClientError> {
        let tls = with_root(&config.server, &config.ca_pem)?.with_no_client_auth();
        Self::new(&config.server, tls, Some(config.token.clone()), false)
    }

    /// A user who knows nothing of the cluster but what a token says. The server is checked by `verifier`, which is
    /// `identity::pinned_root` of the fingerprint in the token.
    pub fn first_user(
        server_url: &str,
        verifier: Arc<dyn ServerCertVerifier>,
        token: String,
    ) -> Result<Self, ClientError> {
        let tls = tls_builder(server_url)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Self::new(server_url, tls, Some(token), false)
    }

    /// A node or an edge, by the certificate it got when it enrolled and the key it made.
    pub fn member(
        server_url: &str,
        ca_pem: &str,
        certificate_pem: &str,
        key_pem: &str,
    ) -> Result<Self, ClientError> {
        let tls = member_tls(server_url, ca_pem, certificate_pem, key_pem)?;
        Self::new(server_url, tls, None, true)
    }

    /// This member has another certificate, another key or other CAs from now on, also for the clones of this client: new connections are made
    /// with them.
    pub fn replace_credentials(
        &self,
        ca_pem: &str,
        certificate_pem: &str,
        key_pem: &str,
    ) -> Result<(), ClientError> {
        let tls = member_tls(&self.server, ca_pem, certificate_pem, key_pem)?;
        let made = Clients::new(&self.server, tls, true)?;
        // blocks: a pointer in memory
        *self.clients.write().unwrap_or_else(PoisonError::into_inner) = made;
        Ok(())
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
        let client = Self::new(server_url, tls, None, false)?;
        client
            .call("enrolling", client.post(paths::ENROLL).json(request))
            .await
    }

    fn new(
        server_url: &str,
        tls: rustls::ClientConfig,
        token: Option<String>,
        h2: bool,
    ) -> Result<Self, ClientError> {
        let servers = Servers::parse(server_url).map_err(|cause| ClientError::Setup {
            server: server_url.to_owned(),
            cause,
        })?;
        Ok(Self {
            server: server_url.trim_end_matches('/').to_owned(),
            servers: Arc::new(servers),
            clients: Arc::new(RwLock::new(Clients::new(server_url, tls, h2)?)),
            token,
            org: None,
        })
    }

    /// Apps that this client makes are of this org; of an app that is there it has to be the owner. Absent: the server chooses.
    #[must_use]
    pub fn in_org(self, org: Option<OrgName>) -> Self {
        Self { org, ..self }
    }

    fn clients(&self) -> Clients {
        // blocks: a pointer in memory
        let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
        clients.clone()
    }

    /// The server's URL, or those of several.
    pub fn server(&self) -> &str {
        &self.server
    }
}

impl Clients {
    fn new(server_url: &str, mut tls: rustls::ClientConfig, h2: bool) -> Result<Self, ClientError> {
        let setup = |cause: String| ClientError::Setup {
            server: server_url.to_owned(),
            cause,
        };
        let builder = |tls| {
            reqwest::Client::builder()
                .tls_backend_preconfigured(tls)
                .https_only(true)
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT_TIMEOUT)
                .default_headers(protocol_headers())
                .tcp_keepalive(KEEPALIVE)
                .tcp_nodelay(true)
        };
        let made =
            |builder: reqwest::ClientBuilder| builder.build().map_err(|e| setup(e.to_string()));
        let streams = made(builder(tls.clone()).http1_only())?;
        let http = if h2 {
            tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            made(
                builder(tls)
                    .http2_keep_alive_interval(PING_INTERVAL)
                    .http2_keep_alive_timeout(PING_TIMEOUT)
                    .http2_keep_alive_while_idle(true),
            )?
        } else {
            streams.clone()
        };
        Ok(Self { http, streams })
    }
}

/// The call that every caller may make.
impl ApiClient {
    /// Whether the server answers.
    pub async fn health(&self) -> Result<(), ClientError> {
        self.call_empty("asking for the server's health", self.get(paths::HEALTH))
            .await
    }
}

impl ApiClient {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.request_by(&self.clients().http, method, path)
    }

    /// A request that is a stream, or opens one.
    fn stream_request(&self, method: Method, path: &str) -> RequestBuilder {
        self.request_by(&self.clients().streams, method, path)
    }

    fn request_by(&self, client: &reqwest::Client, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.servers.current().1.clone();
        url.set_path(path);
        url.set_query(None);
        let request = client.request(method, url);
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
        let failed = |e| ClientError::of_request(operation, &self.server, limit, e);
        let (client, request) = request.build_split();
        let mut request = request.map_err(failed)?;
        let began = Instant::now();
        // Servers that were not asked yet.
        let mut others = self.servers.urls.len() - 1;
        loop {
            let (current, url) = self.servers.current();
            let mut url = url.clone();
            url.set_path(request.url().path());
            url.set_query(request.url().query());
            *request.url_mut() = url;
            // A body that streams is sent once.
            let again = request.try_clone();
            // Made twice it does the same.
            let is_read = request.method() == Method::GET;
            let is_idempotent = is_read || request.headers().contains_key(IDEMPOTENCY_KEY);
            match client.execute(request).await {
                Ok(response) if self.token.is_some() => {
                    let (response, code) = self.with_code(operation, response).await?;
                    let may_repeat = match code.as_deref() {
                        Some(error_code::NO_LEADER) => true,
                        Some(error_code::LEADER_CHANGED) => is_idempotent,
                        _ => false,
                    };
                    match again {
                        Some(again) if may_repeat && began.elapsed() < LEADER_PATIENCE => {
                            tracing::debug!(operation, "no server leads; asking again");
                            tokio::time::sleep(LEADER_PAUSE).await;
                            self.servers.leave(current);
                            request = again;
                        }
                        _ => return Ok(response),
                    }
                }
                Ok(response) => return Ok(response),
                Err(error) => {
                    self.servers.leave(current);
                    match again {
                        // The server has seen nothing of it.
                        Some(again) if error.is_connect() && others > 0 => {
                            others -= 1;
                            request = again;
                        }
                        // The server may have done it, and was stopped before it could say so.
                        Some(again)
                            if is_idempotent
                                && !is_read
                                && !error.is_timeout()
                                && began.elapsed() < LEADER_PATIENCE =>
                        {
                            tokio::time::sleep(LEADER_PAUSE).await;
                            request = again;
                        }
                        Some(again)
                            if was_turned_away(&error)
                                && began.elapsed() < TURNED_AWAY_PATIENCE =>
                        {
                            tokio::time::sleep(LEADER_PAUSE).await;
                            request = again;
                        }
                        _ => return Err(failed(error)),
                    }
                }
            }
        }
    }

    /// The same response, and the code of its error where no server could take the request.
    async fn with_code(
        &self,
        operation: &'static str,
        response: Response,
    ) -> Result<(Response, Option<String>), ClientError> {
        if response.status() != StatusCode::SERVICE_UNAVAILABLE {
            return Ok((response, None));
        }
        let mut same = http::Response::new(());
        *same.status_mut() = response.status();
        same.headers_mut().clone_from(response.headers());
        let body = self.body(operation, response, REQUEST_TIMEOUT).await?;
        let error = serde_json::from_slice::<ApiError>(&body).ok();
        Ok((same.map(|()| body).into(), error.map(|error| error.code)))
    }

    /// Asks for frames of a protocol instead of HTTP from here on.
    async fn upgrade<Heard: Frame>(
        &self,
        operation: &'static str,
        protocol: &'static str,
        request: RequestBuilder,
    ) -> Result<ExecStream<Heard>, ClientError> {
        let request = request
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, protocol);
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

    /// The response, when the server did not refuse.
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

    /// Every row of a list, page by page.
    async fn pages<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        path: &str,
        query: &impl Paged,
    ) -> Result<Vec<T>, ClientError> {
        let mut rows = Vec::new();
        let mut told = BTreeSet::new();
        let mut request = self.get(path).query(query);
        loop {
            let page = request.timeout(REQUEST_TIMEOUT);
            let response = self.send(operation, page, REQUEST_TIMEOUT).await?;
            let response = self.accepted(operation, response).await?;
            let next = next_page(response.headers());
            let page: Vec<T> = self.parsed(operation, response, REQUEST_TIMEOUT).await?;
            // A page without rows leads nowhere.
            let next = next.filter(|_| !page.is_empty());
            rows.extend(page);
            let Some(next) = next else { return Ok(rows) };
            if !told.insert(next.clone()) {
                return Err(ClientError::Answer {
                    operation,
                    server: self.server.clone(),
                    cause: "its pages lead back to one before".to_owned(),
                });
            }
            request = self.get(path).query(&next);
        }
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
    // While the CA is replaced there are two.
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|e| setup(e.to_string()))?;
        roots.add(certificate).map_err(|e| setup(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(setup("there is no certificate in it (PEM)".to_owned()));
    }
    Ok(tls_builder(server_url)?.with_root_certificates(roots))
}

fn member_tls(
    server_url: &str,
    ca_pem: &str,
    certificate_pem: &str,
    key_pem: &str,
) -> Result<rustls::ClientConfig, ClientError> {
    let setup = |cause: String| ClientError::Setup {
        server: server_url.to_owned(),
        cause,
    };
    let chain = CertificateDer::pem_slice_iter(certificate_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| setup(format!("the client certificate: {e}")))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
        .map_err(|e| setup(format!("the client key: {e}")))?;
    with_root(server_url, ca_pem)?
        .with_client_auth_cert(chain, key)
        .map_err(|e| setup(format!("the client certificate and key: {e}")))
}

/// A name for one call, which no other has.
fn random_key() -> String {
    use std::fmt::Write as _;

    let mut bytes = [0; 16];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let mut text = String::new();
    if provider.secure_random.fill(&mut bytes).is_ok() {
        for byte in bytes {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
    }
    text
}

/// The query of the next page of a list, where its header names one (RFC 8288).
fn next_page(headers: &HeaderMap) -> Option<Vec<(String, String)>> {
    let links = headers.get_all(LINK).iter();
    let links = links.filter_map(|value| value.to_str().ok());
    let next = links.flat_map(|value| value.split(", ")).find_map(|link| {
        let (target, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
        rest.contains("rel=\"next\"").then_some(target)
    })?;
    // The server may name itself otherwise than it is reached.
    let base = Url::parse("https://list").ok()?;
    let url = base.join(next).ok()?;
    let pairs = url.query_pairs();
    Some(
        pairs
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect(),
    )
}
