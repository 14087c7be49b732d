#!/usr/bin/env bash
# Measures deploys against their goals, on a cluster of its own beside whatever else runs; `make bench` runs it.
#
# From `platform deploy` to the first 200 through the edge, for the example app (three microVMs): with an empty
# image cache, and with the image's root disk there.
set -euo pipefail

# Ports and folders of its own, before cluster.sh takes the demo's.
DEMO_DIR=$(mktemp -d /tmp/platform-bench.XXXXXX)
DEMO_RUN_DIR=$DEMO_DIR/run
DEMO_PROFILE=dist
DEMO_SERVER_PORT=7410 DEMO_EDGE_PORT=8090 DEMO_EDGE_TLS_PORT=8453 DEMO_REGISTRY_PORT=5010
export DEMO_PROFILE DEMO_DIR DEMO_RUN_DIR DEMO_SERVER_PORT DEMO_EDGE_PORT DEMO_EDGE_TLS_PORT DEMO_REGISTRY_PORT
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=demo/cluster.sh
. "$here/cluster.sh"

rounds=${BENCH_ROUNDS:-3}
cold_goal=15
cached_goal=8

main() {
    trap '"$here/down.sh" >/dev/null' EXIT
    local begun
    begun=$(now)
    "$here/up.sh" >"$demo/up.log" 2>&1 || { tail -n 20 "$demo/up.log" >&2; die "the cluster did not come up"; }
    printf '%-44s %6s s\n' "a cluster up with an app, all built before" "$(since "$begun")"
    image=$(grep -m1 -o "127.0.0.1:$registry_port/hello@sha256:[0-9a-f]*" "$demo/up.log")

    local round cold=() cached=()
    for ((round = 0; round < rounds; round++)); do
        destroy_app
        empty_image_cache
        cold+=("$(to_first_200)")
        destroy_app
        cached+=("$(to_first_200)")
    done
    print_result "deploy to first 200, cold image" $cold_goal "${cold[@]}"
    print_result "deploy to first 200, cached root disk" $cached_goal "${cached[@]}"
}

# print_result TITLE GOAL SECONDS...
print_result() {
    local title=$1 goal=$2
    shift 2
    printf '%-44s %6s s  (goal %s; all: %s)\n' "$title" "$(median "$@")" "$goal" "$*"
}
median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }

destroy_app() {
    cli destroy --app hello --yes >/dev/null 2>&1
    until_true 60 gone || die "the app is still there"
}
gone() { [ "$(cli ps --format json | tr -d '[:space:]')" = '[]' ]; }

empty_image_cache() {
    alive node && kill -9 "$pid"
    until_true 5 eval '! alive node'
    rm -rf "$demo"/node/{blobs,disks,configs}
    start node
    wait_for node 60
}

to_first_200() {
    local begun
    begun=$(now)
    cli deploy "$top/examples/hello/platform.toml" --image "$image" >"$demo/deploy.log" 2>&1 &
    until_true 120 answers || { cat "$demo/deploy.log" >&2; die "no 200"; }
    since "$begun"
    wait $! || { cat "$demo/deploy.log" >&2; die "the deploy failed"; }
}
answers() { curl -fs -o /dev/null --max-time 1 -H "Host: $host" "http://127.0.0.1:$edge_port/"; }

main
