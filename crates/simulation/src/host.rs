//! The host of a simulated machine: the traits of `node_agent::host`.
//!
//! Every call takes time and may be cut short when the agent is killed: half of the time before it took
//! effect, half of the time after.

use std::io;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::node::CachedImage;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use guest_protocol::LogRecord;
use microvm::{Nic, VmHealth};
use model::image::ImageConfig;
use model::instance::{AttachedVolume, PinnedImage};
use model::{Digest, Generation, InstanceId, ProcessName, Term, Timestamp, VolumeId};
use node_agent::host::{
    DiskUse, Disks, Egress, EndedLogOwner, Files, GuestListener, GuestStream, HostError,
    HostResult, ImagePin, Images, Log, Logs, Network, NetworkProbe, PreparedImage, Progress, Vm,
    VmRequest, Vmm,
};
use node_network::Endpoint;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};

use crate::machine::{Machine, SimVm};
use crate::simulator::{App, TakenState};

/// Too many open files.
const EMFILE: i32 = 24;

/// Folder of root disks, a file for each image digest.
const ROOT_DISKS: &str = "/disks";
/// Folder of volumes.
const VOLUMES: &str = "/volumes";
/// Folder of scratch disks.
const SCRATCH: &str = "/scratch";

/// The simulated host.
#[derive(Debug, Clone)]
pub(crate) struct SimHost(pub(crate) Machine);

impl SimHost {
    /// Takes up to `high` milliseconds and performs `effect` at one end of that time.
    async fn perform<T>(&self, high: u64, effect: impl FnOnce() -> T) -> T {
        let simulator = &self.0.simulator;
        if simulator.draw(|rng| rng.percent(50)) {
            let outcome = effect();
            simulator.latency(0, high).await;
            outcome
        } else {
            simulator.latency(0, high).await;
            effect()
        }
    }
}

/// What a file says of the desired state in it.
fn taken_state(file: &[u8]) -> Option<TakenState> {
    let file: serde_json::Value = serde_json::from_slice(file).ok()?;
    let incarnation = file.get("incarnation").and_then(|value| value.as_str());
    let term = file.get("term").and_then(serde_json::Value::as_u64);
    Some(TakenState {
        generation: Generation {
            incarnation: incarnation.unwrap_or("0").parse().ok()?,
            counter: file.get("generation")?.as_u64()?,
        },
        term: Term(term.unwrap_or_default()),
    })
}

fn full() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "no space left on device")
}

impl Vmm for SimHost {
    fn leaves_tap(&self) -> bool {
        self.0.lock().leaves_tap
    }

    fn boot(&self, vm: VmRequest) -> BoxFuture<'_, HostResult<Box<dyn Vm>>> {
        async move {
            let id = vm.instance;
            let machine = &self.0;
            let booted = self.perform(200, || {
                let percent = machine.lock().boot_failures_percent;
                if machine.simulator.draw(|rng| rng.percent(percent)) {
                    return Err(HostError::transient("cannot start the VMM: simulated"));
                }
                if machine.lock().vms.get(&id).is_some_and(SimVm::runs) {
                    machine
                        .simulator
                        .violate(format!("{id} is booted while its VM runs"));
                }
                let name = vm.root.file_name().unwrap_or_default().to_string_lossy();
                let Ok(image) = name.parse::<Digest>() else {
                    return Err(HostError::permanent(format!(
                        "there is no root disk {name}"
                    )));
                };
                if !machine.lock().cached.contains(&image) {
                    let reason = format!("there is no root disk {}", vm.root.display());
                    return Err(HostError::transient(reason));
                }
                let mut volumes = Vec::new();
                for path in &vm.disks {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    let there = if path.starts_with(VOLUMES) {
                        let volume = name.parse::<VolumeId>().ok();
                        volumes.extend(volume);
                        volume.is_some_and(|id| machine.lock().volumes.contains(&id))
                    } else {
                        machine.lock().scratch.contains(&id)
                    };
                    if !there {
                        let reason = format!("there is no disk {}", path.display());
                        return Err(HostError::transient(reason));
                    }
                }
                let Some(address) = machine.lock().admitted.get(&id).copied() else {
                    machine
                        .simulator
                        .violate(format!("{id} boots before it is admitted to the network"));
                    return Err(HostError::transient("not admitted"));
                };
                machine
                    .simulator
                    .trace(format!("{} boots {id}", machine.node));
                machine.start_vm(id, image, address, volumes);
                Ok(())
            });
            if let Err(error) = booted.await {
                // The tap's file descriptor is closed.
                let mut state = machine.lock();
                if !state.leaves_tap {
                    state.taps.remove(&id);
                }
                return Err(error);
            }
            self.vm(id)
                .ok_or_else(|| HostError::transient("the VM ended as it started"))
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, HostResult<Vec<InstanceId>>> {
        async move {
            let machine = &self.0;
            Ok(self
                .perform(5, || machine.lock().vms.keys().copied().collect())
                .await)
        }
        .boxed()
    }

    fn adopt(&self, id: InstanceId) -> BoxFuture<'_, HostResult<Option<Box<dyn Vm>>>> {
        async move {
            self.0.simulator.latency(1, 20).await;
            if self.0.lock().no_descriptors {
                return Err(HostError::transient("too many open files: simulated"));
            }
            if self.0.lock().unreadable_vms.contains(&id) {
                return Err(HostError::transient("cannot read `vm.json`: simulated"));
            }
            Ok(self.vm(id))
        }
        .boxed()
    }

