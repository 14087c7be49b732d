//! A volume at its places, with its owner.
//!
//! A volume is at `/mnt/volumes/<name>`, and at the manifest's `path` too, where an image keeps its data. What happens
//! to it, in this order:
//! 1. Empty and with a `path`: it gets what the image has there, as other container engines do it. An interrupted copy begins anew,
//!    one that is complete is moved into place, entry by entry: at no time is a part of it taken for the app's data.
//! 2. Empty, and nobody said whose it is: it gets the owner and the mode of the mount point in the image. Without one
//!    in the image, and where the app starts as root and may become another user, all users may write to it.
//! 3. It belongs to whom the manifest's `owner` names, else to the app's user where that is not root. Where it
//!    belonged to another user or group, what belonged to them below it goes with it, and so does what the app wrote there
//!    while it ran as another user (a release as root, say): an attribute of the top tells who that was. The top and its attribute
//!    change last, so that an interrupted change goes on at the next start. Files of others stay theirs, and the log says so.

use std::ffi::OsString;
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest_protocol::VolumeMount;
use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::io::Errno;

use crate::run_dir::{Budget, Done, copy_children};
use crate::user::User;

/// How long a change of owner may take at one start. The node boots a guest again whose app does not start within 60 s.
const OWNER_TIME: Duration = Duration::from_secs(20);
/// Most files and directories that a volume gets from its image, and most bytes of their content.
const MAX_COPIED: (u32, u64) = (200_000, 8 << 30);
/// The operation in errors of a copy of the image's content.
pub(crate) const COPY: &str = "copy to the volume";
/// A copy of the image's content that is not complete.
const FILLING: &str = ".platform-filling";
/// A complete copy, whose entries are being moved to where they belong.
const FILLED: &str = ".platform-filled";
/// The attribute of the top that has the app's user at the last start, `uid:gid`. Users other than root do not see it.
const USER_ATTRIBUTE: &str = "trusted.platform.user";
/// Made by mke2fs, not by the platform.
const LOST_AND_FOUND: &str = "lost+found";
/// Mode of the top for all users: each deletes its own files only.
const FOR_ALL: u32 = 0o1777;

