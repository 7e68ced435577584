"""What is made of the answers of routers, which may be anything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec
import pytest
import trio
from kars_operator.enforcement import Heard, Routers, get, read
from kars_operator.knowledge import trim_pod
from kars_operator.store import Key

from kars_router.testing import serve

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
KEY = Key("team", "box")
ENTRY = {"kind": "McpServer", "name": "a", "digest": "d", "more": 1}


def test_an_answer_says_what_is_enforced() -> None:
    body = msgspec.json.encode({"digest": "x", "entries": [ENTRY], "refused": None})
    assert read("p", body) == Heard(
        pod="p", digest="x", entries=frozenset({("McpServer", "a", "d")})
    )


def test_what_was_refused_is_cut() -> None:
    refused = {"at": "t", "problems": ["x" * 1000, "y"]}
    body = msgspec.json.encode({"digest": "x", "entries": [], "refused": refused})
    assert read("p", body).refused == "x" * 300


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"digest":1,"entries":[]}',
        b'{"digest":"x","entries":[1]}',
        b'{"digest":"x","entries":null}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_anything_else_is_no_answer(body: bytes) -> None:
    with pytest.raises(ValueError, match="none of a router"):
        read("p", body)


async def answer(body: bytes, status: int = 200) -> bytes:
    """What `get` makes of a server that answers this."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (kind := (await receive())["type"]) != "lifespan.shutdown":
                await send({"type": f"{kind}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": body})

    async with serve(app) as url:
        return await get(f"{url}/api/v1/policy-status")


async def test_an_answer_is_fetched() -> None:
    with trio.fail_after(10):
        assert await answer(b"{}") == b"{}"


async def test_a_refusal_and_an_endless_answer_are_none() -> None:
    with trio.fail_after(20):
        with pytest.raises(ValueError, match="status 503"):
            await answer(b"", 503)
        with pytest.raises(ValueError, match="too long"):
            await answer(b"x" * (3 << 20))


def pod(name: str, address: str | None, **more: object) -> dict[str, object]:
    ports = [{"name": "admin", "containerPort": 9090}]
    return trim_pod(
        {
            "metadata": {"name": name, "namespace": "team", "uid": name, "resourceVersion": "1"},
            "spec": {"initContainers": [{"name": "router", "ports": ports}], "containers": [{}]},
            "status": {"phase": "Running", "podIP": address, **more},
        }
    )


async def test_every_running_pod_is_asked_at_its_address() -> None:
    asked: list[str] = []
    told: list[Key] = []

    async def fetch(url: str) -> bytes:
        asked.append(url)
        return b'{"digest":"x","entries":[]}'

    pods = [pod("a", "10.0.0.1"), pod("b", "fd00::1"), pod("c", None)]
    pods.append(pod("d", "10.0.0.2", phase="Failed"))
    routers = Routers(lambda _: pods, told.append, fetch)
    await routers.ask(KEY)
    assert asked == [
        "http://10.0.0.1:9090/api/v1/policy-status",
        "http://[fd00::1]:9090/api/v1/policy-status",
    ]
    assert [(each.pod, each.digest, each.pending) for each in routers.heard(KEY)] == [
        ("a", "x", False),
        ("b", "x", False),
        ("c", "", True),
    ]
    await routers.ask(KEY)
    assert told == [KEY]  # it is no news when nothing is new
