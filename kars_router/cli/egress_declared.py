"""What egress is declared: by a sandbox and its servers, or by a router's own configuration.

Owns how the operator's options become the names, places and labels of a sandbox's policy. Looks
nothing up; knows neither files nor clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from kars_router.cli.egress_options import take_dns
from kars_router.config.references import ServerLookup, servers_of
from kars_router.config.resources import KarsSandboxResource
from kars_router.config.schema import Config, Server
from kars_router.egress import (
    Dns,
    Place,
    SandboxEgress,
    Scope,
    ServiceLookup,
    merge,
    needed_by,
)
from kars_router.egress.sandbox import asked_by_operator, labels_of, pod_labels_of
from kars_router.model import ServerInfo
from kars_router.plugins import Plugins


@frozen(kw_only=True)
class Operator:
    """What the operator was told when it was started.

    Attributes:
        placement: `same`, or `own` for sandboxes with namespaces of their own.
        namespace_prefix: what the names of those begin with.
        operator_namespace: where it is itself.
        admin_port: the routers' port for health, metrics and status.
        cluster_domain: the cluster's DNS domain.
        dns: where names are looked up.
    """

    placement: str
    namespace_prefix: str
    operator_namespace: str
    admin_port: int
    cluster_domain: str
    dns: Dns

    @classmethod
    def told(cls, given: dict[str, Any]) -> Operator:
        """What the options of `operator_options` say."""
        dns = take_dns(given)
        return cls(dns=dns, **given)

    def namespace_of(self, sandbox: KarsSandboxResource) -> str:
        """Where the pods of a sandbox are."""
        if self.placement == "own":
            return f"{self.namespace_prefix}{sandbox.meta.name}"
        return sandbox.meta.namespace


@frozen(kw_only=True)
class Declared:
    """What is declared for one set of pods.

    Attributes:
        source: what declares it, such as `KarsSandbox agents/browser`.
        egress: it, with what plugins have made of it.
        warnings: a sentence for each thing that is declared and opens nothing.
    """

    source: str
    egress: SandboxEgress
    warnings: tuple[str, ...]


@frozen(kw_only=True)
class Around:
    """What is known beside the sandbox.

    Attributes:
        operator: what it was told.
        plugins: have the last word on rules.
        services: reads a Service.
        installed: custom resources of the cluster, as `plural.group`.
    """

    operator: Operator
    plugins: Plugins
    services: ServiceLookup | None = None
    installed: frozenset[str] = frozenset()

    def place(self, namespace: str) -> Place:
        """Where pods of a namespace are."""
        return Place(
            namespace=namespace,
            cluster_domain=self.operator.cluster_domain,
            service_lookup=self.services,
            installed=self.installed,
        )


def by_sandbox(
    sandbox: KarsSandboxResource, servers: ServerLookup, around: Around, namespace: str
) -> Declared:
    """What a sandbox declares, as the operator opens it.

    Args:
        sandbox: it.
        servers: finds a server by namespace and name.
        around: what else is known.
        namespace: where its pods are.
    """
    name, home = sandbox.meta.name, sandbox.meta.namespace
    found, refused = servers_of(sandbox, servers)
    needs = [_info(each.meta.name, each.spec.server) for each in found]
    operator = around.operator
    bare = SandboxEgress(
        name=name,
        namespace=namespace,
        labels=labels_of(name, home),
        pod_labels=pod_labels_of(name, home),
        dns=operator.dns,
        ingress=(asked_by_operator(operator.operator_namespace, operator.admin_port),),
    )
    egress, warnings = _opened(bare, needs, around)
    return Declared(
        source=f"KarsSandbox {home}/{name}",
        egress=egress,
        warnings=(*(each.message for each in refused), *warnings),
    )


def by_router(config: Config, bare: SandboxEgress, around: Around, source: str) -> Declared:
    """What a router's own configuration declares, for pods that no operator makes.

    Args:
        config: the configuration.
        bare: the pods, and where names are looked up.
        around: what else is known.
        source: the configuration's file.
    """
    egress, warnings = _opened(bare, router_needs(config), around)
    return Declared(source=source, egress=egress, warnings=warnings)


def router_needs(config: Config) -> list[ServerInfo]:
    """Everything that a router connects to, each as a server with a URL."""
    needs = [_info(name, server) for name, server in config.servers.items()]
    jwt = config.agent_auth.jwt
    if jwt is not None and jwt.jwks_file is None:
        needs.append(ServerInfo(name="agentAuth.jwt", url=jwt.jwks_url or jwt.issuer))
    return needs


def _opened(
    bare: SandboxEgress, needs: Sequence[ServerInfo], around: Around
) -> tuple[SandboxEgress, tuple[str, ...]]:
    """With what the servers need, and a sentence for each that leads nowhere."""
    place = around.place(bare.namespace)
    explained = {each.name: needed_by(each, place) for each in needs}
    invalid = {
        name: one.reason
        for name, found in explained.items()
        for one in found
        if one.scope is Scope.INVALID
    }
    usable = [each for each in needs if each.name not in invalid]
    egress = evolve(
        bare,
        servers=tuple(usable),
        rules=merge((each.name, around.plugins.egress_rules(each, place)) for each in usable),
        https=any(one.https for each in usable for one in explained[each.name]),
    )
    warnings = tuple(f"{name}: {reason}" for name, reason in invalid.items())
    return around.plugins.egress_objects(egress, place), warnings


def manifests(declared: Declared) -> list[Mapping[str, Any]]:
    """The NetworkPolicy, and what plugins have put beside it."""
    return [declared.egress.policy(), *declared.egress.objects]


def _info(name: str, server: Server) -> ServerInfo:
    return ServerInfo(
        name=name,
        allowed_tools=server.allowed_tools,
        bearer_from_env=server.bearer_from_env or "",
        bearer_from_file=str(server.bearer_from_file or ""),
        url=server.url or "",
        oauth=server.oauth,
        allowed_networks=server.allowed_networks,
    )
