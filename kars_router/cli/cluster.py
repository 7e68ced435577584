"""What commands that ask a cluster have in common: options, the connection, and what errors become.

Owns how a refusal of an API server is told and which exit code it has. Knows no command.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from kars_router.errors import ConfigError, UndeterminedError, UserError

if TYPE_CHECKING:
    from kars_router.kube import ApiError, Connection, Kube, Resource

F = TypeVar("F", bound=Callable[..., object])
T = TypeVar("T")

# The server has looked at what was asked, and it will not do. Anything else may change by itself.
_FINDINGS: Final = frozenset({400, 404, 409, 413, 415, 422})
# What a server answers, with status 500, to a field that a kind does not have.
_UNKNOWN_FIELD: Final = "field not declared in schema"


def cluster_options(command: F) -> F:
    """Adds `--kubeconfig` and `--context` (passed as `cluster`), for `connection_of`."""
    for option in (
        click.option("--context", "cluster", metavar="NAME", help="The context in the kubeconfig."),
        click.option(
            "--kubeconfig",
            type=click.Path(path_type=Path),
            help="The kubeconfig; $KUBECONFIG or ~/.kube/config by default.",
        ),
    ):
        command = option(command)
    return command


def connection_of(
    kubeconfig: Path | None, cluster: str | None, namespace: str | None = None
) -> Connection:
    """Finds out how to reach the cluster; asks it nothing.

    Args:
        kubeconfig: the file, if one was named.
        cluster: the context in it, if one was named.
        namespace: for objects that name none.

    Raises:
        UserError: nothing is configured, or what is cannot be used.
    """
    from kars_router.kube import connection_from

    return connection_from(kubeconfig, cluster, namespace, os.environ)


def ask(connection: Connection, question: Callable[[Kube], Awaitable[T]]) -> T:
    """Asks the cluster, in a Trio run of its own.

    Args:
        connection: how to reach it.
        question: asks.

    Raises:
        UserError: the server refused for good, exit code 1; or for another reason, exit code 3.
        UnreachableError: there was no answer; exit code 3.
    """
    import trio

    from kars_router.kube import ApiError, open_kube
    from kars_router.telemetry import configure_logging

    configure_logging(level="error", style="console")

    async def run() -> T:
        async with open_kube(connection, name="kars-cli") as kube:
            return await question(kube)

    try:
        return trio.run(run)
    except ApiError as error:
        raise refusal(error, connection) from error


def refusal(error: ApiError, connection: Connection) -> UserError:
    """What a user is told of a refusal."""
    where = f"the API server {connection.server}"
    if error.status == 401:
        return UndeterminedError(f"{where} does not accept the credentials in {connection.source}")
    if error.status not in _FINDINGS and _UNKNOWN_FIELD not in error.message:
        return UndeterminedError(f"{where}: {error.message}")
    told = [f"{cause.field}: {cause.message}" for cause in error.causes if cause.field]
    if told and error.status == 422:
        return ConfigError(told, where)
    return UserError(f"{where}: {error.message}")


async def insist_on(kube: Kube, resource: Resource) -> None:
    """Tells a cluster that lacks a kind from one that lacks an object of it.

    Raises:
        UserError: the cluster does not know the kind; exit code 3.
    """
    if not await kube.has(resource):
        raise UndeterminedError(
            f"{kube.where} knows no {resource.kind}: install the operator's definitions first"
        )


def without_bookkeeping(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """An object without the record of who owns which of its fields, for people to read."""
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "managedFields"}
    order = ("apiVersion", "kind")
    return {
        **{key: manifest[key] for key in order if key in manifest},
        "metadata": metadata,
        **{key: value for key, value in manifest.items() if key not in {*order, "metadata"}},
    }
