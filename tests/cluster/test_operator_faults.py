"""What the operator makes of a real API server that restarts, refuses and breaks off."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from attrs import evolve
from kars_operator.controller import Controller
from kars_operator.service import Options, run
from kars_operator.settings import Settings
from kars_operator.workqueue import Effort

from cluster.harness import Cluster
from cluster.operator_kit import Api, Node, condition, new_settings, operator, sandbox, server
from kars_router.kube import Connection, open_kube
from kars_router.kube import resources as kinds
from kars_router.kube.tls import Trust, opener
from kars_router.plugins import Plugins
from kars_router.transports.http import TrioTransport

SANDBOXES = kinds.KARS_SANDBOXES
MADE = (
    (kinds.SERVICE_ACCOUNTS, ""),
    (kinds.CONFIG_MAPS, "-router"),
    (kinds.NETWORK_POLICIES, ""),
    (kinds.DEPLOYMENTS, ""),
)
# What differs from one object to the next although the same was asked for.
_INCIDENTAL = ("uid", "resourceVersion", "creationTimestamp", "managedFields", "ownerReferences")


class Rough(httpx.AsyncBaseTransport):
    """The way to an API server on which a fraction of all requests goes wrong.

    Some are refused, some never arrive, and of some the answer is lost after the server has done
    what it was asked for.
    """

    def __init__(self, carrier: httpx.AsyncBaseTransport, fraction: float, seed: int) -> None:
        self._carrier = carrier
        self._fraction = fraction
        self._random = random.Random(seed)
        self.spoiled = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._random.random() >= self._fraction:
            return await self._carrier.handle_async_request(request)
        self.spoiled += 1
        how = self._random.choice(["500", "503", "429", "409", "lost", "unanswered"])
        if how.isdigit():
            headers = {"content-type": "application/json"}
            if how == "429":
                headers["retry-after"] = "1"
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": int(how)}
            stream = httpx.ByteStream(json.dumps(status).encode())
            return httpx.Response(int(how), headers=headers, stream=stream, request=request)
        if how == "unanswered":
            response = await self._carrier.handle_async_request(request)
            with trio.CancelScope(shield=True):
                await response.aclose()
        raise httpx.ReadError("spoiled", request=request)


@asynccontextmanager
async def rough_controller(
    connection: Connection, settings: Settings, namespace: str, fraction: float, seed: int
) -> AsyncIterator[Rough]:
    """The operator's controller on a rough way to the API server."""
    carrier = TrioTransport(
        connection.server,
        max_connections=16,
        opener=opener(connection),
        trust=Trust(connection),
    )
    rough = Rough(carrier, fraction, seed)
    try:
        async with open_kube(connection, transport=rough) as kube, trio.open_nursery() as nursery:
            controller = Controller(
                kube,
                settings,
                Plugins.load(),
                instance="rough",
                namespace=namespace,
                effort=Effort(workers=8),
            )
            await nursery.start(controller.run)
            yield rough
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await carrier.aclose()


def comparable(found: dict[str, Any]) -> dict[str, Any]:
    """An object without what is different each time."""
    metadata = {k: v for k, v in found["metadata"].items() if k not in _INCIDENTAL}
    return {"metadata": metadata, "spec": found.get("spec"), "data": found.get("data")}


async def made_for(api: Api, names: list[str]) -> dict[str, Any]:
    found = {}
    for name in names:
        for kind, suffix in MADE:
            one = await api.get(kind, f"{name}{suffix}")
            assert one is not None, (kind.kind, name)
            for changing in ("annotations", "generation"):  # the roll-out counts in them
                one["metadata"].pop(changing, None)
            found[f"{kind.kind} {name}"] = comparable(one)
    return found


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_third_of_all_requests_goes_wrong_and_the_end_is_the_same(
    cluster: Cluster, api: Api, seed: int
) -> None:
    settings = new_settings()
    # What has failed eight times in a row is tried again a minute later.
    api = evolve(api, patience=400.0)
    names = [f"box{number}" for number in range(10)]
    servers = [server(each, f"http://{each}.mcp.svc:8000/mcp") for each in ("a", "b", "c", "d")]
    boxes = [sandbox(each, "a", "b", "c", "d") for each in names]

    def derived(found: dict[str, Any] | None) -> bool:
        # The last thing that is written, and what it was derived from.
        text = str(found and found.get("status"))
        return condition(found, "EgressDerived").get("status") == "True" and "9000" in text

    async def live() -> dict[str, Any]:
        await api.apply(*servers, *boxes)
        await api.until(kinds.DEPLOYMENTS, names[-1], bool)
        await api.apply(server("a", "http://a.mcp.svc:9000/mcp"))
        for each in names:
            await api.until(SANDBOXES, each, derived)
        return await made_for(api, names)

    async with rough_controller(cluster.connection(), settings, api.namespace, 0.3, seed) as rough:
        after_all = await live()
    assert rough.spoiled > 50
    for each in names:
        await api.kube.delete(SANDBOXES, each, api.namespace)
    for each in names:
        for kind, suffix in MADE:
            await api.until(kind, f"{each}{suffix}", lambda found: found is None)
    async with rough_controller(cluster.connection(), settings, api.namespace, 0.0, seed):
        assert await live() == after_all


@pytest.mark.usefixtures("each_listener")
async def test_the_operator_outlives_a_restart_of_the_api_server(
    cluster: Cluster, api: Api, nursery: trio.Nursery, tmp_path: Path
) -> None:
    settings = new_settings()
    async with operator(cluster.connection(), settings, api.namespace):
        await api.apply(server("tools", "http://tools.mcp.svc:8931/mcp"), sandbox("box", "tools"))
        node = Node(api, tmp_path)
        await nursery.start(node.run, "box")
        await api.condition(SANDBOXES, "box", "Ready", "True")
        nursery.cancel_scope.cancel()  # the node asks the server all the time
        await trio.to_thread.run_sync(cluster.stop_api_server)
        await trio.to_thread.run_sync(cluster.start_api_server)
        await api.apply(server("tools", "http://tools.mcp.svc:9000/mcp"), sandbox("more", "tools"))
        await api.until(kinds.NETWORK_POLICIES, "box", lambda found: "9000" in str(found))
        await api.until(kinds.DEPLOYMENTS, "more", bool)


async def test_one_of_two_operators_works_and_the_other_takes_over(
    cluster: Cluster, api: Api, nursery: trio.Nursery
) -> None:
    settings = evolve(new_settings(), operator_namespace=api.namespace)
    options = Options(settings=settings, namespace=api.namespace)
    stops = [trio.Event(), trio.Event()]

    async def holder() -> str:
        lease = await api.get(kinds.LEASES, "kars-operator")
        return str(((lease or {}).get("spec") or {}).get("holderIdentity") or "")

    await nursery.start(run, cluster.connection(), options, stops[0])
    await api.until(kinds.LEASES, "kars-operator", bool)
    first = await holder()
    await nursery.start(run, cluster.connection(), options, stops[1])
    await api.apply(sandbox("one"))
    await api.until(kinds.DEPLOYMENTS, "one", bool)
    assert await holder() == first != ""
    stops[0].set()
    await api.apply(sandbox("two"))
    await api.until(kinds.DEPLOYMENTS, "two", bool)
    assert await holder() not in {first, ""}
    stops[1].set()
    await api.until(
        kinds.LEASES, "kars-operator", lambda found: not (found or {})["spec"].get("holderIdentity")
    )
