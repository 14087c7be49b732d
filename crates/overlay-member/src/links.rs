//! What is known of the links to the peers, for the report: how old the handshakes are, and whether the hubs answer.

// ring: the crate's root has what its modules share, and runs them.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use api::member::{LinkReport, MAX_REPORTED_LINKS, OverlayReport};
use display::Repeated;
use membership::OverlayState;
use model::NodeId;
use overlay::address_plan::probe_address;
use tokio::sync::watch;
use tokio::time::Duration;
use wireguard::settings::Key;

use crate::RETRY_PAUSE;
use crate::place::{Current, Place};
use crate::probe::Prober;
use crate::source::Source;

/// How often the ages of handshakes are looked at. A link's first one is reported at once.
const HANDSHAKE_INTERVAL: Duration = Duration::from_secs(3);
/// How often a hub is probed.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// A hub that did not answer so many probes on end does not answer.
const LOST_PROBES: u32 = 3;

/// Says how old the last handshake with each peer is.
pub(crate) async fn watch_handshakes(
    current: &Current,
    state: watch::Receiver<OverlayState>,
    report: &watch::Sender<OverlayReport>,
) {
    loop {
        tokio::time::sleep(HANDSHAKE_INTERVAL).await;
        let interface = current.read().await.clone();
        let Some(interface) = interface else { continue };
        // That it is gone is noticed elsewhere.
        let Ok(status) = interface.status().await else {
            continue;
        };
        let ages: BTreeMap<NodeId, Option<u64>> = {
            let state = state.borrow();
            let peers: Vec<_> = (state.peers.iter())
                .filter_map(|(number, peer)| {
                    let key: Key = peer.wireguard_public_key.parse().ok()?;
                    Some((*number, key, peer.endpoint))
                })
                .collect();
            current.remember(peers.iter().map(|(_, key, at)| (*key, *at)), &status);
            let peers = peers.iter().filter_map(|(number, key, _)| {
                let age = status.peers.get(key)?.handshake_age_ms;
                Some((*number, age.map(|age| age / 1000)))
            });
            peers.take(MAX_REPORTED_LINKS).collect()
        };
        report.send_modify(|report| {
            report.links.retain(|number, _| ages.contains_key(number));
            for (number, age) in ages {
                report
                    .links
                    .entry(number)
                    .or_default()
                    .handshake_age_seconds = age;
            }
        });
    }
}

/// Says whether the hubs answer in the tunnel, as long as there are hubs.
pub(crate) async fn watch_hubs(
    place: &Place,
    mut state: watch::Receiver<OverlayState>,
    report: &watch::Sender<OverlayReport>,
) {
    let mut refused = Repeated::default();
    loop {
        let hubs = hubs(&state.borrow_and_update());
        if let Some((own, hubs)) = hubs {
            match Prober::open(&Source::of(place, own)).await {
                Ok(prober) => probe_hubs(&prober, &hubs, &mut state, report).await,
                Err(error) => {
                    let error = error.to_string();
                    if refused.is_due(tokio::time::Instant::now(), &error) {
                        tracing::warn!(error, "cannot probe the hubs; trying again");
                    }
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        } else {
            clear_answers(report);
            if state.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Where this member probes from, and the hubs with their addresses; absent: it has none.
fn hubs(state: &OverlayState) -> Option<(Ipv6Addr, BTreeMap<Ipv6Addr, NodeId>)> {
    let number = state.number?;
    let address = |number| probe_address(state.cluster_prefix, number);
    let hubs: BTreeMap<_, _> = (state.hubs().into_iter())
        .map(|hub| (address(hub), hub))
        .collect();
    (!hubs.is_empty()).then(|| (address(number), hubs))
}

fn clear_answers(report: &watch::Sender<OverlayReport>) {
    report.send_if_modified(|report| {
        let mut changed = false;
        for link in report.links.values_mut() {
            changed |= link.answers.take().is_some();
        }
        changed
    });
}

/// Probes these hubs until there are others.
async fn probe_hubs(
    prober: &Prober,
    hubs: &BTreeMap<Ipv6Addr, NodeId>,
    state: &mut watch::Receiver<OverlayState>,
    report: &watch::Sender<OverlayReport>,
) {
    // Probes since the last answer.
    let mut unanswered: BTreeMap<Ipv6Addr, u32> = hubs.keys().map(|hub| (*hub, 0)).collect();
    let mut timer = tokio::time::interval(PROBE_INTERVAL);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            changed = state.changed() => {
                if changed.is_err() {
                    return std::future::pending().await;
                }
                if self::hubs(&state.borrow()).is_none_or(|(_, now)| now != *hubs) {
                    clear_answers(report);
                    return;
                }
            }
            from = prober.answer() => {
                if let Some(count) = unanswered.get_mut(&from) {
                    *count = 0;
                    set_answers(report, hubs, &unanswered, from, true);
                }
            }
            _ = timer.tick() => {
                for (hub, count) in &mut unanswered {
                    // One that cannot be sent is one that is not answered.
                    prober.send(*hub);
                    *count = count.saturating_add(1);
                }
                for (hub, count) in &unanswered {
                    if *count > LOST_PROBES {
                        set_answers(report, hubs, &unanswered, *hub, false);
                    }
                }
            }
        }
    }
}

fn set_answers(
    report: &watch::Sender<OverlayReport>,
    hubs: &BTreeMap<Ipv6Addr, NodeId>,
    known: &BTreeMap<Ipv6Addr, u32>,
    hub: Ipv6Addr,
    answers: bool,
) {
    let (Some(number), true) = (hubs.get(&hub), known.contains_key(&hub)) else {
        return;
    };
    report.send_if_modified(|report| {
        let link: &mut LinkReport = report.links.entry(*number).or_default();
        let other = link.answers != Some(answers);
        link.answers = Some(answers);
        other
    });
    if !answers {
        tracing::debug!(hub = %number, "a hub does not answer in the tunnel");
    }
}
