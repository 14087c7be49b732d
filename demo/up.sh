#!/usr/bin/env bash
# Starts a whole cluster on this machine and deploys an app on it: the tutorial, as a script. `make demo` runs it.
#
# What it starts: a registry, `platform server`, `platform node`, `platform edge`, and the app of examples/hello
# in three microVMs. Everything is on the loopback and in /var/lib/platform-demo; `make down` ends it.
set -euo pipefail
# shellcheck source=demo/cluster.sh
. "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"

# Free space in MiB that a first build takes, and that images and disks take; memory in MiB of three microVMs.
build_space=8000
data_space=1500
memory_needed=1200

main() {
    begun=$(now)
    trap restore_owner EXIT
    if is_up; then
        say "The demo is up already: $page"
        how_to_go_on
        exit 0
    fi
    check_machine
    step "Packages and tools" "$top/demo/install.sh"
    local target=build
    [ "$profile" = release ] || target=$profile
    step "Build the platform" make --no-print-directory -C "$top" "$target"
    mkdir -p "$demo" && chmod 700 "$demo"
    keep_ports

    step "A registry on the loopback" start_registry
    step "An image of the example app, out of Debian packages" push_image
    step "The control plane: platform server" start_server
    step "A node: a one-time token, then platform node" join node
    step "An edge: a one-time token, then platform edge" join edge
    step "Deploy" deploy
    step "The page, from both instances of \`web\`" get_page
    step "What runs, and what it says" look

    say
    say "${bold}Up in $(since "$begun") s.${plain}"
    for line in "${times[@]}"; do say "  $line"; done
    say
    how_to_go_on
}

times=()
# step TITLE COMMAND...: a heading, the work, and how long it took.
step() {
    local title=$1 start
    shift
    start=$(now)
    say
    say "${bold}== $title${plain}"
    "$@"
    times+=("$(printf '%6s s  %s' "$(since "$start")" "$title")")
}

# Under sudo, what was built belongs to the owner of the clone, who can go on without sudo.
restore_owner() {
    [ -z "${SUDO_USER:-}" ] || [ ! -d "$top/target" ] || chown -R --reference="$top" "$top/target"
}

is_up() {
    local role
    for role in registry server node edge; do alive $role || return 1; done
    curl -fs -o /dev/null --max-time 5 -H "Host: $host" "http://127.0.0.1:$edge_port/"
}

# --- Before anything is started ------------------------------------------------------------------

check_machine() {
    [ "$(id -u)" -eq 0 ] || die "the demo needs root: it makes network namespaces and taps" "try: sudo make demo"
    [ "$(uname -m)" = x86_64 ] || die "this machine is $(uname -m); the demo's images are for x86_64"
    command -v apt-get >/dev/null ||
        die "this is not a Debian machine" "demo/install.sh names what is needed; Debian 12 is what we test on"
    [ -c /dev/net/tun ] || die "there is no /dev/net/tun" "try: modprobe tun"
    local role
    for role in registry server node edge; do
        alive $role || port_free $role
    done
    alive edge || port_free edge-tls
    local need=$build_space
    [ ! -x "$platform" ] || need=$data_space
    space "$top" $need
    mkdir -p "$(dirname "$demo")"
    space "$(dirname "$demo")" $data_space
    local memory
    memory=$(($(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 1024))
    [ "$memory" -ge $memory_needed ] ||
        die "only $memory MiB of memory are available; the demo's microVMs take $memory_needed MiB"
}

# port_free ROLE
port_free() {
    local port variable
    case $1 in
        registry) port=$registry_port variable=DEMO_REGISTRY_PORT ;;
        server) port=$server_port variable=DEMO_SERVER_PORT ;;
        edge) port=$edge_port variable=DEMO_EDGE_PORT ;;
        edge-tls) port=$edge_tls_port variable=DEMO_EDGE_TLS_PORT ;;
        *) return 0 ;;
    esac
    if (: </dev/tcp/127.0.0.1/"$port") 2>/dev/null; then
        die "port $port, for the $1, is taken" "end what listens there (ss -ltnp 'sport = :$port' says what)," \
            "or choose another: make demo $variable=$((port + 1))"
    fi
}

