"""Options of several commands: where a sandbox is, and how the operator makes it.

`kars-operator` has them as well, so that what `kars egress` is told can be what the operator was.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from kars_router.egress import DEFAULT_DOMAIN, Dns
from kars_router.egress.names import is_domain, is_namespace
from kars_router.egress.sandbox import NAMESPACE_PREFIX, OPERATOR_NAMESPACE
from kars_router.guard import ADMIN_PORT

F = TypeVar("F", bound=Callable[..., object])


def check_namespace(_: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Takes the name of a namespace, or nothing."""
    if value is not None and not is_namespace(value):
        raise click.BadParameter(
            "it must be the name of a namespace, such as tools", param=parameter
        )
    return value


def _prefix(_: click.Context, __: click.Parameter, value: str) -> str:
    if not is_namespace(f"{value}x"):
        raise click.BadParameter(f"it must be what a name can begin with, as {NAMESPACE_PREFIX}")
    return value


def _domain(_: click.Context, __: click.Parameter, value: str) -> str:
    if not is_domain(value):
        raise click.BadParameter(f"it must be a domain such as {DEFAULT_DOMAIN}")
    return value


def _network(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            ipaddress.ip_network(value)
        except ValueError as error:
            raise click.BadParameter(f"{error}; give a block such as 169.254.20.10/32") from error
    return values


def check_installed(
    _: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """Takes `PLURAL.GROUP` several times."""
    for value in values:
        if "." not in value or not is_domain(value):
            raise click.BadParameter(
                f"{value!r} is not of the form PLURAL.GROUP, as names.example.com",
                param=parameter,
            )
    return values


def check_pairs(
    _: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """Takes `KEY=VALUE` several times."""
    pairs = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{value!r} is not of the form KEY=VALUE", param=parameter)
        pairs[key] = text
    return pairs


domain_option = click.option(
    "--cluster-domain",
    metavar="D",
    default=DEFAULT_DOMAIN,
    show_default=True,
    callback=_domain,
    help="The cluster's DNS domain.",
)

_PLACES: Final = (
    click.option(
        "--placement",
        type=click.Choice(("same", "own")),
        default="same",
        show_default=True,
        help="Where a sandbox's objects are: beside its KarsSandbox, or in a namespace of its own.",
    ),
    click.option(
        "--namespace-prefix",
        metavar="TEXT",
        default=NAMESPACE_PREFIX,
        show_default=True,
        callback=_prefix,
        help="What the names of sandboxes' own namespaces begin with.",
    ),
)
_NETWORK: Final = (
    click.option(
        "--admin-port",
        type=click.IntRange(1, 65_535),
        default=ADMIN_PORT,
        show_default=True,
        help="The routers' port for health, metrics and status.",
    ),
    domain_option,
    click.option(
        "--dns-namespace",
        metavar="NS",
        default=Dns().namespace,
        show_default=True,
        callback=check_namespace,
        help="Where the cluster's DNS is.",
    ),
    click.option(
        "--dns-label",
        "dns_labels",
        metavar="KEY=VALUE",
        multiple=True,
        callback=check_pairs,
        help="Labels of the pods of the cluster's DNS; k8s-app=kube-dns if none is given.",
    ),
    click.option(
        "--dns-network",
        "dns_networks",
        metavar="CIDR",
        multiple=True,
        callback=_network,
        help="Where names are looked up as well, such as the cache of a node; may be repeated.",
    ),
)


def operator_options(*, namespace_variable: str | None = None) -> Callable[[F], F]:
    """Adds what the operator is told when it is started.

    Args:
        namespace_variable: the variable that says where the operator is, if there is one.
    """
    own = click.option(
        "--operator-namespace",
        metavar="NS",
        envvar=namespace_variable,
        default=OPERATOR_NAMESPACE,
        show_default=True,
        callback=check_namespace,
        help="Where the operator is; only from there may routers be asked what they enforce.",
    )

    def add(command: F) -> F:
        for option in reversed((*_PLACES, own, *_NETWORK)):
            command = option(command)
        return command

    return add


def take_dns(given: dict[str, Any]) -> Dns:
    """Takes the options about DNS out of all that were given."""
    labels = given.pop("dns_labels") or Dns().pod_labels
    networks = given.pop("dns_networks")
    return Dns(namespace=given.pop("dns_namespace"), pod_labels=labels, networks=networks)
