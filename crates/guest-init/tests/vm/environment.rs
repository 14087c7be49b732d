//! The environment that an app finds.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use guest_protocol::{Phase, Stream, VolumeMount};
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
    Tools::on_each_kernel(standard_environment);
}

fn standard_environment(tools: &Tools) {
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
    "shop".clone_into(&mut config.user);
    "/srv/deep/shop".clone_into(&mut config.working_dir);
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
        ..Plan::new(tools, config)
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
    assert!(value("hosts").contains("fd00:1::15\tweb-1\n100.64.0.15\tweb-1"));
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
        "444 1000:100 regular file\n555 1000:100 directory"
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
fn case_a_volume_is_where_the_image_keeps_its_data_and_is_unmounted_before_the_exit_is_reported() {
    Tools::on_each_kernel(volume_with_a_path);
}

fn volume_with_a_path(tools: &Tools) {
    let directory = tempfile::tempdir().unwrap();
    let volume = directory.path().join("data.ext4");
    make_disk(&volume, 16, None);
    let places = ["700 1000:100", "700 1000:100", "rounds", "seed"];
    for (round, rounds) in [("1", vec!["1"]), ("2", vec!["1", "2"])] {
        let mut config = config(&format!(
            "cat /var/lib/shop/seed; echo {round} >> /var/lib/shop/rounds && cd /mnt/volumes/data && cat rounds && \
             stat -c '%a %u:%g' . /var/lib/shop && ls -A && echo round {round} && exec sleep 1000"
        ));
        "shop".clone_into(&mut config.user);
        config.volumes = vec![VolumeMount {
            path: Some("/var/lib/shop".to_owned()),
            owner: None,
            device: "/dev/vdc".to_owned(),
            name: "data".to_owned(),
        }];
        // The image's content, in a directory of another user.
        let tree = |root: &Path| {
            busybox_tree(root);
            let place = root.join("var/lib/shop");
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join("seed"), "the image's\n").unwrap();
            fs::set_permissions(&place, fs::Permissions::from_mode(0o700)).unwrap();
        };
        let plan = Plan {
            volumes: vec![volume.clone()],
            tree: &tree,
            ..Plan::new(tools, config)
        };
        let guest = plan.boot();
        guest.wait_line(&format!("round {round}"));
        guest.send(&guest_protocol::HostFrame::Stop { timeout_ms: 1 });
        // Not acknowledged: the VM is destroyed as soon as the exit is reported.
        guest.wait("the exit", |seen| seen.exits.first().cloned());
        let end = format!("round {round}");
        let expected = [&["the image's"][..], &rounds, &places, &[end.as_str()]].concat();
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

/// From a disk so slow that the copy takes longer than the guest may be silent. The agent restarts meanwhile.
#[test]
fn case_a_guest_says_how_far_a_long_copy_is_and_dials_a_restarted_node() {
    let Some(tools) = Tools::find() else { return };
    let directory = tempfile::tempdir().unwrap();
    let volume = directory.path().join("data.ext4");
    make_disk(&volume, 64, None);
    let mut config = config("wc -c < /var/lib/shop/large");
    config.volumes = vec![VolumeMount {
        path: Some("/var/lib/shop".to_owned()),
        owner: None,
        device: "/dev/vdc".to_owned(),
        name: "data".to_owned(),
    }];
    let tree = |root: &Path| {
        busybox_tree(root);
        let place = root.join("var/lib/shop");
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("large"), vec![b'x'; 22 << 20]).unwrap();
    };
    let plan = Plan {
        volumes: vec![volume],
        tree: &tree,
        root_bytes_per_second: 1_100_000,
        ..Plan::new(&tools, config)
    };
    let mut guest = plan.boot();
    guest.wait("a word of progress", |seen| {
        (!seen.progress.is_empty()).then_some(())
    });
    guest.break_connections();
    guest.wait("another hello", |seen| {
        let phases = seen.control_phases();
        (phases == [Phase::Waiting, Phase::Starting]).then_some(())
    });
    assert_eq!(guest.finish().exit_code, 0);
    let seen = guest.seen();
    assert_eq!(seen.lines(Stream::Stdout), [(22 << 20).to_string()]);
    assert_eq!(seen.control_phases().len(), 2);
    let bytes: Vec<u64> = seen.progress.iter().map(|done| done.bytes).collect();
    assert!(bytes.len() >= 2 && bytes.is_sorted(), "{bytes:?}");
}

/// The least `resources.memory` of a manifest, in MiB (`manifest::authored`). Whoever lowers it there finds here that no app starts.
const LEAST_MEMORY_MIB: u32 = 96;

#[test]
fn case_the_least_memory_of_a_manifest_is_enough_for_an_app_with_all_that_the_platform_adds() {
    Tools::on_each_kernel(least_memory);
}

fn least_memory(tools: &Tools) {
    let directory = tempfile::tempdir().unwrap();
    let volume = directory.path().join("data.ext4");
    make_disk(&volume, 16, None);
    // What the app may take: a quarter of it in memory files.
    let mut config = config(
        "awk '/^MemAvailable/ { print \"available\", int($2 / 1024) }' /proc/meminfo; \
         head -c 20971520 /dev/zero > /dev/shm/x && wc -c < /dev/shm/x; echo fits; exec sleep 1000",
    );
    config.secrets = vec![SecretBundle {
        name: "database".to_owned(),
        files: [("password".to_owned(), vec![b'x'; 1024])].into(),
    }];
    config.ports = vec![8080];
    config.volumes = vec![VolumeMount {
        path: Some("/var/lib/shop".to_owned()),
        owner: None,
        device: "/dev/vdc".to_owned(),
        name: "data".to_owned(),
    }];
    let plan = Plan {
        volumes: vec![volume],
        memory_megabytes: LEAST_MEMORY_MIB,
        ..Plan::new(tools, config)
    };
    let guest = plan.boot();
    guest.wait_line("fits");
    let lines = guest.seen().lines(Stream::Stdout);
    eprintln!("of {LEAST_MEMORY_MIB} MiB: {lines:?}");
    assert!(lines.contains(&"20971520".to_owned()), "{lines:?}");
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
        path: None,
        owner: None,
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
        path: None,
        owner: None,
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

#[test]
fn case_an_images_data_that_does_not_fit_its_volume_fails_the_boot_for_good() {
    let Some(tools) = Tools::find() else { return };
    let directory = tempfile::tempdir().unwrap();
    let volume = directory.path().join("data.ext4");
    make_disk(&volume, 8, None);
    let mut config = config("true");
    config.volumes = vec![VolumeMount {
        path: Some("/var/lib/shop".to_owned()),
        owner: None,
        device: "/dev/vdc".to_owned(),
        name: "data".to_owned(),
    }];
    let tree = |root: &Path| {
        busybox_tree(root);
        fs::create_dir_all(root.join("var/lib/shop")).unwrap();
        fs::write(root.join("var/lib/shop/large"), vec![7; 12 << 20]).unwrap();
    };
    let plan = Plan {
        volumes: vec![volume],
        tree: &tree,
        ..Plan::new(&tools, config)
    };
    let guest = plan.boot();
    let failure = guest.wait("the failure", |seen| seen.failures.first().cloned());
    assert_eq!(
        (failure.step.as_str(), failure.exit_code),
        ("mount volume data", Some(126))
    );
    assert!(
        failure.reason.contains("/var/lib/shop") && failure.reason.contains("larger `size`"),
        "{failure:?}"
    );
}

/// `iptables` as it is on Debian.
const IPTABLES: &str = "/usr/sbin/xtables-nft-multi";

/// Copies a program of this machine, with the libraries that it is linked to.
fn copy_program(from: &str, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(from, to).unwrap_or_else(|error| panic!("{from}: {error}"));
    let needed = std::process::Command::new("ldd")
        .arg(from)
        .output()
        .unwrap();
    let needed = String::from_utf8_lossy(&needed.stdout).into_owned();
    let root = to.ancestors().find(|at| at.join("etc/passwd").exists());
    for library in needed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let to = root.unwrap().join(&library[1..]);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(library, to).unwrap();
    }
}

/// A 32-bit program for i386 that exits with 42, as `as` and `ld` would make it.
fn program_of_32_bits() -> Vec<u8> {
    // mov $1,%eax; mov $42,%ebx; int $0x80
    let code = [0xb8, 1, 0, 0, 0, 0xbb, 42, 0, 0, 0, 0xcd, 0x80];
    let base: u32 = 0x0804_8000;
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2_u16, 3] {
        file.extend(half.to_le_bytes());
    }
    for word in [1, base + 84, 52, 0, 0] {
        file.extend(word.to_le_bytes());
    }
    for half in [52_u16, 32, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let length = u32::try_from(84 + code.len()).unwrap();
    for word in [1, 0, base, base, length, length, 5, 4096] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

#[test]
fn case_an_app_of_root_that_drops_its_rights_finds_what_images_ask_for() {
    Tools::on_each_kernel(what_images_ask_for);
}

fn what_images_ask_for(tools: &Tools) {
    let directory = tempfile::tempdir().unwrap();
    let disks: Vec<_> = ["plain", "owned", "old"]
        .into_iter()
        .map(|name| {
            let path = directory.path().join(format!("{name}.ext4"));
            make_disk(&path, 16, None);
            path
        })
        .collect();
    // One volume has a file of root's, from a release that ran as root.
    let old = directory.path().join("tree");
    fs::create_dir_all(old.join("d")).unwrap();
    fs::write(old.join("d/f"), "old\n").unwrap();
    fs::set_permissions(old.join("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
    make_disk(&disks[2], 16, Some(&old));
    let script = r#"
        cat > /as-shop <<'END'
            say() { n="$1"; shift; echo "$n=$("$@" 2>&1)"; }
            say secret cat /run/secrets/database/password
            say private cat /run/secrets/tls/key
            say plain sh -c 'touch /mnt/volumes/plain/x && echo wrote'
            say owned sh -c 'touch /mnt/volumes/owned/x && echo wrote'
            say old sh -c 'echo new >> /mnt/volumes/old/d/f && cat /mnt/volumes/old/d/f'
            say top stat -c '%a %u:%g' /mnt/volumes/plain /mnt/volumes/owned /mnt/volumes/old /run/secrets/tls
            say maps cat /proc/sys/vm/max_map_count
            say overcommit cat /proc/sys/vm/overcommit_memory
            say somaxconn cat /proc/sys/net/core/somaxconn
            say ports cat /proc/sys/net/ipv4/ip_unprivileged_port_start
            say name awk '$2 == "web-1" { print $1 }' /etc/hosts
            /elf32; echo "elf32=$?"
END
        su shop -c 'sh /as-shop'
        [ -c /dev/net/tun ] && echo tun=there
        [ -c /dev/fuse ] && echo fuse=there
        (exec 3<>/dev/fuse) && echo fuse-opens=yes
        tunctl -t tun7 >/dev/null && echo tun-opens=yes
        nft -f - <<'END' && echo nft=yes
            table inet nat { chain out { type nat hook postrouting priority 100; masquerade; }; }
            table inet filter { chain in { type filter hook input priority 0; ct state established accept; tcp dport 9 reject; }; }
END
        exec 2>&1
        iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE && iptables -A INPUT -m conntrack --ctstate NEW -j ACCEPT \
            && echo iptables=yes
        iptables -t mangle -A OUTPUT -m owner --uid-owner 1000 -j CONNMARK --save-mark \
            && iptables -A INPUT -m statistic --mode nth --every 2 --packet 0 -j ACCEPT && echo iptables-more=yes
        ip rule add fwmark 7 table 100 && ip -6 rule add fwmark 7 table 100 && echo rules=yes
    "#;
    let mut config = config(script);
    config.volumes = ["plain", "owned", "old"]
        .into_iter()
        .zip('c'..)
        .map(|(name, letter)| VolumeMount {
            device: format!("/dev/vd{letter}"),
            name: name.to_owned(),
            path: None,
            owner: (name != "plain").then(|| "shop:video".to_owned()),
        })
        .collect();
    let bundle = |name: &str, file: &str| SecretBundle {
        name: name.to_owned(),
        files: [(file.to_owned(), b"hunter2\n".to_vec())].into(),
    };
    config.secrets = vec![bundle("database", "password"), bundle("tls", "key")];
    config.secret_modes = [("tls".to_owned(), 0o400)].into();
    let has_iptables = Path::new(IPTABLES).exists();
    if !has_iptables {
        eprintln!("skipped in part: iptables is not installed (make install)");
    }
    let tree = |root: &Path| {
        busybox_tree(root);
        fs::write(root.join("elf32"), program_of_32_bits()).unwrap();
        fs::set_permissions(root.join("elf32"), fs::Permissions::from_mode(0o755)).unwrap();
        copy_program("/usr/sbin/nft", &root.join("bin/nft"));
        if has_iptables {
            copy_program(IPTABLES, &root.join("bin/iptables"));
            let extensions = Path::new("/usr/lib/x86_64-linux-gnu/xtables");
            for name in [
                "libxt_standard.so",
                "libxt_MASQUERADE.so",
                "libxt_conntrack.so",
                "libxt_owner.so",
                "libxt_CONNMARK.so",
                "libxt_statistic.so",
            ] {
                let to = root.join("usr/lib/x86_64-linux-gnu/xtables").join(name);
                copy_program(extensions.join(name).to_str().unwrap(), &to);
            }
        }
    };
    let mut guest = Plan {
        volumes: disks,
        tree: &tree,
        ..Plan::new(tools, config)
    }
    .boot();
    guest.finish();
    let lines = guest.seen().lines(Stream::Stdout);
    let value = |name: &str| value(&lines, name);
    for (name, expected) in [
        ("secret", "hunter2"),
        ("plain", "wrote"),
        ("owned", "wrote"),
        ("old", "old"),
        ("top", "1777 0:0"),
        ("maps", "262144"),
        ("overcommit", "1"),
        ("ports", "0"),
        ("name", "fd00:1::15"),
        ("elf32", "42"),
        ("tun", "there"),
        ("fuse", "there"),
        ("fuse-opens", "yes"),
        ("tun-opens", "yes"),
        ("nft", "yes"),
        ("iptables", if has_iptables { "yes" } else { "" }),
        ("iptables-more", if has_iptables { "yes" } else { "" }),
        ("rules", "yes"),
    ] {
        assert_eq!(value(name), expected, "{name}\n{}", lines.join("\n"));
    }
    for line in ["new", "755 1000:44", "500 0:0", "100.64.0.15"] {
        assert!(
            lines.iter().any(|found| found == line),
            "{line}\n{}",
            lines.join("\n")
        );
    }
    assert!(value("private").contains("Permission denied"));
    assert!(value("somaxconn").parse::<u32>().unwrap() >= 4096);
}
