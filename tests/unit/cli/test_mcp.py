"""`kars mcp list`, `get` and `delete` against the fake API server on a socket."""

from __future__ import annotations

import datetime as dt
import json
import os
import pty
import re
import sys
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML
from unit.cli.mcp_kit import SPEC, Bench, condition

from kars_router.cli.mcp_cluster import delete_server, users_of
from kars_router.cli.mcp_view import age, listed, shown, state
from kars_router.kube import ConflictError
from kars_router.kube.resources import KARS_SANDBOXES, MCP_SERVERS

NOW = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)


# --- list, get ------------------------------------------------------------------------------------


async def test_servers_are_listed(bench: Bench) -> None:
    assert (await bench.kars("list")).out == "no McpServers in default; -A looks everywhere\n"
    assert (await bench.kars("list", "-A")).out == "no McpServers\n"
    bench.put("a", status={"conditions": [condition("True", "RouterEnforcing")]})
    bench.put("b", spec={"productionMode": True}, metadata={"namespace": "kube-system"})
    done = await bench.kars("list")
    assert done.status == 0
    headings, row = done.out.splitlines()
    assert headings.split() == ["NAME", "URL", "PROD", "AGE", "STATUS", "REASON"]
    assert re.sub(r"\d+s", "0s", row).split() == [
        *("a", "http://web.tools.svc:8080/mcp", "no", "0s", "Ready", "RouterEnforcing")
    ]
    everywhere = (await bench.kars("list", "-A")).out.splitlines()
    assert [line.split()[:2] for line in everywhere] == [
        ["NAMESPACE", "NAME"],
        ["default", "a"],
        ["kube-system", "b"],
    ]
    assert everywhere[2].split()[2:4] == ["-", "yes"]
    as_json = json.loads((await bench.kars("list", "-o", "json")).out)
    assert [each["metadata"]["name"] for each in as_json] == ["a"]
    assert "managedFields" not in as_json[0]["metadata"]


async def test_one_server_is_shown(bench: Bench) -> None:
    bench.put(
        spec={**SPEC, "allowedSandboxes": {"matchLabels": {"a": "b"}, "namespaces": ["x"]}},
        status={"conditions": [condition("False", "Odd\x1b[31m", lastTransitionTime="rubbish")]},
    )
    done = await bench.kars("get", "web")
    assert done.status == 0
    facts = dict(
        re.split(r"  +", line, maxsplit=1) for line in done.out.split("\n\n")[0].split("\n")
    )
    assert facts["url"] == "https://web.example.com/mcp"
    assert facts["tools"] == "get_*, list"
    assert (facts["sandboxes"], facts["also of"]) == ("a=b", "x")
    assert facts["says"] == "It says."
    assert facts["status"].startswith("NotReady (Odd")
    assert "\x1b" not in done.out
    found = YAML(typ="safe").load((await bench.kars("get", "web", "-o", "yaml")).out)
    assert list(found) == ["apiVersion", "kind", "metadata", "spec", "status"]
    bench.put("bare", spec=None)
    assert "tools         none" in (await bench.kars("get", "bare")).out


async def test_what_is_not_there_is_told(bench: Bench) -> None:
    for words in (["get", "web"], ["delete", "web", "--no-prompt"], ["get", "../web", "-n", "x"]):
        done = await bench.kars(*words)
        assert done.status == 1
        assert re.match(r"kars: there is no McpServer (default|x)/(\.\./)?web\n", done.err)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, ("Pending", "")),
        (None, ("Pending", "")),
        ([], ("Pending", "")),
        ({"phase": "Degraded"}, ("Degraded", "")),
        ({"conditions": 3}, ("Pending", "")),
        ({"conditions": [3, {"type": "Other"}]}, ("Pending", "")),
        ({"conditions": [condition("True", "R")]}, ("Ready", "R")),
        ({"conditions": [condition("False", "R")]}, ("NotReady", "R")),
        ({"conditions": [condition("Unknown", "R")]}, ("Pending", "R")),
        ({"conditions": [condition("True", "R", observedGeneration=1)]}, ("Pending", "Outdated")),
        (
            {"observedGeneration": 1, "conditions": [condition("True", "R")]},
            ("Pending", "Outdated"),
        ),
        ({"observedGeneration": 2, "conditions": [condition("True", "R")]}, ("Ready", "R")),
    ],
)
def test_the_state_in_a_word(said: object, expected: tuple[str, str]) -> None:
    assert state({"metadata": {"generation": 2}, "status": said})[:2] == expected


