"""What is different with a server of the stateless era (MCP 2026-07-28), and further headers."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock
from unit.transports.streamable_kit import ANSWER, CALL, STREAM, Trickle, Wire, open_wire, send_over

from kars_router.testing import Fault, FaultPlan, Received, Reply
from kars_router.transports.base import Delivery
from kars_router.wire import jsonrpc

STATELESS = "2026-07-28"
LISTEN = jsonrpc.request(b'"l"', "subscriptions/listen", b'{"notifications":{}}')


async def test_opening_waits_for_nothing_and_asks_for_nothing() -> None:
    async with open_wire(Reply.json(ANSWER)) as wire, trio.open_nursery() as nursery:
        with trio.testing.assert_checkpoints():
            await wire.connection.open(nursery)
        assert wire.seen == []
        assert not nursery.child_tasks
        assert wire.connection.correlates


async def test_no_session_is_taken_sent_or_ended() -> None:
    reply = Reply.json(ANSWER, headers={"mcp-session-id": "sid"})
    async with open_wire(reply) as wire:
        wire.connection.revision = STATELESS
        for method in ("server/discover", "initialize", "tools/call"):
            await wire.send(CALL, method)
        assert wire.connection.session_id is None
        wire.connection.session_id = "left over from a handshake"
        await wire.send()
        await wire.connection.close()
        assert [(r.http_method, r.session) for r in wire.seen] == [("POST", None)] * 4
        assert [r.headers["mcp-protocol-version"] for r in wire.seen] == [STATELESS] * 4


async def test_a_session_id_that_nobody_takes_may_be_anything() -> None:
    reply = Reply.json(ANSWER, headers={"mcp-session-id": "not visible ASCII"})
    async with open_wire(reply) as wire:
        wire.connection.revision = STATELESS
        await wire.send(CALL, "initialize")
        assert wire.answers == [b"{}"]


async def test_a_refusal_is_no_word_on_a_session_that_was_not_sent() -> None:
    async with open_wire(Reply.text(404)) as wire:
        wire.connection.session_id, wire.connection.revision = "sid", STATELESS
        assert not (await wire.refused()).failure.had_session
        wire.connection.revision = None
        assert (await wire.refused()).failure.had_session


async def test_after_a_probe_that_failed_the_handshake_finds_all_as_it_was() -> None:
    reply = Reply.json(ANSWER, headers={"mcp-session-id": "sid"})
    async with open_wire(reply) as wire:
        wire.connection.revision = STATELESS
        await wire.send(CALL, "server/discover")
        wire.connection.revision = None
        await wire.send(CALL, "initialize")
        await wire.send()
        versions = [r.headers.get("mcp-protocol-version") for r in wire.seen]
        assert versions == [STATELESS, None, None]
        assert [r.session for r in wire.seen] == [None, None, "sid"]


async def test_further_headers_are_those_of_one_post() -> None:
    static = {"x-tenant": "a", "mcp-name": "b"}
    async with open_wire(Reply.json(ANSWER), headers=static) as wire:
        await wire.send(headers={"Mcp-Method": "tools/call", "Mcp-Name": "t", "Mcp-Param-A": "1"})
        await wire.send()
        first, second = (received.headers for received in wire.seen)
        assert first["mcp-method"] == "tools/call"
        assert first["mcp-name"] == "t"  # once, although the configuration spells it otherwise
        assert first["mcp-param-a"] == "1"
        assert first["x-tenant"] == second["x-tenant"] == "a"
        assert second["mcp-name"] == "b"
        assert not {"mcp-method", "mcp-param-a"} & set(second)


async def test_further_headers_are_sent_again_with_a_redirect() -> None:
    def script(received: Received) -> Reply:
        if received.path == "/mcp":
            return Reply.text(307, headers={"location": "/other"})
        return Reply.json(ANSWER)

    async with open_wire(script) as wire:
        await wire.send(headers={"Mcp-Name": "t"})
        assert [received.headers["mcp-name"] for received in wire.seen] == ["t", "t"]


def listening(wire: Wire, opened: list[float]) -> Delivery:
    wire.delivery = Delivery(on_open=lambda: opened.append(trio.current_time()))
    return wire.delivery


async def test_a_stream_that_stays_open_is_read_until_the_server_ends_it(
    autojump_clock: MockClock,
) -> None:
    acknowledged = {"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged"}
    over = trio.Event()
    opened: list[float] = []

    async def listen(wire: Wire) -> None:
        await wire.send(LISTEN, "subscriptions/listen", b'"l"')
        over.set()

    async with open_wire(Reply.events(acknowledged, seconds=2.0, ending="hang")) as wire:
        wire.connection.revision = STATELESS
        start = trio.current_time()
        delivery = listening(wire, opened)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, wire)
            await trio.sleep(1.0)
            assert (opened, delivery.heard) == ([], 0.0)
            await trio.sleep(100.0)
            assert [time - start for time in opened] == [pytest.approx(2.0)]
            assert delivery.heard - start == pytest.approx(2.0)
            assert [message.method for message in wire.taken] == [acknowledged["method"]]
            assert wire.causes == [b'"l"']
            assert not over.is_set()
            nursery.cancel_scope.cancel()

    ended = {"jsonrpc": "2.0", "id": "l", "result": {}}
    async with open_wire(Reply.events(acknowledged, ended)) as wire:
        wire.connection.revision = STATELESS
        await listen(wire)
        assert over.is_set()
        assert wire.answers == [None, b"{}"]


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        (Reply(headers=STREAM, body=b": keepalive\n\n" * 3), 39),  # all that some ever say
        (Reply.json(ANSWER), 36),
        (Reply.text(202), 0),
    ],
)
async def test_every_byte_is_heard(autojump_clock: MockClock, reply: Reply, seconds: int) -> None:
    delivery = Delivery()
    start = trio.current_time()
    await send_over(Trickle(reply, 1, seconds=1.0), delivery)
    assert delivery.heard - start == pytest.approx(seconds)


async def test_the_head_is_heard_before_any_byte_of_the_body(autojump_clock: MockClock) -> None:
    async with open_wire(Reply.events(seconds=2.0, ending="hang")) as wire:
        start = trio.current_time()
        with trio.move_on_after(10):
            await wire.send()
        assert wire.delivery.heard - start == pytest.approx(2.0)


@pytest.mark.parametrize("status", [200, 202, 204])
async def test_whatever_is_no_refusal_opens(status: int) -> None:
    opened: list[float] = []
    async with open_wire(Reply.text(status)) as wire:
        listening(wire, opened)
        await wire.send()
        assert len(opened) == 1


@pytest.mark.parametrize("status", [307, 400, 401, 404, 405, 500])
async def test_a_refusal_opens_nothing(status: int) -> None:
    opened: list[float] = []
    async with open_wire(Reply.text(status)) as wire:
        delivery = listening(wire, opened)
        await wire.refused()
        assert (opened, delivery.heard) == ([], 0.0)


async def test_what_does_not_arrive_opens_nothing() -> None:
    opened: list[float] = []
    async with open_wire(Reply.json(ANSWER), faults=FaultPlan.nth(1, Fault.drop())) as wire:
        listening(wire, opened)
        await wire.refused()
        assert opened == []
