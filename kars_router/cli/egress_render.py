"""`kars egress render`: the NetworkPolicies that files declare, without a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from kars_router.cli.egress_options import (
    check_installed,
    check_namespace,
    check_pairs,
    operator_options,
)
from kars_router.cli.errors import FOUND
from kars_router.cli.examples import examples
from kars_router.cli.output import clean, dump, table
from kars_router.errors import UserError
from kars_router.telemetry import configure_logging

if TYPE_CHECKING:
    from kars_router.cli.egress_declared import Around, Declared
    from kars_router.cli.egress_files import Found

_ROUTER: Final = "kars-router"  # a policy that no sandbox gives its name to


@click.command(
    "render",
    epilog=examples(
        ("For the resources in a directory", "kars egress render -f manifests/"),
        (
            "For a router of your own, straight to the cluster",
            "kars egress render -f kars.yaml --pod-label app=agent | kubectl apply -f -",
        ),
    ),
)
@click.option(
    "-f",
    "--file",
    "files",
    metavar="FILE",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="A file with resources or a router's configuration, - for stdin, or a directory; may be "
    "repeated.",
)
@click.option(
    "-n",
    "--namespace",
    metavar="NS",
    default="default",
    show_default=True,
    callback=check_namespace,
    help="Where resources are that name no namespace, and the pods of a router's configuration.",
)
@click.option(
    "--pod-label",
    "pod_labels",
    metavar="KEY=VALUE",
    multiple=True,
    callback=check_pairs,
    help="Labels of the pods that a router's own configuration is for; may be repeated.",
)
@click.option(
    "--name",
    metavar="NAME",
    default=_ROUTER,
    show_default=True,
    help="What the policy for a router's own configuration is called.",
)
@click.option(
    "--installed",
    metavar="PLURAL.GROUP",
    multiple=True,
    callback=check_installed,
    help="A custom resource that the cluster has, for plugins, such as "
    "ciliumnetworkpolicies.cilium.io; may be repeated.",
)
@operator_options()
@click.option(
    "-o",
    "--output",
    type=click.Choice(("yaml", "json", "table")),
    default="yaml",
    show_default=True,
    help="How to print the policies.",
)
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    files: tuple[Path, ...],
    namespace: str,
    pod_labels: Mapping[str, str],
    name: str,
    installed: tuple[str, ...],
    output: Literal["yaml", "json", "table"],
    **told: Any,
) -> None:
    """Print the NetworkPolicy of each sandbox in some files.

    Files may hold KarsSandboxes, the McpServers that they refer to, and Services: the pods of a
    Service that is in the files are opened alone, a Service that is not is taken to have the pods
    of its whole namespace behind it. A router's own configuration (kars.yaml) gets a policy for
    the pods that --pod-label says. Nothing is looked up, and the same files give the same bytes.

    \b
    Exit codes:
      0  everything that is declared is in the policies
      1  something opens nothing, or a file cannot be used; stderr says what
    """  # noqa: D301 (the backspace keeps click from filling the lines)
    from kars_router.cli.egress_declared import Around, Operator
    from kars_router.cli.egress_files import read_files
    from kars_router.plugins import Plugins

    configure_logging(level="error", style="console")
    found = read_files(files, namespace)
    around = Around(
        operator=Operator.told(told),
        plugins=Plugins.load(),
        services=found.service,
        installed=frozenset(installed),
    )
    declared = [*_of_sandboxes(found, around), *_of_routers(found, around, name, pod_labels)]
    if not declared:
        raise UserError(
            "the files hold no KarsSandbox and no configuration of a router; name those that do "
            "with -f"
        )
    click.echo(_table(declared) if output == "table" else _write(declared, output))
    warnings = [f"{each.source}: {warning}" for each in declared for warning in each.warnings]
    for warning in warnings:
        click.echo(f"kars: {clean(warning)}", err=True)
    if warnings:
        context.exit(FOUND)


def _of_sandboxes(found: Found, around: Around) -> list[Declared]:
    from kars_router.cli.egress_declared import by_sandbox

    return [
        by_sandbox(sandbox, found.server, around, around.operator.namespace_of(sandbox))
        for _, sandbox in sorted(found.sandboxes.items(), key=lambda item: item[0])
    ]


def _of_routers(
    found: Found, around: Around, name: str, pod_labels: Mapping[str, str]
) -> list[Declared]:
    from kars_router.cli.egress_declared import by_router
    from kars_router.egress import SandboxEgress

    if not found.routers:
        return []
    if not pod_labels:
        raise UserError(
            f"{next(iter(found.routers))}: a router's own configuration does not say which pods it "
            "is for; give their labels with --pod-label"
        )
    if len(found.routers) > 1:
        raise UserError("the files hold several configurations of routers; render one at a time")
    bare = SandboxEgress(
        name=name, namespace=found.namespace, pod_labels=pod_labels, dns=around.operator.dns
    )
    return [by_router(config, bare, around, path) for path, config in found.routers.items()]


def _write(declared: Sequence[Declared], output: Literal["yaml", "json"]) -> str:
    """As `kubectl apply -f` takes it."""
    from kars_router.cli.egress_declared import manifests
    from kars_router.config.manifests import write_manifests

    objects = [manifest for each in declared for manifest in manifests(each)]
    if output == "yaml":
        return write_manifests(objects).rstrip("\n")
    return dump({"apiVersion": "v1", "kind": "List", "items": objects}, "json")


def _table(declared: Sequence[Declared]) -> str:
    from kars_router.egress import summary

    rows: list[tuple[str, ...]] = []
    for each in declared:
        needed = {summary(rule.rule): rule.servers for rule in each.egress.rules}
        for rule in each.egress.policy()["spec"]["egress"]:
            said = summary(rule)
            names = each.egress.dns is not None and rule == each.egress.dns.rule()
            base = "looking names up" if names else "servers at port 443"
            what = ", ".join(needed.get(said, ())) or base
            rows.append((each.egress.namespace, each.egress.name, said, what))
        for manifest in each.egress.objects:
            where = f"{manifest.get('kind')} {manifest.get('metadata', {}).get('name')}"
            rows.append((each.egress.namespace, each.egress.name, f"also in {where}", "plugins"))
    return table(("NAMESPACE", "POLICY", "OPENS", "FOR"), rows)
