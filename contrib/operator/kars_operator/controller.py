"""From changes in the cluster to work: who has to be looked at when what has changed.

Owns the two queues, one for objects and one for asking routers, and the wiring between what is
known, what is made and what is said. Must not know how any of these is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, Final, NamedTuple

import trio

from kars_operator import names
from kars_operator.apply import Applier
from kars_operator.dependents import Dependents
from kars_operator.enforcement import Routers
from kars_operator.events import Recorder
from kars_operator.knowledge import OWNED, Knowledge
from kars_operator.own_namespace import OwnNamespaces
from kars_operator.reconcile import Reconciler
from kars_operator.settings import Placement, Settings
from kars_operator.store import Change, Key, Object
from kars_operator.workqueue import Effort, Outcome, WorkQueue
from kars_router.kube import Kube
from kars_router.kube import resources as kinds
from kars_router.kube.resources import Resource as Kind
from kars_router.plugins import Plugins

# After so many seconds a router that has echoed its digest is asked again.
_SETTLED_SECONDS: Final = 60.0
# And one that has not, with pauses that grow.
_SOONEST_SECONDS: Final = 1.0
_LATEST_SECONDS: Final = 15.0


class About(Enum):
    """What a piece of work is about."""

    SANDBOX = "KarsSandbox"
    SERVER = "McpServer"
    POLICY = "ToolPolicy"


class Work(NamedTuple):
    """One object to be looked at."""

    about: About
    key: Key

    def __str__(self) -> str:
        return f"{self.about.value} {self.key}"


class Controller:
    """The operator at work, in one cluster.

    Args:
        kube: the API server.
        settings: the operator's.
        plugins: are asked for egress rules.
        instance: this process, for events.
        namespace: the only namespace that is looked at; None for all.
        effort: how many objects are worked on at once, and how patiently.
        finished: told of each piece of work.

    Attributes:
        known: what is known of the cluster.
        work: the queue of objects.
        asks: the queue of sandboxes whose routers are to be asked.
        routers: what the routers said.
        events: the recorder.
    """

    def __init__(
        self,
        kube: Kube,
        settings: Settings,
        plugins: Plugins,
        *,
        instance: str,
        namespace: str | None = None,
        effort: Effort | None = None,
        finished: Callable[[Work, float, Outcome], None] = lambda *_: None,
    ) -> None:
        own = settings.placement is Placement.OWN
        self.known = Knowledge(kube, namespace, self._told, own_namespaces=own)
        self.routers = Routers(self._pods, self._heard)
        self.events = Recorder(kube, instance)
        self._applier = Applier(kube, self._live)
        self._reconciler = Reconciler(
            kube=kube,
            known=self.known,
            settings=settings,
            plugins=plugins,
            applier=self._applier,
            routers=self.routers,
            events=self.events,
            own_namespaces=OwnNamespaces(kube, settings),
        )
        self._dependents = Dependents(kube, self.known, self.routers)
        self.work: WorkQueue[Work] = WorkQueue(
            self._handle, effort=effort or Effort(workers=8), finished=finished
        )
        self.asks: WorkQueue[Key] = WorkQueue(self._ask, effort=Effort(workers=16))
        self._waits: dict[Key, float] = {}
        self._starting = trio.CancelScope()
        self._told_of: dict[Kind, Any] = {
            kinds.KARS_SANDBOXES: self._sandbox_changed,
            kinds.MCP_SERVERS: self._server_changed,
            kinds.TOOL_POLICIES: self._policy_changed,
            kinds.SERVICES: self._service_changed,
            kinds.PODS: self._pod_changed,
            kinds.NAMESPACES: self._owned_changed,
            **dict.fromkeys(OWNED, self._owned_changed),
            kinds.NETWORK_POLICIES: self._network_policy_changed,
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Works until `stop` is called, or until cancelled; started once everything is known."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.events.run)
            with self._starting:
                await nursery.start(self.known.run)
            task_status.started()
            if not self._starting.cancelled_caught:  # or else told to stop before all is known
                async with trio.open_nursery() as working:
                    working.start_soon(self.asks.run)
                    working.start_soon(self.work.run)
            nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """Lets what is being worked on come to its end, and nothing else; never waits."""
        self._starting.cancel()
        self.work.stop()
        self.asks.stop()

    # --- work --------------------------------------------------------------------------------

    async def _handle(self, work: Work) -> float | None:
        match work.about:
            case About.SANDBOX:
                before = self._reconciler.expected.get(work.key)
                try:
                    await self._reconciler.sandbox(work.key)
                finally:
                    # Also when something failed later: nobody else would ask.
                    if self._reconciler.expected.get(work.key) != before:
                        self._waits.pop(work.key, None)
                        self.asks.add(work.key)
                # That it can be seen again is no change of anything.
                gone = work.key not in self._reconciler.expected
                return None if gone or not self.known.unseen() else _SETTLED_SECONDS
            case About.SERVER:
                await self._dependents.server(work.key)
            case About.POLICY:
                await self._dependents.policy(work.key)
        return None

    async def _ask(self, sandbox: Key) -> float | None:
        await self.routers.ask(sandbox)
        heard, expected = self.routers.heard(sandbox), self._reconciler.expected.get(sandbox)
        if not heard or expected is None:
            self._waits.pop(sandbox, None)
            return None  # a pod that comes is a change
        if all(each.digest == expected for each in heard):
            self._waits.pop(sandbox, None)
            return _SETTLED_SECONDS
        wait = self._waits.get(sandbox, _SOONEST_SECONDS)
        self._waits[sandbox] = min(wait * 2, _LATEST_SECONDS)
        return wait

    def _heard(self, sandbox: Key) -> None:
        """The routers of a sandbox say something else: of it, and of what it refers to."""
        self._add(About.SANDBOX, [sandbox])
        found = self.known.store(kinds.KARS_SANDBOXES).get(*sandbox)
        if found is not None:
            self._add_referred(found)

    def _add(self, about: About, keys: Iterable[Key], *, background: bool = False) -> None:
        for key in keys:
            self.work.add(Work(about, key), background=background)

    def _add_referred(self, sandbox: Object) -> None:
        self._add(About.SERVER, self.known.servers_of(sandbox))
        self._add(About.POLICY, self.known.policies_of(sandbox))

    def _pods(self, sandbox: Key) -> Iterable[Object]:
        wanted = f"{sandbox.namespace}/{sandbox.name}"
        found: list[Object] = self.known.store(kinds.PODS).by("sandbox", wanted)
        return [each for each in found if "deletionTimestamp" not in each["metadata"]]

    def _live(self, kind: Kind, namespace: str, name: str) -> Object | None:
        if kind not in self.known.reflectors:
            return None
        found: Object | None = self.known.store(kind).get(namespace, name)
        labels = (found or {}).get("metadata", {}).get("labels") or {}
        # Of NetworkPolicies all are followed, but only ours are to be compared with what was made.
        return found if labels.get(names.MANAGED_BY) == names.MANAGER else None

    # --- changes -----------------------------------------------------------------------------

    def _told(self, kind: Kind, change: Change) -> None:
        self._told_of[kind](kind, change)

    def _sandbox_changed(self, _: Kind, change: Change) -> None:
        if not _is_news(change):
            return
        self._add(About.SANDBOX, [change.key], background=change.before is change.after)
        if change.before is not change.after:
            for each in (change.before, change.after):
                if each is not None:
                    self._add_referred(each)

    def _server_changed(self, _: Kind, change: Change) -> None:
        if _is_news(change):
            background = change.before is change.after
            self._add(About.SERVER, [change.key], background=background)
            if not background:
                self._add(About.SANDBOX, self.known.referring_to_server(change.key))

    def _policy_changed(self, _: Kind, change: Change) -> None:
        if not _is_news(change):
            return
        background = change.before is change.after
        self._add(About.POLICY, [change.key], background=background)
        if not background:
            # It may have picked others before.
            there = self.known.store(kinds.KARS_SANDBOXES).by("namespace", change.key.namespace)
            self._add(About.SANDBOX, [_key(each) for each in there])

    def _service_changed(self, _: Kind, change: Change) -> None:
        if change.before is not change.after:
            self._add(About.SANDBOX, self._reconciler.links.using(change.key))

    def _pod_changed(self, _: Kind, change: Change) -> None:
        if change.before is change.after:
            return
        for sandbox in _sandboxes_of(change):
            self._waits.pop(sandbox, None)
            self.asks.add(sandbox)
            if _labels(change.before) != _labels(change.after):
                self._add(About.SANDBOX, [sandbox])  # other policies may select it now

    def _network_policy_changed(self, kind: Kind, change: Change) -> None:
        if change.before is change.after or self._is_echo(kind, change):
            return
        self._owned_changed(kind, change)
        self._add(About.SANDBOX, self._reconciler.links.living_in(change.key.namespace))

    def _owned_changed(self, kind: Kind, change: Change) -> None:
        if change.before is change.after or self._is_echo(kind, change):
            return
        maker = self._applier.maker_of(kind, change.object)
        self._add(About.SANDBOX, _sandboxes_of(change) | ({maker} if maker else set()))

    def _is_echo(self, kind: Kind, change: Change) -> bool:
        # Of a Deployment also its status is read.
        same = kind is not kinds.DEPLOYMENTS
        return change.after is not None and same and self._applier.is_echo(kind, change.after)


def _is_news(change: Change) -> bool:
    """Whether more of an object has changed than its status, which is our own doing."""
    before, after = change.before, change.after
    if before is None or after is None or before is after:
        return True
    read = ("generation", "labels", "deletionTimestamp", "finalizers", "uid")
    return any(before["metadata"].get(key) != after["metadata"].get(key) for key in read)


def _labels(found: Object | None) -> Any:
    return None if found is None else found["metadata"].get("labels")


def _key(found: Object) -> Key:
    return Key(found["metadata"]["namespace"], found["metadata"]["name"])


def _sandboxes_of(change: Change) -> set[Key]:
    """Whose an object is and was: somebody may have changed its labels."""
    there = (_sandbox_of(each) for each in (change.before, change.after) if each is not None)
    return {each for each in there if each is not None}


def _sandbox_of(found: Object) -> Key | None:
    labels = found["metadata"].get("labels") or {}
    if labels.get(names.MANAGED_BY) != names.MANAGER or names.SANDBOX not in labels:
        return None
    return Key(labels.get(names.SANDBOX_NAMESPACE, ""), labels[names.SANDBOX])
