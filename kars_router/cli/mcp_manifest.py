"""An McpServer out of flags, a file, or both; checked before any cluster hears of it.

Owns which flag sets which field, and that a mistake is named by its flag if one brought it. What a
field may hold is the business of `kars_router.config.resources`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import click
from attrs import frozen

from kars_router.config.document import LONGEST, decode, parse_document
from kars_router.config.problems import (
    InvalidConfigError,
    InvalidError,
    Problem,
    invalid,
    kind_of,
    show,
    suggest,
)
from kars_router.config.resources import API_VERSION, McpServerResource, structure_resource
from kars_router.errors import UserError
from kars_router.kube.resources import MCP_SERVERS

Keys = tuple[str, ...]
Manifest = dict[str, Any]

DEFAULT_NAMESPACE: Final = "default"
_STDIN: Final = Path("-")

# What each flag of `kars mcp apply` sets, by the name of its parameter.
FIELDS: Final[Mapping[str, Keys]] = {
    "url": ("url",),
    "production_mode": ("productionMode",),
    "oauth_issuer": ("oauth", "issuer"),
    "oauth_audience": ("oauth", "audience"),
    "oauth_resource": ("oauth", "resource"),
    "scope": ("scopes",),
    "allowed_tool": ("allowedTools",),
    "allowed_sandbox_label": ("allowedSandboxes", "matchLabels"),
    "display_name": ("displayName",),
    "bearer_from_env": ("bearerFromEnv",),
}
# A mistake that is about several fields is told of the one that mends it.
_ABOUT: Final = {("spec", "oauth"): "--oauth-issuer"}


@frozen(kw_only=True)
class Given:
    """What was given on the command line.

    Attributes:
        name: of the server; None if the file has it.
        namespace: None if the file has it, or for the usual one.
        file: what the flags add to; `-` is stdin.
        flags: values by name of parameter; None and empty ones were not given.
    """

    name: str | None
    namespace: str | None
    file: Path | None
    flags: Mapping[str, Any]

    @property
    def values(self) -> dict[str, Any]:
        """The flags that were given."""
        return {name: value for name, value in self.flags.items() if value not in (None, (), {})}


@frozen
class Wanted:
    """A valid manifest, and what it says."""

    manifest: Manifest
    server: McpServerResource

    @property
    def warnings(self) -> list[str]:
        """What is not wrong, but will not work as it is."""
        spec = self.server.spec
        found = [f"{self.server.meta.name} {spec.unusable}"] if spec.unusable else []
        if not spec.allowed_tools:
            found.append("no tool is allowed; add --allowed-tool NAME, or '*' for all")
        return found


def wanted_of(given: Given) -> Wanted:
    """Makes the manifest that is to be applied.

    Raises:
        InvalidConfigError: it is not valid; names every mistake by its flag, or by its path in
            the file.
        UserError: the file cannot be read.
        click.UsageError: there is no name, or there are two.
    """
    source = "" if given.file is None else _named(given.file)
    document, whole = ({}, False) if given.file is None else _read(given.file)
    try:
        manifest = _manifest(given, document, whole=whole)
        server = structure_resource(manifest)
    except InvalidError as error:
        raise InvalidConfigError(error.problems, source) from None
    except InvalidConfigError as error:
        told = [_told(problem, given, whole=whole) for problem in error.found]
        raise InvalidConfigError(told, source) from None
    assert isinstance(server, McpServerResource)
    return Wanted(manifest, server)


def _manifest(given: Given, document: Manifest, *, whole: bool) -> Manifest:
    kind = document.get("kind")
    if whole and kind is not None and kind != MCP_SERVERS.kind:
        near = suggest(kind, [MCP_SERVERS.kind]) if isinstance(kind, str) else ""
        raise invalid(f"must be {MCP_SERVERS.kind}, not {show(kind)}{near}", "kind")
    metadata = document.get("metadata") or {} if whole else {}
    if not isinstance(metadata, Mapping):
        raise invalid(f"must be a mapping, not {kind_of(metadata)}", "metadata")
    spec = document.get("spec") if whole else document
    if spec is not None and not isinstance(spec, Mapping):
        raise invalid(f"must be a mapping, not {kind_of(spec)}", "spec")
    name = _one(given.name, metadata.get("name"), "NAME")
    if name is None:
        raise click.UsageError("name the server, as in: kars mcp apply NAME --url URL")
    namespace = _one(given.namespace, metadata.get("namespace"), "--namespace")
    # The rest of an object's metadata is the server's own.
    kept = {key: metadata[key] for key in ("labels", "annotations") if metadata.get(key)}
    return {
        "apiVersion": document.get("apiVersion", API_VERSION) if whole else API_VERSION,
        "kind": document.get("kind", MCP_SERVERS.kind) if whole else MCP_SERVERS.kind,
        "metadata": {"name": name, "namespace": namespace or DEFAULT_NAMESPACE, **kept},
        "spec": _with_flags(dict(spec or {}), given),
    }


def _one(given: str | None, found: object, what: str) -> Any:
    if given is not None and found is not None and found != given:
        raise click.UsageError(f"{what} is {given}, but the file has {found}")
    return found if given is None else given


def _with_flags(spec: Manifest, given: Given) -> Manifest:
    """A flag takes the place of what the file has."""
    for name, value in given.values.items():
        place, keys = spec, FIELDS[name]
        for depth, key in enumerate(keys[:-1]):
            inner = place.get(key)
            if inner is not None and not isinstance(inner, Mapping):
                text = f"must be a mapping, not {kind_of(inner)}"
                raise invalid(text, "spec", *keys[: depth + 1])
            place[key] = dict(inner or {})
            place = place[key]
        place[keys[-1]] = list(value) if isinstance(value, tuple) else value
    return spec


def _told(problem: Problem, given: Given, *, whole: bool) -> Problem:
    """A problem by the flag that brought it, or by where it is in the file."""
    keys = problem.keys
    if keys == ("metadata", "name") and given.name is not None:
        return attrs.evolve(problem, flag="NAME")
    if keys == ("metadata", "namespace") and given.namespace is not None:
        return attrs.evolve(problem, flag="--namespace")
    values = given.values
    for name, path in FIELDS.items():
        if keys[1 : len(path) + 1] == path and (name in values or given.file is None):
            return attrs.evolve(problem, flag=flag_of(name))
    if given.file is None and keys in _ABOUT:
        return attrs.evolve(problem, flag=_ABOUT[keys])
    if given.file is not None and not whole and keys[:1] == ("spec",):
        return attrs.evolve(problem, keys=keys[1:])
    return problem


def flag_of(name: str) -> str:
    """The flag of a parameter."""
    return f"--{name.replace('_', '-')}"


def field_flags(given: Given) -> dict[str, str]:
    """The flags that were given, by the paths that an API server has for their fields."""
    return {f"spec.{'.'.join(FIELDS[name])}": flag_of(name) for name in given.values}


def _read(file: Path) -> tuple[Manifest, bool]:
    """A file's document, and whether it is a whole object rather than a spec."""
    source = _named(file)
    try:
        document, problems = parse_document(decode(_bytes(file)))
        if not isinstance(document, Mapping):
            what = "is empty" if document is None else f"holds {kind_of(document)}"
            raise invalid(f"{what}; it must hold an McpServer, or the spec of one")
    except InvalidError as error:
        raise InvalidConfigError(error.problems, source) from None
    if problems:
        raise InvalidConfigError(problems, source)
    return dict(document), bool({"kind", "apiVersion", "metadata", "spec"} & set(document))


def _bytes(file: Path) -> bytes:
    try:
        if file == _STDIN:
            return sys.stdin.buffer.read(LONGEST + 1)
        with file.open("rb") as opened:
            return opened.read(LONGEST + 1)
    except OSError as error:
        raise UserError(f"{click.format_filename(file)}: {error.strerror}") from None


def _named(file: Path) -> str:
    return "stdin" if file == _STDIN else str(file)


def names_of(values: Sequence[str]) -> str:
    """Names in a sentence, not too many of them."""
    shown = 5
    rest = len(values) - shown
    return ", ".join(values[:shown]) + (f" and {rest} more" if rest > 0 else "")
