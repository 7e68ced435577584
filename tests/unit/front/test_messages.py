from __future__ import annotations

from typing import Any

import msgspec
import pytest
from agent_kit import Bench, initialize, rpc
from trio.testing import MockClock

from kars_router.wire import jsonrpc

pytestmark = pytest.mark.usefixtures("each_listener")

PING = b'{"jsonrpc":"2.0","id":%b,"method":"ping"}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"nonsense",
        b'{"jsonrpc":"2.0","id":1,"method":"ping"',
        b'{"jsonrpc":"2.0","id":1,"method":"ping"}}',
        b"\xef\xbb\xbf" + PING % b"1",
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"\xff"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":NaN}}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":01}}',
    ],
)
async def test_what_is_no_json_is_a_parse_error(bench: Bench, body: bytes) -> None:
    agent = await bench.connect()
    response = await bench.post(body, agent.session)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == jsonrpc.PARSE_ERROR
    assert response.json()["id"] is None
    assert await agent.request("ping") == {}


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"params":[', b"[[{"])
@pytest.mark.parametrize("revision", ["2025-03-26", "2025-11-25"])
async def test_deep_nesting_is_refused_and_hurts_nobody(
    bench: Bench, opening: bytes, revision: str
) -> None:
    agent = await bench.connect(version=revision)
    for bomb in (
        opening * 100_000,
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":' + opening * 100_000,
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":%b%b}}'
        % (b"[" * 100_000, b"]" * 100_000),
    ):
        response = await bench.post(bomb, agent.session)
        batch = revision != "2025-03-26" and bomb.startswith(b"[")
        expected = jsonrpc.INVALID_REQUEST if batch else jsonrpc.PARSE_ERROR
        assert (response.status_code, response.json()["error"]["code"]) == (400, expected)
    assert await agent.request("ping") == {}


@pytest.mark.parametrize("depth", [10, 100, 300, 500, 700, 900, 1100])
async def test_nesting_of_any_depth_gets_an_answer(bench: Bench, depth: int) -> None:
    agent = await bench.connect()
    arguments = b'{"a":' * depth + b"1" + b"}" * depth
    for params in (
        b'{"name":"box__read","arguments":%b}' % arguments,
        b'{"name":"box__read","_meta":%b}' % arguments,
    ):
        for method in (b"tools/call", b"tools/list", b"ping", b"initialize"):
            body = b'{"jsonrpc":"2.0","id":1,"method":"%b","params":%b}' % (method, params)
            response = await bench.post(body, agent.session)
            assert response.json()["jsonrpc"] == "2.0"
            if response.status_code == 400:
                assert depth > 300
                assert response.json()["error"]["code"] == jsonrpc.PARSE_ERROR


@pytest.mark.parametrize(
    "message",
    [
        1,
        "ping",
        None,
        {},
        {"jsonrpc": "2.0"},
        {"jsonrpc": "2.0", "id": 1},
        {"id": 1, "method": "ping"},
        {"jsonrpc": "1.0", "id": 1, "method": "ping"},
        {"jsonrpc": 2.0, "id": 1, "method": "ping"},
        {"jsonrpc": "2.0", "id": 1, "method": 1},
        {"jsonrpc": "2.0", "id": None, "method": "ping"},
        {"jsonrpc": "2.0", "id": True, "method": "ping"},
        {"jsonrpc": "2.0", "id": [1], "method": "ping"},
        {"jsonrpc": "2.0", "id": {}, "method": "ping"},
        {"jsonrpc": "2.0", "id": 1, "method": "ping", "params": "x"},
        {"jsonrpc": "2.0", "id": 1, "method": "ping", "params": None},
        {"jsonrpc": "2.0", "id": 1, "method": "ping", "result": {}},
        {"jsonrpc": "2.0", "id": 1, "result": {}, "error": {}},
        {"jsonrpc": "2.0", "result": {}},
    ],
    ids=repr,
)
async def test_what_is_no_message_is_an_invalid_request(bench: Bench, message: Any) -> None:
    agent = await bench.connect()
    response = await bench.post(message, agent.session)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == jsonrpc.INVALID_REQUEST


@pytest.mark.parametrize(
    "ident",
    [
        b"0",
        b"1",
        b'"1"',
        b"1.5",
        b"1.0",
        b"-3",
        b"-0",
        b"1e2",
        b"12345678901234567890123456789012345678901234567890",
        b'""',
        b'"a b"',
        b'"\\u0041"',
        '"ä\u2028"'.encode(),
        b'"' + b"x" * 10_000 + b'"',
    ],
)
async def test_an_id_comes_back_as_it_was_written(bench: Bench, ident: bytes) -> None:
    agent = await bench.connect()
    body = b'{"jsonrpc":"2.0","id": %b ,"method":"%b","params":{"name":"box__read"}}'
    for method in (b"ping", b"tools/list", b"tools/call", b"nonsense", b"initialize"):
        response = await bench.post(body % (ident, method), agent.session)
        assert response.status_code == 200
        assert response.content.startswith(b'{"jsonrpc":"2.0","id":%b,' % ident)


async def test_an_unknown_method_is_said_to_be_unknown(bench: Bench) -> None:
    agent = await bench.connect()
    for method in ("tools/none", "tasks/list", "server/discover", "", "x" * 100_000):
        response = await bench.post(rpc(method, ident="m"), agent.session)
        assert response.status_code == 200
        assert response.json()["id"] == "m"
        assert response.json()["error"]["code"] == jsonrpc.METHOD_NOT_FOUND
        assert len(response.content) < 300


async def test_of_a_repeated_member_the_last_counts_for_all(bench: Bench) -> None:
    agent = await bench.connect("/mcp/box")
    body = (
        b'{"jsonrpc":"2.0","id":1,"method":"nonsense","method":"tools/call",'
        b'"params":{"name":"hidden","n\\u0061me":"read"}}'
    )
    response = await bench.post(body, agent.session, path="/mcp/box")
    assert response.json()["result"]["content"][0]["text"] == "counter: 0"
    (call,) = bench.server.requests("tools/call")
    # A server that takes the first of two names must not be led to another tool.
    assert call.body.count(b"name") == 1
    assert b"hidden" not in call.body


async def test_a_batch_is_answered_as_one(bench: Bench) -> None:
    agent = await bench.connect(version="2025-03-26")
    batch = [
        rpc("ping", ident="a"),
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        rpc("tools/call", {"name": "box__increment"}, 0),
        {"jsonrpc": "2.0", "id": 9, "result": {}},
        rpc("nonsense", ident=2),
        rpc("initialize", {"protocolVersion": "2025-03-26"}, 3),
        17,
        {"jsonrpc": "2.0", "id": 4},
    ]
    response = await bench.post(batch, agent.session)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert "mcp-session-id" not in response.headers
    answers = response.json()
    assert [(a["id"], a.get("error", {}).get("code")) for a in answers] == [
        ("a", None),
        (0, None),
        (2, jsonrpc.METHOD_NOT_FOUND),
        (3, jsonrpc.INVALID_REQUEST),
        (None, jsonrpc.INVALID_REQUEST),
        (4, jsonrpc.INVALID_REQUEST),
    ]
    assert answers[1]["result"]["content"][0]["text"] == "counter: 1"
    assert len(bench.router.agents) == 1


async def test_calls_of_a_batch_run_side_by_side(bench: Bench, autojump_clock: MockClock) -> None:
    agent = await bench.connect(version="2025-03-26")
    calls = [
        rpc("tools/call", {"name": "box__slow", "arguments": {"seconds": 8}}, n) for n in range(8)
    ]
    before = autojump_clock.current_time()
    response = await bench.post(calls, agent.session)
    assert [answer["id"] for answer in response.json()] == list(range(8))
    assert autojump_clock.current_time() - before < 10


async def test_a_batch_without_requests_is_accepted(bench: Bench) -> None:
    agent = await bench.connect(version="2025-03-26")
    batch = [{"jsonrpc": "2.0", "method": "notifications/initialized"}] * 2
    response = await bench.post(batch, agent.session)
    assert (response.status_code, response.content) == (202, b"")


async def test_a_batch_has_bounds(bench: Bench) -> None:
    agent = await bench.connect(version="2025-03-26")
    for batch, status, code in (
        ([], 400, jsonrpc.INVALID_REQUEST),
        ([rpc("ping")] * 65, 400, jsonrpc.INVALID_REQUEST),
        (b"[1,", 400, jsonrpc.PARSE_ERROR),
        (b'["\xff"]', 400, jsonrpc.PARSE_ERROR),
    ):
        response = await bench.post(batch, agent.session)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert len((await bench.post([rpc("ping")] * 64, agent.session)).json()) == 64


@pytest.mark.parametrize("revision", ["2025-06-18", "2025-11-25"])
async def test_later_revisions_have_no_batches(bench: Bench, revision: str) -> None:
    agent = await bench.connect(version=revision)
    # Claiming an older revision for one request does not help.
    response = await bench.post(
        [rpc("ping")], agent.session, headers={"mcp-protocol-version": "2025-03-26"}
    )
    assert response.status_code == 400
    assert response.json()["error"]["code"] == jsonrpc.INVALID_REQUEST


async def test_a_batch_cannot_begin_a_session(bench: Bench) -> None:
    response = await bench.post([initialize("2025-03-26")])
    assert response.status_code == 400
    assert "mcp-session-id" not in response.headers
    assert len(bench.router.agents) == 0


async def test_numbers_beyond_all_bounds_harm_nobody(bench: Bench) -> None:
    agent = await bench.connect(version="2025-03-26")
    huge = b"1e400"
    for method in (b"ping", b"tools/list", b"tools/call", b"initialize"):
        params = b'{"name":%b,"cursor":%b,"arguments":%b,"protocolVersion":%b}' % ((huge,) * 4)
        body = b'{"jsonrpc":"2.0","id":7,"method":"%b","params":%b}' % (method, params)
        alone = (await bench.post(body, agent.session)).json()
        (member,) = (await bench.post(b"[%b]" % body, agent.session)).json()
        assert (alone["id"], member["id"]) == (7, 7)
        if method != b"ping":
            assert alone["error"]["code"] == jsonrpc.INVALID_PARAMS
    assert msgspec.json.decode((await bench.post(rpc("ping"), agent.session)).content)
