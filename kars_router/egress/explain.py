"""From a URL to a rule and the reason for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import evolve

from kars_router.egress import rules
from kars_router.egress.names import InCluster, find
from kars_router.egress.urls import Address, InvalidUrlError, Target, meant, parse
from kars_router.egress.values import (
    DEFAULT_DOMAIN,
    Explanation,
    Place,
    Scope,
    Service,
    ServiceLookup,
)

_COVERED: Final = 443  # there the base policy lets out to public addresses


def explain(
    url: str,
    namespace: str = "default",
    cluster_domain: str = DEFAULT_DOMAIN,
    service_lookup: ServiceLookup | None = None,
    *,
    networks: Sequence[str] = (),
) -> Explanation:
    """Says what egress a URL needs, and why. Never raises, whatever the strings are.

    Args:
        url: the server's.
        namespace: the sandbox's.
        cluster_domain: the cluster's DNS domain.
        service_lookup: reads a Service; what it raises goes up.
        networks: private networks that a name outside of the cluster may lead to, as CIDR blocks
            (`allowedNetworks`).
    """
    place = Place(namespace=namespace, cluster_domain=cluster_domain, service_lookup=service_lookup)
    try:
        target = parse(url)
        local = target.host == "localhost" or target.host.endswith(".localhost")
        inside = None if local or target.address is not None else find(target, place)
    except InvalidUrlError as error:
        return Explanation(url=url, scope=Scope.INVALID, reason=str(error))
    about = Explanation(url=url, scope=Scope.EXTERNAL, host=target.host, port=target.port)
    if inside is not None:
        about = evolve(about, scope=Scope.IN_CLUSTER, namespace=inside.namespace)
        return _of_service(about, target, inside, place)
    if target.address is not None:
        return _of_address(about, target, meant(target.address))
    if local:
        return _of_pod_itself(about)
    return _of_world(about, target, networks)


def _of_pod_itself(about: Explanation) -> Explanation:
    reason = f"{about.host} is the pod itself, and no policy stands in its way."
    return evolve(about, scope=Scope.ADDRESS, reason=reason)


def _of_address(about: Explanation, target: Target, address: Address) -> Explanation:
    if address.is_loopback:
        return _of_pod_itself(about)
    about = evolve(about, scope=Scope.ADDRESS)
    private = rules.is_private(address)
    if target.port == _COVERED and not private:
        reason = f"{target.host} is public, and the base policy opens port {_COVERED}."
        return evolve(about, reason=reason, https=True)
    what = "private" if private else "public"
    return evolve(
        about,
        rule=rules.to_networks([f"{address}/{address.max_prefixlen}"], target.port),
        reason=f"{target.host} is {what} and stands in the URL itself, so that only it is opened.",
    )


def _of_world(about: Explanation, target: Target, networks: Sequence[str]) -> Explanation:
    port = target.port
    where = f"{target.host} is outside of the cluster"
    if port == _COVERED and not networks:
        reason = f"{where}, and the base policy opens port {port}."
        return evolve(about, reason=reason, https=True)
    if port == _COVERED:
        return evolve(
            about,
            rule=rules.to_networks(networks, port),
            reason=f"{where}; the base policy opens port {port} of public addresses, and this that "
            "of the networks which are allowed.",
            https=True,
        )
    return evolve(
        about,
        rule=rules.to_world(port, networks),
        reason=f"{where}; policies know no names, so that port {port} of all public addresses is "
        "opened, and the router keeps to the host.",
    )


def _of_service(about: Explanation, target: Target, inside: InCluster, place: Place) -> Explanation:
    service = None
    if inside.service and place.service_lookup is not None:
        service = place.service_lookup(inside.namespace, inside.service)
    if service is not None and service.external_name:
        return _of_alias(about, target, service.external_name, place)
    port = target.port
    if service is None or (missing := _missing(service, port)):
        why = missing if service is not None else _unread(inside, place)
        return evolve(
            about,
            rule=rules.to_pods(inside.namespace, None, port),
            reason=f"{inside.how}; {why}, so that port {port} of the whole namespace is opened.",
        )
    there = port if service.headless else service.ports[port]
    same = "" if there == port else f", to which the Service translates port {port}"
    return evolve(
        about,
        rule=rules.to_pods(inside.namespace, service.selector, there),
        reason=f"{inside.how}; port {there} of its pods is opened{same}.",
        exact=True,
    )


def _unread(inside: InCluster, place: Place) -> str:
    if not inside.service:
        return "the labels of the pod are not known"
    return "it is not there" if place.service_lookup is not None else "it was not read"


def _missing(service: Service, port: int) -> str:
    """What a Service does not say of the pods behind a port; empty if it says everything."""
    if not service.selector:
        return "it selects no pods"
    if port not in service.ports and not service.headless:
        return f"it has no TCP port {port}"
    return ""


def _of_alias(about: Explanation, target: Target, alias: str, place: Place) -> Explanation:
    """A Service of type ExternalName: connections go to what it stands for."""
    scheme = "https" if target.tls else "http"
    # Absolute, as it is in DNS; without a look-up, as aliases of aliases may go round in circles.
    there = explain(
        f"{scheme}://{alias.removesuffix('.')}.:{target.port}",
        place.namespace,
        place.cluster_domain,
    )
    said = f"{about.host} is a Service that stands for another name. {there.reason}"
    host = None if there.scope is Scope.INVALID else about.host
    return evolve(there, url=about.url, host=host, reason=said, alias=alias)
