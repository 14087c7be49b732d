# Finds Rust and the tools of `make install`. The Makefile and the demo's scripts source it; bash, by BASH_ENV.
# shellcheck shell=bash
#
# rustup installs into a user's home. Under sudo, HOME is often root's, and the Rust is in the home of the user
# who called sudo: that user's programs and toolchains are used, and what they download goes to root's own home,
# so that nothing in the user's ~/.cargo ends up owned by root.

PATH=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/target/tools/bin:$PATH
PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
if [ -n "${SUDO_USER:-}" ] && ! command -v cargo >/dev/null; then
    sudo_home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
    if [ -x "$sudo_home/.cargo/bin/cargo" ]; then
        PATH=$PATH:$sudo_home/.cargo/bin
        if [ -d "$sudo_home/.rustup" ]; then export RUSTUP_HOME=${RUSTUP_HOME:-$sudo_home/.rustup}; fi
    fi
    unset sudo_home
fi
export PATH=$PATH:/usr/sbin:/sbin
