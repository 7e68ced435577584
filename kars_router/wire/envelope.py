"""The stateless era's envelope: what each request says of its sender, and what results say.

Owns the reserved `_meta` keys, the checks of a request's headers against its body, and the
members that a result has in this era only. `rounds` has the multi-round requests, `capabilities`
what may be asked of whom. What is not touched survives as it was written.

Must not know sessions, servers or what a method does.

Source: MCP 2026-07-28 "Overview / _meta", "Streamable HTTP / Request Metadata", "Versioning",
"Caching", "Subscriptions".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from attrs import field, frozen

from kars_router.errors import AgentError
from kars_router.wire import eras, headers, jsonrpc, raw
from kars_router.wire.levels import LEVELS

VERSION_KEY: Final = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_KEY: Final = "io.modelcontextprotocol/clientCapabilities"
CLIENT_KEY: Final = "io.modelcontextprotocol/clientInfo"
LOG_LEVEL_KEY: Final = "io.modelcontextprotocol/logLevel"
SERVER_KEY: Final = "io.modelcontextprotocol/serverInfo"
SUBSCRIPTION_KEY: Final = "io.modelcontextprotocol/subscriptionId"
# What a request says of the hop that it is on, and of no other.
HOP_KEYS: Final = (VERSION_KEY, CAPABILITIES_KEY, CLIENT_KEY, LOG_LEVEL_KEY)

HEADER_MISMATCH: Final = -32020
MISSING_CAPABILITY: Final = -32021
UNSUPPORTED_VERSION: Final = -32022

CACHEABLE: Final = frozenset(
    {
        "server/discover",
        "tools/list",
        "prompts/list",
        "resources/list",
        "resources/templates/list",
        "resources/read",
    }
)
# The methods whose Mcp-Name header repeats a member of the params.
NAMED: Final[Mapping[str, str]] = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
}

COMPLETE: Final = "complete"
INPUT_REQUIRED: Final = "input_required"

_STAMPS: Final = ("resultType", "ttlMs", "cacheScope")
_ROUTING_HEADERS: Final = (eras.VERSION_HEADER, headers.METHOD_HEADER, headers.NAME_HEADER)


class EnvelopeError(AgentError):
    """A request of the stateless era that its headers or its envelope disqualify.

    Args:
        code: HEADER_MISMATCH, UNSUPPORTED_VERSION, MISSING_CAPABILITY or INVALID_PARAMS.
        message: one sentence for the agent's developer.
        status: the HTTP status of the answer.
        data: the error's `data` as JSON, or empty.
    """

    def __init__(self, code: int, message: str, status: int = 400, data: bytes = b"") -> None:
        self.data = data
        super().__init__(code, message, status)

    def as_json(self) -> bytes:
        """The JSON-RPC error object."""
        members: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.data:
            members["data"] = msgspec.Raw(self.data)
        return jsonrpc.encode(members)


@frozen(kw_only=True)
class Envelope:
    """What a request of the stateless era says of its sender.

    Attributes:
        version: the revision it is written in; one of those that were asked for.
        capabilities: the sender's capabilities, for this request only, as a JSON object.
        client_info: who the sender says it is, as a JSON object, or empty; untrusted.
        log_level: the least important log messages that it wants with this request; "" for none.
    """

    version: str
    capabilities: bytes = field(repr=False)
    client_info: bytes = field(default=b"", repr=False)
    log_level: str = ""


def claims(params: bytes, version_header: str) -> bool:
    """Whether a request is one of the stateless era, or at least says so somewhere.

    One sign suffices: where header and body disagree, `check` refuses the request, so that it is
    never taken for one of the other era in silence.

    Args:
        params: the request's params as JSON, or empty.
        version_header: its MCP-Protocol-Version header; "" if it has none.
    """
    if eras.is_stateless(version_header):
        return True
    # Letters in a key may be written as escapes; then only decoding tells.
    if b"protocolVersion" not in params and b"\\u" not in params:
        return False
    return VERSION_KEY in _meta_of(raw.fields(params) or {})


def check(
    message: jsonrpc.Message,
    request_headers: Iterable[tuple[bytes, bytes]],
    supported: tuple[str, ...] = eras.STATELESS_REVISIONS,
) -> Envelope:
    """Checks a request's envelope, in the order in which a request can be trusted.

    Routing headers that occur twice come first, then the envelope itself, then whether headers
    and body agree, then whether the version is supported. `Mcp-Param-*` headers are checked
    against the tool's schema, elsewhere.

    Args:
        message: a request.
        request_headers: its HTTP headers, names in any case, each occurrence for itself: joined
            ones would hide that a header occurs twice.
        supported: the revisions that may be asked for, newest first.

    Raises:
        EnvelopeError: the first check that failed, with HTTP status 400.
    """
    routing = _routing_headers(request_headers)
    fields = raw.fields(message.params) or {}
    meta = _meta_of(fields)
    missing = [key for key in (VERSION_KEY, CAPABILITIES_KEY) if key not in meta]
    if missing:
        raise EnvelopeError(jsonrpc.INVALID_PARAMS, f"params._meta lacks {' and '.join(missing)}")
    version = raw.text(meta[VERSION_KEY])
    if version is None:
        raise EnvelopeError(jsonrpc.INVALID_PARAMS, f"{VERSION_KEY} must be a string")
    envelope = Envelope(
        version=version,
        capabilities=_info(meta, CAPABILITIES_KEY),
        client_info=_info(meta, CLIENT_KEY),
        log_level=_log_level(meta),
    )
    if not envelope.capabilities:
        raise EnvelopeError(jsonrpc.INVALID_PARAMS, f"{CAPABILITIES_KEY} must be an object")
    _compare(eras.VERSION_HEADER, routing.get(eras.VERSION_HEADER), version)
    _compare(headers.METHOD_HEADER, routing.get(headers.METHOD_HEADER), message.method)
    if message.method in NAMED:
        _check_name(routing.get(headers.NAME_HEADER), fields.get(NAMED[message.method]))
    if version not in supported:
        raise EnvelopeError(
            UNSUPPORTED_VERSION,
            f"this protocol version is not supported; {', '.join(supported)} is",
            data=jsonrpc.encode({"supported": list(supported), "requested": version}),
        )
    return envelope


def strip(params: bytes) -> bytes:
    """Removes what a request's `_meta` says of the hop that it came over.

    A `_meta` that held nothing else goes with it; one that was empty stays.

    Args:
        params: a JSON object, or empty.

    Raises:
        MalformedError: no JSON object.
    """
    if not params:
        return params
    fields = jsonrpc.members(params)
    return jsonrpc.encode(fields) if _drop_meta(fields, HOP_KEYS) else params


def stamp(
    params: bytes,
    *,
    version: str,
    capabilities: bytes,
    client_info: bytes = b"",
    log_level: str = "",
) -> bytes:
    """Says of a request what the next hop has to know of its sender, instead of what it said.

    Args:
        params: a JSON object, or empty.
        version: the revision that the request is written in.
        capabilities: what may be asked of the sender, as a JSON object.
        client_info: who the sender is, as a JSON object, or empty.
        log_level: the least important log messages that are wanted; "" for none.

    Raises:
        MalformedError: the params are no JSON object.
    """
    fields = jsonrpc.members(params) if params else {}
    meta = _meta_of(fields)
    for key in HOP_KEYS:
        meta.pop(key, None)
    meta[VERSION_KEY] = msgspec.Raw(jsonrpc.encode(version))
    if client_info:
        meta[CLIENT_KEY] = msgspec.Raw(client_info)
    meta[CAPABILITIES_KEY] = msgspec.Raw(capabilities)
    if log_level:
        meta[LOG_LEVEL_KEY] = msgspec.Raw(jsonrpc.encode(log_level))
    fields["_meta"] = msgspec.Raw(jsonrpc.encode(meta))
    return jsonrpc.encode(fields)


def result_type(result: bytes) -> str:
    """What kind of result this is; `complete` if it does not say, "" if what it says is no string.

    Servers of the other era say nothing. A kind that is not known makes a result invalid.
    """
    if b"resultType" not in result and b"\\u" not in result:
        return COMPLETE
    kind = (raw.fields(result) or {}).get("resultType")
    return COMPLETE if kind is None else raw.text(kind) or ""


def stamp_result(
    result: bytes,
    kind: str = COMPLETE,
    *,
    ttl_ms: int | None = None,
    cache_scope: str | None = None,
    server_info: bytes = b"",
) -> bytes:
    """Adds what a result of the stateless era has to say, where it does not say so already.

    Args:
        result: a JSON object; anything else is returned as it is.
        kind: the `resultType`.
        ttl_ms: for how many milliseconds it may be kept; None unless its method is CACHEABLE.
        cache_scope: `public` or `private`; None unless its method is CACHEABLE.
        server_info: who answers, as a JSON object; empty to leave that open.
    """
    fields = raw.fields(result)
    if fields is None:
        return result
    wanted = {"resultType": kind, "ttlMs": ttl_ms, "cacheScope": cache_scope}
    added = [name for name, value in wanted.items() if value is not None and name not in fields]
    for name in added:
        fields[name] = msgspec.Raw(jsonrpc.encode(wanted[name]))
    if server_info:
        meta = _meta_of(fields)
        if SERVER_KEY not in meta:
            meta[SERVER_KEY] = msgspec.Raw(server_info)
            fields["_meta"] = msgspec.Raw(jsonrpc.encode(meta))
            added.append("_meta")
    return jsonrpc.encode(fields) if added else result


def unstamp_result(result: bytes) -> bytes:
    """Removes what only results of the stateless era say: kind, caching, who answered.

    Args:
        result: a JSON object; anything else is returned as it is.
    """
    fields = raw.fields(result)
    if fields is None:
        return result
    found = [name for name in _STAMPS if fields.pop(name, None) is not None]
    changed = _drop_meta(fields, (SERVER_KEY,))
    return jsonrpc.encode(fields) if found or changed else result


def tag(params: bytes, subscription: bytes) -> bytes:
    """Says of a notification which `subscriptions/listen` request it is sent for.

    Args:
        params: a JSON object, or empty.
        subscription: the id of that request, as JSON.

    Raises:
        MalformedError: the params are no JSON object.
    """
    fields = jsonrpc.members(params) if params else {}
    meta = _meta_of(fields)
    meta[SUBSCRIPTION_KEY] = msgspec.Raw(subscription)
    fields["_meta"] = msgspec.Raw(jsonrpc.encode(meta))
    return jsonrpc.encode(fields)


def untag(params: bytes) -> tuple[bytes, bytes]:
    """Takes the mark off again that `tag` puts on.

    Returns:
        the params without it, and the id of the `subscriptions/listen` request as JSON; empty if
        there is no mark.
    """
    fields = raw.fields(params)
    if fields is None:
        return params, b""
    subscription = _meta_of(fields).get(SUBSCRIPTION_KEY)
    if subscription is None:
        return params, b""
    _drop_meta(fields, (SUBSCRIPTION_KEY,))
    return jsonrpc.encode(fields), bytes(subscription)


def _routing_headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for raw_name, raw_value in pairs:
        name = raw_name.decode("latin-1").lower()
        if name not in _ROUTING_HEADERS:
            continue
        if name in found:  # the first reader and the last one would not see the same
            raise EnvelopeError(HEADER_MISMATCH, f"the header {name} occurs more than once")
        found[name] = raw_value.decode("latin-1").strip(" \t")
    return found


def _compare(name: str, found: str | None, expected: str) -> None:
    if found is None:
        raise EnvelopeError(HEADER_MISMATCH, f"the header {name} is missing")
    if found != expected:
        raise EnvelopeError(HEADER_MISMATCH, f"the header {name} does not match the body")


def _check_name(header: str | None, name: msgspec.Raw | None) -> None:
    expected = raw.text(name)
    if expected is None and header is None:
        return  # what the params lack is not for the headers to say
    found = None if header is None else headers.decode_value(header)
    if header is not None and found is None:
        raise EnvelopeError(HEADER_MISMATCH, f"the header {headers.NAME_HEADER} cannot be decoded")
    # A body without a name matches no header.
    _compare(headers.NAME_HEADER, found, "" if expected is None else expected)


def _log_level(meta: Mapping[str, msgspec.Raw]) -> str:
    if raw.is_null(meta.get(LOG_LEVEL_KEY)):
        return ""
    level = raw.text(meta[LOG_LEVEL_KEY])
    if level not in LEVELS:
        raise EnvelopeError(jsonrpc.INVALID_PARAMS, f"{LOG_LEVEL_KEY} is no log level")
    return level


def _info(meta: Mapping[str, msgspec.Raw], key: str) -> bytes:
    if raw.is_null(meta.get(key)):
        return b""
    value = bytes(meta[key])
    if not value.startswith(b"{"):
        raise EnvelopeError(jsonrpc.INVALID_PARAMS, f"{key} must be an object")
    return value


def _meta_of(fields: Mapping[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    return raw.fields(fields.get("_meta")) or {}


def _drop_meta(fields: dict[str, msgspec.Raw], keys: Iterable[str]) -> bool:
    meta = _meta_of(fields)
    if not [key for key in keys if meta.pop(key, None) is not None]:
        return False
    if meta:
        fields["_meta"] = msgspec.Raw(jsonrpc.encode(meta))
    else:
        del fields["_meta"]
    return True
