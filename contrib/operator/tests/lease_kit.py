"""Candidates for one Lease, their lines to a fake cluster, and who sees two leaders."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import httpx
import trio
from attrs import define, field
from kars_operator.lease import Election, Term

from kars_router.kube import open_kube
from kars_router.kube.resources import LEASES
from kars_router.testing.kube import FakeCluster

NAME = "kars-operator"
SPACE = "default"
# As close as may be: there is no room for a moment that is counted wrongly.
CLOSE = Term(duration=11, renewal=10.5, retry=2)


@define
class Watchman:
    """Knows who leads at every moment, and does not let there be two."""

    leading: set[str] = field(factory=set)
    began: dict[str, float] = field(factory=dict)
    terms: list[tuple[str, float, float]] = field(factory=list)

    @asynccontextmanager
    async def leads(self, who: str) -> AsyncIterator[None]:
        assert not self.leading, f"{who} and {self.leading} lead at the same time"
        self.leading.add(who)
        self.began[who] = trio.current_time()
        try:
            yield
        finally:
            self.leading.remove(who)
            self.terms.append((who, self.began[who], trio.current_time()))

    def work(self, who: str, seconds: float = float("inf")) -> Callable[[], Awaitable[None]]:
        async def work() -> None:
            async with self.leads(who):
                await trio.sleep(seconds)

        return work


class Line(httpx.AsyncBaseTransport):
    """A candidate's own line to the cluster, which can be cut."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self.cut = False
        self.deaf = False  # requests arrive, answers do not
        self.held = 0.0  # requests arrive so much later
        self.late = 0.0  # answers do

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.cut:
            await trio.sleep_forever()
        if self.held:
            await trio.sleep(self.held)
        response = await self.cluster.handle_async_request(request)
        await trio.sleep(float("inf") if self.deaf else self.late)
        return response


@define
class Candidate:
    name: str
    election: Election
    line: Line
    scope: trio.CancelScope


@define
class Rig:
    cluster: FakeCluster
    watchman: Watchman
    nursery: trio.Nursery
    chance: Random

    async def stand(
        self,
        name: str,
        work: Callable[[], Awaitable[None]] | None = None,
        *,
        term: Term | None = None,
        clock_error: float = 0.0,
        late: float = 0.0,
    ) -> Candidate:
        """A candidate that starts now."""
        line, scope = Line(self.cluster), trio.CancelScope()
        line.late = late
        ready = trio.Event()
        made: list[Election] = []

        async def run() -> None:
            with scope:
                async with open_kube(self.cluster.connection(), transport=line) as kube:
                    made.append(
                        Election(
                            kube,
                            NAME,
                            SPACE,
                            identity=name,
                            term=term,
                            random=self.chance.random,
                            now=lambda: datetime.now(UTC) + timedelta(seconds=clock_error),
                        )
                    )
                    ready.set()
                    await made[0].run(work or self.watchman.work(name))

        self.nursery.start_soon(run)
        await ready.wait()
        return Candidate(name, made[0], line, scope)

    def lease(self) -> dict[str, Any]:
        found = self.cluster.find(LEASES, NAME, SPACE)
        assert found is not None
        spec: dict[str, Any] = found["spec"]
        return spec


@asynccontextmanager
async def open_rig(seed: int = 0) -> AsyncIterator[Rig]:
    async with trio.open_nursery() as nursery:
        yield Rig(FakeCluster(), Watchman(), nursery, Random(seed))
        nursery.cancel_scope.cancel()
