"""What network egress a server's URL needs, as rules of a Kubernetes NetworkPolicy.

Pure: what a Service says is asked of the caller, nothing is looked up here. Must not know policies
as a whole, which belong to whoever writes them, nor which address a name leads to, which the
router checks when it connects.
"""

from __future__ import annotations

from kars_router.egress.explain import explain
from kars_router.egress.rules import ANNOTATION, PRIVATE, SourcedRule, merge, summary, tell_sources
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
    "Explanation",
    "Place",
    "Rule",
    "Scope",
    "Service",
    "ServiceLookup",
    "SourcedRule",
    "explain",
    "merge",
    "summary",
    "tell_sources",
]
