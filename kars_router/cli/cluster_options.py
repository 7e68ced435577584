"""Options of commands that ask a cluster, and how they reach it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from kars_router.kube import Connection

F = TypeVar("F", bound=Callable[..., object])


def cluster_options(command: F) -> F:
    """Adds `--kubeconfig` and `--context`, passed as `kubeconfig` and `kube_context`."""
    for option in (
        click.option(
            "--context", "kube_context", metavar="NAME", help="The context in the kubeconfig."
        ),
        click.option(
            "--kubeconfig",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="How to reach the cluster; $KUBECONFIG or ~/.kube/config without it.",
        ),
    ):
        command = option(command)
    return command


def connect(kubeconfig: Path | None, kube_context: str | None, namespace: str | None) -> Connection:
    """How to reach the cluster.

    Raises:
        UserError: nothing is configured, or what is cannot be used; names the file.
    """
    from kars_router.kube import connection_from

    return connection_from(kubeconfig, kube_context, namespace, os.environ)
