"""What a session may rely on, whatever the transport."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from http_kit import cancel_at
from structlog.testing import capture_logs
from unit.transports.transport_kit import CHANNELS, TRANSPORTS, Bench, OpenBench, until

from kars_router.errors import CallFailed
from kars_router.model import Failure, Phase, Sent
from kars_router.transports.base import Delivery, Position

SECONDS = 10


@pytest.fixture(params=list(TRANSPORTS))
def transport(request: pytest.FixtureRequest) -> OpenBench:
    return TRANSPORTS[request.param]


@pytest.fixture(params=list(CHANNELS))
def channel(request: pytest.FixtureRequest) -> OpenBench:
    return CHANNELS[request.param]


def result(ident: Any, value: Any = None) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": ident, "result": {} if value is None else value}


def note(method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, "params": params}


async def failure_of(bench: Bench, ident: int = 1, delivery: Delivery | None = None) -> Failure:
    with pytest.raises(CallFailed) as caught:
        await bench.call(ident, delivery)
    return caught.value.failure


async def test_a_request_its_answer_and_a_notification(transport: OpenBench) -> None:
    with trio.fail_after(SECONDS):
        async with transport() as bench, trio.open_nursery() as nursery:
            delivery = Delivery()
            nursery.start_soon(bench.call, 1, delivery)
            asked = await bench.peer.receive()
            assert (asked["id"], asked["method"]) == (1, "tools/call")
            await bench.peer.send(result(1, {"é": [1.50, "\u2028"]}))
            await bench.wait_taken(1)
            assert bench.results == [(b"1", '{"é":[1.5,"\u2028"]}'.encode())]
            await bench.answer(note("notifications/initialized"))
            assert (await bench.peer.receive())["method"] == "notifications/initialized"
            assert delivery.sent is Sent.YES


async def test_line_breaks_between_tokens_do_not_end_a_message(transport: OpenBench) -> None:
    with trio.fail_after(SECONDS):
        async with transport() as bench:
            await bench.connection.send(
                b'{\r\n  "jsonrpc": "2.0",\n  "method": "a\\nb"\n}', method="", delivery=Delivery()
            )
            await bench.answer(note("second"))
            assert (await bench.peer.receive())["method"] == "a\nb"
            assert (await bench.peer.receive())["method"] == "second"


@pytest.mark.parametrize("idents", [(1, 2, 3), ("1", 1, "a")])
async def test_answers_may_come_in_any_order(
    transport: OpenBench, idents: tuple[int | str, ...]
) -> None:
    ended: list[int | str] = []

    async def call(ident: int | str) -> None:
        await bench.call(ident)
        ended.append(ident)

    with trio.fail_after(SECONDS):
        async with transport() as bench, trio.open_nursery() as nursery:
            for ident in idents:
                nursery.start_soon(call, ident)
            for _ in idents:
                await bench.peer.receive()
            for count, ident in enumerate(reversed(idents), 1):
                await bench.peer.send(result(ident))
                await bench.wait_taken(count)
                await until(lambda n=count: len(ended) == n)  # type: ignore[misc]
    assert ended == list(reversed(idents))


async def test_the_server_may_ask_in_the_middle_of_a_call(transport: OpenBench) -> None:
    with trio.fail_after(SECONDS):
        async with transport() as bench, trio.open_nursery() as nursery:
            nursery.start_soon(bench.call, 1)
            await bench.peer.receive()
            await bench.peer.send({"jsonrpc": "2.0", "id": 0, "method": "roots/list"}, about=1)
            await bench.wait_taken(1)
            asked, cause = bench.taken[0]
            assert (asked.id, asked.method) == (b"0", "roots/list")
            assert cause == (b"1" if bench.connection.correlates else b"")
            # An answer of the router with the id of its own call is none to that call.
            await bench.answer(result(0, {"roots": []}))
            assert (await bench.peer.receive())["result"] == {"roots": []}
            assert bench.results == []
            await bench.peer.send(result(1))


async def test_a_request_of_the_server_is_no_answer_though_the_ids_are_equal(
    transport: OpenBench,
) -> None:
    ended = trio.Event()

    async def call() -> None:
        await bench.call(1)
        ended.set()

    with trio.fail_after(SECONDS):
        async with transport() as bench:
            bench.nursery.start_soon(call)
            await bench.peer.receive()
            await bench.peer.send({"jsonrpc": "2.0", "id": 1, "method": "ping"}, about=1)
            await bench.wait_taken(1)
            await bench.answer(result(1))
            await bench.peer.receive()
            assert not ended.is_set()
            await bench.peer.send(result(1, {"answer": True}))
            await ended.wait()
            assert bench.results == [(b"1", b'{"answer":true}')]


async def test_a_pong_does_not_wait_for_calls(transport: OpenBench) -> None:
    with trio.fail_after(SECONDS):
        async with transport() as bench, trio.open_nursery() as nursery:
            for ident in range(5):
                nursery.start_soon(bench.call, ident)
            for _ in range(5):
                await bench.peer.receive()
            await bench.peer.send({"jsonrpc": "2.0", "id": "p", "method": "ping"}, about=0)
            await bench.wait_taken(1)
            await bench.answer(result("p"))
            assert await bench.peer.receive() == result("p")
            await bench.peer.send(*(result(ident) for ident in range(5)))


async def test_notifications_keep_their_order(transport: OpenBench) -> None:
    with trio.fail_after(SECONDS):
        async with transport() as bench:
            await bench.listen()
            await bench.peer.send(*(note("n", i=i) for i in range(50)))
            await bench.wait_taken(50)
            assert [m.params for m, _ in bench.taken] == [b'{"i":%d}' % i for i in range(50)]
            assert {cause for _, cause in bench.taken} == {b""}


async def test_what_is_no_message_does_not_end_the_rest(transport: OpenBench) -> None:
    with trio.fail_after(SECONDS), capture_logs() as logs:
        async with transport() as bench, trio.open_nursery() as nursery:
            nursery.start_soon(bench.call, 1)
            await bench.peer.receive()
            for junk in (b"Server starting...", b'{"jsonrpc":"1.0","id":9}', b"[]", b'{"a":'):
                await bench.peer.send(junk, about=1)
            await bench.peer.send(result(1))
            await bench.wait_taken(1)
            assert [m.id for m, _ in bench.taken] == [b"1"]
    events = [line["event"] for line in logs if line["event"].startswith("malformed")]
    # A server may send nothing else: the first is shown, the rest counted.
    assert events == ["malformed_message", "malformed_messages"]
    assert next(line for line in logs if line["event"] == events[1])["count"] == 4


async def test_an_answer_that_is_no_message_fails_its_call(channel: OpenBench) -> None:
    with trio.fail_after(SECONDS):
        async with channel() as bench, trio.open_nursery() as nursery:
            nursery.start_soon(bench.peer.send, b'{"jsonrpc":"1.0","id":1,"result":{}}')
            failure = await failure_of(bench)
            assert (failure.code, failure.phase, failure.sent) == (
                "protocol",
                Phase.STREAM,
                Sent.YES,
            )


async def test_a_batch_is_taken_apart(transport: OpenBench) -> None:
    with trio.fail_after(SECONDS):
        async with transport() as bench:
            await bench.listen()
            await bench.peer.send(
                b'[{"jsonrpc":"2.0","method":"a"},{"jsonrpc":"2.0","method":"b"}]'
            )
            await bench.wait_taken(2)
            assert [m.method for m, _ in bench.taken] == ["a", "b"]


async def test_a_message_of_a_megabyte_goes_both_ways(transport: OpenBench) -> None:
    text = "x" * (1 << 20)
    with trio.fail_after(SECONDS):
        async with transport() as bench, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: bench.call(1, text=text))
            assert (await bench.peer.receive())["params"] == {"text": text}
            await bench.peer.send(result(1, {"text": text}))
            await bench.wait_taken(1)
            assert bench.results[0][1] == b'{"text":"%b"}' % text.encode()


async def test_a_message_beyond_the_limit_fails_its_call(transport: OpenBench) -> None:
    with trio.fail_after(SECONDS):
        async with transport(event_limit=1000) as bench, trio.open_nursery() as nursery:
            nursery.start_soon(bench.peer.send, result(1, {"text": "x" * 1000}))
            failure = await failure_of(bench)
            assert failure.code in ("too_large", "broken_stream", "channel_closed")
            assert failure.sent is Sent.YES
            assert "1000" in failure.detail
            assert bench.results == []


async def test_a_peer_that_vanishes_in_the_middle_of_a_call(transport: OpenBench) -> None:
    with trio.fail_after(SECONDS):
        async with transport() as bench, trio.open_nursery() as nursery:

            async def vanish() -> None:
                await bench.peer.receive()
                await bench.peer.vanish()

            nursery.start_soon(vanish)
            failure = await failure_of(bench)
            assert failure.sent is Sent.YES
            assert failure.method == "tools/call"
            code = "broken_stream" if bench.connection.correlates else "channel_closed"
            assert failure.code == code


async def test_the_end_of_a_channel_is_said_to_everyone(channel: OpenBench) -> None:
    failures: list[Failure] = []

    async def call(ident: int) -> None:
        failures.append(await failure_of(bench, ident))

    with trio.fail_after(SECONDS):
        async with channel() as bench:
            async with trio.open_nursery() as nursery:
                for ident in range(3):
                    nursery.start_soon(call, ident)
                for _ in range(3):
                    await bench.peer.receive()
                await bench.peer.vanish()
            assert [(f.code, f.phase, f.sent) for f in failures] == [
                ("channel_closed", Phase.AWAIT, Sent.YES)
            ] * 3
            # Whoever comes afterwards is told at once, and nothing of it has left.
            delivery = Delivery()
            later = await failure_of(bench, 9, delivery)
            assert (later.code, later.phase, later.sent) == (
                "channel_closed",
                Phase.SEND,
                Sent.NO,
            )
            assert delivery.sent is Sent.NO
            opened: list[bool] = []
            with pytest.raises(CallFailed) as caught:
                await bench.connection.listen(Position(), lambda: opened.append(True))
            listened = caught.value.failure
            assert (listened.code, listened.phase) == ("channel_closed", Phase.LISTEN)
            assert opened == []
            await bench.connection.close()


async def test_listening_ends_with_the_channel_and_says_when_something_was_heard(
    channel: OpenBench,
) -> None:
    position = Position()
    opened = trio.Event()

    async def listen() -> None:
        with pytest.raises(CallFailed) as caught:
            await bench.connection.listen(position, opened.set)
        assert (caught.value.failure.code, caught.value.failure.phase) == (
            "channel_closed",
            Phase.LISTEN,
        )

    with trio.fail_after(SECONDS):
        async with channel() as bench, trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await opened.wait()
            since = position.heard
            assert since > 0
            await bench.peer.send(note("n"))
            await bench.wait_taken(1)
            assert position.heard > since
            await bench.peer.vanish()


async def test_close_ends_the_calls_and_leaves_nothing(channel: OpenBench) -> None:
    failures: list[Failure] = []

    async def call() -> None:
        failures.append(await failure_of(bench))

    with trio.fail_after(SECONDS):
        async with channel() as bench:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                await bench.peer.receive()
                started = trio.current_time()
                await bench.connection.close()
                assert trio.current_time() - started < 0.9
            assert [(f.code, f.sent) for f in failures] == [("channel_closed", Sent.YES)]
            assert bench.peer.is_gone()
            await bench.connection.close()


async def test_the_end_of_the_nursery_is_the_end_of_everything(transport: OpenBench) -> None:
    with trio.fail_after(SECONDS):
        async with transport() as bench:
            await bench.listen()
            bench.nursery.start_soon(bench.call, 1)
            await bench.peer.receive()
            bench.nursery.cancel_scope.cancel()
        assert bench.peer.is_gone()


async def test_a_connection_that_was_never_opened_can_be_closed(transport: OpenBench) -> None:
    with trio.fail_after(SECONDS):
        async with transport(opened=False) as bench:
            await bench.connection.close()


async def test_a_call_cancelled_anywhere_does_not_harm_the_next(transport: OpenBench) -> None:
    """Whatever has left of a message has left whole."""
    seen: list[dict[str, Any]] = []

    async def read() -> None:
        while True:
            seen.append(await bench.peer.receive())

    text = "x" * 200_000
    with trio.fail_after(6 * SECONDS):
        async with transport() as bench, trio.open_nursery() as nursery:
            nursery.start_soon(read)
            deliveries: list[Delivery] = []
            for step in range(1, 8):
                deliveries.append(delivery := Delivery())

                async def call(step: int = step, delivery: Delivery = delivery) -> None:
                    await bench.call(step, delivery, text=text)

                # The last of these wait for an answer that never comes.
                with trio.move_on_after(0.2):
                    await cancel_at(step, call)
            nursery.start_soon(bench.call, "last")
            await until(lambda: bool(seen) and seen[-1]["id"] == "last")
            await bench.peer.send(result("last"))
            await bench.wait_taken(1)
            nursery.cancel_scope.cancel()
    whole = {message["id"] for message in seen if message.get("params") == {"text": text}}
    assert whole
    for step, delivery in enumerate(deliveries, 1):
        assert (delivery.sent is Sent.YES) == (step in whole), (step, delivery)


async def test_a_session_cancelled_anywhere_leaves_nothing(transport: OpenBench) -> None:
    async def session() -> None:
        async with transport(opened=False) as bench:
            benches.append(bench)
            async with trio.open_nursery() as nursery:
                await bench.connection.open(nursery)

                async def answer() -> None:
                    asked = await bench.peer.receive()
                    await bench.peer.send(result(asked["id"]))

                bench.nursery.start_soon(answer)
                await bench.call(1)
                await bench.connection.close()

    benches: list[Bench] = []
    with trio.fail_after(12 * SECONDS):
        step = 1
        while await cancel_at(step, session):
            step += 1
            assert benches == [] or benches.pop().peer.is_gone()
    assert step > 5
    assert benches.pop().peer.is_gone()
