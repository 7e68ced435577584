"""The SDK: providers, batches and exporters, and how they start and stop.

Owns every thread there is. Nothing here is ever waited for by a call: a span that ends, a record
and a measurement are put in a queue, from which the SDK's threads export. The only module that
knows the SDK; must not know hooks or the router.

Source: OpenTelemetry "Trace SDK / Batching processor", "Logs SDK", "Metrics SDK"; OTLP/HTTP.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import structlog
import trio
from opentelemetry._logs import Logger
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Meter
from opentelemetry.sdk._logs import LoggerProvider, ReadableLogRecord
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricsData, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Tracer

from kars_plugin_otel.options import Options

SERVICE: Final = "kars-router"
SCOPE: Final = "kars_plugin_otel"
# The host gives two seconds to whatever is closed.
STOP_SECONDS: Final = 1.5
_EXPORTERS: Final = "opentelemetry.exporter.otlp.proto.http"
_KINDS: Final = frozenset({"spans", "logs", "metrics"})


class Health:
    """Whether exports arrive: one line in the log when they cease to, and one when they do again.

    Attributes:
        failed: exports that failed, by signal.
    """

    def __init__(self) -> None:
        self.failed: dict[str, int] = {}
        self._down: set[str] = set()
        self._lock = threading.Lock()

    def note(self, signal: str, *, arrived: bool) -> None:
        """Takes note of one export; called by the SDK's threads."""
        with self._lock:
            if not arrived:
                self.failed[signal] = self.failed.get(signal, 0) + 1
            changed = arrived is (signal in self._down)
            (self._down.discard if arrived else self._down.add)(signal)
        if not changed:
            return
        if arrived:
            structlog.get_logger().info(
                "otel_export_recovered", signal=signal, failed=self.failed[signal]
            )
        else:
            structlog.get_logger().warning(
                "otel_export_failed", signal=signal, error=_reasons.take(signal)
            )


class _Reasons(logging.Handler):
    """Takes what the exporters log, several lines for each batch, and keeps the last reason."""

    _MODULES: Final = {
        "_log_exporter": "logs",
        "metric_exporter": "metrics",
        "trace_exporter": "traces",
    }

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        args = record.args if isinstance(record.args, tuple) else (record.args,)
        # Of an exception its name only: its words hold the URL, in which there may be a token.
        said = [
            type(part).__name__ if isinstance(part, BaseException) else f"{part}"
            for part in args
            if part is not None and part not in _KINDS and not isinstance(part, float)
        ]
        signal = self._MODULES.get(record.name.rpartition(".")[2], "")
        if said:
            self._last[signal] = ", ".join(said)

    def take(self, signal: str) -> str:
        """Why a signal's last export failed."""
        return self._last.pop(signal, "") or "no connection, or no answer in time"


_reasons: Final = _Reasons()


class _Spans(OTLPSpanExporter):
    health: Health

    def export(self, spans: Sequence[ReadableSpan]) -> Any:
        result = super().export(spans)
        self.health.note("traces", arrived=result.name == "SUCCESS")
        return result


class _Logs(OTLPLogExporter):
    health: Health

    def export(self, batch: Sequence[ReadableLogRecord]) -> Any:
        result = super().export(batch)
        self.health.note("logs", arrived=result.name == "SUCCESS")
        return result


class _Metrics(OTLPMetricExporter):
    health: Health

    def export(
        self, metrics_data: MetricsData, timeout_millis: float | None = 10000, **kwargs: Any
    ) -> Any:
        result = super().export(metrics_data, timeout_millis, **kwargs)
        self.health.note("metrics", arrived=result.name == "SUCCESS")
        return result


class Export:
    """A running SDK.

    Args:
        options: what to send and where.
        health: is told what becomes of exports.

    Attributes:
        tracer: makes spans; None if traces are not sent.
        meter: makes instruments; None if metrics are not sent.
        logger: takes log records; None if logs are not sent.

    Raises:
        ValueError: an `OTEL_*` variable has a value that the SDK refuses.
    """

    def __init__(self, options: Options, health: Health) -> None:
        quiet = logging.getLogger(_EXPORTERS)
        quiet.propagate = False
        if _reasons not in quiet.handlers:
            quiet.addHandler(_reasons)
        self.tracer: Tracer | None = None
        self.meter: Meter | None = None
        self.logger: Logger | None = None
        self._stops: list[Callable[[], object]] = []
        self._exporters: list[_Spans | _Logs | _Metrics] = []
        resource = _resource()
        if "traces" in options.signals:
            self.tracer = self._traces(resource, options, health)
        if "logs" in options.signals:
            self.logger = self._logs(resource, options, health)
        if "metrics" in options.signals:
            self.meter = self._metrics(resource, options, health)

    async def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Exports what is queued, as far as there is time; then gives it up.

        Args:
            seconds: how long this may take at most; cancellation does not shorten it.
        """
        threads = trio.CapacityLimiter(max(len(self._stops), 1))
        with trio.move_on_after(seconds, shield=True):
            async with trio.open_nursery() as nursery:
                for stop in self._stops:
                    nursery.start_soon(
                        partial(
                            trio.to_thread.run_sync, stop, abandon_on_cancel=True, limiter=threads
                        )
                    )
        # Ends the waiting of those that are still trying; those that are done do not mind.
        for exporter in self._exporters:
            exporter.shutdown()

    def _traces(self, resource: Resource, options: Options, health: Health) -> Tracer:
        exporter = _Spans(endpoint=_endpoint(options, "traces"))
        exporter.health = health
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        self._exporters.append(exporter)
        self._stops.append(provider.shutdown)
        return provider.get_tracer(SCOPE)

    def _logs(self, resource: Resource, options: Options, health: Health) -> Logger:
        exporter = _Logs(endpoint=_endpoint(options, "logs"))
        exporter.health = health
        provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_log_record_processor(BatchLogRecordProcessor(exporter))
        self._exporters.append(exporter)
        self._stops.append(provider.shutdown)
        return provider.get_logger(SCOPE)

    def _metrics(self, resource: Resource, options: Options, health: Health) -> Meter:
        exporter = _Metrics(endpoint=_endpoint(options, "metrics"))
        exporter.health = health
        reader = PeriodicExportingMetricReader(exporter)
        provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        self._exporters.append(exporter)
        self._stops.append(provider.shutdown)
        return provider.get_meter(SCOPE)


def _resource() -> Resource:
    """What the environment says of this process; the router's name if it says none."""
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    return Resource.create({} if named else {SERVICE_NAME: SERVICE})


def _endpoint(options: Options, signal: str) -> str | None:
    return f"{options.endpoint}/v1/{signal}" if options.endpoint else None
