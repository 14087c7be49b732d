//! One task per instance: it owns the instance's life cycle (`node_core::instance`), brings it events
//! and performs its effects, in order and one at a time.
//!
//! Everything the next agent needs is in the instance's record, written with each step before its
//! effects are performed: an agent that is killed between the two finds a record that is ahead of the
//! machine, never behind it, and the life cycle's `Adopted` and `NotFound` sort out the rest.

mod guest;
mod preparation;
mod probing;
#[cfg(test)]
mod tests;
mod vm_watch;
mod wakeup;

use std::collections::VecDeque;
use std::mem::discriminant;
use std::sync::Arc;
use std::time::Duration;

use api::node::{InstanceReport, MAX_LOG_TAIL};
use guest_protocol::BootConfig;
use metrics::Outcome;
use model::InstanceId;
use model::instance::{HealthCheck, InstanceSpec, InstanceState};
use node_core::instance::{Effect, Event, Lifecycle};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::boots::BootSlot;
use crate::guest_link::{GuestEvent, GuestLink};
use crate::host::{HostError, HostResult, Log, Vm, VmRequest};
use crate::instance_task::guest::{forwarded_detail, next_guest_event};
use crate::instance_task::preparation::{Prepared, prepare, prepared};
use crate::instance_task::probing::Probing;
use crate::instance_task::vm_watch::{STALL_LIMIT, VmWatch};
use crate::instance_task::wakeup::{Wakeup, asked, at, changed, ended, vm_changed};
use crate::machine::Machine;
use crate::metrics::Check;
use crate::probes::probe;
use crate::record::{self, INSTANCE_FILE, InstanceFile};
use crate::secrets::Secrets;
use display::chain;

/// A guest whose end was acknowledged gets this long to sync its disks and power off.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause before a record that could not be written is written again.
const WRITE_RETRY_PAUSE: Duration = Duration::from_secs(2);
/// Pause before a VM that could not be looked for is looked for again.
const ADOPT_RETRY_PAUSE: Duration = Duration::from_secs(5);
/// How long a guest may take to say who is connected to an instance that drains.
const DRAIN_LOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a VM that boots is looked at.
const BOOT_CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// What the agent sees of an instance.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct InstanceStatus {
    /// Whether it was asked to stop.
    pub(crate) stop_asked: bool,
    /// What the control plane is told.
    pub(crate) report: InstanceReport,
}

/// The task of one instance.
pub(crate) struct InstanceTask {
    spec: InstanceSpec,
    life: Lifecycle,
    /// Why the record on disk is older than `life`; absent: it is not.
    unwritten: Option<String>,
    machine: Arc<Machine>,
    log: Arc<dyn Log>,
    log_tail: Vec<String>,
    /// Ports that the guest forwards connections to, because nothing listens on them over IPv6.
    forwarded: Vec<u16>,
    /// What the preparation says it is doing.
    detail: Option<watch::Receiver<String>>,
    preparing: Option<AbortOnDropHandle<HostResult<Prepared>>>,
    prepared: Option<Prepared>,
    secrets: Arc<Secrets>,
    link: Option<GuestLink>,
    /// The token of this boot's init, once it has dialled.
    guest_token: Option<String>,
    /// What the guest is sent once its token is recorded.
    config: Option<BootConfig>,
    /// Since when it boots; absent when an agent before this one began that.
    booting_since: Option<Instant>,
    /// Its turn to boot, while it boots.
    boot_slot: Option<BootSlot>,
    /// How long its VM had waited for a processor, when it was looked at last, and when that was.
    waited_at: Option<(Instant, Duration)>,
    vm: Option<Box<dyn Vm>>,
    /// What the VMM of `vm` says.
    vm_watch: Option<VmWatch>,
    end_acknowledged: bool,
    /// How this boot ended, for the log.
    end_note: Option<String>,
    probing: Probing,
    stop: watch::Receiver<bool>,
    status: watch::Sender<InstanceStatus>,
}

