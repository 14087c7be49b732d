//! One task per instance: it owns the instance's life cycle (`node_core::instance`), brings it events
//! and performs its effects, in order and one at a time.
//!
//! Everything the next agent needs is in the instance's record, written with each step before its
//! effects are performed: an agent that is killed between the two finds a record that is ahead of the
//! machine, never behind it, and the life cycle's `Adopted` and `NotFound` sort out the rest.

use std::collections::VecDeque;
use std::future::pending;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::node::{InstanceReport, MAX_LOG_TAIL};
use guest_protocol::{BootFailure, Phase, refusal};
use microvm::Vm;
use model::image::ImageConfig;
use model::instance::{InstanceSpec, InstanceState};
use model::{InstanceId, VolumeId};
use node_core::instance::{Effect, Event, Lifecycle};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::guest_link::{GuestEvent, GuestLink};
use crate::images::{ImageUse, PreparedImage};
use crate::logs::InstanceLog;
use crate::machine::Machine;
use crate::probes::probe;
use crate::secrets::Secrets;

/// Until it was ready once, an instance within its grace is probed at least this often.
const STARTUP_PROBE_INTERVAL: Duration = Duration::from_millis(250);
/// A guest whose end was acknowledged gets this long to sync its disks and power off.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(5);
/// An adopted guest that waits for its config gets this long until its secrets are there.
const SECRETS_TIMEOUT: Duration = Duration::from_secs(10);

const RECORD: &str = "instance.json";
const SCRATCH: &str = "scratch.ext4";
const LOG: &str = "log";

/// What is kept of an instance on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Record {
    spec: InstanceSpec,
    life: Lifecycle,
}

impl state_file::StateFormat for Record {
    const VERSION: u32 = 1;
}

/// What the agent sees of an instance.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct InstanceStatus {
    /// Whether it was asked to stop.
    pub(crate) stop_asked: bool,
    /// What the control plane is commands.
    pub(crate) report: InstanceReport,
}

/// An instance's task, from the outside. Dropping it ends the task and leaves the VM as it is.
#[derive(Debug)]
pub(crate) struct InstanceHandle {
    stop: watch::Sender<bool>,
    status: watch::Receiver<InstanceStatus>,
    dir: PathBuf,
    address: Ipv6Addr,
    volumes: Vec<VolumeId>,
    _task: AbortOnDropHandle<()>,
    /// Its root disk stays in the cache for as long as there is a handle.
    _image: ImageUse,
}

impl InstanceHandle {
    /// Begins the life of an instance.
    pub(crate) fn start(spec: InstanceSpec, machine: &Arc<Machine>) -> std::io::Result<Self> {
        let life = Lifecycle::new(&spec, machine.timing);
        Self::spawn(Record { spec, life }, machine, Event::Start)
    }

    /// Goes on with an instance that an agent before us had: finds its VM, or finds that it is gone.
    pub(crate) fn resume(dir: &Path, machine: &Arc<Machine>) -> std::io::Result<Option<Self>> {
        let record =
            state_file::read::<Record>(&dir.join(RECORD)).map_err(std::io::Error::other)?;
        // A folder without a record: its start was never written down, so nothing was done.
        let Some(record) = record else {
            return Ok(None);
        };
        // Unless it stopped its VM may run: before anyone else begins, its volumes are its own.
        if record.life.state() != InstanceState::Stopped
            && let Err(error) = machine.volumes.take(record.spec.id, &record.spec.volumes)
        {
            // Another that ends has it still. What runs is to be watched nevertheless.
            tracing::warn!(error = crate::chain(&error), instance = %record.spec.id, "resuming");
        }
        Self::spawn(record, machine, Event::NotFound).map(Some)
    }

