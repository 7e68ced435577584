"""What agents that share a listener may not do: use what another subject has opened."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import trio
from agent_kit import BASE, initialize, rpc
from trio.testing import MockClock
from unit.front.auth_kit import KEY, Gated, Signer, bearer, by_file, open_gated, stateless

from kars_router.config.auth import AgentAuth
from kars_router.front.callers import AgentCaller, Requester
from kars_router.front.operations import Answer
from kars_router.front.sealing import Sealer, Ticket
from kars_router.wire import jsonrpc

SIGNER = Signer()
UNKNOWN = (404, "unknown session; send initialize again")


def shown(subject: str, **claims: Any) -> dict[str, str]:
    return bearer(SIGNER.token(sub=subject, **claims))


async def said(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["message"]


class TestHandshakeSessions:
    async def test_anothers_session_is_an_unknown_one(self, tmp_path: Path) -> None:
        async with open_gated(by_file(tmp_path / "keys", SIGNER)) as kit:
            session = await kit.connect(SIGNER.token(sub="alice"))
            bob = shown("bob")
            call = rpc("tools/call", {"name": "tool"})
            assert await said(await kit.post(call, session, headers=bob)) == UNKNOWN
            assert await said(await kit.get(session, headers=bob)) == UNKNOWN
            assert await said(await kit.delete(session, SIGNER.token(sub="bob"))) == UNKNOWN
            # Exactly what somebody gets who made the id up.
            invented = await kit.post(call, "x" * len(session), headers=bob)
            foreign = await kit.post(call, session, headers=bob)
            assert invented.content == foreign.content
            assert invented.headers.items() == foreign.headers.items()
            assert kit.operations.performed == []
            alice = shown("alice", scope="new")
            assert (await kit.post(call, session, headers=alice)).status_code == 200

    async def test_the_same_name_of_another_issuer_is_another_subject(self, tmp_path: Path) -> None:
        async with open_gated(by_file(tmp_path / "keys", SIGNER)) as kit:
            session = await kit.connect(SIGNER.token(sub="alice"))
            other = "http://127.0.0.1:9998"
            kit.put_in_force(by_file(tmp_path / "keys", SIGNER, issuer=other))
            response = await kit.post(rpc("ping"), session, headers=shown("alice", iss=other))
            assert await said(response) == UNKNOWN

    async def test_a_stream_cannot_be_resumed_by_another(
        self, tmp_path: Path, autojump_clock: MockClock
    ) -> None:
        release = trio.Event()

        async def work(_: Requester, __: Any, caller: AgentCaller) -> Answer:
            caller.tell("notifications/message", b'{"level":"error","data":1}')
            await release.wait()
            return Answer(result=b'{"content":["of alice"]}')

        async with open_gated(by_file(tmp_path / "keys", SIGNER)) as kit:
            kit.operations.handlers["tools/call"] = work
            session = await kit.connect(SIGNER.token(sub="alice"))
            usual = {
                "accept": "application/json, text/event-stream",
                "content-type": "application/json",
                "mcp-session-id": session,
            }
            call = rpc("tools/call", {"name": "tool"})
            async with kit.stream(
                "POST", json=call, headers={**usual, **shown("alice")}
            ) as listening:
                await listening.wait_for(lambda one: bool(one.messages))
                event = listening.ids[0]
            release.set()
            resume = {**usual, "last-event-id": event}
            stolen = await kit.client.get(f"{BASE}/mcp", headers={**resume, **shown("bob")})
            assert await said(stolen) == UNKNOWN
            async with kit.stream("GET", headers={**resume, **shown("alice")}) as listening:
                await listening.end()
                assert "of alice" in listening.content.decode()

    async def test_a_session_outlives_the_router_with_its_owner(self, tmp_path: Path) -> None:
        auth = by_file(tmp_path / "keys", SIGNER)
        async with open_gated(auth) as first:
            session = await first.connect(SIGNER.token(sub="alice"))
        async with open_gated(auth) as second:
            foreign = await second.post(rpc("ping"), session, headers=shown("bob"))
            assert await said(foreign) == UNKNOWN
            assert len(second.agents) == 0, "nobody may have others' sessions rebuilt"
            own = await second.post(rpc("ping"), session, headers=shown("alice"))
            assert own.status_code == 200

    async def test_one_of_nobody_is_nobodys_once_names_are_asked_for(self, tmp_path: Path) -> None:
        async with open_gated(AgentAuth()) as kit:
            session = await kit.connect()
            kit.put_in_force(by_file(tmp_path / "keys", SIGNER))
            taken = await kit.post(rpc("ping"), session, headers=shown("bob"))
            assert await said(taken) == UNKNOWN
            owned = await kit.connect(SIGNER.token(sub="bob"))
            kit.put_in_force(AgentAuth())
            assert (await kit.post(rpc("ping"), session)).status_code == 200
            assert await said(await kit.post(rpc("ping"), owned)) == UNKNOWN

    async def test_ids_from_before_there_were_owners_still_open(self) -> None:
        old = Sealer(KEY).seal(Ticket("a", "2025-11-25", "", time.time()))
        async with open_gated(AgentAuth()) as kit:
            assert (await kit.post(rpc("ping"), old)).status_code == 200

    async def test_a_long_subject_makes_no_long_id(self, tmp_path: Path) -> None:
        async with open_gated(by_file(tmp_path / "keys", SIGNER)) as kit:
            short = await kit.connect(SIGNER.token(sub="a"))
            long = await kit.connect(SIGNER.token(sub="a" * 255))
            assert abs(len(long) - len(short)) < 8


class TestStatelessAgents:
    async def test_subjects_are_agents_of_their_own_whatever_they_call_themselves(
        self, tmp_path: Path
    ) -> None:
        async with open_gated(by_file(tmp_path / "keys", SIGNER)) as kit:
            for subject in ("alice", "bob"):
                request = stateless(extra={"kars.azure.com/agent": "alice"})
                request["headers"] |= shown(subject)
                assert (await kit.client.post(f"{BASE}/mcp", **request)).status_code == 200
            agents = [who.agent for who, *_ in kit.operations.performed]
            assert [agent.rpartition(" ")[2] for agent in agents] == ["alice", "bob"]

    async def test_a_parked_call_is_not_anothers_to_go_on_with(
        self, tmp_path: Path, autojump_clock: MockClock
    ) -> None:
        async def work(_: Requester, __: Any, caller: AgentCaller) -> Answer:
            schema = {"type": "object", "properties": {}}
            params = {"mode": "form", "message": "Sure?", "requestedSchema": schema}
            reply = await caller.ask("elicitation/create", jsonrpc.encode(params))
            return Answer(result=b'{"content":[],"answer":%b}' % (reply.result or b"null"))

        async with open_gated(by_file(tmp_path / "keys", SIGNER)) as kit:
            kit.operations.handlers["tools/call"] = work
            asked = (await ask(kit, "alice")).json()["result"]
            assert asked["resultType"] == "input_required"
            (key,) = asked["inputRequests"]
            answers = {
                "requestState": asked["requestState"],
                "inputResponses": {key: {"action": "accept", "content": {}}},
            }
            stolen = await ask(kit, "bob", **answers)
            assert stolen.status_code == 400
            assert "nothing was done" in stolen.json()["error"]["message"]
            assert len(kit.lot) == 1
            own = await ask(kit, "alice", **answers)
            assert own.json()["result"]["answer"]["action"] == "accept"


async def ask(kit: Gated, subject: str, **params: Any) -> Any:
    request = stateless(params, capabilities={"elicitation": {"form": {}}})
    request["headers"] |= shown(subject)
    return await kit.client.post(f"{BASE}/mcp", **request)


@pytest.mark.parametrize("era", ["handshake", "stateless"])
async def test_a_session_is_no_token(tmp_path: Path, era: str) -> None:
    async with open_gated(by_file(tmp_path / "keys", SIGNER)) as kit:
        session = await kit.connect(SIGNER.token(sub="alice"))
        if era == "handshake":
            response = await kit.post(initialize(), session)
        else:
            request = stateless()
            request["headers"]["mcp-session-id"] = session
            response = await kit.client.post(f"{BASE}/mcp", **request)
        assert response.status_code == 401
