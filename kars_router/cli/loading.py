"""Imports that leave out what other packages take along without need.

A sidecar is paid for once per pod, and some of what it imports serves programs of another kind: an
event loop, terminals, HTTP/2. Some of it is used once, before there is anything to serve. Nothing
is out of reach: who really uses it, gets it. Knows no package by name.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any, Final, cast

# The collector is not to go through everything again and again: what is being loaded stays.
_YOUNG_ONLY: Final = (700, 10, 1_000_000)


@contextmanager
def loading(*, without: tuple[str, ...] = (), later: tuple[str, ...] = ()) -> Iterator[None]:
    """Keeps modules from being loaded while others are being imported that ask for them.

    Modules that are loaded already stay as they are. Afterwards all of them can be imported as
    ever.

    Args:
        without: packages that look as if they were not installed; for what the others declare as
            optional and do without.
        later: modules in whose place there is a stand-in, which loads the real one when something
            of it is used; for what the others import and may never use. `a.b` needs `a` as well.
    """
    hidden: dict[str, ModuleType | None] = {
        **{name: _Later(name) for name in later if name not in sys.modules},
        # How Python marks a module that must not be found (import system, "The module cache").
        **{name: None for name in without if name not in sys.modules},
    }
    modules = cast("dict[str, ModuleType | None]", sys.modules)
    modules.update(hidden)
    thresholds = gc.get_threshold()
    gc.set_threshold(*_YOUNG_ONLY)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        for name, place_holder in hidden.items():
            if modules.get(name, ...) is place_holder:
                del modules[name]


@contextmanager
def passing(*names: str) -> Iterator[None]:
    """Forgets what is loaded meanwhile, so that what is loaded next has its memory.

    Whoever imports it later, loads it anew. So what was made with it has to be gone by the end of
    the block, but for values of other types. Not for use beside other threads: one of them may be
    importing the same.

    Args:
        names: modules, and packages with everything in them. What was loaded before stays as it
            is. Extension modules hold on to what they import and must not be among them.
    """
    fresh = [name for name in names if name not in sys.modules]
    try:
        yield
    finally:
        inside = tuple(f"{name}." for name in fresh)
        forgotten = [each for each in sys.modules if each in fresh or each.startswith(inside)]
        for module in forgotten:
            package, _, last = module.rpartition(".")
            with suppress(KeyError, AttributeError):
                delattr(sys.modules[package], last)
            del sys.modules[module]
        if forgotten:
            # Modules and their functions refer to each other.
            gc.collect()


class _Later(ModuleType):
    """Stands in for a module until something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = importlib.import_module(self.__name__)
        if not hasattr(module, name):
            # Perhaps a module in it, which its own stand-in has kept from being bound here.
            with suppress(ModuleNotFoundError):
                importlib.import_module(f"{self.__name__}.{name}")
        return getattr(module, name)
