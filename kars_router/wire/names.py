"""Public tool names: `<server>__<tool>`, at most 64 characters that every model API takes.

Must not know what a tool does.

Source: MCP 2025-11-25 "Tool Names"; function-name pattern of common model APIs
(`^[A-Za-z0-9_-]{1,64}$`).
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

LIMIT: Final = 64
SEPARATOR: Final = "__"
_HASH_LENGTH: Final = 10
# With its separator it fits before the hash of a tool.
_LONGEST_SERVER: Final = LIMIT - _HASH_LENGTH - 1 - len(SEPARATOR)
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]")
_HASHED: Final = re.compile(rf"_[0-9a-f]{{{_HASH_LENGTH}}}\Z")


def public_name(server: str, tool: str) -> str:
    """The name under which a server's tool appears on `/mcp`.

    Deterministic. Names that need changing (too long, or with other characters) get a hash of
    the original as a suffix, so that two of them never become the same; so do names that end
    like one with a hash, lest a tool takes the name that another one was given. What comes before
    the first separator depends on the server alone, so no tool can take the name of another
    server's, whatever hash its own name has.

    Args:
        server: a configured server name; holds no underscore, so the separator is unambiguous.
        tool: the tool's own name, anything a server may send.
    """
    plain = f"{server}{SEPARATOR}{tool}"
    safe = _UNSAFE.sub("_", plain)
    if safe == plain and len(plain) <= LIMIT and not _HASHED.search(plain):
        return plain
    if len(server) > _LONGEST_SERVER:
        # Cut inside the server's name, it would be shared by all servers whose names begin so, and
        # a tool's name can be chosen so that its hash is another tool's.
        kept = server[: _LONGEST_SERVER - _HASH_LENGTH - 1]
        safe = f"{kept}_{_digest(server)}{SEPARATOR}"
    return f"{safe[: LIMIT - _HASH_LENGTH - 1]}_{_digest(plain)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_LENGTH]


def split_public(name: str) -> tuple[str, str] | None:
    """Reads a public name back; None if it is none, or had to be changed when it was made."""
    server, found, own = name.partition(SEPARATOR)
    if not (found and server and own) or public_name(server, own) != name:
        return None
    return server, own


def split_dotted(name: str) -> tuple[str, str] | None:
    """Splits the other accepted spelling, `<server>.<tool>`; None if it is not that."""
    server, dot, tool = name.partition(".")
    return (server, tool) if dot and server and tool else None


def server_of(name: str) -> str | None:
    """The server that a public or dotted name seems to belong to, or None."""
    # The first separator counts: no server's name holds either of them.
    parts = [name.partition(separator) for separator in (SEPARATOR, ".")]
    servers = [server for server, found, rest in parts if found and server and rest]
    return min(servers, key=len, default=None)
