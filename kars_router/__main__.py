"""`python -m kars_router` is `kars`."""

from __future__ import annotations

import sys

from kars_router.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
