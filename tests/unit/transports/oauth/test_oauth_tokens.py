"""When tokens are got, renewed and given up, in virtual time."""

from __future__ import annotations

import gc
import itertools
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from attrs import evolve
from structlog.testing import capture_logs
from trio.testing import MockClock, assert_no_checkpoints
from unit.transports.oauth.oauth_kit import (
    ISSUER,
    ISSUER_METADATA,
    SECRET,
    SERVER,
    SERVER_METADATA,
    TOKEN_URL,
    Answer,
    Asked,
    World,
    metadata,
    new_source,
    new_world,
    resource,
)

from kars_router.config.auth import Grant
from kars_router.transports.oauth.errors import TokenError
from kars_router.transports.oauth.tokens import TokenSource

SHORT = 'Bearer error="insufficient_scope", scope="{}"'


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", SECRET)


async def value_of(source: TokenSource) -> str:
    token = await source.get()
    assert token is not None
    return token.value


async def renewed(source: TokenSource, refused: str, status: int = 401, said: str = "") -> str:
    token = await source.renew(refused, status=status, said=said)
    assert token is not None
    return token.value


def first_then(world: World, answer: Answer) -> Callable[[Asked], Answer]:
    """Issues one token, and answers otherwise from then on."""
    return lambda asked: answer if world.issued else world.issue(asked)


async def test_one_token_serves_everybody(autojump_clock: MockClock) -> None:
    world = new_world()
    world.rules[TOKEN_URL] = lambda asked: evolve(world.issue(asked), seconds=2)
    source = new_source(world)
    found: list[str] = []

    async def ask() -> None:
        found.append(await value_of(source))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
    await ask()
    assert found == ["token-1"] * 21
    assert world.urls() == [ISSUER_METADATA, TOKEN_URL]
    assert world.open == 0
    assert world.forms()[0]["resource"] == SERVER


async def test_a_token_is_renewed_before_it_expires(autojump_clock: MockClock) -> None:
    world = new_world(lifetime=100)
    source = new_source(world)
    assert await value_of(source) == "token-1"
    await trio.sleep(79)
    with assert_no_checkpoints():
        assert not source.stale("token-1", urgent=False)
    await trio.sleep(2)
    assert source.stale("token-1", urgent=False)
    # An answer to a ping does not wait as long as the token is good for anything.
    assert not source.stale("token-1", urgent=True)
    assert await value_of(source) == "token-2"
    assert source.stale("token-1", urgent=True)
    assert not source.stale("token-2", urgent=False)
    # What is known of the authorization server is not asked for again.
    assert world.urls().count(ISSUER_METADATA) == 1
    await trio.sleep(100)
    assert source.stale("token-2", urgent=True)


@pytest.mark.parametrize(
    ("lifetime", "random", "renewed_after"),
    [(3600, 0.0, 3540), (3600, 0.999, 3480), (10, 0.5, 7), (None, 0.0, 240), (10**9, 0.0, 86340)],
)
async def test_margins_grow_with_lifetimes_and_are_spread(
    autojump_clock: MockClock, lifetime: int | None, random: float, renewed_after: float
) -> None:
    world = new_world(lifetime=lifetime)
    source = TokenSource(
        new_source(world)._settings, SERVER, world.transport, random=lambda: random
    )
    token = await source.get()
    assert token is not None
    assert token.renew - token.got == pytest.approx(renewed_after, abs=0.1)


async def test_while_one_renews_the_others_go_on(autojump_clock: MockClock) -> None:
    world = new_world(lifetime=100)
    source = new_source(world)
    await source.get()
    world.rules[TOKEN_URL] = lambda asked: evolve(world.issue(asked), seconds=2)
    await trio.sleep(85)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.get)
        await trio.testing.wait_all_tasks_blocked()
        assert not source.stale("token-1", urgent=False)
    assert await value_of(source) == "token-2"


async def test_a_token_is_used_until_its_end_if_there_is_no_other(
    autojump_clock: MockClock,
) -> None:
    world = new_world(lifetime=100)
    world.rules[TOKEN_URL] = first_then(world, Answer(status=503))
    source = new_source(world)
    await source.get()
    await trio.sleep(85)
    with capture_logs() as logs:
        assert await value_of(source) == "token-1"
    assert [line["event"] for line in logs] == ["token_not_renewed"]
    # The authorization server is left alone for a moment.
    assert not source.stale("token-1", urgent=False)
    await trio.sleep(1.1)
    assert source.stale("token-1", urgent=False)
    await trio.sleep(14)
    with pytest.raises(TokenError, match="with status 503"):
        await source.get()


