"""Derives the egress rules that a server needs from its URL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kars_router import egress
from kars_router.hookspecs import hookimpl
from kars_router.model import ServerInfo


# For this hook the last one is asked first: the others change what was derived.
@hookimpl(trylast=True)
def kars_egress_rules(
    server: ServerInfo, place: egress.Place, rules: Sequence[Mapping[str, Any]]
) -> Sequence[Mapping[str, Any]] | None:
    """What `kars_router.egress` says; nothing for a program, or for a URL that leads nowhere."""
    if not server.url:
        return None
    explained = egress.explain(
        server.url,
        place.namespace,
        place.cluster_domain,
        place.service_lookup,
        networks=server.allowed_networks,
    )
    return None if explained.rule is None else [*rules, explained.rule]
