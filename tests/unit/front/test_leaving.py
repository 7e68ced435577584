"""Agents that leave before their answer has come: what depended on its arrival is taken back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from unit.front.handshake_kit import open_kit
from unit.front.lean_kit import BIG, Serve, read_some, request, take_body
from unit.front.stateless_kit import open_rig

from kars_router.config.addresses import Address
from kars_router.config.schema import Listener
from kars_router.front import listen
from kars_router.front.callers import AgentCaller
from kars_router.front.exchange import Exchange, Receive, Scope, Send
from kars_router.front.operations import Answer
from kars_router.front.streams import Outlet, answer

LAST_CHUNK = b"\r\n0\r\n\r\n"


async def read_sized(stream: trio.SocketStream) -> None:
    """Takes a response, as far as its Content-Length says."""
    got, whole = 0, None
    while whole is None or got < whole:
        part = bytes(await stream.receive_some())
        assert part
        got += len(part)
        if whole is None:  # a head comes in one piece
            length = part.partition(b"content-length: ")[2].partition(b"\r\n")[0]
            whole = part.index(b"\r\n\r\n") + 4 + int(length)


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
    """The answer is kept for an agent that comes back, and otherwise lost with its session."""
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


@pytest.mark.parametrize("listener", list(Listener))
@pytest.mark.parametrize("kind", ["json", "stream"])
@pytest.mark.parametrize("reads", ["some", "everything"])
async def test_a_stateless_agent_that_leaves_while_it_is_written_to(
    listener: Listener, kind: str, reads: str
) -> None:
    undone: list[bool] = []

    async def handle(_: object, __: object, caller: AgentCaller) -> Answer:
        if kind == "stream":
            caller.tell("notifications/progress", b'{"progressToken":1,"progress":1}')
            await trio.testing.wait_all_tasks_blocked()
        return Answer(result=b'{"text":"%b"}' % BIG, undo=(lambda: undone.append(True),))

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = handle
        built = rig.build("tools/call", {"name": "tool"}, extra={"progressToken": 1})
        fields = [f"{name}: {value}" for name, value in built["headers"].items()]
        async with serving(rig.app, listener) as port:
            for _ in range(10):
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                await stream.send_all(request("POST /mcp HTTP/1.1", *fields, body=built["content"]))
                if reads == "some":
                    await stream.receive_some(1000)
                    await trio.testing.wait_all_tasks_blocked(0.02)
                else:
                    await (
                        read_some(stream, LAST_CHUNK) if kind == "stream" else read_sized(stream)
                    )
                await stream.aclose()
                await trio.testing.wait_all_tasks_blocked(0.02)
    assert undone == [True] * (10 if reads == "some" else 0)