async def test_a_token_of_unknown_lifetime_outlives_its_authorization_server(
    autojump_clock: MockClock,
) -> None:
    world = new_world(lifetime=None)
    world.rules[TOKEN_URL] = first_then(world, Answer(broken=True))
    source = new_source(world)
    await source.get()
    await trio.sleep(80_000)
    assert await value_of(source) == "token-1"


async def test_failures_are_shared_and_their_repetition_is_spaced(
    autojump_clock: MockClock,
) -> None:
    world = new_world()
    world.rules[TOKEN_URL] = Answer(status=500)
    source = new_source(world)
    began = trio.current_time()
    while trio.current_time() < began + 300:
        for _ in range(3):
            with pytest.raises(TokenError, match="with status 500"):
                await source.get()
        await trio.sleep(0.25)
    times = [asked.time - began for asked in world.asked if asked.url == TOKEN_URL]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses == sorted(pauses)
    assert 0.5 <= pauses[0] <= 1
    assert 15 <= pauses[-1] <= 30.25
    world.rules[TOKEN_URL] = world.issue
    await trio.sleep(31)
    assert await value_of(source) == "token-1"


async def test_an_authorization_server_says_how_long_to_leave_it_alone(
    autojump_clock: MockClock,
) -> None:
    world = new_world()
    world.rules[TOKEN_URL] = Answer(status=429, headers={"retry-after": "20"})
    source = new_source(world)
    for pause in (0.0, 19.0):
        await trio.sleep(pause)
        with pytest.raises(TokenError, match="with status 429"):
            await source.get()
    assert len(world.forms()) == 1
    world.rules[TOKEN_URL] = world.issue
    await trio.sleep(1.1)
    assert await value_of(source) == "token-1"


