//! A node from its options: finds what the machine has, joins the cluster, and runs the agent on the
//! real host.

// ring: the crate's root has the public options and errors, and starts the node by them.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::metrics::Readiness;
use api::enrollment::{EnrollRole, Hardware, Member};
use api::member::OverlayReport;
use api::node::DriverChoice;
use guest_protocol::RESOLVER;
use membership::{Applicant, Membership, OverlayState};
use microvm::{Choice, GuestKernel, Vm};
use model::NodeId;
use node_core::boot::NodeFacts;
use node_core::instance::Timing;
use node_network::{Network, NetworkSettings, Suffix};
use overlay_member::{OverlayMember, suffix};
use registry::{Credentials, Registry, RegistryOptions};
use resolver::agent::{Resolver, ResolverOptions};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::adapters::{HostDisks, HostFiles, HostLogs, MicroVms, NodeNetwork};
use crate::agent::{self, AgentSettings};
use crate::clock::Clock;
use crate::directory::Directory;
use crate::ended_logs::EndedLogs;
use crate::host::{Files as _, Host};
use crate::images::ImageCache;
use crate::logins::ServerLogins;
use crate::machine::instances_dir;
use crate::metrics::NodeMetrics;
use crate::names::{NodeNames, follow_directory, keep_resolver};
use crate::node_disk::DiskMeter;
use crate::overlay_link::NodeAttachment;
use crate::owner::Owner;
use crate::record::DESIRED_FILE;
use crate::volumes::Volumes;
use crate::{DownOptions, NodeError, NodeOptions, hardware, open_files, private, streams};
use blocking_work::blocking;
use display::{Repeated, chain};

/// How long a removed part of the network may be missing: less than any health check takes to fail three times.
const MEND_INTERVAL: Duration = Duration::from_secs(2);

