//! Work inside a named network namespace, on a thread that ends with it: a thread that has moved
//! never serves anything else, and the runtime's workers never move.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blocking_work::blocking;
use rustix::mount::UnmountFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use crate::NetworkError;

/// Where `ip netns` keeps names.
const NAMES_DIR: &str = "/run/netns";
/// File system magic of a namespace (linux/magic.h, `NSFS_MAGIC`).
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// The file that stands for the namespace.
pub(crate) fn path_of(name: &str) -> PathBuf {
    PathBuf::from(NAMES_DIR).join(name)
}

/// Whether the name leads to a namespace. A crash can leave a name that leads nowhere.
pub(crate) enum Named {
    /// No such name.
    Absent,
    /// A file of that name, without a namespace behind it.
    Stale,
    /// A namespace.
    Present,
}

pub(crate) async fn look_up(name: &str) -> Result<Named, NetworkError> {
    let wrong = |source: io::Error| NetworkError::Namespace {
        name: name.to_owned(),
        source,
    };
    let path = path_of(name);
    match blocking(move || rustix::fs::statfs(path)).await {
        Ok(stat) if u64::try_from(stat.f_type).ok() == Some(NSFS_MAGIC) => Ok(Named::Present),
        Ok(_) => Ok(Named::Stale),
        Err(rustix::io::Errno::NOENT) => Ok(Named::Absent),
        Err(errno) => Err(wrong(errno.into())),
    }
}

pub(crate) async fn remove_stale_name(name: &str) -> Result<(), NetworkError> {
    let removed = tokio::fs::remove_file(path_of(name)).await;
    removed.map_err(|source| NetworkError::Namespace {
        name: name.to_owned(),
        source,
    })
}

/// The namespace that a name leads to, which lives from now on whatever becomes of the name.
pub(crate) async fn open(name: &str) -> Result<File, NetworkError> {
    let path = path_of(name);
    let opened = blocking(move || File::open(path)).await;
    opened.map_err(|source| NetworkError::Namespace {
        name: name.to_owned(),
        source,
    })
}

/// Whether the name leads to this namespace.
pub(crate) async fn is_name_of(name: &str, namespace: &Arc<File>) -> Result<bool, NetworkError> {
    let (path, namespace) = (path_of(name), namespace.clone());
    let same = blocking(move || same_inode(&path, &namespace)).await;
    same.map_err(|source| NetworkError::Namespace {
        name: name.to_owned(),
        source,
    })
}

/// Blocks.
fn same_inode(path: &Path, namespace: &File) -> io::Result<bool> {
    let ours = namespace.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives a name to a namespace, in place of whatever has it.
pub(crate) async fn give_name(name: &str, namespace: Arc<File>) -> Result<(), NetworkError> {
    let path = path_of(name);
    let given = blocking(move || mount_name(&path, &namespace)).await;
    given.map_err(|source| NetworkError::Namespace {
        name: name.to_owned(),
        source,
    })
}

/// Blocks.
fn mount_name(path: &Path, namespace: &File) -> io::Result<()> {
    make_names_dir()?;
    // Another namespace, and others below: each was mounted over the one before.
    while rustix::mount::unmount(path, UnmountFlags::DETACH).is_ok() {}
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::create(path)?;
    let namespace = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    rustix::mount::mount_bind(namespace, path)?;
    Ok(())
}

/// Makes the folder of names as `ip netns` does, readable by everybody, whatever the umask. Blocks.
pub(crate) fn make_names_dir() -> io::Result<()> {
    match fs::create_dir(NAMES_DIR) {
        Ok(()) => fs::set_permissions(NAMES_DIR, fs::Permissions::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether there is a link in the calling thread's namespace.
pub(crate) fn has_link(name: &str) -> bool {
    use rustix::net::{AddressFamily, SocketType, netdevice::name_to_index, socket};
    socket(AddressFamily::INET6, SocketType::DGRAM, None)
        .is_ok_and(|socket| name_to_index(socket, name).is_ok())
}

/// Runs `work` inside the namespace, on a thread of its own.
pub(crate) async fn within<T, W>(name: &str, work: W) -> Result<T, NetworkError>
where
    T: Send + 'static,
    W: FnOnce() -> Result<T, NetworkError> + Send + 'static,
{
    let wrong = {
        let name = name.to_owned();
        move |source: io::Error| NetworkError::Namespace {
            name: name.clone(),
            source,
        }
    };
    let (answer, answered) = tokio::sync::oneshot::channel();
    let path = path_of(name);
    let enter_wrong = wrong.clone();
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            let result = File::open(path)
                .and_then(|file| {
                    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
                    Ok(())
                })
                .map_err(enter_wrong)
                .and_then(|()| work());
            // The caller may have been cancelled; the work is done either way.
            let _ = answer.send(result);
        })
        .map_err(&wrong)?;
    answered
        .await
        .map_err(|_| wrong(io::Error::other("the thread ended early")))?
}

/// Writes kernel settings below `/proc/sys`; they are of the calling thread's network namespace. Blocks.
pub(crate) fn write_settings(settings: &[(String, &str)]) -> Result<(), NetworkError> {
    for (setting, value) in settings {
        fs::write(format!("/proc/sys/{setting}"), value).map_err(|source| {
            NetworkError::Setting {
                hint: if source.kind() == io::ErrorKind::NotFound {
                    "the kernel has no IPv6, or it is off by `ipv6.disable=1`"
                } else {
                    "run the node as root, with /proc/sys writable"
                },
                setting: setting.clone(),
                source,
            }
        })?;
    }
    Ok(())
}
