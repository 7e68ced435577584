"""Capabilities, as JSON objects: what this hop offers, what it may ask, what many servers offer.

Tasks are declared to nobody, in neither of their forms, for the router does not carry them. What
it does not know is passed on as it was written.

Must not know agents, sessions or which era a peer is of.

Source: MCP 2025-11-25 "Lifecycle / Capability Negotiation", "Elicitation", "Sampling";
MCP 2026-07-28 "Overview / _meta".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from kars_router.wire import jsonrpc, raw

TASKS: Final = "tasks"
TASKS_EXTENSION: Final = "io.modelcontextprotocol/tasks"

_EXTENSIONS: Final = "extensions"
# What a server of many can offer on behalf of all of them.
_MERGED: Final = ("tools", "prompts", "resources", "logging", "completions", _EXTENSIONS)


def offered_upstream(declared: bytes) -> bytes:
    """What this hop offers a server, of what the agent declared: everything but tasks.

    Args:
        declared: the agent's capabilities; `{}` is offered if they are no JSON object.
    """
    return _without_tasks(declared)


def single_server(capabilities: bytes) -> bytes:
    """What the endpoint of one server offers: what the server does, but for tasks.

    Args:
        capabilities: the server's; `{}` is offered if they are no JSON object.
    """
    return _without_tasks(capabilities)


def merge_servers(many: Iterable[bytes]) -> bytes:
    """What the endpoint of all servers offers: what one of them does, of what can be merged.

    A member of a capability that several have, such as `listChanged`, is true if it is true for
    one of them; of any other kind, it is that of the first. The same goes for extensions.

    Args:
        many: the capabilities of the servers, in their order.
    """
    merged: dict[str, dict[str, msgspec.Raw]] = {}
    for capabilities in many:
        fields = raw.fields(_without_tasks(capabilities)) or {}
        for name in _MERGED:
            members = raw.fields(fields.get(name))
            if members is None:
                continue
            known = merged.setdefault(name, {})
            for key, value in members.items():
                if key not in known or bytes(value) == b"true":
                    known[key] = value
    return jsonrpc.encode({name: merged[name] for name in _MERGED if name in merged})


def has(capabilities: bytes, *path: str) -> bool:
    """Whether a capability is declared, or a part of one: `has(caps, "sampling", "tools")`.

    It is declared by being there, whatever it holds, unless that is null or false.
    """
    value: bytes | None = capabilities
    for name in path:
        found = (raw.fields(value) or {}).get(name)
        value = None if found is None else bytes(found)
    return value not in (None, b"null", b"false")


def elicitation_modes(capabilities: bytes) -> frozenset[str]:
    """The modes of elicitation that are declared: `form`, `url`, both or none.

    A declaration that names neither means forms, as there was nothing else at first.
    """
    if not has(capabilities, "elicitation"):
        return frozenset()
    modes = [mode for mode in ("form", "url") if has(capabilities, "elicitation", mode)]
    return frozenset(modes or ["form"])


def allows(capabilities: bytes, method: str, params: bytes) -> str | None:
    """Which capability a server's question needs that was not declared.

    Args:
        capabilities: what the one to be asked declared.
        method: the question's method; none but the three of MCP needs a capability.
        params: its params, or empty.

    Returns:
        the capability, such as `sampling` or `elicitation.url`; None if the question may be put.
    """
    needed = _needed(method, raw.fields(params) or {})
    if needed is None:
        return None
    name, part = needed
    if not has(capabilities, name):
        return name
    if name == "elicitation" and part in elicitation_modes(capabilities):
        return None
    return f"{name}.{part}" if part and not has(capabilities, name, part) else None


def required(capability: str) -> bytes:
    """What `allows` found missing as capabilities, for the data of an error MISSING_CAPABILITY.

    Returns:
        a JSON object, such as `{"requiredCapabilities":{"elicitation":{"url":{}}}}`.
    """
    value: dict[str, Any] = {}
    for name in reversed(capability.split(".")):
        value = {name: value}
    return jsonrpc.encode({"requiredCapabilities": value})


def _needed(method: str, params: dict[str, msgspec.Raw]) -> tuple[str, str] | None:
    match method:
        case "sampling/createMessage":
            with_tools = not all(raw.is_null(params.get(key)) for key in ("tools", "toolChoice"))
            return "sampling", "tools" if with_tools else ""
        case "elicitation/create":
            return "elicitation", raw.text(params.get("mode")) or "form"
        case "roots/list":
            return "roots", ""
        case _:
            return None


def _without_tasks(capabilities: bytes) -> bytes:
    fields = raw.fields(capabilities)
    if fields is None:
        return b"{}"
    changed = fields.pop(TASKS, None) is not None
    extensions = raw.fields(fields.get(_EXTENSIONS))
    if extensions is not None and extensions.pop(TASKS_EXTENSION, None) is not None:
        changed = True
        if extensions:
            fields[_EXTENSIONS] = msgspec.Raw(jsonrpc.encode(extensions))
        else:
            del fields[_EXTENSIONS]
    return jsonrpc.encode(fields) if changed else capabilities