    fn spawn(record: Record, machine: &Arc<Machine>, first: Event) -> std::io::Result<Self> {
        let id = record.spec.id;
        let address = record.spec.address;
        let volumes = record.spec.volumes.iter().map(|v| v.id).collect();
        let image = machine.images.used_by_instance(&record.spec.image.digest);
        let dir = machine.instance_dir(id);
        std::fs::create_dir_all(&dir)?;
        let log = Arc::new(InstanceLog::open(&dir.join(LOG))?);
        machine
            .directory
            .add(id, record.spec.process.clone(), log.clone());
        let log_tail = match record.life.state() {
            InstanceState::Running => Vec::new(),
            _ => log.log_tail(MAX_LOG_TAIL),
        };
        let report = record.life.report(machine.clock.now(), log_tail.clone());
        let status = InstanceStatus {
            stop_asked: record.life.stop_asked(),
            report,
        };
        let (sight_sender, status) = watch::channel(status);
        let stop = watch::Sender::new(false);
        let task = InstanceTask {
            record,
            machine: machine.clone(),
            dir: dir.clone(),
            log,
            log_tail,
            detail: None,
            preparing: None,
            prepared: None,
            secrets: Arc::default(),
            link: None,
            vm: None,
            end_acknowledged: false,
            end_note: None,
            running_since: None,
            next_probe: None,
            stop: stop.subscribe(),
            status: sight_sender,
        };
        let task = AbortOnDropHandle::new(tokio::spawn(task.run(first)));
        Ok(Self {
            stop,
            status,
            dir,
            address,
            volumes,
            _task: task,
            _image: image,
        })
    }

    /// Asks the instance to stop, for good.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// The instance's address.
    pub(crate) fn address(&self) -> Ipv6Addr {
        self.address
    }

    /// The instance's volumes.
    pub(crate) fn volumes(&self) -> &[VolumeId] {
        &self.volumes
    }

    /// What there is to see now.
    pub(crate) fn status(&self) -> InstanceStatus {
        self.status.borrow().clone()
    }

    /// Removes what is kept of a stopped instance, its log too.
    pub(crate) fn reap(self, id: InstanceId, machine: &Machine) {
        machine.directory.remove(id);
        let Self { dir, .. } = self;
        if let Err(error) = std::fs::remove_dir_all(&dir) {
            tracing::warn!(%error, instance = %id, "cannot remove a stopped instance's folder");
        }
    }
}

type Preparing = JoinHandle<Result<PreparedImage, (bool, String)>>;

struct InstanceTask {
    record: Record,
    machine: Arc<Machine>,
    dir: PathBuf,
    log: Arc<InstanceLog>,
    log_tail: Vec<String>,
    /// What the preparation says it is doing.
    detail: Option<watch::Receiver<String>>,
    preparing: Option<AbortOnDrop>,
    prepared: Option<PreparedImage>,
    secrets: Arc<Secrets>,
    link: Option<GuestLink>,
    vm: Option<Vm>,
    end_acknowledged: bool,
    /// How this boot ended, for the log.
    end_note: Option<String>,
    running_since: Option<Instant>,
    next_probe: Option<Instant>,
    stop: watch::Receiver<bool>,
    status: watch::Sender<InstanceStatus>,
}

struct AbortOnDrop(Preparing);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl InstanceTask {
    async fn run(mut self, first: Event) {
        let mut events = VecDeque::new();
        match first {
            Event::NotFound => self.find(&mut events).await,
            event => events.push_back(event),
        }
        loop {
            while let Some(event) = events.pop_front() {
                self.take(event, &mut events).await;
            }
            events.extend(self.next().await);
        }
    }

    fn id(&self) -> InstanceId {
        self.record.spec.id
    }

    /// Looks for the VM of an agent before us.
    async fn find(&mut self, events: &mut VecDeque<Event>) {
        match self.machine.adopt(self.id()).await {
            Ok(Some(vm)) => {
                tracing::info!(instance = %self.id(), "adopted the running microVM");
                self.vm = Some(vm);
                let spec = &self.record.spec;
                if let Err(error) = self.machine.volumes.take(spec.id, &spec.volumes) {
                    tracing::warn!(error = crate::chain(&error), instance = %spec.id, "adopting");
                }
                self.running_since = Some(Instant::now());
                self.next_probe = Some(Instant::now());
                match self.listen() {
                    Ok(()) => {
                        if self.record.life.state() == InstanceState::Booting {
                            self.tell_config_again().await;
                        }
                        events.push_back(Event::Adopted);
                    }
                    Err(reason) => {
                        self.kill_vm().await;
                        events.push_back(Event::NotFound);
                        tracing::warn!(instance = %self.id(), reason, "cannot reach an adopted guest");
                    }
                }
            }
            Ok(None) => events.push_back(Event::NotFound),
            Err(error) => {
                tracing::warn!(instance = %self.id(), error = crate::chain(&error), "cannot adopt");
                events.push_back(Event::NotFound);
            }
        }
    }