def test_what_is_being_deleted_says_what_it_waits_for() -> None:
    metadata = {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b"]}
    assert state({"metadata": metadata}) == ("Deleting", "a/b", "")


@pytest.mark.parametrize(
    ("stamp", "expected"),
    [
        ("2026-01-02T00:00:00Z", "0s"),
        ("2026-01-03T00:00:00Z", "0s"),
        ("2026-01-01T23:58:01Z", "119s"),
        ("2026-01-01T23:58:00Z", "2m"),
        ("2026-01-01T22:00:00Z", "2h"),
        ("2025-12-31T00:00:00Z", "2d"),
        ("2024-12-31T00:00:00Z", "367d"),
        ("2026-01-02", "?"),
        (None, "?"),
        (3, "?"),
    ],
)
def test_ages(stamp: object, expected: str) -> None:
    assert age(stamp, NOW) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "url",
                    "conditions",
                    "type",
                    "status",
                    "reason",
                    "oauth",
                    "allowedTools",
                    "Ready",
                    "x",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
)


@given(spec=JSON, said=JSON, generation=JSON)
def test_whatever_a_server_holds_can_be_shown(spec: Any, said: Any, generation: Any) -> None:
    found = {"metadata": {"generation": generation}, "spec": spec, "status": said}
    assert "NAME" in listed([found], NOW, namespace=None)
    assert "\x1b" not in shown(found, NOW).replace("\x1b[1m", "").replace("\x1b[0m", "")


# --- delete ---------------------------------------------------------------------------------------


async def test_a_server_is_deleted(bench: Bench) -> None:
    bench.put()
    done = await bench.kars("delete", "web", "--no-prompt")
    assert (done.status, done.out) == (0, "McpServer default/web deleted\n")
    assert bench.spec("web") is None
    bench.put("held", metadata={"finalizers": ["a/b"]})
    done = await bench.kars("delete", "held", "--no-prompt")
    assert done.out == "McpServer default/held is being deleted; it waits for a/b\n"


async def test_without_a_terminal_nothing_is_deleted(bench: Bench) -> None:
    bench.put()
    done = await bench.kars("delete", "web")
    assert done.status == 2
    assert "there is no terminal to ask on; add --no-prompt" in done.err
    assert bench.spec("web") is not None
    assert bench.cluster.seen == []


@pytest.mark.parametrize(("answer", "status"), [(b"n\n", 1), (b"\n", 1), (b"y\n", 0)])
async def test_on_a_terminal_it_asks(bench: Bench, answer: bytes, status: int) -> None:
    bench.put()
    sandbox = {"apiVersion": "kars.azure.com/v1alpha1", "kind": "KarsSandbox"}
    governance = {"mcpServerRefs": [{"name": "web"}, {"name": "x", "namespace": "y"}]}
    bench.cluster.put({**sandbox, "metadata": {"name": "s"}, "spec": {"governance": governance}})
    bench.cluster.put({**sandbox, "metadata": {"name": "t"}, "spec": {}})
    primary, secondary = pty.openpty()
    os.write(primary, answer)
    command = [sys.executable, "-m", "kars_router", "mcp", "delete", "web"]
    try:
        done = await trio.run_process(
            [*command, "--kubeconfig", str(bench.kubeconfig)],
            stdin=secondary,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    finally:
        os.close(primary)
        os.close(secondary)
    assert done.returncode == status
    assert done.stderr.decode().startswith(
        "Delete McpServer default/web (http://web.tools.svc:8080/mcp);"
        " KarsSandbox default/s refer to it? [y/N]"
    )
    assert (bench.spec("web") is None) is (status == 0)


async def test_whom_a_server_serves_need_not_be_known(bench: Bench) -> None:
    bench.cluster.trouble(403, resource=KARS_SANDBOXES)
    async with bench.cluster.open() as kube:
        assert await users_of(kube, name="web", namespace="default") == []


async def test_only_the_server_that_was_asked_about_is_deleted(bench: Bench) -> None:
    shown = bench.put()
    bench.cluster.remove(MCP_SERVERS, "web")
    bench.put()
    async with bench.cluster.open() as kube:
        with pytest.raises(ConflictError):
            await delete_server(kube, server=shown)
    assert bench.spec("web") is not None
