from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from agent_kit import Bench, configuration, open_bench
from governance_kit import APPROVE, Recording, Scripted, govern, meta
from trio.testing import MockClock

from kars_router.errors import UserError
from kars_router.front.admin_token import load_admin_token
from kars_router.service import open_router
from kars_router.testing import HeartbeatServer, PlainAgent, text_of

ADMIN = "http://127.0.0.1:9090"
PATH = f"{ADMIN}/api/v1/approvals"
TOKEN = "an admin token of a test"
SHOWN = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KARS_ADMIN_TOKEN", TOKEN)


@asynccontextmanager
async def holding(bench: Bench, agent: PlainAgent, results: list[Any]) -> AsyncIterator[Any]:
    """A call that is held meanwhile; gives it as the API lists it."""

    async def call() -> None:
        results.append(await agent.call("box__increment"))

    bench.router.governance.recorder = recording = Recording()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await recording.wait_held()
        (held,) = (await bench.admin.get(PATH, headers=SHOWN)).json()
        yield held


@pytest.mark.usefixtures("_token")
async def test_a_held_call_is_listed_and_approved(autojump_clock: MockClock) -> None:
    async with open_bench() as bench:
        await govern(bench.router, Scripted(APPROVE))
        agent, results = await bench.connect(), list[Any]()
        async with holding(bench, agent, results) as held:
            assert (held["server"], held["name"], held["waiting"]) == ("box", "increment", True)
            assert (held["client"], held["reason"]) == ("plain-agent", "It deletes things.")
            assert "digest" not in held
            body = {"decision": "approve", "by": "a\x1bda", "comment": "fine"}
            response = await bench.admin.post(f"{PATH}/{held['id']}", json=body, headers=SHOWN)
            assert (response.status_code, response.json()["state"]) == (200, "approved")
            assert response.json()["by"] == "a da"
        assert text_of(results[0]) == "counter: 1"
        again = await bench.admin.post(f"{PATH}/{held['id']}", json=body, headers=SHOWN)
        assert again.status_code == 409
        assert (await bench.admin.get(PATH, headers=SHOWN)).json() == []
        (past,) = (await bench.admin.get(f"{PATH}?all=true", headers=SHOWN)).json()
        assert (past["state"], past["comment"]) == ("used", "fine")


@pytest.mark.usefixtures("_token")
async def test_a_held_call_is_denied_with_a_word_to_the_model(autojump_clock: MockClock) -> None:
    async with open_bench() as bench:
        await govern(bench.router, Scripted(APPROVE))
        agent, results = await bench.connect(), list[Any]()
        async with holding(bench, agent, results) as held:
            body = {"decision": "deny", "comment": "ask me tomorrow"}
            await bench.admin.post(f"{PATH}/{held['id']}", json=body, headers=SHOWN)
        assert meta(results[0])["code"] == "approval_denied"
        assert text_of(results[0]).endswith("ask me tomorrow")
        # It is not asked about again at once.
        assert meta(await agent.call("box__increment"))["code"] == "approval_denied"


@pytest.mark.usefixtures("_token")
async def test_only_who_shows_the_token_sees_or_decides(autojump_clock: MockClock) -> None:
    async with open_bench() as bench:
        await govern(bench.router, Scripted(APPROVE))
        agent = await bench.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.call, "box__increment")
            await trio.sleep(1)
            ((held, _),) = await bench.router.holder.pending()
            for headers in (
                {},
                {"authorization": "Bearer no"},
                {"authorization": f"Basic {TOKEN}"},
            ):
                for response in (
                    await bench.admin.get(PATH, headers=headers),
                    await bench.admin.post(
                        f"{PATH}/{held.id}", json={"decision": "approve"}, headers=headers
                    ),
                ):
                    assert response.status_code == 401
                    assert response.headers["www-authenticate"].startswith("Bearer")
                    assert held.id not in response.text
            ((_, waiting),) = await bench.router.holder.pending()
            assert waiting
            nursery.cancel_scope.cancel()


async def test_without_a_token_nobody_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KARS_ADMIN_TOKEN", raising=False)
    async with open_bench() as bench:
        for shown in ("", "Bearer ", "Bearer x"):
            response = await bench.admin.get(PATH, headers={"authorization": shown})
            assert response.status_code == 503
            assert "KARS_ADMIN_TOKEN" in response.json()["error"]


@pytest.mark.usefixtures("_token")
@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/x", b"", 405),
        ("POST", "", b'{"decision":"approve"}', 405),
        ("DELETE", "", b"", 405),
        ("POST", "/x", b'{"decision":"approve"}', 409),
        ("POST", "/x", b'{"decision":"maybe"}', 400),
        ("POST", "/x", b'{"decision":"approve","more":1}', 400),
        ("POST", "/x", b"{", 400),
        ("POST", "/x", b"[1]", 400),
        ("POST", "/x", b" " * 20_000, 400),
        ("POST", "/../x?all=true", b'{"decision":"approve"}', 404),
    ],
)
async def test_what_is_asked_wrongly_gets_one_sentence(
    bench: Bench, method: str, path: str, body: bytes, status: int
) -> None:
    response = await bench.admin.request(method, PATH + path, content=body, headers=SHOWN)
    assert response.status_code == status
    if status != 404:
        assert response.json()["error"]


