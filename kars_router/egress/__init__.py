"""What network egress servers need, and the Kubernetes NetworkPolicy that opens it and no more.

Pure: what a Service says is asked of the caller, nothing is looked up here. Must not know which
address a name leads to, which the router checks when it connects.
"""

from __future__ import annotations

from kars_router.egress.explain import explain
from kars_router.egress.networkpolicy import Dns, sandbox_policy
from kars_router.egress.reach import Excess, Kind, excess, lacking
from kars_router.egress.rules import (
    ANNOTATION,
    PRIVATE,
    SourcedRule,
    merge,
    summary,
    tell_sources,
    to_world,
)
from kars_router.egress.sandbox import SandboxEgress
from kars_router.egress.servers import needed_by
from kars_router.egress.services import service_from
from kars_router.egress.values import (
    DEFAULT_DOMAIN,
    Explanation,
    Place,
    Rule,
    Scope,
    Service,
    ServiceLookup,
)

__all__ = [
    "ANNOTATION",
    "DEFAULT_DOMAIN",
    "PRIVATE",
    "Dns",
    "Excess",
    "Explanation",
    "Kind",
    "Place",
    "Rule",
    "SandboxEgress",
    "Scope",
    "Service",
    "ServiceLookup",
    "SourcedRule",
    "excess",
    "explain",
    "lacking",
    "merge",
    "needed_by",
    "sandbox_policy",
    "service_from",
    "summary",
    "tell_sources",
    "to_world",
]