/// What prepares a volume, and why it failed.
pub(crate) type VolumeError = (&'static str, PathBuf, io::Error);

fn at<'p>(what: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> VolumeError + 'p {
    move |error| (what, path.to_owned(), error)
}

/// Prepares a volume that is mounted at `top`, before it is mounted at its `path` too. `mount_point` is the image's directory at
/// `/mnt/volumes/<name>`, `owner` the manifest's, resolved; `done` is told of what is copied and given. Returns lines
/// for the instance's log.
///
/// # Errors
/// What failed, where and why.
pub(crate) fn prepare(
    top: &Path,
    volume: &VolumeMount,
    mount_point: Option<&Metadata>,
    owner: Option<&User>,
    user: &User,
    now: impl Fn() -> Instant,
    done: &mut Done<'_>,
) -> Result<Vec<String>, VolumeError> {
    let mut notes = Vec::new();
    let image = Path::new(volume.path.as_deref().unwrap_or_default());
    let in_image = (volume.path.is_some()).then(|| fs::metadata(image).ok());
    let in_image = in_image.flatten().filter(Metadata::is_dir);
    let fresh = is_empty(top).map_err(at("read", top))?;
    if in_image.is_some() {
        fill(image, top, fresh, done)?;
    }
    if fresh {
        // An empty one is in the way of databases, which want an empty directory.
        let _ = fs::remove_dir(top.join(LOST_AND_FOUND));
        let set = |owner: (u32, u32), mode: u32| {
            lchown(top, Some(owner.0), Some(owner.1)).map_err(at("change the owner of", top))?;
            fs::set_permissions(top, fs::Permissions::from_mode(mode))
                .map_err(at("set the mode of", top))
        };
        match in_image.as_ref().or(mount_point) {
            Some(point) => set((point.uid(), point.gid()), point.mode() & 0o7777)?,
            None if user.uid == 0 && owner.is_none() => set((0, 0), FOR_ALL)?,
            None => {}
        }
    }
    let wanted = owner.or((user.uid != 0).then_some(user));
    let ran_as = (user.uid, user.gid);
    let given = match wanted {
        Some(wanted) => give(top, (wanted.uid, wanted.gid), ran_as, now, done)?,
        None => Given::All { others: 0 },
    };
    let name = &volume.name;
    let to = wanted.map_or(ran_as, |wanted| (wanted.uid, wanted.gid));
    match given {
        Given::NotAll => notes.push(format!(
            "volume {name}: not all of its files could be given to {}:{} within {} s; the next start goes on with it",
            to.0,
            to.1,
            OWNER_TIME.as_secs()
        )),
        Given::All { others } => {
            if others > 0 {
                notes.push(format!(
                    "volume {name}: it belongs to {}:{} now; {others} of its files belong to users that the app never ran as, and stay theirs",
                    to.0, to.1
                ));
            }
            // A volume that is full or read-only does not keep its app from starting.
            if let Err(error) = set_last_user(top, ran_as) {
                notes.push(format!(
                    "volume {name}: it cannot be noted that the app ran as {}:{}: {error}",
                    ran_as.0, ran_as.1
                ));
            }
        }
    }
    Ok(notes)
}

/// The app's user and group at the last start; absent: there was none, or it is not known.
fn last_user(top: &Path) -> Option<(u32, u32)> {
    let mut value = [0; 32];
    let length = getxattr(top, USER_ATTRIBUTE, &mut value).ok()?;
    let (uid, gid) = str::from_utf8(value.get(..length)?).ok()?.split_once(':')?;
    Some((uid.parse().ok()?, gid.parse().ok()?))
}

fn set_last_user(top: &Path, user: (u32, u32)) -> io::Result<()> {
    if last_user(top) == Some(user) {
        return Ok(());
    }
    let value = format!("{}:{}", user.0, user.1);
    match setxattr(top, USER_ATTRIBUTE, value.as_bytes(), XattrFlags::empty()) {
        // A file system without attributes: then only the top's owner tells who was before.
        Err(Errno::NOTSUP) => Ok(()),
        set => Ok(set?),
    }
}

/// Whether nothing was ever put there.
fn is_empty(top: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(top)? {
        let name = entry?.file_name();
        if name != LOST_AND_FOUND && name != FILLING {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Gives an empty volume the image's content, or ends what an interrupted start began.
fn fill(image: &Path, top: &Path, fresh: bool, done: &mut Done<'_>) -> Result<(), VolumeError> {
    let (filling, filled) = (top.join(FILLING), top.join(FILLED));
    if fresh {
        if filling.exists() {
            fs::remove_dir_all(&filling).map_err(at("remove", &filling))?;
        }
        fs::create_dir(&filling).map_err(at("make directory", &filling))?;
        let mut budget = Budget {
            entries: MAX_COPIED.0,
            bytes: MAX_COPIED.1,
            copied: &mut |entries, bytes| done(entries, bytes),
        };
        let whole = copy_children(image, &filling, &mut budget).map_err(at(COPY, image))?;
        if !whole {
            let error = io::Error::other("it has more than 200000 files or 8 GiB");
            return Err(at(COPY, image)(error));
        }
        fs::rename(&filling, &filled).map_err(at("rename", &filling))?;
    }
    if filled.exists() {
        for name in names(&filled).map_err(at("read", &filled))? {
            fs::rename(filled.join(&name), top.join(&name)).map_err(at("rename", &filled))?;
        }
        fs::remove_dir(&filled).map_err(at("remove", &filled))?;
    }
    Ok(())
}

fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name()))
        .collect()
}

/// How a change of owner went.
enum Given {
    /// It is complete, but for so many files of others.
    All { others: u64 },
    /// Time ran out, and the next start goes on.
    NotAll,
}

/// Gives the top to an owner, and what is below it from the top's owner before and from the app's user at the last start, where
/// the app runs as another one now.
fn give(
    top: &Path,
    wanted: (u32, u32),
    ran_as: (u32, u32),
    now: impl Fn() -> Instant,
    done: &mut Done<'_>,
) -> Result<Given, VolumeError> {
    let metadata = fs::metadata(top).map_err(at("stat", top))?;
    let owner = (metadata.uid(), metadata.gid());
    let last = last_user(top).filter(|last| *last != ran_as);
    if owner == wanted && last.is_none_or(|last| last == wanted) {
        return Ok(Given::All { others: 0 });
    }
    let last = last.unwrap_or(owner);
    let until = now() + OWNER_TIME;
    let changed = |id: u32, before: [u32; 2], wanted: u32| {
        (before.contains(&id) && id != wanted).then_some(wanted)
    };
    let mut others = 0;
    // Directories to read; no descriptor is kept open on the way down.
    let mut directories = vec![top.to_path_buf()];
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(&directory).map_err(at("read", &directory))?;
        for entry in entries {
            if now() > until {
                return Ok(Given::NotAll);
            }
            done(1, 0);
            let entry = entry.map_err(at("read", &directory))?;
            let path = entry.path();
            // Of the entry itself, not of where a link leads.
            let of = entry.metadata().map_err(at("stat", &path))?;
            let uid = changed(of.uid(), [owner.0, last.0], wanted.0);
            let gid = changed(of.gid(), [owner.1, last.1], wanted.1);
            others += u64::from(uid.is_none() && of.uid() != wanted.0);
            if uid.is_some() || gid.is_some() {
                lchown(&path, uid, gid).map_err(at("change the owner of", &path))?;
            }
            if is_directory(&entry) {
                directories.push(path);
            }
        }
    }
    lchown(top, Some(wanted.0), Some(wanted.1)).map_err(at("change the owner of", top))?;
    Ok(Given::All { others })
}

