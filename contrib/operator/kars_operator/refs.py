"""What a KarsSandbox refers to, and what of it the sandbox may have.

Owns the rules of references: who may use a server of which namespace, what becomes of one that is
missing. Pure: resources are asked of the caller, nothing is looked up here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import field, frozen

from kars_operator import router_config
from kars_router.config.resources import (
    KarsSandboxResource,
    McpServerResource,
    ServerRef,
    ToolPolicyResource,
)
from kars_router.config.toolpolicy import ToolPolicy


@frozen(kw_only=True)
class Unusable:
    """A resource that is there, and that says nothing which could be used.

    Attributes:
        problems: a line each.
        labels: labels of the sandboxes that it was meant for, as far as it can be read.
    """

    problems: tuple[str, ...]
    labels: Mapping[str, str] = field(factory=dict)


@frozen
class Refusal:
    """Why a reference leads to nothing.

    Attributes:
        kind: `McpServer` or `ToolPolicy`.
        namespace: of what was referred to.
        name: of what was referred to.
        reason: in one word, as in a condition.
        message: a sentence for the person who wrote the reference.
    """

    kind: str
    namespace: str
    name: str
    reason: str
    message: str


@frozen(kw_only=True)
class Chosen:
    """What a sandbox gets.

    Attributes:
        servers: in the order of the references.
        policies: what calls have to pass, each with the name of its resource.
        refused: what it does not get, and why.
    """

    servers: tuple[McpServerResource, ...] = ()
    policies: tuple[ToolPolicy, ...] = ()
    refused: tuple[Refusal, ...] = ()


ServerLookup = Callable[[str, str], McpServerResource | Unusable | None]
# The policies of a namespace by name.
PolicyLookup = Callable[[str], Mapping[str, ToolPolicyResource | Unusable]]


def choose(sandbox: KarsSandboxResource, server: ServerLookup, policies: PolicyLookup) -> Chosen:
    """Follows the references of a sandbox.

    Args:
        sandbox: it.
        server: finds a server by namespace and name.
        policies: finds the policies of a namespace.
    """
    servers: list[McpServerResource] = []
    refused: list[Refusal] = []
    for reference in sandbox.spec.server_refs:
        namespace = reference.namespace or sandbox.meta.namespace
        found = _usable(sandbox, reference, namespace, server(namespace, reference.name))
        if isinstance(found, Refusal):
            refused.append(found)
        else:
            servers.append(found)
    chosen, more = _policies(sandbox, policies(sandbox.meta.namespace))
    return Chosen(servers=tuple(servers), policies=chosen, refused=(*refused, *more))


def _usable(
    sandbox: KarsSandboxResource,
    reference: ServerRef,
    namespace: str,
    found: McpServerResource | Unusable | None,
) -> McpServerResource | Refusal:
    where = f"McpServer {namespace}/{reference.name}"

    def refusal(reason: str, message: str) -> Refusal:
        return Refusal("McpServer", namespace, reference.name, reason, message)

    if isinstance(found, Unusable):
        return refusal("ServerInvalid", f"{where}: {found.problems[0]}")
    if found is None or found.meta.deleting:
        return refusal("ServerMissing", f"there is no {where}; apply it")
    if found.spec.unusable:
        return refusal("ServerUnusable", f"{where} {found.spec.unusable}")
    if not _allows(found, sandbox):
        return refusal(
            "ServerNotAllowed",
            f"{where} does not allow this sandbox; change its allowedSandboxes, or the labels of "
            "the sandbox",
        )
    return found


def _allows(server: McpServerResource, sandbox: KarsSandboxResource) -> bool:
    allowed = server.spec.allowed_sandboxes
    at_home = sandbox.meta.namespace == server.meta.namespace
    admitted = at_home or not {"*", sandbox.meta.namespace}.isdisjoint(allowed.namespaces)
    return admitted and _fit(allowed.match_labels, sandbox)


def _policies(
    sandbox: KarsSandboxResource, known: Mapping[str, ToolPolicyResource | Unusable]
) -> tuple[tuple[ToolPolicy, ...], tuple[Refusal, ...]]:
    """The policy that is referred to, and those that pick the sandbox by its labels."""
    namespace, wanted = sandbox.meta.namespace, sandbox.spec.policy_name
    chosen: list[ToolPolicy] = []
    refused: list[Refusal] = []

    def deny(name: str, reason: str, message: str) -> None:
        # Where nobody decides, nothing is called.
        chosen.append(router_config.denial_of_all(name))
        message = f"{message}; every call is denied meanwhile"
        refused.append(Refusal("ToolPolicy", namespace, name, reason, message))

    for name in sorted({*known, wanted} - {""}):
        found = known.get(name)
        if found is None:
            deny(name, "PolicyMissing", f"there is no ToolPolicy {namespace}/{name}")
        elif isinstance(found, Unusable):
            if name == wanted or (found.labels and _fit(found.labels, sandbox)):
                deny(name, "PolicyInvalid", f"ToolPolicy {namespace}/{name}: {found.problems[0]}")
        elif name == wanted or _picks(found, sandbox):
            chosen.append(router_config.for_router(found.spec, name))
    return tuple(chosen), tuple(refused)


def _picks(policy: ToolPolicyResource, sandbox: KarsSandboxResource) -> bool:
    wanted = policy.spec.applies_to.sandbox_match_labels
    return bool(wanted) and _fit(wanted, sandbox)


def _fit(wanted: Mapping[str, str], sandbox: KarsSandboxResource) -> bool:
    return all(sandbox.meta.labels.get(key) == value for key, value in wanted.items())
