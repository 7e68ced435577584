"""Which servers a sandbox gets of those that it refers to.

Pure: resources are asked of the caller, nothing is looked up here. Must not know what is made of
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from attrs import frozen

from kars_router.config.resources import KarsSandboxResource, McpServerResource

# By namespace and name: the server, why it cannot be read, or None if there is none.
ServerLookup: TypeAlias = Callable[[str, str], McpServerResource | str | None]


@frozen
class Refused:
    """A reference that leads to nothing.

    Attributes:
        namespace: of the server.
        name: of the server.
        reason: why, in one word, as in a condition.
        message: why, in a sentence for whoever wrote the reference.
    """

    namespace: str
    name: str
    reason: str
    message: str


def servers_of(
    sandbox: KarsSandboxResource, find: ServerLookup
) -> tuple[tuple[McpServerResource, ...], tuple[Refused, ...]]:
    """Follows the references of a sandbox to servers, in their order.

    Args:
        sandbox: it.
        find: finds a server.

    Returns:
        The servers that it gets, and the references that lead to none.
    """
    found: list[McpServerResource] = []
    refused: list[Refused] = []
    for reference in sandbox.spec.server_refs:
        namespace = reference.namespace or sandbox.meta.namespace
        server = find(namespace, reference.name)
        reason, why = _refusal(sandbox, server)
        if reason:
            message = f"McpServer {namespace}/{reference.name} {why}"
            refused.append(Refused(namespace, reference.name, reason, message))
        elif isinstance(server, McpServerResource):
            found.append(server)
    return tuple(found), tuple(refused)


def admits(server: McpServerResource, sandbox: KarsSandboxResource) -> bool:
    """Whether a server admits a sandbox, by its namespace and its labels."""
    allowed = server.spec.allowed_sandboxes
    home, labels = sandbox.meta.namespace, sandbox.meta.labels
    there = home == server.meta.namespace or not {"*", home}.isdisjoint(allowed.namespaces)
    return there and all(labels.get(key) == text for key, text in allowed.match_labels.items())


def _refusal(
    sandbox: KarsSandboxResource, server: McpServerResource | str | None
) -> tuple[str, str]:
    """A reason, and the end of a sentence that starts with the server; "" if it gets it."""
    if isinstance(server, str):
        return "ServerInvalid", f"cannot be read: {server}"
    if server is None or server.meta.deleting:
        return "ServerMissing", "is not there; apply it"
    if server.spec.unusable:
        return "ServerUnusable", server.spec.unusable
    if not admits(server, sandbox):
        return (
            "ServerNotAllowed",
            "does not admit this sandbox; change its allowedSandboxes, or the sandbox's labels",
        )
    return "", ""
