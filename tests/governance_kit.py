"""A plugin that governs as a test says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import trio
from attrs import define, field

from kars_router.errors import JournalError
from kars_router.hookspecs import GovernanceSettings, Governor, Transformer, hookimpl
from kars_router.model import CallEnd, Decision, GovernedCall, Ruling
from kars_router.service import Router

CALL = "kars.azure.com/call"
ALLOW = Decision(ruling=Ruling.ALLOW)
DENY = Decision(ruling=Ruling.DENY, reason="Not on a Sunday.", rule="sunday")
APPROVE = Decision(ruling=Ruling.APPROVE, reason="It deletes things.", rule="ask")


@define(eq=False)
class Scripted:
    """A governor, a transformer and the plugin that makes them.

    Attributes:
        decision: what it says before a call.
        judgement: what it says after one.
        calls: what it was asked about.
        ends: what it heard of.
    """

    decision: Decision | Exception | None = None
    judgement: Decision | Exception | None = None
    rewrite: Callable[[bytes], bytes] | None = None
    slow: float = 0.0
    slow_after: float = 0.0
    calls: list[GovernedCall] = field(factory=list)
    ends: list[tuple[GovernedCall, CallEnd]] = field(factory=list)
    closed: int = 0

    async def before_call(self, call: GovernedCall) -> Decision | None:
        self.calls.append(call)
        await trio.sleep(self.slow)
        return _said(self.decision)

    async def after_call(self, call: GovernedCall, end: CallEnd) -> Decision | None:
        self.ends.append((call, end))
        await trio.sleep(self.slow_after)
        return _said(self.judgement)

    async def aclose(self) -> None:
        self.closed += 1

    def outgoing(self, call: GovernedCall) -> bytes:
        return self.rewrite(call.params) if self.rewrite else call.params

    def incoming(self, call: GovernedCall, body: bytes) -> bytes:
        return self.rewrite(body) if self.rewrite else body

    @hookimpl
    def kars_governors(self, settings: GovernanceSettings) -> Sequence[Governor]:
        return [self]

    @hookimpl
    def kars_transformers(self, settings: GovernanceSettings) -> Sequence[Transformer]:
        return [self] if self.rewrite else []


def _said(value: Decision | Exception | None) -> Decision | None:
    if isinstance(value, Exception):
        raise value
    return value


async def govern(router: Router, *plugins: Scripted) -> None:
    """Puts governors in force."""
    for index, plugin in enumerate(plugins):
        router.plugins.register(plugin, f"scripted{index}")
    await router.governance.adopt(router.governance.prepare(()))


def meta(result: Any) -> Any:
    """What the router says of a call that it did not complete."""
    return result["_meta"][CALL]


@define(eq=False)
class Recording:
    """A record of calls in memory.

    Attributes:
        entries: what was recorded, each with the call's id.
        failing: the events that cannot be recorded.
    """

    entries: list[tuple[str, ...]] = field(factory=list)
    failing: set[str] = field(factory=set)
    _held: trio.Event = field(factory=trio.Event)

    def accepted(
        self, call: GovernedCall, decision: Decision, visible: Callable[[], bytes | None]
    ) -> None:
        self._add("accepted", call.id, decision.ruling.value)

    def held(self, call_id: str, approval: str) -> None:
        self._held.set()
        self._add("held", call_id, approval)

    def decided(self, call_id: str, approval: str, ruling: Ruling, by: str) -> None:
        self._add("decided", call_id, ruling.value, by)

    def sent(self, call_id: str, generation: int) -> None:
        self._add("sent", call_id, str(generation))

    def ended(self, call_id: str, end: CallEnd) -> None:
        self.entries.append(("ended", call_id, end.fate.value, end.code))

    def of(self, call_id: str) -> list[tuple[str, ...]]:
        """What was recorded of a call, without its id."""
        return [(event, *rest) for event, ident, *rest in self.entries if ident == call_id]

    async def wait_held(self) -> None:
        """Returns once a call is held."""
        with trio.fail_after(10):
            await self._held.wait()

    def _add(self, event: str, *fields: str) -> None:
        if event in self.failing:
            raise JournalError("the disk is full")
        self.entries.append((event, *fields))