impl InstanceTask {
    /// The task, and what is seen of it. `stop` says when the instance is asked to stop.
    ///
    /// # Errors
    /// For people: its log cannot be opened.
    pub(crate) async fn new(
        spec: InstanceSpec,
        life: Lifecycle,
        machine: &Arc<Machine>,
        guest_token: Option<String>,
        stop: watch::Receiver<bool>,
    ) -> Result<(Self, watch::Receiver<InstanceStatus>), String> {
        let log = machine.host.logs.open(spec.id, spec.process.clone()).await;
        let log = log.map_err(|error| error.reason)?;
        let log_tail = match life.state() {
            InstanceState::Running { .. } => Vec::new(),
            _ => log.tail(MAX_LOG_TAIL).await,
        };
        let report = life.report(machine.clock.now(), log_tail.clone());
        let (status, seen) = watch::channel(InstanceStatus {
            stop_asked: life.stop_asked(),
            report,
        });
        let task = Self {
            spec,
            life,
            unwritten: None,
            forwarded: Vec::new(),
            machine: machine.clone(),
            log,
            log_tail,
            detail: None,
            preparing: None,
            prepared: None,
            secrets: Arc::default(),
            link: None,
            guest_token,
            config: None,
            booting_since: None,
            boot_slot: None,
            waited_at: None,
            vm: None,
            vm_watch: None,
            end_acknowledged: false,
            end_note: None,
            probing: Probing::default(),
            stop,
            status,
        };
        Ok((task, seen))
    }

    /// Lives the life of the instance, from this event on, without an end.
    pub(crate) async fn run(mut self, first: Event) {
        let mut events = VecDeque::new();
        match first {
            Event::NotFound => self.find(&mut events).await,
            event => events.push_back(event),
        }
        loop {
            while let Some(event) = events.pop_front() {
                self.on_event(event, &mut events).await;
            }
            events.extend(self.next().await);
        }
    }

    fn id(&self) -> InstanceId {
        self.spec.id
    }

    /// Looks for the VM that an agent before this one booted.
    async fn find(&mut self, events: &mut VecDeque<Event>) {
        self.machine.resumed.cancelled().await;
        let Some(vm) = self.adopt().await else {
            events.push_back(Event::NotFound);
            return;
        };
        tracing::info!(instance = %self.id(), "adopted the running microVM");
        self.vm_watch = Some(VmWatch::new(vm.health()));
        self.vm = Some(vm);
        let spec = &self.spec;
        if let Err(error) = self.machine.holders.acquire(spec.id, &spec.volumes) {
            tracing::warn!(%error, instance = %spec.id, "adopted a VM without its volumes");
        }
        self.probing.begin(self.spec.liveness.as_ref());
        // A node without descriptors or room is no reason to end a VM.
        while let Err(error) = self.listen().await {
            tracing::warn!(instance = %self.id(), %error, "cannot listen for an adopted guest");
            self.publish_trouble(format!("cannot listen for its guest: {error}"));
            sleep(ADOPT_RETRY_PAUSE).await;
        }
        if self.life.state() == InstanceState::Booting {
            // It boots whether it is its turn or not.
            self.boot_slot = self.machine.boots.try_acquire();
            self.send_config_again().await;
        }
        events.push_back(Event::Adopted);
    }

    /// Reports what keeps this agent from taking the instance over. It is not ready meanwhile.
    fn publish_trouble(&self, detail: String) {
        let now = self.machine.clock.now();
        let mut report = self.life.report(now, self.log_tail.clone());
        if let InstanceState::Running { ready, .. } = &mut report.state {
            *ready = false;
        }
        report.detail = detail;
        self.publish(report);
    }

    /// The VM, or none once that is certain: while the VM's record cannot be read, one may run.
    async fn adopt(&self) -> Option<Box<dyn Vm>> {
        loop {
            match self.machine.host.vmm.adopt(self.id()).await {
                Ok(vm) => return vm,
                Err(error) => {
                    tracing::warn!(instance = %self.id(), %error, "cannot find out whether a VM runs");
                    self.publish_trouble(format!("cannot find out whether its VM runs: {error}"));
                }
            }
            sleep(ADOPT_RETRY_PAUSE).await;
        }
    }

