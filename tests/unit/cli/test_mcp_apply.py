"""`kars mcp apply` against the fake API server on a socket: what is sent, said and returned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from ruamel.yaml import YAML
from unit.cli.mcp_kit import FLAGS, SPEC, Bench

from kars_router.kube.resources import MCP_SERVERS


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
        ("kind: Pod", [], "{file}: kind: must be McpServer, not 'Pod'"),
        (
            "{kind: KarsSandbox, metadata: {name: a}}",
            [],
            "{file}: kind: must be McpServer, not 'KarsSandbox'",
        ),
        ("{kind: McpServer, spec: 3}", [], "{file}: spec: must be a mapping"),
        ("{kind: McpServer, metadata: 3}", [], "{file}: metadata: must be a mapping"),
        ("", [], "{file}: is empty; it must hold an McpServer"),
        ("[1]", [], "{file}: holds a list; it must hold an McpServer"),
        ("a: [", [], "{file}: line 1"),
        ("{url: http://x, url: http://y}", [], "{file}: "),
        ("a: 1\n---\nb: 2", [], "{file}: line 2, column 1: a second document begins"),
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


async def test_a_conflict_without_causes_has_the_words_of_the_cluster(bench: Bench) -> None:
    bench.cluster.trouble(409, verb="apply")
    done = await bench.kars("apply", "web", "--url", "http://x", "--allowed-tool", "*")
    assert done.status == 1
    assert done.err.splitlines()[0].startswith("kars: injected Conflict for apply")


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
