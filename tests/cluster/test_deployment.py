"""The operator's Deployment as a kubelet would run it: its user, files, account and probes.

The container's command runs with the variables and the user of the manifest, on a file system that
is read-only, and finds the API server as a pod does. Only the image is this machine's.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from peers import LOOPBACK, Peer, free_port, missing, start_peer

from cluster.harness import Cluster
from cluster.rights_kit import ACCOUNT, HOME, MANIFESTS, uninstall

ENTRY_POINT: Final = "import sys; from kars_operator.main import main; sys.exit(main())"
FILES: Final = "/run/secrets/kubernetes.io/serviceaccount"


@pytest.fixture
def deployment(cluster: Cluster, definitions: None) -> Iterator[dict[str, Any]]:
    cluster.kubectl("apply", "--server-side", "-f", str(MANIFESTS / "operator"))
    yield cluster.get("deployment", ACCOUNT, HOME)
    uninstall(cluster)


@contextmanager
def container(
    cluster: Cluster, deployment: dict[str, Any], directory: Path, port: int
) -> Iterator[Peer]:
    """The operator's container, until the block ends."""
    pod = deployment["spec"]["template"]["spec"]
    (spec,) = pod["containers"]
    assert spec["securityContext"]["readOnlyRootFilesystem"] is True
    account = directory / "account"
    account.mkdir(exist_ok=True)
    (account / "token").write_text(cluster.token(HOME, pod["serviceAccountName"]), "utf-8")
    (account / "ca.crt").write_bytes(cluster.authority.certificate.read_bytes())
    (account / "namespace").write_text(HOME, "utf-8")
    given = {each["name"]: each.get("value", HOME) for each in spec["env"]}
    host, _, api_port = cluster.url.removeprefix("https://").partition(":")
    variables = {
        **given,
        "KARS_OPERATOR_RUN_HEALTH": f"{LOOPBACK}:{port}",  # beyond loopback, pods alone listen
        "KUBERNETES_SERVICE_HOST": host,
        "KUBERNETES_SERVICE_PORT": api_port,
        "HOME": "/",
    }
    command = [sys.executable, "-c", ENTRY_POINT, *spec["args"]]
    argv = [*confined(pod["securityContext"], account), *command]
    with start_peer(
        argv, log_path=directory / "log", env=variables, port=port, deadline=60
    ) as peer:
        yield peer


def confined(context: dict[str, Any], account: Path) -> list[str]:
    """What stands before a command so that it runs as in the pod."""
    if os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("setpriv")):
        missing("not root, or no unshare and setpriv: another user cannot be had")
    user = ["setpriv", f"--reuid={context['runAsUser']}", f"--regid={context['runAsGroup']}"]
    user += ["--clear-groups", "--bounding-set=-all", "--no-new-privs"]
    seen = [*user, sys.executable, "-c", "import kars_operator.main"]
    if subprocess.run(seen, capture_output=True, check=False, cwd="/").returncode:
        pytest.skip("the Python that runs this test, or its packages, are for its user alone")
    steps = [
        "mount -t tmpfs tmpfs /run",
        f"mkdir -p {FILES}",
        f"cp {shlex.quote(str(account))}/* {FILES}/",
        "mount -o remount,ro /run",
        "mount -o remount,bind,ro /",
        f'cd /; exec {shlex.join(user)} "$@"',
    ]
    return ["unshare", "--mount", "sh", "-euc", "\n".join(steps), "sh"]


def probe(deployment: dict[str, Any], name: str, port: int) -> int:
    """The status that a probe of the manifest gets."""
    (spec,) = deployment["spec"]["template"]["spec"]["containers"]
    request = spec[f"{name}Probe"]["httpGet"]
    ports = {each["name"]: each["containerPort"] for each in spec["ports"]}
    assert ports[request["port"]] == 8080
    return httpx.get(f"http://{LOOPBACK}:{port}{request['path']}", timeout=10).status_code


def holder(cluster: Cluster) -> str:
    lease = cluster.get("lease", ACCOUNT, HOME)
    return str(lease["spec"].get("holderIdentity") or "")


def test_it_works_as_its_user_on_a_read_only_file_system(
    cluster: Cluster, deployment: dict[str, Any], tmp_path: Path
) -> None:
    port = free_port()
    with container(cluster, deployment, tmp_path, port) as peer:
        status = Path(f"/proc/{peer.pid}/status").read_text("utf-8")
        assert "Uid:\t1001\t1001\t1001\t1001" in status
        assert "CapBnd:\t0000000000000000" in status
        mounts = Path(f"/proc/{peer.pid}/mounts").read_text("utf-8").splitlines()
        root = next(each.split() for each in mounts if each.split()[1] == "/")
        assert "ro" in root[3].split(",")
        peer.wait_for(lambda: probe(deployment, "readiness", port) == 200, "it is ready")
        assert probe(deployment, "startup", port) == probe(deployment, "liveness", port) == 200
        assert holder(cluster)
        peer.signal(signal.SIGTERM)
        grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert peer.wait(grace) == 0
    assert holder(cluster) == ""


def test_one_of_two_works_and_the_other_takes_over(
    cluster: Cluster, deployment: dict[str, Any], tmp_path: Path
) -> None:
    directories = [tmp_path / "first", tmp_path / "second"]
    for each in directories:
        each.mkdir()
    ports = [free_port(), free_port()]

    def leads(port: int) -> bool:
        text = httpx.get(f"http://{LOOPBACK}:{port}/metrics", timeout=10).text
        return "kars_operator_leading 1.0" in text

    assert deployment["spec"]["replicas"] == 2
    with container(cluster, deployment, directories[0], ports[0]) as first:
        first.wait_for(lambda: leads(ports[0]), "it leads")
        with container(cluster, deployment, directories[1], ports[1]) as second:
            second.wait_for(lambda: probe(deployment, "readiness", ports[1]) == 200, "it is ready")
            assert not leads(ports[1])
            first.signal(signal.SIGTERM)
            assert first.wait(30) == 0
            second.wait_for(lambda: leads(ports[1]), "it leads")
