//! The connections of members to the servers, of which they may ask any.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::node::{DesiredState, ReportAnswer, ReportDelta};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use model::instance::{SecretBundle, SecretVersion};
use model::{Generation, Incarnation, InstanceId, NodeId, Term};
use node_agent::host::{HostError, HostResult, Server as ServerApi};
use scheduler::desired::newer_state;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::computer::Cut;
use crate::server::{Answering, Server};
use crate::servers::Servers;
use crate::simulator::Simulator;
use crate::term::{CallFailure, LedTerm};

/// A request without an answer is given up after this time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A server gives up to reach another after this time.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(2);

/// What is wrong with a member's connections.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// What does not pass to a server and back, by the server.
    pub(crate) cut: BTreeMap<usize, Cut>,
    /// How many messages in a hundred are lost.
    pub(crate) loss_percent: u64,
    /// How many reports in a hundred arrive after the node gave them up.
    pub(crate) late_percent: u64,
    /// How many reports in a hundred arrive twice.
    pub(crate) twice_percent: u64,
    /// How many answers in a hundred are a desired state that is not this node's.
    pub(crate) wrong_state_percent: u64,
}

/// A member's way to the servers. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Dialer {
    servers: Servers,
    /// The server that is asked first.
    at: Arc<Mutex<usize>>,
    faults: Arc<Mutex<Faults>>,
}

impl Dialer {
    pub(crate) fn new(servers: &Servers) -> Self {
        Self {
            servers: servers.clone(),
            at: Arc::default(),
            faults: Arc::default(),
        }
    }

    pub(crate) fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn simulator(&self) -> &Simulator {
        &self.servers.simulator
    }

    fn chance(&self, percent: u64) -> bool {
        percent > 0 && self.simulator().draw(|rng| rng.percent(percent))
    }

    fn cut(&self, server: usize) -> Cut {
        self.faults().cut.get(&server).copied().unwrap_or_default()
    }

    fn loses(&self) -> bool {
        let percent = self.faults().loss_percent;
        self.chance(percent)
    }

    /// Asks a server, and the next one the next time when this one does not answer.
    pub(crate) async fn call<T, F>(
        &self,
        limit: Duration,
        handle: impl FnOnce(Arc<LedTerm>) -> F + Send + 'static,
    ) -> HostResult<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, CallFailure>> + Send + 'static,
    {
        let at = *self.at.lock().unwrap_or_else(PoisonError::into_inner);
        match timeout(limit, self.ask(at, handle)).await {
            Ok(Some(answer)) => answer.map_err(|failure| match failure {
                CallFailure::NoLeader(why) => HostError::transient(why),
                CallFailure::NotAMember => HostError::transient("this is no member"),
                CallFailure::Refused(refused) => HostError::permanent(refused.to_string()),
            }),
            Ok(None) | Err(_) => {
                let next = (at + 1) % self.servers.all.len();
                *self.at.lock().unwrap_or_else(PoisonError::into_inner) = next;
                Err(HostError::transient("the server did not answer"))
            }
        }
    }

    /// Asks one server. `None`: it cannot be reached, or closed the connection. No answer: it is waited for.
    async fn ask<T, F>(
        &self,
        at: usize,
        handle: impl FnOnce(Arc<LedTerm>) -> F + Send + 'static,
    ) -> Option<Result<T, CallFailure>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, CallFailure>> + Send + 'static,
    {
        self.simulator().latency(1, 50).await;
        if self.cut(at).loses_requests() || self.loses() {
            return std::future::pending().await;
        }
        let server = self.servers.all.get(at)?;
        if !server.is_up() {
            return None;
        }
        // What arrived is done, although its caller may give it up meanwhile.
        let (answer, answered) = oneshot::channel();
        let (servers, asked) = (self.servers.clone(), server.clone());
        server.spawn(async move {
            // Nobody waits for it any more.
            let _ = answer.send(serve(&servers, &asked, handle).await);
        });
        let answered = answered.await.ok()?;
        self.simulator().latency(1, 50).await;
        if self.cut(at).loses_answers() || self.loses() {
            return std::future::pending().await;
        }
        Some(answered)
    }
}

/// Answers, or has the leader do it, as `control_plane::dispatch` does.
async fn serve<T, F>(
    servers: &Servers,
    asked: &Server,
    handle: impl FnOnce(Arc<LedTerm>) -> F,
) -> Result<T, CallFailure>
where
    F: Future<Output = Result<T, CallFailure>>,
{
    asked.computer.runs().await;
    let leader = match asked.answering(false) {
        Answering::Me(led) => return handle(led).await,
        Answering::Leader(leader) => leader,
        Answering::Nobody => return Err(CallFailure::NoLeader("no server leads at the moment")),
    };
    let no_answer = CallFailure::NoLeader("the leader does not answer");
    asked.computer.latency(1, 10).await;
    let peer = servers.all.get(leader).filter(|peer| peer.is_up());
    let Some(peer) = peer else {
        return Err(no_answer);
    };
    if !asked.computer.reaches(leader) {
        asked.computer.sleep(FORWARD_TIMEOUT).await;
        return Err(no_answer);
    }
    peer.computer.runs().await;
    let answer = match peer.answering(true) {
        Answering::Me(led) => handle(led).await?,
        Answering::Leader(_) | Answering::Nobody => return Err(no_answer),
    };
    asked.computer.latency(1, 10).await;
    if !peer.computer.reaches(asked.computer.index) {
        return Err(no_answer);
    }
    Ok(answer)
}

