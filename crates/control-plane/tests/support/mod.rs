//! A server, a registry, and nodes and edges that speak the API and run nothing.
#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod members;
pub(crate) mod registry;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::enrollment::{EnrollRequest, EnrollResponse, EnrollRole, Hardware, Member};
use api::member::Underlay;
use api::node::{
    AgentSession, DesiredState, DriverChoice, InstanceReport, NodeReport, ReportAnswer, ReportDelta,
};
use api::user::{CreateTokenRequest, DeployRequest};
use api_client::{ApiClient, ClientConfig, ClientError};
use control_plane::{Ready, ServerError, ServerOptions};
use identity::{EnrollmentToken, MemberKey, WireguardKey};
use model::instance::InstanceState;
use model::{EnvKey, EnvNetwork, Generation, InstanceId, NodeId, Timestamp};
use reqwest::Client;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything in a test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Asks again until the answer is there.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .unwrap_or_else(|_| panic!("it never came: {what}"))
}

/// A server on a free loopback port.
pub(crate) struct Server {
    pub(crate) ready: Ready,
    pub(crate) config: ClientConfig,
    pub(crate) user: ApiClient,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), ServerError>>,
}

pub(crate) fn options(folder: &Path) -> ServerOptions {
    ServerOptions {
        listen: "127.0.0.1:0".parse().unwrap(),
        store: None,
        data_dir: folder.to_owned(),
        names: vec!["cp.example.com".to_owned()],
        advertise: None,
        insecure_registries: BTreeSet::new(),
        registry_mirrors: BTreeMap::new(),
        metrics_listen: None,
        acme_dns_hook: None,
        ready: None,
    }
}

impl Server {
    pub(crate) async fn start(folder: &Path) -> Self {
        match Self::start_with(options(folder)).await {
            Ok(server) => server,
            Err(error) => panic!("the server did not start: {error:?}"),
        }
    }

    /// A server where another one was, once that has left the port.
    pub(crate) async fn try_start_at(folder: &Path, url: &str) -> Option<Self> {
        let mut options = options(folder);
        options.listen = url.strip_prefix("https://").unwrap().parse().unwrap();
        Self::start_with(options).await.ok()
    }

    async fn start_with(mut options: ServerOptions) -> Result<Self, ServerError> {
        let (sender, ready) = oneshot::channel();
        let shutdown = CancellationToken::new();
        options.ready = Some(sender);
        let task = tokio::spawn(control_plane::run(options, shutdown.clone()));
        let Ok(ready) = ready.await else {
            return Err(task.await.unwrap().unwrap_err());
        };
        let config = ClientConfig::load(&ready.client_config).unwrap();
        let user = ApiClient::user(&config).unwrap();
        Ok(Self {
            ready,
            config,
            user,
            shutdown,
            task,
        })
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }

    pub(crate) async fn token(&self, role: EnrollRole) -> EnrollmentToken {
        token(&self.user, role).await
    }

    pub(crate) async fn join(&self, role: EnrollRole) -> Joined {
        join(&self.ready.url, &self.user, role).await
    }

    pub(crate) async fn join_node(&self) -> (NodeId, Joined) {
        let joined = self.join(EnrollRole::Node).await;
        match joined.response.member {
            Member::Node(id) => (id, joined),
            Member::Edge(id) => panic!("a node became {id}"),
        }
    }

    pub(crate) async fn deploy(&self, key: &EnvKey, manifest: &str, image: &str) -> u32 {
        let request = DeployRequest {
            only: std::collections::BTreeSet::new(),
            manifest: manifest.to_owned(),
            image: image.to_owned(),
        };
        self.user.deploy(key, &request).await.unwrap().release.0
    }
}

async fn token(user: &ApiClient, role: EnrollRole) -> EnrollmentToken {
    let request = CreateTokenRequest::new(role, 600);
    let made = user.create_token(&request).await.unwrap();
    made.token.parse().unwrap()
}

/// A member that joins the server at `url`, with a token that this user makes.
pub(crate) async fn join(url: &str, user: &ApiClient, role: EnrollRole) -> Joined {
    join_with(url, user, role, hardware()).await
}

/// The same, of a machine that has this.
pub(crate) async fn join_with(
    url: &str,
    user: &ApiClient,
    role: EnrollRole,
    hardware: Hardware,
) -> Joined {
    let token = token(user, role).await;
    let key = MemberKey::generate().unwrap();
    let request = EnrollRequest {
        hardware,
        ..enroll_request(&token, &key)
    };
    let verifier = identity::pinned_root(token.ca_fingerprint);
    let response = ApiClient::enroll(url, verifier, &request).await.unwrap();
    let client = ApiClient::member(
        url,
        &response.ca_pem,
        &response.certificate_pem,
        &key.key_pem(),
    )
    .unwrap();
    Joined {
        client,
        response,
        key_pem: key.key_pem(),
    }
}

pub(crate) struct Joined {
    pub(crate) client: ApiClient,
    pub(crate) response: EnrollResponse,
    pub(crate) key_pem: String,
}

