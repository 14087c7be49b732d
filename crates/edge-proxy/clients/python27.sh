#!/usr/bin/env bash
# Prints the path of a Python 2.7: that of PYTHON27, or the one in PATH. Fails where there is none.
set -euo pipefail
python=${PYTHON27:-$(command -v python2.7)} || exit 1
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (2, 7))' 2>/dev/null || exit 1
printf '%s\n' "$python"
