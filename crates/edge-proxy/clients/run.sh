#!/usr/bin/env bash
# run.sh PROGRAM ARGUMENT...: a program of this folder, with what `demo/install.sh clients` installed. `make clients` and `make soak` call it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools=$(cd "$here/../../.." && pwd)/target/tools
export PATH=$tools/clients/bin:$PATH
if PYTHON27=$("$here/python27.sh") && [ -e "$tools/autobahn/installed.txt" ]; then
    export PYTHON27 AUTOBAHN=$tools/autobahn
fi
# What this machine has set for clients of the internet is not for loopback.
unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY SSL_CERT_FILE REQUESTS_CA_BUNDLE CURL_CA_BUNDLE
# Thousands of connections, each with two ends here.
ulimit -n "$(ulimit -Hn)"
# Java's and Python's caches stay out of the tree.
export PYTHONDONTWRITEBYTECODE=1
program=$1
shift
exec "$tools/clients/bin/python" "$here/$program" "$@"
