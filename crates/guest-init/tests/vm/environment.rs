//! The environment that an app finds.

use std::fs;
use std::path::Path;

use guest_protocol::{Stream, VolumeMount};
use model::instance::SecretBundle;

use crate::machine::{Plan, Tools, busybox_tree, config, make_disk};

/// The lines of an app's output that begin with `name=`, without it.
fn value(lines: &[String], name: &str) -> String {
    let found: Vec<_> = lines
        .iter()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        .collect();
    found.join("\n")
}

#[test]
fn an_app_finds_the_standard_environment() {
    let Some(tools) = Tools::find() else { return };
    let script = r#"
        say() { n="$1"; shift; "$@" 2>&1 | while read -r l; do echo "$n=$l"; done; }
        say mounts awk '{ print $2, $3 }' /proc/mounts
        say root awk '$2 == "/" { print $1, $3 }' /proc/mounts
        say top ls /
        say id id
        say home echo "$HOME"
        say pwd pwd
        say env echo "$PLATFORM_APP"
        say stdin readlink /proc/self/fd/0
        say session awk '{ print ($1 == $6) }' /proc/$$/stat
        say cgroup cat /proc/self/cgroup
        say files sh -c 'ulimit -n'
        say umask umask
        say masks grep -E '^Sig(Blk|Ign)' /proc/self/status
        say hostname hostname
        say hosts cat /etc/hosts
        say resolv cat /run/resolv/stub.conf
        say resolvlink readlink /etc/resolv.conf
        say lo ip -4 addr show dev lo
        say addr ip -6 addr show dev eth0
        say route ip -6 route show default
        say port cat /proc/sys/net/ipv4/ip_unprivileged_port_start
        say secret cat /run/secrets/database/password
        say secretmode stat -c '%a %u:%g %F' /run/secrets/database/password /run/secrets/database
        say secretfs awk '$2 == "/run/secrets" { print $3 }' /proc/mounts
        say rundir stat -c '%a %u:%g' /run/shop
        say volume stat -c '%a %u:%g' /var/lib/shop
        say dev ls -l /dev/fd /dev/stdout
        echo reopened > /dev/stdout
        say write touch /tmp-by-root
        say fds ls /proc/self/fd
        say caps ls -l /dev/null
        say init readlink /proc/1/root
        say rss awk '/VmRSS|RssAnon/ { print $1, $2 }' /proc/1/status
    "#;
    let mut config = config(script);
    config.user = "shop".to_owned();
    config.working_dir = "/srv/deep/shop".to_owned();
    config.network.resolvers = vec!["fd00:1::3".parse().unwrap()];
    config.image_volumes = vec!["/var/lib/shop".to_owned()];
    config.secrets = vec![SecretBundle {
        name: "database".to_owned(),
        files: [("password".to_owned(), b"hunter2\n".to_vec())].into(),
    }];
    let tree = |root: &Path| {
        busybox_tree(root);
        fs::create_dir_all(root.join("run/shop")).unwrap();
        std::os::unix::fs::chown(root.join("run/shop"), Some(1000), Some(100)).unwrap();
        std::os::unix::fs::symlink("../run/resolv/stub.conf", root.join("etc/resolv.conf"))
            .unwrap();
        fs::write(root.join("etc/hosts"), "10.0.0.1 db\n").unwrap();
    };
    let mut guest = Plan {
        tree: &tree,
        ..Plan::new(&tools, config)
    }
    .boot();
    let event = guest.finish();
    assert_eq!(event.exit_code, 0);
    let lines = guest.seen().lines(Stream::Stdout);
    let value = |name: &str| value(&lines, name);

    assert_eq!(value("root"), "overlay overlay");
    for mount in [
        "/proc proc",
        "/sys sysfs",
        "/dev devtmpfs",
        "/dev/pts devpts",
        "/dev/shm tmpfs",
        "/dev/mqueue mqueue",
        "/run tmpfs",
        "/run/secrets tmpfs",
        "/sys/fs/cgroup cgroup2",
    ] {
        assert!(
            value("mounts").lines().any(|line| line == mount),
            "{mount}\n{}",
            value("mounts")
        );
    }
    assert!(
        !value("mounts").contains("ext4"),
        "no disk is visible:\n{}",
        value("mounts")
    );
    assert!(!value("top").contains("lower") && !value("top").contains("modules"));
    assert_eq!(
        value("id"),
        "uid=1000(shop) gid=100(users) groups=44(video),100(users)"
    );
    assert_eq!(value("home"), "/home/shop");
    assert_eq!(value("pwd"), "/srv/deep/shop");
    assert_eq!(value("env"), "shop");
    assert_eq!(value("session"), "1");
    assert_eq!(value("cgroup"), "0::/app");
    assert_eq!(value("files"), "65536");
    assert_eq!(value("umask"), "0022");
    for mask in value("masks").lines() {
        assert!(mask.ends_with("0000000000000000"), "{mask}");
    }
    assert_eq!(value("hostname"), "web-1");
    assert!(value("hosts").starts_with("10.0.0.1 db\n127.0.0.1\tlocalhost\n"));
    assert!(value("hosts").contains("fd00:1::15\tweb-1"));
    assert_eq!(value("resolv"), "nameserver fd00:1::3");
    assert_eq!(value("resolvlink"), "../run/resolv/stub.conf");
    assert!(value("lo").contains("inet 127.0.0.1/8"), "{}", value("lo"));
    assert!(value("addr").contains("mtu 1420"), "{}", value("addr"));
    assert!(
        value("addr").contains("inet6 fd00:1::15/128 scope global"),
        "{}",
        value("addr")
    );
    assert!(!value("addr").contains("tentative"), "{}", value("addr"));
    assert!(
        value("route").contains("default via fe80::2 dev eth0"),
        "{}",
        value("route")
    );
    assert_eq!(value("port"), "0");
    assert_eq!(value("secret"), "hunter2");
    assert_eq!(
        value("secretmode"),
        "400 1000:100 regular file\n500 1000:100 directory"
    );
    assert_eq!(value("secretfs"), "tmpfs");
    assert_eq!(value("rundir"), "755 1000:100");
    assert_eq!(value("volume"), "755 0:0");
    assert!(
        lines.iter().any(|line| line == "reopened"),
        "the user may open /dev/stdout"
    );
    assert!(value("write").contains("Permission denied"));
    assert_eq!(
        value("fds"),
        "0\n1\n2\n3",
        "no descriptor of init is inherited; 3 is of ls itself"
    );
    eprintln!(
        "memory of PID 1 of the app's namespace in KiB: {}",
        value("rss").replace('\n', ", ")
    );
}

