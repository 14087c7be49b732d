//! Performs the steps of the boot plan ([`crate::plan`]), each by a few system calls.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest_protocol::{BootConfig, SECRETS_DIR, VolumeMount};
use model::instance::SecretBundle;
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::adapter::{Adapter, AdapterError};
use crate::app::App;
use crate::etc;
use crate::forward::Forward;
use crate::modules;
use crate::netlink::{self, NetworkError};
use crate::plan::{APP_CGROUP, Access, LOWER, Mount, NEW_ROOT, SCRATCH, Step};
use crate::progress::Progress;
use crate::run_dir;
use crate::spawn::StartError;
use crate::user::{self, User, UserError};
use crate::volume;

/// How long a disk may take to appear after its driver was loaded.
const DEVICE_WAIT: Duration = Duration::from_secs(10);
/// Pause between two checks for a disk.
const DEVICE_PAUSE: Duration = Duration::from_millis(2);
/// Largest `/etc/passwd`, `/etc/group` or `/etc/hosts` that is read, in bytes; the rest is ignored.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;
/// Links followed from `/etc/resolv.conf` before it is replaced by a file.
const MAX_LINKS: usize = 8;

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    /// The disk did not appear.
    #[error("no device {device} after {} s: is the disk attached?", DEVICE_WAIT.as_secs())]
    NoDevice {
        /// Its path.
        device: String,
    },
    /// The kernel refuses a mount.
    #[error("mount {from} on {target}: {source}{hint}")]
    Mount {
        /// Device or file system.
        from: String,
        /// The mount point.
        target: String,
        /// Why.
        source: io::Error,
        /// The likely cause.
        hint: &'static str,
    },
    /// A file or directory operation.
    #[error("{what} {path}: {source}")]
    File {
        /// The operation.
        what: &'static str,
        /// The file.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// What the image has at a volume's path is larger than the volume.
    #[error(
        "copy what the image has at {path}: it does not fit; give the volume a larger `size` (`platform volumes delete` removes the one there is)"
    )]
    VolumeTooSmall {
        /// The volume's path.
        path: String,
    },
    /// A name that would leave its directory.
    #[error("{0:?} is not a file name")]
    Name(String),
    /// A step needs the user before the step that resolves it.
    #[error("the user is not resolved yet")]
    NoUser,
    /// The user.
    #[error(transparent)]
    User(#[from] UserError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The PROXY adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The app.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Whether an error is that of the path itself, in the image as it is.
fn is_of_the_path(error: io::ErrorKind) -> bool {
    matches!(
        error,
        io::ErrorKind::AlreadyExists
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::InvalidFilename
    )
}

impl StepError {
    /// The exit code of a command that could not be started.
    pub(crate) fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Start(error) => error.exit_code(),
            // The image's users and the volume's size will be the same another time.
            Self::User(_) | Self::VolumeTooSmall { .. } => Some(126),
            // So will what its paths lead to: a `VOLUME` or a `WORKDIR` that is a file.
            Self::File { source, .. } if is_of_the_path(source.kind()) => Some(126),
            _ => None,
        }
    }
}

fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StepError {
    let path = path.display().to_string();
    move |source| StepError::File { what, path, source }
}

/// The results of the steps so far.
#[derive(Default)]
pub(crate) struct Booted {
    /// The user that the app runs as.
    pub(crate) user: Option<User>,
    /// The kernel modules of the initramfs, on their way to the new root.
    modules: Option<OwnedFd>,
    /// Mounted volumes, which are unmounted at the end.
    pub(crate) volumes: Vec<String>,
    /// Warnings for the instance's log.
    pub(crate) notes: Vec<String>,
    /// The PROXY adapter and its output, where the instance has one.
    pub(crate) adapter: Option<(Adapter, OwnedFd)>,
    /// The forwarder and its output, where the kernel can have one.
    pub(crate) forward: Option<(Forward, OwnedFd)>,
    /// The app.
    pub(crate) app: Option<App>,
}

