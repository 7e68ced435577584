"""Metrics of the operator, in Prometheus' text format: read from what counts already."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import define, field
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kars_operator.controller import Controller, Work
from kars_operator.lease import Election
from kars_operator.workqueue import Outcome
from kars_router.kube import resources as kinds

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


@define(eq=False)
class Metrics(Collector):
    """What `/metrics` shows.

    Attributes:
        controller: the one at work; None while another operator leads.
        election: whether this one leads.
    """

    controller: Controller | None = None
    election: Election | None = None
    _registry: CollectorRegistry = field(factory=CollectorRegistry, init=False)
    _duration: Histogram = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._registry.register(self)
        self._duration = Histogram(
            "kars_operator_reconcile_seconds",
            "How long one look at one object took.",
            ["about", "outcome"],
            buckets=_BUCKETS,
            registry=self._registry,
        )

    def finished(self, work: Work, seconds: float, outcome: Outcome) -> None:
        """Takes note of a piece of work that has ended."""
        self._duration.labels(work.about.value, outcome.value).observe(seconds)

    def render(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """What others have counted, as it is now."""
        yield _gauge(
            "kars_operator_leading",
            "Whether this operator is the one at work.",
            float(self.election is None or self.election.leading),
        )
        controller = self.controller
        if controller is None:
            return
        queued = GaugeMetricFamily(
            "kars_operator_queued", "Objects that wait to be looked at.", labels=["queue", "state"]
        )
        failed = CounterMetricFamily(
            "kars_operator_failures", "Looks at an object that failed.", labels=["queue"]
        )
        for name, queue in (("objects", controller.work), ("routers", controller.asks)):
            queued.add_metric([name, "waiting"], queue.waiting)
            queued.add_metric([name, "running"], queue.running)
            queued.add_metric([name, "delayed"], queue.delayed)
            failed.add_metric([name], queue.failed)
        yield from (queued, failed)
        yield from _of_reflectors(controller)
        yield _of_sandboxes(controller)


def _of_reflectors(controller: Controller) -> Iterator[Metric]:
    objects = GaugeMetricFamily(
        "kars_operator_objects", "Objects that are followed.", labels=["resource"]
    )
    relists = CounterMetricFamily(
        "kars_operator_relists", "Times that all objects were listed.", labels=["resource"]
    )
    failures = CounterMetricFamily(
        "kars_operator_watch_failures", "Lists and watches that failed.", labels=["resource"]
    )
    for kind, reflector in controller.known.reflectors.items():
        objects.add_metric([kind.plural], len(reflector.store))
        relists.add_metric([kind.plural], reflector.relists)
        failures.add_metric([kind.plural], reflector.failures)
    yield from (objects, relists, failures)


def _of_sandboxes(controller: Controller) -> Metric:
    found = GaugeMetricFamily(
        "kars_operator_sandboxes", "Sandboxes by condition.", labels=["condition", "status"]
    )
    counts: dict[tuple[str, str], int] = {}
    for sandbox in controller.known.store(kinds.KARS_SANDBOXES):
        for each in (sandbox.get("status") or {}).get("conditions") or ():
            key = str(each.get("type")), str(each.get("status"))
            counts[key] = counts.get(key, 0) + 1
    for (condition, status), count in sorted(counts.items()):
        found.add_metric([condition, status], count)
    return found


def _gauge(name: str, text: str, value: float) -> Metric:
    made = GaugeMetricFamily(name, text)
    made.add_metric([], value)
    return made
