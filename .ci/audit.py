"""Look for known vulnerabilities of the dependencies, in a few seconds; without a network, say so and end well."""
from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib import metadata

from packaging.requirements import Requirement

#: Seconds that all of it may take.
TIMEOUT = 5.0

DISTRIBUTION = "celery-memsync"


def needed(name: str, found: dict[str, str]) -> dict[str, str]:
    """Add by name the installed version of what a distribution needs without extras, directly or not; return all."""
    for requirement in map(Requirement, metadata.requires(name) or ()):
        other = requirement.name.lower()
        if other not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            found[other] = metadata.version(other)
            needed(other, found)
    return found


def main() -> int:
    """Return 1 if a version that is installed has a known vulnerability."""
    pins = "".join(f"{name}=={version}\n" for name, version in sorted(needed(DISTRIBUTION, {}).items()))
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(pins)
        file.flush()
        command = [sys.executable, "-m", "pip_audit", "--requirement", file.name, "--no-deps", "--disable-pip",
                   "--format", "json", "--progress-spinner", "off", "--timeout", "3"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
            audited = [one for one in json.loads(done.stdout)["dependencies"] if "vulns" in one]
        except (subprocess.TimeoutExpired, ValueError):
            audited = []
    if not audited:
        print("pip-audit: skipped, because it is not installed or the service did not answer")
        return 0
    wrong = [f"{one['name']} {one['version']}: {', '.join(found['id'] for found in one['vulns'])}"
             for one in audited if one["vulns"]]
    print("\n".join(wrong) or f"pip-audit: no known vulnerability in {len(audited)} packages")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
