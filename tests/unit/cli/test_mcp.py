"""`kars mcp` against the fake API server on a socket: what is sent, said and returned."""

from __future__ import annotations

import datetime as dt
import functools
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from attrs import define, frozen
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from kars_router.cli.main import main
from kars_router.cli.mcp_cluster import delete_server, users_of
from kars_router.cli.mcp_view import age, listed, shown, state
from kars_router.kube import ConflictError
from kars_router.kube.resources import KARS_SANDBOXES, MCP_SERVERS, Resource
from kars_router.testing import serve
from kars_router.testing.kube import FakeCluster

Manifest = dict[str, Any]
NOW = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)


@frozen
class Done:
    status: int
    out: str
    err: str


@define(eq=False)
class Bench:
    """The command line in this process, and a cluster for it."""

    cluster: FakeCluster
    kubeconfig: Path
    capsys: pytest.CaptureFixture[str]

    async def kars(self, *words: str) -> Done:
        arguments = ["mcp", *words, "--kubeconfig", str(self.kubeconfig)]
        status = await trio.to_thread.run_sync(functools.partial(main, arguments))
        out, err = self.capsys.readouterr()
        assert "Traceback" not in err
        return Done(status, out, err)

    def spec(self, name: str, namespace: str = "default") -> Any:
        found = self.cluster.find(MCP_SERVERS, name, namespace)
        return None if found is None else found["spec"]

    def put(self, name: str = "web", **more: Any) -> Manifest:
        manifest = {
            "apiVersion": "kars.azure.com/v1alpha1",
            "kind": "McpServer",
            "metadata": {"name": name, **more.pop("metadata", {})},
            "spec": {"url": "http://web.tools.svc:8080/mcp", "allowedTools": ["*"]},
        }
        return self.cluster.put({**manifest, **more})


def write_kubeconfig(file: Path, url: str) -> Path:
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k"}}],
        "clusters": [{"name": "k", "cluster": {"server": url}}],
    }
    file.write_text(json.dumps(config))
    return file


@pytest.fixture
async def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Bench]:
    cluster = FakeCluster()
    async with serve(cluster) as url:
        yield Bench(cluster, write_kubeconfig(tmp_path / "kubeconfig", url.rstrip("/")), capsys)


FLAGS = (
    *("--url", "https://web.example.com/mcp", "--production-mode"),
    *("--oauth-issuer", "https://issuer.example.com", "--oauth-audience", "web"),
    *("--oauth-resource", "https://web.example.com/mcp", "--scope", "read", "--scope", "write"),
    *("--allowed-tool", "get_*", "--allowed-tool", "list", "--display-name", "The web"),
    *("--allowed-sandbox-label", "team=a", "--allowed-sandbox-label", "x/y=b"),
    *("--bearer-from-env", "WEB_TOKEN"),
)
SPEC = {
    "url": "https://web.example.com/mcp",
    "productionMode": True,
    "oauth": {
        "issuer": "https://issuer.example.com",
        "audience": "web",
        "resource": "https://web.example.com/mcp",
    },
    "scopes": ["read", "write"],
    "allowedTools": ["get_*", "list"],
    "displayName": "The web",
    "allowedSandboxes": {"matchLabels": {"team": "a", "x/y": "b"}},
    "bearerFromEnv": "WEB_TOKEN",
}


# --- apply ----------------------------------------------------------------------------------------


async def test_flags_make_a_server(bench: Bench) -> None:
    done = await bench.kars("apply", "web", *FLAGS)
    assert (done.status, done.out) == (0, "McpServer default/web created\n")
    assert bench.spec("web") == SPEC
    applied = bench.cluster.seen[-1]
    assert applied.verb == "apply"
    assert applied.query == {
        "fieldManager": "kars-cli",
        "force": "false",
        "fieldValidation": "Strict",
    }

    assert (await bench.kars("apply", "web", *FLAGS)).out == "McpServer default/web unchanged\n"
    changed = await bench.kars("apply", "web", *FLAGS, "--no-production-mode")
    assert changed.out == "McpServer default/web configured\n"
    assert bench.spec("web")["productionMode"] is False


