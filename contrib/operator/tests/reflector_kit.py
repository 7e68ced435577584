"""A reflector of a fake cluster, the way between them, and who checks what is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import trio
from attrs import define, field
from kars_operator.reflector import Reflector
from kars_operator.store import Change, Key, key_of

from kars_router.kube import open_kube
from kars_router.kube.resources import CONFIG_MAPS, MCP_SERVERS
from kars_router.testing.kube import FakeCluster

# Longer than any delay of a reflector with its usual pace, shorter than its silence, and never at
# the moment of a bookmark.
SOON = 55.0


def config(name: str, value: str = "1", **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default", **metadata},
        "data": {"value": value},
    }


def server(name: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": MCP_SERVERS.api_version, "kind": "McpServer", "metadata": metadata}


@define
class Told:
    """Applies what a reflector tells to a copy, and finds out what does not fit."""

    changes: list[Change] = field(factory=list)
    copy: dict[Key, Any] = field(factory=dict)

    def __call__(self, change: Change) -> None:
        self.changes.append(change)
        known = self.copy.get(change.key)
        if change.after is None:
            assert known is not None
            del self.copy[change.key]
        else:
            assert known == change.before
            self.copy[change.key] = change.after

    def take(self) -> list[tuple[str, str]]:
        """What was told since the last time: names, and `+`, `-` or `*`."""
        found = [
            (each.key.name, "+" if each.before is None else "-" if each.after is None else "*")
            for each in self.changes
        ]
        self.changes.clear()
        return found


class Way(httpx.AsyncBaseTransport):
    """The way to a cluster; while it is `muffled`, watches open but bring nothing."""

    def __init__(self, cluster: FakeCluster, failing: int = -1, fault: Any = None) -> None:
        self.cluster = cluster
        self.muffled = False
        self.asked: list[tuple[str, float]] = []
        self._failing = failing
        self._fault = fault

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if len(self.asked) == self._failing:
            self.cluster.trouble(**self._fault)
        watch = "watch" in request.url.params
        self.asked.append(("watch" if watch else "list", trio.current_time()))
        response = await self.cluster.handle_async_request(request)
        if self.muffled and watch:
            await response.aclose()
            return httpx.Response(200, stream=Nothing())
        return response


class Nothing(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        await trio.Event().wait()
        yield b""


@define
class Rig:
    cluster: FakeCluster
    way: Way
    reflector: Reflector
    told: Told

    def values(self) -> dict[Key, tuple[str, str]]:
        """What is known: uid and version of each object."""
        return _identities(self.reflector.store)

    def assert_same(self) -> None:
        """What is known, and what was told, is what there is."""
        resource = self.reflector.resource
        assert self.values() == _identities(self.cluster.all(resource))
        assert self.values() == _identities(self.told.copy.values())

    def times(self, verb: str) -> list[float]:
        return [when for each, when in self.way.asked if each == verb]

    def state(self) -> str:
        return self.reflector.state.value

    def served(self) -> bool | None:
        return self.reflector.served


def _identities(found: Any) -> dict[Key, tuple[str, str]]:
    metadata = {key_of(each): each["metadata"] for each in found}
    return {key: (each["uid"], each["resourceVersion"]) for key, each in metadata.items()}


@asynccontextmanager
async def open_rig(
    cluster: FakeCluster,
    resource: Any = CONFIG_MAPS,
    *,
    way: Way | None = None,
    synced: bool = True,
    **options: Any,
) -> AsyncIterator[Rig]:
    told, way = Told(), way or Way(cluster)
    options = {"changed": told, "random": lambda: 0.0, **options}
    async with open_kube(cluster.connection(), transport=way) as kube:
        reflector = Reflector(kube, resource, **options)
        async with trio.open_nursery() as nursery:
            await nursery.start(reflector.run)
            if synced:
                await reflector.wait_synced()
            yield Rig(cluster, way, reflector, told)
            nursery.cancel_scope.cancel()
    assert cluster.watching == 0


def muffled(cluster: FakeCluster) -> Way:
    way = Way(cluster)
    way.muffled = True
    return way
