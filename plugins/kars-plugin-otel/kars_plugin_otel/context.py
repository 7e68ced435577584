"""W3C trace context in the `_meta` of a request's params.

Owns where it stands and how it is changed there. Pure: must not know spans, hooks or the SDK.

Source: MCP 2026-07-28 "Overview / _meta" and SEP-414 (the keys stand without a prefix); W3C "Trace
Context" and "Baggage".
"""

from __future__ import annotations

from typing import Final

import msgspec
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
_META: Final = "_meta"
_PROPAGATOR: Final = TraceContextTextMapPropagator()

_Fields = dict[str, msgspec.Raw]
_DECODER: Final = msgspec.json.Decoder(_Fields)


def extract(params: bytes) -> Context:
    """The context that a request came in.

    Args:
        params: its params as JSON; an agent's, untrusted.

    Returns:
        a context with the agent's span as its only content; an empty one if there is none, or none
        that is valid. Baggage is not read: it passes on as it is, and nothing here uses it.
    """
    meta = _fields((_fields(params) or {}).get(_META)) or {}
    carrier = {
        name: value
        for name in (TRACEPARENT, TRACESTATE)
        if (value := _text(meta.get(name))) is not None
    }
    return _PROPAGATOR.extract(carrier, Context())


def inject(params: bytes, context: Context) -> bytes:
    """Puts the context's span in the place of whatever trace context a request came with.

    Args:
        params: the params as JSON.
        context: the context; one without a valid span changes nothing.

    Returns:
        the params, everything else in them as it was written. Baggage stays the agent's, and a
        `tracestate` that belonged to an invalid `traceparent` goes with it.
    """
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, context)
    fields = _fields(params)
    meta = {} if fields is None or _META not in fields else _fields(fields[_META])
    # What is no object is the server's to refuse.
    if not carrier or fields is None or meta is None:
        return params
    for name in (TRACEPARENT, TRACESTATE):
        meta.pop(name, None)
        if name in carrier:
            meta[name] = msgspec.Raw(msgspec.json.encode(carrier[name]))
    fields[_META] = msgspec.Raw(msgspec.json.encode(meta))
    return msgspec.json.encode(fields)


def _fields(data: bytes | msgspec.Raw | None) -> _Fields | None:
    """The members of an object as they are written; None for anything else."""
    try:
        return None if data is None else _DECODER.decode(data)
    except msgspec.DecodeError:
        return None


def _text(data: msgspec.Raw | None) -> str | None:
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=str)
    except msgspec.DecodeError:
        return None
