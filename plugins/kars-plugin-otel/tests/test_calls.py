"""Calls through the plugin, as the router loads it, to a collector on a real socket."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from attrs import define, evolve
from kars_plugin_otel import OtelPlugin
from kars_plugin_otel.testing import CollectedSpan, Collector

from kars_router.barriers import GuardedGovernor
from kars_router.hookspecs import GovernanceSettings
from kars_router.model import CallEnd, Decision, Fate, GovernedCall, Ruling, SessionInfo
from kars_router.plugins import Plugins
from kars_router.testing import call_end, governed_call, plugin_host

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
SECRET = "hunter2"
SESSION = SessionInfo(server="box", agent="a1", generation=2, key="box/a1/2")
SERVER_KIND = 2


@define(eq=False)
class Rig:
    """The plugin behind the router's own barriers."""

    host: Plugins
    plugin: OtelPlugin
    governors: tuple[GuardedGovernor, ...]

    async def make(self, call: GovernedCall, end: CallEnd | None = None) -> bytes:
        """Brings a call from its beginning to its end; the params that the server gets."""
        for governor in self.governors:
            assert await governor.before_call(call, seconds=1) is None
        for transformer in self.host.transformers(GovernanceSettings()):
            call = evolve(call, params=transformer.outgoing(call))
            assert transformer.incoming(call, b"[1]") == b"[1]"
        for governor in self.governors:
            assert await governor.after_call(call, end or call_end(), seconds=1) is None
        return call.params

    async def close(self) -> None:
        for governor in self.governors:
            await governor.aclose()


@asynccontextmanager
async def open_rig(collector: Collector, **options: Any) -> AsyncIterator[Rig]:
    """The plugin, sending to the collector; all has been sent when the block ends."""
    plugin = OtelPlugin()
    host = plugin_host(plugin, name="otel", options={"endpoint": collector.url, **options})
    rig = Rig(host, plugin, host.governors(GovernanceSettings()))
    with trio.fail_after(20):
        try:
            yield rig
        finally:
            with trio.CancelScope(shield=True):  # each is bounded
                await rig.close()


async def span_of(
    collector: Collector, call: GovernedCall, end: CallEnd | None = None, **options: Any
) -> CollectedSpan:
    """The one span of a call that has been made."""
    async with open_rig(collector, **options) as rig:
        await rig.make(call, end)
    [span] = collector.spans
    return span


async def test_a_call_is_a_span(collector: Collector) -> None:
    came = time.time()
    call = governed_call("echo", {"password": SECRET}, server="box", agent="a1", time=came)
    span = await span_of(collector, call, call_end(result={"content": []}))
    assert (span.name, span.kind, span.parent) == ("tools/call echo", SERVER_KIND, "")
    assert span.attributes == {
        "mcp.method.name": "tools/call",
        "mcp.session.id": "a1",
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "echo",
        "kars.server": "box",
        "kars.call.id": call.id,
        "kars.fate": "executed",
        "kars.code": "ok",
        "kars.decision": "allow",
    }
    assert not span.failed
    assert abs(span.start / 1e9 - came) < 0.001 <= span.end - span.start
    assert span.resource["service.name"] == "kars-router"


@pytest.mark.parametrize("content", [False, True])
async def test_arguments_are_in_spans_only_by_choice(collector: Collector, content: bool) -> None:
    call = governed_call("echo", {"password": SECRET})
    end = call_end(error={"code": -32000, "message": f"wrong: {SECRET}"})
    span = await span_of(collector, call, end, content=content)
    assert (SECRET in str(span)) is content
    if content:
        assert span.attributes["gen_ai.tool.call.arguments"] == f'{{"password":"{SECRET}"}}'
        assert span.status == f"wrong: {SECRET}"


@pytest.mark.parametrize(
    ("content", "shown"), [(False, "db://h:1/t"), (True, f"db://u:{SECRET}@h:1/t?k={SECRET}#x")]
)
async def test_uris_are_shown_whole_only_by_choice(
    collector: Collector, content: bool, shown: str
) -> None:
    call = governed_call(f"db://u:{SECRET}@h:1/t?k={SECRET}#x", method="resources/read")
    span = await span_of(collector, call, content=content)
    assert span.name == "resources/read"
    assert span.attributes["mcp.resource.uri"] == shown


async def test_prompts_are_named(collector: Collector) -> None:
    span = await span_of(collector, governed_call("greet", method="prompts/get"))
    assert (span.name, span.attributes["gen_ai.prompt.name"]) == ("prompts/get greet", "greet")
    assert "gen_ai.tool.name" not in span.attributes


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (call_end(result={"isError": True, "content": []}), "tool_error"),
        (call_end(result={"isError": 7}), None),
        (call_end(error={"code": -32602, "message": "no"}), "-32602"),
        (call_end(error=[1]), "0"),
        (call_end(code="session_lost", fate=Fate.UNKNOWN), "session_lost"),
        (
            call_end(
                code="rate_limited",
                fate=Fate.NOT_EXECUTED,
                decision=Decision(ruling=Ruling.DENY, rule="few", source="toolpolicy"),
            ),
            "rate_limited",
        ),
    ],
)
async def test_what_went_wrong_is_an_error_type(
    collector: Collector, end: CallEnd, kind: str | None
) -> None:
    span = await span_of(collector, governed_call(), end)
    assert span.attributes.get("error.type") == kind
    assert span.failed is (kind is not None)
    assert span.attributes["kars.fate"] == end.fate.value
    assert span.attributes.get("kars.decision.rule", "") == end.decision.rule
    assert span.attributes["kars.decision"] == end.decision.ruling.value


