"""The whole process: its end, whatever happens on the way there."""

from __future__ import annotations

from typing import Any

import trio
from kars_operator.service import LEASE, Options, run
from operator_kit import sandbox_manifest

from kars_router.kube import Connection
from kars_router.kube import resources as kinds
from kars_router.testing import serve
from kars_router.testing.kube import FakeCluster

SPACE = "kars-system"


class Cluster(FakeCluster):
    """Says when the operator is in the middle of its work."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = trio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "PATCH":
            self.asked.set()
        await super().__call__(scope, receive, send)


async def test_an_operator_that_loses_the_lease_while_it_stops_waits_for_no_other() -> None:
    cluster = Cluster()
    for name in (SPACE, "team"):
        cluster.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    cluster.put(sandbox_manifest())
    # What is being worked on takes longer than the lease is kept.
    cluster.trouble(verb="apply", resource=kinds.SERVICE_ACCOUNTS, seconds=60)
    stop = trio.Event()
    async with serve(cluster) as url:
        connection = Connection(server=url, namespace="team", source="the fake cluster")
        with trio.fail_after(8):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, connection, Options(), stop)
                await cluster.asked.wait()
                lease = cluster.find(kinds.LEASES, LEASE, SPACE)
                assert lease is not None
                stop.set()
                lease["spec"] |= {"holderIdentity": "another", "leaseDurationSeconds": 3600}
                cluster.put(lease)


async def test_an_operator_that_stops_gives_the_lease_back() -> None:
    cluster = Cluster()
    for name in (SPACE, "team"):
        cluster.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    cluster.put(sandbox_manifest())
    stop = trio.Event()
    async with serve(cluster) as url:
        connection = Connection(server=url, namespace="team", source="the fake cluster")
        with trio.fail_after(8):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, connection, Options(health=None), stop)
                await cluster.asked.wait()
                stop.set()
        lease = cluster.find(kinds.LEASES, LEASE, SPACE)
        assert lease is not None
        assert lease["spec"]["holderIdentity"] == ""
