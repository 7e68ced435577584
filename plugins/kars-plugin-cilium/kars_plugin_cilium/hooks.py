"""The hooks: which rules of a sandbox are replaced by the names of hosts.

Owns the plugin's options. Must not know how Cilium writes policies.
"""

from __future__ import annotations

import ipaddress
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import define, evolve

from kars_plugin_cilium.policy import policy
from kars_router.egress import (
    Explanation,
    Place,
    Rule,
    SandboxEgress,
    Scope,
    SourcedRule,
    merge,
    needed_by,
)
from kars_router.errors import PluginError
from kars_router.hookspecs import hookimpl

RESOURCE: Final = "ciliumnetworkpolicies.cilium.io"
_HTTPS: Final = 443
_HOST: Final = re.compile(
    r"(?=[^:]{1,253}(?::|\Z))(?P<name>(?:[a-z0-9_-]{1,63}\.)+[a-z0-9-]{1,63})"
    r"(?::(?P<port>[0-9]{1,5}))?\Z"
)

# Servers by the host and port that they need, and rules that are no longer needed by a server.
_Hosts = defaultdict[tuple[str, int], set[str]]


@define(eq=False)
class CiliumPlugin:
    """Opens exact hosts in a CiliumNetworkPolicy instead of ports of the whole world.

    Attributes:
        hosts: further hosts and ports that sandboxes reach, such as those of token endpoints.
    """

    hosts: tuple[tuple[str, int], ...] = ()

    @hookimpl
    def kars_configure(self, options: Mapping[str, Any]) -> None:
        """Takes `plugins.options.cilium`.

        Args:
            options: `hosts`, a list of hosts with or without a port, or nothing.

        Raises:
            PluginError: an option is unknown, or `hosts` is no list of hosts.
        """
        unknown = sorted(str(name) for name in options if name != "hosts")
        if unknown:
            raise PluginError(f"unknown option `{unknown[0]}`; there is only `hosts`")
        self.hosts = _hosts(options.get("hosts", ()))

    @hookimpl
    def kars_egress_objects(self, sandbox: SandboxEgress, place: Place) -> SandboxEgress | None:
        """Adds the CiliumNetworkPolicy and takes out the rules that it replaces.

        Args:
            sandbox: its servers and rules.
            place: says whether the cluster has CiliumNetworkPolicies.

        Returns:
            what to use instead, or None where there is no Cilium, no host outside of the cluster,
            or nowhere to look names up.
        """
        if RESOURCE not in place.installed or sandbox.dns is None:
            return None
        found = _Replaced(sandbox, place)
        if not found.hosts:
            return None
        for host in self.hosts:
            found.hosts[host].add("plugins.options.cilium")
        hosts = {host: frozenset(servers) for host, servers in found.hosts.items()}
        return evolve(
            sandbox,
            https=sandbox.https and not found.https,
            rules=found.rules(),
            dns=None,
            objects=(*sandbox.objects, policy(sandbox, hosts, sandbox.dns)),
        )


class _Replaced:
    """What can be opened by name, and what is left.

    Attributes:
        hosts: servers by the host and port that they need.
        https: whether the rule for port 443 of the world is replaced.
    """

    def __init__(self, sandbox: SandboxEgress, place: Place) -> None:
        self.hosts: _Hosts = defaultdict(set)
        self._sandbox = sandbox
        self._dropped: list[tuple[str, Rule]] = []
        self._added: list[tuple[str, Sequence[Rule]]] = []
        needs = [(each.name, one) for each in sandbox.servers for one in needed_by(each, place)]
        over_https = [(server, one) for server, one in needs if one.https]
        self.https = (
            sandbox.https
            and bool(over_https)
            and all(_is_host(one) or one.scope is Scope.ADDRESS for _, one in over_https)
        )
        if self.https:
            for server, one in over_https:
                self._replace_https(server, one)
        for server, one in needs:
            if not one.https and one.rule is not None and _is_host(one):
                self._replace(server, one)

    def rules(self) -> tuple[SourcedRule, ...]:
        """The rules that are left, and those for addresses."""
        kept = [
            (server, [each.rule])
            for each in self._sandbox.rules
            for server in each.servers
            if (server, each.rule) not in self._dropped
        ]
        return merge([*kept, *self._added])

    def _replace_https(self, server: str, one: Explanation) -> None:
        assert one.host is not None
        if one.scope is Scope.ADDRESS:
            self._added.append((server, [_to_address(one.host)]))
            return
        self.hosts[one.host, _HTTPS].add(server)
        if one.rule is not None:  # the networks that its name may lead to as well
            self._dropped.append((server, one.rule))

    def _replace(self, server: str, one: Explanation) -> None:
        """Only what is open: another plugin may have closed it."""
        assert one.host is not None
        assert one.port is not None
        if any(each.rule == one.rule and server in each.servers for each in self._sandbox.rules):
            assert one.rule is not None
            self.hosts[one.host, one.port].add(server)
            self._dropped.append((server, one.rule))


def _is_host(one: Explanation) -> bool:
    """Whether Cilium sees the name in the answers that the pod gets.

    It does not see the name behind a Service that stands for another one, only the Service's.
    """
    return one.scope is Scope.EXTERNAL and one.host is not None and not one.alias


def _to_address(host: str) -> Rule:
    address = ipaddress.ip_address(host)
    address = getattr(address, "ipv4_mapped", None) or address
    block = {"cidr": f"{address}/{address.max_prefixlen}"}
    return {"to": [{"ipBlock": block}], "ports": [{"protocol": "TCP", "port": _HTTPS}]}


def _hosts(given: object) -> tuple[tuple[str, int], ...]:
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise PluginError("`hosts` must be a list of hosts, such as oauth2.example.com")
    found = []
    for each in given:
        match = _HOST.match(each.lower().removesuffix(".")) if isinstance(each, str) else None
        port = int(match["port"] or _HTTPS) if match else 0
        if match is None or not 1 <= port <= 65_535:
            raise PluginError(f"`hosts`: {each!r} is no host such as oauth2.example.com:443")
        found.append((match["name"], port))
    return tuple(found)
