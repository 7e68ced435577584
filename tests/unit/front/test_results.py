from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
from agent_kit import CALL, SESSION, Bench, configuration, open_bench, rpc
from trio.testing import MockClock

from kars_router.front import results
from kars_router.model import CallOutcome, Fate, SessionReset
from kars_router.testing import HeartbeatServer, PlainAgent, Received, Reply, text_of
from kars_router.wire import jsonrpc

pytestmark = pytest.mark.usefixtures("each_listener")

# Everything a decoder might change: spellings of numbers, escapes, order, fields nobody knows.
RESULT = (
    b'{ "z": 1e400, "big":12345678901234567890123, "f" : 1.10, "neg":-0, "s":"\\u0041\\/\xc3\xa9",'
    b' "content":[{"type":"text","text":"a"},{"type":"image","data":"AA==","mimeType":"image/png"},'
    b'{"type":"audio","data":"","mimeType":"a/b"},{"type":"resource_link","uri":"x:y","name":"n"},'
    b'{"type":"resource","resource":{"uri":"x:y","text":""}},{"type":"x-new","x":1e400}],'
    b' "structuredContent":{"n":1e400},"isError":false,"_meta":{"x/y":[1.0, 1e400]}, "x":null }'
)


def answers(method: str, text: bytes) -> Callable[[Received], Reply | None]:
    """A script that answers requests of a method with this outcome, byte for byte."""

    def script(received: Received) -> Reply | None:
        if received.method != method:
            return None
        body = b'{"jsonrpc":"2.0","id":%d,%b}' % (received.id, text)
        return Reply(headers={"content-type": "application/json"}, body=body)

    return script


@pytest.mark.parametrize(
    "outcome", [b'"result":%b', b'"error":{"code":-1,"message":"m","data":%b}']
)
async def test_what_a_server_answers_passes_byte_for_byte(bench: Bench, outcome: bytes) -> None:
    agent = await bench.connect("/mcp/box")
    bench.server.script = answers("tools/call", outcome % RESULT)
    call = rpc("tools/call", {"name": "read"}, "i")
    response = await bench.post(call, agent.session, path="/mcp/box")
    assert response.content == b'{"jsonrpc":"2.0","id":"i",%b}' % (outcome % RESULT)


async def test_where_all_servers_are_only_uris_change(bench: Bench) -> None:
    agent = await bench.connect()
    bench.server.script = answers("tools/call", b'"result":%b' % RESULT)
    response = await bench.post(rpc("tools/call", {"name": "box__read"}, "i"), agent.session)
    got = jsonrpc.members(bytes(jsonrpc.members(response.content)["result"]))
    sent = jsonrpc.members(RESULT)
    assert bytes(got.pop("content")) == bytes(sent.pop("content")).replace(
        b'"uri":"x:y"', b'"uri":"box+x:y"'
    )
    assert {k: bytes(v) for k, v in got.items()} == {k: bytes(v) for k, v in sent.items()}


@pytest.mark.parametrize(("path", "name"), [("/mcp", b"box__echo"), ("/mcp/box", b"echo")])
async def test_what_an_agent_passes_arrives_byte_for_byte(
    bench: Bench, path: str, name: bytes
) -> None:
    agent = await bench.connect(path)
    bench.server.script = answers("tools/call", b'"result":{}')
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"%b",%b}}'
    rest = b'"arguments":%b,"_meta":{"other":1.0},"x":1e400' % RESULT
    response = await bench.post(body % (name, rest), agent.session, path=path)
    assert "result" in response.json()
    (call,) = bench.server.requests("tools/call") or [
        received for received in bench.server.log if b"tools/call" in received.body
    ]
    assert RESULT in call.body
    assert b'"_meta":{"other":1.0}' in call.body
    assert b'"x":1e400' in call.body
    assert b'"name":"echo"' in call.body


@pytest.mark.parametrize("tool", ["fail", "error"])
async def test_failures_of_a_tool_are_its_own(bench: Bench, tool: str) -> None:
    agent = await bench.connect()
    params = {"name": f"box__{tool}", "arguments": {"message": "no", "data": [1]}}
    answer = (await bench.post(rpc("tools/call", params), agent.session)).json()
    if tool == "error":
        assert answer["error"] == {"code": -32000, "message": "no", "data": [1]}
    else:
        assert answer["result"] == {"content": [{"type": "text", "text": "no"}], "isError": True}


