"""A collector for tests: takes OTLP over HTTP on loopback, and keeps what it got as values.

Shares no code with the exporters but the protocol's own messages. Must not know the plugin.

Source: OpenTelemetry "OTLP/HTTP".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from attrs import define, field, frozen
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue


@frozen(kw_only=True)
class CollectedSpan:
    """A span that arrived; ids in hexadecimal, times in nanoseconds."""

    name: str
    kind: int
    trace: str
    ident: str
    parent: str
    state: str
    start: int
    end: int
    failed: bool
    status: str
    links: tuple[str, ...]
    attributes: dict[str, Any]
    resource: dict[str, Any]


@frozen(kw_only=True)
class CollectedLog:
    """A log record that arrived."""

    event: str
    body: Any
    attributes: dict[str, Any]
    severity: str
    time: int
    trace: str
    span: str


@frozen(kw_only=True)
class CollectedPoint:
    """A point of a metric: its number, or the count and the sum of a histogram."""

    metric: str
    unit: str
    attributes: dict[str, Any]
    value: float
    count: int = 0


@define(eq=False)
class Collector:
    """A running collector.

    Attributes:
        url: its base URL.
        status: what it answers; anything but 200 is a refusal, and nothing is kept.
        open: cleared, it takes requests and does not answer them until it is set again.
        spans: the spans that arrived, in order.
        logs: the log records.
        points: the points of metrics.
        requests: how many requests came, by path.
        headers: the headers of the last request, names in lower case.
    """

    url: str = ""
    status: int = 200
    open: threading.Event = field(factory=threading.Event)
    spans: list[CollectedSpan] = field(factory=list)
    logs: list[CollectedLog] = field(factory=list)
    points: list[CollectedPoint] = field(factory=list)
    requests: dict[str, int] = field(factory=dict)
    headers: dict[str, str] = field(factory=dict)
    _changed: threading.Condition = field(factory=threading.Condition)

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Collector]:
        """A collector on a free port of 127.0.0.1 until the block ends."""
        collector = cls()
        collector.open.set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status = collector.take(self.path, body, headers)
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.block_on_close = False
        collector.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            collector.open.set()
            server.shutdown()
            server.server_close()
            thread.join()

    def wait(self, condition: Callable[[Collector], object], seconds: float = 10) -> bool:
        """Waits, in a thread, for something to arrive; whether it did in time."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(condition(self)), seconds)

    def value(self, metric: str, **attributes: Any) -> float | None:
        """The last value of a metric with these attributes among its own (`_` for `.`)."""
        found = [
            point.value
            for point in self.points
            if point.metric == metric and attributes.items() <= _plain(point.attributes).items()
        ]
        return found[-1] if found else None

    def take(self, path: str, body: bytes, headers: dict[str, str]) -> int:
        """Takes one request; returns the status of the answer."""
        self.open.wait()
        with self._changed:
            self.requests[path] = self.requests.get(path, 0) + 1
            self.headers = headers
            if self.status == 200:
                self._keep(path, body)
            self._changed.notify_all()
        return self.status

    def _keep(self, path: str, body: bytes) -> None:
        if path == "/v1/traces":
            self.spans.extend(_spans(ExportTraceServiceRequest.FromString(body)))
        elif path == "/v1/logs":
            self.logs.extend(_logs(ExportLogsServiceRequest.FromString(body)))
        elif path == "/v1/metrics":
            self.points.extend(_points(ExportMetricsServiceRequest.FromString(body)))


def _spans(request: ExportTraceServiceRequest) -> Iterator[CollectedSpan]:
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield CollectedSpan(
                    name=span.name,
                    kind=span.kind,
                    trace=span.trace_id.hex(),
                    ident=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    state=span.trace_state,
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    failed=span.status.code == 2,
                    status=span.status.message,
                    links=tuple(link.span_id.hex() for link in span.links),
                    attributes=_attributes(span.attributes),
                    resource=_attributes(resource.resource.attributes),
                )


def _logs(request: ExportLogsServiceRequest) -> Iterator[CollectedLog]:
    for resource in request.resource_logs:
        for scope in resource.scope_logs:
            for record in scope.log_records:
                yield CollectedLog(
                    event=record.event_name,
                    body=_value(record.body),
                    attributes=_attributes(record.attributes),
                    severity=record.severity_text,
                    time=record.time_unix_nano,
                    trace=record.trace_id.hex(),
                    span=record.span_id.hex(),
                )


def _points(request: ExportMetricsServiceRequest) -> Iterator[CollectedPoint]:
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for number in (*metric.sum.data_points, *metric.gauge.data_points):
                    yield CollectedPoint(
                        metric=metric.name,
                        unit=metric.unit,
                        attributes=_attributes(number.attributes),
                        value=number.as_int or number.as_double,
                    )
                for many in metric.histogram.data_points:
                    yield CollectedPoint(
                        metric=metric.name,
                        unit=metric.unit,
                        attributes=_attributes(many.attributes),
                        value=many.sum,
                        count=many.count,
                    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    which = value.WhichOneof("value")
    if which == "array_value":
        return [_value(part) for part in value.array_value.values]
    if which == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return None if which is None else getattr(value, which)


def _plain(attributes: dict[str, Any]) -> dict[str, Any]:
    return {name.replace(".", "_"): value for name, value in attributes.items()}