/// Runs the agent until `shutdown`.
pub(crate) async fn run(
    options: NodeOptions,
    shutdown: CancellationToken,
) -> Result<(), NodeError> {
    private::enter();
    let _lock = lock(&options.data_dir).await?;
    let (metrics, readiness) = (NodeMetrics::default(), Readiness::default());
    let first_report = readiness.waits_for("the server to take its first report");
    let mut told = ::metrics::registry("node", env!("CARGO_PKG_VERSION"));
    metrics.register(&mut told);
    let _told = ::metrics::start(options.metrics_listen, told, readiness).await?;
    open_files::raise();
    close_folders(&options).await?;
    let Found {
        kernel,
        choice,
        hardware,
    } = find(&options).await?;
    let membership = load_or_join(&options, &hardware).await?;
    let node = node_id(&membership)?;
    let client = membership.client().map_err(NodeError::Client)?;
    let owner = Owner {
        cluster: membership.cluster.clone(),
        node,
    };
    let run_dir = options.run_dir.clone();
    let claimed = blocking(move || {
        owner.claim(&run_dir, microvm::has_processes)?;
        microvm::recover_records(&run_dir).map_err(|source| NodeError::Folder {
            path: run_dir,
            source,
        })
    });
    claimed.await?;
    let overlay = OverlayState::load(&membership, &options.data_dir).await;
    let names = NodeNames::load(membership.cluster_prefix, &options.data_dir).await;
    let network = Network::ensure(&NetworkSettings {
        suffix: suffix(membership.cluster_prefix, node),
        cluster_prefix: membership.cluster_prefix,
        node,
        mtu: overlay.mtu,
    })
    .await?;
    let network = Arc::new(network);
    // Before the agent loads rules: they then have both, and what passed goes on.
    network
        .apply_overlay(&crate::overlay_link::access(&names, node, &overlay))
        .await?;
    network
        .set_private_networks(&overlay.private_networks)
        .await?;
    network.set_told_servers(&overlay.servers).await?;
    let (mtu_sender, mtu) = watch::channel(overlay.mtu);
    let registry = Registry::new(RegistryOptions {
        insecure: options.insecure_registries.clone(),
        mirrors: options.registry_mirrors.clone(),
        credentials: Credentials::Source(Arc::new(ServerLogins(client.clone()))),
        // Whoever may deploy names the registry.
        addresses: registry::Addresses::Checked,
        limits: registry::Limits::default(),
    })
    .map_err(NodeError::Registry)?;
    let (data_dir, budget_bytes) = (options.data_dir.clone(), options.image_cache_bytes);
    let meter = blocking(move || DiskMeter::new(&data_dir, budget_bytes)).await;
    let meter = meter.map_err(|source| NodeError::Disk {
        path: options.data_dir.clone(),
        source,
    })?;
    let (data_dir, budget_bytes) = (options.data_dir.clone(), meter.images_budget());
    let counted = metrics.clone();
    let opened = blocking(move || {
        let images = ImageCache::open(&data_dir, registry, budget_bytes, counted)?;
        Ok((images, Volumes::open(&data_dir)?))
    });
    let (images, volumes) = opened.await.map_err(|source| NodeError::Folder {
        path: options.data_dir.clone(),
        source,
    })?;
    images.look_again().await;
    let directory = Directory::default();
    let instances_dir = instances_dir(&options.data_dir);
    let ended = EndedLogs::in_data_dir(&options.data_dir);
    let host = Host {
        vmm: Arc::new(MicroVms {
            driver: choice.driver,
            kernel,
            run_dir: options.run_dir.clone(),
        }),
        network: Arc::new(NodeNetwork {
            network: Arc::clone(&network),
            names: Arc::clone(&names),
            server: membership.server.clone(),
        }),
        images: Arc::new(images),
        disks: Arc::new(HostDisks::new(instances_dir.clone(), volumes, meter)),
        server: Arc::new(client.clone()),
        files: Arc::new(HostFiles),
        logs: Arc::new(HostLogs {
            instances_dir,
            directory: directory.clone(),
            ended: ended.clone(),
        }),
    };
    let settings = AgentSettings {
        cluster: membership.cluster.clone(),
        node,
        driver: DriverChoice {
            name: choice.driver.name().to_owned(),
            reason: choice.reason,
        },
        hardware,
        facts: NodeFacts {
            region: membership.region.clone(),
            node_name: membership.name.clone(),
            mtu: overlay.mtu,
            resolvers: vec![RESOLVER.into()],
        },
        mtu,
        timing: Timing::default(),
        data_dir: options.data_dir.clone(),
        metrics,
        first_report: Some(first_report),
    };
    let logs = streams::StreamLogs::new(directory.clone(), ended);
    let underlay = membership::underlay(&membership.server, options.underlay).await;
    let report = watch::Sender::new(OverlayReport {
        underlay,
        ..OverlayReport::default()
    });
    let (overlay, state) = watch::channel(overlay);
    let (asked, requests) = watch::channel(None);
    let keeping = membership::keep(
        membership.clone(),
        options.data_dir.clone(),
        client.clone(),
        overlay,
        report.subscribe(),
        asked,
    );
    let member = OverlayMember {
        place: crate::overlay_link::place(network.namespace(), &options.run_dir),
        server: membership.server.clone(),
        underlay: options.underlay,
        attachment: NodeAttachment {
            network: Arc::clone(&network),
            names: Arc::clone(&names),
            node,
            directory: tokio::sync::Mutex::new(names.directory_changes()),
            mtu: mtu_sender,
        },
        client: client.clone(),
        requests,
    };
    let resolver = ResolverOptions {
        namespace: Path::new("/run/netns").join(network.namespace()),
        program: overlay_member::own_program(),
        run_dir: crate::overlay_link::run_dir(&options.run_dir),
    };
    let directory_of_envs = follow_directory(
        Arc::clone(&names),
        membership.cluster.clone(),
        client.clone(),
    );
    let _membership = AbortOnDropHandle::new(tokio::spawn(keeping));
    let _overlay =
        AbortOnDropHandle::new(tokio::spawn(overlay_member::keep(member, state, report)));
    let _directory = AbortOnDropHandle::new(tokio::spawn(directory_of_envs));
    let _resolver = AbortOnDropHandle::new(tokio::spawn(keep_resolver(
        names,
        Arc::clone(&network),
        resolver,
    )));
    let _streams = AbortOnDropHandle::new(tokio::spawn(streams::serve(client, logs)));
    let _network = AbortOnDropHandle::new(tokio::spawn(keep_network(network)));
    tracing::info!(%node, server = membership.server, "the node is up");
    agent::run(settings, host, Clock::start(), directory, shutdown)
        .await
        .map_err(NodeError::Resume)
}

/// What a node needs of its machine, found at each start.
struct Found {
    kernel: GuestKernel,
    choice: Choice,
    hardware: Hardware,
}

async fn find(options: &NodeOptions) -> Result<Found, NodeError> {
    let guest_dir = options.guest_dir.clone();
    let kernel = blocking(move || GuestKernel::in_directory(&guest_dir)).await;
    let kernel = kernel.map_err(NodeError::Guest)?;
    let choice = microvm::choose_driver(&microvm::probe().await, &kernel)?;
    let (driver, memory_bytes) = (choice.driver, options.memory_bytes);
    blocking(move || microvm::check_programs(driver)).await?;
    let hardware = blocking(move || hardware::find(memory_bytes, driver)).await;
    let (data_dir, budget_bytes) = (options.data_dir.clone(), options.image_cache_bytes);
    let measured = blocking(move || DiskMeter::new(&data_dir, budget_bytes)?.measure()).await;
    let measured = measured.map_err(|source| NodeError::Disk {
        path: options.data_dir.clone(),
        source,
    })?;
    // Who approves this machine is shown its disk too.
    let hardware = Hardware {
        disk: Some(measured.disk),
        ..hardware.map_err(NodeError::Hardware)?
    };
    tracing::info!(
        driver = choice.driver.name(),
        reason = choice.reason,
        "chose the VMM driver"
    );
    Ok(Found {
        kernel,
        choice,
        hardware,
    })
}

