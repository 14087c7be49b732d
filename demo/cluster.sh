# What the demo's scripts share: its folders and ports, its processes, its roles.
# Sourced by up.sh, down.sh and restart.sh.
# shellcheck shell=bash disable=SC2034

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=demo/rust.sh
. "$top/demo/rust.sh"

# The demo's own folders; a cluster of yours in /var/lib/platform is never touched.
demo=${DEMO_DIR:-/var/lib/platform-demo}
run=${DEMO_RUN_DIR:-/run/platform-demo}

# Ports on the loopback; a demo that is up keeps those it was started with.
# shellcheck source=/dev/null
if [ -r "$demo/ports" ]; then . "$demo/ports"; fi
server_port=${DEMO_SERVER_PORT:-7400}
edge_port=${DEMO_EDGE_PORT:-8080}
edge_tls_port=${DEMO_EDGE_TLS_PORT:-8443}
registry_port=${DEMO_REGISTRY_PORT:-5000}

# The program: every role, and the command line. `demo/bench.sh` measures that of profile `dist`.
profile=${DEMO_PROFILE:-release}
platform=$top/target/$profile/platform
# The link by which the command line finds the demo's cluster, unless you have a configuration of your own.
user_config=${XDG_CONFIG_HOME:-$HOME/.config}/platform/config.json
admin_config=$demo/server/client.json
host=hello.localhost
page=http://$host:$edge_port/
# And by HTTPS, with a certificate of the CA in this file.
tls_page=https://$host:$edge_tls_port/
ingress_ca=$demo/ingress-ca.pem

# Before what only root may do, in what is shown to whoever came by sudo.
as_root=${SUDO_USER:+sudo }

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1m' faint=$'\e[2m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'
else
    bold='' faint='' red='' green='' plain=''
fi

say() { printf '%s\n' "$*"; }

# die ERROR HINT...
die() {
    printf '%s\n' "${red}error${plain}: $1" >&2
    shift
    local line
    for line in "$@"; do printf '  %s\n' "$line" >&2; done
    exit 1
}

# Shows a command as you would type it, then runs it.
show() {
    local shown='' word
    for word in "${@/#$top\/}"; do
        [[ $word =~ ^[A-Za-z0-9_./:@=,%+-]+$ ]] || word=${word@Q}
        shown+=" $word"
    done
    [ "$1" != cli ] || shown=" platform${shown# cli}"
    printf '%s\n' "${faint}\$$shown${plain}" >&2
    "$@"
}

# The command line, talking to the demo's cluster whatever else is configured.
cli() { PLATFORM_CONFIG=$admin_config "$platform" "$@"; }

now() { printf '%s' "${EPOCHREALTIME/[.,]/}"; }                 # microseconds
since() { printf '%d.%d' $((($(now) - $1) / 1000000)) $((($(now) - $1) / 100000 % 10)); }

# until_true SECONDS COMMAND...: runs it until it succeeds; false when it did not in time.
until_true() {
    local end=$(($(now) + $1 * 1000000))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$(now)" -lt "$end" ] || return 1
        sleep 0.1
    done
}

# --- Processes -----------------------------------------------------------------------------------
#
# A process is known by its pid, its start time and its program, kept in $demo/NAME.pid: the kernel may have given
# the pid to another process since.

# "state start-time" of a pid, from the fields after the program's name.
stat_of() {
    local stat
    { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
    # shellcheck disable=SC2086
    set -- ${stat##*) }
    printf '%s %s\n' "$1" "${20}"
}

# alive NAME: whether the process of this name runs; sets $pid.
alive() {
    local started program state start exe
    [ -f "$demo/$1.pid" ] || return 1
    read -r pid started program <"$demo/$1.pid" || return 1
    read -r state start < <(stat_of "$pid") || return 1
    [ "$state" != Z ] && [ "$start" = "$started" ] || return 1
    exe=$(readlink "/proc/$pid/exe") || return 1
    [ "${exe% (deleted)}" = "$program" ]
}

# launch NAME PROGRAM ARGUMENT...: starts it in the background, in a session of its own, so that it
# outlives this script and its terminal. Its log is $demo/NAME.log.
launch() {
    local name=$1 program
    program=$(readlink -f "$2")
    shift 2
    setsid "$program" "$@" >>"$demo/$name.log" 2>&1 </dev/null &
    local started=$!
    local state start
    read -r state start < <(stat_of "$started") || true
    printf '%s %s %s\n' "$started" "${start:-0}" "$program" >"$demo/$name.pid"
    # setsid becomes the program, or the program ends at once.
    until_true 5 launched "$name" || true
    alive "$name" || ended_at_once "$name"
}
launched() { alive "$1" || ! stat_of "$pid"; }

ended_at_once() {
    say "${faint}the last lines of $demo/$1.log:${plain}" >&2
    tail -n 15 "$demo/$1.log" >&2 || true
    die "the $1 ended at once" "correct what they say, then run this again"
}

# finish NAME SECONDS: asks it to end, and ends it.
finish() {
    local end=$(($(now) + $2 * 1000000))
    if alive "$1"; then
        kill "$pid" 2>/dev/null || true
        while alive "$1"; do
            if [ "$(now)" -gt "$end" ]; then
                say "the $1 did not end within $2 s; killing it"
                kill -9 "$pid" 2>/dev/null || true
            fi
            sleep 0.05
        done
    fi
    rm -f "$demo/$1.pid"
}

# --- The roles -----------------------------------------------------------------------------------

# start ROLE: starts a role that does not run. Node and edge join with the token in PLATFORM_TOKEN the first time;
# afterwards their certificate identifies them.
start() {
    alive "$1" && return
    case $1 in
        registry)
            launch registry /usr/bin/docker-registry serve "$demo/registry.yml" ;;
        server)
            launch server "$platform" server --listen "127.0.0.1:$server_port" --data-dir "$demo/server" ;;
        node)
            launch node "$platform" node --server "https://127.0.0.1:$server_port" --name demo \
                --data-dir "$demo/node" --run-dir "$run" ;;
        edge)
            launch edge "$platform" edge --server "https://127.0.0.1:$server_port" --name demo \
                --data-dir "$demo/edge" --listen "127.0.0.1:$edge_port" --listen-tls "127.0.0.1:$edge_tls_port" ;;
        *) die "there is no role \`$1\`" "roles: registry, server, node, edge" ;;
    esac
}

# serves ROLE: whether the role answers.
serves() {
    case $1 in
        registry) curl -fs -o /dev/null "http://127.0.0.1:$registry_port/v2/" ;;
        server) cli nodes ;;
        node) cli nodes --format json | grep -q '"online": true' ;;
        edge) curl -s -o /dev/null "http://127.0.0.1:$edge_port/" ;;
    esac
}

# wait_for ROLE SECONDS
wait_for() {
    local end=$(($(now) + $2 * 1000000))
    until serves "$1" >/dev/null 2>&1; do
        alive "$1" || ended_at_once "$1"
        [ "$(now)" -lt "$end" ] ||
            die "the $1 did not come up within $2 s" "its log: $demo/$1.log" "make down ends what was started"
        sleep 0.1
    done
}
