"""Which settings go together, and which ones this release does not have yet.

Each rule yields `(key, sentence)` pairs. A rule sees what could be read of the mapping (`read`,
by attribute name) and which keys were given anything but their default, right or wrong (`given`),
so that one wrong value does not hide another mistake. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet

from kars_router.config.schema import Config, Plugins, Server, Transport

Read = Mapping[str, object]
Given = AbstractSet[str]
Broken = Iterator[tuple[str, str]]


def unsupported(read: Read, given: Given) -> Broken:
    """What the schema knows of a server and this release cannot do: one sentence, or none.

    To be emptied, branch by branch, as the transports and credentials arrive.
    """
    transport = read.get("transport", Transport.AUTO)
    url = read.get("url")
    if "command" in given:
        yield "command", "is not supported by this release, which speaks to http and https URLs"
    elif transport not in (Transport.AUTO, Transport.STREAMABLE_HTTP):
        yield "transport", f"{transport} is not supported by this release; use streamable-http"
    elif isinstance(url, str) and url.startswith(("ws:", "wss:")):
        yield "url", "is a WebSocket address, which this release does not support; use http(s)"
    elif "oauth" in given:
        yield "oauth", "is not supported by this release; name a token with bearerFromEnv"


def server_rules(read: Read, given: Given) -> Broken:
    """The rules for one server."""
    if "url" in given and "command" in given:
        yield "url", "cannot stand beside command: a server has one or the other"
    if "url" not in given and "command" not in given:
        yield "url", "is missing: give the server's address, such as http://localhost:8931/mcp"
    if "command" not in given:
        for key in ("args", "env"):
            if key in given:
                yield key, "has no meaning without command"
    if "bearer_from_env" in given and "bearer_from_file" in given:
        yield "bearerFromFile", "cannot stand beside bearerFromEnv: a server has one token"
    url = read.get("url")
    if "ca_file" in given and isinstance(url, str) and url.startswith(("http:", "ws:")):
        yield "caFile", "has no effect on a URL without TLS; use https"
    yield from unsupported(read, given)


def plugin_rules(read: Read, _: Given) -> Broken:
    """The rules for the plugins section."""
    blocked, required = read.get("blocked"), read.get("required")
    if isinstance(blocked, tuple) and isinstance(required, tuple):
        for name in sorted({*blocked} & {*required}):
            yield "blocked", f"names {name!r}, which required names as well"


def config_rules(read: Read, given: Given) -> Broken:
    """The rules for the whole configuration."""
    if read.get("policies"):
        yield "policies", "are not enforced by this release; remove them, or agents act unchecked"
    if "audit" in given:
        yield "audit", "is not supported by this release, which would record nothing; remove it"
    listen = read.get("listen", Config().listen)
    if listen == read.get("admin", Config().admin) and getattr(listen, "port", None) != 0:
        yield "admin", "must be another address than listen"


RULES: Mapping[type, Callable[[Read, Given], Broken]] = {
    Server: server_rules,
    Plugins: plugin_rules,
    Config: config_rules,
}
