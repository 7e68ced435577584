"""Derives the egress rules that a server needs from its URL, and from the issuer of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kars_router import egress
from kars_router.config.auth import OAuth
from kars_router.hookspecs import hookimpl
from kars_router.model import ServerInfo


# For this hook the last one is asked first: the others change what was derived.
@hookimpl(trylast=True)
def kars_egress_rules(
    server: ServerInfo, place: egress.Place, rules: Sequence[Mapping[str, Any]]
) -> Sequence[Mapping[str, Any]] | None:
    """What `kars_router.egress` says; nothing for a program, or for a URL that leads nowhere."""
    needed = [(server.url, server.allowed_networks)]
    if isinstance(server.oauth, OAuth) and server.oauth.issuer:
        needed.append((server.oauth.issuer, server.oauth.allowed_networks))
    found = [
        egress.explain(
            url, place.namespace, place.cluster_domain, place.service_lookup, networks=networks
        ).rule
        for url, networks in needed
        if url
    ]
    more = [rule for rule in found if rule is not None]
    return [*rules, *more] if more else None
