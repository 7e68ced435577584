"""Events: what the operator tells people who run `kubectl describe`.

Owns how often that is said: repeats are counted, not repeated, and one object gets only so many
events in a while. Must not know what is reported. An event is never worth waiting for: what the
API server does not take is counted and forgotten.

Source: https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/.
"""

from __future__ import annotations

import random
import re
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

import trio
from attrs import define, field, frozen

from kars_operator.backoff import Growth, asked_delay
from kars_router.errors import UserError
from kars_router.kube import Kube
from kars_router.kube.errors import ApiError, ConflictError, KubeError, NotFoundError
from kars_router.kube.resources import EVENTS
from kars_router.telemetry import log

Type = Literal["Normal", "Warning"]

_LONGEST_NOTE: Final = 1024  # bytes; the API server refuses more
_LONGEST_WORD: Final = 128
_LONGEST_NAME: Final = 230  # of the object, so that the event's is no longer than 253
# Where the API server wants events of objects that are in no namespace.
_CLUSTER_NAMESPACE: Final = "default"
_SWEEP_SECONDS: Final = 30.0


@frozen(kw_only=True)
class Restraint:
    """How much is said, and how often.

    Attributes:
        window: a repeat within so many seconds is counted as part of a series.
        heartbeat: seconds between updates of the count of a series, at least.
        burst: events of one object that may come at once.
        refill: seconds in which an object may have one more.
        queue: events that wait for the API server; more are dropped.
        series: kept in memory; the one that was quiet the longest makes room.
        tries: for each event, while the API server cannot be reached.
        growth: of the delays between them.
    """

    window: float = 360.0
    heartbeat: float = 300.0
    burst: int = 25
    refill: float = 300.0
    queue: int = 1000
    series: int = 4096
    tries: int = 4
    growth: Growth = field(factory=lambda: Growth(1.0, 15.0))


@define(eq=False)
class _Series:
    """One event and its repeats.

    Attributes:
        manifest: the event without its count.
        last: when it happened last, on Trio's clock.
        observed: the same as a time of day.
        count: how often it has happened.
        told: of which the API server knows, or has refused to.
        told_at: when that was, on Trio's clock.
        made: whether the API server has the event.
        queued: whether it waits to be told.
    """

    manifest: dict[str, Any]
    last: float
    observed: datetime
    count: int = 1
    told: int = 0
    told_at: float = 0.0
    made: bool = False
    queued: bool = False


@define
class _Allowance:
    """How many more events one object may have.

    Attributes:
        left: so many, and a part of the next.
        at: when that was, on Trio's clock.
    """

    left: float
    at: float