async fn load_or_join(options: &NodeOptions, hardware: &Hardware) -> Result<Membership, NodeError> {
    let applicant = Applicant {
        role: EnrollRole::Node,
        server: options.server.clone(),
        token: options.token.clone(),
        name: options.name.clone(),
        region: options.region.clone(),
        hardware: hardware.clone(),
        underlay: options.underlay,
    };
    Ok(Membership::load_or_join(&options.data_dir, &applicant).await?)
}

/// Makes this machine a node, if it is not one yet.
pub(crate) async fn join(options: &NodeOptions) -> Result<Membership, NodeError> {
    private::enter();
    let data_dir = options.data_dir.clone();
    // An agent that runs is a node's.
    if let Some(known) = blocking(move || Membership::load(&data_dir))
        .await
        .map_err(NodeError::State)?
    {
        node_id(&known)?;
        return Ok(known);
    }
    let _lock = lock(&options.data_dir).await?;
    close_folders(options).await?;
    let Found { hardware, .. } = find(options).await?;
    let joined = load_or_join(options, &hardware).await?;
    node_id(&joined)?;
    Ok(joined)
}

/// Deletes what says which node this machine was, where nothing of it runs.
pub(crate) async fn leave(data_dir: &Path, run_dir: &Path) -> Result<(), NodeError> {
    private::enter();
    let _lock = lock(data_dir).await?;
    let folder = run_dir.to_owned();
    let has_vms = blocking(move || microvm::has_processes(&folder)).await;
    let has_vms = has_vms.map_err(|source| NodeError::Folder {
        path: run_dir.to_owned(),
        source,
    })?;
    if has_vms {
        return Err(NodeError::Left(
            "what this node ran is not down: `platform node down` ends it".to_owned(),
        ));
    }
    // Before it is not known any more whose network that is: its WireGuard has the port of the next member's.
    end_network(data_dir, run_dir).await;
    membership::leave(data_dir)
        .await
        .map_err(NodeError::State)?;
    // What it ran was started elsewhere, or is given up: the next agent is to start none of it before it has heard what it should run.
    let desired = data_dir.join(DESIRED_FILE);
    let removed = blocking({
        let path = desired.clone();
        move || std::fs::remove_file(path)
    });
    match removed.await {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(NodeError::Folder {
            path: desired,
            source,
        }),
        _ => Ok(()),
    }
}

/// Removes the network of the node of this data folder, where the run folder is its own. What cannot be removed is named, and keeps its port: then the join says so.
async fn end_network(data_dir: &Path, run_dir: &Path) {
    let folder = data_dir.to_owned();
    // One that is damaged is set aside as it is.
    let Ok(Some(membership)) = blocking(move || Membership::load(&folder)).await else {
        return;
    };
    let Ok(node) = node_id(&membership) else {
        return;
    };
    let cluster = membership.cluster.clone();
    let (folder, owner) = (run_dir.to_owned(), Owner { cluster, node });
    let is_own = blocking(move || Owner::check(&folder, Some(&owner)).is_ok()).await;
    if is_own && let Err(error) = remove_network(&membership, run_dir).await {
        tracing::warn!(
            error = chain(&error),
            "cannot remove the network that this node had"
        );
    }
}

/// Which driver would run VMs here, or what keeps every one from it.
pub(crate) async fn driver(guest_dir: PathBuf) -> Result<DriverChoice, NodeError> {
    let kernel = blocking(move || GuestKernel::in_directory(&guest_dir)).await;
    let choice =
        microvm::choose_driver(&microvm::probe().await, &kernel.map_err(NodeError::Guest)?)?;
    let driver = choice.driver;
    blocking(move || microvm::check_programs(driver)).await?;
    Ok(choice.into())
}

/// Closes the node's folders to the machine's other users, and says what was open.
async fn close_folders(options: &NodeOptions) -> Result<(), NodeError> {
    for (path, all) in [(&options.data_dir, true), (&options.run_dir, false)] {
        let folder = path.clone();
        let closed = blocking(move || {
            if all {
                private::close_all(&folder)
            } else {
                private::close_folders(&folder)
            }
        });
        let opened = closed.await.map_err(|source| NodeError::Folder {
            path: path.clone(),
            source,
        })?;
        if opened != private::Opened::default() {
            tracing::warn!(
                path = %path.display(),
                folders = opened.folders,
                files = opened.files,
                "closed what other users of this machine could read"
            );
        }
    }
    Ok(())
}

