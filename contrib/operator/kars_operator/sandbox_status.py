"""What the status of a KarsSandbox says. Pure: facts come in, conditions go out.

Owns the types and reasons of its conditions; docs/custom-resources.md says the same for those who
read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import frozen

from kars_operator import conditions
from kars_operator.conditions import Condition
from kars_operator.enforcement import Heard
from kars_operator.plan import Derived, Plan
from kars_operator.refs import Chosen
from kars_router.egress import Scope
from kars_router.egress.reach import Excess, Kind

_MOST_NAMED: Final = 3
_WAITING: Final = frozenset({"AwaitingRouter", "DigestDiffers", "Suspended"})


@frozen(kw_only=True)
class Facts:
    """What is known of one sandbox after its objects have been applied.

    Attributes:
        chosen: what it gets.
        plan: what was applied.
        excess: what is open beyond what was declared.
        unseen: kinds of objects that the API server has not shown for a while, so that there may
            be more.
        heard: what its routers said.
        suspended: whether it is to have no pod.
        rollout: why its Deployment does not come up; "" if nothing is known to be wrong.
    """

    chosen: Chosen
    plan: Plan
    excess: Sequence[Excess] = ()
    unseen: Sequence[str] = ()
    heard: Sequence[Heard] = ()
    suspended: bool = False
    rollout: str = ""


def describe(facts: Facts) -> tuple[Condition, ...]:
    """The conditions, the one that sums up the others first."""
    parts = (
        _servers(facts.chosen),
        _derived(facts.plan.derived),
        _tight(facts.excess, facts.unseen),
        _enforcing(facts),
    )
    return (_ready(parts), *parts)


def unusable(reason: str, message: str) -> tuple[Condition, ...]:
    """The conditions of a sandbox of which nothing could be made; what was there stays."""
    others = ("RefsResolved", "EgressDerived", "EgressTight", "RouterEnforcing")
    said = "Nothing was looked at; Ready says why."
    return (
        Condition("Ready", False, reason, message),
        *(Condition(each, None, reason, said) for each in others),
    )


def servers(plan: Plan) -> list[dict[str, Any]]:
    """The servers that the router has, and how the egress of each was derived."""
    digests = {each.name: each.digest for each in plan.enforced if each.kind == "McpServer"}
    return [
        {
            "name": each.server.meta.name,
            "namespace": each.server.meta.namespace,
            "digest": digests.get(each.server.meta.name, ""),
            "egress": each.word,
            "reason": " ".join(e.reason for e in each.explanations),
        }
        for each in plan.derived
        if not each.invalid
    ]


def summary(found: Sequence[Condition]) -> str:
    """The phase, for tools that read phases."""
    ready = found[0]
    if ready.status:
        return "Ready"
    return "Pending" if ready.reason in {*_WAITING, "RouterUnreachable"} else "Degraded"


def news(found: Sequence[Condition], before: Sequence[Mapping[str, Any]]) -> tuple[Condition, ...]:
    """What people are to be told of: what has become right or wrong, each thing once.

    Args:
        found: the conditions as they are.
        before: as the status had them.
    """
    told: dict[str, Condition] = {}
    for each in conditions.changed(found, before):
        if each.status is not None and (each.status is False or each.type == "Ready"):
            told.setdefault(each.reason, each)
    # That a pod takes its time is no news.
    return tuple(each for reason, each in told.items() if reason not in _WAITING)


def _ready(parts: Sequence[Condition]) -> Condition:
    for each in parts:
        if not each.status:
            return Condition("Ready", False, each.reason, each.message)
    return Condition("Ready", True, "RouterEnforcing", "The router enforces what was declared.")


def _servers(chosen: Chosen) -> Condition:
    if chosen.refused:
        first = chosen.refused[0]
        message = _sentences([each.message for each in chosen.refused])
        return Condition("RefsResolved", False, first.reason, message)
    message = "Every server and policy that it refers to was found, and may be used."
    return Condition("RefsResolved", True, "Resolved", message)


def _derived(derived: Sequence[Derived]) -> Condition:
    invalid = [f"{each.server.meta.name}: {each.invalid}" for each in derived if each.invalid]
    if invalid:
        return Condition("EgressDerived", False, "UrlInvalid", _sentences(invalid))
    wide = [
        each.server.meta.name
        for each in derived
        if any(e.scope is Scope.IN_CLUSTER and not e.exact for e in each.explanations)
    ]
    if wide:
        message = (
            f"The Service of {_listed(wide)} could not be read, so that the port of the URL is "
            "open to the whole namespace."
        )
        return Condition("EgressDerived", True, "NamespaceWide", message)
    message = "Every rule is as narrow as the server's URL and Service allow."
    return Condition("EgressDerived", True, "Derived", message)


def _tight(excess: Sequence[Excess], unseen: Sequence[str]) -> Condition:
    if not excess and unseen:
        message = f"The operator cannot see {' and '.join(unseen)}, and does not know what is open."
        return Condition("EgressTight", None, "NotSeen", message)
    if not excess:
        message = "No NetworkPolicy opens anything beyond what was declared."
        return Condition("EgressTight", True, "NothingBeyond", message)
    others = sorted({each.policy for each in excess if each.policy})
    said = [f"{each.policy or 'no policy'}: {each.what}" for each in excess[:_MOST_NAMED]]
    if any(each.kind is Kind.UNSELECTED for each in excess):
        return Condition("EgressTight", False, "NotSelected", _sentences(said))
    message = f"NetworkPolicy {_listed(others)} opens more than was declared; {'; '.join(said)}"
    return Condition("EgressTight", False, "OpenedByOthers", message)


def _enforcing(facts: Facts) -> Condition:
    if facts.suspended:
        return _not_enforcing("Suspended", "The sandbox is suspended, and no router runs.")
    if not facts.plan.image:
        return _not_enforcing(
            "NoAgentImage",
            "Nobody names an image for the agent; set spec.agent.image, or have the operator know "
            "the runtime's",
        )
    if facts.rollout:
        return _not_enforcing("RolloutFailed", facts.rollout)
    if not facts.heard:
        message = "There is no pod yet that could say what its router enforces."
        return _not_enforcing("AwaitingRouter", message)
    for each in facts.heard:
        missing = _missing(each, facts.plan.digest)
        if missing is not None:
            return missing
    message = "The router enforces what was declared: it has echoed the digest."
    return Condition("RouterEnforcing", True, "DigestEchoed", message)


def _missing(heard: Heard, digest: str) -> Condition | None:
    """What one router has yet to do; None if it enforces what was declared."""
    if heard.pending:
        return _not_enforcing("AwaitingRouter", f"The pod {heard.pod}: {heard.problem}.")
    router = f"The router of {heard.pod}"
    if heard.problem:
        return _not_enforcing("RouterUnreachable", f"{router}: {heard.problem}")
    if heard.digest == digest:
        return None
    if heard.refused:
        return _not_enforcing("ConfigRefused", f"{router} refuses it: {heard.refused}")
    return _not_enforcing("DigestDiffers", f"{router} still enforces something else.")


def _not_enforcing(reason: str, message: str) -> Condition:
    return Condition("RouterEnforcing", False, reason, message)


def _listed(names: Sequence[str]) -> str:
    if len(names) <= _MOST_NAMED:
        return ", ".join(names)
    return f"{', '.join(names[:_MOST_NAMED])} and {len(names) - _MOST_NAMED} more"


def _sentences(parts: Sequence[str]) -> str:
    return "; ".join(parts)
