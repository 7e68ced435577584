"""All objects for the sandboxes in some files, without a cluster.

Owns the order in which objects are printed, which depends on nothing but the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import define, field

from kars_operator import plan
from kars_operator.knowledge import structured
from kars_operator.plan import Manifest
from kars_operator.refs import Unusable, choose
from kars_operator.settings import Settings
from kars_router.config.manifest_files import Key, Places, read_documents
from kars_router.config.resources import (
    API_VERSION,
    KarsSandboxResource,
    McpServerResource,
    ToolPolicyResource,
    misnamed,
)
from kars_router.egress import Place, Service, service_from
from kars_router.errors import ConfigError, UserError
from kars_router.plugins import Plugins


@define(eq=False)
class Files:
    """The resources in some files, by kind, namespace and name.

    Args:
        namespace: where objects are that name no namespace.
    """

    namespace: str
    found: dict[Key, Mapping[str, Any]] = field(factory=dict, init=False)
    parsed: dict[Key, Any] = field(factory=dict, init=False)
    _sources: dict[Key, Path] = field(factory=dict, init=False)
    _places: Places = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._places = Places(self.namespace)

    def add(self, manifest: Mapping[str, Any], source: Path) -> None:
        """Takes a manifest.

        Raises:
            UserError: it is none, or there is another one of the same name.
        """
        if meant := misnamed(manifest):
            raise UserError(f"{source}: {meant}")
        key, placed = self._places.take(manifest, source)
        self.found[key], self._sources[key] = placed, source
        if manifest.get("apiVersion") == API_VERSION:
            self.parsed[key] = structured(dict(placed))

    def sandboxes(self) -> list[KarsSandboxResource]:
        """The sandboxes, by namespace and name.

        Raises:
            ConfigError: one cannot be used; names its file.
        """
        made = []
        for (kind, namespace, name), value in sorted(self.parsed.items(), key=lambda e: e[0]):
            if kind != "KarsSandbox":
                continue
            if isinstance(value, Unusable):
                where = f"{self._sources[kind, namespace, name]}: {kind} {namespace}/{name}"
                raise ConfigError(value.problems, where)
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
    for file, manifest in read_documents(paths):
        files.add(manifest, file)
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
        UserError: there is no sandbox, or one cannot be rendered.
    """
    objects: list[Manifest] = []
    warnings: list[str] = []
    sandboxes = files.sandboxes()
    if not sandboxes:
        raise UserError("the files hold no KarsSandbox; name those that do with -f")
    for sandbox in sandboxes:
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