# space FOLDER MIB
space() {
    local free
    free=$(df --output=avail -m "$1" | tail -n 1)
    [ "$free" -ge "$2" ] || die "only $((free)) MiB are free in $1; $2 MiB are needed"
}

# --- The steps -----------------------------------------------------------------------------------

# For restart.sh and the next `make demo`, where a variable of the environment wins.
keep_ports() {
    cat >"$demo/ports" <<PORTS
: "\${DEMO_SERVER_PORT:=$server_port}" "\${DEMO_EDGE_PORT:=$edge_port}" "\${DEMO_EDGE_TLS_PORT:=$edge_tls_port}" "\${DEMO_REGISTRY_PORT:=$registry_port}"
PORTS
}

start_registry() {
    cat >"$demo/registry.yml" <<YML
version: 0.1
log: { level: warn, accesslog: { disabled: true } }
storage: { filesystem: { rootdirectory: $demo/registry } }
http: { addr: 127.0.0.1:$registry_port }
YML
    mkdir -p "$demo/registry"
    start registry
    wait_for registry 20
    say "docker-registry listens on 127.0.0.1:$registry_port"
}

push_image() {
    image=$("$top/examples/images.sh" hello "127.0.0.1:$registry_port")
    say "$image"
}

start_server() {
    start server
    wait_for server 30
    configure_user
    say "the server listens on https://127.0.0.1:$server_port; its first admin's configuration is $admin_config"
}

# `platform ps` finds this cluster, unless you have a configuration of your own.
configure_user() {
    if [ ! -e "$user_config" ]; then
        mkdir -p "$(dirname "$user_config")"
        ln -sfn "$admin_config" "$user_config"
    fi
}

# join ROLE: a machine enrolls, with a one-time token and keys of its own. Afterwards its certificate identifies
# it.
join() {
    if ! alive "$1" && [ ! -e "$demo/$1/member.json" ]; then
        PLATFORM_TOKEN=$(show cli tokens create --role "$1" --ttl 5m)
        export PLATFORM_TOKEN
    fi
    start "$1"
    unset PLATFORM_TOKEN
    wait_for "$1" 60
    case $1 in
        node) cli nodes ;;
        edge) say "the edge listens on http://127.0.0.1:$edge_port and https://127.0.0.1:$edge_tls_port" ;;
    esac
}

deploy() {
    show cli deploy "$top/examples/hello/platform.toml" --image "$image"
}

get_page() {
    until_true 20 page_is_there || {
        curl -s -H "Host: $host" "http://127.0.0.1:$edge_port/" >&2 || true
        die "the page is not served" "the edge's log: $demo/edge.log"
    }
    for _ in 1 2; do
        # A name below .localhost is this machine (RFC 6761); curl needs no DNS for it.
        show curl -s --max-time 10 --resolve "$host:$edge_port:127.0.0.1" "$page"
        say
    done
    # By HTTPS: the cluster's CA of hosts signed a certificate for this one.
    cli certificates ca >"$ingress_ca"
    show curl -s --max-time 10 --cacert "$ingress_ca" --resolve "$host:$edge_tls_port:127.0.0.1" "$tls_page" ||
        die "the page is not served by HTTPS" "the edge's log: $demo/edge.log"
    say
}
page_is_there() { curl -fs -o /dev/null --max-time 5 -H "Host: $host" "http://127.0.0.1:$edge_port/"; }

look() {
    show cli ps --all
    say
    show cli logs --app hello --tail 3
}

how_to_go_on() {
    say "Go on:"
    local config=''
    [ "$user_config" -ef "$admin_config" ] || config="env PLATFORM_CONFIG=$admin_config "
    local command
    command=$as_root$config$(printf '%q' "$platform")
    cat <<TEXT
  alias platform=${command@Q}
  curl $page                      # again, and the other instance answers
  ${as_root}curl --cacert $ingress_ca $tls_page
  platform logs -f --process web                         # a line per request
  platform exec -it --process web -- sh                  # a shell beside the app
  platform scale web=3                                   # one more
  ${as_root}demo/restart.sh node                                   # kill -9 and start a role again: nothing stops
  platform destroy --app hello                           # the app alone
  ${as_root}make down                                              # everything, without a trace
The roles' logs are $demo/{server,node,edge}.log.
TEXT
}

main "$@"
