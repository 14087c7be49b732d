//! A member's end of the overlay, a node's as an edge's (ADR 0004): its WireGuard interface follows what the server says, and what is known of its links is
//! reported.
//!
//! ```text
//!   membership::keep --- OverlayState ---> [`keep`] ---> wireguard::interface, and the Attachment's addresses, routes and rules
//!                    <-- OverlayReport ---     \- every second: do the hubs answer in the tunnel ([`probe`])
//!                    --- MeasurementRequest ->  [`measure`] ---> the server
//! ```
//!
//! It goes by level: whatever changed, everything is made as it is to be, and what is so already is left alone. Where that fails it is tried again, and what
//! was made before goes on. The interface outlives the agent; [`remove`] ends it.
//!
//! Deliberately absent: who is whose peer (the server says it), and what may pass (the attachment decides).

mod links;
pub mod measure;
mod place;
pub mod probe;
mod settings;
mod source;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::member::{MAX_OVERLAY_ERROR_BYTES, MeasurementRequest, OverlayReport};
use api_client::ApiClient;
use display::Repeated;
use futures_util::future::BoxFuture;
use membership::{OverlayState, UnderlayOptions};
use model::NodeId;
use node_network::NetworkError;
use tokio::sync::watch;
use wireguard::interface::{Interface, InterfaceError, Kind, MIN_MTU};

use crate::place::Current;
pub use crate::place::Place;
pub use crate::source::Source;

/// Everything is compared at least this often.
const COMPARE_INTERVAL: Duration = Duration::from_secs(10);
/// How often the interface is looked at: what somebody did to it is mended.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// A process that is stopped at so many looks on end is replaced; a debugger may hold it for a moment.
const STOPPED_LOOKS: u32 = 2;
/// Pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked at which address and MTU lead to the server: machines move.
const UNDERLAY_INTERVAL: Duration = Duration::from_secs(5);

/// What the interface leads to: addresses and routes of its link, and the rules of what passes.
pub trait Attachment: Send + Sync + 'static {
    /// Gives the link, which is there and new or has another MTU, what it needs.
    fn attach<'a>(&'a self, state: &'a OverlayState) -> BoxFuture<'a, Result<(), NetworkError>>;

    /// Whether the link still has what [`Self::attach`] gave it.
    fn is_attached<'a>(&'a self, state: &'a OverlayState) -> BoxFuture<'a, bool>;

    /// Lets pass what may pass among these members, and nothing else.
    fn admit<'a>(&'a self, state: &'a OverlayState) -> BoxFuture<'a, Result<(), NetworkError>>;

    /// Waits until [`Self::admit`] would admit others than before. Cancel-safe.
    fn changed(&self) -> BoxFuture<'_, ()>;
}

/// A member's end of the overlay.
pub struct OverlayMember<A> {
    /// Where it is.
    pub place: Place,
    /// The server's URLs, to which the underlay leads.
    pub server: String,
    /// What its operator says of the underlay.
    pub underlay: UnderlayOptions,
    /// What it leads to.
    pub attachment: A,
    /// By which the server is told what was measured.
    pub client: ApiClient,
    /// What the server asks to be measured.
    pub requests: watch::Receiver<Option<MeasurementRequest>>,
}

/// What was made.
struct Made {
    interface: Arc<Interface>,
    mtu: u32,
    /// The state whose peers it has. Absent: not known, because setting them failed.
    set: Option<OverlayState>,
}

/// Keeps the interface as the state says, and the report as the interface is, for ever.
pub async fn keep<A: Attachment>(
    member: OverlayMember<A>,
    state: watch::Receiver<OverlayState>,
    report: watch::Sender<OverlayReport>,
) {
    let current = Current::default();
    let OverlayMember {
        place,
        server,
        underlay,
        attachment,
        client,
        requests,
    } = member;
    tokio::join!(
        follow(
            &place,
            underlay.port,
            &attachment,
            state.clone(),
            (&current, &report)
        ),
        links::watch_handshakes(&current, state.clone(), &report),
        links::watch_hubs(&place, state.clone(), &report),
        watch_underlay(&server, underlay, &report),
        measure::answer_requests(&place, &current, state, client, requests),
    );
}