    async fn on_event(&mut self, event: Event, events: &mut VecDeque<Event>) {
        let before = self.life.record();
        let state_before = self.life.state();
        let unhealthy = matches!(event, Event::HealthFailed { .. });
        tracing::debug!(instance = %self.id(), state = %state_before, ?event);
        let effects = match self.life.step(self.machine.clock.now(), event) {
            Ok(effects) => effects,
            Err(refused) => {
                tracing::debug!(%refused);
                return;
            }
        };
        let state = self.life.state();
        // An instance that becomes ready or unready runs on.
        if discriminant(&state) != discriminant(&state_before) {
            self.count(state_before, state);
            let running = state.is_running();
            if running {
                self.probing.begin(self.spec.liveness.as_ref());
            } else {
                self.probing.end();
            }
            tracing::info!(instance = %self.id(), from = %state_before, to = %state);
        }
        if state != InstanceState::Booting {
            self.boot_slot = None;
            self.waited_at = None;
        }
        if effects.contains(&Effect::BootVm) {
            self.guest_token = None;
        }
        if !self.life.record().is_same_but_for_probes(&before) {
            self.write_record().await;
        }
        if unhealthy && effects.contains(&Effect::Report) {
            self.note_unhealthy().await;
        }
        for effect in effects {
            self.perform(effect, events).await;
        }
        self.show();
    }

    /// Counts what came of a boot, and restarts.
    fn count(&mut self, before: InstanceState, now: InstanceState) {
        let metrics = &self.machine.metrics;
        if before == InstanceState::Booting {
            let took = self.booting_since.take().map(|since| since.elapsed());
            match now {
                InstanceState::Running { .. } => metrics.booted(Outcome::Success, took),
                InstanceState::Backoff | InstanceState::Failed => {
                    metrics.booted(Outcome::Failure, None);
                }
                _ => {}
            }
        }
        match now {
            InstanceState::Booting => self.booting_since = Some(Instant::now()),
            InstanceState::Backoff => metrics.restarts(),
            _ => {}
        }
    }

    /// Writes the record. Where that fails the instance goes on, and it is tried again; until then no VM
    /// is booted and no end is reported, because an agent that restarts would not know of it.
    async fn write_record(&mut self) {
        let path = self.machine.instance_dir(self.id()).join(INSTANCE_FILE);
        let record = InstanceFile {
            spec: self.spec.clone(),
            progress: self.life.record(),
            guest_token: self.guest_token.clone(),
        };
        let written = record::write(&*self.machine.host.files, &path, &record).await;
        self.unwritten = written.err().map(|error| {
            let cause = chain(&error);
            tracing::warn!(instance = %self.id(), cause, "cannot write the record");
            format!("cannot write its record: {cause}")
        });
    }

