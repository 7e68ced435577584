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


# What belongs to requests over a network.
_OF_A_URL = {
    "bearer_from_env": "bearerFromEnv",
    "bearer_from_file": "bearerFromFile",
    "headers": "headers",
    "ca_file": "caFile",
    "max_connections": "maxConnections",
}
_SCHEMES = {
    Transport.STREAMABLE_HTTP: ("http", "https"),
    Transport.SSE: ("http", "https"),
    Transport.WEBSOCKET: ("ws", "wss"),
}


def unsupported(_: Read, given: Given) -> Broken:
    """What the schema knows of a server and this release cannot do: one sentence, or none."""
    if "oauth" in given:
        yield "oauth", "is not supported by this release; name a token with bearerFromEnv"


def server_rules(read: Read, given: Given) -> Broken:
    """The rules for one server."""
    if "url" in given and "command" in given:
        yield "url", "cannot stand beside command: a server has one or the other"
    elif "url" not in given and "command" not in given:
        yield "url", "is missing: give the server's address, such as http://localhost:8931/mcp"
    elif "command" in given:
        yield from _command_rules(read, given)
    else:
        yield from _url_rules(read, given)
    if "bearer_from_env" in given and "bearer_from_file" in given:
        yield "bearerFromFile", "cannot stand beside bearerFromEnv: a server has one token"
    yield from unsupported(read, given)


def _command_rules(read: Read, given: Given) -> Broken:
    transport = read.get("transport")
    if transport not in (None, Transport.AUTO, Transport.STDIO):
        yield "transport", f"cannot be {transport} with a command, which is spoken to over stdio"
    for name, key in _OF_A_URL.items():
        if name in given:
            yield key, "has no meaning with a command, which is given what it needs in args and env"


def _url_rules(read: Read, given: Given) -> Broken:
    for key in ("args", "env"):
        if key in given:
            yield key, "has no meaning without command"
    url, transport = read.get("url"), read.get("transport")
    scheme = url.partition(":")[0].lower() if isinstance(url, str) else ""
    if transport is Transport.STDIO:
        yield "transport", "cannot be stdio with a url; give a command instead"
    elif scheme and isinstance(transport, Transport) and transport in _SCHEMES:
        fitting = " or ".join(f"{each}://" for each in _SCHEMES[transport])
        if scheme not in _SCHEMES[transport]:
            yield (
                "transport",
                f"cannot be {transport} with a url that does not start with {fitting}",
            )
    if "ca_file" in given and scheme in ("http", "ws"):
        yield "caFile", f"has no effect on a URL without TLS; use {scheme}s"


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
