"""Withholds tools that are not as they were accepted; `toolsLock` names what was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kars_router import pinning
from kars_router.hookspecs import hookimpl
from kars_router.model import ServerInfo


@hookimpl
def kars_admit_tool(server: ServerInfo, tool: str, definition: Mapping[str, Any]) -> bool | None:
    """Refuses whatever differs from its pin, or has none; has no opinion without a lock."""
    if server.pins is None or pinning.matches(server.pins, tool, definition):
        return None
    return False
