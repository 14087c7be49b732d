#!/usr/bin/env bash
# Installs what a Debian 12 machine needs to build, test and run the platform: only what is missing. `install.sh clients`: what `make clients` and
# `make soak` run, instead.
# Rust comes from rustup, and is yours to install.
set -euo pipefail
# shellcheck source=demo/cluster.sh
. "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"

# To build: a C compiler and what our dependencies' C code is configured with.
packages=(gcc g++ libc6-dev make cmake pkg-config)
# To run: the VMM, the network, a registry.
packages+=(qemu-system-x86 nftables iproute2 procps slirp4netns docker-registry curl ca-certificates)
# To make images of Debian packages, and to check the root disks made of them.
packages+=(mmdebstrap umoci skopeo e2fsprogs busybox-static shellcheck)
# For the test that a guest runs iptables.
packages+=(iptables)
# For `make bench`: igzip, which root disks are measured against, and strace, which counts the agent's syncs.
packages+=(isal strace)
# For the tests of several servers on one store: each starts its own in a temporary folder.
packages+=(postgresql)
# What the overlay in user space is tested against.
packages+=(wireguard-go wireguard-tools)
# The authority of ACME in tests, with names for it.
packages+=(pebble openssl)
# What asks the resolver in its tests.
packages+=(bind9-dnsutils)
# What schemathesis runs in.
packages+=(python3 python3-venv)

# The clients of the edge. The compiler of the JDK runs a program from its source, which the JRE cannot.
client_packages=(curl haproxy nghttp2-client openjdk-17-jdk-headless openssl testssl.sh wrk python3 python3-venv)

# What `make bench` measures the edge beside, and what asks over HTTP/2.
bench_packages=(haproxy nginx nghttp2-client)

# The host side of a guest's vsock, where the VMM is QEMU: a Rust program of the rust-vmm project.
vsock_device_version=0.3.0
tools=$top/target/tools

# What holds the metrics of a test's roles against Prometheus' rules. Of Debian's package only this program: it would start a server.
promtool=$tools/bin/promtool

# What holds the answers of the API against its description, with all that it needs: demo/schemathesis.txt has the versions.
schemathesis=$tools/schemathesis

# Clients of the edge from PyPI, and the Autobahn suite, which needs Python 2.7: their versions are beside the checks.
clients=$tools/clients
autobahn=$tools/autobahn
client_checks=$top/crates/edge-proxy/clients

main() {
    if [ "${1:-}" = bench ]; then
        packages=("${bench_packages[@]}")
        install_packages
        return
    fi
    if [ "${1:-}" = clients ]; then
        packages=("${client_packages[@]}")
        install_packages
        install_venv "$clients" "$client_checks/python.txt"
        install_autobahn
        return
    fi
    [ "$(id -u)" -eq 0 ] || die "only root can install packages" "try it with sudo"
    find_rust
    install_packages
    install_vsock_device
    install_promtool
    install_venv "$schemathesis" "$top/demo/schemathesis.txt"
}

find_rust() {
    command -v cargo >/dev/null ||
        die "there is no Rust in PATH, in ${CARGO_HOME:-$HOME/.cargo}/bin${SUDO_USER:+, or in the home of $SUDO_USER}" \
            "install it from https://rustup.rs, then run this again"
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$top/Cargo.toml")
    have=$(cd "$top" && as_owner_of "${RUSTUP_HOME:-$HOME/.rustup}" rustc --version | cut -d' ' -f2)
    printf '%s\n%s\n' "$wanted" "$have" | sort -V -C ||
        die "Rust $have is too old: $wanted is needed" "try: rustup update"
}

# as_owner_of FOLDER COMMAND...: rustup installs the toolchain of rust-toolchain.toml on its first use, which under sudo
# must not leave root's files in a user's home.
as_owner_of() {
    local owner
    owner=$(stat -c %U "$1" 2>/dev/null || echo root)
    shift
    if [ "$owner" = root ]; then "$@"; else runuser -u "$owner" -- "$@"; fi
}

