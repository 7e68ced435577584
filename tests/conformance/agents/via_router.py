"""What the suite's client scenarios start as the client: `driver.py` with the router in between.

    python via_router.py URL

Runs in the router's environment. The Python that runs the driver is named by the variable
`KARS_DRIVER_PYTHON`. The router starts for this one scenario and ends with it; what it logged is
printed when the driver fails. Exit status: the driver's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from peers import peer_environment, run_router  # noqa: E402  (it is found through the line above)

# Less than the suite gives a client, so that the router is ended by us and not orphaned.
LIMIT = 60.0


def main(url: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        server = {"url": url, "allowedTools": ["*"]}
        config = {"servers": {"s": server}, "state": str(Path(folder) / "state")}
        return drive(config, Path(folder))


def drive(config: dict[str, Any], folder: Path) -> int:
    with run_router(config, folder) as router:
        driver = [os.environ["KARS_DRIVER_PYTHON"], str(HERE / "driver.py"), router.mcp("s")]
        try:
            code = subprocess.run(
                driver, env=peer_environment(), timeout=LIMIT, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = 1
            print(f"the driver took more than {LIMIT:g} s", file=sys.stderr)
        if code != 0:
            print(router.process.log(), file=sys.stderr)
        return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
