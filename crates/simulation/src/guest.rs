//! A simulated guest: the guest's side of `guest-protocol`, with an app that behaves as the release says.

// ring: a machine runs guests, and a guest acts on its machine.

use std::io;

use guest_protocol::{
    BootFailure, CONTRACT_VERSION, Channel, Frame as _, FrameBuffer, GuestFrame, Hello, HostFrame,
    LogRecord, Phase, Stream,
};
use model::instance::ExitEvent;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::watch;
use tokio::time::{Duration, sleep};

use crate::machine::{Machine, VmKey};
use crate::simulator::App;

/// What a release command is: it ends by itself.
pub(crate) const RELEASE_COMMAND: &str = "migrate";
/// A command of a user that ends by itself.
pub(crate) const COMMAND: &str = "report";
/// A command of a user that runs until it is told to stop.
pub(crate) const STAYING_COMMAND: &str = "console";
/// Pause before a guest dials again, in milliseconds.
const DIAL_PAUSE: Duration = Duration::from_millis(500);
/// How long an app takes to end after it was asked to stop, in milliseconds, at most.
const STOP_MILLIS: u64 = 3_000;

/// One connection to the node.
struct Connection {
    stream: DuplexStream,
    buffer: FrameBuffer,
}

impl Connection {
    async fn dial(machine: &Machine, vm: VmKey, channel: Channel, phase: Phase) -> Self {
        loop {
            machine.simulator.latency(1, 5).await;
            if let Some(stream) = machine.dial(&vm).await {
                let buffer = FrameBuffer::default();
                let mut connection = Self { stream, buffer };
                let hello = GuestFrame::Hello(Hello {
                    contract: CONTRACT_VERSION,
                    channel,
                    phase: phase.clone(),
                    token: vm.token(),
                });
                if connection.write(&hello).await.is_ok() {
                    return connection;
                }
            }
            sleep(DIAL_PAUSE).await;
        }
    }

    async fn write(&mut self, frame: &GuestFrame) -> io::Result<()> {
        self.stream.write_all(&frame.encode()).await
    }

    /// The next frame; none when the connection ended.
    async fn read(&mut self) -> Option<HostFrame> {
        loop {
            match self.buffer.next() {
                Ok(Some(frame)) => return Some(frame),
                Ok(None) => {}
                Err(_) => return None,
            }
            let mut chunk = [0; 2048];
            match self.stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.buffer.push(&chunk[..count]),
            }
        }
    }
}

/// How far the guest is, over all its connections.
struct Guest {
    machine: Machine,
    vm: VmKey,
    app: App,
    phase: Phase,
    /// What it reports until that is acknowledged.
    end: Option<GuestFrame>,
    stopping: bool,
}

/// Runs a guest until it powers off; the outcome is its VMM's exit.
pub(crate) async fn run(machine: Machine, vm: VmKey, app: App, mut crash: watch::Receiver<bool>) {
    machine.simulator.latency(500, 3_000).await;
    let hangs = match app {
        App::Hangs => true,
        App::HangsOnce => machine.first_time(vm.image_key()),
        _ => false,
    };
    if hangs {
        machine.disturb(vm.id);
        std::future::pending::<()>().await;
    }
    let mut guest = Guest {
        machine,
        vm,
        app,
        phase: Phase::Waiting,
        end: None,
        stopping: false,
    };
    loop {
        let dialled = Connection::dial(
            &guest.machine,
            guest.vm.clone(),
            Channel::Control,
            guest.phase.clone(),
        );
        let mut connection = dialled.await;
        if guest.session(&mut connection, &mut crash).await {
            return;
        }
        sleep(DIAL_PAUSE).await;
    }
}

