from __future__ import annotations

from typing import Any

import msgspec
import pytest
from kars_plugin_otel.context import extract, inject
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
OURS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def params(**meta: Any) -> bytes:
    return msgspec.json.encode({"name": "t", "_meta": meta})


def found(data: bytes) -> SpanContext:
    return trace.get_current_span(extract(data)).get_span_context()


def ours(**state: str) -> Context:
    _, trace_id, span_id, _ = OURS.split("-")
    context = SpanContext(
        int(trace_id, 16),
        int(span_id, 16),
        is_remote=False,
        trace_flags=TraceFlags(1),
        trace_state=TraceState(list(state.items())),
    )
    return trace.set_span_in_context(NonRecordingSpan(context), Context())


def test_a_valid_traceparent_is_the_parent() -> None:
    context = found(params(traceparent=PARENT, tracestate="rojo=1,congo=2", baggage="a=b"))
    assert (f"{context.trace_id:032x}", f"{context.span_id:016x}") == (TRACE, SPAN)
    assert context.is_remote
    assert context.trace_state.to_header() == "rojo=1,congo=2"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"nonsense",
        b'{"_meta":null}',
        b'{"_meta":[1]}',
        params(),
        params(traceparent=1),
        params(traceparent=["00"]),
        params(traceparent=""),
        params(traceparent="00-xyz"),
        params(traceparent=f"00-{'0' * 32}-{SPAN}-01"),
        params(traceparent=f"ff-{TRACE}-{SPAN}-01"),
        params(tracestate="rojo=1"),
    ],
)
def test_anything_else_is_no_parent(data: bytes) -> None:
    assert not found(data).is_valid


def test_a_broken_tracestate_does_not_break_the_parent() -> None:
    assert found(params(traceparent=PARENT, tracestate="=;=")).is_valid
    assert found(params(traceparent=PARENT, tracestate={"a": 1})).is_valid


def test_ours_takes_the_place_of_the_agents() -> None:
    before = params(traceparent=PARENT, tracestate="rojo=1", baggage="a=b")
    after = msgspec.json.decode(inject(before, ours(rojo="1", mine="2")))
    assert after["_meta"] == {
        "baggage": "a=b",
        "traceparent": OURS,
        "tracestate": "rojo=1,mine=2",
    }
    assert after["name"] == "t"


def test_a_tracestate_without_its_traceparent_does_not_survive() -> None:
    after = msgspec.json.decode(inject(params(traceparent="broken", tracestate="rojo=1"), ours()))
    assert after["_meta"] == {"traceparent": OURS}


@pytest.mark.parametrize("data", [b"{}", b'{"name":"t"}', b'{"_meta":{}}', b" { } "])
def test_there_need_not_be_a_meta(data: bytes) -> None:
    assert msgspec.json.decode(inject(data, ours()))["_meta"] == {"traceparent": OURS}


def test_everything_else_stays_as_it_was_written() -> None:
    before = b'{"arguments":{"n":1.50,"big":123456789012345678901234567890},"_meta":{"x":[1.0]}}'
    after = inject(before, ours())
    assert b'"arguments":{"n":1.50,"big":123456789012345678901234567890}' in after
    assert b'"x":[1.0]' in after


@pytest.mark.parametrize("data", [b'{"_meta":7}', b'{"_meta":null}', b"[]", b"nonsense"])
def test_what_is_no_object_is_the_servers_to_refuse(data: bytes) -> None:
    assert inject(data, ours()) is data


def test_without_a_span_nothing_changes() -> None:
    data = params(traceparent=PARENT)
    assert inject(data, Context()) is data
