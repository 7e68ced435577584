"""What is asked about egress and what the answer is; values only."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import field, frozen

Rule = Mapping[str, Any]

DEFAULT_DOMAIN: Final = "cluster.local"


class Scope(enum.StrEnum):
    """Where a URL leads."""

    IN_CLUSTER = "in-cluster"
    EXTERNAL = "external"
    ADDRESS = "address"
    INVALID = "invalid"


@frozen(kw_only=True)
class Service:
    """What has to be known of a Kubernetes Service.

    Attributes:
        selector: labels of its pods; empty if it selects none.
        ports: its TCP ports, and the port of the pods for each: a number, or a port's name.
        headless: its name leads to its pods without translation.
        external_name: the name that it is an alias of, or "".
    """

    selector: Mapping[str, str] = field(factory=dict)
    ports: Mapping[int, int | str] = field(factory=dict)
    headless: bool = False
    external_name: str = ""


# Namespace and name of a Service; None where there is none, or where it cannot be read.
ServiceLookup = Callable[[str, str], Service | None]


@frozen(kw_only=True)
class Place:
    """Where the one who connects is.

    Attributes:
        namespace: of the sandbox; bare names are looked up there.
        cluster_domain: the cluster's DNS domain.
        service_lookup: reads a Service; None where that is not possible.
        installed: the custom resources that the cluster serves, each as `plural.group`; empty where
            no cluster was asked.
    """

    namespace: str = "default"
    cluster_domain: str = DEFAULT_DOMAIN
    service_lookup: ServiceLookup | None = None
    installed: frozenset[str] = frozenset()


@frozen(kw_only=True)
class Explanation:
    """What egress a URL needs, and why.

    Attributes:
        url: as it was given. May hold secrets.
        scope: where it leads.
        host: in lower case, without dot at the end, as A-label, without brackets; None if invalid.
        port: None if invalid.
        namespace: of the Service or pod; None unless in-cluster.
        rule: the egress rule; None if none is needed, or if the URL is invalid.
        reason: one sentence. Holds nothing of the URL but its host and port.
        exact: whether the rule admits the very pods, as the Service could be read.
        https: whether port 443 of public addresses, which the base policy opens, is needed.
        alias: the name that is connected to instead, if the host is a Service that stands for it.
    """

    url: str = field(repr=False)
    scope: Scope
    host: str | None = None
    port: int | None = None
    namespace: str | None = None
    rule: Rule | None = None
    reason: str = ""
    exact: bool = False
    https: bool = False
    alias: str = ""

    def plain(self) -> dict[str, Any]:
        """As `kars egress explain -o json` prints it."""
        names = ("url", "scope", "host", "port", "namespace", "rule", "reason")
        return {name: getattr(self, name) for name in names}
