//! Kernel modules that are loaded when something asks for them, where the kernel has modules: netfilter, tun, fuse.
//!
//! The kernel asks by executing the program named in `/proc/sys/kernel/modprobe` with a name or an alias: `nft`
//! opens a netlink socket, and the kernel asks for `net-pf-16-proto-12`. Programs such as `iptables` execute it
//! too. It is this program under the name [`MODPROBE`], beside the modules of the initramfs. Images need no modules and no `modprobe`
//! of their own.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, mount_remount, move_mount, open_tree,
};

/// The modules in the initramfs, and their [`ALIASES`].
const DEMANDED: &str = "/modules/demand";
/// Where they are while the rest of the initramfs is removed.
const KEPT: &str = "/demand";
/// Where they are in the app's root.
const PLACE: &str = "/dev/.platform";
/// The program that loads them.
pub(crate) const MODPROBE: &str = "/dev/.platform/modprobe";
/// In their directory, by line: a name or an alias, and the files to load for it, in order.
const ALIASES: &str = "aliases";
/// The kernel's name of the program.
const SETTING: &str = "/proc/sys/kernel/modprobe";
/// Devices that programs look for before anything has asked for their module: path and minor number of the major
/// number 10. All users may open them, as on other machines.
const DEVICES: [(&str, u32); 2] = [("/dev/net/tun", 200), ("/dev/fuse", 229)];
/// The major number of miscellaneous devices.
const MISC_MAJOR: u32 = 10;

/// Takes the modules out of the initramfs before it is removed. `None`: there are none.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn keep() -> io::Result<Option<OwnedFd>> {
    match fs::rename(DEMANDED, KEPT) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result?,
    }
    fs::hard_link("/init", Path::new(KEPT).join("modprobe"))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(Some(open_tree(CWD, KEPT, flags)?))
}

/// Makes the devices, and the modules available where there are some.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn offer(modules: Option<&OwnedFd>) -> io::Result<()> {
    if let Some(modules) = modules {
        fs::create_dir(PLACE)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(modules, "", CWD, PLACE, flags)?;
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        mount_remount(PLACE, flags, "")?;
        fs::write(SETTING, MODPROBE)?;
    }
    let mode = Mode::from_raw_mode(0o666);
    for (path, minor) in DEVICES {
        if let Some(parent) = Path::new(path).parent() {
            fs::create_dir_all(parent)?;
        }
        match mknodat(
            CWD,
            path,
            FileType::CharacterDevice,
            mode,
            makedev(MISC_MAJOR, minor),
        ) {
            // The kernel made it, for itself alone; or the umask took a part of the mode.
            Ok(()) | Err(Errno::EXIST) => rustix::fs::chmod(path, mode)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// As `modprobe`: loads the modules of the names and aliases in these arguments. False: one is unknown or does not load.
pub(crate) fn modprobe(arguments: impl Iterator<Item = String>) -> bool {
    let directory = Path::new(PLACE);
    let Ok(aliases) = fs::read_to_string(directory.join(ALIASES)) else {
        return false;
    };
    let mut done = true;
    for name in arguments.filter(|argument| !argument.starts_with('-')) {
        let files = files(&aliases, &name);
        done &= !files.is_empty()
            && (files.into_iter()).all(|file| load(&directory.join(file)).is_ok());
    }
    done
}

/// The files of a name or an alias. In names, `-` and `_` are the same.
fn files<'a>(aliases: &'a str, name: &str) -> Vec<&'a str> {
    let plain = |name: &str| name.replace('-', "_");
    let wanted = plain(name);
    let mut lines = aliases.lines().map(|line| line.split(' '));
    let found = lines.find_map(|mut words| (plain(words.next()?) == wanted).then_some(words));
    found.map(Iterator::collect).unwrap_or_default()
}

/// Loads a module.
///
/// # Errors
/// It cannot be read, or the kernel refuses it.
pub(crate) fn load(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    match rustix::system::finit_module(&file, c"", 0) {
        // Loaded already.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::files;

    #[test]
    fn a_module_is_found_by_its_name_and_its_aliases() {
        let aliases =
            "nf_tables a.ko nf_tables.ko\nnfnetlink-subsys-10 a.ko nf_tables.ko\ntun tun.ko\n";
        assert_eq!(files(aliases, "nf-tables"), ["a.ko", "nf_tables.ko"]);
        assert_eq!(
            files(aliases, "nfnetlink-subsys-10"),
            ["a.ko", "nf_tables.ko"]
        );
        assert_eq!(files(aliases, "tun"), ["tun.ko"]);
        assert!(files(aliases, "ext3").is_empty() && files("", "tun").is_empty());
    }
}