async fn follow<A: Attachment>(
    place: &Place,
    port: u16,
    attachment: &A,
    mut state: watch::Receiver<OverlayState>,
    (current, report): (&Current, &watch::Sender<OverlayReport>),
) {
    let mut made: Option<Made> = None;
    let mut refused = Repeated::default();
    let mut failed = false;
    loop {
        let wanted = state.borrow_and_update().clone();
        let pause = match reconcile(place, port, attachment, &wanted, &mut made, current).await {
            Ok(()) => {
                set_outcome(report, Some(wanted.revision), None);
                if std::mem::take(&mut failed) {
                    tracing::info!(link = place.link, "the overlay is as it is to be again");
                }
                COMPARE_INTERVAL
            }
            Err(error) => {
                failed = true;
                let error = error.to_string();
                set_outcome(report, None, Some(&error));
                if refused.is_due(tokio::time::Instant::now(), &error) {
                    tracing::warn!(
                        error,
                        link = place.link,
                        "cannot make the overlay as it is to be; trying again"
                    );
                }
                RETRY_PAUSE
            }
        };
        let ended = async {
            match &made {
                Some(made) => made.interface.ended().await,
                None => std::future::pending().await,
            }
        };
        let damage = tokio::select! {
            biased;
            changed = state.changed() => {
                if changed.is_err() {
                    return;
                }
                None
            }
            () = attachment.changed() => None,
            () = ended => Some("the interface of the overlay is gone; it is made again"),
            damage = damage(made.as_ref(), attachment, &wanted) => Some(damage),
            () = tokio::time::sleep(pause) => None,
        };
        if let Some(damage) = damage {
            if refused.is_due(tokio::time::Instant::now(), damage) {
                tracing::warn!(link = place.link, "{damage}");
            }
            made = None;
            *current.write().await = None;
            // One that ends as soon as it was made is made again at this pace at most.
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

/// Waits until the interface has to be made or attached again though it did not end. Cancel-safe.
async fn damage<A: Attachment>(
    made: Option<&Made>,
    attachment: &A,
    wanted: &OverlayState,
) -> &'static str {
    let Some(made) = made else {
        return std::future::pending().await;
    };
    let mut stopped = 0;
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        stopped = if made.interface.is_stopped() {
            stopped + 1
        } else {
            0
        };
        if stopped >= STOPPED_LOOKS {
            return "the process of the overlay's interface was stopped; another takes its place";
        }
        if !attachment.is_attached(wanted).await {
            return "somebody removed the overlay's route or addresses; they are set again";
        }
    }
}

/// Says up to which change all is as it is to be, or why it is not.
fn set_outcome(report: &watch::Sender<OverlayReport>, applied: Option<u64>, error: Option<&str>) {
    let error = error.map(|error| display::one_line(error, MAX_OVERLAY_ERROR_BYTES));
    report.send_if_modified(|report| {
        let is_other = report.error != error || (applied.is_some() && report.applied != applied);
        report.applied = applied.or(report.applied);
        report.error = error;
        is_other
    });
}

/// Why the overlay is not as it is to be.
#[derive(Debug)]
enum ReconcileError {
    Interface(InterfaceError),
    Network(NetworkError),
    Mtu(u32),
}

impl std::fmt::Display for ReconcileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Interface(error) => f.write_str(&display::chain(error)),
            Self::Network(error) => f.write_str(&display::chain(error)),
            Self::Mtu(mtu) => write!(
                f,
                "the cluster's MTU is {mtu} bytes, which no interface has"
            ),
        }
    }
}

impl From<InterfaceError> for ReconcileError {
    fn from(error: InterfaceError) -> Self {
        Self::Interface(error)
    }
}

impl From<NetworkError> for ReconcileError {
    fn from(error: NetworkError) -> Self {
        Self::Network(error)
    }
}

async fn reconcile<A: Attachment>(
    place: &Place,
    port: u16,
    attachment: &A,
    wanted: &OverlayState,
    made: &mut Option<Made>,
    current: &Current,
) -> Result<(), ReconcileError> {
    // What passes does not wait for an interface, which may not be possible here; nor do the peers wait for the rules: one that is revoked is to be gone.
    let admitted = attachment.admit(wanted).await;
    make(place, port, attachment, wanted, made, current).await?;
    Ok(admitted?)
}