/// One agent per data folder.
async fn lock(data_dir: &Path) -> Result<File, NodeError> {
    let data_dir = data_dir.to_owned();
    blocking(move || lock_folder(&data_dir)).await
}

/// Blocks.
fn lock_folder(data_dir: &Path) -> Result<File, NodeError> {
    let folder = |source| NodeError::Folder {
        path: data_dir.to_owned(),
        source,
    };
    std::fs::create_dir_all(data_dir).map_err(folder)?;
    let file = File::create(data_dir.join("agent.lock")).map_err(folder)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(NodeError::Busy(data_dir.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(folder(source)),
    }
}

fn node_id(membership: &Membership) -> Result<NodeId, NodeError> {
    match membership.member {
        Member::Node(id) => Ok(id),
        Member::Edge(_) => Err(NodeError::NotANode(membership.member)),
    }
}

/// Mends the network soon after somebody removed a part of it: a health check that fails for want of it would end its instance.
async fn keep_network(network: Arc<Network>) {
    let mut refused = Repeated::default();
    loop {
        tokio::time::sleep(MEND_INTERVAL).await;
        if let Err(error) = network.mend().await {
            let error = chain(&error);
            if refused.is_due(tokio::time::Instant::now(), &error) {
                tracing::warn!(error, "cannot mend the workload network; trying again");
            }
        }
    }
}

/// Stops every microVM of the node with these folders, and removes its network.
pub(crate) async fn down(options: &DownOptions) -> Result<(), NodeError> {
    private::enter();
    let _lock = lock(&options.data_dir).await?;
    let data_dir = options.data_dir.clone();
    let membership = blocking(move || Membership::load(&data_dir)).await;
    let membership = membership.map_err(NodeError::State)?;
    let member = match &membership {
        Some(membership) => Some(Owner {
            cluster: membership.cluster.clone(),
            node: node_id(membership)?,
        }),
        None => None,
    };
    // Another node's VMs are not ours to end.
    let run_dir = options.run_dir.clone();
    blocking(move || Owner::check(&run_dir, member.as_ref())).await?;
    if let Some(membership) = &membership {
        remove_network(membership, &options.run_dir).await?;
    }
    end_vms(&options.run_dir).await?;
    let instances = instances_dir(&options.data_dir);
    let removed = HostFiles.remove_folder(&instances).await;
    removed.map_err(|source| NodeError::Folder {
        path: instances,
        source,
    })
}

/// Removes the node's network from the machine, and what serves it. Its VMs lose it at once, and end afterwards.
async fn remove_network(membership: &Membership, run_dir: &Path) -> Result<(), NodeError> {
    let suffix = suffix(membership.cluster_prefix, node_id(membership)?);
    Resolver::remove(&crate::overlay_link::run_dir(run_dir)).await?;
    let namespace = Suffix::new(&suffix)?.namespace();
    overlay_member::remove(&crate::overlay_link::place(&namespace, run_dir)).await?;
    Ok(Network::remove(&suffix).await?)
}

/// Ends every VM of a run folder, those without a record too, and empties the folder.
async fn end_vms(run_dir: &Path) -> Result<(), NodeError> {
    let folder = |source| NodeError::Folder {
        path: run_dir.to_owned(),
        source,
    };
    let dir = run_dir.to_owned();
    let listed = blocking(move || folders_of_vms(&dir)).await;
    for path in listed.map_err(folder)? {
        match Vm::adopt(&path).await {
            Ok(Some(vm)) => {
                vm.kill().await;
            }
            Ok(None) => {}
            // Its processes are found without it.
            Err(error) => tracing::warn!(error = chain(&error), "ending a VM without its record"),
        }
    }
    let left = microvm::end_leftovers(run_dir).await;
    let left = left.map_err(|error| NodeError::Left(error.to_string()))?;
    if !left.is_empty() {
        tracing::warn!(processes = ?left, "ended processes of VMs that no record named");
    }
    let dir = run_dir.to_owned();
    blocking(move || remove_content(&dir)).await.map_err(folder)
}

/// Removes what is in a folder. No error when there is none. Blocks.
fn remove_content(folder: &Path) -> io::Result<()> {
    for path in entries(folder)? {
        if path.is_dir() {
            std::fs::remove_dir_all(&path)?;
        } else {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// The run directories of all VMs; none when there is no folder for them. Blocks.
fn folders_of_vms(run_dir: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(entries(run_dir)?
        .into_iter()
        .filter(|path| path.is_dir())
        .collect())
}

/// What is in a folder; nothing when there is none. Blocks.
fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
