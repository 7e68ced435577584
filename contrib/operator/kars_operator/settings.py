"""What the operator itself is told: images, places, ports. Frozen values; knows no command line."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from attrs import field, frozen

from kars_operator import names
from kars_router.config.frozenmap import FrozenMap
from kars_router.egress import DEFAULT_DOMAIN, Dns
from kars_router.egress.sandbox import NAMESPACE_PREFIX, OPERATOR_NAMESPACE
from kars_router.guard import ADMIN_PORT, Guard, Uids

_NO_IMAGES: Final[Mapping[str, str]] = FrozenMap()


class Placement(enum.StrEnum):
    """Where a sandbox's objects are.

    `SAME` is the namespace of its KarsSandbox, `OWN` one that is made for it, as kars does it.
    """

    SAME = "same"
    OWN = "own"


@frozen(kw_only=True)
class Settings:
    """How sandboxes are made.

    Attributes:
        router_image: image of the router and of the guard.
        agent_images: image of the agent by runtime, for sandboxes that name none.
        placement: where a sandbox's objects are.
        namespace_prefix: what the name of a sandbox's own namespace begins with.
        operator_namespace: where the operator is; its pods may ask routers what they enforce.
        cluster_domain: the cluster's DNS domain.
        dns: where the cluster's DNS is.
        agent_port: the router's port for agents, on loopback.
        admin_port: the router's port for health, metrics and status.
        grace: seconds that a router has to end its calls.
        pull_secrets: names of Secrets for pulling images.
    """

    router_image: str = "kars-router:latest"
    agent_images: Mapping[str, str] = field(default=_NO_IMAGES)
    placement: Placement = Placement.SAME
    namespace_prefix: str = NAMESPACE_PREFIX
    operator_namespace: str = OPERATOR_NAMESPACE
    cluster_domain: str = DEFAULT_DOMAIN
    dns: Dns = field(factory=Dns)
    agent_port: int = 8443
    admin_port: int = ADMIN_PORT
    grace: int = 25
    pull_secrets: tuple[str, ...] = ()

    def guard(self) -> Guard:
        """What the guard of every pod holds to."""
        return Guard(
            router=names.ROUTER_UID,
            agents=(Uids(names.AGENT_UID, names.AGENT_UID),),
            denied_ports=(self.admin_port,),
        )

    def namespace_of(self, sandbox: str, namespace: str) -> str:
        """Where the objects of a sandbox are.

        Args:
            sandbox: its name.
            namespace: where its KarsSandbox is.
        """
        return namespace if self.placement is Placement.SAME else self.own_namespace_of(sandbox)

    def own_namespace_of(self, sandbox: str) -> str:
        """The namespace that is made for a sandbox where each has its own.

        Args:
            sandbox: its name.
        """
        return f"{self.namespace_prefix}{sandbox}"