impl Guest {
    /// One control connection. True when the guest powers off.
    async fn session(
        &mut self,
        connection: &mut Connection,
        crash: &mut watch::Receiver<bool>,
    ) -> bool {
        if let Some(end) = &self.end
            && connection.write(end).await.is_err()
        {
            return false;
        }
        loop {
            let running = self.phase == Phase::Running;
            let exits_at_once = running && matches!(self.app, App::Exits(_)) && self.end.is_none();
            let frame = tokio::select! {
                biased;
                frame = connection.read() => frame,
                () = crashed(crash), if running => {
                    if self.ended(connection, exit(1, self.stopping)).await.is_err() {
                        return false;
                    }
                    continue;
                }
                () = sleep(Duration::from_millis(300)), if exits_at_once => {
                    let App::Exits(code) = self.app else { continue };
                    if self.ended(connection, exit(code, self.stopping)).await.is_err() {
                        return false;
                    }
                    continue;
                }
            };
            let answered = match frame {
                None => return false,
                Some(HostFrame::Boot(config)) if self.phase == Phase::Waiting => {
                    let names = |command: &str| config.argv.iter().any(|word| word == command);
                    let commands = [RELEASE_COMMAND, COMMAND, STAYING_COMMAND];
                    if commands.into_iter().any(names) {
                        self.machine.simulator.command_began(self.vm.id);
                    }
                    if names(RELEASE_COMMAND) || names(COMMAND) {
                        self.app = match self.app {
                            App::Exits(code) => App::Exits(code),
                            App::NotFound => App::NotFound,
                            _ => App::Exits(0),
                        };
                    }
                    self.start(connection).await
                }
                Some(HostFrame::Stop { .. }) if running && !self.stopping => {
                    self.stopping = true;
                    self.machine.stop_was_asked(&self.vm);
                    self.machine.simulator.latency(10, STOP_MILLIS).await;
                    self.ended(connection, exit(0, true)).await
                }
                Some(HostFrame::ExitAck) if self.end.is_some() => return true,
                Some(HostFrame::Exec(request)) => {
                    self.probe(request.session);
                    Ok(())
                }
                Some(_) => Ok(()),
            };
            if answered.is_err() {
                return false;
            }
        }
    }

    async fn start(&mut self, connection: &mut Connection) -> io::Result<()> {
        self.machine.simulator.latency(50, 500).await;
        self.machine.booted(self.vm.id);
        if self.app == App::NotFound {
            self.machine.disturb(self.vm.id);
            self.phase = Phase::Failed;
            let failure = GuestFrame::BootFailed(BootFailure {
                step: "start the app".to_owned(),
                reason: "/bin/nothing: not found".to_owned(),
                exit_code: Some(127),
            });
            self.end = Some(failure.clone());
            return connection.write(&failure).await;
        }
        self.phase = Phase::Running;
        self.machine.app_is(self.vm.id, self.app.is_good());
        if matches!(self.app, App::Exits(_) | App::Unhealthy) {
            self.machine.disturb(self.vm.id);
        }
        self.log();
        connection.write(&GuestFrame::Started).await
    }

    async fn ended(&mut self, connection: &mut Connection, end: ExitEvent) -> io::Result<()> {
        self.machine.disturb(self.vm.id);
        self.machine.app_is(self.vm.id, false);
        self.phase = Phase::Exited;
        let end = GuestFrame::Exited(end);
        self.end = Some(end.clone());
        connection.write(&end).await
    }

    /// Writes a line to the instance's log, on a connection of its own.
    fn log(&self) {
        let (machine, vm) = (self.machine.clone(), self.vm.clone());
        self.machine.spawn_in_vm(self.vm.id, async move {
            let record = LogRecord {
                seq: 1,
                at_nanos: 0,
                stream: Stream::Stdout,
                partial: false,
                dropped: 0,
                line: b"hello".to_vec(),
            };
            loop {
                let dialled = Connection::dial(&machine, vm.clone(), Channel::Log, Phase::Running);
                let mut connection = dialled.await;
                let line = GuestFrame::Log(record.clone());
                if connection.write(&line).await.is_ok()
                    && matches!(connection.read().await, Some(HostFrame::LogAck { .. }))
                {
                    return;
                }
                sleep(DIAL_PAUSE).await;
            }
        });
    }

    /// Answers a health check's command.
    fn probe(&self, session: u32) {
        let (machine, vm) = (self.machine.clone(), self.vm.clone());
        let healthy = self.machine.is_healthy(self.vm.id);
        self.machine.spawn_in_vm(self.vm.id, async move {
            let channel = Channel::Exec { session };
            let mut connection = Connection::dial(&machine, vm, channel, Phase::Running).await;
            let end = GuestFrame::ExecExited(exit(u8::from(!healthy), false));
            // A node that gave up has closed the connection.
            let _ = connection.write(&end).await;
            while connection.read().await.is_some() {}
        });
    }
}

async fn crashed(crash: &mut watch::Receiver<bool>) {
    if crash.wait_for(|crash| *crash).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn exit(code: u8, requested_stop: bool) -> ExitEvent {
    ExitEvent {
        requested_stop,
        ..scheduler::fixtures::exit(code)
    }
}