def meta(**more: Any) -> dict[str, Any]:
    return {
        "traceparent": f"00-{TRACE}-{SPAN}-01",
        "tracestate": "rojo=1",
        "baggage": "a=b",
        **more,
    }


async def test_the_agents_context_continues_in_the_server(collector: Collector) -> None:
    async with open_rig(collector) as rig:
        sent = msgspec.json.decode(await rig.make(governed_call("echo", {"n": 1}, meta=meta(x=1))))
    [span] = collector.spans
    assert (span.trace, span.parent, span.state) == (TRACE, SPAN, "rojo=1")
    assert sent["_meta"] == meta(x=1, traceparent=f"00-{TRACE}-{span.ident}-01")
    assert (sent["name"], sent["arguments"]) == ("echo", {"n": 1})


async def test_without_a_context_a_trace_begins_here(collector: Collector) -> None:
    async with open_rig(collector) as rig:
        sent = msgspec.json.decode(await rig.make(governed_call(meta={"traceparent": "broken"})))
    [span] = collector.spans
    assert span.parent == ""
    # Besides `sampled`, the flags say that the id is random (W3C Trace Context, level 2).
    assert sent["_meta"] == {"traceparent": f"00-{span.trace}-{span.ident}-03"}


async def test_an_agents_context_may_be_a_link_only(collector: Collector) -> None:
    async with open_rig(collector, continueAgents=False) as rig:
        sent = msgspec.json.decode(await rig.make(governed_call(meta=meta())))
    [span] = collector.spans
    assert (span.parent, span.links) == ("", (SPAN,))
    assert span.trace != TRACE
    assert sent["_meta"] == {
        "baggage": "a=b",
        "traceparent": f"00-{span.trace}-{span.ident}-03",
    }


async def test_what_is_not_sampled_says_so_to_the_server(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    async with open_rig(collector) as rig:
        sent = msgspec.json.decode(await rig.make(governed_call(meta=meta())))
    assert collector.spans == []
    assert sent["_meta"]["traceparent"].startswith(f"00-{TRACE}-")
    assert sent["_meta"]["traceparent"].endswith("-00")


async def test_without_traces_the_agents_context_passes_as_it_is(collector: Collector) -> None:
    async with open_rig(collector, signals=["metrics"]) as rig:
        call = governed_call(meta=meta())
        assert await rig.make(call) is call.params
    assert collector.spans == []
    assert collector.value("kars.calls") == 1


async def test_calls_are_measured(collector: Collector) -> None:
    async with open_rig(collector) as rig:
        for seconds in (0.25, 0.5):
            await rig.make(governed_call("echo", server="box"), call_end(seconds=seconds))
        lost = call_end(fate=Fate.UNKNOWN, code="session_lost", seconds=3)
        await rig.make(governed_call("x", server="box", method="prompts/get"), lost)
    assert collector.value("kars.calls", kars_fate="executed", kars_code="ok") == 2
    assert collector.value("kars.calls", kars_fate="unknown", kars_server="box") == 1
    [tools] = [p for p in collector.points if p.attributes.get("gen_ai.tool.name") == "echo"]
    assert (tools.metric, tools.unit) == ("mcp.server.operation.duration", "s")
    assert (tools.count, tools.value) == (2, 0.75)
    # The names of prompts are an agent's to invent.
    assert not any("gen_ai.prompt.name" in point.attributes for point in collector.points)


async def test_sessions_are_counted(collector: Collector) -> None:
    other = evolve(SESSION, key="box/a1/3", generation=3)
    async with open_rig(collector) as rig:
        rig.host.session_opened(SESSION)
        rig.host.session_lost(SESSION, "404")
        rig.host.session_closed(SESSION, "lost")
        rig.host.session_opened(other)
        rig.host.session_restored(other, "404")
    assert collector.value("kars.upstream.generations", kars_server="box") == 2
    assert collector.value("kars.upstream.sessions", kars_server="box") == 1
    assert collector.value("kars.session.losses") == 1
    assert collector.value("kars.session.restorations") == 1
    assert collector.value("mcp.client.session.duration") is not None


async def test_the_sdk_outlives_a_change_of_policies_and_no_more(collector: Collector) -> None:
    async with open_rig(collector) as rig:
        running = rig.plugin.calls.running
        first = running.export
        refused = rig.host.governors(GovernanceSettings())
        del refused  # another plugin did not like the policies, so these are never closed
        newer = rig.host.governors(GovernanceSettings())
        call = governed_call()
        assert await rig.governors[0].before_call(call, seconds=1) is None
        assert await rig.governors[0].after_call(call, call_end(), seconds=1) is None
        await rig.close()
        assert running.export is first is not None
        await newer[0].aclose()
        assert running.export is None
    assert len(collector.spans) == 1


async def test_what_utf8_cannot_hold_takes_no_batch_with_it(collector: Collector) -> None:
    async with open_rig(collector, content=True) as rig:
        await rig.make(governed_call("bad\ud800", agent="\udfff", params=b"{}"))
        await rig.make(governed_call("good"))
    assert [span.attributes["gen_ai.tool.name"] for span in collector.spans] == ["bad?", "good"]