    /// The next events. Cancel-safe in every branch.
    async fn next(&mut self) -> Vec<Event> {
        let wake_at = self.life.wake_at().map(|at| self.machine.clock.instant(at));
        let probe_at = match (&self.spec.healthcheck, self.life.state()) {
            (Some(_), InstanceState::Running { .. }) => self.probing.ready_at(),
            _ => None,
        };
        let alive_at = (self.life.state().is_running())
            .then(|| self.probing.alive_at())
            .flatten();
        let stopping = self.life.stop_asked();
        // Until the app runs, the boot's own watchdog decides.
        let running = self.life.state().is_running();
        let stalled_until = self.vm_watch.as_ref().and_then(VmWatch::give_up_at);
        let stalled_until = stalled_until.filter(|_| running);
        let booting = self.life.state() == InstanceState::Booting && self.vm.is_some();
        let happened = tokio::select! {
            biased;
            () = asked(&mut self.stop), if !stopping => Wakeup::StopAsked,
            // The guest's events from before its VMM ended come first.
            event = next_guest_event(&mut self.link) => Wakeup::Guest(event),
            end = ended(self.vm.as_deref()) => Wakeup::VmEnded(end),
            prepared = prepared(&mut self.preparing) => Wakeup::Prepared(prepared),
            () = changed(&mut self.detail) => Wakeup::DetailChanged,
            () = vm_changed(&mut self.vm_watch) => Wakeup::VmChanged,
            () = at(stalled_until) => Wakeup::Stalled,
            () = at(wake_at) => Wakeup::Due,
            () = at(probe_at) => Wakeup::ProbeDue,
            () = at(alive_at) => Wakeup::LivenessDue,
            () = sleep(BOOT_CHECK_INTERVAL), if booting => Wakeup::BootCheckDue,
            () = sleep(WRITE_RETRY_PAUSE), if self.unwritten.is_some() => Wakeup::WriteAgain,
        };
        match happened {
            Wakeup::StopAsked => vec![Event::StopAsked],
            Wakeup::Guest(GuestEvent::Bound(token)) => {
                self.guest_token = Some(token);
                self.write_record().await;
                self.release_config();
                self.show();
                vec![]
            }
            Wakeup::Guest(event) => self.on_guest_event(event),
            Wakeup::VmChanged => {
                self.on_vm_changed().await;
                vec![]
            }
            Wakeup::Stalled => vec![self.give_up_stalled().await],
            Wakeup::VmEnded(reason) => {
                self.vm = None;
                self.vm_watch = None;
                // Unless the guest has said how its app ended.
                if !self.end_acknowledged {
                    let note = format!("the VM ended: {reason}");
                    self.end_note.get_or_insert(note);
                }
                vec![Event::VmmLost { reason }]
            }
            Wakeup::Prepared(prepared) => {
                self.preparing = None;
                self.detail = None;
                vec![match prepared {
                    Ok(prepared) => {
                        self.prepared = Some(prepared);
                        Event::Prepared
                    }
                    Err(HostError { reason, transient }) => {
                        self.note(format!("could not be prepared: {reason}")).await;
                        Event::PrepareFailed {
                            retryable: transient,
                            reason,
                        }
                    }
                }]
            }
            Wakeup::DetailChanged => {
                self.show();
                vec![]
            }
            Wakeup::Due => match self.life.due(self.machine.clock.now()) {
                Some(Event::DrainElapsed { .. }) => vec![Event::DrainElapsed {
                    connections: self.edge_connections().await,
                }],
                due => due.into_iter().collect(),
            },
            Wakeup::BootCheckDue => self.measure_wait().await.into_iter().collect(),
            Wakeup::ProbeDue => self.probe_ready().await.into_iter().collect(),
            Wakeup::LivenessDue => self.probe_alive().await.into_iter().collect(),
            Wakeup::WriteAgain => {
                self.write_record().await;
                self.release_config();
                self.show();
                vec![]
            }
        }
    }

    /// Takes note of what the VMM says.
    async fn on_vm_changed(&mut self) {
        let Some(watched) = &mut self.vm_watch else {
            return;
        };
        let news = watched.update(&self.spec, Instant::now());
        for line in news.lines {
            tracing::warn!(instance = %self.id(), env = %self.spec.env_key(), process = %self.spec.process, line);
            self.note(line).await;
        }
        if news.disk_is_full {
            self.machine.disk_full.notify_one();
        }
        self.show();
    }

    /// Ends a VM whose guest has not run for [`STALL_LIMIT`].
    async fn give_up_stalled(&mut self) -> Event {
        let watched = self.vm_watch.take();
        let why = watched
            .as_ref()
            .and_then(VmWatch::stalled)
            .unwrap_or_default();
        let seconds = STALL_LIMIT.as_secs();
        let reason = format!("its guest did not run for {seconds} s: {why}");
        self.end_note
            .get_or_insert(format!("the VM was ended: {reason}"));
        if let Some(vm) = self.vm.take() {
            vm.kill().await;
        }
        Event::VmmLost { reason }
    }

    /// How long the VM that boots waited for a processor since it was looked at last.
    async fn measure_wait(&mut self) -> Option<Event> {
        let waited = self.vm.as_deref()?.waited().await?;
        let now = Instant::now();
        let before = self.waited_at.replace((now, waited));
        let (then, before) = before?;
        // Threads that wait at once wait no longer than the clock.
        let since = waited.saturating_sub(before).min(now - then);
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        (millis > 0).then_some(Event::VmWaited { millis })
    }

    /// The result of a probe; none when a stop is asked meanwhile, which waits for no slow probe.
    async fn run_probe(&mut self, check: &HealthCheck) -> Option<Result<(), String>> {
        let network = &*self.machine.host.network;
        let calls = self.link.as_ref().map(GuestLink::calls);
        let within = Duration::from_millis(check.timeout_ms);
        tokio::select! {
            biased;
            result = probe(&check.probe, self.spec.address, network, calls, within) => Some(result),
            () = asked(&mut self.stop), if !self.life.stop_asked() => None,
        }
    }

