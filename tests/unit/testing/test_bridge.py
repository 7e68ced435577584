from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from kars_router.testing import AsgiApp, AsgiBridge, Fault, FaultPlan, Stage, each_operation

URL = "http://upstream.test/mcp"


def open_client(
    app: AsgiApp, nursery: trio.Nursery, faults: FaultPlan | None = None
) -> tuple[httpx.AsyncClient, AsgiBridge]:
    bridge = AsgiBridge(app, nursery, faults=faults)
    return httpx.AsyncClient(transport=bridge), bridge


async def start(send: Any, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})


async def part(send: Any, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await start(send)
    await part(send, b"hello ")
    await part(send, b"world", more=False)


async def test_first_chunk_is_read_before_the_last_is_made(nursery: trio.Nursery) -> None:
    seen = trio.Event()
    made: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        made.append(b"one")
        await part(send, b"one")
        await seen.wait()
        made.append(b"two")
        await part(send, b"two", more=False)

    client, _ = open_client(app, nursery)
    async with client.stream("GET", URL) as response:
        chunks = response.aiter_raw()
        assert await anext(chunks) == b"one"
        assert made == [b"one"]
        seen.set()
        assert [chunk async for chunk in chunks] == [b"two"]


async def test_head_arrives_before_any_body(nursery: trio.Nursery) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send, 202)
        await trio.sleep_forever()

    client, _ = open_client(app, nursery)
    with trio.fail_after(5):
        async with client.stream("GET", URL) as response:
            assert response.status_code == 202


async def test_application_sees_the_request(nursery: trio.Nursery) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        seen.append(await receive())
        await hello(scope, receive, send)

    client, _ = open_client(app, nursery)
    await client.post(URL + "/a%20b?x=1", content=b"body", headers={"X-Thing": "y"})
    scope, message = seen
    assert (scope["method"], scope["path"], scope["query_string"]) == ("POST", "/mcp/a b", b"x=1")
    assert scope["raw_path"] == b"/mcp/a%20b"
    assert (b"x-thing", b"y") in scope["headers"]
    assert (b"host", b"upstream.test") in scope["headers"]
    assert message == {"type": "http.request", "body": b"body", "more_body": False}


@pytest.mark.parametrize("leave", ["close", "cancel_body", "cancel_head"])
async def test_a_client_that_leaves_is_a_disconnect(
    nursery: trio.Nursery, autojump_clock: MockClock, leave: str
) -> None:
    disconnected = trio.Event()
    after: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if leave != "cancel_head":
            await start(send)
            await part(send, b"x")
        assert (await receive())["type"] == "http.disconnect"
        disconnected.set()
        await part(send, b"into the void")  # as behind a real server, no error
        after.append("sent")

    client, bridge = open_client(app, nursery)
    with trio.move_on_after(1):
        async with client.stream("GET", URL, timeout=None) as response:
            if leave == "cancel_body":
                await response.aread()
    with trio.fail_after(5):
        await disconnected.wait()
    await wait_all_tasks_blocked()
    assert after == ["sent"]
    assert (bridge.running, bridge.open_responses) == (0, 0)


async def test_closing_the_client_leaves_every_response(nursery: trio.Nursery) -> None:
    disconnected = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await start(send)
        await part(send, b"x")
        await receive()
        disconnected.set()

    client, bridge = open_client(app, nursery)
    response = await client.send(client.build_request("GET", URL), stream=True)
    assert bridge.open_responses == 1
    await bridge.aclose()
    with trio.fail_after(5):
        await disconnected.wait()
    with pytest.raises(httpx.ReadError):
        await response.aread()


async def test_a_slow_client_holds_the_application_back(nursery: trio.Nursery) -> None:
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await start(send)
        for _ in range(10):
            await part(send, b"x")
            sent += 1
        await part(send, b"", more=False)

    bridge = AsgiBridge(app, nursery, buffered=3)
    client = httpx.AsyncClient(transport=bridge)
    async with client.stream("GET", URL) as response:
        await wait_all_tasks_blocked()
        assert sent == 3
        assert await response.aread() == b"x" * 10


async def test_returning_early_looks_like_a_closed_connection(nursery: trio.Nursery) -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def truncated(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        await part(send, b"half")

    client, _ = open_client(silent, nursery)
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        await client.get(URL)
    client, _ = open_client(truncated, nursery)
    async with client.stream("GET", URL) as response:
        chunks = response.aiter_raw()
        assert await anext(chunks) == b"half"
        with pytest.raises(httpx.RemoteProtocolError, match="complete message body"):
            await anext(chunks)


async def test_an_error_in_the_application_fails_the_test() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError):
        async with trio.open_nursery() as nursery:
            client, _ = open_client(broken, nursery)
            await client.get(URL)


