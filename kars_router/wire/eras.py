"""MCP revisions, the era they belong to, header names, version negotiation.

Must not know sessions or sockets.

Source: MCP "Versioning" and "Lifecycle"; transports of 2025-03-26, 2025-06-18, 2025-11-25,
2026-07-28.
"""

from __future__ import annotations

import functools
from typing import Final

# Newest first: the first one is what we ask a server for.
HANDSHAKE_REVISIONS: Final = ("2025-11-25", "2025-06-18", "2025-03-26")
LATEST_HANDSHAKE: Final = HANDSHAKE_REVISIONS[0]
# Newest first, too. These have no handshake: each request says for itself what it needs.
STATELESS_REVISIONS: Final = ("2026-07-28",)
LATEST_STATELESS: Final = STATELESS_REVISIONS[0]
# A client that names no version is held to be of this one (2025-06-18, "Protocol Version Header").
ASSUMED_REVISION: Final = "2025-03-26"
BATCH_REVISION: Final = "2025-03-26"

SESSION_HEADER: Final = "mcp-session-id"
VERSION_HEADER: Final = "mcp-protocol-version"
LAST_EVENT_ID_HEADER: Final = "last-event-id"

JSON_TYPE: Final = "application/json"
STREAM_TYPE: Final = "text/event-stream"
ACCEPT_BOTH: Final = f"{JSON_TYPE}, {STREAM_TYPE}"


def negotiate(asked: str) -> str:
    """The revision a server answers with: the one asked for if known, else its latest."""
    return asked if asked in HANDSHAKE_REVISIONS else LATEST_HANDSHAKE


def is_usable(offered: str) -> bool:
    """Whether a client of ours can go on after a server offered this revision.

    2024-11-05 is accepted from servers: they send it over Streamable HTTP, too, and what is used
    here (tools, ping) is the same in it.
    """
    return offered in HANDSHAKE_REVISIONS or offered == "2024-11-05"


@functools.lru_cache(maxsize=64)  # agents keep sending the same few
def is_stateless(version_header: str) -> bool:
    """Whether an MCP-Protocol-Version header is one of the stateless era.

    Any revision is that the handshake era does not know: whoever sends a later one has to be told
    by the rules of the era that later ones belong to.

    Args:
        version_header: the header; "" if there is none, which says nothing.
    """
    version = version_header.strip(" \t")
    return bool(version) and not is_usable(version)


def allows_batch(revision: str) -> bool:
    """Whether a peer of this revision may send JSON-RPC batches."""
    return revision == BATCH_REVISION


@functools.lru_cache(maxsize=64)  # agents keep sending the same few
def accepts(header: str, media_type: str) -> bool:
    """Whether an Accept header admits a media type (RFC 9110, section 12.5.1).

    The most specific range that matches decides: the type itself, then `type/*`, then `*/*`. A
    range with q=0 excludes; of equally specific ones, one without it suffices.
    """
    ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    admitted: dict[str, bool] = {}
    for part in header.split(","):
        name, *params = (piece.strip().lower() for piece in part.split(";"))
        weights = [p.removeprefix("q=") for p in params if p.startswith("q=")]
        counts = not weights or weights[0].strip("0.") != ""
        admitted[name] = admitted.get(name, False) or counts
    return next((admitted[name] for name in ranges if name in admitted), False)
