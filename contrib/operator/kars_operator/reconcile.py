"""One sandbox from what is declared to what is there, and what is to be said of it.

Owns the order of the steps. Level-based: it looks at everything as it is now, so that it makes no
difference which change it was called for, how often, or what an earlier call got done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from attrs import define, field

from kars_operator import conditions, names, plan, sandbox_status
from kars_operator.apply import Applier, NameTakenError
from kars_operator.conditions import Condition
from kars_operator.enforcement import Routers
from kars_operator.events import Recorder, Type
from kars_operator.knowledge import Knowledge
from kars_operator.links import Links
from kars_operator.own_namespace import OwnNamespaces
from kars_operator.plan import Plan
from kars_operator.refs import Chosen, Unusable, choose
from kars_operator.settings import Settings
from kars_operator.store import Key, Object, key_of
from kars_operator.written import Written
from kars_router.config.resources import KarsSandboxResource
from kars_router.egress import Place, Service
from kars_router.egress.reach import Excess, excess
from kars_router.errors import ConfigError
from kars_router.kube import ApiError, Kube, NotFoundError
from kars_router.kube import resources as kinds
from kars_router.kube.resources import Resource as Kind
from kars_router.plugins import Plugins

# Of what trying again will not mend, the person who wrote the sandbox is told.
_REFUSALS: Final = frozenset({400, 403, 422})
# And of what has failed so often in a row; before that, it is a moment's trouble.
_FAILING: Final = 5


def utc_now() -> str:
    """The time as statuses have it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