async def test_read_timeouts_hold(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    async def late(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(4)
        await start(send)
        await part(send, b"x")
        await trio.sleep(6)
        await part(send, b"y", more=False)

    client, bridge = open_client(late, nursery)
    with pytest.raises(httpx.ReadTimeout):
        await client.get(URL, timeout=3)
    with pytest.raises(httpx.ReadTimeout):
        await client.get(URL, timeout=5)  # the head comes in time, the second chunk does not
    assert (await client.get(URL, timeout=7)).content == b"xy"
    assert trio.current_time() == pytest.approx(3 + 9 + 10)
    assert bridge.open_responses == 0


def exchange() -> Any:
    return SimpleNamespace(accepted=None, complete=None)


@pytest.mark.parametrize(
    ("fault", "error", "executed", "sent"),
    [
        (Fault.connect(), httpx.ConnectError, 0, "none"),
        (Fault.connect(httpx.ConnectTimeout), httpx.ConnectTimeout, 0, "none"),
        (Fault.send(10), httpx.WriteError, 0, "some"),
        (Fault.send(10**6), httpx.WriteError, 0, "some"),
        (Fault.send(0), httpx.WriteError, 0, "none"),
        (Fault.drop(), httpx.ReadError, 1, "all"),
        (Fault.drop(delivered=False), httpx.ReadError, 0, "all"),
        (Fault.drop(error=httpx.RemoteProtocolError), httpx.RemoteProtocolError, 1, "all"),
        (Fault.cut(), httpx.ReadError, 1, "all"),
        (Fault.cut(3), httpx.ReadError, 1, "all"),
    ],
)
async def test_faults(
    nursery: trio.Nursery, fault: Fault, error: type[Exception], executed: int, sent: str
) -> None:
    calls = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        calls += 1
        await hello(scope, receive, send)

    plan = FaultPlan.nth(1, fault)
    client, bridge = open_client(app, nursery, plan)
    told = exchange()
    with pytest.raises(error):
        await client.post(URL, content=b"0123456789", extensions={"kars_exchange": told})
    assert calls == executed
    assert plan.fired == 1
    assert bridge.open_responses == 0
    assert told.complete is (sent == "all")
    assert (told.accepted > 0) is (sent != "none")
    whole = exchange()
    await client.post(URL, content=b"0123456789", extensions={"kars_exchange": whole})
    assert whole.complete is True
    assert told.accepted == whole.accepted or sent != "all"
    assert told.accepted < whole.accepted or sent == "all"
    assert plan.fired == 1


@pytest.mark.parametrize("after", [0, 1, 6, 8, 11])
async def test_cut_lets_exactly_so_many_bytes_pass(nursery: trio.Nursery, after: int) -> None:
    client, _ = open_client(hello, nursery, FaultPlan.nth(1, Fault.cut(after)))
    got = b""
    async with client.stream("GET", URL) as response:
        with pytest.raises(httpx.ReadError):  # noqa: PT012
            async for chunk in response.aiter_raw():
                got += chunk
    assert got == b"hello world"[:after]


async def test_a_cut_beyond_the_end_is_not_felt(nursery: trio.Nursery) -> None:
    plan = FaultPlan.nth(1, Fault.cut(12))
    client, _ = open_client(hello, nursery, plan)
    assert (await client.get(URL)).text == "hello world"
    assert (plan.taken, plan.fired) == (1, 0)


async def test_delays(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    plan = FaultPlan({1: Fault.delay(2), 2: Fault.delay(3, Stage.CONNECT), 3: Fault.delay(9)})
    client, _ = open_client(hello, nursery, plan)
    assert (await client.get(URL)).text == "hello world"
    assert trio.current_time() == pytest.approx(2)
    told = exchange()
    with pytest.raises(httpx.ConnectTimeout):
        await client.get(URL, timeout=1, extensions={"kars_exchange": told})
    assert (told.accepted, told.complete) == (0, False)
    with pytest.raises(httpx.ReadTimeout):
        await client.get(URL, timeout=1)


async def count_requests(client: httpx.AsyncClient, times: int) -> list[int]:
    done = []
    for n in range(times):
        try:
            await client.get(URL, params={"n": n})
        except httpx.TransportError:
            continue
        done.append(n)
    return done


async def test_each_operation_fails_every_request_once(nursery: trio.Nursery) -> None:
    rounds = []
    for plan in each_operation(Fault.connect()):
        client, _ = open_client(hello, nursery, plan)
        rounds.append(await count_requests(client, 3))
    assert rounds == [[1, 2], [0, 2], [0, 1], [0, 1, 2]]


async def test_each_operation_persistently(nursery: trio.Nursery) -> None:
    rounds = []
    for plan in each_operation(Fault.drop(), persistent=True):
        client, _ = open_client(hello, nursery, plan)
        rounds.append(await count_requests(client, 3))
    assert rounds == [[], [0], [0, 1], [0, 1, 2]]


async def test_each_operation_counts_only_what_matches(nursery: trio.Nursery) -> None:
    rounds = []
    for plan in each_operation(
        Fault.connect(), matching=lambda request: request.url.params["n"] != "1"
    ):
        client, _ = open_client(hello, nursery, plan)
        rounds.append(await count_requests(client, 3))
    assert rounds == [[1, 2], [0, 1], [0, 1, 2]]


async def test_each_operation_stops_a_scenario_that_never_ends(nursery: trio.Nursery) -> None:
    with pytest.raises(RuntimeError, match="after 4 rounds"):  # noqa: PT012
        for plan in each_operation(Fault.connect(), limit=4):
            client, _ = open_client(hello, nursery, plan)
            await count_requests(client, 100)


async def test_a_client_that_leaves_frees_an_application_that_waits(
    nursery: trio.Nursery,
) -> None:
    finished = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        for _ in range(5):
            await part(send, b"x")
        finished.set()

    bridge = AsgiBridge(app, nursery, buffered=1)
    client = httpx.AsyncClient(transport=bridge)
    async with client.stream("GET", URL):
        await wait_all_tasks_blocked()
        assert not finished.is_set()
    with trio.fail_after(5):
        await finished.wait()
    assert bridge.running == 0


async def test_a_body_without_a_status_is_an_error() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await part(send, b"x")

    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="before a status")):
        async with trio.open_nursery() as nursery:
            client, _ = open_client(app, nursery)
            await client.get(URL)


async def test_each_operation_goes_on_after_a_fault_that_was_not_felt(
    nursery: trio.Nursery,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        await part(send, b"" if scope["query_string"] == b"n=0" else b"body", more=False)

    rounds = []
    for plan in each_operation(Fault.cut(2)):
        client, _ = open_client(app, nursery, plan)
        rounds.append(await count_requests(client, 2))
    assert rounds == [[0, 1], [0], [0, 1]]