#[test]
fn the_default_route_reaches_the_gateway() {
    let Some(tools) = Tools::find() else { return };
    let mut guest = Plan::new(&tools, config("ping -6 -c 1 -W 10 fd00:1::2")).boot();
    let event = guest.finish();
    assert_eq!(
        event.exit_code,
        0,
        "{:?}",
        guest.seen().lines(Stream::Stdout)
    );
}

#[test]
fn an_image_may_be_one_static_program() {
    let Some(tools) = Tools::find() else { return };
    let mut config = config("");
    config.argv = vec!["/pwd".to_owned()];
    config.environment.clear();
    config.user = "4242".to_owned();
    config.working_dir = String::new();
    let tree = |root: &Path| {
        // busybox runs the applet of its file name.
        fs::copy("/bin/busybox", root.join("pwd")).unwrap();
    };
    let mut guest = Plan {
        tree: &tree,
        ..Plan::new(&tools, config)
    }
    .boot();
    assert_eq!(guest.finish().exit_code, 0);
    assert_eq!(guest.seen().lines(Stream::Stdout), ["/"]);
}

#[test]
fn a_volume_belongs_to_the_user_and_is_unmounted_before_the_exit_is_reported() {
    let Some(tools) = Tools::find() else { return };
    let directory = tempfile::tempdir().unwrap();
    let volume = directory.path().join("data.ext4");
    make_disk(&volume, 16, None);
    for (round, expected) in [("1", vec!["1"]), ("2", vec!["1", "2"])] {
        let mut config = config(&format!(
            "cd /mnt/volumes/data && echo {round} >> rounds && cat rounds && exec sleep 1000"
        ));
        config.user = "shop".to_owned();
        config.volumes = vec![VolumeMount {
            device: "/dev/vdc".to_owned(),
            name: "data".to_owned(),
        }];
        let plan = Plan {
            volumes: vec![volume.clone()],
            ..Plan::new(&tools, config)
        };
        let guest = plan.boot();
        guest.wait_line(round);
        guest.send(&guest_protocol::HostFrame::Stop { timeout_ms: 1 });
        // Not acknowledged: the VM is destroyed as soon as the exit is reported.
        guest.wait("the exit", |seen| seen.exits.first().cloned());
        assert_eq!(guest.seen().lines(Stream::Stdout), expected);
        drop(guest);
        let state = std::process::Command::new("/sbin/dumpe2fs")
            .arg("-h")
            .arg(&volume)
            .output()
            .unwrap();
        let state = String::from_utf8_lossy(&state.stdout).into_owned();
        assert!(!state.contains("needs_recovery"), "{state}");
    }
}

#[test]
fn a_damaged_volume_is_mounted_with_a_warning_in_the_log() {
    let Some(tools) = Tools::find() else { return };
    let directory = tempfile::tempdir().unwrap();
    let volume = directory.path().join("data.ext4");
    make_disk(&volume, 16, None);
    let noted = std::process::Command::new("/sbin/debugfs")
        .args(["-w", "-R", "set_super_value error_count 3"])
        .arg(&volume)
        .output()
        .unwrap();
    assert!(noted.status.success(), "{noted:?}");
    let mut config = config("echo well > /mnt/volumes/data/word && cat /mnt/volumes/data/word");
    config.volumes = vec![VolumeMount {
        device: "/dev/vdc".to_owned(),
        name: "data".to_owned(),
    }];
    let plan = Plan {
        volumes: vec![volume],
        ..Plan::new(&tools, config)
    };
    let mut guest = plan.boot();
    guest.finish();
    assert_eq!(guest.seen().lines(Stream::Stdout), ["well"]);
    let warning = guest.seen().lines(Stream::Platform).join("\n");
    assert!(
        warning.starts_with("volume data: its file system is damaged (3 errors"),
        "{warning}"
    );
}

#[test]
fn a_volume_without_a_file_system_fails_the_boot_by_name() {
    let Some(tools) = Tools::find() else { return };
    let directory = tempfile::tempdir().unwrap();
    let volume = directory.path().join("data.raw");
    fs::write(&volume, vec![0; 1024 * 1024]).unwrap();
    let mut config = config("true");
    config.volumes = vec![VolumeMount {
        device: "/dev/vdc".to_owned(),
        name: "data".to_owned(),
    }];
    let plan = Plan {
        volumes: vec![volume],
        ..Plan::new(&tools, config)
    };
    let guest = plan.boot();
    let failure = guest.wait("the failure", |seen| seen.failures.first().cloned());
    assert_eq!(failure.step, "mount volume data");
    assert!(
        failure.reason.contains("is it an intact ext4 file system?"),
        "{failure:?}"
    );
}
