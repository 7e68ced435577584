"""`kars-operator run` as a process: what it answers, how it stops, what it says of mistakes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trio
from peers import LOOPBACK, Peer, free_port, log_events, start_peer

from cluster.harness import Cluster
from cluster.operator_kit import Api, sandbox
from kars_router.kube import resources as kinds

COMMAND = [
    sys.executable,
    "-c",
    "import sys; from kars_operator.main import main; sys.exit(main())",
]


@contextmanager
def operator_process(
    cluster: Cluster, directory: Path, namespace: str, *words: str
) -> Iterator[tuple[Peer, str]]:
    """The process, and the URL of its health address."""
    log = directory / "operator.log"
    argv = [*COMMAND, "run", "--namespace", namespace, "--operator-namespace", namespace, *words]
    argv += ["--health", f"{LOOPBACK}:0"]
    with start_peer(
        argv,
        log_path=log,
        env=cluster.environment(),
        ready=lambda peer: bool(started(peer)),
        deadline=60,
    ) as peer:
        yield peer, started(peer)


def started(peer: Peer) -> str:
    """The URL of its health address, once it says so."""
    found = [each for each in log_events(peer.log()) if each.get("event") == "operator_started"]
    return str(found[0]["health"]) if found else ""


def status(url: str) -> tuple[int, str]:
    response = httpx.get(url, timeout=10)
    return response.status_code, response.text


async def test_it_says_how_it_is_and_stops_in_order(
    cluster: Cluster, api: Api, tmp_path: Path
) -> None:
    with operator_process(cluster, tmp_path, api.namespace) as (process, url):
        await api.apply(sandbox("box"))
        await api.until(kinds.DEPLOYMENTS, "box", bool)
        await trio.to_thread.run_sync(
            process.wait_for, lambda: status(f"{url}/readyz")[0] == 200, "it is ready"
        )
        assert status(f"{url}/healthz") == (200, "ok")
        text = status(f"{url}/metrics")[1]
        assert "kars_operator_leading 1.0" in text
        assert 'kars_operator_objects{resource="karssandboxes"} 1.0' in text
        assert 'kars_operator_reconcile_seconds_count{about="KarsSandbox",outcome="done"}' in text
        assert 'kars_operator_sandboxes{condition="EgressTight",status="True"} 1.0' in text
        assert status(f"{url}/elsewhere")[0] == 404
        process.signal(signal.SIGTERM)
        assert await trio.to_thread.run_sync(process.wait, 20) == 0
        lease = await api.get(kinds.LEASES, "kars-operator")
        assert lease is not None
        assert not lease["spec"].get("holderIdentity")
        # What runs goes on without an operator.
        assert await api.get(kinds.DEPLOYMENTS, "box")


def test_without_an_api_server_it_waits_and_is_not_ready(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    config = json.loads(cluster.admin.read_text(encoding="utf-8"))
    config["clusters"][0]["cluster"]["server"] = f"https://{LOOPBACK}:{free_port()}"
    nowhere = tmp_path / "nowhere"
    nowhere.write_text(json.dumps(config), encoding="utf-8")
    words = ("--kubeconfig", str(nowhere))
    with operator_process(cluster, tmp_path, namespace, *words) as (process, url):
        assert status(f"{url}/healthz")[0] == 200
        code, text = status(f"{url}/readyz")
        assert code == 503
        assert "lease" in text
        process.signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["--kubeconfig", "/nowhere"], "/nowhere", 3),
        (["--health", "example:1:2"], "--health", 2),
        (["--health", "host.invalid:0"], "--health host.invalid:0", 1),
        (["--workers", "0"], "--workers", 2),
    ],
)
def test_a_mistake_is_one_sentence(
    cluster: Cluster, words: list[str], said: str, code: int
) -> None:
    done = subprocess.run(
        [*COMMAND, "run", *words],
        env=cluster.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
