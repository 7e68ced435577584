"""docs/custom-resources.md has every key and every reason, and its manifests are valid."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
from crd_kit import judge
from repository import ROOT
from ruamel.yaml import YAML

from kars_router.config.mcpserver import AllowedSandboxes, McpServerSpec, ServerOAuth
from kars_router.config.plain import to_plain
from kars_router.config.resources import structure_resource
from kars_router.config.sandbox import Agent, Governance, KarsSandboxSpec, Router
from kars_router.config.schema import Server
from kars_router.config.shapes import fields_by_key
from kars_router.config.statuses import (
    KarsSandboxStatus,
    McpServerStatus,
    ServerState,
    ToolPolicyStatus,
)
from kars_router.config.toolpolicy import ToolPolicy
from kars_router.config.toolpolicyspec import (
    PolicyApproval,
    PolicyProfile,
    Selector,
    ToolPolicySpec,
)

PAGE = (ROOT / "docs" / "custom-resources.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(?P<key>[^`]+)` \| [^|]+ \| (?P<default>[^|]+) \| [A-Z`*].+\. \|$")
STATUS_ROW = re.compile(r"^\| (?:all|`\w+`) \| `(?P<key>\w+)` \| (?P<said>.+) \|$")
# Sections whose keys have rows of their own.
OPENED: dict[type[Any], dict[str, type[Any]]] = {
    McpServerSpec: {"allowedSandboxes": AllowedSandboxes},
    KarsSandboxSpec: {"agent": Agent, "router": Router, "governance": Governance},
    ToolPolicySpec: {
        "appliesTo": Selector,
        "agtProfile": PolicyProfile,
        "approval": PolicyApproval,
    },
}
# Words of Kubernetes that the operator reads.
NO_REASONS = {"ReplicaFailure", "ProgressDeadlineExceeded"}
# What the page only names, since another page describes it.
ELSEWHERE: dict[type[Any], type[Any]] = {McpServerSpec: Server, ToolPolicySpec: ToolPolicy}


def part(heading: str) -> str:
    return PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def rows(heading: str) -> dict[str, str]:
    found = (ROW.match(line) for line in part(heading).splitlines())
    return {match["key"]: match["default"] for match in found if match}


def own_keys(cls: type[Any]) -> dict[str, str]:
    """The keys that need a row, each with its default as the page writes it."""
    found: dict[str, str] = {}
    elsewhere = set(fields_by_key(ELSEWHERE[cls])) if cls in ELSEWHERE else set()
    for key in fields_by_key(cls):
        inner = OPENED[cls].get(key)
        if inner is not None:
            found |= {f"{key}.{name}": written(inner, name) for name in fields_by_key(inner)}
        elif key not in elsewhere or key == "commerce":
            found[key] = written(cls, key)
    return found


def written(cls: type[Any], key: str) -> str:
    value = to_plain(cls())[key]
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value and isinstance(value, str) else "none"


@pytest.mark.parametrize("cls", OPENED)
def test_every_key_has_its_row_and_its_default(cls: type[Any]) -> None:
    assert rows(cls.__name__.removesuffix("Spec")) == own_keys(cls)


@pytest.mark.parametrize("cls", ELSEWHERE)
def test_keys_of_another_page_are_named(cls: type[Any]) -> None:
    inherited = fields_by_key(cls).keys() - own_keys(cls) - OPENED[cls].keys()
    said = part(cls.__name__.removesuffix("Spec"))
    assert [key for key in sorted(inherited) if f"`{key}`" not in said] == []


@pytest.mark.parametrize(("ours", "theirs"), [(McpServerSpec, Server)])
def test_what_is_left_out_is_named(ours: type[Any], theirs: type[Any]) -> None:
    left_out = fields_by_key(theirs).keys() - fields_by_key(ours).keys()
    oauth = {"clientSecretFromFile", "subjectTokenFromFile", "caFile"}
    assert oauth.isdisjoint(fields_by_key(ServerOAuth))
    said = part("McpServer")
    assert [key for key in sorted(left_out | oauth) if f"`{key}`" not in said] == []


def test_every_field_of_a_status_is_explained() -> None:
    matches = (STATUS_ROW.match(line) for line in part("Status").splitlines())
    said = {match["key"]: match["said"] for match in matches if match}
    statuses = (McpServerStatus, ToolPolicyStatus, KarsSandboxStatus)
    assert said.keys() == set().union(*(fields_by_key(cls) for cls in statuses))
    assert all(f"`{key}`" in said["servers"] for key in fields_by_key(ServerState))


@pytest.mark.parametrize("module", ["refs", "sandbox_status", "dependents", "reconcile"])
def test_every_reason_of_the_operator_is_explained(module: str) -> None:
    source = (ROOT / "contrib" / "operator" / "kars_operator" / f"{module}.py").read_text("utf-8")
    texts = [
        each.value
        for each in ast.walk(ast.parse(source))
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    ]
    words = {text for text in texts if re.match(r"[A-Z][a-z]+([A-Z][a-z]+)+\Z", text)}
    said = set(re.findall(r"`(\w+)`", PAGE))
    assert sorted(words - said - NO_REASONS) == []


def test_its_manifests_are_valid() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    manifests = [each for block in blocks for each in YAML(typ="safe").load_all(block)]
    assert len(manifests) == 2
    for manifest in manifests:
        structure_resource(manifest)
        assert judge(manifest) == []
