"""One cluster for the test run, and a namespace of its own for each test."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Final

import pytest
from kars_operator.crds import crd_manifests

from cluster.harness import Cluster, run_cluster
from cluster.operator_kit import Api
from kars_router.kube import Kube, open_kube

_SANDBOXES: Final = "/apis/kars.azure.com/v1alpha1/namespaces/{}/karssandboxes"


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with run_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: Cluster) -> Cluster:
    """The cluster; it runs, whatever the test before did to it."""
    running_cluster.start_api_server()
    return running_cluster


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a new namespace that is named after the test, and deleted after it."""
    stem = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40].rstrip("-")
    manifest = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"generateName": f"{stem}-"},
    }
    name = ["--output", "jsonpath={.metadata.name}"]
    created = cluster.kubectl("create", "--filename", "-", *name, given=json.dumps(manifest))
    yield created
    cluster.start_api_server()
    # The namespace takes a while to go, and operators of later tests look at all that there are.
    cluster.try_kubectl("delete", "--raw", _SANDBOXES.format(created))
    cluster.kubectl("delete", "namespace", created, "--wait=false")


@pytest.fixture(scope="session")
def definitions(running_cluster: Cluster) -> None:
    """The custom resources, known to the API server."""
    running_cluster.start_api_server()
    running_cluster.define(*crd_manifests())


@pytest.fixture
async def kube(cluster: Cluster) -> AsyncIterator[Kube]:
    """Our own client, as the administrator."""
    async with open_kube(cluster.connection()) as kube:
        yield kube


@pytest.fixture
async def api(kube: Kube, namespace: str, definitions: None) -> Api:
    """Questions to ask of the test's namespace."""
    return Api(kube, namespace)
