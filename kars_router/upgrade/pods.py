"""Why pods are not ready: what their own status says, in a sentence each.

Pure.

Source: https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from kars_router.upgrade.ownership import Manifest

# A container that waits for these waits for its turn.
_ORDERLY: Final = frozenset({"ContainerCreating", "PodInitializing"})


def is_ready(pod: Manifest) -> bool:
    """Whether a pod serves, or has done what it was for."""
    if _status(pod).get("phase") == "Succeeded":
        return True
    return _condition(pod, "Ready").get("status") == "True"


def reasons(pod: Manifest) -> tuple[str, ...]:
    """Why a pod is not ready; empty if it is, or only needs time."""
    return () if is_ready(pod) else tuple(dict.fromkeys(_reasons(pod)))


def trouble(workload: Manifest) -> str:
    """Why a workload has no pods at all, such as a quota; empty if nothing says so."""
    failure = _condition(workload, "ReplicaFailure")
    return _said(failure) if failure.get("status") == "True" else ""


def _reasons(pod: Manifest) -> Iterator[str]:
    status = _status(pod)
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        yield _said(scheduled)
    if status.get("phase") == "Failed":
        yield _said(status) or "it has failed"
    containers = [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]
    found = False
    for each in containers:
        for why in _container(each):
            found = True
            yield f"container {each.get('name')}: {why}"
    if not found:
        for each in status.get("containerStatuses") or ():
            if "running" in (each.get("state") or {}) and not each.get("ready"):
                yield f"container {each.get('name')}: it runs, but its readiness probe fails"


def _container(status: Mapping[str, Any]) -> Iterator[str]:
    state = status.get("state") or {}
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
    if waiting.get("reason") and waiting["reason"] not in _ORDERLY:
        last = (status.get("lastState") or {}).get("terminated") or {}
        yield _said(waiting) + (f" ({_exit(last)})" if last else "")
    if ended.get("exitCode"):
        yield _exit(ended)


def _exit(ended: Mapping[str, Any]) -> str:
    said = _said(ended)
    return f"it ended with {ended.get('exitCode')}" + (f", {said}" if said else "")


def _said(status: Mapping[str, Any]) -> str:
    """A reason and its message, as far as they are there."""
    return ": ".join(
        " ".join(str(each).split())
        for each in (status.get("reason"), status.get("message"))
        if each
    )


def _status(manifest: Manifest) -> Mapping[str, Any]:
    return manifest.get("status") or {}


def _condition(manifest: Manifest, kind: str) -> Mapping[str, Any]:
    listed = _status(manifest).get("conditions") or ()
    return next((each for each in listed if each.get("type") == kind), {})
