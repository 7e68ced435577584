"""The headers of one session: how long they are kept, and who gets others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import trio
from attrs import define, field
from structlog.testing import capture_logs
from trio.testing import (
    MockClock,
    assert_checkpoints,
    assert_no_checkpoints,
    memory_stream_pair,
)
from unit.transports.streamable_kit import ANSWER, open_wire

from kars_router.builtins.credentials import kars_credentials
from kars_router.errors import CallFailed, UserError
from kars_router.hookspecs import LiveCredentials
from kars_router.model import ServerInfo
from kars_router.testing import Received, Reply
from kars_router.transports.authorization import Authorization
from kars_router.transports.websocket import WebSocket


@define
class Live:
    """Credentials that are told when they are stale, and what a renewal brings."""

    newest: str = "1"
    worn: bool = False
    spent: bool = False
    brings: str = "2"
    trouble: str = ""
    seconds: float = 0.0
    told: list[tuple[object, ...]] = field(factory=list)
    hurried: list[bool] = field(factory=list)

    async def headers(self, *, refresh: bool) -> Mapping[str, str]:
        self.told.append(("headers", refresh))
        await trio.sleep(self.seconds)
        return {"authorization": f"Bearer {self.newest}"}

    async def renew(
        self, refused: Mapping[str, str], *, status: int, challenge: str
    ) -> Mapping[str, str]:
        self.told.append(("renew", dict(refused), status, challenge))
        await trio.sleep(self.seconds)
        if self.trouble:
            raise UserError(self.trouble)
        self.newest = self.brings
        return {"authorization": f"Bearer {self.newest}"}

    def stale(self, headers: Mapping[str, str], *, urgent: bool) -> bool:
        self.hurried.append(urgent)
        return self.spent or (self.worn and not urgent)


async def test_what_is_known_and_good_costs_no_checkpoint() -> None:
    live = Live()
    authorization = Authorization(live)
    with assert_checkpoints():
        await authorization.ensure()
    with assert_no_checkpoints():
        await authorization.ensure()
        await authorization.ensure(urgent=True)
        await Authorization(None).ensure()
    assert live.told == [("headers", False)]
    assert authorization.headers == {"authorization": "Bearer 1"}


async def test_what_is_out_of_date_is_replaced_before_it_is_sent(
    autojump_clock: MockClock,
) -> None:
    live = Live(seconds=1)
    authorization = Authorization(live)
    await authorization.ensure()
    live.worn, live.newest = True, "2"
    with assert_no_checkpoints():
        await authorization.ensure(urgent=True)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(authorization.ensure)
        await trio.sleep(0.5)
        live.worn = False
    assert authorization.headers == {"authorization": "Bearer 2"}
    assert live.told == [("headers", False)] * 2
    live.spent, live.newest = True, "3"
    await authorization.ensure(urgent=True)
    assert authorization.headers == {"authorization": "Bearer 3"}
    assert {"1", "Bearer 2", "3"} <= authorization.values()


async def test_a_refusal_is_handed_on_once_for_all_who_were_refused(
    autojump_clock: MockClock,
) -> None:
    live = Live(seconds=1)
    authorization = Authorization(live)
    await authorization.ensure()
    shown = authorization.headers
    found: list[bool] = []

    async def refused() -> None:
        found.append(await authorization.renew(shown, status=403, challenge="Bearer x=y"))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(refused)
    await refused()
    assert found == [True] * 6
    assert live.told[1:] == [("renew", {"authorization": "Bearer 1"}, 403, "Bearer x=y")]


async def test_the_same_headers_once_more_are_not_worth_a_request(
    autojump_clock: MockClock,
) -> None:
    live = Live(brings="1", seconds=1)
    found: list[bool] = []
    authorization = Authorization(live)
    await authorization.ensure()
    shown = authorization.headers

    async def refused() -> None:
        found.append(await authorization.renew(shown))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(refused)
    assert found == [False] * 5
    assert len(live.told) == 2

    def script(received: Received) -> Reply:
        return Reply.text(401, "who are you")

    async with open_wire(script, credentials=Live(brings="1")) as wire:
        failure = (await wire.refused()).failure
        assert (failure.code, failure.status, failure.body) == ("http_status", 401, "who are you")
        assert len(wire.seen) == 1


async def test_an_answer_to_a_ping_waits_for_no_renewal() -> None:
    live = Live()
    async with open_wire(Reply.json(ANSWER), credentials=live) as wire:
        await wire.send()
        await wire.send()
        await wire.send(control=True)
    assert live.hurried == [False, True]


async def test_what_a_server_says_of_a_token_reaches_its_credentials() -> None:
    live = Live()

    def script(received: Received) -> Reply:
        if received.headers["authorization"] == "Bearer 1":
            return Reply(status=403, headers={"www-authenticate": 'Bearer error="x"'})
        return Reply.json(ANSWER)

    async with open_wire(script, credentials=live) as wire:
        await wire.send()
    assert live.told[1:] == [
        ("renew", {"authorization": "Bearer 1"}, 403, 'Bearer error="x"'),
    ]
    live = Live(trouble="servers.s.oauth: there is none")
    async with open_wire(script, credentials=live) as wire:
        failure = (await wire.refused()).failure
    assert (failure.code, failure.detail) == ("credentials", "servers.s.oauth: there is none")


def bearer(path: Path) -> LiveCredentials:
    found = kars_credentials(ServerInfo(name="s", bearer_from_file=str(path)))
    assert isinstance(found, LiveCredentials)
    return found


async def test_a_rotated_file_is_used_without_a_refusal(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first")

    async def rotate(content: str) -> None:
        # As kubelet does it: a symbolic link comes to point somewhere else.
        (tmp_path / content).write_text(content)
        (tmp_path / "link").symlink_to(tmp_path / content)
        (tmp_path / "link").replace(path)

    seen: list[str] = []

    def script(received: Received) -> Reply:
        seen.append(received.headers["authorization"])
        return Reply.json(ANSWER)

    async with open_wire(script, credentials=bearer(path)) as wire:
        await wire.send()
        await rotate("other")
        await wire.send(control=True)
        await rotate("third")
        await wire.send()
        await wire.send()
    assert seen == ["Bearer first", "Bearer other", "Bearer third", "Bearer third"]


async def test_all_sessions_of_a_server_use_the_newest_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first")
    shared = bearer(path)
    sessions = [Authorization(shared), Authorization(shared)]
    for session in sessions:
        await session.ensure()
    path.write_text("second")
    for session in sessions:
        await session.ensure()
        assert session.headers == {"authorization": "Bearer second"}
        with assert_no_checkpoints():
            await session.ensure()


@pytest.mark.parametrize("content", ["", "a\u00e9b", None])
async def test_a_file_that_becomes_useless_leaves_the_token_it_held(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "token"
    path.write_text("first")
    session = Authorization(bearer(path))
    await session.ensure()
    path.unlink()
    if content is not None:
        path.write_text(content)
    with capture_logs() as logs:
        await session.ensure()
        await session.ensure()
    assert session.headers == {"authorization": "Bearer first"}
    assert [line["event"] for line in logs] == ["token_file_unusable"]
    with pytest.raises(UserError, match=r"servers\.s"):
        await session.renew(session.headers)
    path.write_text("second")
    await session.ensure()
    assert session.headers == {"authorization": "Bearer second"}


async def test_a_refused_upgrade_tells_the_credentials_why(autojump_clock: MockClock) -> None:
    answers = [
        b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer\r\nContent-Length: 0\r\n%b"
        % b'www-authenticate:Basic realm="r" \r\n\r\nWWW-Authenticate: no\r\n',
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
    ]
    seen: list[bytes] = []

    async def answer(stream: trio.abc.Stream) -> None:
        seen.append(bytes(await stream.receive_some()))
        await stream.send_all(answers[len(seen) - 1])
        await stream.aclose()

    async def refused_as(live: Live) -> CallFailed:
        seen.clear()
        async with trio.open_nursery() as nursery:

            async def dial(*_: object) -> trio.abc.Stream:
                client, server = memory_stream_pair()
                nursery.start_soon(answer, server)
                return client

            connection = WebSocket(
                "ws://h.test/", server="s", deliver=lambda *_: None, credentials=live, opener=dial
            )
            with pytest.raises(CallFailed) as caught:
                await connection.open(nursery)
            nursery.cancel_scope.cancel()
        return caught.value

    live = Live()
    assert (await refused_as(live)).failure.status == 403
    said = 'Bearer, Basic realm="r" '
    assert live.told[1:] == [("renew", {"authorization": "Bearer 1"}, 401, said)]
    assert [b"Bearer 1" in seen[0], b"Bearer 2" in seen[1]] == [True, True]
    # The same headers would be refused in the same way.
    assert (await refused_as(Live(brings="1"))).failure.status == 401
    assert len(seen) == 1
