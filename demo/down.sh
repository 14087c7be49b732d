#!/usr/bin/env bash
# Ends what up.sh started and removes its data: no process, tap, mount, network namespace or nft rule of the demo is
# left. `make down` runs it. It may be run at any time, also when nothing is up.
set -euo pipefail
# shellcheck source=demo/cluster.sh
. "$(dirname "${BASH_SOURCE[0]}")/cluster.sh"

main() {
    [ "$(id -u)" -eq 0 ] || die "only root can end the demo" "try: sudo make down"
    if [ ! -d "$demo" ] && [ ! -d "$run" ]; then
        say "The demo is not up."
        exit 0
    fi
    finish edge 10
    if [ -d "$demo/edge" ] && [ -x "$platform" ]; then show "$platform" edge down --data-dir "$demo/edge" --log warn; fi
    # The agent first, so that it does not start its microVMs again.
    finish node 10
    take_node_down
    finish server 10
    finish registry 10

    # The link that up.sh made; never a file of your own.
    if [ "$(readlink "$user_config" || true)" = "$admin_config" ]; then
        rm -f "$user_config"
        rmdir --ignore-fail-on-non-empty "$(dirname "$user_config")"
    fi
    nothing_mounted
    rm -rf "$demo" "$run"
    say "${green}The demo is down${plain}: nothing of it is left but what was built."
}

# The microVMs outlive their agent: only this ends them.
take_node_down() {
    [ -d "$demo/node" ] || [ -d "$run" ] || return 0
    [ -x "$platform" ] ||
        die "$platform is gone, and only it can end the microVMs" "build it again: make build, then make down"
    show "$platform" node down --data-dir "$demo/node" --run-dir "$run" --log warn
}

# The demo mounts nothing. Should a mount be there all the same, the data below it is kept.
nothing_mounted() {
    local mounted
    mounted=$(awk -v demo="${demo// /\\\\040}/" -v run="${run// /\\\\040}/" 'index($5, demo) == 1 || index($5, run) == 1 { print $5 }' /proc/self/mountinfo)
    [ -z "$mounted" ] || die "still mounted: $mounted" "try: umount, then make down"
}

main "$@"
