#!/usr/bin/env bash
# Installs the package on real machines, and says what it saw. `make machines` runs it; it is no part of `make test`.
#
#   examples/machines.sh PACKAGE.deb [NEWER.deb]
#
# Two Debians boot under QEMU: m1 is Debian 12, m2 is Debian 13 (MACHINES="bookworm bookworm" chooses others). They
# are on a bridge in a network namespace of its own, without an uplink. The package is installed as a user would,
# `platform server init`, `platform tokens create` and `platform node join` make the cluster, the example app is
# deployed and served, on both machines: the edge on m1 reaches what runs on m2 over the overlay, whose WireGuard is
# the kernel's, then that of user space on m2, then with delay and loss. A machine reboots, the package is upgraded in
# either order, a node is revoked under traffic and joins again, a node leaves, and the package is purged.
#
# NEWER is by default the same package with a newer version: it shows what an upgrade does to what runs, and not that
# two versions understand each other. `examples/machines.sh OLD.deb NEW.deb` shows that.
#
# A step that fails ends the run with status 1; what it says is above it, and the machines' consoles are in
# target/machines. KEEP=1 leaves the machines running and says how to log in.
# Needs root, /dev/net/tun, 6 GiB of memory, and Debian's packages. Without KVM it takes ten minutes, on a machine that does nothing else.
# shellcheck disable=SC2317
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(dirname "$here")
# shellcheck source=demo/cluster.sh
. "$top/demo/cluster.sh"
work=$top/target/machines

# What is needed here; and what a machine has before the package comes, beside what the package depends on: there is
# no uplink by which apt could fetch it.
tools=(mmdebstrap qemu-system-x86 e2fsprogs iproute2 openssh-client docker-registry curl)
inside=(systemd-sysv linux-image-cloud-amd64 udev dbus iproute2 openssh-server procps curl less man-db bash-completion)
read -r -a suites <<<"${MACHINES:-bookworm trixie}"

# Raised when images made before are of no use any more.
recipe=1
memory=3072
disk=6G
# TEST-NET-1 (RFC 5737), within the namespace only.
net=192.0.2
namespace=platform-machines-$$
gateway=$net.1
app=hello.localhost

