"""Which era a server is of: what each real peer answers to a probe, and what is made of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
from attrs import define, field
from trio.testing import MockClock
from unit.session.stateless_kit import connector, judge

from kars_router.config.schema import Era
from kars_router.errors import HandshakeError
from kars_router.model import Failure, LossVerdict, Phase
from kars_router.session.base import Session
from kars_router.session.eras import OTHER_REVISION, Order, Verdict, open_by_era, speaks_handshake
from kars_router.session.options import SessionOptions
from kars_router.session.stateless import open_stateless
from kars_router.session.upstream import open_session
from kars_router.telemetry import Metrics
from kars_router.testing import (
    AsgiBridge,
    Fault,
    FaultPlan,
    HeartbeatServer,
    Received,
    Reply,
)
from kars_router.testing.stateless_server import StatelessServer

DISCOVER = "server/discover"
INITIALIZE = "initialize"
DAY = 86_400.0


def rpc(status: int, code: int, text: str = "no", *, ident: Any = None, data: Any = None) -> Reply:
    error = {"code": code, "message": text, **({} if data is None else {"data": data})}
    return Reply.json({"jsonrpc": "2.0", "id": ident, "error": error}, status=status)


def html(status: int) -> Reply:
    return Reply.text(status, "<!DOCTYPE html><pre>Cannot POST</pre>")


@define(eq=False)
class Peer:
    """A server that can be opened in either era, and a record of how it was tried."""

    bridge: AsgiBridge
    server: HeartbeatServer | StatelessServer
    verdict: Verdict = field(factory=lambda: Verdict(None))
    order: Order = Order.STATELESS_FIRST
    metrics: Metrics = field(factory=Metrics)

    def open(self) -> AbstractAsyncContextManager[Session]:
        common: dict[str, Any] = {
            "classify": judge,
            "metrics": self.metrics,
            "notify": lambda *_: None,
            "on_listen": lambda *_: None,
        }
        options, connect = SessionOptions(server="s"), connector(self.bridge)
        return open_by_era(
            self.verdict,
            handshake=lambda: open_session(options, connect, **common),
            stateless=lambda: open_stateless(options, connect, plans=lambda _: None, **common),
            order=self.order,
        )

    async def era(self) -> Era:
        """The era in which a session is opened."""
        async with self.open() as session:
            return Era.HANDSHAKE if session.stateful else Era.STATELESS

    async def refusal(self) -> Failure:
        """Why no session can be opened."""
        try:
            async with self.open():
                raise AssertionError("a session was opened")
        except HandshakeError as error:
            return error.failure

    @property
    def tried(self) -> list[str]:
        """The first message of each attempt, in order."""
        first = (DISCOVER, INITIALIZE)
        return [r.method for r in self.server.log if r.method in first]


@asynccontextmanager
async def handshake_peer(
    script: Callable[[Received], Reply | None] | None = None, **options: Any
) -> AsyncIterator[Peer]:
    """A server of the handshake era, some of whose answers are scripted."""
    async with (
        trio.open_nursery() as nursery,
        HeartbeatServer.open(script=script, ping_interval=None) as server,
    ):
        yield Peer(AsgiBridge(server.app, nursery), server, **options)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def stateless_peer(
    script: Callable[[Received], Reply | None] | None = None,
    *,
    faults: FaultPlan | None = None,
    **options: Any,
) -> AsyncIterator[Peer]:
    """A server of the stateless era, some of whose answers are scripted."""
    async with trio.open_nursery() as nursery, StatelessServer.open(script=script) as server:
        yield Peer(AsgiBridge(server.app, nursery, faults=faults), server, **options)
        nursery.cancel_scope.cancel()


def known(peer: Peer) -> Era | None:
    return peer.verdict.current


def to_probe(reply: Reply) -> Callable[[Received], Reply | None]:
    return lambda received: reply if received.method == DISCOVER else None


def to_initialize(reply: Reply) -> Callable[[Received], Reply | None]:
    return lambda received: reply if received.method == INITIALIZE else None


# What was seen of each peer's answer to a probe.
PROBE_MATRIX = {
    "server-everything": rpc(400, -32000, "Bad Request: Server not initialized"),
    "mcp 1.30": rpc(400, -32600, "Bad Request: Missing session ID", ident="server-error"),
    "playwright 0.0.83": rpc(400, -32000, "Bad Request: No valid session ID provided"),
    "HTTP+SSE, no route": html(404),
    "HTTP+SSE, GET only": Reply.text(405, "Method Not Allowed"),
    "HTTP+SSE, empty": Reply.text(405),
    "typescript 1, stateless": rpc(200, -32601, "Method not found", ident=0),
    "a gateway": rpc(404, -32601, "Method not found"),
    "python 1, strict version": rpc(400, -32600, "Bad Request: Unsupported protocol version"),
    "no body": Reply.text(400),
    "JSON that is none of ours": Reply.json({"error": "bad request"}, status=400),
    "only old revisions": Reply.json(
        {"jsonrpc": "2.0", "id": 0, "result": {"supportedVersions": ["2025-11-25"]}}
    ),
    "dual, but not for us": rpc(400, -32022, data={"supported": ["2027-01-01", "2025-06-18"]}),
}


@pytest.mark.parametrize("reply", PROBE_MATRIX.values(), ids=PROBE_MATRIX)
async def test_an_answer_that_proves_the_handshake_era(
    autojump_clock: MockClock, reply: Reply
) -> None:
    async with handshake_peer(to_probe(reply)) as peer:
        assert await peer.era() is Era.HANDSHAKE
        assert peer.verdict.current is Era.HANDSHAKE
        assert peer.tried == [DISCOVER, INITIALIZE]


async def test_a_real_server_of_the_handshake_era(autojump_clock: MockClock) -> None:
    async with handshake_peer() as peer:
        assert await peer.era() is Era.HANDSHAKE


async def test_a_server_of_the_stateless_era(autojump_clock: MockClock) -> None:
    # mcp 2.3.0, fastmcp 4.1.0 and the TypeScript server 2.4.0 answer alike: 200 and a result.
    async with stateless_peer() as peer:
        assert await peer.era() is Era.STATELESS
        assert peer.verdict.current is Era.STATELESS
        assert peer.tried == [DISCOVER]


# Never evidence


@pytest.mark.parametrize(
    "reply",
    [
        *(Reply.text(status) for status in (401, 403, 408, 429, 500, 502, 503)),
        *(rpc(status, -32000) for status in (401, 403, 408, 429, 500, 503)),
        rpc(400, -32020),
        rpc(400, -32021),
        rpc(400, -32022, data={"supported": ["2027-01-01"]}),
        rpc(400, -32022),
        Reply.hang(),
        Reply.cut(),
        Reply.text(200, "<html>"),
        Reply.text(302),
        Reply.events(),
    ],
    ids=lambda reply: f"{reply.status}-{reply.body[:60].decode()}",
)
async def test_what_says_nothing_of_the_server_is_no_evidence(
    autojump_clock: MockClock, reply: Reply
) -> None:
    async with handshake_peer(to_probe(reply)) as peer:
        await peer.refusal()
        assert peer.tried == [DISCOVER] * len(peer.tried)
        assert peer.verdict.current is None
        peer.server.script = None
        assert await peer.era() is Era.HANDSHAKE
        peer.server.script = to_initialize(reply)
        await peer.refusal()
        assert peer.verdict.current in (None, Era.HANDSHAKE)


async def test_a_server_that_cannot_be_reached_is_of_no_known_era(
    autojump_clock: MockClock,
) -> None:
    faults = FaultPlan({1: Fault.connect(), 3: Fault.connect(httpx.ConnectTimeout)})
    async with stateless_peer(faults=faults) as peer:
        assert (await peer.refusal()).phase is Phase.CONNECT
        assert peer.verdict.current is None
        assert await peer.era() is Era.STATELESS
        assert peer.verdict.current is Era.STATELESS


@pytest.mark.parametrize("status", [401, 403, 429, 503])
async def test_a_known_era_survives_what_is_no_evidence(
    autojump_clock: MockClock, status: int
) -> None:
    async with stateless_peer() as peer:
        await peer.era()
        peer.server.script = lambda _: rpc(status, -32600)
        await peer.refusal()
        assert peer.verdict.current is Era.STATELESS
    async with handshake_peer() as other:
        await other.era()
        other.server.script = lambda _: rpc(status, -32022)
        await other.refusal()
        assert other.verdict.current is Era.HANDSHAKE


# The fallback and its own failures


async def test_a_handshake_that_is_refused_for_its_revision_is_followed_by_one_more_probe(
    autojump_clock: MockClock,
) -> None:
    probes = 0

    def script(received: Received) -> Reply | None:
        nonlocal probes
        if received.method == DISCOVER:
            probes += 1
            return html(404) if probes == 1 else None
        return None

    async with stateless_peer(script) as peer:
        assert await peer.era() is Era.STATELESS
        assert peer.tried == [DISCOVER, INITIALIZE, DISCOVER]


async def test_a_server_that_refuses_everything_is_not_asked_for_ever(
    autojump_clock: MockClock,
) -> None:
    def script(received: Received) -> Reply | None:
        return html(404) if received.method == DISCOVER else rpc(400, -32022)

    async with stateless_peer(script) as peer:
        await peer.refusal()
        assert peer.tried == [DISCOVER, INITIALIZE, DISCOVER]
        assert peer.verdict.current is None


async def test_a_handshake_that_fails_otherwise_is_the_end_of_it(
    autojump_clock: MockClock,
) -> None:
    def script(received: Received) -> Reply | None:
        return html(404)

    async with handshake_peer(script) as peer:
        assert (await peer.refusal()).method == INITIALIZE
        assert peer.tried == [DISCOVER, INITIALIZE]
        assert peer.verdict.current is None


# What is remembered


async def test_a_known_era_is_not_asked_for_again_until_its_time_is_over(
    autojump_clock: MockClock,
) -> None:
    async with handshake_peer() as peer:
        await peer.era()
        await trio.sleep(DAY / 2)
        await peer.era()
        assert peer.tried == [DISCOVER, INITIALIZE, INITIALIZE]
        await trio.sleep(DAY / 2)
        assert peer.verdict.current is None
        await peer.era()
        assert peer.tried == [DISCOVER, INITIALIZE, INITIALIZE, DISCOVER, INITIALIZE]


async def test_a_server_that_was_upgraded_is_noticed_when_the_handshake_fails(
    autojump_clock: MockClock,
) -> None:
    async with stateless_peer() as peer:
        peer.verdict.learn(Era.HANDSHAKE)
        assert await peer.era() is Era.STATELESS
        assert peer.verdict.current is Era.STATELESS
        assert peer.tried == [INITIALIZE, DISCOVER]


async def test_a_server_that_was_downgraded_is_noticed_when_the_probe_fails(
    autojump_clock: MockClock,
) -> None:
    async with handshake_peer() as peer:
        peer.verdict.learn(Era.STATELESS)
        assert await peer.era() is Era.HANDSHAKE
        assert peer.verdict.current is Era.HANDSHAKE


async def test_what_has_proved_wrong_is_forgotten_even_if_nothing_else_works(
    autojump_clock: MockClock,
) -> None:
    def script(received: Received) -> Reply:
        return html(404) if received.method == DISCOVER else Reply.text(503)

    async with handshake_peer(script) as peer:
        peer.verdict.learn(Era.STATELESS)
        await peer.refusal()
        assert peer.verdict.current is None


async def test_a_loss_for_another_revision_has_the_server_asked_again(
    autojump_clock: MockClock,
) -> None:
    async with stateless_peer() as peer:
        async with peer.open() as session:
            failure = Failure(server="s", phase=Phase.AWAIT, code=OTHER_REVISION)
            session.lose(LossVerdict(True, "other"), failure)
        assert known(peer) is None
        async with peer.open() as session:
            failure = Failure(server="s", phase=Phase.AWAIT, code="connect")
            session.lose(LossVerdict(True, "other"), failure)
        assert known(peer) is Era.STATELESS


async def test_an_error_in_the_session_is_not_taken_for_one_of_opening_it(
    autojump_clock: MockClock,
) -> None:
    failure = Failure(server="s", phase=Phase.AWAIT, status=404, code="http_status")
    async with stateless_peer() as peer:
        with pytest.raises(HandshakeError) as caught:
            async with peer.open():
                raise HandshakeError(failure)
        assert caught.value.failure is failure
        assert peer.tried == [DISCOVER]


# What the configuration says


@pytest.mark.parametrize("pinned", [Era.HANDSHAKE, Era.STATELESS])
async def test_a_pinned_era_is_not_doubted(autojump_clock: MockClock, pinned: Era) -> None:
    other = stateless_peer if pinned is Era.HANDSHAKE else handshake_peer
    same = handshake_peer if pinned is Era.HANDSHAKE else stateless_peer
    async with other(verdict=Verdict(pinned)) as peer:
        await peer.refusal()
        assert len(peer.tried) == 1
        peer.verdict.forget()
        assert peer.verdict.current is pinned
    async with same(verdict=Verdict(pinned)) as peer:
        assert await peer.era() is pinned
        assert len(peer.tried) == 1


# Where the server may not survive a probe


async def test_over_a_channel_the_handshake_comes_first(autojump_clock: MockClock) -> None:
    async with handshake_peer(order=Order.HANDSHAKE_FIRST) as peer:
        assert await peer.era() is Era.HANDSHAKE
        assert peer.tried == [INITIALIZE]


@pytest.mark.parametrize("code", [-32601, -32022])
async def test_over_a_channel_a_refused_handshake_leads_to_a_probe(
    autojump_clock: MockClock, code: int
) -> None:
    script = to_initialize(rpc(200, code, ident=0))
    async with stateless_peer(script, order=Order.HANDSHAKE_FIRST) as peer:
        assert await peer.era() is Era.STATELESS
        assert peer.tried == [INITIALIZE, DISCOVER]
        await peer.era()
        assert peer.tried == [INITIALIZE, DISCOVER, DISCOVER]


@pytest.mark.parametrize("code", [-32600, -32000, -32603])
async def test_another_refusal_of_the_handshake_does_not(
    autojump_clock: MockClock, code: int
) -> None:
    script = to_initialize(rpc(200, code, ident=0))
    async with stateless_peer(script, order=Order.HANDSHAKE_FIRST) as peer:
        await peer.refusal()
        assert peer.tried == [INITIALIZE]


async def test_where_only_the_handshake_era_exists_nothing_else_is_tried(
    autojump_clock: MockClock,
) -> None:
    async with stateless_peer(order=Order.HANDSHAKE_ONLY) as peer:
        await peer.refusal()
        assert peer.tried == [INITIALIZE]
    async with handshake_peer(order=Order.HANDSHAKE_ONLY) as peer:
        assert await peer.era() is Era.HANDSHAKE


def test_an_error_whose_data_are_odd_names_no_revision() -> None:
    for error in (b"", b"5", b"[]", b'{"data":5}', b'{"data":{"supported":5}}', b'{"data":[]}'):
        failure = Failure(
            server="s", phase=Phase.AWAIT, status=400, rpc_code=-32022, rpc_error=error
        )
        assert not speaks_handshake(failure)