/// A node's connection to the servers.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    dialer: Dialer,
    node: NodeId,
}

impl Link {
    pub(crate) fn new(servers: &Servers, node: NodeId) -> Self {
        Self {
            dialer: Dialer::new(servers),
            node,
        }
    }

    pub(crate) fn faults(&self) -> MutexGuard<'_, Faults> {
        self.dialer.faults()
    }

    /// A desired state that must not stop anything: of another cluster, for another node, older, of a leader of before, or empty.
    fn wrong_state(&self, after: Generation) -> Option<DesiredState> {
        let servers = &self.dialer.servers;
        let (term, _) = servers.store.leader();
        let simulator = self.dialer.simulator();
        let mut wrong = servers.with(|cluster| {
            let nothing = Generation::default();
            newer_state(cluster, self.node, nothing, term)
        })?;
        let instances = wrong.instances.iter();
        wrong.stop.extend(instances.map(|spec| spec.id));
        wrong.instances.clear();
        wrong.generation = Generation {
            counter: after.counter + 1,
            ..after
        };
        let what = match simulator.draw(|rng| rng.below(5)) {
            0 => {
                "cluster-2".clone_into(&mut wrong.cluster);
                "of another cluster"
            }
            1 => {
                wrong.node = NodeId(self.node.0 + 1);
                "of another node"
            }
            2 => {
                wrong.generation.counter = after.counter.checked_sub(1)?;
                "that is older"
            }
            3 => {
                // A node that is behind may not have heard of the term of now.
                let is_current = wrong.generation.incarnation == after.incarnation;
                wrong.term = Term(term.0.checked_sub(1).filter(|_| is_current)?);
                if !simulator.knows_term(self.node, term) {
                    return None;
                }
                "of a leader of before"
            }
            _ => {
                // A node that took the state of another store remembers no term of ours, and would believe a leader of before that was
                // suspended (docs/simulation.md, "Not held").
                let all = &servers.all;
                if all.iter().any(|server| !server.computer.is_running()) {
                    return None;
                }
                // Of another store, which is empty, and which this server is not: the node goes back to ours.
                wrong.generation = Generation {
                    incarnation: Incarnation(u64::MAX),
                    counter: simulator.draw(|rng| rng.below(1_000)),
                };
                wrong.stop.clear();
                "of an empty store"
            }
        };
        simulator.trace(format!("{} gets a desired state {what}", self.node));
        Some(wrong)
    }
}

impl ServerApi for Link {
    fn desired(
        &self,
        after: Generation,
        wait: Duration,
    ) -> BoxFuture<'_, HostResult<Option<DesiredState>>> {
        async move {
            let wrong_state_percent = self.faults().wrong_state_percent;
            if self.dialer.chance(wrong_state_percent)
                && let Some(wrong) = self.wrong_state(after)
            {
                self.dialer.simulator().latency(2, 100).await;
                return Ok(Some(wrong));
            }
            let node = self.node;
            let handle =
                move |led: Arc<LedTerm>| async move { led.desired(node, after, wait).await };
            self.dialer.call(wait + REQUEST_TIMEOUT, handle).await
        }
        .boxed()
    }

    fn report(&self, report: ReportDelta) -> BoxFuture<'_, HostResult<ReportAnswer>> {
        async move {
            let node = self.node;
            let Faults {
                late_percent,
                twice_percent,
                ..
            } = self.faults().clone();
            let is_late = self.dialer.chance(late_percent);
            if is_late || self.dialer.chance(twice_percent) {
                let (dialer, late) = (self.dialer.clone(), report.clone());
                tokio::spawn(async move {
                    dialer.simulator().latency(3_000, 20_000).await;
                    let what = format!("a report of {node} arrives late, or again");
                    dialer.simulator().trace(what);
                    let handle =
                        move |led: Arc<LedTerm>| async move { led.report(node, late, true).await };
                    // Nobody waits for an answer.
                    let _ = dialer.call(REQUEST_TIMEOUT, handle).await;
                });
            }
            if is_late {
                sleep(REQUEST_TIMEOUT).await;
                return Err(HostError::transient("the server did not answer"));
            }
            let sent_at = self.dialer.simulator().now();
            let handle = move |led: Arc<LedTerm>| async move {
                let late = led.now_is_after(sent_at, REQUEST_TIMEOUT);
                led.report(node, report, late).await
            };
            // A lost answer makes the node send the report again.
            self.dialer.call(REQUEST_TIMEOUT, handle).await
        }
        .boxed()
    }

    fn secrets(&self, id: InstanceId) -> BoxFuture<'_, HostResult<Vec<SecretBundle>>> {
        async move {
            let node = self.node;
            let handle = move |led: Arc<LedTerm>| async move {
                let published = led.published();
                let instance = published.cluster.instances.get(&id);
                let instance = instance.filter(|instance| instance.node == node);
                Ok(instance.map(|instance| instance.spec.secrets.clone()))
            };
            let wanted = self.dialer.call(REQUEST_TIMEOUT, handle).await?;
            let Some(wanted) = wanted else {
                return Err(HostError::permanent("there is no such instance"));
            };
            let bundle = |secret: &SecretVersion| SecretBundle {
                name: secret.name.clone(),
                files: [(
                    "VERSION".to_owned(),
                    secret.version.to_string().into_bytes(),
                )]
                .into(),
            };
            Ok(wanted.iter().map(bundle).collect())
        }
        .boxed()
    }
}