/// Performs one step.
///
/// # Errors
/// The step failed; the boot ends.
pub(crate) fn perform(
    step: &Step,
    config: &BootConfig,
    booted: &mut Booted,
    progress: &mut Progress<'_>,
) -> Result<(), StepError> {
    match step {
        Step::MountDisk(disk) => mount_disk(disk),
        Step::MountOverlay => mount_overlay(),
        Step::SwitchRoot => {
            booted.modules = modules::keep().map_err(file("keep", Path::new("/modules")))?;
            switch_root()
        }
        Step::Mount(filesystem) => mount(filesystem),
        Step::MountRun => run_dir::mount().map_err(|source| StepError::File {
            what: "mount",
            path: "/run".to_owned(),
            source,
        }),
        Step::DeviceLinks => device_links(),
        Step::Modules => modules::offer(booted.modules.take().as_ref())
            .map_err(file("prepare", Path::new("/dev"))),
        Step::Setting { name, value } => {
            let path = Path::new("/proc/sys").join(name);
            fs::write(&path, value).map_err(file("write", &path))
        }
        Step::Hostname(name) => set_hostname(name),
        Step::Hosts(network, name) => {
            let existing = read_bounded("/etc/hosts")?;
            write_etc(
                "/etc/hosts",
                &etc::hosts(&existing, name, network.address, network.ipv4),
            )
        }
        Step::Resolvers(network) => write_etc(
            "/etc/resolv.conf",
            etc::resolv_conf(&network.resolvers, &network.search).as_bytes(),
        ),
        Step::Network(network) => Ok(netlink::configure(network)?),
        Step::ResolveUser(text) => {
            booted.user = Some(resolve_user(text)?);
            Ok(())
        }
        Step::Secrets(bundles) => {
            let user = booted.user.as_ref().ok_or(StepError::NoUser)?;
            write_secrets(bundles, &config.secret_modes, user)
        }
        Step::MountVolume(volume, disk) => mount_volume(volume, disk, booted, progress),
        Step::Directory { path, .. } => make_directory(Path::new(path)),
        Step::Cgroup => make_cgroup(),
        Step::Forward(..) => {
            match Forward::prepare(config, Instant::now()) {
                Ok(forward) => booted.forward = Some(forward),
                Err((what, error)) => booted.notes.push(format!(
                    "an app that listens on IPv4 only is not reached here: {what}: {error}"
                )),
            }
            Ok(())
        }
        Step::StartAdapter(..) => {
            booted.adapter = Some(Adapter::start(config, Instant::now())?);
            Ok(())
        }
        Step::StartApp => {
            let user = booted.user.as_ref().ok_or(StepError::NoUser)?;
            booted.app = Some(App::start(config, user)?);
            Ok(())
        }
    }
}

fn make_directory(path: &Path) -> Result<(), StepError> {
    fs::create_dir_all(path).map_err(file("make directory", path))
}

fn mount(mount: &Mount) -> Result<(), StepError> {
    let flags = match mount.access {
        Access::Plain => MountFlags::empty(),
        Access::ReadOnly => MountFlags::RDONLY,
        Access::NoDevices => MountFlags::NODEV,
        Access::NoSetuid => MountFlags::NOSUID,
        Access::Data => MountFlags::NOSUID | MountFlags::NODEV,
        Access::NoPrograms => MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
    };
    let options = std::ffi::CString::new(mount.options).unwrap_or_default();
    let attempt = || {
        rustix::mount::mount(
            mount.source.as_str(),
            mount.target.as_str(),
            mount.filesystem,
            flags,
            Some(options.as_c_str()),
        )
    };
    let mounted = match attempt() {
        // Most images have the directory already.
        Err(Errno::NOENT) => {
            make_directory(Path::new(&mount.target))?;
            attempt()
        }
        other => other,
    };
    mounted.map_err(|error| StepError::Mount {
        from: mount.source.clone(),
        target: mount.target.clone(),
        hint: mount_hint(error),
        source: error.into(),
    })
}

fn mount_hint(error: Errno) -> &'static str {
    match error {
        Errno::INVAL => " (is it an intact ext4 file system?)",
        Errno::NODEV => " (the kernel does not have this file system)",
        Errno::UCLEAN => " (damaged: run e2fsck on it)",
        _ => "",
    }
}

fn mount_disk(disk: &Mount) -> Result<(), StepError> {
    let since = Instant::now();
    while !Path::new(&disk.source).exists() {
        if since.elapsed() > DEVICE_WAIT {
            return Err(StepError::NoDevice {
                device: disk.source.clone(),
            });
        }
        std::thread::sleep(DEVICE_PAUSE);
    }
    mount(disk)
}

