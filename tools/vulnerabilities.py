"""Ask the advisory database about everything that is installed in this environment.

`pip-audit` says "no known vulnerabilities" also when it could ask about nothing at all, because
the package index is a mirror without advisories. Here the difference is told: what was audited is
counted, and an audit that could not take place is a skip with its reason.

Usage: vulnerabilities.py

Exits with 1 if a vulnerability is known; 0 if none is, or if the database does not answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

SECONDS = 300
# Distributions of this repository; no index can know them.
OWN = "kars-"


def report(audited: dict[str, Any]) -> int:
    """Print the verdict on the output of `pip-audit --format json`; the exit status."""
    theirs = [entry for entry in audited["dependencies"] if not entry["name"].startswith(OWN)]
    asked = [entry for entry in theirs if "skip_reason" not in entry]
    if not asked:
        return skip(f"it knows none of the {len(theirs)} distributions (an index mirror?)")
    found = 0
    for entry in asked:
        for known in entry["vulns"]:
            found += 1
            fixed = ", ".join(known["fix_versions"]) or "no release yet"
            print(f"{entry['name']} {entry['version']}: {known['id']}, fixed in {fixed}")
    for entry in theirs:
        if "skip_reason" in entry:
            print(f"not audited: {entry['skip_reason']}")
    print(f"vulnerability audit: {len(asked)} distributions audited, {found} vulnerabilities")
    return int(bool(found))


def skip(reason: str) -> int:
    """Say that nothing was audited; the exit status."""
    print(f"SKIPPED: vulnerability audit: the advisory database does not answer: {reason}")
    return 0


def main() -> int:
    """Run the audit; see the module's docstring."""
    command = ["pip-audit", "--local", "--progress-spinner", "off", "--format", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return skip(f"nothing came within {SECONDS} s")
    if done.stdout.strip():
        return report(json.loads(done.stdout))
    last = (done.stderr.strip() or "no output").splitlines()[-1]
    if any(word in done.stderr for word in ("Connection", "Timeout", "HTTPError", "SSLError")):
        return skip(last)
    print(f"pip-audit itself failed: {last}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