    /// The agent may have died before the guest asked for its config.
    async fn tell_config_again(&mut self) {
        let prepared = self
            .machine
            .images
            .prepare(&self.record.spec.image, &|_| ())
            .await;
        // The server may be away: then the boot watchdog deals with the guest, as below.
        let spec = &self.record.spec;
        let secrets = self.secrets.get(&self.machine.server, spec, &|_| ());
        if !matches!(timeout(SECRETS_TIMEOUT, secrets).await, Ok(Ok(_))) {
            tracing::warn!(instance = %self.id(), "no secrets for an adopted guest");
            return;
        }
        match prepared {
            Ok(prepared) => {
                if let Err(reason) = self.tell_config(&prepared.config) {
                    tracing::warn!(instance = %self.id(), reason, "no config for an adopted guest");
                }
            }
            // The boot watchdog deals with the guest.
            Err(error) => {
                tracing::warn!(instance = %self.id(), error = crate::chain(&error), "no image");
            }
        }
    }

    async fn take(&mut self, event: Event, events: &mut VecDeque<Event>) {
        let before = self.record.life.clone();
        let state_before = before.state();
        tracing::debug!(instance = %self.id(), state = %state_before, ?event);
        let effects = match self.record.life.step(self.machine.clock.now(), event) {
            Ok(effects) => effects,
            Err(refused) => {
                tracing::debug!(%refused);
                return;
            }
        };
        let state = self.record.life.state();
        if state != state_before {
            let running = state == InstanceState::Running;
            self.running_since = running.then(Instant::now);
            self.next_probe = running.then(Instant::now);
            tracing::info!(instance = %self.id(), from = %state_before, to = %state);
        }
        if self.record.life != before
            && let Err(error) = state_file::write(&self.dir.join(RECORD), &self.record)
        {
            // The machine goes on; the next agent will know a little less.
            tracing::warn!(instance = %self.id(), error = crate::chain(&error), "cannot keep the record");
        }
        for effect in effects {
            self.perform(effect, events).await;
        }
        self.show();
    }

    /// The next thing that happens. Cancel-safe in every branch.
    async fn next(&mut self) -> Vec<Event> {
        let wake_at = self
            .record
            .life
            .wake_at()
            .map(|at| self.machine.clock.instant(at));
        let probe_at = match (&self.record.spec.healthcheck, self.record.life.state()) {
            (Some(_), InstanceState::Running) => self.next_probe,
            _ => None,
        };
        let stopping = self.record.life.stop_asked();
        let happened = tokio::select! {
            biased;
            () = asked(&mut self.stop), if !stopping => Wakeup::StopAsked,
            // What the guest said before its VMM ended comes first.
            event = next_guest_event(&mut self.link) => Wakeup::Guest(event),
            end = ended(self.vm.as_ref()) => Wakeup::VmEnded(end),
            prepared = prepared(&mut self.preparing) => Wakeup::Prepared(prepared),
            () = changed(&mut self.detail) => Wakeup::DetailChanged,
            () = at(wake_at) => Wakeup::Due,
            () = at(probe_at) => Wakeup::ProbeDue,
        };
        match happened {
            Wakeup::StopAsked => vec![Event::StopAsked],
            Wakeup::Guest(said) => self.on_guest_event(said),
            Wakeup::VmEnded(reason) => {
                self.vm = None;
                vec![Event::VmmLost { reason }]
            }
            Wakeup::Prepared(prepared) => {
                self.preparing = None;
                self.detail = None;
                vec![match prepared {
                    Ok(image) => {
                        self.prepared = Some(image);
                        Event::Prepared
                    }
                    Err((retryable, reason)) => Event::PrepareFailed { retryable, reason },
                }]
            }
            Wakeup::DetailChanged => {
                self.show();
                vec![]
            }
            Wakeup::Due => self
                .record
                .life
                .due(self.machine.clock.now())
                .into_iter()
                .collect(),
            Wakeup::ProbeDue => self.probe().await.into_iter().collect(),
        }
    }

    fn on_guest_event(&mut self, said: GuestEvent) -> Vec<Event> {
        let booting = self.record.life.state() == InstanceState::Booting;
        match said {
            GuestEvent::Hello(Phase::Running) | GuestEvent::Started if booting => {
                vec![Event::GuestStarted]
            }
            GuestEvent::Hello(_) | GuestEvent::Started => vec![],
            GuestEvent::BootFailed(failure) => {
                self.end_acknowledged = true;
                self.end_note = Some(format!("could not {}: {}", failure.step, failure.reason));
                vec![Event::BootFailed(failure)]
            }
            GuestEvent::Exited(exit) => {
                self.end_acknowledged = true;
                self.end_note = Some(format!("ended: {exit}"));
                let mut events = Vec::new();
                // The word that it had started was lost with a connection.
                events.extend(booting.then_some(Event::GuestStarted));
                events.push(Event::Exited(exit));
                events
            }
            // Of a guest that runs it is an app's lie, and costs it a connection only.
            GuestEvent::Refused { .. } if !booting => vec![],
            GuestEvent::Refused { contract } => vec![Event::BootFailed(BootFailure {
                step: "agree on a protocol version".to_owned(),
                reason: refusal(contract),
                exit_code: None,
            })],
        }
    }

