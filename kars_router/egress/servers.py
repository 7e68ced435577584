"""Everything that one server needs: its URL, and the issuer of its tokens.

Must not know rules of plugins, which may change what is derived here.
"""

from __future__ import annotations

from kars_router.egress.explain import explain
from kars_router.egress.values import Explanation, Place, Scope
from kars_router.model import ServerInfo


def needed_by(server: ServerInfo, place: Place) -> tuple[Explanation, ...]:
    """Explains each of a server's URLs; nothing for a program.

    A server whose tokens come from an issuer that only its own metadata names needs port 443 of
    public addresses: an explanation says so that has no host.
    """
    found = []
    if server.url:
        found.append(_of(server.url, server.allowed_networks, place))
    if server.oauth is not None:
        issuer = server.oauth.issuer
        found.append(_of(issuer, server.oauth.allowed_networks, place) if issuer else _UNKNOWN)
    return tuple(found)


_UNKNOWN = Explanation(
    url="",
    scope=Scope.EXTERNAL,
    port=443,
    reason="The issuer of its tokens is named by the server's own metadata only; the base policy "
    "opens port 443.",
    https=True,
)


def _of(url: str, networks: tuple[str, ...], place: Place) -> Explanation:
    return explain(
        url, place.namespace, place.cluster_domain, place.service_lookup, networks=networks
    )
