#!/usr/bin/env bash
# A cluster of several machines on this one: `make demo NODES=3` runs it, `make down` ends it.
#
# Each machine is a network namespace with an address of its own: one with a registry and `platform server`, one for each
# `platform node`, one with `platform edge`. They reach each other over a switch, and nothing else. The instances on them reach each other
# over the overlay. It shows an app over all nodes behind the edge, names, and another env that reaches nothing of it.
set -euo pipefail
DEMO_DIR=${DEMO_DIR:-/var/lib/platform-demo-nodes}
DEMO_RUN_DIR=${DEMO_RUN_DIR:-/run/platform-demo-nodes}
export DEMO_DIR DEMO_RUN_DIR
# shellcheck source=demo/cluster.sh
. "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"

# What says that the folder is of this demo.
is_ours=$demo/machines
nodes=${NODES:-3}
# Of the networks for measurements (RFC 2544): nobody else's.
network=198.18.7
server_url=https://$network.1:$server_port
registry=$network.1:$registry_port
# Memory that the microVMs of one node take, in MiB.
memory_of_node=700

main() {
    case ${1:-up} in
        up) up ;;
        down) down ;;
        *) die "what is \`$1\`?" "demo/nodes.sh up|down" ;;
    esac
}

up() {
    begun=$(now)
    [ "$(id -u)" -eq 0 ] || die "the demo needs root: it makes network namespaces and taps" "try: sudo make demo NODES=$nodes"
    [[ $nodes =~ ^[1-9]$ ]] || die "NODES=$nodes: it is a number from 1 to 9"
    if [ -d "$demo" ]; then
        die "the demo of several nodes is up, or was not ended" "make down, then run this again"
    fi
    local memory
    memory=$(($(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 1024))
    [ "$memory" -ge $((nodes * memory_of_node)) ] ||
        die "only $memory MiB of memory are available; $nodes nodes take $((nodes * memory_of_node)) MiB" "try fewer: make demo NODES=1"
    step "Packages and tools" "$top/demo/install.sh"
    step "Build the platform" make --no-print-directory -C "$top" build
    mkdir -p "$demo" "$run" && chmod 700 "$demo"
    : >"$is_ours"
    step "An image of the example app, out of Debian packages" "$top/examples/images.sh" hello
    step "$((nodes + 2)) machines on a switch" make_machines
    step "A registry and the control plane, on a machine of their own" start_server
    step "$nodes nodes, each on a machine of its own" start_nodes
    step "An edge on a machine of its own" start_edge
    step "Deploy: an app over all nodes, and the same app as another env" deploy
    step "The members, and how they reach each other" show cli network
    step "The page, through the edge, from each node" get_pages
    step "Names: an instance finds its neighbours on other nodes" names
    step "Isolation: the other env finds nothing of it, and reaches nothing" isolation
    say
    say "${bold}Up in $(since "$begun") s.${plain}"
    for line in "${times[@]}"; do say "  $line"; done
    say
    say "Go on:"
    local command
    command="${as_root}nsenter --net=/run/netns/$(machine server) env PLATFORM_CONFIG=$admin_config $(printf '%q' "$platform")"
    say "  alias platform=${command@Q}"
    say "  platform ps; platform network; platform nodes revoke node-2"
    say "  ${as_root}make down"
}

times=()
step() {
    local title=$1 start
    shift
    start=$(now)
    say
    say "${bold}== $title${plain}"
    "$@"
    times+=("$(printf '%6s s  %s' "$(since "$start")" "$title")")
}

# --- The machines ---------------------------------------------------------------------------------

# machine NAME: the network namespace that is this machine.
machine() { printf 'demo-%s' "$1"; }
machines() {
    local number
    printf 'server\nedge\n'
    for ((number = 1; number <= nodes; number++)); do printf 'node-%s\n' "$number"; done
}
# on NAME COMMAND...: runs it there. Mounts stay this machine's: a node's own namespace has its name in /run/netns.
on() {
    local name=$1
    shift
    nsenter --net="/run/netns/$(machine "$name")" -- "$@"
}
# The command line asks the server from the server's machine.
cli() { PLATFORM_CONFIG=$admin_config on server "$platform" "$@"; }

make_machines() {
    ip netns add demo-switch
    ip -n demo-switch link add switch type bridge
    ip -n demo-switch link set switch up
    local name number=0
    while read -r name; do
        number=$((number + 1))
        ip netns add "$(machine "$name")"
        ip link add "port$number" netns demo-switch type veth peer name eth0 netns "$(machine "$name")"
        ip -n demo-switch link set "port$number" master switch up
        ip -n "$(machine "$name")" link set lo up
        ip -n "$(machine "$name")" link set eth0 up
        ip -n "$(machine "$name")" addr add "$network.$number/24" dev eth0
        say "$name: $network.$number"
    done < <(machines)
}

# start_on MACHINE NAME PROGRAM ARGUMENT...: starts it there, in the background.
start_on() {
    local where=$1 name=$2
    shift 2
    launch "$name" "$(command -v nsenter)" --net="/run/netns/$(machine "$where")" -- "$@"
}
# nsenter becomes the program: what runs is known by its pid alone.
alive() {
    [ -f "$demo/$1.pid" ] || return 1
    local started state start program
    read -r pid started program <"$demo/$1.pid" || return 1
    read -r state start < <(stat_of "$pid") || return 1
    [ "$state" != Z ] && [ "$start" = "$started" ]
}

start_server() {
    cat >"$demo/registry.yml" <<YML
version: 0.1
log: { level: warn, accesslog: { disabled: true } }
storage: { filesystem: { rootdirectory: $demo/registry } }
http: { addr: $registry }
YML
    mkdir -p "$demo/registry"
    start_on server registry /usr/bin/docker-registry serve "$demo/registry.yml"
    until_true 20 on server curl -fs -o /dev/null "http://$registry/v2/" || die "the registry does not answer" "its log: $demo/registry.log"
    image=$(on server "$top/examples/images.sh" hello "$registry")
    start_on server server "$platform" server --listen "$network.1:$server_port" --data-dir "$demo/server" --insecure-registry "$registry"
    until_true 30 cli nodes || ended_at_once server
    say "the server listens on $server_url"
}

# join ROLE NAME ARGUMENT...: a machine enrolls with a one-time token, and is a member.
join() {
    local role=$1 name=$2
    shift 2
    local PLATFORM_TOKEN
    PLATFORM_TOKEN=$(cli tokens create --role "$role" --ttl 5m)
    export PLATFORM_TOKEN
    start_on "$name" "$name" "$platform" "$role" --server "$server_url" --name "$name" --data-dir "$demo/$name" "$@"
}

start_nodes() {
    local number
    for ((number = 1; number <= nodes; number++)); do
        join node "node-$number" --run-dir "$run/node-$number" --insecure-registry "$registry"
    done
    until_true 60 all_online || { cli nodes >&2; die "not every node came up" "their logs: $demo/node-*.log"; }
    cli nodes
}
all_online() { [ "$(cli nodes --format json | grep -c '"online": true')" -eq "$nodes" ]; }

start_edge() {
    join edge edge --listen "$network.2:80"
    until_true 60 on server curl -s -o /dev/null "http://$network.2/" || die "the edge does not answer" "its log: $demo/edge.log"
    say "the edge listens on http://$network.2"
}

# --- What is shown --------------------------------------------------------------------------------

deploy() {
    # One `web` on each node, and a worker to ask from.
    sed -e "s/^min = 2/min = $nodes/" -e "s/^max = 6/max = 9/" "$top/examples/hello/platform.toml" >"$demo/hello.toml"
    show cli deploy "$demo/hello.toml" --image "$image"
    sed -e '/^\[routes\]/,$d' -e 's/^min = 2/min = 1/' "$top/examples/hello/platform.toml" >"$demo/other.toml"
    show cli deploy "$demo/other.toml" --env other --image "$image"
    show cli ps --all
}

get_pages() {
    until_true 30 page_of_each_node || die "the page does not come from each node" "the edge's log: $demo/edge.log"
    on server curl -s --max-time 10 -H "Host: $host" "http://$network.2/" | head -n 5
    say "served by: $(served_by | sort -u | paste -sd' ')"
}
served_by() {
    local _
    for _ in $(seq $((nodes * 4))); do
        on server curl -fs --max-time 5 -H "Host: $host" "http://$network.2/" | grep -o 'PLATFORM_NODE=[a-z0-9-]*\|node-[0-9]' | head -n 1
    done
}
page_of_each_node() { [ "$(served_by | sort -u | wc -l)" -eq "$nodes" ]; }

# in_worker ENV COMMAND: shows it, and runs it in that env's worker.
in_worker() { show cli exec --app hello --env "$1" --process worker -- sh -c "$2"; }

# addresses: those of `web`, as its worker is told them.
addresses() { in_worker prod 'nslookup web' 2>/dev/null | sed -n 's/^Address: \(fd[0-9a-f:]*\).*/\1/p'; }

# get ADDRESS: what asks an instance for its page, in an image that has little.
get() { printf '%s' "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 $1 8080 | grep '^node'"; }

names() {
    in_worker prod 'nslookup web' || die "the worker does not find its neighbours"
    in_worker prod "$(get web)" || die "the worker does not reach its neighbours by their name"
    local address
    for address in $(addresses); do
        in_worker prod "$(get "$address")" || die "the worker does not reach $address"
    done
}

isolation() {
    local address
    address=$(addresses | head -n 1)
    say "an instance of env prod: $address"
    if in_worker other 'nslookup web.prod.hello.internal'; then die "the other env finds names that are not its own"; fi
    if in_worker other "$(get "$address")"; then die "the other env reaches an instance that is not its own"; fi
    say "${green}as it is to be${plain}: no name, no packet"
}

# --- The end --------------------------------------------------------------------------------------

down() {
    [ "$(id -u)" -eq 0 ] || die "only root can end the demo" "try: sudo make down"
    # With DEMO_DIR it may be the demo of one machine, which down.sh ends.
    [ -e "$is_ours" ] || [ -d "$demo/node-1" ] || return 0
    local name namespace
    for name in edge node-{1..9}; do finish "$name" 10; done
    for name in node-{1..9}; do
        [ -d "$demo/$name" ] || continue
        on "$name" "$platform" node down --data-dir "$demo/$name" --run-dir "$run/$name" --log warn
    done
    if [ -d "$demo/edge" ]; then on edge "$platform" edge down --data-dir "$demo/edge" --log warn; fi
    finish server 10
    finish registry 10
    for namespace in /run/netns/demo-*; do
        [ ! -e "$namespace" ] || ip netns delete "$(basename "$namespace")"
    done
    rm -rf "$demo" "$run"
    say "${green}The demo of several nodes is down${plain}: nothing of it is left but what was built."
}

main "$@"