    fn listen(&self, id: InstanceId) -> BoxFuture<'_, HostResult<Box<dyn GuestListener>>> {
        async move {
            if self.0.lock().no_descriptors {
                return Err(HostError::transient("too many open files: simulated"));
            }
            let listener = SimListener(self.0.listen(id));
            Ok(Box::new(listener) as Box<dyn GuestListener>)
        }
        .boxed()
    }

    fn remove(&self, id: InstanceId) -> BoxFuture<'_, HostResult<()>> {
        async move {
            self.perform(5, || {
                if self.0.lock().vms.get(&id).is_some_and(SimVm::runs) {
                    self.0
                        .simulator
                        .violate(format!("the record of {id} is removed while its VM runs"));
                }
                let mut state = self.0.lock();
                state.vms.remove(&id);
                state.unreadable_vms.remove(&id);
            })
            .await;
            Ok(())
        }
        .boxed()
    }
}

impl SimHost {
    fn vm(&self, id: InstanceId) -> Option<Box<dyn Vm>> {
        let end = self.0.lock().vms.get(&id)?.end.subscribe();
        let machine = self.0.clone();
        Some(Box::new(SimVmHandle { machine, id, end }))
    }
}

#[derive(Debug)]
struct SimVmHandle {
    machine: Machine,
    id: InstanceId,
    end: watch::Receiver<Option<String>>,
}

impl Vm for SimVmHandle {
    fn ended(&self) -> BoxFuture<'_, String> {
        let mut end = self.end.clone();
        async move {
            match end.wait_for(Option::is_some).await {
                Ok(how) => how.clone().unwrap_or_default(),
                // Its record was removed after its end.
                Err(_) => "ended".to_owned(),
            }
        }
        .boxed()
    }

    /// A simulated VMM neither stops nor hangs, and its disks do not fail.
    fn health(&self) -> watch::Receiver<VmHealth> {
        watch::channel(VmHealth::default()).1
    }

    fn kill(&self) -> BoxFuture<'_, ()> {
        async move {
            let host = SimHost(self.machine.clone());
            host.perform(20, || {
                self.machine.check_stop(self.id);
                self.machine.end_vm(self.id, "killed by its node");
            })
            .await;
        }
        .boxed()
    }

    fn waited(&self) -> BoxFuture<'_, Option<Duration>> {
        std::future::ready(None).boxed()
    }
}

#[derive(Debug)]
struct SimListener(mpsc::Receiver<DuplexStream>);

impl GuestListener for SimListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Box<dyn GuestStream>>> {
        async move {
            match self.0.recv().await {
                Some(stream) => Ok(Box::new(stream) as Box<dyn GuestStream>),
                // A newer listener took its place.
                None => std::future::pending().await,
            }
        }
        .boxed()
    }
}

