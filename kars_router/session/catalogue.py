"""Which tools a server offers: reading all its pages, admitting, naming.

Must not know when to read them again.

Source: MCP 2025-11-25 "Tools / Listing Tools", "Pagination".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

from attrs import evolve, field, frozen

from kars_router.errors import CallFailed
from kars_router.model import Failure, Phase, Sent, ServerInfo, Tool
from kars_router.telemetry import log
from kars_router.wire import content, jsonrpc, names, params, uris
from kars_router.wire.params import HeaderPlan

_MAX_PAGES: Final = 100
_LONGEST_NAME: Final = 256
_LARGEST_DEFINITION: Final = 256 * 1024
_MOST_BYTES: Final = 16 * 1024 * 1024

Fetch = Callable[[bytes], Awaitable[bytes]]
Admits = Callable[[ServerInfo, str, Mapping[str, Any]], bool]


@frozen
class Definition:
    """A tool as its server defines it: its name, and the definition decoded and as it was sent."""

    name: str
    value: Mapping[str, Any]
    raw: bytes


@frozen
class Catalogue:
    """The admitted tools of one server.

    Attributes:
        tools: by the tool's own name, in the server's order.
        hidden: how many tools no plugin admitted, those that are withheld aside.
        withheld: definitions, by name, of tools that agents would see if they were pinned so.
        plans: which arguments a call repeats in headers, for the tools that want it.
    """

    tools: Mapping[str, Tool] = field(factory=dict)
    hidden: int = 0
    plans: Mapping[str, HeaderPlan] = field(factory=dict)
    withheld: Mapping[str, Mapping[str, Any]] = field(factory=dict)

    def same_as(self, other: Catalogue) -> bool:
        """Whether both show the agent the same."""
        return [t.own for t in self.tools.values()] == [t.own for t in other.tools.values()]


async def read_definitions(server: str, fetch: Fetch, *, limit: int) -> list[Definition]:
    """Reads all pages of a server's tools/list.

    Args:
        server: its configured name, for failures.
        fetch: makes one tools/list request; takes params as JSON, returns the result as JSON.
        limit: most tools that are taken; the rest is left out, and the log says so. So are
            definitions of more than 256 KiB, and what goes beyond 16 MiB in all.

    Returns:
        the definitions in the server's order; ones without a usable name are left out.

    Raises:
        CallFailed: a request failed, or the answer has an unusable shape.
    """
    found: list[Definition] = []
    size = 0
    seen: set[str] = set()
    wanted = b""
    for _ in range(_MAX_PAGES):
        items, cursor = _page(server, await fetch(wanted))
        for item in items:
            size += len(item)
            if len(found) >= limit or size > _MOST_BYTES:
                log().warning("tools_truncated", server=server, tools=len(found), bytes=size)
                return found
            definition = _definition(server, item)
            if definition is not None:
                found.append(definition)
        if cursor is None:
            return found
        if cursor in seen:
            log().warning("tools_cursor_cycle", server=server)
            return found
        seen.add(cursor)
        wanted = jsonrpc.encode({"cursor": cursor})
    log().warning("tools_too_many_pages", server=server, limit=_MAX_PAGES)
    return found


def build(
    info: ServerInfo, definitions: list[Definition], admits: Admits, *, stateful: bool = True
) -> Catalogue:
    """Admits and names a server's tools.

    A name that occurs twice is taken once, the first time, and the log says so.

    Args:
        info: the server.
        definitions: its tools.
        admits: says which of them agents may see.
        stateful: whether the server is of the handshake era, in which nobody heeds annotations
            for headers; in the other one, a tool with impossible ones must be left out.
    """
    tools: dict[str, Tool] = {}
    plans: dict[str, HeaderPlan] = {}
    withheld: dict[str, Mapping[str, Any]] = {}
    unpinned = evolve(info, pins=None)
    hidden = 0
    for definition in definitions:
        name = definition.name
        if name in tools or name in withheld:
            log().warning("tool_twice", server=info.name, tool=name)
            continue
        if not admits(info, name, definition.value):
            if info.pins is not None and admits(unpinned, name, definition.value):
                withheld[name] = definition.value
            else:
                hidden += 1
            continue
        try:
            plan = params.plan(definition.value.get("inputSchema"))
        except params.InvalidAnnotation as error:
            if not stateful:
                log().warning("tool_unusable", server=info.name, tool=name, error=str(error))
                continue
        else:
            if plan:
                plans[name] = plan
        public = names.public_name(info.name, name)
        # Of a member that stands there twice, one was accepted and an agent could read the other.
        raw = definition.raw if info.pins is None else jsonrpc.encode(definition.value)
        shown = content.tool_definition(raw, partial(uris.wrap, info.name))
        renamed = {**jsonrpc.members(shown), "name": public}
        tools[name] = Tool(info.name, name, public, definition.value, raw, jsonrpc.encode(renamed))
    return Catalogue(tools, hidden, plans, withheld)


def _page(server: str, result: bytes) -> tuple[list[bytes], str | None]:
    try:
        page = jsonrpc.members(result)
        items = jsonrpc.elements(bytes(page["tools"])) if "tools" in page else None
        cursor = jsonrpc.decode(bytes(page["nextCursor"])) if "nextCursor" in page else None
    except jsonrpc.MalformedError as error:
        raise _unusable(server, f"tools/list has an unusable answer: {error}") from error
    if items is None:
        raise _unusable(server, "tools/list has no list of tools")
    # An empty string is a cursor like any other.
    return [bytes(item) for item in items], cursor if isinstance(cursor, str) else None


def _definition(server: str, raw: bytes) -> Definition | None:
    if len(raw) > _LARGEST_DEFINITION:
        log().warning("tool_unusable", server=server, error=f"its definition has {len(raw)} bytes")
        return None
    try:
        value = jsonrpc.decode(raw)
    except jsonrpc.MalformedError as error:
        log().warning("tool_unusable", server=server, error=str(error))
        return None
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
        log().warning("tool_unusable", server=server, error="no usable name")
        return None
    return Definition(name, value, raw)


def _unusable(server: str, detail: str) -> CallFailed:
    return CallFailed(
        Failure(
            server=server,
            phase=Phase.RESULT,
            sent=Sent.YES,
            method="tools/list",
            code="protocol",
            detail=detail,
        )
    )
