"""Manifests of the custom resources to values: `McpServer`, `KarsSandbox` and `ToolPolicy`.

Owns what a manifest must have around its `spec`; `mcpserver`, `sandbox` and `toolpolicy` own what
the specs hold. Reads plain data, as an API server or a file gives it; knows neither.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from attrs import frozen

from kars_router.config.converter import structure_section
from kars_router.config.frozenmap import FrozenMap
from kars_router.config.mcpserver import AllowedSandboxes, McpServerSpec, ServerOAuth
from kars_router.config.problems import InvalidConfigError, InvalidError, Problem, show, suggest
from kars_router.config.sandbox import (
    Agent,
    EnvVar,
    Governance,
    KarsSandboxSpec,
    PolicyRef,
    Resources,
    Router,
    ServerRef,
)
from kars_router.config.toolpolicy import ToolPolicy
from kars_router.config.toolpolicyspec import ToolPolicySpec
from kars_router.config.values import LABEL, OBJECT_NAME

__all__ = [
    "API_VERSION",
    "Agent",
    "AllowedSandboxes",
    "EnvVar",
    "Governance",
    "KarsSandboxResource",
    "KarsSandboxSpec",
    "McpServerResource",
    "McpServerSpec",
    "Meta",
    "PolicyRef",
    "Resource",
    "Resources",
    "Router",
    "ServerOAuth",
    "ServerRef",
    "ToolPolicyResource",
    "ToolPolicySpec",
    "misnamed",
    "structure_resource",
]

GROUP: Final = "kars.azure.com"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
# Of a name that may be wrong, what can stand in a sentence.
_SHOWN: Final = re.compile(r"[!-~]{1,253}\Z")
_NOTHING: FrozenMap[Any, Any] = FrozenMap()


@frozen(kw_only=True)
class Meta:
    """What the operator has to know of an object's metadata.

    Attributes:
        name: its name.
        namespace: its namespace; empty in a file that names none.
        uid: what tells it from an earlier object of the same name; empty in a file.
        generation: counts changes of its spec; 0 in a file.
        labels: its labels.
        deleting: whether it is being deleted.
        finalizers: who has to clean up before it is gone.
    """

    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    labels: FrozenMap[str, str] = _NOTHING
    deleting: bool = False
    finalizers: tuple[str, ...] = ()


@frozen
class McpServerResource:
    """An McpServer."""

    meta: Meta
    spec: McpServerSpec


@frozen
class KarsSandboxResource:
    """A KarsSandbox."""

    meta: Meta
    spec: KarsSandboxSpec


@frozen
class ToolPolicyResource:
    """A ToolPolicy; `spec` is what routers get of it, with the resource's name."""

    meta: Meta
    spec: ToolPolicy


Resource: TypeAlias = McpServerResource | KarsSandboxResource | ToolPolicyResource

SPECS: Final[Mapping[str, type[Any]]] = {
    "McpServer": McpServerSpec,
    "KarsSandbox": KarsSandboxSpec,
    "ToolPolicy": ToolPolicySpec,
}
# The namespace kars-NAME, a label's value and a server's key must hold them.
LONGEST_NAMES: Final = {"McpServer": 63, "KarsSandbox": 58}


def structure_resource(manifest: Mapping[str, Any]) -> Resource:
    """Structures a manifest.

    Args:
        manifest: plain data.

    Raises:
        InvalidConfigError: with every problem and the resource as its source.
    """
    source = _source(manifest)
    problems: list[Problem] = []
    if manifest.get("apiVersion") != API_VERSION:
        problems.append(
            Problem(
                ("apiVersion",), f"must be {API_VERSION}, not {show(manifest.get('apiVersion'))}"
            )
        )
    kind = manifest.get("kind")
    if not isinstance(kind, str) or kind not in SPECS:
        near = suggest(kind, SPECS) if isinstance(kind, str) else ""
        problems.append(
            Problem(("kind",), f"must be one of {', '.join(SPECS)}, not {show(kind)}{near}")
        )
        raise InvalidConfigError(problems, source)
    meta = Meta(name="")
    try:
        meta = _meta(manifest.get("metadata"), kind)
    except InvalidError as error:
        problems += (problem.under("metadata") for problem in error.problems)
    spec = None
    try:
        spec = structure_section(_given(manifest.get("spec")), SPECS[kind])
    except InvalidError as error:
        problems += (problem.under("spec") for problem in error.problems)
    if problems:
        raise InvalidConfigError(problems, source)
    return _resource(meta, spec)