    async fn probe(&mut self) -> Option<Event> {
        let health = self.record.spec.healthcheck.as_ref()?;
        let within = Duration::from_millis(health.timeout_ms);
        let calls = self.link.as_ref().map(GuestLink::calls);
        let result = tokio::select! {
            result = probe(&health.probe, self.record.spec.address, calls, within) => result,
            // A stop does not wait for a slow probe; asked again, it is found at once.
            () = asked(&mut self.stop), if !self.record.life.stop_asked() => {
                return Some(Event::StopAsked);
            }
        };
        let age = self
            .running_since
            .map_or(Duration::ZERO, |since| since.elapsed());
        let interval = Duration::from_millis(health.interval_ms);
        let starting = !self.record.life.ready() && age < Duration::from_millis(health.grace_ms);
        self.next_probe = Some(
            Instant::now()
                + if starting {
                    interval.min(STARTUP_PROBE_INTERVAL)
                } else {
                    interval
                },
        );
        Some(match result {
            Ok(()) => Event::HealthPassed,
            Err(reason) => Event::HealthFailed { reason },
        })
    }

    async fn perform(&mut self, effect: Effect, events: &mut VecDeque<Event>) {
        match effect {
            Effect::StartPreparing => self.start_preparing(),
            Effect::BootVm => events.push_back(match self.boot().await {
                Ok(()) => Event::VmmStarted,
                Err((retryable, reason)) => Event::VmmFailed { retryable, reason },
            }),
            Effect::AskStop => self.ask_stop(),
            Effect::KillVm => self.kill_vm().await,
            Effect::CleanUp => {
                self.preparing = None;
                self.detail = None;
                self.prepared = None;
                self.remove_scratch();
                self.machine.leave_network(self.id()).await;
                self.machine.remove_run_dir(self.id());
                self.machine.volumes.release(self.id());
                events.push_back(Event::CleanedUp);
            }
            // The timer is read off the life cycle, and every step is shown.
            Effect::ScheduleAt(_) | Effect::Report => {}
        }
    }

    fn start_preparing(&mut self) {
        let (said, detail) = watch::channel(String::new());
        let machine = self.machine.clone();
        let spec = self.record.spec.clone();
        let secrets = self.secrets.clone();
        let scratch = self.dir.join(SCRATCH);
        let scratch_bytes = self.record.spec.scratch_bytes;
        self.remove_scratch();
        self.detail = Some(detail);
        self.preparing = Some(AbortOnDrop(tokio::spawn(async move {
            let say = move |step| {
                said.send_replace(step);
            };
            let prepared = machine
                .images
                .prepare(&spec.image, &say)
                .await
                .map_err(|error| (error.is_transient(), crate::chain(&error)))?;
            secrets
                .get(&machine.server, &spec, &say)
                .await
                .map_err(|error| (true, crate::chain(&error)))?;
            tokio::task::spawn_blocking(move || {
                root_disk::format_empty(&scratch, scratch_bytes, "scratch").map_err(|error| {
                    let cause = crate::chain(&error);
                    (true, format!("cannot make the scratch disk: {cause}"))
                })?;
                spec.volumes
                    .iter()
                    .try_for_each(|volume| machine.volumes.prepare(volume))
                    .map_err(|error| (error.is_transient(), crate::chain(&error)))
            })
            .await
            .map_err(|error| (true, error.to_string()))??;
            Ok(prepared)
        })));
    }

    /// Boots the VM; a failure says whether trying again may help, and why it failed.
    async fn boot(&mut self) -> Result<(), (bool, String)> {
        let retryable = |reason| (true, reason);
        let Some(prepared) = self.prepared.take() else {
            return Err(retryable("the root disk was not prepared".to_owned()));
        };
        let attempt = self.record.life.restarts() + 1;
        let line = format!("starting {} (start {attempt})", self.record.spec.image);
        self.log
            .begin_boot(self.machine.clock.now(), &line)
            .map_err(|error| retryable(format!("cannot write the instance's log: {error}")))?;
        self.end_acknowledged = false;
        self.listen().map_err(retryable)?;
        self.tell_config(&prepared.config).map_err(retryable)?;
        let spec = &self.record.spec;
        let volumes = self.machine.volumes.take(spec.id, &spec.volumes);
        let mut own = vec![self.dir.join(SCRATCH)];
        own.extend(volumes.map_err(|error| retryable(crate::chain(&error)))?);
        self.vm = Some(self.machine.boot(spec, prepared.disk, own).await?);
        Ok(())
    }

