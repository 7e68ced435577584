"""The `kars-operator` command: reads the command line, and turns errors into exit codes.

Owns the names of options. Every option can be given as a variable, `KARS_OPERATOR_RUN_` and its
name, which is how a Deployment sets them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import trio

from kars_operator._version import __version__
from kars_operator.settings import Placement, Settings
from kars_router.cli.egress_options import (
    check_installed,
    check_namespace,
    check_pairs,
    operator_options,
    take_dns,
)
from kars_router.cli.errors import Boundary
from kars_router.cli.examples import examples
from kars_router.config.addresses import parse_listen
from kars_router.config.frozenmap import FrozenMap
from kars_router.telemetry import configure_logging, log

F = TypeVar("F", bound=Callable[..., object])


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        args: the words after `kars-operator`; those of this process if None.

    Returns:
        The exit code: 0 fine, 1 a negative finding, 2 wrong usage, 3 not to be determined.
    """
    boundary = Boundary("kars-operator")
    with boundary:
        status = operator.main(
            args,
            prog_name="kars-operator",
            standalone_mode=False,
            obj=boundary,
            auto_envvar_prefix="KARS_OPERATOR",
        )
        boundary.status = status if isinstance(status, int) else 0
        sys.stdout.flush()
    return boundary.status


def _note_debug(context: click.Context, _: click.Parameter, value: object) -> None:
    boundary = context.find_object(Boundary)
    if value and boundary is not None:
        boundary.debug = True


_debug = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_note_debug,
    help="Show tracebacks of errors.",
)
_block_plugin = click.option(
    "--block-plugin",
    "blocked",
    metavar="NAME",
    multiple=True,
    help="A plugin that is not loaded; may be repeated.",
)


def _address(_: click.Context, __: click.Parameter, value: str) -> str:
    try:
        if value and parse_listen(value).path:
            raise click.BadParameter("it must be HOST:PORT; a probe reaches no socket file")
    except ValueError as error:
        raise click.BadParameter(f"it {error}") from error
    return value


def _images(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    images = check_pairs(context, parameter, values)
    for runtime, image in images.items():
        if not image:
            raise click.BadParameter(f"{runtime} has no image", param=parameter)
    return images


_MAKING = (
    click.option(
        "--router-image",
        metavar="IMAGE",
        default=Settings().router_image,
        show_default=True,
        help="Image of the router and of the guard.",
    ),
    click.option(
        "--agent-image",
        "agent_images",
        metavar="RUNTIME=IMAGE",
        multiple=True,
        callback=_images,
        help="Image of the agent for sandboxes of a runtime that name none; may be repeated.",
    ),
    click.option(
        "--agent-port",
        type=click.IntRange(1, 65535),
        default=8443,
        show_default=True,
        help="The router's port for agents, on loopback.",
    ),
    click.option(
        "--pull-secret",
        "pull_secrets",
        metavar="NAME",
        multiple=True,
        help="A Secret for pulling images; may be repeated.",
    ),
)


def _making(command: F) -> F:
    """Adds the options that say how sandboxes are made."""
    for option in reversed((*_MAKING, operator_options(namespace_variable="POD_NAMESPACE"))):
        command = option(command)
    return command


def _settings(given: dict[str, Any]) -> Settings:
    dns = take_dns(given)
    images = FrozenMap(given.pop("agent_images"))
    placement = Placement(given.pop("placement"))
    if given["agent_port"] == given["admin_port"]:
        raise click.UsageError("--agent-port and --admin-port must be two ports")
    return Settings(dns=dns, agent_images=images, placement=placement, **given)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        ("Install the definitions", "kars-operator crds | kubectl apply --server-side -f -"),
        ("See what it would make of some files", "kars-operator render -f manifests/"),
    ),
)
@click.version_option(__version__, prog_name="kars-operator", message="%(prog)s %(version)s")
@_debug
def operator() -> None:
    """Turns McpServer and KarsSandbox resources into pods with exactly the egress they need."""


