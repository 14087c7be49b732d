"""The Autobahn test suite for WebSockets: what it finds of the backend through the edge is to be no worse than what it finds of the backend alone.

The suite needs Python 2.7, which Debian 12 has no more: PYTHON27 names one, or `python2.7` is found in PATH. Without one it is skipped. The cases 9.*, which
measure, and 12.* and 13.*, of which each compresses a thousand messages at both ends, are left out unless AUTOBAHN_CASES names them: "*" for all of them, "12.* 13.*".
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

from stand import HERE

# From the best to the worst.
ORDER = ["OK", "INFORMATIONAL", "NON-STRICT", "UNIMPLEMENTED", "WRONG CODE", "UNCLEAN", "FAILED BY CLIENT", "FAILED"]


def rank(of):
    # INFORMATIONAL tells which of several right things was done.
    return 0 if of == "INFORMATIONAL" else ORDER.index(of)


def check(report, stand):
    suite, python = os.environ.get("AUTOBAHN"), os.environ.get("PYTHON27")
    if not suite or not python:
        report.skip("autobahn", "there is no Python 2.7 (PYTHON27 names one)")
        return
    folder = Path(stand.folder) / "autobahn"
    folder.mkdir()
    wanted = os.environ.get("AUTOBAHN_CASES", "").split()
    spec = {
        "outdir": str(folder / "reports"), "options": {"failByDrop": False}, "exclude-agent-cases": {},
        "servers": [{"agent": "direct", "url": f"ws://127.0.0.1:{stand.backend.port}/ws"},
                    {"agent": "edge", "url": f"ws://127.0.0.1:{stand.http}/ws"}],
        "cases": wanted or ["*"], "exclude-cases": [] if wanted else ["9.*", "12.*", "13.*"],
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    # The folder is one of packages with their .pth files, so its path alone would not do.
    code = f"import site; site.addsitedir({suite!r}); from autobahntestsuite.wstest import run; run()"
    command = [python, "-c", code, "-m", "fuzzingclient", "-s", str(folder / "spec.json")]
    with open(folder / "log", "wb") as log:
        done = subprocess.run(command, cwd=folder, stdout=log, stderr=log, timeout=3600)
    index = folder / "reports" / "index.json"
    if done.returncode or not index.exists():
        report.fail("autobahn", f"it ended by {done.returncode}: {(folder / 'log').read_text()[-2000:]}")
        return
    found = json.loads(index.read_text())
    direct, edge = found["direct"], found["edge"]
    worse = []
    for case, of in direct.items():
        through = edge.get(case, {"behavior": "FAILED", "behaviorClose": "FAILED"})
        for key in ("behavior", "behaviorClose"):
            if rank(through[key]) > rank(of[key]):
                worse.append(f"{case} {key}: {through[key]}, alone {of[key]}")
    for case, of in sorted(direct.items()):
        if rank(of["behavior"]) > ORDER.index("NON-STRICT"):
            print(f"autobahn: the backend alone: {case} {of['behavior']}, its end {of['behaviorClose']}")
    counts = {}
    for of in edge.values():
        counts[of["behavior"]] = counts.get(of["behavior"], 0) + 1
    name = f"autobahn: {len(direct)} cases"
    if worse or not direct:
        report.fail(name, "; ".join(worse) or "none was run")
        kept = HERE.parents[2] / "target" / "autobahn"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder / "reports", kept)
        print(f"the reports: {kept}/index.html")
    else:
        report.ok(name, ", ".join(f"{count} {of}" for of, count in sorted(counts.items())) + "; alone the same or worse")