    fn listen(&mut self) -> Result<(), String> {
        let listener = self.machine.listen_for_guest(self.id())?;
        let link = GuestLink::serve(listener, self.log.clone(), self.machine.clock);
        let calls = Some(link.calls().clone());
        self.machine.directory.set_calls(self.id(), calls);
        self.link = Some(link);
        // An agent before us may have asked already; asking again is harmless.
        if self.record.life.state() == InstanceState::Stopping {
            self.ask_stop();
        }
        Ok(())
    }

    fn tell_config(&self, image: &ImageConfig) -> Result<(), String> {
        let spec = &self.record.spec;
        let secrets = self.secrets.known().unwrap_or_default();
        let config = node_core::boot::boot_config(image, spec, &secrets, &self.machine.facts)
            .map_err(|error| error.to_string())?;
        if let Some(link) = &self.link {
            link.boot(config);
        }
        Ok(())
    }

    fn ask_stop(&self) {
        if let Some(link) = &self.link {
            link.stop(self.record.spec.stop.timeout_ms);
        }
    }

    /// Ends the VM. One whose end was said and written down may first sync its disks.
    async fn kill_vm(&mut self) {
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
        if let Some(link) = self.link.take() {
            self.machine.directory.set_calls(self.id(), None);
            self.log_tail = self.log.log_tail(MAX_LOG_TAIL);
            // After the guest's last lines, which came in while it powered off.
            if let Some(line) = self.end_note.take() {
                self.note(&line);
            }
            if link.protocol_violations() > 0 {
                let count = link.protocol_violations();
                self.note(&format!("{count} connection(s) broke the boot contract"));
            }
        }
    }

    /// Says something in the instance's log, where its owner looks.
    fn note(&self, line: &str) {
        if let Err(error) = self.log.note(self.machine.clock.now(), line) {
            tracing::warn!(%error, instance = %self.id(), "cannot write an instance's log");
        }
    }

    fn remove_scratch(&self) {
        match std::fs::remove_file(self.dir.join(SCRATCH)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, instance = %self.id(), "cannot remove the scratch disk");
            }
            _ => {}
        }
    }

    /// Shows the agent what changed.
    fn show(&mut self) {
        let mut report = self
            .record
            .life
            .report(self.machine.clock.now(), self.log_tail.clone());
        if let Some(detail) = &mut self.detail {
            let said = detail.borrow_and_update();
            if !said.is_empty() {
                report.detail.clone_from(&said);
            }
        }
        let status = InstanceStatus {
            stop_asked: self.record.life.stop_asked(),
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

/// What may happen to an instance between two steps.
#[allow(clippy::large_enum_variant, reason = "it lives for one step")]
enum Wakeup {
    StopAsked,
    Guest(GuestEvent),
    VmEnded(String),
    Prepared(Result<PreparedImage, (bool, String)>),
    DetailChanged,
    Due,
    ProbeDue,
}

async fn asked(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|asked| *asked).await.is_err() {
        pending::<()>().await;
    }
}

async fn next_guest_event(link: &mut Option<GuestLink>) -> GuestEvent {
    match link {
        Some(link) => match link.next().await {
            Some(event) => event,
            None => pending().await,
        },
        None => pending().await,
    }
}

async fn ended(vm: Option<&Vm>) -> String {
    match vm {
        Some(vm) => vm.ended().await.how.to_string(),
        None => pending().await,
    }
}

async fn prepared(preparing: &mut Option<AbortOnDrop>) -> Result<PreparedImage, (bool, String)> {
    match preparing {
        Some(AbortOnDrop(task)) => task
            .await
            .unwrap_or_else(|error| Err((true, format!("the preparation broke: {error}")))),
        None => pending().await,
    }
}

async fn changed(detail: &mut Option<watch::Receiver<String>>) {
    match detail {
        Some(receiver) => {
            if receiver.changed().await.is_err() {
                pending::<()>().await;
            }
        }
        None => pending().await,
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => pending().await,
    }
}
