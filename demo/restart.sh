#!/usr/bin/env bash
# Kills one role of the demo's cluster with SIGKILL and starts it again. The microVMs run on meanwhile.
#
#   demo/restart.sh server|node|edge|registry
set -euo pipefail
# shellcheck source=demo/cluster.sh
. "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"

[ $# -eq 1 ] || die "which role?" "demo/restart.sh server|node|edge|registry"
case $1 in server | node | edge | registry) ;; *) die "there is no role \`$1\`" "roles: server, node, edge, registry" ;; esac
[ "$(id -u)" -eq 0 ] || die "only root can restart a role" "try: sudo demo/restart.sh $1"
[ -d "$demo" ] || die "the demo is not up" "try: make demo"

if alive "$1"; then
    show kill -9 "$pid"
    until_true 5 eval "! alive $1" || die "pid $pid does not end"
else
    say "the $1 does not run"
fi
begun=$(now)
start "$1"
wait_for "$1" 60
say "the $1 is back after $(since "$begun") s, as pid $(cut -d' ' -f1 "$demo/$1.pid")"
