#!/usr/bin/env bash
# Runs the tests of WireGuard interfaces on a Debian kernel, which has WireGuard. `make wireguard-kernel` runs it; it is no part of `make test`.
#
#   examples/wireguard-kernel.sh [TEST..]
#
# The newest kernel of /boot whose modules have WireGuard boots under QEMU, on the file system of this machine: read-only by 9p, below a
# file system in memory. So the tests are the programs that were built here. Status 0: they passed, and the one of the kernel was not skipped.
# Needs root, qemu-system-x86, busybox and a linux-image of Debian (`apt-get install linux-image-amd64`); no KVM.
set -euo pipefail

top=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
work=$top/target/wireguard-kernel
limit=900

die() {
    printf '%s\n' "$@" >&2
    exit 1
}

main() {
    [ "$(id -u)" -eq 0 ] || die "only root can read the kernel and the disk" "try: sudo make wireguard-kernel"
    local kernel='' release candidate program status
    for candidate in /boot/vmlinuz-*; do
        release=${candidate#/boot/vmlinuz-}
        if modprobe -S "$release" --show-depends wireguard >/dev/null 2>&1; then kernel=$candidate; fi
    done
    [ -n "$kernel" ] || die "no kernel of /boot has WireGuard" "try: apt-get install linux-image-amd64"
    release=${kernel#/boot/vmlinuz-}
    mkdir -p "$work"
    (cd "$top" && cargo test --release -p wireguard --test interface --no-run --message-format json) >"$work/build.json"
    program=$(grep '"name":"interface"' "$work/build.json" | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
    [ -x "$program" ] || die "the tests were not built: see $work/build.json"
    make_initramfs "$release" "$program" "$@"
    echo "booting $kernel"
    timeout "$limit" qemu-system-x86_64 -machine q35,accel=tcg -cpu max -m 2048 -smp 2 -nographic -no-reboot -nodefaults \
        -kernel "$kernel" -initrd "$work/initramfs" -append "console=ttyS0 panic=-1 quiet" \
        -serial "file:$work/console" \
        -fsdev local,id=top,path=/,security_model=none,readonly=on,multidevs=remap -device virtio-9p-pci,fsdev=top,mount_tag=top || true
    status=$(tr -d '\r' <"$work/console" | sed -n 's/^status of the tests: //p')
    grep -aE '^test |test result|SKIPPED|panicked' "$work/console" || tail -n 40 "$work/console"
    [ "$status" = 0 ] || die "the tests failed: see $work/console"
    ! grep -qa SKIPPED "$work/console" || die "a test was skipped: see $work/console"
}

# make_initramfs RELEASE PROGRAM [TEST..]
make_initramfs() {
    local release=$1 program=$2 module
    shift 2
    rm -rf "$work/root"
    mkdir -p "$work/root"/{bin,modules,proc,sys,dev,lower,upper,new}
    cp "$(command -v busybox)" "$work/root/bin/busybox"
    {
        echo '#!/bin/busybox sh'
        echo 'export PATH=/bin; busybox mount -t proc proc /proc; busybox mount -t devtmpfs dev /dev'
        for module in 9pnet_virtio 9p overlay; do
            modprobe -S "$release" --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
        done | awk '!seen[$0]++' | while read -r module; do
            xz -dc "$module" >"$work/root/modules/$(basename "$module" .xz)"
            echo "busybox insmod /modules/$(basename "$module" .xz)"
        done
        cat <<SCRIPT
busybox mount -t tmpfs tmpfs /upper; busybox mkdir /upper/upper /upper/work
busybox mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose top /lower
busybox mount -t overlay -o lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work top /new
for at in proc sys dev run tmp; do busybox mkdir -p /new/\$at; done
busybox mount -t proc proc /new/proc; busybox mount -t sysfs sysfs /new/sys
busybox mount -t devtmpfs dev /new/dev; busybox mount -t tmpfs tmpfs /new/run
busybox chroot /new /bin/sh -c 'export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
    for m in wireguard veth tun; do modprobe \$m || echo "no module \$m"; done
    ip link set lo up; uname -r
    RUST_BACKTRACE=0 $program --nocapture --test-threads 1 $*; echo "status of the tests: \$?"'
busybox poweroff -f
SCRIPT
    } >"$work/root/init"
    chmod +x "$work/root/init"
    (cd "$work/root" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initramfs"
}

main "$@"
