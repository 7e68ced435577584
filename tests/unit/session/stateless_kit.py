"""A session of the stateless era between a test and a scripted server, without sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import trio
from attrs import define, field

from kars_router.errors import HandshakeError
from kars_router.loss import classify
from kars_router.model import Failure, LossVerdict
from kars_router.session.caller import Caller, Reply, refusal
from kars_router.session.listener import ListenState
from kars_router.session.options import SessionOptions
from kars_router.session.pending import Pending
from kars_router.session.stateless import StatelessSession, open_stateless
from kars_router.telemetry import Metrics
from kars_router.testing import AsgiBridge, FaultPlan, Received
from kars_router.testing import Reply as HttpReply
from kars_router.testing.stateless_server import PROTOCOL, StatelessServer
from kars_router.transports.base import Connection, Deliver
from kars_router.transports.client import new_client
from kars_router.transports.streamable_http import StreamableHttp
from kars_router.wire.params import HeaderPlan

URL = "http://upstream.test/mcp"
CAPABLE = b'{"elicitation":{"form":{},"url":{}},"sampling":{},"roots":{}}'


@define(eq=False)
class Agent(Caller):
    """An agent that notes what it is told and asked, and answers by `answers`.

    Attributes:
        told: each notification, as (method, params).
        asked: each question, as (time, method, params).
        answers: a result by method; a missing one is refused.
        hold: waited for before each answer.
    """

    capabilities: bytes = CAPABLE
    told: list[tuple[str, Any]] = field(factory=list)
    asked: list[tuple[float, str, Any]] = field(factory=list)
    answers: dict[str, Any] = field(factory=dict)
    hold: float = 0.0
    taken_back: int = 0

    def notify(self, method: str, params: bytes) -> None:
        self.told.append((method, msgspec.json.decode(params)))

    async def ask(self, method: str, params: bytes) -> Reply:
        self.asked.append((trio.current_time(), method, msgspec.json.decode(params or b"{}")))
        try:
            await trio.sleep(self.hold)
        except trio.Cancelled:
            self.taken_back += 1
            raise
        if method not in self.answers:
            return refusal("not today")
        return Reply(result=msgspec.json.encode(self.answers[method]))


@define(eq=False)
class Rig:
    """A session, the server behind it, and what the session said on its own."""

    session: StatelessSession
    server: StatelessServer
    bridge: AsgiBridge
    metrics: Metrics
    notices: list[tuple[str, Any]] = field(factory=list)
    states: list[ListenState] = field(factory=list)

    def call(
        self, tool: str, /, agent: Caller | None = None, *, limit: float = 60.0, **arguments: Any
    ) -> Pending:
        """Starts a tool call."""
        return self.submit("tools/call", agent, limit=limit, name=tool, arguments=arguments)

    def submit(
        self, method: str, agent: Caller | None = None, *, limit: float = 60.0, **params: Any
    ) -> Pending:
        """Starts a request; `_meta` goes in as `meta`."""
        if "meta" in params:
            params["_meta"] = params.pop("meta")
        encoded = msgspec.json.encode(params) if params else b""
        pending = self.session.submit(method, encoded, time_limit=limit, caller=agent)
        if agent is not None:
            agent.pending = pending
        return pending

    async def result(self, pending: Pending) -> Any:
        """The result of a request that has to succeed."""
        await pending.wait()
        assert pending.reply is not None, pending.failure
        assert pending.reply.result is not None, pending.reply
        return msgspec.json.decode(pending.reply.result)

    async def text(self, tool: str, /, agent: Caller | None = None, **arguments: Any) -> str:
        """The text of a call that has to succeed."""
        result = await self.result(self.call(tool, agent, **arguments))
        text: str = result["content"][0]["text"]
        return text

    async def error(self, pending: Pending) -> Any:
        """The JSON-RPC error that a request has to end with."""
        await pending.wait()
        assert pending.reply is not None, pending.failure
        assert pending.reply.error is not None, pending.reply
        return msgspec.json.decode(pending.reply.error)

    async def failure(self, pending: Pending) -> Failure:
        """The failure that a request has to end with."""
        await pending.wait()
        assert pending.failure is not None, pending.reply
        return pending.failure

    async def settle(self) -> None:
        """Waits until the standing stream is open or known not to be."""
        await self.settle_within(60)

    async def settle_within(self, seconds: float) -> None:
        with trio.fail_after(seconds):
            await self.session.settled.wait()

    async def loss(self) -> Failure:
        """The failure by which the session is lost, soon."""
        with trio.fail_after(100):
            await self.session.ended.wait()
        assert self.session.loss_failure is not None
        return self.session.loss_failure

    def state(self) -> ListenState:
        """The state of the standing stream."""
        return self.session.listen_state

    @property
    def listens(self) -> list[Received]:
        return self.server.requests("subscriptions/listen")

    def dropped(self, kind: str) -> float:
        labels = {"server": "s", "kind": kind}
        value = self.metrics.registry.get_sample_value("kars_dropped_messages_total", labels)
        return value or 0.0


def meta(received: Received, name: str) -> Any:
    """A key of the protocol in the `_meta` of a request; None if it is not there."""
    return received.params["_meta"].get(PROTOCOL + name)


def judge(failure: Failure) -> LossVerdict:
    """The built-in classifier, as the router asks it."""
    return classify(failure) or LossVerdict(False, "no opinion")


def connector(transport: httpx.AsyncBaseTransport) -> Callable[[Deliver], Connection]:
    """Makes connections over a transport."""

    def connect(deliver: Deliver) -> Connection:
        client = new_client(transport)
        return StreamableHttp(client, URL, server="s", deliver=deliver, connect_timeout=5.0)

    return connect


def calls(request: httpx.Request) -> bool:
    """Whether an HTTP request is a tool call."""
    return bool(request.headers.get("mcp-method") == "tools/call")


@asynccontextmanager
async def open_rig(
    *,
    plans: Mapping[str, HeaderPlan] | None = None,
    relist: Callable[[], Awaitable[None]] | None = None,
    faults: FaultPlan | None = None,
    prepare: Callable[[StatelessServer], None] = lambda _: None,
    listening: bool = True,
    verdict: Callable[[Failure], LossVerdict] = judge,
    silence: float = 600.0,
    input_timeout: float = 600.0,
    **options: Any,
) -> AsyncIterator[Rig]:
    """A session with a `StatelessServer` with these options.

    On leaving it is checked that every response was closed.
    """
    async with trio.open_nursery() as nursery, StatelessServer.open(**options) as server:
        prepare(server)
        bridge = AsgiBridge(server.app, nursery, faults=faults)
        metrics = Metrics()
        notices: list[tuple[str, Any]] = []
        states: list[ListenState] = []

        def notify(method: str, params: bytes) -> None:
            notices.append((method, msgspec.json.decode(params or b"null")))

        async with open_stateless(
            SessionOptions(
                server="s", client_version="7", silence=silence, input_timeout=input_timeout
            ),
            connector(bridge),
            classify=verdict,
            metrics=metrics,
            notify=notify,
            on_listen=lambda _, new: states.append(new),
            plans=({} if plans is None else plans).get,
            relist=relist,
        ) as session:
            rig = Rig(session, server, bridge, metrics, notices, states)
            if listening:
                await rig.settle()
            yield rig
        assert bridge.open_responses == 0
        nursery.cancel_scope.cancel()


async def refused(**options: Any) -> Failure:
    """The failure of a session that cannot be opened."""
    try:
        async with open_rig(**options):
            raise AssertionError("a session was opened")
    except* HandshakeError as group:
        (error,) = group.exceptions
        while isinstance(error, BaseExceptionGroup):
            (error,) = error.exceptions
        assert isinstance(error, HandshakeError)
        failure = error.failure
    return failure


def error_reply(status: int, code: int, text: str = "no", data: Any = None) -> HttpReply:
    """A refusal that holds a JSON-RPC error."""
    error = {"code": code, "message": text, **({} if data is None else {"data": data})}
    return HttpReply.json({"jsonrpc": "2.0", "id": None, "error": error}, status=status)
