"""What a KarsSandbox refers to, and what of it the sandbox may have.

Owns which policies a sandbox's calls have to pass, and what becomes of one that is missing; which
servers it gets is `kars_router.config.references`'. Pure: resources are asked of the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import field, frozen

from kars_operator import router_config
from kars_router.config.references import servers_of
from kars_router.config.resources import (
    KarsSandboxResource,
    McpServerResource,
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

    def find(namespace: str, name: str) -> McpServerResource | str | None:
        found = server(namespace, name)
        return found.problems[0] if isinstance(found, Unusable) else found

    servers, lost = servers_of(sandbox, find)
    chosen, denied = _policies(sandbox, policies(sandbox.meta.namespace))
    refused = [
        Refusal("McpServer", each.namespace, each.name, each.reason, each.message) for each in lost
    ]
    return Chosen(servers=servers, policies=chosen, refused=(*refused, *denied))


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
