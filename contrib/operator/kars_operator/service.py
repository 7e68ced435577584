"""The running operator: who owns which task, and how it ends.

`run` nests: health outermost, so that it answers until the end; the election inside it; the
controller innermost, for as long as this operator leads.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from typing import Final

import trio
from attrs import field, frozen

from kars_operator import health
from kars_operator.controller import Controller
from kars_operator.lease import Election
from kars_operator.metrics import Metrics
from kars_operator.settings import Settings
from kars_operator.workqueue import Effort
from kars_router.kube import Connection, open_kube
from kars_router.plugins import Plugins
from kars_router.telemetry import log

LEASE: Final = "kars-operator"
# Requests at once: each object in work makes one at a time.
_SPARE_CONNECTIONS: Final = 8


@frozen(kw_only=True)
class Options:
    """How the operator runs, beside how it makes sandboxes.

    Attributes:
        settings: how it makes them.
        namespace: the only namespace that it looks at; None for all.
        health: where it answers; None for nowhere.
        election: whether one of several operators is chosen to work.
        workers: objects that are worked on at once.
        blocked: plugins that are not loaded.
    """

    settings: Settings = field(factory=Settings)
    namespace: str | None = None
    health: str | None = None
    election: bool = True
    workers: int = 8
    blocked: tuple[str, ...] = ()


async def run(
    connection: Connection,
    options: Options,
    stop: trio.Event,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Runs until `stop` is set and what is being worked on has ended.

    Args:
        connection: the API server.
        options: how.
        stop: ends it in order.
        task_status: told the URL of the health address once it answers; "" without one.

    Raises:
        UserError: the address cannot be used, or a certificate.
    """
    metrics = Metrics()
    # In a pod the name of the host is the pod's; a restarted container has it again.
    identity = f"{socket.gethostname()}_{secrets.token_hex(4)}"
    connections = options.workers + _SPARE_CONNECTIONS
    async with open_kube(connection, name="kars-operator", connections=connections) as kube:
        election = Election(
            kube,
            LEASE,
            options.settings.operator_namespace,
            identity=identity,
            changed=lambda leading: log().info("leading" if leading else "not_leading"),
        )

        async def work() -> None:
            controller = Controller(
                kube,
                options.settings,
                Plugins.load(blocked=options.blocked),
                instance=identity,
                namespace=options.namespace,
                effort=Effort(workers=options.workers),
                finished=metrics.finished,
            )
            metrics.controller = controller
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_stop_when, stop, controller.stop)
                    await controller.run()
                    nursery.cancel_scope.cancel()
            finally:
                metrics.controller = None

        async with trio.open_nursery() as nursery:
            url = ""
            if options.health is not None:
                app = health.application(
                    waiting=lambda: _waiting(metrics, election),
                    metrics=metrics.render,
                )
                url = await nursery.start(health.run, app, options.health)
            task_status.started(url)
            log().info("operator_started", identity=identity, health=url, server=connection.server)
            if options.election:
                metrics.election = election
                async with trio.open_nursery() as candidate:

                    async def term() -> None:
                        try:
                            await work()
                        finally:
                            # Also where the lease was lost meanwhile: it is not waited for again.
                            if stop.is_set():
                                candidate.cancel_scope.cancel()

                    candidate.start_soon(_stop_when, stop, lambda: _resign(election, candidate))
                    await election.run(term)
                    candidate.cancel_scope.cancel()
            else:
                await work()
            nursery.cancel_scope.cancel()
    log().info("operator_stopped")


def _resign(election: Election, candidate: trio.Nursery) -> None:
    # Who leads ends by itself, when its work has ended; who waits for its turn would wait on.
    if not election.leading:
        candidate.cancel_scope.cancel()


async def _stop_when(stop: trio.Event, do: Callable[[], None]) -> None:
    await stop.wait()
    do()


def _waiting(metrics: Metrics, election: Election) -> str:
    """What the operator still waits for; one that does not lead is as ready as it can be."""
    controller = metrics.controller
    if controller is None:
        led = metrics.election is not None and not election.leading
        return "" if led and election.holder else "the lease has not been read yet\n"
    behind = [
        f"{kind.plural}: {each.problem or 'not listed yet'}"
        for kind, each in controller.known.reflectors.items()
        if not each.synced
    ]
    return "; ".join(behind) + "\n" if behind else ""