def misnamed(manifest: Mapping[str, Any]) -> str:
    """Why a manifest that is to be passed over was meant to be one of ours, or an empty string.

    Other kinds of the group are none of our business, unless they look like a slip.
    """
    version, kind = str(manifest.get("apiVersion")), manifest.get("kind")
    if version.partition("/")[0] != GROUP or not isinstance(kind, str):
        return ""
    if kind in SPECS:
        return "" if version == API_VERSION else f"apiVersion: must be {API_VERSION}"
    near = suggest(kind, SPECS)
    return f"kind: {show(kind)} is not known{near}" if near else ""


def _resource(meta: Meta, spec: object) -> Resource:
    if isinstance(spec, McpServerSpec):
        return McpServerResource(meta, spec)
    if isinstance(spec, KarsSandboxSpec):
        return KarsSandboxResource(meta, spec)
    assert isinstance(spec, ToolPolicySpec)
    return ToolPolicyResource(meta, spec.policy(meta.name))


def _given(spec: object) -> object:
    return {} if spec is None else spec


def _source(manifest: Mapping[str, Any]) -> str:
    """The resource in words, such as `McpServer tools/playwright`, as far as it says."""
    metadata = manifest.get("metadata")
    kind = manifest.get("kind")
    parts = [kind if isinstance(kind, str) and kind in SPECS else "manifest"]
    if isinstance(metadata, Mapping):
        named = [metadata.get(key) for key in ("namespace", "name")]
        shown = [each for each in named if isinstance(each, str) and _SHOWN.match(each)]
        parts.append("/".join(shown))
    return " ".join(part for part in parts if part)


def _meta(raw: object, kind: str) -> Meta:
    if not isinstance(raw, Mapping):
        raise InvalidError([Problem((), f"must be a mapping, not {show(raw)}")])
    problems = []
    name = raw.get("name")
    longest = LONGEST_NAMES.get(kind)
    pattern = OBJECT_NAME if longest is None else LABEL
    if not isinstance(name, str) or not pattern.match(name):
        problems.append(Problem(("name",), f"is no name that a {kind} can have: {show(name)}"))
    elif longest is not None and len(name) > longest:
        problems.append(Problem(("name",), f"must have at most {longest} characters"))
    namespace = raw.get("namespace")
    if namespace is not None and not (isinstance(namespace, str) and LABEL.match(namespace)):
        problems.append(Problem(("namespace",), f"is no namespace: {show(namespace)}"))
    labels = raw.get("labels") or {}
    if not isinstance(labels, Mapping) or not all(
        isinstance(text, str) for pair in labels.items() for text in pair
    ):
        problems.append(Problem(("labels",), "must be a mapping of strings to strings"))
    if problems:
        raise InvalidError(problems)
    # The rest is the API server's own; in a file it counts for nothing.
    generation, finalizers = raw.get("generation"), raw.get("finalizers")
    return Meta(
        name=str(name),
        namespace=namespace or "",
        uid=str(raw.get("uid") or ""),
        generation=generation if isinstance(generation, int) else 0,
        labels=FrozenMap(labels),
        deleting=raw.get("deletionTimestamp") is not None,
        finalizers=tuple(map(str, finalizers)) if isinstance(finalizers, list) else (),
    )
