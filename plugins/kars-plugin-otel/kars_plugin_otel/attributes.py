"""How calls and their ends are named in spans and metrics.

Owns every attribute name. Pure: must not know spans, meters or the SDK. Values that come from
agents and servers are made fit for OTLP here: one that cannot be encoded would take its whole
batch with it.

Source: OpenTelemetry GenAI semantic conventions, "MCP" (status: development).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

import msgspec

from kars_router.model import CallEnd, Fate, GovernedCall

Value = str | int | float | bool
_T = TypeVar("_T")

# The largest integers that OTLP can hold.
_INT64: Final = 1 << 63
_DEEPEST: Final = 16
_LONGEST_NAME: Final = 256
TOOL_CALL: Final = "tools/call"


class _Result(msgspec.Struct):
    isError: bool = False  # noqa: N815 - the protocol's name


class _Error(msgspec.Struct):
    code: int = 0
    message: str = ""


def span_name(call: GovernedCall) -> str:
    """`tools/call NAME`, or the method alone where names are not few."""
    named = call.method in (TOOL_CALL, "prompts/get")
    return f"{call.method} {text(call.name)[:_LONGEST_NAME]}" if named else call.method


def of_call(call: GovernedCall, *, content: bool) -> dict[str, Value]:
    """What a span says of a call from its beginning.

    Args:
        call: the call.
        content: whether arguments and whole URIs are wanted.
    """
    found: dict[str, Value] = {
        **of_measure(call),
        "mcp.session.id": text(call.agent),
        "kars.call.id": call.id,
    }
    if call.method == "prompts/get":
        found["gen_ai.prompt.name"] = text(call.name)[:_LONGEST_NAME]
    elif call.method == "resources/read":
        found["mcp.resource.uri"] = text(call.name if content else plain_uri(call.name))
    if content and call.method == TOOL_CALL:
        found["gen_ai.tool.call.arguments"] = text(msgspec.json.encode(call.arguments).decode())
    return found


def of_measure(call: GovernedCall) -> dict[str, Value]:
    """What metrics say of a call: only what has few values.

    The name of a tool is one of a server's, for no other is called; the names of prompts and
    resources are whatever an agent asks for.
    """
    found: dict[str, Value] = {"mcp.method.name": call.method, "kars.server": call.server}
    if call.method == TOOL_CALL:
        found["gen_ai.operation.name"] = "execute_tool"
        found["gen_ai.tool.name"] = text(call.name)[:_LONGEST_NAME]
    return found


def of_end(end: CallEnd) -> dict[str, Value]:
    """What spans and metrics say of how a call ended."""
    found: dict[str, Value] = {"kars.fate": end.fate.value, "kars.code": end.code}
    if end.error is not None:
        code = str(_decode(end.error, _Error()).code)
        found["rpc.response.status_code"] = found["error.type"] = code
    elif end.code != "ok":
        found["error.type"] = end.code
    elif end.result is not None and _decode(end.result, _Result()).isError:
        found["error.type"] = "tool_error"
    return found


def of_decision(end: CallEnd) -> dict[str, Value]:
    """What a span says of what was decided."""
    decision = end.decision
    found: dict[str, Value] = {"kars.decision": decision.ruling.value}
    if decision.rule:
        found["kars.decision.rule"] = text(decision.rule)
    if decision.source:
        found["kars.decision.source"] = decision.source
    return found


def error_message(end: CallEnd) -> str:
    """The words of a server's JSON-RPC error; "" if there is none. They may quote arguments."""
    return text(_decode(end.error, _Error()).message) if end.error is not None else ""


def in_doubt(end: CallEnd) -> bool:
    """Whether nobody knows if the call had an effect."""
    return end.fate is Fate.UNKNOWN


def plain_uri(uri: str) -> str:
    """A URI without what secrets stand in: user, query and fragment."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return ""
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def text(value: str) -> str:
    """The same text, or one that UTF-8 can hold."""
    return value.encode("utf-8", "replace").decode()


def any_value(value: Any, depth: int = 0) -> Any:
    """The same JSON value as OTLP can hold it: no integer beyond 64 bits, no depth without end."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, int) and not -_INT64 <= value < _INT64:
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth == _DEEPEST:
        return "..."
    if isinstance(value, Mapping):
        return {text(str(key)): any_value(part, depth + 1) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [any_value(part, depth + 1) for part in value]
    return text(str(value))


def _decode(data: bytes, default: _T) -> _T:
    try:
        return msgspec.json.decode(data, type=type(default))
    except msgspec.DecodeError:
        return default