impl Network for SimHost {
    fn create_tap(&self, endpoint: Endpoint) -> BoxFuture<'_, HostResult<Nic>> {
        async move {
            let id = endpoint.instance;
            self.perform(50, || {
                if self.0.lock().vms.get(&id).is_some_and(SimVm::runs) {
                    return Err(HostError::transient(format!("the tap of {id} is in use")));
                }
                self.0.lock().taps.insert(id);
                Ok(())
            })
            .await?;
            let null = std::fs::File::open("/dev/null");
            let null = null.map_err(|error| HostError::transient(error.to_string()))?;
            Ok(Nic {
                tap: null.into(),
                mac: [2, 0, 0, 0, 0, 1],
            })
        }
        .boxed()
    }

    fn apply_rules(&self, endpoints: Vec<Endpoint>) -> BoxFuture<'_, HostResult<()>> {
        async move {
            let admitted = endpoints.iter().map(|e| (e.instance, e.address)).collect();
            self.perform(20, || self.0.lock().admitted = admitted).await;
            Ok(())
        }
        .boxed()
    }

    fn release(&self, id: InstanceId) -> BoxFuture<'_, HostResult<()>> {
        async move {
            self.perform(20, || {
                if self.0.lock().vms.get(&id).is_some_and(SimVm::runs) {
                    self.0
                        .simulator
                        .violate(format!("the tap of {id} is released while its VM runs"));
                }
                self.0.lock().taps.remove(&id);
            })
            .await;
            Ok(())
        }
        .boxed()
    }

    fn ensure_egress(&self) -> BoxFuture<'_, HostResult<Egress>> {
        async move {
            if self.0.lock().no_uplink {
                return Err(HostError::transient("the machine has no default route"));
            }
            // It runs until its sender is replaced.
            let mut running = self.0.lock().egress.subscribe();
            Ok(Egress {
                reason: "simulated".to_owned(),
                ended: async move { while running.changed().await.is_ok() {} }.boxed(),
            })
        }
        .boxed()
    }

    fn probe(&self, address: Ipv6Addr, _: NetworkProbe) -> BoxFuture<'_, Result<(), String>> {
        async move {
            self.0.simulator.latency(1, 5).await;
            let state = self.0.lock();
            let vm = state
                .vms
                .iter()
                .find(|(_, vm)| vm.address == address && vm.runs());
            let up = vm.map(|(id, _)| *id);
            drop(state);
            match up {
                Some(id) if self.0.is_healthy(id) => Ok(()),
                _ => Err("connection refused".to_owned()),
            }
        }
        .boxed()
    }
}

impl Images for SimHost {
    fn prepare<'a>(
        &'a self,
        image: &'a PinnedImage,
        progress: &'a Progress,
    ) -> BoxFuture<'a, HostResult<PreparedImage>> {
        async move {
            let app = self.0.simulator.app(&image.digest);
            let prepared = PreparedImage {
                disk: Path::new(ROOT_DISKS).join(image.digest.to_string()),
                config: ImageConfig {
                    cmd: vec!["/app".to_owned()],
                    ..ImageConfig::default()
                },
            };
            self.0.simulator.latency(1, 10).await;
            if self.0.lock().cached.contains(&image.digest) {
                return Ok(prepared);
            }
            progress("fetched 0 of 1 layers".to_owned());
            self.0.simulator.latency(300, 3_000).await;
            if app == App::NoImage {
                return Err(HostError::permanent("cannot fetch: manifest unknown"));
            }
            if app == App::SlowImage && self.0.times(format!("pull {}", image.digest)) < 2 {
                return Err(HostError::transient("cannot fetch: timed out"));
            }
            if self.0.lock().registry_down {
                return Err(HostError::transient("cannot fetch: connection refused"));
            }
            if self.0.lock().disk_full {
                return Err(HostError::transient(
                    "cannot build the root disk: disk full",
                ));
            }
            self.0.lock().cached.insert(image.digest.clone());
            Ok(prepared)
        }
        .boxed()
    }

    fn pin(&self, digest: &Digest) -> ImagePin {
        Box::new(digest.clone())
    }

    fn set_pinned(&self, _: Vec<Digest>) {}

    fn list(&self) -> Vec<CachedImage> {
        Vec::new()
    }

    fn make_room(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }

    fn tidy(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}

