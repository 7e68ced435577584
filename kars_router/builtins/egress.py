"""Derives the egress rules that a server needs from its URL, and from the issuer of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kars_router.hookspecs import hookimpl
from kars_router.model import ServerInfo

if TYPE_CHECKING:
    from kars_router.egress import Place


# For this hook the last one is asked first: the others change what was derived.
@hookimpl(trylast=True)
def kars_egress_rules(
    server: ServerInfo, place: Place, rules: Sequence[Mapping[str, Any]]
) -> Sequence[Mapping[str, Any]] | None:
    """What `kars_router.egress` says; nothing for a program, or for a URL that leads nowhere."""
    # Late: this is loaded with every router, and asked by the operator and `kars egress` only.
    from kars_router.egress import needed_by

    more = [each.rule for each in needed_by(server, place) if each.rule is not None]
    return [*rules, *more] if more else None
