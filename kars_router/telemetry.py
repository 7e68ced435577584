"""Log lines and metrics: how they are set up and what they are called.

One line in the log, one metric and one status field say what happened; this module owns the
first two. Must not know who emits them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal, TextIO, cast

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_FINE_BUCKETS: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.1, 1)

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def log() -> structlog.typing.FilteringBoundLogger:
    """The logger; takes an event name and key-value pairs."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger


def configure_logging(
    *,
    level: str = "info",
    style: Literal["json", "console", "auto"] = "auto",
    stream: TextIO | None = None,
) -> None:
    """Sets the process's logging up; called once by an entry point.

    Args:
        level: debug, info, warning or error.
        style: `auto` is console on a terminal, JSON lines elsewhere.
        stream: where lines go; standard error by default.
    """
    out = sys.stderr if stream is None else stream
    console = style == "console" or (style == "auto" and out.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(
            colors=out.isatty() and not os.environ.get("NO_COLOR"),
            # The usual one shows the values of variables, and with them arguments and tokens.
            exception_formatter=structlog.dev.plain_traceback,
        )
        if console
        else structlog.processors.JSONRenderer()
    )
    # What libraries log (trio, when descriptors run out) comes out in the same form.
    root = logging.getLogger()
    root.handlers = [h for h in root.handlers if not isinstance(h, _Forward)]
    forward = _Forward()
    forward.setLevel(logging.WARNING)
    root.addHandler(forward)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            _harmless if console else structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Sink(out))),
        cache_logger_on_first_use=True,
    )


def _harmless(_: Any, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escapes what a terminal would obey: names and URIs come from agents and servers."""
    for name, value in fields.items():
        if isinstance(value, str) and not value.isprintable():
            fields[name] = repr(value)
    return fields


class _Sink:
    """A stream whose failures stay its own: a full disk or a closed pipe must not fail a call."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the latter once it is closed
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


class _Forward(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {"message": record.getMessage()}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        log().log(record.levelno, "http_server", **fields)


def server_logger() -> logging.Logger:
    """A standard logger for hypercorn whose records become our log lines, warnings and up."""
    # Not from the registry of loggers: each router has its own, and handlers do not add up.
    logger = logging.Logger("kars_router.hypercorn", logging.WARNING)  # noqa: LOG001
    logger.addHandler(_Forward())
    return logger


class Metrics:
    """The router's metrics, one registry for each router.

    Names start with `kars_`; label values come from the configuration or from fixed sets, never
    from an agent or a server.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.agent_sessions = Gauge(
            "kars_agent_sessions", "Live agent sessions.", registry=registry
        )
        self.sessions = Gauge(
            "kars_upstream_sessions", "Live upstream sessions.", ["server"], registry=registry
        )
        self.generations = Counter(
            "kars_upstream_generations", "Upstream sessions opened.", ["server"], registry=registry
        )
        self.losses = Counter(
            "kars_session_losses",
            "Upstream sessions lost.",
            ["server", "reason"],
            registry=registry,
        )
        self.pings = Counter(
            "kars_pings",
            "Pings of servers, by what became of the answer.",
            ["server", "outcome"],
            registry=registry,
        )
        self.pong_seconds = Histogram(
            "kars_pong_seconds",
            "From when a ping was read until its answer was sent.",
            ["server"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self.calls = Counter(
            "kars_calls", "Tool calls by fate.", ["server", "fate", "code"], registry=registry
        )
        self._calls: dict[tuple[str, str, str], Counter] = {}
        self.replays = Counter(
            "kars_replays", "Calls sent again after a loss.", ["server"], registry=registry
        )
        self.listen_state = Gauge(
            "kars_listen_streams", "GET streams by state.", ["server", "state"], registry=registry
        )
        self.dropped = Counter(
            "kars_dropped_messages",
            "Messages of servers that nobody took.",
            ["server", "kind"],
            registry=registry,
        )
        self.notifications_dropped = Counter(
            "kars_agent_notifications_dropped",
            "Messages that were given up before their agent took them.",
            registry=registry,
        )
        self.replays_dropped = Counter(
            "kars_agent_replays_dropped",
            "Messages that an agent can get no second time, because there were too many.",
            registry=registry,
        )
        self.replies_dropped = Counter(
            "kars_agent_replies_dropped",
            "Answers of agents to questions that were not open.",
            registry=registry,
        )
        self.agent_refusals = Counter(
            "kars_agent_refusals",
            "Requests of agents that did not show what they have to.",
            ["reason"],
            registry=registry,
        )
        self.plugin_errors = Counter(
            "kars_plugin_errors", "Plugin calls that raised.", ["plugin", "hook"], registry=registry
        )
        self.decisions = Counter(
            "kars_decisions",
            "Governed calls by what was decided.",
            ["server", "ruling", "code"],
            registry=registry,
        )
        self.decision_seconds = Histogram(
            "kars_decision_seconds",
            "From a call's arrival to the decision of all governors, approvals excluded.",
            buckets=_FINE_BUCKETS,
            registry=registry,
        )
        self.held = Gauge(
            "kars_held_calls", "Calls that wait for a person's approval.", registry=registry
        )
        self.withheld = Counter(
            "kars_withheld_results",
            "Results that governors or transformers kept from the agent.",
            ["server", "code"],
            registry=registry,
        )
        self.tools_withheld = Gauge(
            "kars_tools_withheld",
            "Tools that are not as they were accepted.",
            ["server"],
            registry=registry,
        )
        self.reloads = Counter(
            "kars_config_reloads", "Configuration reloads.", ["outcome"], registry=registry
        )

    def call_ended(self, server: str, fate: str, code: str) -> None:
        """Counts a tool call; a series appears with the first one that it counts."""
        # Looked up here, since the client's own way there takes longer than counting.
        key = (server, fate, code)
        counter = self._calls.get(key)
        if counter is None:
            counter = self._calls[key] = self.calls.labels(*key)
        counter.inc()

    @functools.cached_property
    def audit(self) -> AuditMetrics:
        """Those of the journal, which a router without one does not show."""
        return AuditMetrics(self.registry)

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class AuditMetrics:
    """The metrics of the journal and of its sinks; `Metrics.audit` has those of a router.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.records = Counter(
            "kars_audit_records", "Audit records that were written.", registry=registry
        )
        self.unwritten = Counter(
            "kars_audit_unwritten",
            "Audit records that could not be written when they should have been.",
            registry=registry,
        )
        self.healthy = Gauge(
            "kars_audit_healthy",
            "Whether audit records can be written: 1 or 0.",
            registry=registry,
        )
        self.touched = Counter(
            "kars_audit_file_touched",
            "Times that somebody else was found to have changed or taken the audit file.",
            ["how"],
            registry=registry,
        )
        self.sink_dropped = Counter(
            "kars_audit_sink_dropped",
            "Audit records that a sink did not get.",
            ["sink"],
            registry=registry,
        )
