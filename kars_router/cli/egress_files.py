"""Reading resources and configurations of routers from files, for `kars egress`.

Owns what a document in a file is. Must not know what is made of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import define, field

from kars_router.config.load import build
from kars_router.config.manifest_files import Places, read_documents
from kars_router.config.resources import (
    API_VERSION,
    KarsSandboxResource,
    McpServerResource,
    misnamed,
    structure_resource,
)
from kars_router.config.schema import Config
from kars_router.egress import Service, service_from
from kars_router.errors import ConfigError, UserError

_READ: Final = frozenset({"KarsSandbox", "McpServer", "Service"})
# Whatever else a directory holds is somebody else's.
_SERVICE: Final = "v1"

Key = tuple[str, str]  # namespace and name


@define(eq=False)
class Found:
    """What some files declare.

    Args:
        namespace: where resources are that name no namespace.

    Attributes:
        sandboxes: by namespace and name.
        routers: configurations of routers, by file.
    """

    namespace: str
    sandboxes: dict[Key, KarsSandboxResource] = field(factory=dict, init=False)
    routers: dict[str, Config] = field(factory=dict, init=False)
    _servers: dict[Key, McpServerResource | str] = field(factory=dict, init=False)
    _services: dict[Key, Service] = field(factory=dict, init=False)
    _places: Places = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._places = Places(self.namespace)

    def server(self, namespace: str, name: str) -> McpServerResource | str | None:
        """An McpServer, or why it cannot be read, or None if there is none."""
        return self._servers.get((namespace, name))

    def service(self, namespace: str, name: str) -> Service | None:
        """A Service, if it is in the files."""
        return self._services.get((namespace, name))

    def take(self, document: Mapping[str, Any], source: Path) -> None:
        """Takes a document.

        Raises:
            UserError: it cannot be used, or something of its name is there already.
        """
        if "kind" in document or "apiVersion" in document:
            self._take_resource(document, source)
        else:
            self._take_router(document, source)

    def _take_resource(self, manifest: Mapping[str, Any], source: Path) -> None:
        known = manifest.get("apiVersion") in (API_VERSION, _SERVICE)
        if not known or str(manifest.get("kind")) not in _READ:
            if meant := misnamed(manifest):
                raise UserError(f"{source}: {meant}")
            return
        (kind, namespace, name), manifest = self._places.take(manifest, source)
        key = namespace, name
        if kind == "Service":
            self._services[key] = service_from(manifest)
            return
        try:
            resource = structure_resource(manifest)
        except ConfigError as error:
            if kind == "KarsSandbox":
                raise ConfigError(error.problems, f"{source}: {error.source}") from error
            self._servers[key] = error.problems[0]
            return
        if isinstance(resource, KarsSandboxResource):
            self.sandboxes[key] = resource
        elif isinstance(resource, McpServerResource):
            self._servers[key] = resource

    def _take_router(self, document: Mapping[str, Any], source: Path) -> None:
        if "servers" not in document:
            raise UserError(
                f"{source}: holds a document that is neither a resource nor a router's "
                "configuration: it has no kind, and no servers"
            )
        if str(source) in self.routers:
            raise UserError(f"{source}: holds two configurations of routers; keep one")
        self.routers[str(source)] = build(
            document, source=str(source), base=source.parent, pinned=False
        )


def read_files(paths: Iterable[Path], namespace: str) -> Found:
    """Reads files, and the files of directories and of those in them.

    Args:
        paths: files or directories.
        namespace: where resources are that name no namespace.

    Raises:
        UserError: one cannot be read or used; names it.
    """
    found = Found(namespace)
    for file, document in read_documents(paths):
        found.take(document, file)
    return found
