from __future__ import annotations

from typing import Any

import pytest
import trio
from kars_plugin_otel import OtelPlugin
from kars_plugin_otel.testing import Collector

from kars_router.hookspecs import GovernanceSettings
from kars_router.model import SessionInfo
from kars_router.testing import call_end, governed_call, plugin_host

SESSION = SessionInfo(server="box", agent="a1", generation=2, key="box/a1/2")
RECORD: dict[str, Any] = {
    "seq": 7,
    "time": "2026-07-28T01:02:03.500000Z",
    "event": "accepted",
    "prev": "0" * 64,
    "call": "c1",
    "agent": "a1",
    "server": "box",
    "method": "tools/call",
    "name": "echo",
    "arguments": {"digest": "ab", "bytes": 12},
}


async def send(collector: Collector, *records: dict[str, Any]) -> None:
    """Has records sent, and the sink closed."""
    plugin = OtelPlugin()
    host = plugin_host(plugin, name="otel", options={"endpoint": collector.url})
    [(name, sink)] = host.audit_sinks()
    assert name == "otel"
    with trio.fail_after(20):
        await sink.write(records)
        await sink.aclose()


async def test_a_record_is_a_log_record(collector: Collector) -> None:
    await send(collector, RECORD)
    [log] = collector.logs
    assert log.body == RECORD
    assert log.attributes == {
        "kars.audit.event": "accepted",
        "kars.audit.seq": 7,
        "kars.call.id": "c1",
        "kars.server": "box",
        "mcp.method.name": "tools/call",
        "mcp.session.id": "a1",
    }
    assert (log.event, log.severity) == ("kars.audit", "INFO")
    assert log.time == 1_785_200_523_500_000_000


async def test_records_keep_their_order_and_doubt_is_a_warning(collector: Collector) -> None:
    ended = {"event": "ended", "call": "c1", "fate": "unknown", "code": "session_lost"}
    await send(collector, *({**RECORD, "seq": n} for n in range(600)), {**ended, "seq": 600})
    assert [log.attributes["kars.audit.seq"] for log in collector.logs] == list(range(601))
    last = collector.logs[-1]
    assert last.severity == "WARN"
    assert (last.attributes["kars.fate"], last.attributes["kars.code"]) == (
        "unknown",
        "session_lost",
    )


@pytest.mark.parametrize(
    ("content", "sent"),
    [
        (1 << 63, str(1 << 63)),
        (-(1 << 63) - 1, str(-(1 << 63) - 1)),
        ((1 << 63) - 1, (1 << 63) - 1),
        ({"a": [None, 1.5, True]}, {"a": [None, 1.5, True]}),
        ("half \ud800", "half ?"),
        (b"bytes", "b'bytes'"),
    ],
)
async def test_whatever_an_agent_sends_the_batch_arrives(
    collector: Collector, content: Any, sent: Any
) -> None:
    await send(collector, {**RECORD, "arguments": content}, RECORD)
    assert [log.body["arguments"] for log in collector.logs] == [sent, RECORD["arguments"]]


async def test_depth_has_an_end(collector: Collector) -> None:
    deep: Any = 1
    for _ in range(500):
        deep = [deep]
    await send(collector, {**RECORD, "arguments": deep})
    assert "..." in str(collector.logs[0].body)


@pytest.mark.parametrize("time", [None, "yesterday", [], True])
async def test_a_record_without_a_usable_time_is_sent_all_the_same(
    collector: Collector, time: Any
) -> None:
    await send(collector, {**RECORD, "time": time})
    assert collector.logs[0].time == 0


async def test_records_of_a_call_belong_to_its_span(collector: Collector) -> None:
    plugin = OtelPlugin()
    host = plugin_host(plugin, name="otel", options={"endpoint": collector.url})
    [governor] = host.governors(GovernanceSettings())
    [(_, sink)] = host.audit_sinks()
    call = governed_call()
    with trio.fail_after(20):
        await governor.before_call(call, seconds=1)
        await sink.write([{**RECORD, "call": call.id, "seq": 1}])
        await governor.after_call(call, call_end(), seconds=1)
        await sink.write([{**RECORD, "call": call.id, "seq": 2}, {**RECORD, "seq": 3}])
        # The sink still uses the SDK when the governors are gone.
        await governor.aclose()
        await sink.write([{**RECORD, "call": call.id, "seq": 4}])
        await sink.aclose()
    [span] = collector.spans
    found = {log.attributes["kars.audit.seq"]: (log.trace, log.span) for log in collector.logs}
    assert found == {
        **dict.fromkeys((1, 2, 4), (span.trace, span.ident)),
        3: ("", ""),
    }


async def test_a_lost_session_is_an_event(collector: Collector) -> None:
    plugin = OtelPlugin()
    host = plugin_host(plugin, name="otel", options={"endpoint": collector.url})
    [(_, sink)] = host.audit_sinks()
    host.session_lost(SESSION, "404 after a session id")
    host.session_restored(SESSION, "404 after a session id")
    with trio.fail_after(20):
        await sink.aclose()
    assert [log.event for log in collector.logs] == ["kars.session.lost", "kars.session.restored"]
    lost = collector.logs[0]
    assert (lost.body, lost.severity) == ("404 after a session id", "WARN")
    assert lost.attributes == {
        "kars.server": "box",
        "kars.session.key": "box/a1/2",
        "kars.session.generation": 2,
        "mcp.session.id": "a1",
    }


async def test_after_the_end_nothing_is_written_and_nothing_fails(collector: Collector) -> None:
    plugin = OtelPlugin()
    host = plugin_host(plugin, name="otel", options={"endpoint": collector.url})
    [(_, sink)] = host.audit_sinks()
    with trio.fail_after(20):
        await sink.aclose()
        await sink.write([RECORD])
        host.session_opened(SESSION)
        host.session_lost(SESSION, "late")
        host.session_closed(SESSION, "late")
        await sink.aclose()
    assert collector.logs == []
