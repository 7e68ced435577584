"""URIs of many servers on one endpoint: each is wrapped so that it names its server, reversibly.

    file:///a        <server>+file:///a        URI templates likewise (RFC 6570)
    {scheme}://a     <server>+{scheme}://a     expands to what its expansion is wrapped to
    a/b              <server>+:a/b             no URI, but servers may send any text
    ui://a           ui://<server>/a           MCP Apps tell these by their scheme

A scheme starts with a letter (RFC 3986, section 3.1), so a server whose name starts with a digit
is written with `n.` before it, which no server's name holds.

Must not know which servers there are.
"""

from __future__ import annotations

import re
from typing import Final

_SERVER: Final = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
# In ASCII alone: with all of Unicode, the Kelvin sign would be a K.
_FLAGS: Final = re.ASCII | re.IGNORECASE | re.DOTALL
# An expression at the start stands for a scheme, or for all of a URI.
_WHOLE: Final = re.compile(r"[a-z][a-z0-9+.-]*:|\{", _FLAGS)
_APP: Final = re.compile(r"(ui://)(.*)", _FLAGS)
_WRAPPED: Final = re.compile(rf"(?:n\.(?=[0-9])|(?=[a-z]))({_SERVER})\+(.+)", _FLAGS)
_WRAPPED_APP: Final = re.compile(rf"(ui://)({_SERVER})/(.*)", _FLAGS)


def wrap(server: str, uri: str) -> str:
    """The URI, or URI template, under which a server's resource appears on `/mcp`.

    Two servers never have the same, and neither have two URIs of one server.

    Args:
        server: a configured server name: 1 to 63 of `[a-z0-9-]`, no dash at an edge.
        uri: the server's own, anything that it may send.
    """
    app = _APP.fullmatch(uri)
    if app:
        return f"{app[1]}{server}/{app[2]}"
    prefix = "n." if server[0].isdigit() else ""
    mark = "" if _WHOLE.match(uri) else ":"
    return f"{prefix}{server}+{mark}{uri}"


def unwrap(uri: str) -> tuple[str, str] | None:
    """Takes a wrapped URI apart.

    Args:
        uri: anything that an agent may send. The server's name may have been written in upper
            case, as schemes and hosts do not depend on it.

    Returns:
        the server, which need not exist, and its own URI as it was spelled; None if it is not
        wrapped.
    """
    app = _WRAPPED_APP.fullmatch(uri)
    if app:
        return app[2].lower(), app[1] + app[3]
    wrapped = _WRAPPED.fullmatch(uri)
    if not wrapped:
        return None
    return wrapped[1].lower(), wrapped[2].removeprefix(":")
