"""Does anybody know of a hole in what is installed here? Asks the advisory service of PyPI by pip-audit, where it can be reached.

Ends with 1 where a hole is known; a service that cannot be asked is said to be so, and is no failure of this project.
"""

from __future__ import annotations

import json
import subprocess
import sys

TIMEOUT_S = 120


def main() -> int:
    """Print what was found."""
    words = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--skip-editable", "--local"]
    try:
        ended = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        found = json.loads(ended.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError) as error:
        print(f"pip-audit: no advisory service could be asked from here ({type(error).__name__})")  # noqa: T201
        return 0
    asked = [item for item in found if "vulns" in item]
    holes = [(item["name"], item["version"], hole["id"], hole["fix_versions"]) for item in asked for hole in item["vulns"]]
    for name, version, identity, fixes in holes:
        print(f"pip-audit: {name} {version}: {identity}, mended in {', '.join(fixes) or 'no version yet'}")  # noqa: T201
    print(f"pip-audit: {len(holes)} holes in {len(asked)} packages; of {len(found) - len(asked)} the service here knows nothing")  # noqa: T201
    return 1 if holes else 0


if __name__ == "__main__":
    sys.exit(main())
