"""Imports that leave out what other packages would take along only because it is installed.

A sidecar is paid for once per pod. Knows no package by name.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import cast


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Makes packages look as if they were not installed while others are being imported.

    For packages that the others declare as optional only. Whoever imports them later gets them; one
    that was imported before stays visible.

    Args:
        names: top-level packages.
    """
    # How Python itself marks a module that must not be found (import system, "The module cache").
    hidden = [name for name in names if name not in sys.modules]
    modules = cast("dict[str, ModuleType | None]", sys.modules)
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]
