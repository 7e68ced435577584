"""What `kars mcp` asks of a cluster. Must not know how it is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from kars_router.cli.cluster import insist_on
from kars_router.cli.mcp_manifest import Manifest, Wanted
from kars_router.cli.mcp_view import mapping, mapping_list
from kars_router.cli.output import clean
from kars_router.errors import UserError
from kars_router.kube.errors import ApiError, ConflictError, NotFoundError
from kars_router.kube.resources import KARS_SANDBOXES, MCP_SERVERS

if TYPE_CHECKING:
    from kars_router.kube import Kube

MANAGER: Final = "kars-cli"


@frozen
class Applied:
    """What has become of a manifest.

    Attributes:
        what: `created`, `configured` or `unchanged`.
        manifest: the object as it is now.
    """

    what: str
    manifest: Manifest


async def apply_server(
    kube: Kube, *, wanted: Wanted, force: bool, dry_run: bool
) -> Applied | ConflictError:
    """Applies a manifest.

    Returns:
        What has become of it, or who else has set its fields.

    Raises:
        ApiError, UnreachableError, UserError: it was not applied.
    """
    meta = wanted.server.meta
    try:
        before: Manifest | None = await kube.get(MCP_SERVERS, meta.name, meta.namespace)
    except NotFoundError:
        before = None
    if before is None:
        await insist_on(kube, MCP_SERVERS)
    try:
        after = await kube.apply(
            wanted.manifest, manager=MANAGER, force=force, dry_run=dry_run, strict=True
        )
    except ConflictError as error:
        return error
    same = before is not None and _same(before, after)
    what = "created" if before is None else "unchanged" if same else "configured"
    return Applied(what, after)


async def list_servers(kube: Kube, *, namespace: str | None) -> list[Manifest]:
    """The servers of a namespace, or of all if it is None."""
    try:
        return (await kube.list(MCP_SERVERS, namespace)).items
    except NotFoundError as error:
        missing = error
    await insist_on(kube, MCP_SERVERS)
    raise missing


async def get_server(kube: Kube, *, name: str, namespace: str) -> Manifest:
    """One server.

    Raises:
        UserError: it is not there.
    """
    try:
        return await kube.get(MCP_SERVERS, name, namespace)
    except NotFoundError:
        pass
    await insist_on(kube, MCP_SERVERS)
    raise UserError(f"there is no McpServer {namespace}/{clean(name)}")


async def users_of(kube: Kube, *, name: str, namespace: str) -> list[str]:
    """The sandboxes that refer to a server, as far as we may know."""
    try:
        sandboxes = (await kube.list(KARS_SANDBOXES)).items
    except ApiError:
        return []
    return [
        f"KarsSandbox {place(sandbox)}"
        for sandbox in sandboxes
        if (namespace, name) in _references(sandbox)
    ]


async def delete_server(kube: Kube, *, server: Manifest) -> str:
    """Deletes that very object; says what its end waits for."""
    metadata = server["metadata"]
    name, namespace = str(metadata.get("name")), str(metadata.get("namespace"))
    uid = metadata.get("uid")
    await kube.delete(MCP_SERVERS, name, namespace, uid=uid)
    try:
        left = await kube.get(MCP_SERVERS, name, namespace)
    except NotFoundError:
        return ""
    if left["metadata"].get("uid") != uid:
        return ""
    waiting = left["metadata"].get("finalizers") or ["the cluster"]
    return ", ".join(str(each) for each in waiting)


def _references(sandbox: Mapping[str, Any]) -> set[tuple[str, str]]:
    governance = mapping(mapping(sandbox.get("spec")).get("governance"))
    refs = [*mapping_list(governance.get("mcpServerRefs")), mapping(governance.get("mcpServerRef"))]
    own = sandbox["metadata"].get("namespace")
    return {(str(ref.get("namespace") or own), str(ref.get("name"))) for ref in refs}


def place(manifest: Mapping[str, Any]) -> str:
    """The namespace and the name of an object."""
    metadata = manifest["metadata"]
    return clean(f"{metadata.get('namespace')}/{metadata.get('name')}")


def _same(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    def meant(manifest: Mapping[str, Any]) -> tuple[object, ...]:
        metadata = manifest["metadata"]
        return manifest.get("spec"), metadata.get("labels"), metadata.get("annotations")

    return meant(before) == meant(after)