impl Disks for SimHost {
    fn make_scratch(&self, id: InstanceId, _: u64) -> BoxFuture<'_, HostResult<PathBuf>> {
        async move {
            self.perform(10, || {
                if self.0.lock().disk_full {
                    return Err(HostError::transient(
                        "cannot make the scratch disk: disk full",
                    ));
                }
                if self.0.lock().vms.get(&id).is_some_and(SimVm::runs) {
                    self.0
                        .simulator
                        .violate(format!("the scratch disk of {id} is replaced under its VM"));
                }
                self.0.lock().scratch.insert(id);
                Ok(Path::new(SCRATCH).join(id.to_string()))
            })
            .await
        }
        .boxed()
    }

    fn remove_scratch(&self, id: InstanceId) -> BoxFuture<'_, HostResult<()>> {
        async move {
            self.perform(5, || {
                if self.0.lock().vms.get(&id).is_some_and(SimVm::runs) {
                    self.0
                        .simulator
                        .violate(format!("the scratch disk of {id} is removed under its VM"));
                }
                self.0.lock().scratch.remove(&id);
            })
            .await;
            Ok(())
        }
        .boxed()
    }

    fn prepare_volume(&self, volume: AttachedVolume) -> BoxFuture<'_, HostResult<PathBuf>> {
        async move {
            let path = Path::new(VOLUMES).join(volume.id.to_string());
            self.perform(10, || {
                let mut state = self.0.lock();
                if state.volumes.contains(&volume.id) {
                    return Ok(path);
                }
                if volume.made {
                    return Err(HostError::permanent(format!(
                        "the disk of volume {} is gone",
                        volume.name
                    )));
                }
                if state.disk_full {
                    return Err(HostError::transient("cannot make the volume: disk full"));
                }
                state.volumes.insert(volume.id);
                Ok(path)
            })
            .await
        }
        .boxed()
    }

    fn list_volumes(&self) -> BoxFuture<'_, HostResult<Vec<VolumeId>>> {
        async move {
            self.0.simulator.step();
            Ok(self.0.lock().volumes.iter().copied().collect())
        }
        .boxed()
    }

    fn remove_volume(&self, id: VolumeId) -> BoxFuture<'_, HostResult<()>> {
        async move {
            if let Some(writer) = self.0.simulator.writer(id) {
                let what = format!("volume {id} is removed under instance {writer}");
                self.0.simulator.violate(what);
            }
            self.perform(5, || self.0.lock().volumes.remove(&id)).await;
            self.0
                .simulator
                .trace(format!("{} removes volume {id}", self.0.node));
            Ok(())
        }
        .boxed()
    }

    fn measure(&self) -> BoxFuture<'_, HostResult<DiskUse>> {
        let full = self.0.lock().disk_full;
        let disk = self.0.disk;
        let free_bytes = if full { 0 } else { disk.total_bytes };
        async move { Ok(DiskUse { disk, free_bytes }) }.boxed()
    }
}

impl Files for SimHost {
    fn read<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Option<Vec<u8>>>> {
        async move {
            self.0.simulator.latency(0, 2).await;
            let state = self.0.lock();
            if state.no_descriptors && path.ends_with("instance.json") {
                return Err(io::Error::from_raw_os_error(EMFILE));
            }
            if state.is_folder(path) {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            Ok(state.files.get(path).cloned())
        }
        .boxed()
    }

    fn replace<'a>(&'a self, path: &'a Path, bytes: Vec<u8>) -> BoxFuture<'a, io::Result<()>> {
        async move {
            self.perform(5, || {
                let mut state = self.0.lock();
                if state.is_folder(path) {
                    return Err(io::ErrorKind::IsADirectory.into());
                }
                if path
                    .ancestors()
                    .skip(1)
                    .any(|folder| state.files.contains_key(folder))
                {
                    return Err(io::ErrorKind::NotADirectory.into());
                }
                if state.disk_full {
                    return Err(full());
                }
                let taken = path.ends_with("desired.json").then(|| taken_state(&bytes));
                state.files.insert(path.to_owned(), bytes);
                drop(state);
                if let Some(taken) = taken.flatten() {
                    self.0.simulator.took_state(self.0.node, taken);
                }
                Ok(())
            })
            .await
        }
        .boxed()
    }

    fn rename<'a>(&'a self, from: &'a Path, to: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        async move {
            self.perform(2, || {
                let mut state = self.0.lock();
                let bytes = state.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
                state.files.insert(to.to_owned(), bytes);
                Ok(())
            })
            .await
        }
        .boxed()
    }

    fn list<'a>(&'a self, folder: &'a Path) -> BoxFuture<'a, io::Result<Vec<String>>> {
        async move {
            self.0.simulator.latency(0, 2).await;
            let state = self.0.lock();
            if state.files.contains_key(folder) {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            let inside = state.files.keys().filter_map(|path| {
                let name = path.strip_prefix(folder).ok()?.components().next()?;
                Some(name.as_os_str().to_string_lossy().into_owned())
            });
            let mut names: Vec<_> = inside.collect();
            names.dedup();
            Ok(names)
        }
        .boxed()
    }

    fn remove_folder<'a>(&'a self, folder: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        async move {
            self.perform(5, || {
                let mut state = self.0.lock();
                state.files.retain(|path, _| !path.starts_with(folder));
                if let Some(id) = folder.file_name().and_then(|name| name.to_str())
                    && let Ok(id) = id.parse::<InstanceId>()
                {
                    state.logs.remove(&id);
                    state.scratch.remove(&id);
                }
            })
            .await;
            Ok(())
        }
        .boxed()
    }
}

