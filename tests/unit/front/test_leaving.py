"""Agents that leave before their answer has come: what depended on its arrival is taken back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from unit.front.handshake_kit import open_kit
from unit.front.lean_kit import BIG, Serve, read_some, request, take_body

from kars_router.config.addresses import Address
from kars_router.config.schema import Listener
from kars_router.front import listen
from kars_router.front.exchange import Exchange, Receive, Scope, Send
from kars_router.front.streams import Outlet, answer


@asynccontextmanager
async def serving(app: Serve, listener: Listener) -> AsyncIterator[int]:
    """The port where this is served by a real listener."""

    async def serve(*, task_status: trio.TaskStatus[str]) -> None:  # noqa: ASYNC128
        await listen.serve(
            app,
            listen.bind(Address("127.0.0.1", 0)),
            trio.sleep_forever,
            grace=1,
            listener=listener,
            task_status=task_status,
        )

    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve)
        yield int(url.rpartition(":")[2])
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("listener", "behind"),
    [(Listener.HYPERCORN, 0), (Listener.LEAN, 0), (Listener.LEAN, 1)],
)
async def test_who_has_left_is_never_taken_for_there(listener: Listener, behind: int) -> None:
    """Also if another request lies in between, where hypercorn looks no further.

    In which order tasks run is a matter of chance, hence the repetitions.
    """
    seen: list[bool] = []
    go_on = trio.Event()
    done = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        await exchange.body(100)
        if scope["path"] == "/":
            await go_on.wait()
            seen.append(await exchange.has_left())
            done.set()
        await exchange.respond(200)

    async with serving(app, listener) as port:
        for _ in range(20):
            go_on, done = trio.Event(), trio.Event()
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(request())
            for _ in range(behind):
                await trio.testing.wait_all_tasks_blocked(0.005)
                await stream.send_all(request("GET /next HTTP/1.1"))
            await stream.aclose()
            await trio.testing.wait_all_tasks_blocked(0.005)
            go_on.set()
            with trio.fail_after(5):
                await done.wait()
    assert seen == [True] * 20


@pytest.mark.parametrize("listener", list(Listener))
@pytest.mark.parametrize("reads", ["nothing", "some", "everything"])
async def test_who_leaves_while_the_answer_is_written(listener: Listener, reads: str) -> None:
    undone: list[bool] = []
    done = trio.Event()

    async def work(outlet: Outlet) -> bytes | None:
        outlet.undo.append(lambda: undone.append(True))
        return BIG

    async with open_kit() as kit:
        await kit.connect()
        [session] = kit.agents.all()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await take_body(receive)
            exchange = Exchange(scope, receive, send)
            await answer(exchange, session, kit.legacy._attendance, work)
            done.set()

        async with serving(app, listener) as port:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(request())
            if reads == "some":
                await stream.receive_some(1000)
            elif reads == "everything":
                await read_some(stream, BIG)
            if reads != "everything":
                await trio.testing.wait_all_tasks_blocked(0.02)
            await stream.aclose()
            with trio.fail_after(5):
                await done.wait()
    assert undone == [True] * (reads != "everything")


@pytest.mark.parametrize("listener", list(Listener))
@pytest.mark.parametrize("reads", ["some", "everything"])
async def test_who_leaves_while_a_stream_is_written(listener: Listener, reads: str) -> None:
    """The answer is kept for an agent that comes back; if none does, it is lost with the session."""
    undone: list[bool] = []
    done = trio.Event()

    async def work(outlet: Outlet) -> bytes | None:
        stream = outlet.open()
        assert stream is not None
        stream.put(b"{}")
        outlet.undo.append(lambda: undone.append(True))
        return BIG

    async with open_kit() as kit:
        for _ in range(10):
            await kit.connect()
            session = kit.agents.all()[-1]
            done = trio.Event()

            async def app(scope: Scope, receive: Receive, send: Send) -> None:
                await take_body(receive)
                exchange = Exchange(scope, receive, send)
                await answer(exchange, session, kit.legacy._attendance, work)  # noqa: B023
                done.set()  # noqa: B023

            async with serving(app, listener) as port:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                await stream.send_all(request())
                if reads == "some":
                    await stream.receive_some(1000)
                    await trio.testing.wait_all_tasks_blocked(0.02)
                else:
                    await read_some(stream, b"0\r\n\r\n")
                await stream.aclose()
                with trio.fail_after(5):
                    await done.wait()
            kit.agents.end(session, "the test is over")
    assert undone == [True] * (10 if reads == "some" else 0)
