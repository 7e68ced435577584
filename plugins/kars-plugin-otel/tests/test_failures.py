"""What a collector that does not answer costs: no call, a line in the log, a bounded end."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import trio
from kars_plugin_otel import OtelPlugin
from kars_plugin_otel.testing import Collector
from structlog.testing import capture_logs

from kars_router.barriers import GuardedGovernor
from kars_router.hookspecs import GovernanceSettings
from kars_router.testing import call_end, governed_call, plugin_host

NOBODY = "http://127.0.0.1:9"  # discard, which no machine runs


def governor_of(plugin: OtelPlugin, endpoint: str) -> GuardedGovernor:
    host = plugin_host(plugin, name="otel", options={"endpoint": endpoint})
    [governor] = host.governors(GovernanceSettings())
    return governor


async def make(governor: GuardedGovernor, times: int = 1) -> None:
    for _ in range(times):
        call = governed_call("echo")
        assert await governor.before_call(call, seconds=1) is None
        assert await governor.after_call(call, call_end(), seconds=1) is None


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports every few milliseconds, and gives up soon."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.3")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")


async def wait_failed(plugin: OtelPlugin, times: int) -> None:
    running = plugin.calls.running
    with trio.fail_after(10):
        # The threads of the SDK set no event.
        while not running.health or running.health.failed.get("traces", 0) < times:  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_an_unreachable_collector_costs_one_line(quick: None) -> None:
    plugin = OtelPlugin()
    governor = governor_of(plugin, NOBODY)
    with capture_logs() as logs:
        for n in range(1, 4):
            await make(governor)
            await wait_failed(plugin, n)
        await governor.aclose()
    assert [(line["event"], line["signal"]) for line in logs] == [("otel_export_failed", "traces")]
    assert logs[0]["error"] == "no connection, or no answer in time"


async def test_it_is_said_when_exports_arrive_again(quick: None, collector: Collector) -> None:
    plugin = OtelPlugin()
    governor = governor_of(plugin, collector.url)
    with capture_logs() as logs:
        collector.status = 401
        await make(governor)
        await wait_failed(plugin, 1)
        collector.status = 200
        await make(governor)
        await governor.aclose()
    assert [line["event"] for line in logs] == ["otel_export_failed", "otel_export_recovered"]
    assert "401" in logs[0]["error"]
    assert (logs[1]["failed"], len(collector.spans)) == (1, 1)


async def test_no_call_waits_for_a_collector_that_hangs(collector: Collector) -> None:
    collector.open.clear()
    governor = governor_of(OtelPlugin(), collector.url)
    began = time.monotonic()
    # More than batches and queue hold together: spans are given up, calls are not.
    await make(governor, times=4000)
    assert time.monotonic() - began < 8
    began = time.monotonic()
    with trio.fail_after(10):
        await governor.aclose()
    assert time.monotonic() - began < 2
    collector.open.set()


async def test_the_end_is_bounded_even_when_it_is_cancelled(collector: Collector) -> None:
    collector.open.clear()
    governor = governor_of(OtelPlugin(), collector.url)
    await make(governor)
    began = time.monotonic()
    with trio.CancelScope() as scope:
        scope.cancel()
        await governor.aclose()
    assert time.monotonic() - began < 2
    collector.open.set()


async def test_what_is_queued_is_sent_at_the_end(collector: Collector) -> None:
    governor = governor_of(OtelPlugin(), collector.url)
    await make(governor, times=1000)
    with trio.fail_after(10):
        await governor.aclose()
    assert len(collector.spans) == 1000
    assert collector.value("kars.calls") == 1000


async def test_the_variables_of_the_sdk_are_honoured(
    monkeypatch: pytest.MonkeyPatch, collector: Collector
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"{collector.url}/")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=a%20b")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pod-7")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=p7")
    governor = governor_of(OtelPlugin(), "")
    await make(governor)
    with trio.fail_after(10):
        await governor.aclose()
    [span] = collector.spans
    assert collector.headers["x-tenant"] == "a b"
    assert (span.resource["service.name"], span.resource["k8s.pod.name"]) == ("pod-7", "p7")


SDK = """
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk import _logs, metrics, trace
from opentelemetry.sdk.trace.export import BatchSpanProcessor
trace.TracerProvider().add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
OTLPLogExporter(), OTLPMetricExporter()
"""


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        # structlog, which the router itself uses, imports it; nothing of OpenTelemetry may.
        (SDK, "asyncio"),
        # `kars plugins` and the like load the plugin, and need not wait for the SDK.
        ("import kars_plugin_otel", "opentelemetry.sdk"),
        ("import kars_plugin_otel", "requests"),
    ],
    ids=["asyncio", "sdk", "requests"],
)
def test_nothing_is_loaded_without_need(code: str, loaded: str) -> None:
    program = f"{code}\nimport sys\nprint({loaded!r} in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["False"], done.stdout + done.stderr
