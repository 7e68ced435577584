from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from agent_kit import BASE, BOTH, Bench, configuration, initialize, open_bench, rpc
from trio.testing import MockClock

from kars_router.wire import jsonrpc

pytestmark = pytest.mark.usefixtures("each_listener")

LIMIT = 4 << 20


def code(response: httpx.Response) -> Any:
    """The JSON-RPC error code of a refusal, which says nothing but the JSON it is."""
    assert response.headers["content-type"] == "application/json"
    return response.json()["error"]["code"]


@pytest.mark.parametrize("path", ["/mcp", "/mcp/", "/mcp/box", "/mcp/box/"])
async def test_every_endpoint_serves_a_whole_session(bench: Bench, path: str) -> None:
    agent = await bench.connect(path)
    assert await agent.request("ping") == {}
    async with bench.listen(agent.session, path) as listening:
        assert listening.response.status_code == 200
        assert listening.response.headers["content-type"] == "text/event-stream"
    assert await agent.delete() == 200


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_an_unknown_endpoint_is_not_found(bench: Bench, method: str) -> None:
    headers = {"accept": BOTH, "content-type": "application/json"}
    content = msgspec.json.encode(initialize())
    for path in ("/", "/mc", "/mcpx", "/mcp/other", "/mcp/box/more", "/mcp//box", "/mcp//"):
        response = await bench.client.request(method, BASE + path, headers=headers, content=content)
        assert (response.status_code, code(response)) == (404, jsonrpc.INVALID_REQUEST)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "OPTIONS", "HEAD", "TRACE"])
async def test_other_http_methods_are_not_allowed(bench: Bench, method: str) -> None:
    response = await bench.client.request(method, BASE + "/mcp", headers={"accept": BOTH})
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, POST, DELETE"


@pytest.mark.parametrize("path", ["/mcp", "/mcp/box"])
async def test_a_get_without_a_session_is_405_and_never_404(bench: Bench, path: str) -> None:
    response = await bench.get(path=path)
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, POST, DELETE"


async def test_post_and_delete_without_a_session_are_bad_requests(bench: Bench) -> None:
    assert (await bench.post(rpc("ping"))).status_code == 400
    assert (await bench.client.delete(BASE + "/mcp")).status_code == 400


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        (BOTH, 200),
        ("text/event-stream,application/json", 200),
        ("*/*", 200),
        ("application/*, text/*", 200),
        ("APPLICATION/JSON, Text/Event-Stream;q=0.1", 200),
        ("application/json;charset=utf-8, text/event-stream", 200),
        ("application/json", 406),
        ("text/event-stream", 406),
        ("text/html", 406),
        ("application/json, text/event-stream;q=0", 406),
        ("application/json;q=0.000, text/event-stream", 406),
        ("application/jsonx, text/event-stream", 406),
        ("", 406),
    ],
)
async def test_a_post_must_accept_both_types(bench: Bench, accept: str, status: int) -> None:
    response = await bench.post(initialize(), headers={"accept": accept})
    assert response.status_code == status
    if status != 200:
        assert code(response) == jsonrpc.INVALID_REQUEST


async def test_types_may_be_accepted_in_several_headers(bench: Bench) -> None:
    headers = [
        ("accept", "application/json"),
        ("accept", "text/event-stream"),
        ("content-type", "application/json"),
    ]
    content = msgspec.json.encode(initialize())
    response = await bench.client.post(BASE + "/mcp", headers=headers, content=content)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("accept", "status"),
    [("*/*", 405), ("text/*", 405), ("application/json", 406), ("text/event-stream;q=0", 406)],
)
async def test_a_get_must_accept_event_streams(bench: Bench, accept: str, status: int) -> None:
    # 405 is the answer to a GET that is right but names no session.
    assert (await bench.get(headers={"accept": accept})).status_code == status


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
        ("text/plain", 415),
        ("application/jsonp", 415),
        ("", 415),
    ],
)
async def test_a_body_must_be_declared_as_json(bench: Bench, kind: str, status: int) -> None:
    response = await bench.post(initialize(), headers={"content-type": kind})
    assert response.status_code == status


@pytest.mark.parametrize("version", ["2024-11-05", "2026-06-18", "1", "latest", "2025-11-25, x"])
async def test_an_unsupported_version_header_is_a_bad_request(bench: Bench, version: str) -> None:
    agent = await bench.connect()
    response = await bench.post(
        rpc("ping"), agent.session, headers={"mcp-protocol-version": version}
    )
    assert (response.status_code, code(response)) == (400, jsonrpc.INVALID_REQUEST)
    assert "2025-11-25" in response.json()["error"]["message"]