fn is_directory(entry: &DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_dir())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::os::unix::fs::symlink;

    use super::*;

    fn user(uid: u32, gid: u32) -> User {
        User {
            uid,
            gid,
            groups: vec![gid],
            home: "/".to_owned(),
        }
    }

    fn volume(path: Option<&Path>) -> VolumeMount {
        VolumeMount {
            device: "/dev/vdc".to_owned(),
            name: "data".to_owned(),
            path: path.map(|path| path.display().to_string()),
            owner: None,
        }
    }

    /// Owner, group and mode.
    fn of(path: &Path) -> (u32, u32, u32) {
        let of = fs::symlink_metadata(path).unwrap();
        (of.uid(), of.gid(), of.mode() & 0o7777)
    }

    /// Whether this process may change owners; where not, the tests are skipped.
    fn is_root() -> bool {
        let root = rustix::process::geteuid().is_root();
        assert!(root || std::env::var_os("PLATFORM_REQUIRE_VM").is_none());
        root
    }

    fn run(top: &Path, volume: &VolumeMount, owner: Option<&User>, user: &User) -> Vec<String> {
        prepare(top, volume, None, owner, user, Instant::now, &mut |_, _| {}).unwrap()
    }

    #[test]
    fn an_empty_volume_gets_the_images_content_owner_and_mode_once() {
        if !is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (image, top) = (directory.path().join("image"), directory.path().join("top"));
        fs::create_dir_all(image.join("d/e")).unwrap();
        fs::create_dir_all(top.join("lost+found")).unwrap();
        fs::write(image.join("d/e/f"), "content").unwrap();
        symlink("d/e/f", image.join("link")).unwrap();
        lchown(image.join("d"), Some(70), Some(71)).unwrap();
        fs::set_permissions(&image, fs::Permissions::from_mode(0o750)).unwrap();
        lchown(&image, Some(33), Some(34)).unwrap();
        // What an interrupted copy left.
        fs::create_dir_all(top.join(FILLING).join("half")).unwrap();
        run(&top, &volume(Some(&image)), None, &user(0, 0));
        assert_eq!(of(&top), (33, 34, 0o750));
        assert_eq!(of(&top.join("d")), (70, 71, 0o755));
        assert_eq!(fs::read_to_string(top.join("link")).unwrap(), "content");
        let mut found = names(&top).unwrap();
        found.sort();
        assert_eq!(found, ["d", "link"]);

        // What the app did with it stays.
        fs::remove_dir_all(top.join("d")).unwrap();
        lchown(&top, Some(0), Some(0)).unwrap();
        run(&top, &volume(Some(&image)), None, &user(0, 0));
        assert!(!top.join("d").exists());
        assert_eq!(of(&top), (0, 0, 0o750));

        // A copy that was complete, and not in its place yet.
        fs::create_dir_all(top.join(FILLED).join("rest")).unwrap();
        run(&top, &volume(Some(&image)), None, &user(0, 0));
        assert!(top.join("rest").exists() && !top.join(FILLED).exists());
    }

    #[test]
    fn all_may_write_where_nobody_says_whose_it_is() {
        if !is_root() {
            return;
        }
        let top = tempfile::tempdir().unwrap();
        let top = top.path();
        run(top, &volume(None), None, &user(0, 0));
        assert_eq!(of(top), (0, 0, 0o1777));
        fs::write(top.join("x"), "").unwrap();
        // The app's own choice stays.
        fs::set_permissions(top, fs::Permissions::from_mode(0o700)).unwrap();
        run(top, &volume(None), None, &user(0, 0));
        assert_eq!(of(top), (0, 0, 0o700));
    }

    #[test]
    fn a_change_of_owner_is_followed_below_the_top_for_what_was_the_old_owners() {
        if !is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path();
        run(top, &volume(None), None, &user(1000, 1000));
        fs::create_dir_all(top.join("d/e")).unwrap();
        fs::write(top.join("d/e/f"), "").unwrap();
        fs::write(top.join("others"), "").unwrap();
        symlink("/etc/passwd", top.join("d/link")).unwrap();
        for path in ["d", "d/e", "d/e/f", "d/link"] {
            lchown(top.join(path), Some(1000), Some(1000)).unwrap();
        }
        lchown(top.join("others"), Some(77), Some(1000)).unwrap();
        let passwd = of(Path::new("/etc/passwd"));
        for (uid, gid) in [(2000, 2000), (2000, 3000), (1000, 1000)] {
            let notes = run(top, &volume(None), None, &user(uid, gid));
            let others = "1 of its files belong to users that the app never ran as";
            assert!(notes.len() == 1 && notes[0].contains(others), "{notes:?}");
            for path in ["", "d", "d/e", "d/e/f", "d/link"] {
                let (owner, group, _) = of(&top.join(path));
                assert_eq!((owner, group), (uid, gid), "{path}");
            }
            let (owner, group, _) = of(&top.join("others"));
            assert_eq!((owner, group), (77, gid));
        }
        // The manifest's owner wins, over root too.
        run(top, &volume(None), Some(&user(5, 6)), &user(0, 0));
        assert_eq!(of(&top.join("d/e/f")).0, 5);
        assert_eq!(of(Path::new("/etc/passwd")), passwd);
    }

    /// Release 1 as a user, release 2 as root, which writes files for itself, release 3 as the user again: the top was the user's
    /// all the time.
    #[test]
    fn case_what_a_release_as_root_left_in_a_volume_goes_to_the_user_of_the_next() {
        if !is_root() {
            return;
        }
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let top = directory.path();
        let (app, root) = (user(1000, 1000), user(0, 0));
        run(top, &volume(None), None, &app);
        run(top, &volume(None), None, &root);
        fs::create_dir(top.join("d")).unwrap();
        fs::write(top.join("d/secret"), "").unwrap();
        fs::set_permissions(top.join("d/secret"), fs::Permissions::from_mode(0o600)).unwrap();
        lchown(top.join("d/secret"), Some(0), Some(0)).unwrap();
        fs::write(top.join("others"), "").unwrap();
        lchown(top.join("others"), Some(77), Some(77)).unwrap();
        // As root again: nothing is anybody else's.
        assert!(run(top, &volume(None), None, &root).is_empty());
        assert_eq!(of(&top.join("d/secret")), (0, 0, 0o600));
        let notes = run(top, &volume(None), None, &app);
        assert_eq!(of(&top.join("d")).0, 1000);
        assert_eq!(of(&top.join("d/secret")), (1000, 1000, 0o600));
        assert_eq!(of(&top.join("others")).0, 77);
        assert!(
            notes[0].contains("1 of its files belong to users"),
            "{notes:?}"
        );
        // Once is enough.
        assert!(run(top, &volume(None), None, &app).is_empty());
    }

    #[test]
    fn case_the_node_hears_of_a_long_copy_while_it_goes_on() {
        if !is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (image, top) = (directory.path().join("image"), directory.path().join("top"));
        fs::create_dir_all(image.join("d")).unwrap();
        fs::create_dir(&top).unwrap();
        // One file in several pieces, and a small one.
        let large = fs::File::create(image.join("d/large")).unwrap();
        large.set_len(10 << 20).unwrap();
        fs::write(image.join("small"), "12345").unwrap();
        let mut heard = Vec::new();
        let mut done = |entries, bytes| heard.push((entries, bytes));
        let volume = volume(Some(&image));
        let prepared = prepare(
            &top,
            &volume,
            None,
            None,
            &user(0, 0),
            Instant::now,
            &mut done,
        );
        prepared.unwrap();
        let bytes: Vec<u64> = heard.iter().map(|(_, bytes)| *bytes).collect();
        assert!(
            bytes.iter().filter(|bytes| **bytes > 5).count() >= 3,
            "{bytes:?}"
        );
        assert_eq!(bytes.iter().sum::<u64>(), (10 << 20) + 5);
        assert_eq!(heard.iter().map(|(entries, _)| entries).sum::<u64>(), 3);
        assert_eq!(fs::metadata(top.join("d/large")).unwrap().len(), 10 << 20);
    }

    #[test]
    fn a_change_of_owner_that_takes_too_long_goes_on_at_the_next_start() {
        if !is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path();
        for number in 0..10 {
            fs::write(top.join(number.to_string()), "").unwrap();
        }
        let start = Instant::now();
        let calls = std::cell::Cell::new(0);
        let slow = || {
            calls.set(calls.get() + 1);
            start + Duration::from_secs(calls.get() * 4)
        };
        let given = || {
            let all = names(top).unwrap();
            all.iter().filter(|name| of(&top.join(name)).0 == 9).count()
        };
        let prepare = |now: &dyn Fn() -> Instant| {
            prepare(
                top,
                &volume(None),
                None,
                None,
                &user(9, 9),
                now,
                &mut |_, _| {},
            )
            .unwrap()
        };
        let notes = prepare(&slow);
        assert!(
            notes[0].contains("could be given to 9:9 within 20 s"),
            "{notes:?}"
        );
        assert!(given() > 0 && given() < 10);
        assert_eq!(of(top).0, 0);
        assert!(prepare(&Instant::now).is_empty());
        assert_eq!((given(), of(top).0), (10, 9));
    }
}
