"""Objects without a cluster: the same bytes each time, and a sentence for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kars_operator import main as commands
from kars_operator import render
from kars_operator.settings import Settings
from operator_kit import sandbox_manifest, server_manifest
from ruamel.yaml import YAML

from kars_router.config.load import parse
from kars_router.config.manifests import write_manifests
from kars_router.errors import UserError
from kars_router.plugins import Plugins

SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "tools", "namespace": "mcp"},
    "spec": {"selector": {"app": "t"}, "ports": [{"port": 8931, "targetPort": 9000}]},
}


def write(directory: Path, name: str, *documents: Any) -> Path:
    file = directory / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(write_manifests(documents), encoding="utf-8")
    return file


def run(*words: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = commands.main([str(each) for each in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def documents(text: str) -> list[dict[str, Any]]:
    return list(YAML(typ="safe", pure=True).load_all(text))


def test_the_same_files_give_the_same_bytes_whatever_their_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write(
        tmp_path,
        "one/all.yaml",
        sandbox_manifest("b", "tools"),
        sandbox_manifest("a"),
        server_manifest(),
        SERVICE,
    )
    write(tmp_path, "two/deep/a.yaml", sandbox_manifest("a"))
    write(tmp_path, "two/b.json", sandbox_manifest("b", "tools"))
    write(tmp_path, "two/c.yml", SERVICE, server_manifest())
    write(tmp_path, "two/notes.txt")
    code, first, said = run("render", "-f", one, capsys=capsys)
    assert (code, said) == (0, "")
    assert run("render", "-f", tmp_path / "two", capsys=capsys)[1] == first
    found = documents(first)
    assert [(each["kind"], each["metadata"]["name"]) for each in found] == [
        (kind, f"{name}{'-router' if kind == 'ConfigMap' else ''}")
        for name in ("a", "b")
        for kind in ("ServiceAccount", "ConfigMap", "NetworkPolicy", "Deployment")
    ]
    # The Service in the files was read.
    (policy,) = [each for each in found[4:] if each["kind"] == "NetworkPolicy"]
    assert policy["spec"]["egress"][-1]["ports"] == [{"protocol": "TCP", "port": 9000}]
    assert list(parse(found[5]["data"]["kars.yaml"]).servers) == ["tools"]


def test_what_leads_to_nothing_is_said_and_the_rest_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, "a.yaml", sandbox_manifest("box", "gone", agent={}))
    code, out, said = run("render", "-f", file, capsys=capsys)
    assert code == 1
    assert said.splitlines() == [
        "kars-operator: KarsSandbox team/box: McpServer team/gone is not there; apply it",
        "kars-operator: KarsSandbox team/box: no image for the agent; set spec.agent.image",
    ]
    assert [each["kind"] for each in documents(out)] == [
        "ServiceAccount",
        "ConfigMap",
        "NetworkPolicy",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is no YAML"),
        ("a: 1\n", "without a kind"),
        ("kind: KarsSandbox\n", "a KarsSandbox has no metadata.name"),
        ("{kind: Pod, metadata: [1]}\n", "a Pod has no metadata.name"),
        (
            "{apiVersion: kars.azure.com/v1alpha1, kind: KarsSandbx}\n",
            "did you mean 'KarsSandbox'?",
        ),
    ],
)
def test_a_file_that_holds_something_else_is_named(
    tmp_path: Path, text: str | bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    code, out, error = run("render", "-f", file, capsys=capsys)
    assert (code, out) == (1, "")
    assert str(file) in error
    assert said in error
    assert len(error.splitlines()) == 1


def test_files_without_a_sandbox_are_not_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, error = run(
        "render", "-f", write(tmp_path, "a.yaml", server_manifest()), capsys=capsys
    )
    assert (code, out) == (1, "")
    assert error == "kars-operator: the files hold no KarsSandbox; name those that do with -f\n"


def test_a_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, error = run("render", "-f", "/nowhere/at all", capsys=capsys)
    assert (code, out) == (1, "")
    assert error == "kars-operator: /nowhere/at all: there is no such file or directory\n"


def test_a_broken_sandbox_is_named_with_every_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = sandbox_manifest("box", agent={"image": 5, "env": [{"value": "x"}]})
    file = write(tmp_path, "a.yaml", broken)
    code, _, said = run("render", "-f", file, capsys=capsys)
    assert code == 1
    first, second = said.splitlines()
    assert first.startswith(f"{file}: KarsSandbox team/box: spec.agent.image: ")
    assert second.startswith(f"{file}: KarsSandbox team/box: spec.agent.env[0].name: ")


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yaml", server_manifest(), server_manifest())
    with pytest.raises(UserError, match="McpServer team/tools is there twice"):
        render.read([file], "default")


def test_what_names_no_namespace_is_in_the_one_that_was_given(tmp_path: Path) -> None:
    manifest = sandbox_manifest("box")
    del manifest["metadata"]["namespace"]
    files = render.read([write(tmp_path, "a.yaml", manifest)], "here")
    objects, _ = render.render(files, Settings(), Plugins.load())
    assert {each["metadata"]["namespace"] for each in objects} == {"here"}


def test_options_come_from_variables_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KARS_OPERATOR_RENDER_PLACEMENT", "own")
    monkeypatch.setenv("KARS_OPERATOR_RENDER_ROUTER_IMAGE", "router:7")
    code, out, _ = run(
        "render", "-f", write(tmp_path, "a.yaml", sandbox_manifest("box")), capsys=capsys
    )
    assert code == 0
    assert documents(out)[0]["kind"] == "Namespace"
    assert "image: router:7" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--agent-image", "x"], "KEY=VALUE"),
        (["--agent-image", "BYO="], "BYO has no image"),
        (["--dns-network", "x"], "169.254.20.10/32"),
        (["--cluster-domain", "a b"], "cluster.local"),
        (["--operator-namespace", "A"], "namespace"),
        (["--admin-port", "0"], "1<=x<=65535"),
    ],
)
def test_a_wrong_option_is_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, "a.yaml", sandbox_manifest("box"))
    code, out, error = run("render", "-f", file, *words, capsys=capsys)
    assert (code, out) == (2, "")
    assert said in error
    assert "Traceback" not in error


def test_the_definitions_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("crds", capsys=capsys)
    assert code == 0
    kinds = [each["spec"]["names"]["kind"] for each in documents(out)]
    assert sorted(kinds) == ["KarsSandbox", "McpServer", "ToolPolicy"]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--agent-port", "9090", "--agent-port and --admin-port must be two ports"),
        ("--installed", "cilium", "is not of the form PLURAL.GROUP"),
    ],
)
def test_options_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, said: str
) -> None:
    file = write(tmp_path, "a.yaml", sandbox_manifest("box"))
    code, out, error = run("render", "-f", file, option, value, capsys=capsys)
    assert (code, out) == (2, "")
    assert said in error
