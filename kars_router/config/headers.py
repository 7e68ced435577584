"""Which static headers a server entry may add to its requests.

Pure. The names refused here belong to the protocol, to the connection or to the credentials, so
a static value would break them or leak something. Sources: RFC 9110 sections 5.1, 5.5 and 7.6.1;
the MCP transport specification for `Mcp-*`, `Last-Event-ID`, `Accept` and `Content-Type`.
"""

from __future__ import annotations

import re

from kars_router.config.patterns import HEADER_NAME

_TOKEN = re.compile(rf"{HEADER_NAME}\Z")
_VALUE = re.compile(r"[!-~](?:[ \t!-~]{0,8190}[!-~])?\Z")

_CONNECTION = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_PROTOCOL = frozenset(
    {"accept", "accept-encoding", "content-encoding", "content-type", "host", "last-event-id"}
)
_BROWSER = frozenset({"cookie", "cookie2", "origin", "referer"})
# In lower case; beside them, everything that starts with `mcp-`.
FORBIDDEN = frozenset({"authorization"}) | _BROWSER | _CONNECTION | _PROTOCOL


def check_header_name(name: str) -> str | None:
    """Says why a header cannot be set, or None if it can."""
    lowered = name.lower()
    if not _TOKEN.match(name):
        return "is not a header name"
    if lowered == "authorization":
        return "cannot be set here; name the token with bearerFromEnv or bearerFromFile"
    if lowered in _BROWSER:
        return "cannot be set here, since it belongs to a browser and the router is none"
    if lowered in _CONNECTION:
        return "cannot be set here, since it belongs to each single connection"
    if lowered in _PROTOCOL or lowered.startswith("mcp-"):
        return "cannot be set here, since the router itself sets it"
    return None


def check_header_value(value: str) -> str | None:
    """Says what is wrong with a header's value, without repeating it, or None if it is good."""
    if not _VALUE.match(value):
        return (
            "must be 1 to 8192 printable ASCII characters, without white space at its ends"
            " (the value is not shown here)"
        )
    return None