async def test_without_a_version_header_a_session_goes_on(bench: Bench) -> None:
    agent = await bench.connect(version="2025-03-26")
    assert (await bench.post(rpc("ping"), agent.session)).json()["result"] == {}


def padded(size: int) -> bytes:
    """An initialize request of exactly so many bytes."""
    body = msgspec.json.encode(initialize())
    return body + b" " * (size - len(body))


async def in_chunks(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def test_a_body_of_four_mib_is_taken_and_one_byte_more_is_not(bench: Bench) -> None:
    assert (await bench.post(padded(LIMIT))).status_code == 200
    response = await bench.post(padded(LIMIT + 1))
    assert (response.status_code, code(response)) == (413, jsonrpc.INVALID_REQUEST)
    assert response.headers["connection"] == "close"


async def test_a_body_without_a_length_is_counted(bench: Bench) -> None:
    headers = {"accept": BOTH, "content-type": "application/json"}
    for size, status in ((LIMIT, 200), (LIMIT + 1, 413)):
        response = await bench.client.post(
            BASE + "/mcp", headers=headers, content=in_chunks(padded(size))
        )
        assert "content-length" not in response.request.headers
        assert response.status_code == status


async def test_a_body_is_not_read_beyond_the_limit(bench: Bench) -> None:
    sent: list[dict[str, Any]] = []
    reads = 0

    async def receive() -> dict[str, Any]:
        nonlocal reads
        reads += 1
        return {"type": "http.request", "body": b" " * (1 << 20), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/mcp",
        "headers": [
            (b"host", b"localhost"),
            (b"accept", b"*/*"),
            (b"content-type", b"application/json"),
        ],
    }
    await bench.router.app(scope, receive, send)
    assert (sent[0]["status"], reads) == (413, 5)


async def test_an_agent_that_leaves_in_its_request_leaves_nothing_behind(bench: Bench) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        raise AssertionError("nobody is there")

    headers = [(b"host", b"localhost"), (b"accept", b"*/*"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/mcp", "headers": headers}
    await bench.router.app(scope, receive, send)
    assert len(bench.router.agents) == 0


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8443", 200),
        ("HTTP://127.0.0.1:8443", 200),
        ("https://ui.example", 200),
        ("null", 403),
        ("http://127.0.0.1:8444", 403),
        ("http://127.0.0.1", 403),
        ("http://localhost:8443", 403),
        ("https://evil.example", 403),
        ("https://ui.example.evil.example", 403),
        ("https://ui.example:444", 403),
        ("http://ui.example", 403),
        ("file://", 403),
        ("nonsense", 403),
    ],
)
async def test_the_origin_of_a_page_is_checked(
    autojump_clock: MockClock, origin: str, status: int
) -> None:
    config = configuration({"box": {}}, allowedOrigins=["https://ui.example"])
    async with open_bench(config) as bench:
        agent = await bench.connect()
        for method in ("GET", "POST", "DELETE"):
            headers = {"accept": BOTH, "origin": origin, "content-type": "application/json"}
            if method != "GET":
                headers["mcp-session-id"] = agent.session or ""
            content = msgspec.json.encode(rpc("ping"))
            response = await bench.client.request(
                method, BASE + "/mcp", headers=headers, content=content
            )
            expected = 405 if method == "GET" and status == 200 else status
            assert response.status_code == expected
            assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8443", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8443", 200),
        ("127.1.2.3", 200),
        ("router.pod", 200),
        ("router.pod:99", 200),
        ("exact.pod:8443", 200),
        ("exact.pod:8444", 421),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example:8443", 421),
        ("10.0.0.1", 421),
        ("[::2]", 421),
        ("0.0.0.0", 421),
    ],
)
async def test_the_host_is_checked(autojump_clock: MockClock, host: str, status: int) -> None:
    config = configuration({"box": {}}, allowedHosts=["router.pod", "exact.pod:8443"])
    async with open_bench(config) as bench:
        response = await bench.post(initialize(), headers={"host": host})
        assert response.status_code == status
        if status == 421:
            assert len(bench.router.agents) == 0


async def test_a_page_under_the_routers_own_name_is_no_friend(autojump_clock: MockClock) -> None:
    config = configuration({"box": {}}, allowedHosts=["router.pod"])
    async with open_bench(config) as bench:
        for name in ("router.pod", "evil.example"):
            headers = {"host": name, "origin": f"http://{name}"}
            assert (await bench.post(initialize(), headers=headers)).status_code == 403


async def test_a_foreign_page_is_refused_before_anything_else_is_looked_at(bench: Bench) -> None:
    response = await bench.client.put(BASE + "/none", headers={"origin": "https://evil.example"})
    assert response.status_code == 403