fn mount_overlay() -> Result<(), StepError> {
    let upper = Path::new(SCRATCH).join("upper");
    make_directory(&upper)?;
    make_directory(&Path::new(SCRATCH).join("work"))?;
    make_directory(Path::new(NEW_ROOT))?;
    // The overlay's root has the owner and mode of its upper directory: make them the image's.
    let metadata = |path: &Path| fs::metadata(path).map_err(file("stat", path));
    let (lower, made) = (metadata(Path::new(LOWER))?, metadata(&upper)?);
    if (lower.uid(), lower.gid()) != (made.uid(), made.gid()) {
        change_owner(&upper, lower.uid(), lower.gid())?;
    }
    if lower.mode() != made.mode() {
        fs::set_permissions(&upper, lower.permissions())
            .map_err(file("set the mode of", &upper))?;
    }
    let options =
        format!("lowerdir={LOWER},upperdir={SCRATCH}/upper,workdir={SCRATCH}/work,redirect_dir=on");
    let options = std::ffi::CString::new(options).unwrap_or_default();
    rustix::mount::mount(
        "overlay",
        NEW_ROOT,
        "overlay",
        MountFlags::empty(),
        Some(options.as_c_str()),
    )
    .map_err(|error| StepError::Mount {
        from: "overlay".to_owned(),
        target: NEW_ROOT.to_owned(),
        hint: mount_hint(error),
        source: error.into(),
    })
}

fn switch_root() -> Result<(), StepError> {
    let step = |what, path: &str| {
        let path = path.to_owned();
        move |error: Errno| StepError::File {
            what,
            path,
            source: error.into(),
        }
    };
    // The overlay keeps its layers mounted by itself.
    for path in ["/dev", LOWER, SCRATCH] {
        rustix::mount::unmount(path, UnmountFlags::DETACH).map_err(step("unmount", path))?;
    }
    // The old root is in memory: remove everything in it.
    let removals = [
        ("/init", fs::remove_file("/init")),
        ("/modules", fs::remove_dir_all("/modules")),
        ("/dev", fs::remove_dir_all("/dev")),
        (LOWER, fs::remove_dir(LOWER)),
        (SCRATCH, fs::remove_dir(SCRATCH)),
    ];
    for (path, removed) in removals {
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(file("remove", Path::new(path))(error));
            }
            _ => {}
        }
    }
    rustix::process::chdir(NEW_ROOT).map_err(step("enter", NEW_ROOT))?;
    rustix::mount::mount_move(".", "/").map_err(step("move to /", NEW_ROOT))?;
    rustix::process::chroot(".").map_err(step("chroot to", NEW_ROOT))?;
    rustix::process::chdir("/").map_err(step("enter", "/"))
}