async def test_a_changed_secret_is_tried_at_once(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    world = new_world()
    source = new_source(world, client_secret_from_env=None, client_secret_from_file=path)
    for content, sentence in ((None, "cannot be read"), ("", "is empty"), ("a b", "characters")):
        if content is not None:
            path.write_text(content)
        with pytest.raises(TokenError, match=sentence) as caught:
            await source.get()
        assert caught.value.key == "clientSecretFromFile"
    assert world.asked == []
    path.write_text("right\n")
    assert await value_of(source) == "token-1"
    # As kubelet does it: another file under the same name.
    (tmp_path / "next").write_text("other\n")
    (tmp_path / "next").replace(path)
    assert await renewed(source, "token-1") == "token-2"
    sent = [asked.headers["authorization"] for asked in world.asked if asked.url == TOKEN_URL]
    assert len(set(sent)) == 2


async def test_a_subject_token_is_read_anew_for_each_exchange(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    path = tmp_path / "subject"
    path.write_text("first")
    world = new_world(lifetime=100)
    source = new_source(world, grant=Grant.TOKEN_EXCHANGE, subject_token_from_file=path)
    await source.get()
    path.write_text("second")
    mock_clock.jump(90)
    await source.get()
    assert [form["subject_token"] for form in world.forms()] == ["first", "second"]


@pytest.mark.parametrize("content", [b"x" * 70_000, b"\xff"])
async def test_files_that_are_no_secrets(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    source = new_source(new_world(), client_secret_from_env=None, client_secret_from_file=path)
    with pytest.raises(TokenError, match=r"too large|characters"):
        await source.get()


async def test_a_name_that_no_file_has() -> None:
    path = Path("a\0b")
    source = new_source(new_world(), client_secret_from_env=None, client_secret_from_file=path)
    with pytest.raises(TokenError, match="cannot be read: ValueError"):
        await source.get()


async def test_a_variable_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECRET")
    with pytest.raises(TokenError, match="the variable SECRET is empty or not set") as caught:
        await new_source(new_world()).get()
    assert caught.value.key == "clientSecretFromEnv"


async def test_an_attempt_has_an_end(autojump_clock: MockClock) -> None:
    world = new_world()
    world.rules[ISSUER_METADATA] = evolve(metadata(), seconds=2.9)
    world.rules[TOKEN_URL] = Answer(seconds=2.9)
    began = trio.current_time()
    with pytest.raises(TokenError, match=r"no token was issued within 4\.5 s"):
        await new_source(world).get()
    assert trio.current_time() - began == pytest.approx(4.5)
    assert world.open == 0


async def test_a_cancelled_attempt_is_left_to_the_next(autojump_clock: MockClock) -> None:
    world = new_world()
    world.rules[TOKEN_URL] = lambda asked: evolve(world.issue(asked), seconds=2)
    source = new_source(world)
    found: list[str] = []

    async def ask() -> None:
        found.append(await value_of(source))

    async with trio.open_nursery() as nursery:
        with trio.move_on_after(1):
            nursery.start_soon(ask)
            await source.get()
    assert found == ["token-2"]
    with trio.move_on_after(1) as hurry:
        await renewed(source, "token-2")
    assert hurry.cancelled_caught
    assert world.open == 0
    assert await value_of(source) == "token-2"


async def test_a_refused_token_is_replaced_once_for_all_who_were_refused(
    autojump_clock: MockClock,
) -> None:
    world = new_world()
    source = new_source(world)
    await source.get()
    await trio.sleep(100)
    found: list[str] = []

    async def refused() -> None:
        found.append(await renewed(source, "token-1", said='Bearer error="invalid_token"'))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(refused)
    assert found == ["token-2"] * 10
    # Also one that hears of it late.
    await trio.sleep(100)
    await refused()
    assert found[-1] == "token-2"
    assert world.issued == 2


async def test_a_server_that_refuses_every_token_does_not_cost_one_for_each_call(
    autojump_clock: MockClock,
) -> None:
    world = new_world()
    source = new_source(world)
    value = await value_of(source)
    began = trio.current_time()
    while trio.current_time() < began + 600:
        value = await renewed(source, value)
        await trio.sleep(0.5)
    assert 3 < world.issued < 15


async def test_a_refusal_that_is_not_about_the_token_changes_nothing() -> None:
    world = new_world()
    source = new_source(world)
    await source.get()
    for said in ("", "Bearer", 'Bearer error="access_denied"', "Basic realm=x"):
        assert await renewed(source, "token-1", 403, said) == "token-1"
    assert world.issued == 1


async def test_scopes_that_a_server_asks_for_are_added(autojump_clock: MockClock) -> None:
    world = new_world()
    source = new_source(world, scopes=("read",))
    await source.get()
    assert await renewed(source, "token-1", 403, SHORT.format("write read")) == "token-2"
    assert await renewed(source, "token-2", 401, SHORT.format("admin")) == "token-3"
    # Asking for the same once more would bring the same.
    assert await renewed(source, "token-3", 403, SHORT.format("write")) == "token-3"
    assert await renewed(source, "token-3", 403, 'Bearer error="insufficient_scope"') == "token-3"
    await trio.sleep(10_000)
    await source.get()
    asked = [form["scope"] for form in world.forms()]
    assert asked == ["read", "read write", "read write admin", "read write admin"]


async def test_a_server_that_makes_up_scopes_does_not_cost_a_request_for_each_call() -> None:
    world = new_world()

    def grant(asked: Asked) -> Answer:
        if "made-up" in asked.form.get("scope", ""):
            return Answer(status=400, json={"error": "invalid_scope"})
        return world.issue(asked)

    world.rules[TOKEN_URL] = grant
    source = new_source(world, scopes=("read",))
    await source.get()
    for number in range(100):
        said = SHORT.format(f"made-up-{number}")
        assert await renewed(source, "token-1", 403, said) == "token-1"
    assert len(world.forms()) <= 40


async def test_scopes_that_are_not_granted_cost_nothing_else(autojump_clock: MockClock) -> None:
    world = new_world()

    def grant(asked: Asked) -> Answer:
        if "admin" in asked.form.get("scope", ""):
            return Answer(status=400, json={"error": "invalid_scope"})
        return world.issue(asked)

    world.rules[TOKEN_URL] = grant
    source = new_source(world, scopes=("read",))
    await source.get()
    for _ in range(3):
        assert await renewed(source, "token-1", 403, SHORT.format("admin")) == "token-1"
    assert len(world.forms()) == 2
    assert await value_of(source) == "token-1"
    # Where the token itself was refused, another one without them is tried.
    again = new_source(world, scopes=("read",))
    await again.get()
    await trio.sleep(100)
    assert await renewed(again, "token-2", 401, 'Bearer scope="admin"') == "token-3"
    world.rules[TOKEN_URL] = Answer(status=400, json={"error": "invalid_scope"})
    with pytest.raises(TokenError, match="ask for scopes"):
        await new_source(world, scopes=("read",)).get()


async def test_the_server_says_who_issues_its_tokens() -> None:
    world = new_world()
    assert await value_of(new_source(world, issuer=None)) == "token-1"
    assert world.urls() == [SERVER_METADATA, ISSUER_METADATA, TOKEN_URL]


async def test_without_metadata_the_first_refusal_is_asked() -> None:
    world = new_world()
    hinted = "https://mcp.test/meta"
    world.rules[hinted] = world.rules.pop(SERVER_METADATA)
    source = new_source(world, issuer=None)
    assert await source.get() is None
    assert not source.stale("", urgent=False)
    with pytest.raises(TokenError, match="does not say who issues it") as caught:
        await source.renew("", status=401, said="Bearer")
    assert caught.value.key == "issuer"
    said = f'Bearer resource_metadata="{hinted}"'
    assert await renewed(source, "", 401, said) == "token-1"
    assert source.stale("", urgent=True)


async def test_a_secret_is_never_sent_to_another_authorization_server(
    autojump_clock: MockClock,
) -> None:
    world = new_world(lifetime=100)
    source = new_source(world, issuer=None)
    await source.get()
    evil = "https://evil.test"
    world.rules[SERVER_METADATA] = resource(evil)
    world.rules[f"{evil}/.well-known/oauth-authorization-server"] = metadata(evil)
    await trio.sleep(3700)
    with pytest.raises(TokenError, match="now names another authorization server") as caught:
        await source.get()
    assert caught.value.key == "issuer"
    assert not [url for url in world.urls() if url.startswith(evil)]
    await trio.sleep(31)
    world.rules[SERVER_METADATA] = resource()
    assert await value_of(source) == "token-2"


async def test_an_issuer_that_was_configured_is_not_asked_of_the_server() -> None:
    world = new_world()
    world.rules[SERVER_METADATA] = resource("https://evil.test")
    source = new_source(world)
    await source.get()
    said = 'Bearer resource_metadata="https://mcp.test/.well-known/oauth-protected-resource/mcp"'
    await source.renew("token-1", status=401, said=said)
    assert {url.partition("/.")[0] for url in world.urls()} == {ISSUER, TOKEN_URL}


async def test_an_issuer_without_tls_is_refused() -> None:
    world = new_world()
    with pytest.raises(TokenError, match="must start with https") as caught:
        await new_source(world, issuer="http://as.test").get()
    assert caught.value.key == "issuer"
    assert world.asked == []


async def test_a_token_endpoint_that_moved_is_looked_for_again(autojump_clock: MockClock) -> None:
    world = new_world()
    source = new_source(world)
    await source.get()
    world.rules[TOKEN_URL] = Answer(status=308, headers={"location": "https://evil.test/"})
    await trio.sleep(600)
    with pytest.raises(TokenError, match="with status 308"):
        await source.get()
    world.rules[ISSUER_METADATA] = metadata(token_endpoint="https://as.test/new")
    world.rules["https://as.test/new"] = world.issue
    await trio.sleep(1)
    assert await value_of(source) == "token-2"
    assert not [url for url in world.urls() if "evil" in url]


async def test_secrets_and_tokens_are_in_no_log_and_no_error(autojump_clock: MockClock) -> None:
    world = new_world()
    source = new_source(world)
    with capture_logs() as logs:
        token = await source.get()
        world.rules[TOKEN_URL] = Answer(broken=True)
        await trio.sleep(10_000)
        with pytest.raises(TokenError) as caught:
            await source.get()
    shown = repr(logs) + repr(token) + repr(source.__dict__)
    shown += "".join(traceback.format_exception(caught.value)) + repr(caught.value.__cause__)
    assert "token-1" not in shown
    assert SECRET not in shown
    assert caught.value.__cause__ is None


async def test_nothing_is_left_of_a_source() -> None:
    world = new_world()
    await new_source(world).get()
    gc.collect()
    assert world.open == 0