SECRET = "tOkEn-s3cr3t"


async def failing(bench: Bench, agent: PlainAgent, reply: Reply) -> dict[str, Any]:
    bench.server.reply_next(reply, method="tools/call", times=5)
    answer = (await bench.post(rpc("tools/call", {"name": "box__read"}), agent.session)).json()
    result: dict[str, Any] = answer["result"]
    return result


@pytest.mark.parametrize(
    ("reply", "fate"),
    [
        (Reply.text(500, f"stack http://box.test/mcp {SECRET}"), Fate.UNKNOWN),
        (Reply.text(401, f"Bearer {SECRET}"), Fate.NOT_EXECUTED),
        (Reply.text(403, SECRET), Fate.NOT_EXECUTED),
        (Reply.text(302, headers={"location": f"http://box.test/?{SECRET}"}), None),
        (Reply.cut(), Fate.UNKNOWN),
        (Reply.events(), Fate.UNKNOWN),
        (Reply.text(200, SECRET), Fate.UNKNOWN),
        (Reply(body=b"{", headers={"content-type": "application/json"}), Fate.UNKNOWN),
        (Reply.hang(), Fate.UNKNOWN),
    ],
    ids=["500", "401", "403", "302", "cut", "empty", "text", "torn", "hang"],
)
async def test_a_failed_call_says_its_fate_and_no_secret(
    autojump_clock: MockClock, reply: Reply, fate: Fate | None
) -> None:
    async with open_bench(configured={"box": {"timeouts": {"call": "10s"}}}) as bench:
        agent = await bench.connect()
        result = await failing(bench, agent, reply)
        assert result["isError"] is True
        assert set(result["_meta"]) == {CALL}
        call = result["_meta"][CALL]
        assert set(call) == {"fate", "code", "server", "retryable"}
        assert call["server"] == "box"
        assert call["fate"] in set(Fate) - {Fate.EXECUTED}
        if fate is not None:
            assert call["fate"] == fate
        assert not (call["retryable"] and call["fate"] == Fate.UNKNOWN)
        (block,) = result["content"]
        assert block["type"] == "text"
        assert "box" in block["text"]
        wire = msgspec.json.encode(result).decode()
        for secret in (SECRET, "http:", "test/mcp", "Traceback", "ProtocolError", "httpx"):
            assert secret not in wire
        assert await agent.request("ping") == {}


async def test_a_call_over_the_time_limit_ends_as_unknown(autojump_clock: MockClock) -> None:
    async with open_bench(configured={"box": {"timeouts": {"call": "7s"}}}) as bench:
        agent = await bench.connect()
        start = trio.current_time()
        result = await agent.call("box__slow", seconds=600)
        assert trio.current_time() - start == pytest.approx(7, abs=0.5)
        meta = {"fate": "unknown", "code": "timeout", "server": "box", "retryable": False}
        assert result["_meta"][CALL] == meta
        assert "not answer in time" in text_of(result)


async def test_the_number_of_calls_is_limited(autojump_clock: MockClock) -> None:
    config = configuration({"box": {}}, limits={"concurrentCalls": 2})
    async with open_bench(config) as bench, trio.open_nursery() as nursery:
        first, second = await bench.connect(), await bench.connect("/mcp/box")
        nursery.start_soon(lambda: first.call("box__slow", seconds=10))
        nursery.start_soon(lambda: second.call("slow", seconds=10))
        await trio.sleep(5)
        before = len(bench.server.requests("tools/call"))
        third = await bench.connect()
        result = await third.call("box__increment")
        assert result["isError"] is True
        assert result["_meta"][CALL] == {
            "fate": "not_executed",
            "code": "too_many_calls",
            "server": "box",
            "retryable": True,
        }
        assert "2 calls" in text_of(result)
        assert len(bench.server.requests("tools/call")) == before
        assert (await third.list_tools()) != []  # only calls are limited
        await trio.sleep(10)
        assert text_of(await third.call("box__increment")) == "counter: 1"


