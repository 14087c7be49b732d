"""testssl.sh against the port for HTTPS: every finding above INFO is in testssl-accepted.txt, with its reason."""

import json
import subprocess
from pathlib import Path

from stand import HERE


def check(report, stand):
    found = Path(stand.folder) / "testssl.json"
    command = ["testssl", "--quiet", "--color", "0", "--warnings", "off", "--add-ca", stand.ca, "--jsonfile", found,
               "--nodns", "none", f"https://localhost:{stand.https}/bytes/100"]
    done = subprocess.run([str(part) for part in command], capture_output=True, timeout=1500, stdin=subprocess.DEVNULL)
    if not found.exists():
        report.fail("testssl", f"it ended by {done.returncode}: {done.stdout.decode()[-1000:]}")
        return
    accepted = {}
    for line in (HERE / "testssl-accepted.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, reason = line.partition(":")
            accepted[name] = reason.strip()
    findings = json.loads(found.read_text())
    if len(findings) < 50:
        report.fail("testssl", f"it has only {len(findings)} findings: {done.stdout.decode()[-1000:]}")
        return
    passed, missed = 0, set(accepted)
    for finding in findings:
        name = f"testssl: {finding['id']} {finding['severity']}: {finding['finding']}"
        if finding["severity"] in ("OK", "INFO", "DEBUG"):
            passed += 1
        elif finding["id"] in accepted:
            missed.discard(finding["id"])
            report.ok(name, "accepted: " + accepted[finding["id"]])
        else:
            report.fail(name, "it is not in testssl-accepted.txt")
        if finding["id"] in ("overall_grade", "final_score"):
            print(f"testssl: {finding['id']} {finding['finding']}")
    for name in sorted(missed):
        print(f"testssl: {name} is accepted, and was not found")
    report.ok(f"testssl: {passed} findings of no severity")