@operator.command(
    "run",
    epilog=examples(
        ("In a pod, for the whole cluster", "kars-operator run"),
        (
            "From outside, for one namespace, without election",
            "kars-operator run --kubeconfig ~/.kube/config -n agents --no-election",
        ),
    ),
)
@_making
@click.option(
    "--namespace", "-n", metavar="NS", callback=check_namespace, help="Look at this one only."
)
@click.option("--kubeconfig", type=click.Path(path_type=Path), help="How to reach the cluster.")
@click.option("--context", "kube_context", metavar="NAME", help="The context in the kubeconfig.")
@click.option(
    "--health",
    metavar="HOST:PORT",
    default="0.0.0.0:8080",
    show_default=True,
    callback=_address,
    help="Where /healthz, /readyz and /metrics are; empty for nowhere.",
)
@click.option(
    "--election/--no-election",
    default=True,
    show_default=True,
    help="Whether one of several operators is chosen to work.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Objects that are worked on at once.",
)
@_block_plugin
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="The least important lines that are written.",
)
@_debug
def run_operator(
    *,
    namespace: str | None,
    kubeconfig: Path | None,
    kube_context: str | None,
    health: str,
    election: bool,
    workers: int,
    blocked: tuple[str, ...],
    log_level: str,
    **making: Any,
) -> None:
    """Run the operator, until SIGTERM or SIGINT.

    What is being worked on then comes to its end; nothing that runs in the cluster is touched.
    """
    from kars_operator.service import Options, run
    from kars_router.kube import connection_from

    configure_logging(level=log_level)
    options = Options(
        settings=_settings(making),
        namespace=namespace,
        health=health or None,
        election=election,
        workers=workers,
        blocked=blocked,
    )
    connection = connection_from(kubeconfig, kube_context, None, os.environ)

    async def until_told() -> None:
        stop = trio.Event()
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_heed, signals, stop, nursery.cancel_scope)
                await run(connection, options, stop)
                nursery.cancel_scope.cancel()

    trio.run(until_told)


async def _heed(signals: Any, stop: trio.Event, scope: trio.CancelScope) -> None:
    # The first signal is a request, the second one means it.
    async for number in signals:
        log().info("signal", name=signal.Signals(number).name)
        if stop.is_set():
            scope.cancel()
        stop.set()


@operator.command(
    "render",
    epilog=examples(
        ("A directory of resources", "kars-operator render -f manifests/"),
        (
            "With an image of your own, in a namespace of your own",
            "kars-operator render -f sandbox.yaml -n agents --router-image example.com/kars:1.0",
        ),
    ),
)
@_making
@click.option(
    "--file",
    "-f",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="A file with resources, - for stdin, or a directory of them; may be repeated.",
)
@click.option(
    "--namespace",
    "-n",
    metavar="NS",
    default="default",
    show_default=True,
    callback=check_namespace,
    help="Where resources are that name no namespace.",
)
@_block_plugin
@click.option(
    "--installed",
    metavar="PLURAL.GROUP",
    multiple=True,
    callback=check_installed,
    help="A further definition that the cluster has, such as "
    "ciliumnetworkpolicies.cilium.io; may be repeated.",
)
@_debug
@click.pass_context
def render_files(
    context: click.Context,
    /,
    *,
    files: tuple[Path, ...],
    namespace: str,
    blocked: tuple[str, ...],
    installed: tuple[str, ...],
    **making: Any,
) -> None:
    """Print all objects of the sandboxes in some files, as the operator would apply them.

    The same files always give the same bytes. A Service in the files counts as one that can be
    read. Owners are left out, since only a cluster knows them.

    \b
    Exit codes:
      0  everything was rendered
      1  a reference leads to nothing, and what can be rendered is printed all the same; or a file
         or a sandbox cannot be used, and nothing is printed
    """  # noqa: D301 (the backspace keeps click from filling the lines)
    from kars_operator import render
    from kars_router.config.manifests import write_manifests
    from kars_router.plugins import Plugins

    configure_logging(level="error", style="console")
    plugins = Plugins.load(blocked=blocked)
    found = render.read(files, namespace)
    objects, warnings = render.render(found, _settings(making), plugins, frozenset(installed))
    click.echo(write_manifests(objects), nl=False)
    for each in warnings:
        click.echo(f"kars-operator: {each}", err=True)
    if warnings:
        context.exit(1)


@operator.command(
    "crds",
    epilog=examples(
        ("Install them", "kars-operator crds | kubectl apply --server-side -f -"),
        ("Keep them", "kars-operator crds > crds.yaml"),
    ),
)
@_debug
def print_definitions() -> None:
    """Print the CustomResourceDefinitions."""
    from kars_operator.crds import crd_manifests
    from kars_router.config.manifests import write_manifests

    click.echo(write_manifests(crd_manifests()), nl=False)