async def test_what_is_not_given_any_more_goes(bench: Bench) -> None:
    await bench.kars("apply", "web", *FLAGS)
    await bench.kars("apply", "web", "--url", "http://other/mcp", "--allowed-tool", "*")
    assert bench.spec("web") == {"url": "http://other/mcp", "allowedTools": ["*"]}


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("as_json", [True, False])
async def test_a_file_makes_a_server_and_flags_come_on_top(
    bench: Bench, tmp_path: Path, whole: bool, as_json: bool
) -> None:
    metadata = {"name": "web", "namespace": "kube-system", "labels": {"a": "b"}}
    document = {
        "apiVersion": "kars.azure.com/v1alpha1",
        "kind": "McpServer",
        # As `get -o yaml` prints it.
        "metadata": {**metadata, "uid": "x", "resourceVersion": "9", "managedFields": []},
        "spec": SPEC,
        "status": {"phase": "Ready"},
    }
    file = tmp_path / "web"
    with file.open("w") as opened:
        content = document if whole else SPEC
        json.dump(content, opened) if as_json else YAML(typ="safe").dump(content, opened)
    name = [] if whole else ["web", "-n", "kube-system"]
    done = await bench.kars("apply", *name, "--from-file", str(file), "--allowed-tool", "one")
    assert (done.status, done.out) == (0, "McpServer kube-system/web created\n")
    assert bench.spec("web", "kube-system") == {**SPEC, "allowedTools": ["one"]}
    found = bench.cluster.find(MCP_SERVERS, "web", "kube-system")
    assert found is not None
    assert found["metadata"].get("labels") == ({"a": "b"} if whole else None)


async def test_what_get_prints_can_be_applied(bench: Bench, tmp_path: Path) -> None:
    await bench.kars("apply", "web", *FLAGS)
    file = tmp_path / "web.yaml"
    file.write_text((await bench.kars("get", "web", "-o", "yaml")).out)
    done = await bench.kars("apply", "--from-file", str(file))
    assert done.out == "McpServer default/web unchanged\n"


async def test_a_dry_run_changes_nothing(bench: Bench) -> None:
    done = await bench.kars("apply", "web", *FLAGS, "--dry-run")
    assert (done.status, done.out) == (0, "McpServer default/web created (dry run)\n")
    assert bench.spec("web") is None
    assert bench.cluster.seen[-1].query["dryRun"] == "All"
    as_json = await bench.kars("apply", "web", *FLAGS, "--dry-run", "-o", "json")
    assert json.loads(as_json.out)["spec"] == SPEC


async def test_what_will_not_work_is_said(bench: Bench) -> None:
    done = await bench.kars(
        "apply", "web", "--url", "https://x", "--oauth-issuer", "https://issuer.example.com"
    )
    assert done.status == 0
    assert done.err.splitlines() == [
        "kars: warning: web needs tokens of its issuer; name the client in oauth.clientIdFromEnv",
        "kars: warning: no tool is allowed; add --allowed-tool NAME, or '*' for all",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["web"], ["--url: is missing"]),
        (["web", "--url", "ftp://x"], ["--url: must start with http://"]),
        (["Web", "--url", "http://x"], ["kars: NAME: is no name that a McpServer can have: 'Web'"]),
        (["a" * 64, "--url", "http://x"], ["kars: NAME: "]),
        (
            ["web", "--url", "http://x", "--production-mode"],
            ["--oauth-issuer: must name the issuer", "--url: must begin with https://"],
        ),
        (["web", "--url", "http://x", "--oauth-audience", "a"], []),
        (
            ["web", "--url", "http://x", "--scope", "a b", "--allowed-tool", ""],
            ["--scope: must be a scope", "--allowed-tool: must not be empty"],
        ),
        (
            ["web", "--url", "http://x", "--bearer-from-env", "s3cr3t-token"],
            ["--bearer-from-env: must be the name of an environment variable"],
        ),
    ],
)
async def test_a_mistake_is_named_by_its_flag_before_the_cluster_hears_of_it(
    bench: Bench, words: list[str], said: list[str]
) -> None:
    done = await bench.kars("apply", *words)
    if not said:
        assert done.status == 0
        return
    assert done.status == 1
    lines = done.err.splitlines()
    assert len(lines) == len(said)
    for line, each in zip(lines, said, strict=True):
        assert each in line
    assert "s3cr3t" not in done.err
    assert bench.cluster.seen == []


@pytest.mark.parametrize(
    ("content", "flags", "said"),
    [
        ("url: ftp://x", [], "{file}: url: must start with http://"),
        ("spec: {url: ftp://x}", [], "{file}: spec.url: must start with http://"),
        ("url: http://x", ["--scope", "a b"], "kars: --scope: must be a scope"),
        ("{url: http://x, allowedTool: [a]}", [], "(did you mean 'allowedTools'?)"),
        ("{url: http://x, oauth: 3}", ["--oauth-issuer", "https://i"], "spec.oauth: must be a"),
        ("kind: Pod", [], "{file}: kind: must be one of"),
        ("{kind: McpServer, spec: 3}", [], "{file}: spec: must be a mapping"),
        ("{kind: McpServer, metadata: 3}", [], "{file}: metadata: must be a mapping"),
        ("", [], "{file}: is empty; it must hold an McpServer"),
        ("[1]", [], "{file}: holds a list; it must hold an McpServer"),
        ("a: [", [], "{file}: line 1"),
        ("{url: http://x, url: http://y}", [], "{file}: "),
        ("a: 1\n---\nb: 2", [], "{file}: "),
        ("{kind: McpServer, spec: {url: 'http://x'}, metadata: {namespace: A}}", [], "namespace"),
    ],
)
async def test_a_mistake_is_named_by_its_place_in_the_file(
    bench: Bench, tmp_path: Path, content: str, flags: list[str], said: str
) -> None:
    file = tmp_path / "web.yaml"
    file.write_text(content)
    done = await bench.kars("apply", "web", "--from-file", str(file), *flags)
    assert done.status == 1
    assert said.format(file=file) in done.err
    assert bench.cluster.seen == []


