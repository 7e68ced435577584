"""How long the operator takes for many sandboxes, and how much memory.

On one machine with the API server, its store and the controllers, which make Pods of all those
Deployments meanwhile. In a cluster of its own: what other tests have left is still being deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import trio
from kars_operator.crds import crd_manifests

from cluster.harness import Cluster, run_cluster
from cluster.operator_kit import Api, condition, sandbox, server
from cluster.test_operator_process import operator_process
from kars_router.kube import open_kube
from kars_router.kube import resources as kinds

NAMESPACE: Final = "scale"
SANDBOXES: Final = 500
SERVERS: Final = 20
EACH: Final = 4
MOST_SECONDS: Final = 60.0
MOST_BYTES: Final = 200 << 20


@pytest.fixture(scope="module")
def own_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with run_cluster(tmp_path_factory.mktemp("scale")) as cluster:
        cluster.define(*crd_manifests())
        cluster.kubectl("create", "namespace", NAMESPACE)
        yield cluster


async def test_hundreds_of_sandboxes_are_there_within_a_minute(
    own_cluster: Cluster, tmp_path: Path
) -> None:
    async with open_kube(own_cluster.connection()) as kube:
        await reconcile_all(own_cluster, Api(kube, NAMESPACE), tmp_path)


async def reconcile_all(cluster: Cluster, api: Api, directory: Path) -> None:
    wanted = [server(f"s{n}", f"http://s{n}.mcp.svc:8931/mcp") for n in range(SERVERS)]
    for number in range(SANDBOXES):
        names = [f"s{(number + other) % SERVERS}" for other in range(EACH)]
        wanted.append(sandbox(f"b{number}", *names))
    async with trio.open_nursery() as nursery:
        places = trio.CapacityLimiter(8)

        async def create(number: int) -> None:
            async with places:
                await api.apply(wanted[number])

        for number in range(len(wanted)):
            nursery.start_soon(create, number)
    began = trio.current_time()
    with operator_process(cluster, directory, api.namespace) as (process, _):
        while (ready := await derived(api)) < SANDBOXES:
            taken = trio.current_time() - began
            assert taken < MOST_SECONDS, f"{ready} of {SANDBOXES} after {taken:.0f} s"
            await trio.sleep(1)
        taken = trio.current_time() - began
        listed = await api.kube.list(kinds.DEPLOYMENTS, api.namespace)
        peak = peak_of(process.pid)
    print(f"{SANDBOXES} sandboxes with {EACH} servers each: {taken:.0f} s, {peak >> 20} MiB")
    assert len(listed.items) == SANDBOXES
    assert taken < MOST_SECONDS
    assert peak < MOST_BYTES


async def derived(api: Api) -> int:
    """How many sandboxes have all their objects, and a status that says so."""
    found = await api.kube.list(kinds.KARS_SANDBOXES, api.namespace)
    said = (condition(each, "EgressDerived") for each in found.items)
    return sum(each.get("status") == "True" for each in said)


def peak_of(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) << 10
