"""Agents and people as the upstream side sees them, for tests of what servers say and ask."""

from __future__ import annotations

from typing import Any

import msgspec
import trio
import trio.lowlevel
from attrs import define, field
from unit.session.upstream_kit import Rig

from kars_router.model import CallOutcome, ToolCall
from kars_router.session.caller import Caller, Reply
from kars_router.testing import text_of

EVERYTHING = b'{"sampling":{},"elicitation":{"form":{},"url":{}},"roots":{"listChanged":true}}'
FORM = {"mode": "form", "message": "Really?", "requestedSchema": {"type": "object"}}


@define(eq=False)
class Person(Caller):
    """Somebody who answers, slowly if need be, and remembers what was said."""

    capabilities: bytes = EVERYTHING
    answer: bytes = b'{"action":"accept","content":{"n":1.50}}'
    seconds: float = 0.0
    asked: list[tuple[str, Any]] = field(factory=list)
    told: list[tuple[str, Any]] = field(factory=list)
    interrupted: int = 0

    def notify(self, method: str, params: bytes) -> None:
        self.told.append((method, msgspec.json.decode(params)))

    async def ask(self, method: str, params: bytes) -> Reply:
        self.asked.append((method, msgspec.json.decode(params or b"null")))
        try:
            await trio.sleep(self.seconds)
        except trio.Cancelled:
            self.interrupted += 1
            raise
        return Reply(result=self.answer)


@define(eq=False)
class Agent:
    """An agent that is there, with or without a stream of its own."""

    listens: Person | None = None
    capabilities: bytes = EVERYTHING
    log_level: str = ""
    has_sessions: bool = True
    told: list[tuple[str, str, Any]] = field(factory=list)

    def notify(self, server: str, method: str, params: bytes) -> None:
        self.told.append((server, method, msgspec.json.decode(params or b"null")))

    def bystander(self, server: str) -> Caller | None:
        return self.listens


def present(rig: Rig, agent: str = "a", **options: Any) -> Agent:
    port = Agent(**options)
    rig.router.supervisor.join(agent, port)
    return port


async def call(
    rig: Rig, caller: Caller, tool: str, agent: str = "a", **arguments: Any
) -> CallOutcome:
    params = msgspec.json.encode({"name": tool, "arguments": arguments})
    made = ToolCall(agent=agent, server="s", tool=tool, params=params)
    return await rig.router.supervisor.call(made, caller)


def told(outcome: CallOutcome) -> Any:
    """What the tool `ask` was told."""
    assert outcome.result is not None, outcome
    return msgspec.json.decode(text_of(msgspec.json.decode(outcome.result)))


async def nothing(_: Any) -> dict[str, Any]:
    await trio.lowlevel.checkpoint()
    return {}


def watchable(server: Any) -> None:
    server.add_method("resources/subscribe", nothing)
    server.add_method("resources/unsubscribe", nothing)