async def lose(bench: Bench) -> None:
    """Has the server forget its sessions, and waits until the router knows."""
    bench.server.restart()
    await trio.sleep(5)


async def test_the_first_result_after_a_loss_says_so(bench: Bench) -> None:
    agent = await bench.connect()
    for _ in range(2):
        assert SESSION not in (await agent.call("box__increment")).get("_meta", {})
    await lose(bench)
    result = await agent.call("box__increment")
    assert set(result["_meta"]) == {SESSION}
    meta = result["_meta"][SESSION]
    assert set(meta) == {"reset", "generation", "reason"}
    assert (meta["reset"], meta["generation"]) == (True, 2)
    assert isinstance(meta["reason"], str)
    assert meta["reason"]
    notice, own = result["content"]
    assert notice["type"] == "text"
    assert "box" in notice["text"]
    assert "lost" in notice["text"]
    assert meta["reason"] in notice["text"]
    assert own == {"type": "text", "text": "counter: 1"}
    assert result["isError"] is False
    again = await agent.call("box__increment")
    assert text_of(again) == "counter: 2"
    assert "_meta" not in again


async def test_an_agent_that_had_no_state_has_lost_none(bench: Bench) -> None:
    agent = await bench.connect()
    await agent.list_tools()
    await lose(bench)
    assert "_meta" not in await agent.call("box__increment")


async def test_a_notice_leaves_the_rest_of_a_result_as_it_is(bench: Bench) -> None:
    agent = await bench.connect()
    await agent.call("box__increment")
    await lose(bench)
    bench.server.script = answers("tools/call", b'"result":' + RESULT)
    response = await bench.post(rpc("tools/call", {"name": "box__read"}), agent.session)
    for part in (
        b'"z":1e400',
        b'"big":12345678901234567890123',
        b'"f":1.10',
        b'"s":"\\u0041\\/\xc3\xa9"',
        b'{"type":"x-new","x":1e400}]',
        b'"structuredContent":{"n":1e400}',
        b'"x/y":[1.0, 1e400]',
        b'"x":null',
        b'"reset":true',
        b"Notice: ",
    ):
        assert part in response.content


@pytest.mark.parametrize(
    ("result", "blocks"),
    [
        (b"{}", 1),
        (b'{"content":null,"_meta":null}', 1),
        (b'{"content":"x","_meta":[]}', 1),
        (b'{"content":[{"type":"text","text":"a"}],"_meta":{"a":1}}', 2),
        (b'{"content":[1,[],null]}', 4),
    ],
)
def test_a_notice_fits_into_any_result(result: bytes, blocks: int) -> None:
    value = msgspec.json.decode(
        results.with_notice("box", result, SessionReset(3, "it was restarted"))
    )
    assert len(value["content"]) == blocks
    meta = value["_meta"][SESSION]
    assert meta == {"reset": True, "generation": 3, "reason": "it was restarted"}


@pytest.mark.parametrize("result", [b"[]", b"1", b"null", b'"x"'])
def test_a_result_that_is_no_object_passes(result: bytes) -> None:
    assert results.with_notice("box", result, SessionReset(3, "x")) == result


def test_a_failed_request_says_its_fate() -> None:
    outcome = CallOutcome(fate=Fate.UNKNOWN, code="timeout", message="No answer.")
    error = msgspec.json.decode(results.failed_request("box", outcome))
    assert (error["code"], error["message"]) == (-32603, "No answer.")
    assert error["data"][CALL] == {
        "fate": "unknown",
        "code": "timeout",
        "server": "box",
        "retryable": False,
    }


async def test_a_server_that_is_down_is_said_to_be_so(autojump_clock: MockClock) -> None:
    def refused(_: Received) -> Reply:
        return Reply.text(500, f"http://box.test {SECRET}")

    async with HeartbeatServer.open() as server, open_bench(servers={"box": server}) as bench:
        agent = await bench.connect()
        await agent.list_tools()
        server.script = refused
        result = await agent.call("box__read")
    assert result["_meta"][CALL] == {
        "fate": "not_executed",
        "code": "upstream_unavailable",
        "server": "box",
        "retryable": True,
    }
    assert "http" not in text_of(result)
    assert SECRET not in text_of(result)