pub(crate) fn hardware() -> Hardware {
    Hardware {
        arch: "amd64".to_owned(),
        cpus: 4,
        memory_bytes: 8 << 30,
        ..Hardware::default()
    }
}

pub(crate) fn enroll_request(token: &EnrollmentToken, key: &MemberKey) -> EnrollRequest {
    EnrollRequest {
        role: None,
        token: token.secret.text(),
        name: "box".to_owned(),
        region: "home".to_owned(),
        csr_pem: key.csr_pem("box").unwrap(),
        wireguard_public_key: Some(WireguardKey::generate().unwrap().public_base64().to_owned()),
        hardware: hardware(),
        sent_at: None,
        underlay: Some(Underlay {
            port: 51_820,
            ..Underlay::default()
        }),
    }
}

pub(crate) fn env_key(app: &str, env: &str) -> EnvKey {
    EnvKey {
        app: app.parse().unwrap(),
        env: env.parse().unwrap(),
    }
}

pub(crate) fn manifest(app: &str) -> String {
    format!(
        "app = \"{app}\"\n\
         [processes.web]\n\
         [[processes.web.ports]]\n\
         port = 8080\n\
         protocol = \"http\"\n\
         [processes.web.scaling]\n\
         min = 2\n\
         max = 4\n\
         [processes.web.deploy]\n\
         min_healthy = \"0s\"\n\
         [routes]\n\
         \"{app}.localhost\" = {{ process = \"web\", port = 8080 }}\n"
    )
}

pub(crate) fn report(generation: Generation, instances: Vec<InstanceReport>) -> NodeReport {
    NodeReport {
        generation,
        egress: None,
        driver: DriverChoice {
            name: "qemu-tcg".to_owned(),
            reason: "a test".to_owned(),
        },
        hardware: hardware(),
        instances,
        volumes: Vec::new(),
        highest_network: EnvNetwork::default(),
        images: Vec::new(),
    }
}

/// A node without memory: each report is all that it has, by another start of its agent.
pub(crate) trait ReportsAll {
    async fn report_all(&self, report: &NodeReport) -> Result<ReportAnswer, ClientError>;
}

impl ReportsAll for ApiClient {
    async fn report_all(&self, report: &NodeReport) -> Result<ReportAnswer, ClientError> {
        static STARTS: AtomicU64 = AtomicU64::new(1);
        let session = AgentSession(STARTS.fetch_add(1, Ordering::Relaxed));
        let whole = ReportDelta::whole(session, 1, report.clone());
        self.report(&whole).await
    }
}

pub(crate) fn running(id: InstanceId) -> InstanceReport {
    let state = InstanceState::Running {
        ready: true,
        started_at: Some(Timestamp(1)),
    };
    InstanceReport::new(id, state)
}

/// A node that applies every desired state at once, and reports that all of it runs.
pub(crate) struct ObedientNode {
    pub(crate) id: NodeId,
    pub(crate) joined: Arc<Joined>,
    task: JoinHandle<()>,
}

impl ObedientNode {
    pub(crate) async fn start(server: &Server) -> Self {
        let (id, joined) = server.join_node().await;
        let joined = Arc::new(joined);
        let task = tokio::spawn(obey(Arc::clone(&joined)));
        Self { id, joined, task }
    }
}

impl Drop for ObedientNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn obey(joined: Arc<Joined>) {
    let wait = Duration::from_secs(1);
    let mut last: Option<DesiredState> = None;
    loop {
        let after = last
            .as_ref()
            .map_or(Generation::default(), |d| d.generation);
        match joined.client.desired(after, wait).await {
            Ok(Some(newer)) => last = Some(newer),
            Ok(None) => {}
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
        if let Some(desired) = &last {
            let instances = desired.instances.iter().map(|i| running(i.id)).collect();
            let _ = joined
                .client
                .report_all(&report(desired.generation, instances))
                .await;
        }
    }
}

/// A client that is not ours: any path, any method, with or without a certificate.
pub(crate) fn plain(ca_pem: &str, member: Option<&Joined>) -> Client {
    speaking(&[], ca_pem, member)
}

/// A client that offers these protocols by ALPN: HTTP/1.1 where it offers none.
pub(crate) fn speaking(alpn: &[&str], ca_pem: &str, member: Option<&Joined>) -> Client {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut tls = match member {
        None => builder.with_no_client_auth(),
        Some(member) => builder
            .with_client_auth_cert(
                vec![
                    CertificateDer::from_pem_slice(member.response.certificate_pem.as_bytes())
                        .unwrap(),
                ],
                PrivateKeyDer::from_pem_slice(member.key_pem.as_bytes()).unwrap(),
            )
            .unwrap(),
    };
    tls.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .build()
        .unwrap()
}

/// What is logged while this exists, on the thread that made it: tests that read it run on one thread.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// The lines that contain this text.
    pub(crate) fn lines(&self, text: &str) -> Vec<String> {
        let bytes = self.0.lock().unwrap();
        let all = String::from_utf8_lossy(&bytes);
        all.lines()
            .filter(|line| line.contains(text))
            .map(str::to_owned)
            .collect()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
