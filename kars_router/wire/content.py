"""Where messages hold URIs of resources and names of prompts, and how to change these in place.

Everything else stays as it was written: unknown members, unknown kinds of content, the spelling
of numbers. What has not the shape that MCP gives it is not touched, for it is not ours to refuse.
Where nothing changes, the same bytes come back.

Must not know how a URI or a name is changed, or why.

Source: MCP 2025-11-25 and 2026-07-28 "Resources", "Prompts", "Tools / Tool Result", "Completion",
"Sampling", "Multi Round-Trip Requests"; MCP Apps 2026-01-26 "UI Resource Format".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from kars_router.wire import jsonrpc, raw

# What the first clients with such interfaces call `ui.resourceUri`.
_TEMPLATE: Final = "openai/outputTemplate"

Rewrite = Callable[[str], str]
_Edit = Callable[[bytes], bytes]
# The edits of a message, by the two changes: of a URI and of a prompt's name.
_Table = dict[str, Callable[[Rewrite, Rewrite], _Edit]]


def same(text: str) -> str:
    """Changes nothing."""
    return text


def result(method: str, data: bytes, rewrite: Rewrite, rename: Rewrite = same) -> bytes:
    """Changes the URIs and the prompts' names in a result.

    Args:
        method: that of the request. Results of methods that hold neither come back as they are.
        data: the result as JSON. If it asks for input, the questions are changed.
        rewrite: what becomes of a URI, or of a URI template.
        rename: what becomes of a prompt's name.
    """
    if method not in _RESULTS or not (method in _NAMING or _may_hold(data, b'"uri')):
        return data
    return _RESULTS[method](rewrite, rename)(data)


def params(method: str, data: bytes, rewrite: Rewrite, rename: Rewrite = same) -> bytes:
    """Changes the URIs and the prompts' names in the params of a request or notification.

    Args:
        method: its method, in either direction; others than those that hold either come back as
            they are.
        data: the params as JSON, or empty.
        rewrite: what becomes of a URI, or of a URI template.
        rename: what becomes of a prompt's name.
    """
    if method not in _PARAMS or not (method in _NAMING or _may_hold(data, b'"uri')):
        return data
    return _PARAMS[method](rewrite, rename)(data)


def tool_definition(data: bytes, rewrite: Rewrite) -> bytes:
    """Changes the URIs of a tool's user interface, in its definition as JSON."""
    if not _may_hold(data, b"resourceUri", b"outputTemplate"):
        return data
    uri = _text(rewrite)
    ui = _members({"ui": _members({"resourceUri": uri}), "ui/resourceUri": uri, _TEMPLATE: uri})
    return _members({"_meta": ui})(data)


def _may_hold(data: bytes, *keys: bytes) -> bool:
    # A letter in a key may be written as an escape; then only decoding tells.
    return any(key in data for key in keys) or b"\\u" in data


def _text(change: Rewrite) -> _Edit:
    def edit(data: bytes) -> bytes:
        before = raw.text(data)
        if before is None:
            return data
        after = change(before)
        return data if after == before else jsonrpc.encode(after)

    return edit


def _members(edits: dict[str, _Edit]) -> _Edit:
    def edit(data: bytes) -> bytes:
        fields = raw.fields(data)
        if fields is None:
            return data
        changed = False
        for name, inner in edits.items():
            if name not in fields:
                continue
            before = bytes(fields[name])
            after = inner(before)
            if after != before:
                fields[name] = msgspec.Raw(after)
                changed = True
        return jsonrpc.encode(fields) if changed else data

    return edit


def _each(inner: _Edit) -> _Edit:
    def edit(data: bytes) -> bytes:
        before = [bytes(item) for item in raw.items(data) or ()]
        after = [inner(item) for item in before]
        return data if after == before else b"[%b]" % b",".join(after)

    return edit


def _one_or_each(inner: _Edit) -> _Edit:
    each = _each(inner)

    def edit(data: bytes) -> bytes:
        return each(data) if data.startswith(b"[") else inner(data)

    return edit


def _values(inner: _Edit) -> _Edit:
    def edit(data: bytes) -> bytes:
        return _members(dict.fromkeys(raw.fields(data) or {}, inner))(data)

    return edit


def _of_kind(edits: dict[str, _Edit]) -> _Edit:
    def edit(data: bytes) -> bytes:
        kind = raw.text((raw.fields(data) or {}).get("type"))
        return edits[kind](data) if kind in edits else data

    return edit


def _question(rewrite: Rewrite, rename: Rewrite) -> _Edit:
    def edit(data: bytes) -> bytes:
        method = raw.text((raw.fields(data) or {}).get("method"))
        inner = _PARAMS.get(method or "")
        return _members({"params": inner(rewrite, rename)})(data) if inner else data

    return edit


def _kinds(rewrite: Rewrite) -> dict[str, _Edit]:
    uri = _members({"uri": _text(rewrite)})
    return {"resource_link": uri, "resource": _members({"resource": uri})}


def _block(rewrite: Rewrite) -> _Edit:
    return _of_kind(_kinds(rewrite))


def _sampled_block(rewrite: Rewrite) -> _Edit:
    # The result of a tool, as a model is told of it, holds blocks again, but no further result.
    nested = _members({"content": _each(_block(rewrite))})
    return _of_kind({**_kinds(rewrite), "tool_result": nested})


def _listed(name: str, key: str) -> Callable[[Rewrite, Rewrite], _Edit]:
    return lambda rewrite, _: _members({name: _each(_members({key: _text(rewrite)}))})


def _asking(name: str, inner: Callable[[Rewrite], _Edit]) -> Callable[[Rewrite, Rewrite], _Edit]:
    # Such a result holds what it is for, or questions; it is not looked up which of both.
    return lambda rewrite, rename: _members(
        {name: inner(rewrite), "inputRequests": _values(_question(rewrite, rename))}
    )


def _messages(block: Callable[[Rewrite], _Edit]) -> Callable[[Rewrite], _Edit]:
    return lambda rewrite: _each(_members({"content": _one_or_each(block(rewrite))}))


def _uri(rewrite: Rewrite, _: Rewrite) -> _Edit:
    return _members({"uri": _text(rewrite)})


def _name(_: Rewrite, rename: Rewrite) -> _Edit:
    return _members({"name": _text(rename)})


def _reference(rewrite: Rewrite, rename: Rewrite) -> _Edit:
    kinds = {"ref/resource": _uri(rewrite, rename), "ref/prompt": _name(rewrite, rename)}
    return _members({"ref": _of_kind(kinds)})


# Short messages that hold a prompt's name under a key that is too common to look for.
_NAMING: Final = frozenset({"prompts/list", "prompts/get", "completion/complete"})
_RESULTS: Final[_Table] = {
    "resources/list": _listed("resources", "uri"),
    "resources/templates/list": _listed("resourceTemplates", "uriTemplate"),
    "resources/read": _asking("contents", lambda rewrite: _each(_members({"uri": _text(rewrite)}))),
    "tools/call": _asking("content", lambda rewrite: _each(_block(rewrite))),
    "prompts/list": lambda _, rename: _members(
        {"prompts": _each(_members({"name": _text(rename)}))}
    ),
    "prompts/get": _asking("messages", _messages(_block)),
}
_PARAMS: Final[_Table] = {
    "resources/read": _uri,
    "resources/subscribe": _uri,
    "resources/unsubscribe": _uri,
    "notifications/resources/updated": _uri,
    "prompts/get": _name,
    "completion/complete": _reference,
    "sampling/createMessage": lambda rewrite, _: _members(
        {"messages": _messages(_sampled_block)(rewrite)}
    ),
}