    /// How many connections of edges are open, as the guest says; 0 where it does not.
    async fn edge_connections(&self) -> u32 {
        let Some(calls) = self.link.as_ref().map(GuestLink::calls) else {
            return 0;
        };
        let stats = timeout(DRAIN_LOOK_TIMEOUT, calls.stats()).await;
        let open = stats.ok().and_then(Result::ok);
        open.and_then(|stats| stats.edge_connections).unwrap_or(0)
    }

    /// Asks whether the app is ready.
    async fn probe_ready(&mut self) -> Option<Event> {
        let check = self.spec.healthcheck.clone()?;
        let Some(result) = self.run_probe(&check).await else {
            return Some(Event::StopAsked);
        };
        let metrics = &self.machine.metrics;
        metrics.probed(Check::Health, Outcome::from(&result));
        let ready = self.life.state().is_ready();
        self.probing.ready_probed(&check, ready);
        Some(match result {
            Ok(()) => Event::HealthPassed,
            Err(reason) => Event::HealthFailed { reason },
        })
    }

    /// Asks whether the app is alive. That it is not is reported; the control plane decides what becomes of it.
    async fn probe_alive(&mut self) -> Option<Event> {
        let check = self.spec.liveness.clone()?;
        let Some(result) = self.run_probe(&check).await else {
            return Some(Event::StopAsked);
        };
        let metrics = &self.machine.metrics;
        metrics.probed(Check::Liveness, Outcome::from(&result));
        if let Some(line) = self.probing.alive_probed(&check, result) {
            self.note(line).await;
            self.show();
        }
        None
    }

    async fn perform(&mut self, effect: Effect, events: &mut VecDeque<Event>) {
        match effect {
            Effect::StartPreparing => self.start_preparing(),
            Effect::BootVm => events.push_back(match self.boot().await {
                Ok(()) => Event::VmmStarted,
                Err(HostError { reason, transient }) => {
                    self.note(format!("the VM could not be started: {reason}"))
                        .await;
                    Event::VmmFailed {
                        retryable: transient,
                        reason,
                    }
                }
            }),
            Effect::AskStop => self.ask_stop(),
            Effect::KillVm => self.kill_vm().await,
            Effect::CleanUp => {
                self.clean_up().await;
                events.push_back(Event::CleanedUp);
            }
            // The timer is read off the life cycle, and every step is shown.
            Effect::ScheduleAt(_) | Effect::Report => {}
        }
    }

    async fn clean_up(&mut self) {
        if let Some(preparing) = self.preparing.take() {
            preparing.abort();
            // What it was doing when it was ended is over before its disks are removed.
            let _ = preparing.await;
        }
        self.detail = None;
        self.forwarded = Vec::new();
        self.prepared = None;
        let host = &self.machine.host;
        if let Err(error) = host.disks.remove_scratch(self.id()).await {
            tracing::warn!(instance = %self.id(), %error, "cannot remove the scratch disk");
        }
        self.machine.leave_network(self.id()).await;
        if let Err(error) = host.vmm.remove(self.id()).await {
            tracing::warn!(instance = %self.id(), %error, "cannot remove what is left of a VM");
        }
        self.machine.holders.release(self.id());
    }