install_packages() {
    local missing=() package
    for package in "${packages[@]}"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" -eq 0 ] || die "only root can install packages: ${missing[*]}" "try it with sudo"
    say "installing ${missing[*]}"
    # A package that is a service would be started at once; here, the demo starts what it needs.
    local policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
        # shellcheck disable=SC2064
        trap "rm -f $policy" EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -q && apt-get install -y -q --no-install-recommends "${missing[@]}"; } \
        >"$top/target/apt.log" 2>&1 || {
        tail -n 15 "$top/target/apt.log" >&2
        die "could not install: ${missing[*]}" "the log: target/apt.log" "is the network there? are Debian's sources in /etc/apt?"
    }
    case " ${missing[*]} " in
        *" docker-registry "*) # Not at the next boot either.
            if [ -d /run/systemd/system ]; then systemctl --quiet disable docker-registry.service || true; fi ;;
    esac
    case " ${missing[*]} " in
        *" postgresql "*)
            if [ -d /run/systemd/system ]; then systemctl --quiet disable postgresql.service || true; fi ;;
    esac
    case " ${missing[*]} " in
        *" haproxy "*)
            if [ -d /run/systemd/system ]; then systemctl --quiet disable haproxy.service || true; fi ;;
    esac
    case " ${missing[*]} " in
        *" nginx "*)
            if [ -d /run/systemd/system ]; then systemctl --quiet disable nginx.service || true; fi ;;
    esac
}

install_vsock_device() {
    local program=$tools/bin/vhost-device-vsock
    if [ ! -x "$program" ]; then
        say "building vhost-device-vsock $vsock_device_version"
        cargo install --quiet --locked --root "$tools" vhost-device-vsock --version "$vsock_device_version" ||
            die "could not install vhost-device-vsock" "is the network there? try again"
    fi
    # A node looks for it beside its own program.
    mkdir -p "$top/target/release"
    ln -sfn ../tools/bin/vhost-device-vsock "$top/target/release/vhost-device-vsock"
}

install_promtool() {
    [ ! -x "$promtool" ] || return 0
    say "fetching promtool"
    local folder=$top/target/promtool
    rm -rf "$folder" && mkdir -p "$folder" "$tools/bin"
    {
        cd "$folder"
        apt-get download -q prometheus || { apt-get update -q && apt-get download -q prometheus; }
        dpkg-deb --extract prometheus_*.deb .
        mv usr/bin/promtool "$promtool"
        cd "$top"
    } >>"$top/target/apt.log" 2>&1 || {
        tail -n 15 "$top/target/apt.log" >&2
        die "could not fetch the package prometheus" "the log: target/apt.log" "is the network there? are Debian's sources in /etc/apt?"
    }
    rm -rf "$folder"
}

# install_venv FOLDER FILE: the packages of PyPI that the file names, and no others.
install_venv() {
    local folder=$1 wanted=$2 name
    name=$(basename "$folder")
    ! cmp -s "$wanted" "$folder/installed.txt" || return 0
    say "installing $name"
    {
        rm -rf "$folder"
        /usr/bin/python3 -m venv "$folder"
        "$folder/bin/pip" install --disable-pip-version-check --no-deps -r "$wanted"
    } >"$top/target/$name.log" 2>&1 || {
        tail -n 15 "$top/target/$name.log" >&2
        die "could not install $name" "the log: target/$name.log" "is the network there? try again"
    }
    cp "$wanted" "$folder/installed.txt"
}

# Without a Python 2.7, which Debian 12 does not have, there is no suite, and `make clients` names it as skipped.
install_autobahn() {
    local wanted=$client_checks/autobahn.txt python
    python=$("$client_checks/python27.sh") || return 0
    ! cmp -s "$wanted" "$autobahn/installed.txt" || return 0
    say "installing autobahn"
    {
        rm -rf "$autobahn"
        "$python" -m pip install --disable-pip-version-check --no-deps --target "$autobahn" -r "$wanted"
    } >"$top/target/autobahn.log" 2>&1 || {
        tail -n 15 "$top/target/autobahn.log" >&2
        die "could not install autobahn" "the log: target/autobahn.log" "does $python have pip? is the network there?"
    }
    cp "$wanted" "$autobahn/installed.txt"
}

mkdir -p "$top/target"
main "$@"