main() {
    [ "$(id -u)" -eq 0 ] || die "only root can boot machines" "try: sudo make machines"
    [ $# -eq 1 ] || [ $# -eq 2 ] || die "usage: examples/machines.sh PACKAGE.deb [NEWER.deb]"
    package=$(readlink -f "$1") newer=${2:+$(readlink -f "$2")}
    mkdir -p "$work" && chmod 700 "$work"
    begun=$(now)
    trap 'finish_run $?' EXIT
    install_tools
    [ -f "$work/key" ] || ssh-keygen -q -t ed25519 -N '' -f "$work/key"
    local suite index=0
    for suite in $(printf '%s\n' "${suites[@]}" | sort -u); do step "an image of Debian $suite" make_image "$suite"; done
    step "an image of the example app" make_app
    [ -n "$newer" ] || step "the same package with a newer version" make_newer
    step "a network and a registry" make_network
    for suite in "${suites[@]}"; do
        index=$((index + 1))
        boot "m$index" "$suite" "$index"
    done
    for ((index = 1; index <= ${#suites[@]}; index++)); do step "m$index boots" wait_for_boot "m$index"; done
    steps
    say "done in $(since "$begun") s"
}

# --- What is tried ---------------------------------------------------------------------------------

steps() {
    step "m1: apt install ./platform.deb" install_package m1 "$package"
    step "m1: what is installed" look_at_package m1
    step "m1: platform doctor" run_doctor m1
    step "m1: platform server init" server_init
    step "m1: platform node join" join node m1
    step "m1: platform edge join" join edge m1
    step "m1: deploy, and the first answer" deploy
    step "m1: what is around a VM" look_at_vms m1
    if [ ${#suites[@]} -gt 1 ]; then
        step "m2: apt install ./platform.deb" install_package m2 "$package"
        step "m2: platform doctor" run_doctor m2
        step "m2: platform node join" join node m2
        step "m2: an instance, reached through the edge on m1 over the overlay" place_on_m2
        step "m1, m2: the overlay" look_at_overlay kernel kernel
        step "m2: WireGuard in user space, m1's is the kernel's" use_userspace
        step "m1, m2: 25 ms and 1 % loss each way" try_netem
    fi
    step "m1: the node restarts, its VMs go on" restart_node m1
    if [ ${#suites[@]} -gt 1 ]; then
        step "m2: the node restarts, its VMs and its WireGuard go on" restart_node m2
    fi
    step "m1: reboot; everything comes back" reboot m1
    if [ ${#suites[@]} -gt 1 ]; then
        step "node first: m2 gets a newer package, while it serves" upgrade m2 "$newer"
        step "m1: a newer package, while it serves" upgrade m1 "$newer"
        step "server first: m2 has the older package again, while it serves" upgrade m2 "$package"
        step "m2: the newer package again" upgrade m2 "$newer"
        step "m2: revoked under traffic" revoke_node
        step "m2: joins again, by new keys" rejoin_node
        step "m2: drained and removed" remove_node
        step "m2: the package is purged" purge m2
    else
        step "m1: a newer package, while it serves" upgrade m1 "$newer"
    fi
    step "m1: removal is refused while VMs run" refuse_removal
    step "m1: node down, then purge" purge_m1
}

install_package() {
    local machine=$1 file=$2
    copy "$machine" "$file" /root/platform.deb
    on "$machine" "apt-get install -y -q -o Dpkg::Use-Pty=0 --no-install-recommends /root/platform.deb 2>&1 | tail -n 3; dpkg -s platform | grep -E '^(Status|Version)'"
}

look_at_package() {
    on "$1" "platform --version; dpkg -L platform | grep -c .; systemctl list-unit-files 'platform-*' --no-legend; man -w platform platform-node-join; bash -c 'source /usr/share/bash-completion/completions/platform && complete -p platform'; systemctl is-active platform-server platform-node platform-edge || true"
}

run_doctor() { on "$1" "platform doctor || echo \"(status \$?)\""; }

server_init() {
    on m1 platform server init --insecure-registry "$gateway:5000"
    on m1 "systemctl is-active platform-server && systemctl is-enabled platform-server"
    until_true 30 on m1 platform nodes || die "the server does not answer"
    ! on m1 platform server init || die "a second init is not refused"
}

# join ROLE MACHINE
join() {
    local role=$1 machine=$2 extra=() token begun
    [ "$role" != node ] || extra=(--insecure-registry "$gateway:5000")
    [ "$role" != edge ] || extra=(--listen '[::]:80')
    token=$(on m1 platform tokens create --role "$role" 2>/dev/null)
    begun=$(now)
    # From standard input: the token is on no command line, here or there.
    on "$machine" platform "$role" join --server "https://$(address 1):7400" --token-file - "${extra[@]}" <<<"$token"
    on "$machine" "systemctl is-active platform-$role; systemctl is-enabled platform-$role"
    case $role in
        node) until_true 60 is_online "$machine" || die "the node does not come online" ;;
        edge) until_true 60 answers || die "the edge does not answer" ;;
    esac
    say "from the call to online: $(since "$begun") s (of which ssh takes some)"
    ! on "$machine" "ps -ef; systemctl cat platform-$role; systemctl show platform-$role" | grep -F "$token" ||
        die "the token can be seen"
}
is_online() { on m1 platform nodes | grep -E "^n[0-9]+ +$1 " | grep -qw online; }
answers() { from_outside "http://$(address 1)/" -o /dev/null; }
page() { from_outside -f -H "Host: $app" "http://$(address 1)/"; }
from_outside() { ip netns exec "$namespace" curl -s --max-time 5 "$@"; }

deploy() {
    copy m1 "$top/examples/hello/platform.toml" /root/hello.toml
    local begun
    begun=$(now)
    on m1 platform deploy /root/hello.toml --image "$image"
    until_true 60 page || die "the page is not served"
    say "from the deploy to the first answer: $(since "$begun") s"
    page
    on m1 platform ps
}

look_at_vms() {
    on "$1" "platform nodes | sed -n 1,3p; journalctl -u platform-node --no-pager -o cat | grep -iE 'driver|cgroup|warn|error' | head -n 12 || true; for g in /sys/fs/cgroup/platform/vm-*; do echo \"\$g procs=\$(wc -l <\$g/cgroup.procs) memory.max=\$(cat \$g/memory.max) cpu.weight=\$(cat \$g/cpu.weight)\"; done; systemd-cgls --no-pager /platform | cut -c1-90; systemctl show platform-node -p MemoryCurrent,LimitNOFILE,KillMode; systemd-analyze security --no-pager | grep platform || true; lsmod | grep -E 'kvm|tun|vsock|nf_tables' | awk '{print \$1}' | xargs"
}

has_no_vms() { [ -z "$(vms "$1")" ]; }
vms() { on "$1" "pgrep 'qemu-system|firecracker' | sort -n | xargs"; }

# same_vms BEFORE AFTER
same_vms() {
    [ -n "$1" ] || die "there was no VM"
    [ "$1" = "$2" ] || die "VMs before: $1; after: $2"
    say "the same VMs: $2"
}

# An instance on m2 answers through the edge on m1: packets of m1's edge and of m2 pass between the machines.
place_on_m2() {
    local begun
    begun=$(now)
    on m1 platform scale web=4
    until_true 240 served_by m2 || { on m1 "platform ps; platform network"; on m2 "journalctl -u platform-node --no-pager | tail -n 30"; die "nothing on m2 answers"; }
    say "from the scale to the first answer of m2: $(since "$begun") s"
    on m1 platform ps
}

# served_by MACHINE: whether this answer is of an instance there; the edge takes one after the other.
served_by() { page | grep -qE "^node +$1\$"; }
# Of as many answers as there are instances, some are of each machine.
all_serve() {
    local seen='' answer
    for answer in 1 2 3 4 5 6; do seen+=" $(page | awk '$1 == "node" { print $2 }')"; done
    [[ $seen == *m1* && $seen == *m2* ]]
}

# look_at_overlay KIND-OF-m1 KIND-OF-m2
look_at_overlay() {
    # After a reboot the worker comes last.
    until_true 120 talk_by_name || die "an instance on m1 does not reach one on m2 by its name"
    talk_by_name
    until_true 90 has_handshakes || { on m1 platform network; die "m2 has no handshake with every other member"; }
    on m1 platform network
    local machine
    for machine in m1 m2; do
        on "$machine" "echo \"$machine: \$(ip netns list | xargs)\"; for space in \$(ip netns list | awk '{ print \$1 }'); do ip -n \$space -br addr show dev overlay; done; ip -br link | grep -E '^edge-' || true; pgrep -af '^/usr/bin/platform (wireguard|resolver)' | cut -c1-100 || true"
    done
    [ "$(wireguard_of m1)" = "$1" ] || die "m1's WireGuard is $(wireguard_of m1), not $1"
    [ "$(wireguard_of m2)" = "$2" ] || die "m2's WireGuard is $(wireguard_of m2), not $2"
}
# m2 with m1's node and its edge. Those two are one machine, and need no link.
has_handshakes() { on m1 platform network | grep -E '^n[0-9]+ +m2 ' | grep -q ' 2 of 2'; }
# From a microVM on m1, which asks m1's resolver.
talk_by_name() {
    local instance script
    instance=$(on m1 platform ps | awk '$3 == "web" && $5 == "healthy" && $NF == "m2" { print $1; exit }')
    say "the worker on m1 asks $instance.web.prod.hello.internal:"
    # Its busybox is static, and finds names by nslookup only.
    script="printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 10 \$(nslookup $instance.web.prod.hello.internal | sed -n 's/^Address: \(fd.*\)/\1/p') 8080"
    on m1 "platform exec --process worker -- sh -c $(printf %q "$script")" | grep -E '^(node +m2|address)'
}
# `kernel`, or `userspace`.
wireguard_of() {
    on "$1" "for space in \$(ip netns list | awk '{ print \$1 }'); do ip -n \$space -d link show dev overlay; done" |
        awk '/ wireguard /{ kind = "kernel" } / tun type tun/{ kind = "userspace" } END { print kind }'
}

use_userspace() {
    on m2 "mkdir -p /etc/platform; echo PLATFORM_USERSPACE_WIREGUARD=1 >>/etc/platform/node.env; systemctl restart platform-node; for space in \$(ip netns list | awk '{ print \$1 }'); do ip -n \$space link delete dev overlay; done"
    until_true 60 is_userspace m2 || { on m2 "journalctl -u platform-node --no-pager | tail -n 30"; die "m2 does not make its interface anew"; }
    until_true 60 all_serve || die "m2 is not reached"
    look_at_overlay kernel userspace
}
is_userspace() { [ "$(wireguard_of "$1")" = userspace ]; }

# By each machine's own queue towards the others.
try_netem() {
    local machine interface
    # shellcheck disable=SC2016
    interface='$(ip -o route get '$gateway' | sed "s/.* dev \([^ ]*\).*/\1/")'
    for machine in m1 m2; do on "$machine" "modprobe sch_netem; tc qdisc add dev $interface root netem delay 25ms loss 1%"; done
    from_outside -o /dev/null -w 'a page, at the edge: %{time_total} s\n' -H "Host: $app" "http://$(address 1)/"
    local answered=0 of_m2=0 request
    for ((request = 0; request < 100; request++)); do
        answer=$(page) || continue
        answered=$((answered + 1))
        ! grep -qE '^node +m2$' <<<"$answer" || of_m2=$((of_m2 + 1))
    done
    say "$answered of 100 requests answered, $of_m2 of them by m2"
    for machine in m1 m2; do on "$machine" "tc qdisc del dev $interface root"; done
    if [ "$answered" -lt 100 ] || [ "$of_m2" -lt 10 ]; then die "requests were lost"; fi
}

restart_node() {
    local machine=$1 before after helpers
    before=$(vms "$machine") helpers=$(helpers "$machine")
    on "$machine" systemctl restart platform-node
    until_true 30 is_online "$machine" || die "the node does not come back"
    after=$(vms "$machine")
    same_vms "$before" "$after"
    [ "$(helpers "$machine")" = "$helpers" ] || die "its processes before: $helpers; after: $(helpers "$machine")"
    say "and the same processes of the resolver and of WireGuard: $helpers"
    page >/dev/null || die "the page is gone"
}
helpers() { on "$1" "pgrep -f '^/usr/bin/platform (wireguard|resolver)' | sort -n | xargs"; }

reboot() {
    local machine=$1 old
    old=$(on "$machine" cat /proc/sys/kernel/random/boot_id)
    on "$machine" systemctl reboot || true
    until_true 180 rebooted "$machine" "$old" || die "it does not come back" "console: $work/$machine.console"
    say "it is there again; waiting for the page"
    until_true 180 page || { on m1 "systemctl --failed; platform ps; journalctl -b -u 'platform-*' --no-pager | tail -n 40"; die "the app does not come back"; }
    if [ ${#suites[@]} -gt 1 ]; then
        until_true 120 all_serve || { on m1 "platform ps; platform network"; die "m2 is not reached any more"; }
        look_at_overlay kernel userspace
    fi
    on m1 "systemctl is-active platform-server platform-node platform-edge; platform ps"
}
rebooted() {
    local new
    end_master "$1"
    new=$(on "$1" cat /proc/sys/kernel/random/boot_id) && [ "$new" != "$2" ]
}

# upgrade MACHINE FILE: while one request after the other is answered.
upgrade() {
    local machine=$1 file=$2 before after active failed
    copy "$machine" "$file" /root/other.deb
    before=$(vms "$machine") active="platform-node"
    [ "$machine" != m1 ] || active="platform-server platform-node platform-edge"
    rm -f "$work/answers"
    : >"$work/requests"
    (while [ -f "$work/requests" ]; do
        if answer=$(page); then echo "ok $(awk '$1 == "node" { print $2 }' <<<"$answer")"; else echo "failed at $(date +%T)"; fi >>"$work/answers"
        sleep 0.2
    done) &
    on "$machine" "apt-get install -y -q -o Dpkg::Use-Pty=0 --allow-downgrades --no-install-recommends /root/other.deb 2>&1 | tail -n 4; dpkg -s platform | grep ^Version; systemctl is-active $active"
    until_true 60 is_online "$machine" || die "the node does not come back"
    [ ${#suites[@]} -eq 1 ] || until_true 60 all_serve || die "not every machine serves"
    sleep 2
    rm "$work/requests"
    wait $!
    after=$(vms "$machine") failed=$(grep -c failed "$work/answers" || true)
    say "requests: $(grep -c 'ok m1' "$work/answers" || true) answered by m1, $(grep -c 'ok m2' "$work/answers" || true) by m2, $failed not"
    same_vms "$before" "$after"
    [ "$failed" -eq 0 ] || { cat "$work/answers"; die "requests failed"; }
}

# Packets to and from a node that is revoked stop within 2 s of the command.
revoke_node() {
    local node address
    node=$(on m1 platform nodes | awk '$2 == "m2" { print $1 }')
    until_true 60 served_by_m2_into "$work/page" || die "nothing on m2 answers"
    address=$(awk '$1 == "address" { print $2 }' "$work/page")
    say "asking $address on m2 without end"
    on m1 "rm -f /run/ok /run/stop; (while ! [ -f /run/stop ]; do curl -s -o /dev/null -m 0.5 'http://[$address]:8080/healthz' && date +%s%3N >>/run/ok; done) >/dev/null 2>&1 &
        until [ -s /run/ok ]; do sleep 0.1; done
        date +%s%3N >/run/begun; platform nodes revoke $node; date +%s%3N >/run/acknowledged
        sleep 5; touch /run/stop"
    # From when the server took the command: starting it takes seconds where a processor is emulated.
    on m1 "revoked=\$(journalctl -u platform-server -o short-unix --no-pager | awk '/revoked a member/ { at = \$1 } END { printf \"%.0f\", at * 1000 }') last=\$(tail -n 1 /run/ok)
        echo \"revoked \$((revoked - \$(cat /run/begun))) ms after the command began, acknowledged by all \$((\$(cat /run/acknowledged) - revoked)) ms after that; m2's last answer: \$((last - revoked)) ms after it was revoked\"
        [ \$((last - revoked)) -lt 2000 ]" || die "packets passed for longer than 2 s"
    on m1 "platform nodes; platform network"
    page >/dev/null || die "the page is gone"
}
served_by_m2_into() { page >"$1" && grep -qE '^node +m2$' "$1"; }

# As a machine whose keys were turned out comes back: it keeps its options, and is restarted.
rejoin_node() {
    local node token begun
    node=$(on m1 platform nodes | awk '$2 == "m2" { print $1 }')
    token=$(on m1 platform tokens create --role node --replaces "$node" 2>/dev/null)
    ! on m2 platform node join --again --token-file - <<<"$token" || die "it joins anew under its running agent"
    on m2 "systemctl stop platform-node; platform node down"
    has_no_vms m2 || die "VMs are left on m2"
    begun=$(now)
    on m2 platform node join --again --token-file - <<<"$token"
    on m2 systemctl is-active platform-node
    until_true 60 is_online m2 || die "the node does not come online"
    say "from the call to online: $(since "$begun") s"
    # What m1 has no place for waited for it.
    until_true 240 served_by m2 || { on m1 platform ps; die "nothing on m2 answers"; }
    look_at_overlay kernel userspace
    on m1 "platform nodes; platform ps"
}

remove_node() {
    local node
    node=$(on m1 platform nodes | awk '$2 == "m2" { print $1 }')
    # As many as m1's disk has place for.
    on m1 platform scale web=2
    on m1 platform nodes drain "$node"
    until_true 120 has_no_vms m2 || die "VMs are left on m2"
    on m2 systemctl disable --now platform-node
    on m2 platform node down
    on m1 "platform nodes remove $node --yes; platform nodes"
    ! is_online m2 || die "m2 is a node still"
}

purge() {
    on "$1" "apt-get purge -y -q -o Dpkg::Use-Pty=0 platform 2>&1 | tail -n 5; dpkg -l platform 2>/dev/null | tail -n 1; ls -d /usr/lib/platform /usr/bin/platform /etc/platform 2>/dev/null || true; ls /var/lib/platform; ip netns; ip -br link; systemctl list-units 'platform*' --all --no-legend; systemctl --failed --no-legend"
}

refuse_removal() {
    ! on m1 "apt-get remove -y -q -o Dpkg::Use-Pty=0 platform" || die "the package was removed under running VMs"
    page >/dev/null || die "the page is gone"
}

purge_m1() {
    on m1 "systemctl stop platform-node && platform node down"
    purge m1
}

# --- Steps -----------------------------------------------------------------------------------------

# step TITLE COMMAND...: a command of it that fails ends the run.
step() {
    local from
    title=$1
    shift
    from=$(now)
    say
    say "${bold}== [$(since "$begun") s] $title${plain}"
    "$@"
    say "${faint}   $(since "$from") s${plain}"
}

finish_run() {
    local status=$1 file
    rm -f "$work/requests"
    [ "$status" -eq 0 ] || say "${red}failed${plain}: ${title:-before the first step}"
    if [ -n "${KEEP:-}" ]; then
        say "kept: ip netns exec $namespace ssh -i $work/key $(address 1) (m1), $(address 2) (m2)"
        return
    fi
    for file in "$work"/*.pid; do
        [ ! -f "$file" ] || kill "$(<"$file")" 2>/dev/null || true
        rm -f "$file"
    done
    for ((end = 0; end < 50; end++)); do
        [ -n "$(ip netns pids "$namespace" 2>/dev/null)" ] || break
        sleep 0.1
    done
    ip netns delete "$namespace" 2>/dev/null || true
    rm -f "$work"/m[0-9].{disk,ssh}
    [ "$status" -eq 0 ] || say "the machines' consoles: $work/m*.console"
}

# --- Machines --------------------------------------------------------------------------------------

install_tools() {
    local missing=() tool
    for tool in "${tools[@]}"; do
        dpkg-query -W -f '${Status}' "$tool" 2>/dev/null | grep -q 'ok installed' || missing+=("$tool")
    done
    [ ${#missing[@]} -eq 0 ] || apt-get install -y -q --no-install-recommends "${missing[@]}"
}

# Where this machine's apt has Debian from.
mirror() {
    # These are apt's own, not the shell's.
    # shellcheck disable=SC2016
    apt-get indextargets --format '$(ORIGIN) $(SITE) $(RELEASE)' 'Created-By: Packages' |
        awk '$1 == "Debian" && $3 !~ /security/ { print $2; exit }'
}

make_image() {
    local suite=$1 packages key tree
    packages=$(IFS=,; echo "${inside[*]}"),$(dpkg-deb -f "$package" Depends | sed 's/([^)]*)//g; s/|[^,]*//g; s/ //g')
    key=$(printf '%s\n' "$recipe" "$packages" "$disk" "$(<"$work/key.pub")" | sha256sum | cut -c1-16)
    if [ "$(cat "$work/$suite.key" 2>/dev/null)" = "$key" ]; then
        say "made before: $work/$suite.disk"
        return
    fi
    tree=$work/$suite.tree
    rm -rf "$tree"
    apt-config dump | grep -E '^Acquire::(http|https|Retries|Check-Valid-Until)' >"$work/apt.conf" || true
    mmdebstrap --quiet --mode=root --variant=minbase --aptopt="$work/apt.conf" --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/locale/*' "$suite" "$tree" "deb $(mirror) $suite main"
    install -d -m 700 "$tree/root/.ssh"
    install -m 600 "$work/key.pub" "$tree/root/.ssh/authorized_keys"
    echo 'UseDNS no' >"$tree/etc/ssh/sshd_config.d/machines.conf"
    printf '/dev/vda / ext4 defaults 0 1\n' >"$tree/etc/fstab"
    # No uplink: no source of packages that could be asked.
    rm -f "$tree"/etc/apt/sources.list "$tree"/etc/apt/sources.list.d/* "$tree"/var/log/apt/*
    rm -f "$tree/etc/machine-id" && : >"$tree/etc/machine-id"
    chroot "$tree" systemctl --quiet enable systemd-networkd ssh
    install -d "$tree/var/log/journal"
    cp "$tree"/boot/vmlinuz-* "$work/$suite.vmlinuz"
    cp "$tree"/boot/initrd.img-* "$work/$suite.initrd"
    rm -f "$work/$suite.disk"
    mke2fs -q -t ext4 -L root -d "$tree" "$work/$suite.disk" "$disk"
    rm -rf "$tree"
    echo "$key" >"$work/$suite.key"
    say "$(du -h "$work/$suite.disk" | cut -f1) $work/$suite.disk"
}

make_newer() {
    rm -rf "$work/newer"
    dpkg-deb -R "$package" "$work/newer"
    sed -i 's/^Version: .*/&+newer/' "$work/newer/DEBIAN/control"
    newer=$work/newer.deb
    dpkg-deb --root-owner-group -Zgzip -z1 --build "$work/newer" "$newer"
    rm -rf "$work/newer"
}

make_app() {
    app_layout=$("$here/images.sh" hello)
    say "$app_layout"
}

make_network() {
    ip netns add "$namespace"
    ip -n "$namespace" link set lo up
    ip -n "$namespace" link add machines type bridge
    ip -n "$namespace" addr add "$gateway/24" dev machines
    ip -n "$namespace" link set machines up
    cat >"$work/registry.yml" <<YML
version: 0.1
log: { level: warn, accesslog: { disabled: true } }
storage: { filesystem: { rootdirectory: $work/registry } }
http: { addr: $gateway:5000 }
YML
    ip netns exec "$namespace" docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
    echo $! >"$work/registry.pid"
    until_true 20 ip netns exec "$namespace" curl -fs "http://$gateway:5000/v2/" || die "no registry"
    ip netns exec "$namespace" skopeo copy --quiet --dest-tls-verify=false --digestfile "$work/digest" \
        "oci:$app_layout" "docker://$gateway:5000/hello:1"
    image=$gateway:5000/hello@$(<"$work/digest")
    say "$image"
}

address() { echo "$net.$((10 + $1))"; }

# boot MACHINE SUITE INDEX
boot() {
    local machine=$1 suite=$2 index=$3 mount=$work/$1.mount
    cp --sparse=always --reflink=auto "$work/$suite.disk" "$work/$machine.disk"
    mkdir -p "$mount"
    mount -o loop "$work/$machine.disk" "$mount"
    echo "$machine" >"$mount/etc/hostname"
    { echo "127.0.0.1 localhost"; for i in 1 2 3; do echo "$(address $i) m$i"; done; } >"$mount/etc/hosts"
    printf '[Match]\nName=en* eth*\n[Network]\nAddress=%s/24\nGateway=%s\n' "$(address "$index")" $gateway >"$mount/etc/systemd/network/10-machine.network"
    umount "$mount"
    rmdir "$mount"
    ip -n "$namespace" tuntap add dev "$machine" mode tap
    ip -n "$namespace" link set "$machine" master machines up
    : >"$work/$machine.console"
    # TCG emulates AMD's SVM, so that there is a /dev/kvm within. One processor then: of several, one may run code that another patches just now, and
    # Linux 6.12 ended by that (an int3 in KVM) as its first guest booted.
    local accelerator=tcg,thread=multi processors=1
    if [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo; then accelerator=kvm processors=2; fi
    # A little before others: guests within are given up when they make no progress, and beside a build they make none.
    nice -n -10 ip netns exec "$namespace" qemu-system-x86_64 -M q35 -accel $accelerator -cpu max -smp $processors -m $memory \
        -nodefaults -no-user-config -display none -serial "file:$work/$machine.console" \
        -drive "file=$work/$machine.disk,if=virtio,format=raw,cache=unsafe" \
        -netdev "tap,id=n,ifname=$machine,script=no,downscript=no" \
        -device "virtio-net-pci,netdev=n,mac=52:54:00:00:00:0$index,romfile=" -device virtio-rng-pci \
        -kernel "$work/$suite.vmlinuz" -initrd "$work/$suite.initrd" -append "root=/dev/vda rw console=ttyS0 quiet" \
        >"$work/$machine.log" 2>&1 &
    echo $! >"$work/$machine.pid"
}

wait_for_boot() {
    until_true 180 answers_or_ended "$1" || die "it does not boot" "console: $work/$1.console"
    on "$1" true || die "its QEMU ended: $(tail -n 1 "$work/$1.log")"
    on "$1" "systemctl is-system-running --wait; udevadm settle; uname -r; systemd-analyze | head -n 1; systemctl --failed --no-legend; ls -l /dev/kvm; grep -o -m1 -wE 'svm|vmx' /proc/cpuinfo; cat /sys/fs/cgroup/cgroup.controllers" || true
}

answers_or_ended() { on "$1" true || ! kill -0 "$(<"$work/$1.pid")"; }

ssh_options() {
    printf '%s\n' -i "$work/key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
        -o ConnectTimeout=5 -o BatchMode=yes -o ControlMaster=auto -o ControlPersist=yes -o "ControlPath=$work/$1.ssh"
}

# on MACHINE COMMAND...: runs it there, in a shell, as root.
on() {
    local machine=$1 options
    shift
    mapfile -t options < <(ssh_options "$machine")
    ip netns exec "$namespace" ssh "${options[@]}" "$(address "${machine#m}")" "$@"
}

copy() {
    local options
    mapfile -t options < <(ssh_options "$1")
    ip netns exec "$namespace" scp -q "${options[@]}" "$2" "$(address "${1#m}"):$3"
}

end_master() {
    ip netns exec "$namespace" ssh -o "ControlPath=$work/$1.ssh" -O exit x 2>/dev/null || rm -f "$work/$1.ssh"
}

main "$@"