class Recorder:
    """Reports events.

    Args:
        kube: the API server.
        instance: this process, such as its pod's name.
        controller: who reports, as a qualified name.
        restraint: how much is said.
        random: returns a float in [0, 1).
        now: the time of day.

    Attributes:
        sent: requests that the API server took.
        dropped: events that were not sent for want of room in the queue or in an allowance.
        failed: events that the API server did not take.
    """

    def __init__(
        self,
        kube: Kube,
        instance: str,
        *,
        controller: str = "kars.azure.com/operator",
        restraint: Restraint | None = None,
        random: Callable[[], float] = random.random,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.sent = 0
        self.dropped = 0
        self.failed = 0
        self._kube = kube
        self._instance = instance
        self._controller = controller
        self._restraint = restraint or Restraint()
        self._random = random
        self._now = now
        self._series: OrderedDict[tuple[str, ...], _Series] = OrderedDict()
        self._allowances: OrderedDict[tuple[str, ...], _Allowance] = OrderedDict()
        self._queue: deque[_Series] = deque()
        self._filled = trio.Event()

    def event(
        self,
        regarding: Mapping[str, Any],
        type: Type,  # noqa: A002 - the field's name
        reason: str,
        note: str,
        *,
        action: str = "Reconcile",
    ) -> None:
        """Reports that something has happened; never waits, never fails.

        Args:
            regarding: the manifest of the object that it happened to.
            type: `Normal` or `Warning`.
            reason: why, as one word such as `ServerMissing`.
            note: a sentence for people; cut at what an event can hold.
            action: what was done or tried, as one word such as `Reconcile`.
        """
        reference = _reference(regarding)
        about = tuple(reference.get(each, "") for each in ("kind", "namespace", "name", "uid"))
        note = _cut(note, _LONGEST_NOTE)
        key = (*about, type, reason, action, note)
        clock, observed = trio.current_time(), self._now()
        known = self._series.get(key)
        if known is not None and clock - known.last <= self._restraint.window:
            known.count += 1
            known.last, known.observed = clock, observed
            self._series.move_to_end(key)
            if known.told < 2:  # that it is a series is news; its later counts are told when due
                self._enqueue(known)
            return
        if len(self._queue) >= self._restraint.queue or not self._allowed(about, clock):
            self.dropped += 1
            log().debug("event_dropped", object="/".join(about[:3]), reason=reason, note=note)
            return
        manifest = self._manifest(reference, observed)
        manifest |= {"type": type, "reason": reason, "note": note, "action": action}
        self._series[key] = fresh = _Series(manifest, clock, observed)
        self._series.move_to_end(key)
        if len(self._series) > self._restraint.series:
            self._series.popitem(last=False)
        self._enqueue(fresh)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sends what is reported until cancelled; what waits then is lost."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep)
            task_status.started()
            while True:
                while self._queue:
                    series = self._queue.popleft()
                    series.queued = False
                    await self._send(series)
                self._filled = trio.Event()
                await self._filled.wait()

    async def _send(self, series: _Series) -> None:
        """Tells of a series what there is to tell, or gives up."""
        for failures in range(1, self._restraint.tries + 1):
            count = series.count
            try:
                await self._tell(series)
            except (KubeError, UserError) as error:
                final = isinstance(error, ApiError) and error.status < 500 and error.status != 429
                if final or failures == self._restraint.tries:
                    self.failed += 1
                    name = series.manifest["metadata"]["name"]
                    log().debug("event_failed", name=name, error=str(error))
                else:
                    growth, floor = self._restraint.growth, asked_delay(error)
                    await trio.sleep(growth.delay(failures, self._random, floor=floor))
                    continue
            else:
                self.sent += 1
            series.told, series.told_at = count, trio.current_time()
            return

    async def _tell(self, series: _Series) -> None:
        written = {"count": series.count, "lastObservedTime": _written(series.observed)}
        metadata = series.manifest["metadata"]
        if series.made:
            try:
                await self._kube.patch(
                    EVENTS, metadata["name"], metadata["namespace"], {"series": written}
                )
            except NotFoundError:  # events live for an hour
                series.made = False
        if not series.made:
            repeats = {"series": written} if series.count > 1 else {}
            try:
                await self._kube.create({**series.manifest, **repeats})
            except ConflictError:
                log().debug("event_known", name=metadata["name"])  # an answer was lost
            series.made = True

    async def _sweep(self) -> None:
        """Tells counts that are due, and forgets series that have ended."""
        while True:
            await trio.sleep(_SWEEP_SECONDS)
            now = trio.current_time()
            for key, series in list(self._series.items()):
                if series.count > series.told:
                    if now - series.told_at >= self._restraint.heartbeat:
                        self._enqueue(series)
                elif now - series.last > self._restraint.window:
                    del self._series[key]

    def _enqueue(self, series: _Series) -> None:
        if not series.queued and len(self._queue) < self._restraint.queue:
            series.queued = True
            self._queue.append(series)
            self._filled.set()

    def _allowed(self, about: tuple[str, ...], clock: float) -> bool:
        burst = self._restraint.burst
        allowance = self._allowances.setdefault(about, _Allowance(burst, clock))
        self._allowances.move_to_end(about)
        if len(self._allowances) > self._restraint.series:
            self._allowances.popitem(last=False)
        refilled = (clock - allowance.at) / self._restraint.refill
        allowance.left, allowance.at = min(burst, allowance.left + refilled), clock
        if allowance.left < 1:
            return False
        allowance.left -= 1
        return True

    def _manifest(self, reference: dict[str, str], observed: datetime) -> dict[str, Any]:
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {
                "name": f"{_plain(reference['name'])}.{secrets.token_hex(8)}",
                "namespace": reference.get("namespace") or _CLUSTER_NAMESPACE,
            },
            "eventTime": _written(observed),
            "reportingController": self._controller,
            "reportingInstance": self._instance[:_LONGEST_WORD],
            "regarding": reference,
        }


def _reference(manifest: Mapping[str, Any]) -> dict[str, str]:
    metadata = manifest.get("metadata") or {}
    found = {
        "apiVersion": manifest.get("apiVersion"),
        "kind": manifest.get("kind"),
        **{each: metadata.get(each) for each in ("namespace", "name", "uid", "resourceVersion")},
    }
    return {"name": "", **{name: str(value) for name, value in found.items() if value}}


def _cut(text: str, limit: int) -> str:
    data = text.encode("utf-8", "replace")  # half a surrogate pair could not be sent
    if len(data) > limit:
        data = data[: limit - 3] + b"..."
    return data.decode("utf-8", "ignore")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.-]", "-", name.lower())[:_LONGEST_NAME].strip(".-") or "object"


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
