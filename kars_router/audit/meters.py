"""Metrics of the journal and of its sinks, in the router's registry."""

from __future__ import annotations

from typing import Final
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Counter, Gauge

from kars_router.telemetry import Metrics


class Meters:
    """What is counted; use `meters` to get the ones of a router.

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


_made: Final[WeakKeyDictionary[CollectorRegistry, Meters]] = WeakKeyDictionary()


def meters(metrics: Metrics | None) -> Meters:
    """The meters of a router; the same ones for each journal that it opens."""
    registry = CollectorRegistry() if metrics is None else metrics.registry
    found = _made.get(registry)
    if found is None:
        found = _made[registry] = Meters(registry)
    return found