impl Logs for SimHost {
    fn open(&self, id: InstanceId, _: ProcessName) -> BoxFuture<'_, HostResult<Arc<dyn Log>>> {
        async move {
            self.0.simulator.latency(0, 2).await;
            if self.0.lock().disk_full && !self.0.lock().logs.contains_key(&id) {
                return Err(HostError::transient("cannot open the log: disk full"));
            }
            self.0.lock().logs.entry(id).or_default();
            let machine = self.0.clone();
            Ok(Arc::new(SimLog { machine, id }) as Arc<dyn Log>)
        }
        .boxed()
    }

    fn keep(&self, owner: EndedLogOwner) -> BoxFuture<'_, HostResult<()>> {
        async move {
            self.0.simulator.latency(0, 2).await;
            if self.0.lock().disk_full {
                return Err(HostError::transient("cannot keep the log: disk full"));
            }
            // Nobody reads it here.
            self.0.lock().logs.remove(&owner.id);
            Ok(())
        }
        .boxed()
    }

    fn tidy(&self, _: Timestamp) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}

/// An instance's log in memory: the records of the last boot.
#[derive(Debug)]
struct SimLog {
    machine: Machine,
    id: InstanceId,
}

impl SimLog {
    fn write(&self, write: impl FnOnce(&mut Vec<LogRecord>)) -> io::Result<()> {
        let mut state = self.machine.lock();
        if state.disk_full {
            return Err(full());
        }
        write(state.logs.entry(self.id).or_default());
        Ok(())
    }
}

fn line(seq: u64, at: Timestamp, text: String) -> LogRecord {
    LogRecord {
        seq,
        at_nanos: at.0 * 1_000_000,
        stream: guest_protocol::Stream::Platform,
        partial: false,
        dropped: 0,
        line: text.into_bytes(),
    }
}

impl Log for SimLog {
    fn begin_boot(&self, _: Timestamp, _: String) -> BoxFuture<'_, io::Result<()>> {
        async move { self.write(Vec::clear) }.boxed()
    }

    fn note(&self, at: Timestamp, text: String) -> BoxFuture<'_, io::Result<()>> {
        async move {
            self.write(|records| {
                let seq = records.last().map_or(0, |last| last.seq);
                records.push(line(seq, at, text));
            })
        }
        .boxed()
    }

    fn append(&self, _: Timestamp, new: Vec<LogRecord>) -> BoxFuture<'_, io::Result<u64>> {
        async move {
            let mut acknowledged = 0;
            self.write(|records| {
                for record in new {
                    acknowledged = records.last().map_or(0, |last| last.seq);
                    if record.seq > acknowledged {
                        acknowledged = record.seq;
                        records.push(record);
                    }
                }
            })?;
            Ok(acknowledged)
        }
        .boxed()
    }

    fn tail(&self, lines: usize) -> BoxFuture<'_, Vec<String>> {
        async move {
            let state = self.machine.lock();
            let Some(records) = state.logs.get(&self.id) else {
                return Vec::new();
            };
            let last = &records[records.len().saturating_sub(lines)..];
            last.iter()
                .map(|record| String::from_utf8_lossy(&record.line).into_owned())
                .collect()
        }
        .boxed()
    }
}
