"""Names and URIs as an agent sees them: those of one server unchanged, those of many told apart.

Must not know HTTP or who asks.

Source: MCP 2026-07-28 "Tools" (proxies that aggregate should disambiguate names).
"""

from __future__ import annotations

from functools import partial
from typing import Final, Protocol

import msgspec
from attrs import frozen

from kars_router.wire import content, jsonrpc, names, raw, uris


class View(Protocol):
    """What an endpoint makes of a server's names and URIs."""

    def item(self, server: str, key: str, item: bytes) -> bytes:
        """An item of a list of prompts, resources or templates; `key` is its name's member."""
        ...

    def result(self, server: str, method: str, result: bytes) -> bytes:
        """The result of a request of the agent."""
        ...

    def told(self, server: str, method: str, params: bytes) -> bytes:
        """The params of a notification."""
        ...

    def asked(self, server: str, method: str, params: bytes) -> bytes:
        """The params of a server's question."""
        ...


@frozen
class PlainView:
    """The endpoint of one server: nothing changes."""

    def item(self, server: str, key: str, item: bytes) -> bytes:
        """See `View.item`."""
        return item

    def result(self, server: str, method: str, result: bytes) -> bytes:
        """See `View.result`."""
        return result

    def told(self, server: str, method: str, params: bytes) -> bytes:
        """See `View.told`."""
        return params

    def asked(self, server: str, method: str, params: bytes) -> bytes:
        """See `View.asked`."""
        return params


PLAIN: Final = PlainView()
SERVER_META: Final = "kars.azure.com/server"


@frozen
class PrefixedView:
    """The endpoint of all servers: names and URIs say which server they belong to."""

    def item(self, server: str, key: str, item: bytes) -> bytes:
        """See `View.item`."""
        fields = jsonrpc.members(item)
        name = raw.text(fields.get(key)) or ""
        shown = names.public_name(server, name) if key == "name" else uris.wrap(server, name)
        return jsonrpc.encode({**fields, key: shown})

    def result(self, server: str, method: str, result: bytes) -> bytes:
        """See `View.result`."""
        shown = content.result(
            method, result, partial(uris.wrap, server), partial(names.public_name, server)
        )
        return _with_asker(server, shown) if b"inputRequests" in shown else shown

    def told(self, server: str, method: str, params: bytes) -> bytes:
        """See `View.told`."""
        if method == "notifications/message":
            return _with_logger(server, params)
        return content.params(method, params, partial(uris.wrap, server))

    def asked(self, server: str, method: str, params: bytes) -> bytes:
        """See `View.asked`. Which server asks is said in `_meta`, for people have to know."""
        return content.params(method, _marked(server, params), partial(uris.wrap, server))


PREFIXED: Final = PrefixedView()


def view_of(endpoint: str) -> View:
    """The view of an endpoint: one server's name, or "" for all."""
    return PLAIN if endpoint else PREFIXED


def _marked(server: str, params: bytes) -> bytes:
    fields = raw.fields(params or b"{}")
    if fields is None:
        return params
    meta = {**(raw.fields(fields.get("_meta")) or {}), SERVER_META: server}
    return jsonrpc.encode({**fields, "_meta": meta})


def _with_asker(server: str, result: bytes) -> bytes:
    fields = raw.fields(result)
    asked = raw.fields(fields.get("inputRequests")) if fields is not None else None
    if fields is None or asked is None:
        return result
    for key, question in asked.items():
        parts = raw.fields(question)
        if parts is not None:
            params = msgspec.Raw(_marked(server, bytes(parts.get("params", b"{}"))))
            asked[key] = msgspec.Raw(jsonrpc.encode({**parts, "params": params}))
    return jsonrpc.encode({**fields, "inputRequests": asked})


def _with_logger(server: str, params: bytes) -> bytes:
    fields = raw.fields(params)
    if fields is None:
        return params
    logger = raw.text(fields.get("logger"))
    return jsonrpc.encode({**fields, "logger": f"{server}/{logger}" if logger else server})