@define(eq=False)
class Reconciler:
    """Reconciles sandboxes.

    Args:
        kube: the API server.
        known: what is known of the cluster.
        settings: the operator's.
        plugins: are asked for egress rules.
        applier: puts objects into the cluster.
        routers: what the routers said.
        events: tells people.
        own_namespaces: the namespaces that sandboxes have of their own.
        now: the time for statuses.

    Attributes:
        expected: the digest that the routers of each sandbox have to echo.
        links: what else a sandbox depends on, as far as it was looked up.
    """

    kube: Kube
    known: Knowledge
    settings: Settings
    plugins: Plugins
    applier: Applier
    routers: Routers
    events: Recorder
    own_namespaces: OwnNamespaces
    now: Callable[[], str] = utc_now
    expected: dict[Key, str] = field(factory=dict, init=False)
    links: Links = field(factory=Links, init=False)
    _written: Written = field(factory=Written, init=False)
    _failures: dict[Key, int] = field(factory=dict, init=False)

    async def sandbox(self, key: Key) -> None:
        """Makes what is there as one sandbox says, and writes its status.

        Raises:
            KubeError: the API server did not do something; it is to be tried again.
        """
        manifest = self.known.store(kinds.KARS_SANDBOXES).get(*key)
        if manifest is None:
            self.routers.forget(key)
            self.links.forget(key)
            self.expected.pop(key, None)
            self.applier.forget(key)
            self._written.forget(key)
            self._failures.pop(key, None)
            return
        if "deletionTimestamp" in manifest["metadata"]:
            await self.own_namespaces.clean_up(manifest)
            return
        found = self.known.sandbox(*key)
        if not isinstance(found, KarsSandboxResource):
            problems = found.problems if isinstance(found, Unusable) else ()
            await self._write(
                manifest, sandbox_status.unusable("SpecInvalid", "; ".join(problems)), {}
            )
            return
        manifest = await self.own_namespaces.hold(manifest)
        said, failure = None, None
        try:
            said = await self._make(found)
        except ApiError as error:
            failure = error
        if failure is not None:
            await self._tell_of(failure, key, manifest)
            raise failure
        self._failures.pop(key, None)
        if said is not None:
            await self._write(manifest, *said)

    async def _tell_of(self, failure: ApiError, key: Key, manifest: Object) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        refused = failure.status in _REFUSALS
        if refused or failures >= _FAILING:
            reason = "Refused" if refused else "NotApplied"
            await self._write(manifest, sandbox_status.unusable(reason, str(failure)), {})

    async def _make(
        self, sandbox: KarsSandboxResource
    ) -> tuple[Sequence[Condition], Mapping[str, Any]] | None:
        """Applies everything; returns what the status says, or None if the sandbox is gone."""
        chosen = choose(sandbox, self.known.server, self.known.policies)
        try:
            made = self._plan(sandbox, chosen)
        except ConfigError as error:
            # What a router would refuse is not rolled out: what runs stays as it is.
            return sandbox_status.unusable("ConfigInvalid", "; ".join(error.problems)), {}
        key = Key(sandbox.meta.namespace, sandbox.meta.name)
        if self.applier.misses(made.objects) and not await self._is_there(sandbox):
            return None
        self.expected[key] = made.digest
        try:
            for each in made.objects:
                await self.applier.apply(each)
        except NameTakenError as error:
            return sandbox_status.unusable("NameTaken", str(error)), {}
        await self.applier.prune(self._superfluous(key, made.namespace), made.objects)
        facts = sandbox_status.Facts(
            chosen=chosen,
            plan=made,
            excess=self._excess(sandbox, made),
            unseen=self.known.unseen(),
            heard=self.routers.heard(key),
            suspended=sandbox.spec.suspended,
            rollout=self._rollout(made),
        )
        servers = sandbox_status.servers(made)
        more = {
            "servers": servers,
            "serversResolved": f"{len(servers)}/{len(sandbox.spec.server_refs)}",
            "digest": made.digest,
            "namespace": made.namespace,
        }
        return sandbox_status.describe(facts), more

    def _superfluous(self, key: Key, home: str) -> Iterator[tuple[Kind, Object]]:
        """What may go unless it is wanted: in another namespace policies go after the pods."""
        pods = self.known.store(kinds.PODS).by("sandbox", str(key))
        lived_in = {each["metadata"]["namespace"] for each in pods} - {home}
        policies = (kinds.NETWORK_POLICIES, kinds.CILIUM_NETWORK_POLICIES)
        for kind, found in self.known.owned(key.name, key.namespace):
            if kind not in policies or found["metadata"]["namespace"] not in lived_in:
                yield kind, found

    async def _is_there(self, sandbox: KarsSandboxResource) -> bool:
        """Asks, because what goes with a sandbox may be seen to go before it is."""
        meta = sandbox.meta
        try:
            found = await self.kube.get(kinds.KARS_SANDBOXES, meta.name, meta.namespace)
        except NotFoundError:
            return False
        return bool(found["metadata"]["uid"] == meta.uid)

    def _plan(self, sandbox: KarsSandboxResource, chosen: Chosen) -> Plan:
        key = Key(sandbox.meta.namespace, sandbox.meta.name)
        namespace = self.settings.namespace_of(key.name, key.namespace)
        services: set[Key] = set()

        def look_up(where: str, name: str) -> Service | None:
            services.add(Key(where, name))
            return self.known.service(where, name)

        place = Place(
            namespace=namespace,
            cluster_domain=self.settings.cluster_domain,
            service_lookup=look_up,
            installed=self.known.installed(),
        )
        try:
            means = plan.Means(settings=self.settings, place=place, plugins=self.plugins)
            return plan.compose(sandbox, chosen, means)
        finally:
            self.links.note(key, services, namespace)

    def _excess(self, sandbox: KarsSandboxResource, made: Plan) -> tuple[Excess, ...]:
        meta = sandbox.meta
        policies = self.known.store(kinds.NETWORK_POLICIES).by("namespace", made.namespace)
        name = made.policy["metadata"]["name"]
        # The one that was just applied may not have been seen yet.
        others = [each for each in policies if each["metadata"]["name"] != name]
        found: dict[Excess, None] = {}
        for labels in self._labels_of_pods(Key(meta.namespace, meta.name)):
            found |= dict.fromkeys(excess(labels, made.policy, [*others, made.policy]))
        return tuple(found)

    def _labels_of_pods(self, sandbox: Key) -> list[Mapping[str, str]]:
        """The labels that pods really have, since somebody may add some; else those to come."""
        pods = self.known.store(kinds.PODS).by("sandbox", str(sandbox))
        found = [each["metadata"]["labels"] for each in pods]
        return found or [names.pod_labels_of(sandbox.name, sandbox.namespace)]

    def _rollout(self, made: Plan) -> str:
        for each in made.objects:
            if each["kind"] != "Deployment":
                continue
            metadata = each["metadata"]
            seen = self.known.store(kinds.DEPLOYMENTS).get(metadata["namespace"], metadata["name"])
            for condition in (seen or {}).get("status", {}).get("conditions") or ():
                failed = condition["type"] == "ReplicaFailure" and condition["status"] == "True"
                late = condition.get("reason") == "ProgressDeadlineExceeded"
                if failed or late:
                    return str(condition.get("message", ""))
        return ""

    async def _write(
        self, manifest: Object, found: Sequence[Condition], more: Mapping[str, Any]
    ) -> None:
        """Writes the status if it says anything new, and tells people what is new."""
        metadata, key = manifest["metadata"], key_of(manifest)
        before = self._written.last(key, manifest)
        known = before.get("conditions") or []
        status = {
            "phase": sandbox_status.summary(found),
            "observedGeneration": metadata["generation"],
            "conditions": conditions.plain(
                found, known, generation=metadata["generation"], now=self.now()
            ),
            **more,
        }
        if self._written.is_there(key, manifest, status):
            return
        self._written.note(key, manifest, before, certain=False)
        await self.kube.apply(
            {
                "apiVersion": manifest["apiVersion"],
                "kind": manifest["kind"],
                "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
                "status": status,
            },
            manager=names.MANAGER,
            force=True,
            subresource="status",
        )
        self._written.note(key, manifest, status, certain=True)
        for each in sandbox_status.news(found, known):
            kind: Type = "Normal" if each.status else "Warning"
            self.events.event(manifest, kind, each.reason, each.message)