async def test_held_calls_survive_a_restart_and_are_made_once(tmp_path: Path) -> None:
    config = configuration({"box": {}}, state=tmp_path)
    async with HeartbeatServer.open() as server:
        async with open_bench(config, servers={"box": server}) as bench:
            await govern(bench.router, Scripted(APPROVE))
            agent = await bench.connect()
            results: list[Any] = []

            async def call() -> None:
                results.append(await agent.call("box__increment"))

            bench.router.governance.recorder = recording = Recording()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                await recording.wait_held()
                await bench.router.drain()
            assert (meta(results[0])["code"], meta(results[0])["retryable"]) == (
                "shutting_down",
                True,
            )
        token = (tmp_path / "admin-token").read_text().strip()
        assert (tmp_path / "admin-token").stat().st_mode & 0o777 == 0o600
        shown = {"authorization": f"Bearer {token}"}
        async with open_bench(config, servers={"box": server}) as bench:
            await govern(bench.router, Scripted(APPROVE))
            (held,) = (await bench.admin.get(PATH, headers=shown)).json()
            assert (held["waiting"], held["name"]) == (False, "increment")
            body = {"decision": "approve"}
            await bench.admin.post(f"{PATH}/{held['id']}", json=body, headers=shown)
            assert server.requests("tools/call") == []
        async with open_bench(config, servers={"box": server}) as bench:
            await govern(bench.router, Scripted(APPROVE))
            again = bench.agent()
            again.session, again.server = agent.session, agent.server
            with trio.fail_after(10):
                assert "counter: 1" in str(await again.call("box__increment"))
            assert len(server.requests("tools/call")) == 1
            assert (await bench.admin.get(PATH, headers=shown)).json() == []


def test_a_token_that_is_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="KARS_ADMIN_TOKEN must hold"):
        load_admin_token(None, {"KARS_ADMIN_TOKEN": "short"})
    (tmp_path / "admin-token").write_text("short\n")
    with pytest.raises(UserError, match="admin-token must hold"):
        load_admin_token(tmp_path, {})
    with pytest.raises(UserError, match="cannot be used"):
        load_admin_token(tmp_path / "none", {})


async def test_policy_status_says_what_is_enforced_and_what_was_refused(bench: Bench) -> None:
    status = (await bench.admin.get(f"{ADMIN}/api/v1/policy-status")).json()
    assert status["schemaVersion"] == 1
    (entry,) = status["entries"]
    assert (entry["kind"], entry["name"], status["count"]) == ("McpServer", "box", 1)
    assert entry["digest"].startswith("sha256:")
    assert status["refused"] is None
    bench.router.refuse(["policies[0]: is wrong"])
    after = (await bench.admin.get(f"{ADMIN}/api/v1/policy-status")).json()
    assert after["digest"] == status["digest"]
    assert after["refused"]["problems"] == ["policies[0]: is wrong"]
    changed = configuration({"box": {"allowedTools": ["re*"]}})
    await bench.router.apply(changed)
    last = (await bench.admin.get(f"{ADMIN}/api/v1/policy-status")).json()
    assert last["digest"] != status["digest"]
    assert last["refused"] is None


async def test_the_status_page_runs_nothing_but_its_own(bench: Bench) -> None:
    response = await bench.admin.get(f"{ADMIN}/")
    assert response.headers["content-type"].startswith("text/html")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "http://" not in response.text
    assert "https://" not in response.text
    head = await bench.admin.head(f"{ADMIN}/")
    assert (head.status_code, head.content) == (200, b"")


async def test_policies_that_nobody_enforces_are_refused() -> None:
    config = configuration(
        {"box": {}}, policies=[{"default": "allow"}], plugins={"blocked": ["toolpolicy"]}
    )
    with pytest.raises(UserError, match="install kars-plugin-toolpolicy"):
        async with open_router(config, serve=False):
            pass


@pytest.mark.usefixtures("_token")
async def test_a_disk_that_fails_is_said_and_decides_nothing(bench: Bench) -> None:
    store = bench.router.holder._store
    store._open()
    assert store._db is not None
    store._db.execute("DROP TABLE approvals")
    for response in (
        await bench.admin.get(PATH, headers=SHOWN),
        await bench.admin.get(f"{PATH}?all=true", headers=SHOWN),
        await bench.admin.post(f"{PATH}/x", json={"decision": "approve"}, headers=SHOWN),
    ):
        assert response.status_code == 503
        assert "cannot read or keep" in response.json()["error"]
        assert "table" not in response.text


@pytest.mark.usefixtures("_token")
@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("127.0.0.1:9090", "http://127.0.0.1:9090", 409),
        ("[::1]:9090", "http://[::1]:9090", 409),
        ("10.1.2.3:9090", "http://10.1.2.3:9090", 409),
        ("localhost:9090", "http://localhost:9090", 409),
        ("127.0.0.1:9090", "http://127.0.0.1:9091", 403),
        ("10.1.2.3:9090", "http://10.1.2.4:9090", 403),
        ("127.0.0.1:9090", "null", 403),
        ("127.0.0.1:9090", "https://evil.test", 403),
        ("evil.test:9090", "http://evil.test:9090", 403),
        ("evil.test:9090", "", 421),
    ],
)
async def test_a_page_may_post_only_where_it_came_from(
    bench: Bench, host: str, origin: str, status: int
) -> None:
    headers = {**SHOWN, "host": host, **({"origin": origin} if origin else {})}
    body = {"decision": "approve"}
    response = await bench.admin.post(f"{PATH}/none", json=body, headers=headers)
    assert response.status_code == status


@pytest.mark.usefixtures("_token")
@pytest.mark.parametrize(("path", "allowed"), [("", "GET, HEAD"), ("/x", "POST")])
async def test_a_wrong_method_names_the_right_ones(bench: Bench, path: str, allowed: str) -> None:
    response = await bench.admin.options(PATH + path, headers=SHOWN)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    assert "access-control-allow-origin" not in response.headers
