"""`kars mcp` and clusters that do not do well: everything is told in a line."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import trio
from unit.cli.kubeconfig_kit import write_kubeconfig
from unit.cli.mcp_kit import Bench

from kars_router.kube.resources import MCP_SERVERS, Resource
from kars_router.testing.kube import FakeCluster

ALL = (
    ("list",),
    ("get", "web"),
    ("delete", "web", "--no-prompt"),
    ("apply", "web", "--url", "http://x", "--allowed-tool", "*"),
)


@pytest.mark.parametrize("words", ALL)
async def test_a_cluster_that_cannot_be_asked_is_told(bench: Bench, words: list[str]) -> None:
    html = b"<!DOCTYPE html><html>" + b"x" * 5000
    for trouble, said in (
        ({"status": 200, "body": (html, "text/html")}, "is no Kubernetes API"),
        ({"status": 200, "body": (b"\x00\xff", "")}, "is no Kubernetes API"),
        ({"status": 404, "body": (html, "text/html")}, "is no Kubernetes API"),
        ({"status": 503}, "injected ServiceUnavailable"),
        ({"status": 429, "retry_after": 1}, "injected TooManyRequests"),
        ({"status": 401}, f"does not accept the credentials in {bench.kubeconfig}"),
        ({"status": 403}, "injected Forbidden"),
        ({"error": httpx.ReadError}, "cannot be reached"),
    ):
        bench.cluster.trouble(times=99, **trouble)
        done = await bench.kars(*words)
        bench.cluster.calm()
        assert done.status == 3, (trouble, done.err)
        assert said in done.err
        assert done.err.count("\n") == 1
        assert len(done.err) < 400


@pytest.mark.parametrize("words", ALL)
@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"metadata": 3}',
        b'{"metadata": {}, "items": [{"metadata": 3}]}',
        b'{"metadata": {}, "items": [3]}',
        b'{"metadata": {}, "items": [{"metadata": {"name": 3}, "spec": [], "status": 3}]}',
        b'{"metadata": {"name": ["x"], "labels": 3}, "spec": {"url": {}, "allowedTools": 3}}',
        b'{"metadata": {"finalizers": [3]}, "status": {"conditions": [{"type": "Ready"}]}}',
        b'{"kind": "Status", "status": "Success"}',
        b"[" * 100_000,
        b"null",
    ],
)
async def test_garbage_is_told_or_shown_but_breaks_nothing(
    bench: Bench, words: list[str], body: bytes
) -> None:
    bench.cluster.trouble(200, body=(body, "application/json"), times=99)
    done = await bench.kars(*words)
    assert done.status in {0, 3}
    assert "an error in kars itself" not in done.err
    assert done.err.count("\n") <= 1


@pytest.mark.parametrize("words", ALL)
async def test_an_answer_that_is_too_large_is_told(
    bench: Bench, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kars_router.kube.answers.LARGEST", 1 << 20)
    huge = b'{"metadata": {}, "items": [' + b" " * (3 << 20) + b"]}"
    bench.cluster.trouble(200, body=(huge, "application/json"), times=99)
    done = await bench.kars(*words)
    assert done.status == 3
    assert done.err.endswith("answers with more than 1 MiB\n")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("words", ALL)
async def test_a_cluster_without_the_kind_is_told(bench: Bench, words: list[str]) -> None:
    bench.cluster.served.remove(MCP_SERVERS)
    done = await bench.kars(*words)
    assert done.status == 3
    assert "knows no McpServer: install the operator's definitions first" in done.err
    # Of another version, it is none either.
    bench.cluster.served.add(Resource("kars.azure.com", "v1alpha1", "toolpolicies", "ToolPolicy"))
    assert (await bench.kars(*words)).status == 3


@pytest.mark.parametrize("words", ALL)
async def test_nobody_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))  # and nobody listens
        port = taken.getsockname()[1]
        file = write_kubeconfig(tmp_path / "kubeconfig", f"http://127.0.0.1:{port}")
        done = await Bench(FakeCluster(), file, capsys).kars(*words)
    assert done.status == 3
    assert done.err.startswith(f"kars: the API server http://127.0.0.1:{port} cannot be reached: ")
    assert done.err.count("\n") == 1


async def test_a_broken_kubeconfig_is_told(bench: Bench, tmp_path: Path) -> None:
    done = await bench.kars("list", "--context", "other")
    assert (done.status, done.err) == (
        3,
        f"kars: {bench.kubeconfig}: there is no context 'other'; contexts: c\n",
    )
    bench.kubeconfig.unlink()
    done = await bench.kars("list")
    assert done.status == 3
    assert done.err == f"kars: {bench.kubeconfig} cannot be read: No such file or directory\n"