async def test_wrong_usage_is_told(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "web.yaml"
    file.write_text("{kind: McpServer, metadata: {name: a, namespace: b}, spec: {url: 'http://x'}}")
    place = ["--from-file", str(file)]
    for words, said in (
        ([], "name the server"),
        (["other", *place], "NAME is other, but the file has a"),
        ([*place, "-n", "c"], "--namespace is c, but the file has b"),
        (["a", "-n", "No Name"], "it must be the name of a namespace"),
        (["a", "--allowed-sandbox-label", "x"], "'x' is not of the form KEY=VALUE"),
        (["a", "--allowed-sandbox-label", "x y=z"], "no label can be x y=z"),
        (["a", "--allowed-sandbox-label", "x=y z"], "no label can be x=y z"),
        (["a", "--frobnicate"], "No such option"),
    ):
        done = await bench.kars("apply", *words)
        assert done.status == 2, words
        assert said in done.err
    missing = await bench.kars("apply", "a", "--from-file", str(tmp_path / "missing"))
    assert missing.status == 1
    assert "missing: No such file" in missing.err
    assert bench.cluster.seen == []


async def test_conflicts_are_named_by_field_and_manager(bench: Bench) -> None:
    bench.put()
    words = ("apply", "web", "--url", "http://other/mcp", "--allowed-tool", "one")
    done = await bench.kars(*words)
    assert done.status == 1
    assert done.err.splitlines() == [
        "kars: spec.url: set by somebody",
        "kars: spec.allowedTools: set by somebody",
        "kars: nothing was changed; --force-conflicts takes these fields",
    ]
    assert bench.spec("web")["url"] == "http://web.tools.svc:8080/mcp"
    forced = await bench.kars(*words, "--force-conflicts")
    assert (forced.status, forced.out) == (0, "McpServer default/web configured\n")
    assert bench.spec("web") == {"url": "http://other/mcp", "allowedTools": ["one"]}


async def test_what_the_cluster_refuses_is_named_by_its_flag(bench: Bench) -> None:
    bench.cluster.checks[MCP_SERVERS] = lambda manifest: [
        ("spec.url", 'Invalid value: "x": no'),
        ("spec", "Invalid value: rule"),
    ]
    done = await bench.kars("apply", "web", "--url", "http://x", "--allowed-tool", "*")
    assert done.status == 1
    first, second = done.err.splitlines()
    assert first == 'kars: --url: Invalid value: "x": no'
    assert second.endswith(": spec: Invalid value: rule")
    bench.cluster.checks.clear()
    done = await bench.kars("apply", "web", "--url", "http://x", "-n", "nowhere")
    assert done.status == 1
    assert 'namespaces "nowhere" not found' in done.err


# --- list, get ------------------------------------------------------------------------------------


def condition(status: str, reason: str, **more: Any) -> Manifest:
    return {"type": "Ready", "status": status, "reason": reason, "message": "It says.", **more}


READY = [condition("True", "R")]


async def test_servers_are_listed(bench: Bench) -> None:
    assert (await bench.kars("list")).out == "no McpServers\n"
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


async def test_a_conflict_without_causes_has_the_words_of_the_cluster(bench: Bench) -> None:
    bench.cluster.trouble(409, verb="apply")
    done = await bench.kars("apply", "web", "--url", "http://x", "--allowed-tool", "*")
    assert done.status == 1
    assert done.err.splitlines()[0].startswith("kars: injected Conflict for apply")


# --- clusters that do not do well -----------------------------------------------------------------

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
    assert "NAME" in listed([found], NOW, namespaces=True)
    assert "\x1b" not in shown(found, NOW).replace("\x1b[1m", "").replace("\x1b[0m", "")


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
        1,
        f"kars: {bench.kubeconfig}: there is no context 'other'; contexts: c\n",
    )
    bench.kubeconfig.unlink()
    done = await bench.kars("list")
    assert done.status == 1
    assert done.err == f"kars: {bench.kubeconfig} cannot be read: No such file or directory\n"


async def test_stdin_may_be_the_file(bench: Bench) -> None:
    command = [sys.executable, "-m", "kars_router", "mcp", "apply", "web", "--from-file", "-"]
    done = await trio.run_process(
        [*command, "--kubeconfig", str(bench.kubeconfig)],
        stdin=b"{url: http://x, allowedTools: ['*']}",
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"McpServer default/web created\n")
