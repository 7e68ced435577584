"""Watches the workloads of an upgrade while Helm waits for them: how far, and what is wrong.

Helm rolls back what does not become ready in time, and the pods that say why are gone then. So it
is remembered what they said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import trio
from attrs import define, field, frozen

from kars_router.kube import Kube, KubeError, NotFoundError, Resource
from kars_router.kube.resources import PODS, REPLICA_SETS
from kars_router.upgrade.changes import Reference
from kars_router.upgrade.manifests import Manifest
from kars_router.upgrade.pods import is_ready, reasons, trouble
from kars_router.upgrade.preflight import Checked

_KINDS: Final = frozenset({"DaemonSet", "Deployment", "StatefulSet"})
_REVISION: Final = "deployment.kubernetes.io/revision"
_HASH: Final = "pod-template-hash"
_PAUSE: Final = 1.0

Tell = Callable[[str], None]


@frozen(kw_only=True)
class Trouble:
    """Why something is not ready.

    Attributes:
        where: the pod, or the workload if it has no pods.
        reason: a sentence.
    """

    where: Reference
    reason: str


@frozen
class Workload:
    """What is watched.

    Attributes:
        resource: its kind.
        reference: which one.
        template: its pods as they are to be; None if that is not known exactly.
    """

    resource: Resource
    reference: Reference
    template: Any = field(default=None, repr=False)


def workloads(checked: Iterable[Checked], *, exact: bool) -> tuple[Workload, ...]:
    """The workloads among the objects of an upgrade.

    Args:
        checked: the objects.
        exact: whether the dry run says exactly what pods will be like.
    """
    found = []
    for each in checked:
        if each.resource is not None and each.resource.kind in _KINDS:
            result = each.result if exact else None
            template = result["spec"]["template"] if result is not None else None
            found.append(Workload(each.resource, each.reference, template))
    return tuple(found)


@define
class Rollout:
    """Watches workloads.

    Args:
        kube: the API server.
        watched: the workloads.
        tell: hears of progress, a line each time.
    """

    _kube: Kube
    _watched: Sequence[Workload]
    _tell: Tell
    _said: dict[Reference, str] = field(factory=dict, init=False)
    _troubles: dict[Reference, tuple[str, ...]] = field(factory=dict, init=False)

    @property
    def troubles(self) -> tuple[Trouble, ...]:
        """What was wrong when it was last looked at."""
        return tuple(
            Trouble(where=where, reason=reason)
            for where, found in self._troubles.items()
            for reason in found
        )

    def nothing(self) -> Rollout:
        """One that watches nothing."""
        return Rollout(self._kube, (), self._tell)

    async def run(self) -> None:
        """Looks again and again, until cancelled."""
        while True:
            await self.look()
            await trio.sleep(_PAUSE)

    async def look(self) -> None:
        """Looks once. That the server does not answer is not worth a word: Helm will say so."""
        for each in self._watched:
            try:
                await self._look_at(each)
            except KubeError:
                continue

    async def _look_at(self, workload: Workload) -> None:
        reference = workload.reference
        try:
            found = await self._kube.get(workload.resource, reference.name, reference.namespace)
        except NotFoundError:
            return
        if workload.template is not None and found["spec"]["template"] != workload.template:
            return  # not applied yet, or rolled back
        said = f"{reference}: {progress(found)}"
        if self._said.get(reference) != said:
            self._said[reference] = said
            self._tell(said)
        why = trouble(found)
        self._note(reference, (why,) if why else ())
        for pod in await self._pods(found):
            metadata = pod["metadata"]
            self._note(Reference("Pod", metadata["name"], metadata["namespace"]), reasons(pod))
            if is_ready(pod):
                self._note(Reference("Pod", metadata["name"], metadata["namespace"]), ())

    def _note(self, where: Reference, found: tuple[str, ...]) -> None:
        if found:
            self._troubles[where] = found
        else:
            self._troubles.pop(where, None)

    async def _pods(self, workload: Manifest) -> list[Manifest]:
        """The pods of the newest template of a workload."""
        namespace = workload["metadata"]["namespace"]
        labels = workload["spec"].get("selector", {}).get("matchLabels") or {}
        if not labels:
            return []
        wanted = [f"{key}={value}" for key, value in labels.items()]
        if workload["kind"] == "Deployment":
            newest = await self._newest(workload, ",".join(wanted))
            if not newest:
                return []
            wanted.append(f"{_HASH}={newest}")
        found = await self._kube.list(PODS, namespace, labels=",".join(wanted))
        return [each for each in found.items if not each["metadata"].get("deletionTimestamp")]

    async def _newest(self, deployment: Manifest, labels: str) -> str:
        """What tells the newest pods of a Deployment from older ones; empty if there are none."""
        metadata = deployment["metadata"]
        revision = (metadata.get("annotations") or {}).get(_REVISION)
        listed = await self._kube.list(REPLICA_SETS, metadata["namespace"], labels=labels)
        for each in listed.items:
            owners = each["metadata"].get("ownerReferences") or ()
            annotations = each["metadata"].get("annotations") or {}
            if annotations.get(_REVISION) == revision and any(
                owner.get("uid") == metadata["uid"] for owner in owners
            ):
                return str((each["metadata"].get("labels") or {}).get(_HASH, ""))
        return ""


def progress(workload: Manifest) -> str:
    """How far a workload is."""
    spec, status = workload.get("spec") or {}, workload.get("status") or {}
    seen = int(status.get("observedGeneration", 0))
    if workload["kind"] == "DaemonSet":
        wanted = int(status.get("desiredNumberScheduled", 0))
        updated = int(status.get("updatedNumberScheduled", 0))
        ready = int(status.get("numberAvailable", 0))
    else:
        wanted = int(spec.get("replicas", 1))
        updated = int(status.get("updatedReplicas", 0))
        ready = int(status.get("availableReplicas", 0))
    if seen < int(workload["metadata"].get("generation", 0)):
        updated = ready = 0
    return f"{min(updated, ready)} of {wanted} pods are new and ready"
