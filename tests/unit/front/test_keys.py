"""Where keys come from: fetched once for all, again when that can help, and kept for a while."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked
from unit.front.auth_kit import AUDIENCE, ISSUER, Idp, Signer, jwks, open_gated

from kars_router.config.auth import AgentAuth, Jwt
from kars_router.front.bearer import UncheckableError
from kars_router.front.jwks import KeySet, parse
from kars_router.front.keyfetch import LIMIT, KeyFetch, is_safe
from kars_router.front.keysource import FetchedKeys, FetchError
from kars_router.testing import AsgiBridge, serve
from kars_router.transports.http import TrioTransport
from kars_router.transports.oauth.addresses import issuer_metadata_urls

JWT = Jwt(issuer=ISSUER, audience=(AUDIENCE,))
ONE, TWO = Signer("one"), Signer("two")
OAUTH = "/.well-known/oauth-authorization-server"
OIDC = "/.well-known/openid-configuration"


class Fetch:
    """A fetch whose end is a test's business.

    Attributes:
        signers: what it brings; None for a failure.
        times: when it was begun.
    """

    def __init__(self, *signers: Signer) -> None:
        self.signers: tuple[Signer, ...] | None = signers
        self.times: list[float] = []
        self.wait = 0.0

    async def __call__(self) -> KeySet:
        self.times.append(trio.current_time())
        await trio.sleep(self.wait)
        if self.signers is None:
            raise FetchError("it is down")
        return parse(jwks(*self.signers))


@asynccontextmanager
async def running(fetch: Fetch) -> AsyncIterator[FetchedKeys]:
    keys = FetchedKeys(fetch, "the issuer")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keys.run)
        yield keys
        nursery.cancel_scope.cancel()


async def kid(keys: FetchedKeys, name: str) -> str | None:
    found = await keys.find(name, "ES256")
    return None if found is None else found.kid


class TestWhen:
    async def test_one_fetch_serves_all_who_wait(self, autojump_clock: MockClock) -> None:
        fetch = Fetch(ONE)
        fetch.wait = 3.0
        found: list[str | None] = []

        async def ask(keys: FetchedKeys, name: str) -> None:
            found.append(await kid(keys, name))

        async with running(fetch) as keys:
            async with trio.open_nursery() as nursery:
                for name in ("one", "one", "nobody", "one"):
                    nursery.start_soon(ask, keys, name)
            assert sorted(found, key=str) == [None, "one", "one", "one"]
            assert len(fetch.times) == 1

    async def test_again_every_five_minutes(self, autojump_clock: MockClock) -> None:
        fetch = Fetch(ONE)
        async with running(fetch) as keys:
            await trio.sleep(1)
            fetch.signers = (TWO,)
            await trio.sleep(280)
            assert await kid(keys, "one") == "one"
            await trio.sleep(30)
            assert await kid(keys, "one") is None
            assert await kid(keys, "two") == "two"
            first, second = fetch.times[:2]
            assert second - first == pytest.approx(300)

    async def test_an_unknown_key_is_looked_for_once_in_a_while(
        self, autojump_clock: MockClock
    ) -> None:
        fetch = Fetch(ONE)
        async with running(fetch) as keys:
            assert await kid(keys, "one") == "one"
            fetch.signers = (ONE, TWO)
            assert await kid(keys, "two") == "two"
            assert len(fetch.times) == 2
            for number in range(100):
                assert await kid(keys, f"unknown-{number}") is None
            assert len(fetch.times) == 2, "anybody can invent names"
            await trio.sleep(31)
            assert await kid(keys, "unknown") is None
            assert len(fetch.times) == 3

    async def test_an_outage_is_survived_for_an_hour(self, autojump_clock: MockClock) -> None:
        fetch = Fetch(ONE)
        async with running(fetch) as keys:
            assert await kid(keys, "one") == "one"
            begun = trio.current_time()
            fetch.signers = None
            await trio.sleep(3590)
            assert await kid(keys, "one") == "one"
            assert await kid(keys, "two") is None
            await trio.sleep(20)
            with pytest.raises(UncheckableError, match="the keys of the issuer are not there"):
                await kid(keys, "one")
            gaps = [b - a for a, b in zip(fetch.times, fetch.times[1:], strict=False)]
            assert gaps[1:7] == pytest.approx([2, 4, 8, 16, 32, 60])
            assert max(gaps[7:]) == pytest.approx(60)
            assert trio.current_time() - begun > 3600
            fetch.signers = (TWO,)
            await trio.sleep(61)
            assert await kid(keys, "two") == "two"

    async def test_without_keys_nobody_waits_for_long(self, autojump_clock: MockClock) -> None:
        fetch = Fetch()
        fetch.signers = None
        async with running(fetch) as keys:
            await trio.sleep(1)
            count = len(fetch.times)
            begun = trio.current_time()
            with pytest.raises(UncheckableError):
                await kid(keys, "one")
            assert trio.current_time() == begun
            assert len(fetch.times) == count, "asking does not make it be tried more often"

    async def test_who_waits_is_told_when_the_source_ends(self, autojump_clock: MockClock) -> None:
        fetch = Fetch(ONE)
        fetch.wait = float("inf")
        async with trio.open_nursery() as nursery, running(fetch) as keys:
            nursery.start_soon(_refused, keys)  # noqa: ASYNC111 - it has to outlive the source
            await wait_all_tasks_blocked()
        assert trio.current_time() < 1 + fetch.times[0]

    async def test_nobody_waits_for_a_source_that_does_not_run(
        self, autojump_clock: MockClock
    ) -> None:
        await _refused(FetchedKeys(Fetch(ONE), "the issuer"))

    async def test_an_outage_is_in_the_log_and_its_end_too(self, autojump_clock: MockClock) -> None:
        fetch = Fetch(ONE)
        with capture_logs() as logs:
            async with running(fetch):
                await trio.sleep(301)
                fetch.signers = None
                await trio.sleep(300)
                fetch.signers = (TWO,)
                await trio.sleep(300)
        said = [line["event"] for line in logs]
        assert said[0] == said[-1] == "agent_keys_fetched"
        assert set(said[1:-1]) == {"agent_keys_unavailable"}
        assert logs[1]["kept_for"] == pytest.approx(3300, abs=10)


async def _refused(keys: FetchedKeys) -> None:
    with pytest.raises(UncheckableError):
        await keys.find("one", "ES256")


@asynccontextmanager
async def fetching(idp: Idp, settings: Jwt = JWT) -> AsyncIterator[KeyFetch]:
    async with trio.open_nursery() as nursery:
        bridge = AsgiBridge(idp.app, nursery)
        yield KeyFetch(settings, lambda _: bridge)
        nursery.cancel_scope.cancel()


class TestHow:
    @pytest.mark.parametrize("number", range(3))
    async def test_each_place_of_metadata(self, number: int, autojump_clock: MockClock) -> None:
        idp = Idp()
        paths = [url.removeprefix(idp.url) for url in issuer_metadata_urls(ISSUER)]
        idp.publish(paths[number])
        async with fetching(idp) as fetch:
            assert [key.kid for key in (await fetch()).keys] == ["one"]
        assert idp.asked == [*paths[: number + 1], "/keys"]

    async def test_a_url_needs_no_metadata(self, autojump_clock: MockClock) -> None:
        idp = Idp()
        settings = Jwt(issuer=ISSUER, audience=("a",), jwks_url=f"{idp.url}/keys")
        async with fetching(idp, settings) as fetch:
            assert len((await fetch()).keys) == 1
        assert idp.asked == ["/keys"]

    @pytest.mark.parametrize(
        "metadata",
        [
            {"issuer": ISSUER + "/", "jwks_uri": "http://127.0.0.1:9999/keys"},
            {"issuer": "https://evil.example", "jwks_uri": "http://127.0.0.1:9999/keys"},
            {"jwks_uri": "http://127.0.0.1:9999/keys"},
            {"issuer": ISSUER},
            {"issuer": ISSUER, "jwks_uri": 7},
            {"issuer": ISSUER, "jwks_uri": "http://idp.example/keys"},
            {"issuer": ISSUER, "jwks_uri": "file:///etc/passwd"},
            {"issuer": ISSUER, "jwks_uri": "https://["},
            [],
            b"<html>",
            b"[" * 200_000,
        ],
    )
    async def test_metadata_that_is_not_to_be_trusted(
        self, metadata: Any, autojump_clock: MockClock
    ) -> None:
        idp = Idp()
        idp.documents[f"{OAUTH}/tenant"] = metadata
        async with fetching(idp) as fetch:
            with pytest.raises(FetchError):
                await fetch()
        assert "/keys" not in idp.asked

    @pytest.mark.parametrize(
        ("document", "said"),
        [
            (b"[]", "is no JSON object with a list of keys"),
            (b" " * (LIMIT + 1), "is larger than 262144 bytes"),
            (None, "status 404"),
        ],
    )
    async def test_keys_that_are_none(
        self, document: bytes | None, said: str, autojump_clock: MockClock
    ) -> None:
        idp = Idp()
        idp.publish()
        idp.documents["/keys"] = document
        if document is None:
            idp.documents["/.well-known/oauth-authorization-server/tenant"] = {
                "issuer": ISSUER,
                "jwks_uri": f"{idp.url}/elsewhere",
            }
        async with fetching(idp) as fetch:
            with pytest.raises(FetchError, match=said):
                await fetch()

    async def test_just_as_much_as_is_taken(self, autojump_clock: MockClock) -> None:
        idp = Idp()
        idp.publish()
        idp.documents["/keys"] = jwks(ONE).ljust(LIMIT)
        async with fetching(idp) as fetch:
            assert len((await fetch()).keys) == 1

    async def test_ten_seconds_for_all_of_it(self, autojump_clock: MockClock) -> None:
        idp = Idp(wait=6.0)
        idp.publish()
        async with fetching(idp) as fetch:
            begun = trio.current_time()
            with pytest.raises(FetchError, match="no answer within 10 s"):
                await fetch()
            assert trio.current_time() - begun == pytest.approx(10)

    async def test_redirects_lead_nowhere(self, autojump_clock: MockClock) -> None:
        idp = Idp(status=307)
        async with fetching(idp) as fetch:
            with pytest.raises(FetchError, match="status 307"):
                await fetch()
        assert len(idp.asked) == 3

    async def test_nobody_there(self) -> None:
        settings = Jwt(issuer="http://127.0.0.1:1", audience=("a",))
        with trio.fail_after(10), pytest.raises(FetchError, match="connecting"):
            await KeyFetch(settings, TrioTransport)()

    @pytest.mark.parametrize(
        ("url", "near", "safe"),
        [
            ("https://idp.example/x", "", True),
            ("http://localhost:8080", "", True),
            ("http://[::1]/", "", True),
            ("http://idp.example", "", False),
            ("http://localhost.evil.example", "", False),
            ("http://10.0.0.1", "", False),
            ("https://localhost", "https://idp.example", False),
            ("https://10.0.0.1", "https://idp.example", False),
            ("https://keys.idp.example", "https://idp.example", True),
            (None, "", False),
        ],
    )
    def test_what_is_trusted(self, url: str, near: str, safe: bool) -> None:
        assert is_safe(url, near=near) is safe


class TestTogether:
    async def test_a_real_issuer_that_rotates_its_key(self) -> None:
        idp = Idp()
        with trio.fail_after(20):
            async with serve(idp.app) as idp.url:
                idp.publish()
                settings = Jwt(issuer=idp.issuer, audience=(AUDIENCE,))
                old = idp.signers[0]
                async with open_gated(AgentAuth(jwt=settings), real=True) as kit:
                    token = old.token(iss=idp.issuer)
                    session = await kit.connect(token)
                    assert (await kit.ask(token)).status_code == 200
                    new = Signer("two")
                    idp.signers = [new]
                    assert (await kit.ask(token)).status_code == 200, "fetched not long ago"
                    # A token of the new key has the keys fetched, and then the old one is none.
                    assert (await kit.ask(new.token(iss=idp.issuer))).status_code == 200
                    assert (await kit.ask(token)).status_code == 401
                    ended = await kit.delete(session, new.token(iss=idp.issuer))
                    assert ended.status_code == 200, "the session is its subject's"
                    assert idp.asked == [f"{OAUTH}/tenant", "/keys"] * 2

    async def test_an_issuer_that_is_down_is_nobodys_fault(self, autojump_clock: MockClock) -> None:
        idp = Idp(status=500)
        idp.publish()
        async with open_gated(AgentAuth(jwt=JWT), idp=idp) as kit:
            response = await kit.ask(idp.signers[0].token())
            assert response.status_code == 503
            assert response.headers["retry-after"] == "5"
            assert "www-authenticate" not in response.headers
            assert kit.refusals("uncheckable") == 1
            assert (await kit.ask()).status_code == 401
            idp.status = 200
            await trio.sleep(60)
            assert (await kit.ask(idp.signers[0].token())).status_code == 200

    async def test_new_settings_have_their_own_keys_fetched(
        self, autojump_clock: MockClock
    ) -> None:
        idp = Idp()
        idp.publish()
        async with open_gated(AgentAuth(), idp=idp) as kit:
            assert idp.asked == []
            kit.put_in_force(AgentAuth(jwt=JWT))
            assert (await kit.ask(idp.signers[0].token())).status_code == 200
            asked = list(idp.asked)
            kit.put_in_force(AgentAuth(jwt=JWT))
            await trio.sleep(1)
            assert idp.asked == asked, "the same settings are not new"
            kit.put_in_force(AgentAuth())
            await trio.sleep(1000)
            assert idp.asked == asked, "nobody needs them any more"

    async def test_a_request_that_waits_for_keys_may_be_given_up(
        self, autojump_clock: MockClock
    ) -> None:
        idp = Idp(wait=4.0)
        idp.publish()
        async with open_gated(AgentAuth(jwt=JWT), idp=idp) as kit:
            with trio.move_on_after(1):
                await kit.ask(idp.signers[0].token())
            await trio.sleep(8)
            begun = trio.current_time()
            assert (await kit.ask(idp.signers[0].token())).status_code == 200
            assert trio.current_time() == begun, "the fetch went on without it"
            assert len(idp.asked) == 2
