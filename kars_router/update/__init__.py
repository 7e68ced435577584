"""Newer releases: finding them, telling of them, installing them.

Three parts that know nothing of each other's work:

- what an index and a changelog say (pure): `versions`, `simple_api`, `changelog`, `text`,
  `findings`;
- what is asked, and how: `settings`, `pip_settings`, `uv_settings`, `indexes`, `fetch`, `look`;
- what is kept, and done about it: `state`, `background`, `ask`, `installation`, `installing`.

Questions to a network are only ever asked by `python -m kars_router.update`, a process of its own
that a timer of the system ends, so that no server can hold up a command.
docs/decisions/0017-update.md says why it is done this way.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

DISTRIBUTION: Final = "kars-router"
# For our interpreter. With -P it does not take for ours what lies about where the user is.
LOOK: Final = ("-P", "-m", "kars_router.update")


def home(environ: Mapping[str, str]) -> Path:
    """The home directory of the user; of one that has none, a place where nothing can be."""
    if named := environ.get("HOME"):
        return Path(named)
    try:
        return Path.home()
    except RuntimeError:
        return Path(os.devnull)
