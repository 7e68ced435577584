"""Admits tools by the globs of `allowedTools`; none without a matching one.

Source: fnmatch patterns, letter case significant.
"""

from __future__ import annotations

from kars_router.config.globs import matches_any
from kars_router.hookspecs import hookimpl
from kars_router.model import ServerInfo


@hookimpl
def kars_admit_tool(server: ServerInfo, tool: str) -> bool:
    """True if any glob of the server's `allowedTools` matches the tool's own name."""
    return matches_any(tool, server.allowed_tools)