fn device_links() -> Result<(), StepError> {
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        let path = Path::new("/dev").join(name);
        match std::os::unix::fs::symlink(target, &path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(file("link", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn set_hostname(name: &str) -> Result<(), StepError> {
    rustix::system::sethostname(name.as_bytes()).map_err(|error| StepError::File {
        what: "set",
        path: format!("hostname {name}"),
        source: error.into(),
    })?;
    write_etc("/etc/hostname", format!("{name}\n").as_bytes())
}

/// The first [`MAX_FILE_BYTES`] of a file; empty when there is no such file.
fn read_bounded(path: &str) -> Result<Vec<u8>, StepError> {
    let path = Path::new(path);
    let mut bytes = Vec::new();
    match fs::File::open(path) {
        Ok(open) => open
            .take(MAX_FILE_BYTES)
            .read_to_end(&mut bytes)
            .map_err(file("read", path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(file("read", path)(error)),
    };
    Ok(bytes)
}

/// Writes a file in `/etc`. A link stays a link: its target is written, and made with its
/// directory when it does not exist. A link whose target cannot be written is replaced by a file.
fn write_etc(path: &str, content: &[u8]) -> Result<(), StepError> {
    let path = Path::new(path);
    if fs::write(path, content).is_ok() {
        return Ok(());
    }
    make_directory(Path::new("/etc"))?;
    if fs::write(path, content).is_ok() {
        return Ok(());
    }
    if let Some(parent) = link_target(path).as_deref().and_then(Path::parent)
        && fs::create_dir_all(parent).is_ok()
        && fs::write(path, content).is_ok()
    {
        return Ok(());
    }
    fs::remove_file(path).map_err(file("replace", path))?;
    fs::write(path, content).map_err(file("write", path))
}

/// The target of a link, through other links. `None`: more than [`MAX_LINKS`].
fn link_target(path: &Path) -> Option<PathBuf> {
    let mut path = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
            Err(_) => return Some(path),
        }
    }
    None
}

fn change_owner(path: &Path, uid: u32, gid: u32) -> Result<(), StepError> {
    rustix::fs::chown(path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .map_err(|error| file("change the owner of", path)(error.into()))
}

/// Mode of a secret's file where the manifest has none: the app owns the VM, and may become any user in it.
const SECRET_MODE: u32 = 0o444;

fn write_secrets(
    bundles: &[SecretBundle],
    modes: &BTreeMap<String, u32>,
    user: &User,
) -> Result<(), StepError> {
    mount(&Mount {
        what: "secrets".to_owned(),
        source: "tmpfs".to_owned(),
        target: SECRETS_DIR.to_owned(),
        filesystem: "tmpfs",
        access: Access::NoPrograms,
        options: "mode=755,size=16m",
    })?;
    for bundle in bundles {
        let mode = modes.get(&bundle.name).copied().unwrap_or(SECRET_MODE);
        let directory = Path::new(SECRETS_DIR).join(file_name(&bundle.name)?);
        fs::create_dir(&directory).map_err(file("make directory", &directory))?;
        for (name, content) in &bundle.files {
            let path = directory.join(file_name(name)?);
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o400)
                .open(&path)
                .and_then(|mut open| open.write_all(content))
                .map_err(file("write", &path))?;
            change_owner(&path, user.uid, user.gid)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                .map_err(file("set the mode of", &path))?;
        }
        change_owner(&directory, user.uid, user.gid)?;
        // Who may read a file may enter its directory.
        let readable = (mode & 0o444) | 0o400;
        let mode = readable | readable >> 2;
        fs::set_permissions(&directory, fs::Permissions::from_mode(mode))
            .map_err(file("set the mode of", &directory))?;
    }
    Ok(())
}

fn file_name(name: &str) -> Result<&str, StepError> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(StepError::Name(name.to_owned()));
    }
    Ok(name)
}

/// A warning about a volume in whose file system the kernel has found damage, now or at an earlier boot: a
/// replayed journal does not repair it, and nothing else reports it.
fn volume_damage(volume: &VolumeMount) -> Option<String> {
    let device = volume.device.rsplit('/').next()?;
    let count = fs::read_to_string(format!("/sys/fs/ext4/{device}/errors_count")).ok()?;
    let count = count.trim();
    (count != "0").then(|| {
        format!(
            "volume {}: its file system is damaged ({count} errors found so far): stop this instance and \
             run e2fsck on the volume's file on its node",
            volume.name
        )
    })
}

/// Mounts a volume at its places.
fn mount_volume(
    volume: &VolumeMount,
    disk: &Mount,
    booted: &mut Booted,
    progress: &mut Progress<'_>,
) -> Result<(), StepError> {
    let user = booted.user.as_ref().ok_or(StepError::NoUser)?;
    let owner = match &volume.owner {
        Some(owner) => Some(resolve_user(owner)?),
        None => None,
    };
    let top = Path::new(&disk.target);
    let mount_point = fs::metadata(top).ok().filter(fs::Metadata::is_dir);
    mount_disk(disk)?;
    booted.volumes.push(disk.target.clone());
    booted.notes.extend(volume_damage(volume));
    let prepared = volume::prepare(
        top,
        volume,
        mount_point.as_ref(),
        owner.as_ref(),
        user,
        Instant::now,
        &mut |entries, bytes| progress.add(entries, bytes),
    );
    let notes = prepared.map_err(|(what, path, error)| match error.kind() {
        io::ErrorKind::StorageFull if what == volume::COPY => StepError::VolumeTooSmall {
            path: path.display().to_string(),
        },
        _ => file(what, &path)(error),
    })?;
    booted.notes.extend(notes);
    let Some(path) = &volume.path else {
        return Ok(());
    };
    make_directory(Path::new(path))?;
    rustix::mount::mount_bind(top, path.as_str()).map_err(|error| StepError::Mount {
        from: disk.target.clone(),
        target: path.clone(),
        hint: mount_hint(error),
        source: error.into(),
    })?;
    booted.volumes.push(path.clone());
    Ok(())
}

/// Resolves `user[:group]` by the image's files.
fn resolve_user(text: &str) -> Result<User, StepError> {
    let (passwd, group) = (read_bounded("/etc/passwd")?, read_bounded("/etc/group")?);
    Ok(user::resolve(text, &passwd, &group)?)
}

fn make_cgroup() -> Result<(), StepError> {
    let control = Path::new("/sys/fs/cgroup/cgroup.subtree_control");
    // Without the memory controller an out-of-memory kill could not be told from another.
    fs::write(control, "+memory").map_err(file("write +memory to", control))?;
    for optional in ["+pids", "+cpu"] {
        // For stats only.
        let _ = fs::write(control, optional);
    }
    make_directory(Path::new(APP_CGROUP))
}