    fn start_preparing(&mut self) {
        let (told, detail) = watch::channel(String::new());
        let machine = self.machine.clone();
        let spec = self.spec.clone();
        let secrets = self.secrets.clone();
        self.detail = Some(detail);
        self.preparing = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let progress = move |step| {
                told.send_replace(step);
            };
            prepare(&machine, &spec, &secrets, &progress).await
        })));
    }

    async fn boot(&mut self) -> HostResult<()> {
        if let Some(why) = &self.unwritten {
            return Err(HostError::transient(why.clone()));
        }
        let Some(prepared) = self.prepared.take() else {
            return Err(HostError::transient("the root disk was not prepared"));
        };
        let attempt = self.life.restarts() + 1;
        let line = format!("starting {} (start {attempt})", self.spec.image);
        let begun = self.log.begin_boot(self.machine.clock.wall(), line).await;
        begun.map_err(|error| {
            HostError::transient(format!("cannot write the instance's log: {error}"))
        })?;
        self.end_acknowledged = false;
        self.boot_slot = prepared.slot;
        self.listen().await?;
        self.send_config(&prepared.image.config)?;
        let spec = &self.spec;
        let acquired = self.machine.holders.acquire(spec.id, &spec.volumes);
        acquired.map_err(|held| HostError::transient(held.to_string()))?;
        let nic = self.machine.enter_network(spec).await?;
        let vm = VmRequest {
            instance: spec.id,
            cpu_millis: spec.cpu_millis,
            memory_bytes: spec.memory_bytes,
            root: prepared.image.disk,
            disks: prepared.disks,
            nic,
        };
        let vm = self.machine.host.vmm.boot(vm).await?;
        self.vm_watch = Some(VmWatch::new(vm.health()));
        self.vm = Some(vm);
        self.waited_at = Some((Instant::now(), Duration::ZERO));
        Ok(())
    }

    /// Ends the VM. One whose end was reported and written down may first sync its disks.
    async fn kill_vm(&mut self) {
        self.vm_watch = None;
        if let Some(vm) = self.vm.take() {
            if self.end_acknowledged {
                if let Some(link) = &self.link {
                    link.acknowledge_end();
                }
                // The link stays open meanwhile: the guest's last lines come in over it.
                if timeout(POWER_OFF_TIMEOUT, vm.ended()).await.is_err() {
                    tracing::warn!(instance = %self.id(), "the guest did not power off");
                }
            }
            vm.kill().await;
        }
        self.config = None;
        if let Some(link) = self.link.take() {
            self.machine.directory.set_guest(self.id(), None);
            self.log_tail = self.log.tail(MAX_LOG_TAIL).await;
            // After the guest's last lines, which came in while it powered off.
            if let Some(line) = self.end_note.take() {
                self.note(line).await;
            }
            if link.protocol_violations() > 0 {
                let count = link.protocol_violations();
                self.note(format!("{count} connection(s) violated the guest protocol"))
                    .await;
            }
        }
    }

    /// Adds a line to the instance's log, where its owner looks.
    async fn note(&self, line: String) {
        if let Err(error) = self.log.note(self.machine.clock.wall(), line).await {
            tracing::warn!(%error, instance = %self.id(), "cannot write an instance's log");
        }
    }

    /// It gets no traffic, without a word of the app's: the log is where its user looks for the reason.
    async fn note_unhealthy(&self) {
        let report = self.life.report(self.machine.clock.now(), Vec::new());
        if let Some(why) = report.failure {
            self.note(format!("not ready: {why}")).await;
        }
    }

    /// Shows the agent what changed.
    fn show(&mut self) {
        let mut report = self
            .life
            .report(self.machine.clock.now(), self.log_tail.clone());
        if let Some(detail) = &mut self.detail {
            let step = detail.borrow_and_update();
            if !step.is_empty() {
                report.detail.clone_from(&step);
            }
        }
        if report.state.is_running() && !self.forwarded.is_empty() {
            let forwarded = forwarded_detail(&self.forwarded);
            report.detail = match report.detail.as_str() {
                "" => forwarded,
                detail => format!("{detail}; {forwarded}"),
            };
        }
        if let Some(trouble) = self.vm_watch.as_ref().and_then(VmWatch::disk_trouble) {
            report.detail = match report.detail.as_str() {
                "" => trouble.to_owned(),
                detail => format!("{detail}; {trouble}"),
            };
        }
        if let Some(why) = self.vm_watch.as_ref().and_then(VmWatch::stalled)
            && let InstanceState::Running { ready, .. } = &mut report.state
        {
            *ready = false;
            report.detail = format!("not ready: {why}");
        }
        if let Some(why) = self.probing.failure() {
            report.liveness_failure = Some(why.to_owned());
            report.detail = match report.detail.as_str() {
                "" => why.to_owned(),
                detail => format!("{detail}; {why}"),
            };
        }
        if let Some(why) = &self.unwritten
            && matches!(report.state, InstanceState::Stopped | InstanceState::Failed)
        {
            report.state = InstanceState::Stopping;
            report.detail.clone_from(why);
        }
        self.publish(report);
    }

    fn publish(&self, report: InstanceReport) {
        let status = InstanceStatus {
            stop_asked: self.life.stop_asked(),
            report,
        };
        let changed = self.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
        if changed {
            self.machine.changed.notify_one();
        }
    }
}
