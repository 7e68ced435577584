"""All objects for the sandboxes in some files, without a cluster.

Owns reading manifests from files and the order in which objects are printed, which depends on
nothing but them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import define, field
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from kars_operator import plan
from kars_operator.knowledge import structured
from kars_operator.plan import Manifest
from kars_operator.refs import Unusable, choose
from kars_operator.settings import Settings
from kars_router.config.resources import (
    API_VERSION,
    KarsSandboxResource,
    McpServerResource,
    ToolPolicyResource,
)
from kars_router.egress import Place, Service, service_from
from kars_router.errors import ConfigError, UserError
from kars_router.plugins import Plugins

_ENDINGS: Final = frozenset({".yaml", ".yml", ".json"})


@define(eq=False)
class Files:
    """The resources in some files, by kind, namespace and name.

    Args:
        namespace: where objects are that name no namespace.
    """

    namespace: str
    found: dict[tuple[str, str, str], Mapping[str, Any]] = field(factory=dict, init=False)
    parsed: dict[tuple[str, str, str], Any] = field(factory=dict, init=False)

    def add(self, manifest: Mapping[str, Any], source: str) -> None:
        """Takes a manifest.

        Raises:
            UserError: it is none, or there is another one of the same name.
        """
        metadata = manifest.get("metadata")
        kind, name = manifest.get("kind"), (metadata or {}).get("name")
        if not isinstance(kind, str) or not isinstance(metadata, Mapping) or not name:
            raise UserError(f"{source}: there is a document without kind or metadata.name in it")
        namespace = metadata.get("namespace") or self.namespace
        key = kind, namespace, str(name)
        if key in self.found:
            raise UserError(f"{source}: {kind} {namespace}/{name} is there twice; keep one")
        self.found[key] = {**manifest, "metadata": {**metadata, "namespace": namespace}}
        if manifest.get("apiVersion") == API_VERSION:
            self.parsed[key] = structured(dict(self.found[key]))

    def sandboxes(self) -> list[KarsSandboxResource]:
        """The sandboxes, by namespace and name.

        Raises:
            UserError: one cannot be used.
        """
        made = []
        for (kind, namespace, name), value in sorted(self.parsed.items(), key=lambda e: e[0]):
            if kind != "KarsSandbox":
                continue
            if isinstance(value, Unusable):
                raise UserError(f"KarsSandbox {namespace}/{name}: {'; '.join(value.problems)}")
            made.append(value)
        return made

    def server(self, namespace: str, name: str) -> McpServerResource | Unusable | None:
        """An McpServer."""
        found: McpServerResource | Unusable | None = self.parsed.get(("McpServer", namespace, name))
        return found

    def policies(self, namespace: str) -> dict[str, ToolPolicyResource | Unusable]:
        """The ToolPolicies of a namespace."""
        return {
            name: value
            for (kind, where, name), value in self.parsed.items()
            if kind == "ToolPolicy" and where == namespace
        }

    def service(self, namespace: str, name: str) -> Service | None:
        """A Service, if it is in the files."""
        found = self.found.get(("Service", namespace, name))
        return None if found is None else service_from(found)


def read(paths: Iterable[Path], namespace: str) -> Files:
    """Reads files, and the files of directories and of those in them.

    Args:
        paths: files or directories.
        namespace: where objects are that name no namespace.

    Raises:
        UserError: one cannot be read; names it.
    """
    files = Files(namespace)
    for path in paths:
        for file in _files(path):
            for document in _documents(file):
                for manifest in _manifests(document):
                    files.add(manifest, str(file))
    return files


def render(
    files: Files, settings: Settings, plugins: Plugins, installed: frozenset[str] = frozenset()
) -> tuple[list[Manifest], list[str]]:
    """The objects of every sandbox.

    Args:
        files: what there is.
        settings: the operator's.
        plugins: are asked for egress rules.
        installed: further definitions that the cluster has, as `plural.group`.

    Returns:
        The objects, and a sentence for each reference that leads to nothing.

    Raises:
        UserError: a sandbox cannot be rendered.
    """
    objects: list[Manifest] = []
    warnings: list[str] = []
    for sandbox in files.sandboxes():
        where = f"KarsSandbox {sandbox.meta.namespace}/{sandbox.meta.name}"
        chosen = choose(sandbox, files.server, files.policies)
        place = Place(
            namespace=settings.namespace_of(sandbox.meta.name, sandbox.meta.namespace),
            cluster_domain=settings.cluster_domain,
            service_lookup=files.service,
            installed=installed,
        )
        means = plan.Means(settings=settings, place=place, plugins=plugins)
        try:
            made = plan.compose(sandbox, chosen, means)
        except ConfigError as error:
            raise UserError(f"{where}: {'; '.join(error.problems)}") from error
        objects += made.objects
        warnings += [f"{where}: {each.message}" for each in chosen.refused]
        warnings += [
            f"{where}: {each.server.meta.name}: {each.invalid}"
            for each in made.derived
            if each.invalid
        ]
        if not made.image:
            warnings.append(f"{where}: no image for the agent; set spec.agent.image")
    return objects, warnings


def _files(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise UserError(f"{path}: there is no such file or directory")
    if not path.is_dir():
        yield path
        return
    for each in sorted(path.rglob("*")):
        if each.suffix in _ENDINGS and each.is_file():
            yield each


def _documents(file: Path) -> list[Any]:
    try:
        text = file.read_text(encoding="utf-8")
        return list(YAML(typ="safe", pure=True).load_all(text))
    except UnicodeDecodeError:
        raise UserError(f"{file}: it is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    except YAMLError as error:
        raise UserError(f"{file}: it is no YAML: {' '.join(str(error).split())}") from error


def _manifests(document: Any) -> Iterator[Mapping[str, Any]]:
    if document is None:
        return
    found = [document]
    if isinstance(document, Mapping) and document.get("kind") == "List":
        items = document.get("items") or []
        found = items if isinstance(items, list) else [items]
    for each in found:
        yield each if isinstance(each, Mapping) else {}
