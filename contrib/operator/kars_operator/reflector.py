"""A copy of one resource's objects in memory that follows the API server.

Owns listing, watching and everything that can go wrong with both: what is missed by a watch is
found by the next list, and what a list no longer has is reported as deleted. Must not know what
anybody does with a change. Nothing that the API server says or does not say ends a reflector.

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Final

import trio
from attrs import field, frozen

from kars_operator import store as stores
from kars_operator.backoff import Growth, asked_delay
from kars_operator.store import Change, IndexFunction, Object, Store
from kars_router.errors import KarsError, UserError
from kars_router.kube import Event, Kube
from kars_router.kube.errors import (
    AnswerError,
    ForbiddenError,
    GoneError,
    KubeError,
    NotFoundError,
    UnreachableError,
)
from kars_router.kube.resources import Resource
from kars_router.telemetry import log

# So many watches that the server refused or ended at once, and what is known is listed anew.
_UNHEARD: Final = 3
# A watch that was open for so long was worth opening, even if nothing has happened.
_WORTHWHILE_SECONDS: Final = 5.0
# So many answers in a row that a resource is not served, and a definition that was there is gone: a
# server that starts up says so of what it does serve.
_ABSENT: Final = 4
# A single dropped connection is not worth a person's attention.
_WARN_AT: Final = 2


class State(Enum):
    """How a reflector stands with its resource."""

    STARTING = "starting"
    WATCHING = "watching"
    FAILING = "failing"
    FORBIDDEN = "forbidden"
    ABSENT = "absent"


@frozen(kw_only=True)
class Pace:
    """The patience of a reflector, all in seconds.

    Attributes:
        watch: how long the server is asked to keep a watch open; up to twice that, so that not
            all watches end at once.
        silence: a watch without an event or a bookmark for so long is not trusted, and a list
            follows. API servers send a bookmark every minute, but to one that watches from a
            version which they never had (they were restored from a backup) they send nothing.
        listing: for all pages of a list.
        relist: the longest time between two lists. So long at most lives what a watch has missed
            for reasons that nobody thought of.
        resync: all objects are offered again this often.
        absent: between tries while the resource is not served, or we may not read it.
        growth: of the delays between tries when something fails.
    """

    watch: float = 300.0
    silence: float = 150.0
    listing: float = 120.0
    relist: float = 3600.0
    resync: float = 600.0
    absent: float = 15.0
    growth: Growth = field(factory=lambda: Growth(0.2, 30.0))


class Reflector:
    """Follows the objects of one resource.

    Args:
        kube: the API server.
        resource: what to follow.
        namespace: where; None for all namespaces.
        labels: a label selector; empty for all objects.
        fields: a field selector.
        trim: gives what is kept of an object; must take any object that the server accepts, must
            not change it, and has to leave name, namespace, uid and resourceVersion alone.
        changed: told of every change and, at each resync, of every object; must not raise or
            wait. When it is told, the store is up to date already.
        indexes: of the store.
        optional: whether a resource that the server does not serve counts as one without objects,
            so that nobody waits for it. It is followed as soon as it is served.
        pace: its patience.
        random: returns a float in [0, 1).

    Attributes:
        store: the objects as they were last seen.
        state: how it stands with the resource.
        problem: what is wrong, as one sentence; empty if nothing is.
        served: whether the server serves the resource, as far as is known; None before it is.
        relists: successful lists.
        restarts: watches opened after the first.
        failures: lists and watches that failed.
        silences: watches that were given up because nothing came.
        events: events other than bookmarks.
        heard_at: when the server was heard last, on Trio's clock; None before.
    """

    def __init__(
        self,
        kube: Kube,
        resource: Resource,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        trim: Callable[[Object], Object] = stores.trim,
        changed: Callable[[Change], None] = lambda _: None,
        indexes: Mapping[str, IndexFunction] | None = None,
        optional: bool = False,
        pace: Pace | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.resource = resource
        self.store = Store(indexes)
        self.state = State.STARTING
        self.problem = ""
        self.served: bool | None = None
        self.relists = 0
        self.restarts = 0
        self.failures = 0
        self.silences = 0
        self.events = 0
        self.heard_at: float | None = None
        self._kube = kube
        self._namespace = namespace
        self._labels = labels
        self._fields = fields
        self._trim = trim
        self._changed = changed
        self._optional = optional
        self._pace = pace or Pace()
        self._random = random
        self._synced = trio.Event()
        self._version = ""
        self._opened = 0
        self._heard = 0  # events and bookmarks
        self._failed = 0  # lists and watches in a row
        self._absences = 0  # answers in a row that the resource is not served
        self._unheard = 0  # watches in a row that brought nothing; see _UNHEARD

    @property
    def synced(self) -> bool:
        """Whether all objects have been seen once."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Waits until all objects have been seen once and `changed` was told of them."""
        await self._synced.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follows the resource until cancelled; `wait_synced` says when it is known."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._resync)
            task_status.started()
            while True:
                await self._follow()

    async def _follow(self) -> None:
        """Lists once and then watches, until another list is needed."""
        try:
            await self._relist()
            until = trio.current_time() + self._pace.relist
            while self._unheard < _UNHEARD and trio.current_time() < until:
                await self._watch()
        except GoneError as error:
            # Expected after a long interruption, so the list is not kept waiting the first time.
            log().info("reflector_expired", **self._named, version=self._version)
            self._failed += 1
            if self._failed > 1:
                await self._pause(error)
        except (NotFoundError, ForbiddenError) as error:
            await self._stand_by(error)
        except (KubeError, UserError) as error:  # the latter: no credentials just now
            await self._fail(error)

    async def _relist(self) -> None:
        self._unheard = 0
        try:
            with trio.fail_after(self._pace.listing):
                listing = await self._kube.list(
                    self.resource, self._namespace, labels=self._labels, fields=self._fields
                )
        except trio.TooSlowError as error:
            seconds = f"{self._pace.listing:g} s"
            raise UnreachableError(f"the list did not come to an end within {seconds}") from error
        self.relists += 1
        self.served, self._absences = True, 0
        self._hear()
        self._version = listing.resource_version
        self._tell(self.store.replace([self._kept(each) for each in listing.items]))
        if not self._synced.is_set():
            log().info("reflector_synced", **self._named, objects=len(self.store))
            self._synced.set()

    async def _watch(self) -> None:
        """One watch to its end, and the delay before the next.

        Raises:
            GoneError: the version is too old.
            NotFoundError: the resource is no longer served.
            ForbiddenError: we may no longer read it.
        """
        began, before = trio.current_time(), self._heard
        self.restarts += self._opened > 0
        self._opened += 1
        failure: KarsError | None = None
        try:
            await self._watch_once()
        except (GoneError, NotFoundError, ForbiddenError):
            raise
        except (KubeError, UserError) as error:
            failure = error
        heard = self._heard > before
        # A server that does not answer at all will remember the version when it does.
        down = isinstance(failure, UnreachableError) and not isinstance(failure, AnswerError)
        self._unheard += not (heard or down)
        if failure is None and (heard or trio.current_time() - began >= _WORTHWHILE_SECONDS):
            self._failed = 0
            # An end is no failure, but all watches of a server that stops end at once.
            await trio.sleep(self._pace.growth.delay(1, self._random))
        else:
            await self._fail(failure or AnswerError("the watch ended as soon as it was open"))

    async def _watch_once(self) -> None:
        with trio.move_on_after(self._pace.silence) as patience:
            async with self._kube.watch(
                self.resource,
                self._namespace,
                resource_version=self._version,
                labels=self._labels,
                fields=self._fields,
                seconds=self._pace.watch * (1 + self._random()),
            ) as events:
                self._recover()
                async for event in events:
                    self._take(event)
                    self._heard += 1
                    self._failed = self._unheard = 0
                    patience.deadline = trio.current_time() + self._pace.silence
        if patience.cancelled_caught:
            self.silences += 1
            self._unheard = _UNHEARD
            log().debug("reflector_silence", **self._named, seconds=self._pace.silence)

    def _take(self, event: Event) -> None:
        self._hear()
        if event.type != "BOOKMARK":
            self.events += 1
            found = self._kept(event.object)
            if event.type == "DELETED":
                self._tell(self.store.remove(stores.key_of(found), last=found))
            else:
                self._tell(self.store.put(found))
        self._version = event.resource_version or self._version

    def _kept(self, found: Object) -> Object:
        metadata = found.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        if not (name and isinstance(name, str)):
            raise AnswerError(f"an object without a name is among {self._what}")
        # In a list the objects of most kinds come without these two.
        named = {"apiVersion": self.resource.api_version, "kind": self.resource.kind}
        return self._trim({**named, **found})

    def _tell(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self._changed(change)

    async def _resync(self) -> None:
        # Offering again what is known mends what a reader of changes has missed or forgotten.
        while True:
            await trio.sleep(self._pace.resync * (0.9 + self._random() / 5))
            for known in self.store:
                self._changed(Change(stores.key_of(known), known, known))

    def _hear(self) -> None:
        self.heard_at = trio.current_time()

    def _recover(self) -> None:
        self._hear()
        if self.state is State.FAILING and self._failed >= _WARN_AT:
            log().info("reflector_recovered", **self._named, failures=self._failed)
        elif self.state in {State.ABSENT, State.FORBIDDEN}:
            log().info("reflector_recovered", **self._named, was=self.state.value)
        self.state, self.problem = State.WATCHING, ""

    async def _stand_by(self, error: NotFoundError | ForbiddenError) -> None:
        """Waits for a definition that is yet to be installed, or a right that is yet to be given.

        What was known stays known: a server that is starting up says for a moment that it does
        not serve resources which it does serve, and that must not look like their deletion.
        """
        self.failures += 1
        absent = isinstance(error, NotFoundError)
        self._absences += absent
        if absent and (not self.served or self._absences >= _ABSENT):
            self.served = False
        state = State.ABSENT if absent else State.FORBIDDEN
        self.problem = (
            f"the API server does not serve {self._what}; is the definition installed?"
            if absent
            else f"the operator may not list and watch {self._what}: {error}"
        )
        if self.state is not state:
            self.state = state
            level = "info" if absent and self._optional else "warning"
            getattr(log(), level)("reflector_waits", **self._named, problem=self.problem)
        if absent and self._optional:
            self._synced.set()
        await trio.sleep(self._pace.absent * (0.5 + self._random() / 2))

    async def _fail(self, error: KarsError) -> None:
        self.failures += 1
        self._failed += 1
        self.state, self.problem = State.FAILING, f"{self._what} cannot be followed: {error}"
        say = log().warning if self._failed == _WARN_AT else log().debug
        say("reflector_failing", **self._named, error=str(error), failures=self._failed)
        await self._pause(error)

    async def _pause(self, error: KarsError) -> None:
        floor = asked_delay(error)
        await trio.sleep(self._pace.growth.delay(self._failed, self._random, floor=floor))

    @property
    def _what(self) -> str:
        where = f" in {self._namespace}" if self._namespace else ""
        return f"{self.resource.plural}{where}"

    @property
    def _named(self) -> dict[str, str]:
        return {"resource": self.resource.plural, "namespace": self._namespace or "*"}