async fn make<A: Attachment>(
    place: &Place,
    port: u16,
    attachment: &A,
    wanted: &OverlayState,
    made: &mut Option<Made>,
    current: &Current,
) -> Result<(), ReconcileError> {
    let Some(settings) = settings::of(wanted) else {
        // It has no number or no key yet, and so no peers.
        return Ok(());
    };
    if !(u32::from(MIN_MTU)..=u32::from(u16::MAX)).contains(&wanted.mtu) {
        return Err(ReconcileError::Mtu(wanted.mtu));
    }
    let number = |state: &OverlayState| state.number;
    let is_as_made = made.as_ref().is_some_and(|made| {
        made.mtu == wanted.mtu
            && made
                .set
                .as_ref()
                .is_none_or(|set| number(set) == number(wanted))
    });
    let is_set = match made.as_ref().filter(|_| is_as_made) {
        Some(made) => made.interface.is_set(wanted.mtu).await,
        None => true,
    };
    if !is_set {
        tracing::warn!(
            link = place.link,
            mtu = wanted.mtu,
            "somebody set the overlay's link down or to another MTU; it is put right"
        );
    }
    if !is_as_made || !is_set {
        let interface = Interface::ensure(&place.options(port, wanted.mtu)).await?;
        let first = made.is_none();
        attachment.attach(wanted).await?;
        if first {
            let by = match interface.kind() {
                Kind::Kernel => "the kernel",
                Kind::Userspace => "a process of its own",
            };
            tracing::info!(
                link = place.link,
                port,
                by,
                mtu = wanted.mtu,
                "the overlay's interface is up"
            );
        }
        let interface = Arc::new(interface);
        *current.write().await = Some(interface.clone());
        *made = Some(Made {
            interface,
            mtu: wanted.mtu,
            set: None,
        });
    }
    let Some(made) = made else { return Ok(()) };
    if made.set.as_ref() != Some(wanted) {
        let settings = match made.set.take() {
            Some(_) => settings,
            None => current.with_seen(settings),
        };
        made.interface.set(&settings).await?;
        made.set = Some(wanted.clone());
    }
    Ok(())
}

/// Says which address and MTU lead to the server, when they change.
async fn watch_underlay(
    server: &str,
    options: UnderlayOptions,
    report: &watch::Sender<OverlayReport>,
) {
    loop {
        tokio::time::sleep(UNDERLAY_INTERVAL).await;
        let underlay = membership::underlay(server, options).await;
        report.send_if_modified(|said| {
            let other = said.underlay != underlay;
            said.underlay = underlay;
            other
        });
    }
}

/// Removes the interface, its process and its link. No error when there is none.
///
/// # Errors
/// A refusal of the kernel.
pub async fn remove(place: &Place) -> Result<(), InterfaceError> {
    // Which port and MTU it has says nothing of which it is.
    Interface::remove(&place.options(1, u32::from(MIN_MTU))).await
}

/// Whether the interface is there, or a part of it.
pub async fn is_there(place: &Place) -> bool {
    Interface::is_there(&place.options(1, u32::from(MIN_MTU))).await
}

/// The links that were made with this folder for control sockets, also those that are gone. Blocks.
///
/// # Errors
/// The folder cannot be read.
pub fn links_of(run_dir: &Path) -> std::io::Result<Vec<String>> {
    Interface::names_in(run_dir)
}

/// The last 24 bits of a cluster's prefix, which are random, and a member's number, for names of links and namespaces: several members of several clusters can
/// live on one machine.
pub fn suffix(cluster_prefix: std::net::Ipv6Addr, number: NodeId) -> String {
    let [_, _, _, a, b, c, ..] = cluster_prefix.octets();
    format!("{a:02x}{b:02x}{c:02x}{:x}", number.0)
}

/// The program that this process is, as it can be started again: after an upgrade the new one.
pub fn own_program() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/bin/platform"));
    // The file may have been replaced since.
    match program
        .to_str()
        .and_then(|path| path.strip_suffix(" (deleted)"))
    {
        Some(path) => Path::new(path).to_owned(),
        None => program,
    }
}
