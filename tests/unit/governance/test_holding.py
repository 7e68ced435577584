"""Holding calls: races, disks that fail, agents that leave, routers that stop."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, evolve, field
from governance_kit import APPROVE
from trio.testing import MockClock, wait_all_tasks_blocked

from kars_router.errors import StoreError
from kars_router.governance.approvals import FILE, Approval, ApprovalState, ApprovalStore
from kars_router.governance.held import Held
from kars_router.governance.holding import Holder
from kars_router.governance.questions import question
from kars_router.model import ApprovalTerms, Decision, GovernedCall, Ruling
from kars_router.session.caller import Reply, refusal
from kars_router.telemetry import Metrics

FORM = b'{"elicitation":{"form":{}}}'
ELICITED = Decision(ruling=Ruling.APPROVE, terms=ApprovalTerms(operator=False))


@define(eq=False)
class Agent:
    """The agent's side of a request."""

    capabilities: bytes = b"{}"
    withdrawn: bool = False
    heard: bool = True
    on_withdraw: Any = None
    reply: Reply | None = None
    told: list[tuple[str, bytes]] = field(factory=list)

    @property
    def audible(self) -> bool:
        return self.heard

    def notify(self, method: str, params: bytes) -> None:
        self.told.append((method, params))

    async def ask(self, method: str, params: bytes) -> Reply:
        while self.reply is None:
            await trio.sleep_forever()
        return self.reply


@define(eq=False)
class Bench:
    """A holder, and the calls that are being held by it."""

    holder: Holder
    store: ApprovalStore
    nursery: trio.Nursery
    results: list[Held] = field(factory=list)
    noted: list[str] = field(factory=list)
    changed: trio.Event = field(factory=trio.Event)

    def hold(
        self, agent: Agent | None = None, decision: Decision = APPROVE, n: int = 1
    ) -> trio.CancelScope:
        scope = trio.CancelScope()

        async def held() -> None:
            with scope:
                self.results.append(
                    await self.holder.hold(call(n), decision, agent or Agent(), noted=self.note)
                )
                self.changed.set()

        self.nursery.start_soon(held)
        return scope

    def note(self, approval: str) -> None:
        self.noted.append(approval)
        self.changed.set()

    async def ended(self, count: int = 1) -> list[Held]:
        await self.until(lambda: len(self.results) >= count)
        return self.results

    async def until(self, reached: Callable[[], bool]) -> None:
        with trio.fail_after(90):
            while not reached():
                self.changed = trio.Event()
                await self.changed.wait()


def call(n: int = 1) -> GovernedCall:
    return GovernedCall(
        id=str(n),
        agent="agent",
        server="box",
        method="tools/call",
        name="read",
        params=b'{"name":"read","arguments":{"n":%d}}' % n,
    )


@asynccontextmanager
async def bench(store: ApprovalStore, *, limit: int = 10) -> AsyncIterator[Bench]:
    holder = Holder(store, Metrics(), limit=limit, patience=60, clock=lambda: 1000.0)
    async with trio.open_nursery() as nursery:
        yield Bench(holder, store, nursery)
        nursery.cancel_scope.cancel()


@pytest.fixture
def memory() -> Iterator[ApprovalStore]:
    made = ApprovalStore(None, lambda: 1000.0)
    yield made
    made.close()


@define(eq=False, init=False)
class Slow(ApprovalStore):
    """A store on a disk that takes its time."""

    gate: threading.Event
    adding: threading.Event

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, lambda: 1000.0)
        self.gate, self.adding = threading.Event(), threading.Event()

    def add(self, approval: Approval) -> None:
        super().add(approval)
        self.adding.set()
        assert self.gate.wait(30)


async def test_two_alike_at_the_same_time_are_two(tmp_path: Path) -> None:
    store = Slow(tmp_path)
    async with bench(store) as it:
        # One thread may be done with the disk and its task not know it yet, while another reads.
        it.holder._lock = nullcontext()  # type: ignore[assignment]
        it.hold()
        await trio.to_thread.run_sync(store.adding.wait)
        it.hold()  # finds nothing, although the first one's is on the disk already
        await wait_all_tasks_blocked(0.05)
        store.gate.set()
        await it.until(lambda: len(it.noted) == 2)
        first, second = it.noted
        assert first != second
        for ident in it.noted:
            await it.holder.decide(ident, approve=True, by="ada")
        assert [held.approved for held in await it.ended(2)] == [True, True]
    store.close()


async def test_a_router_that_stops_while_a_call_is_being_kept_lets_go_of_it(
    tmp_path: Path,
) -> None:
    store = Slow(tmp_path)
    async with bench(store) as it:
        it.hold()
        await trio.to_thread.run_sync(store.adding.wait)
        it.holder.stop()
        store.gate.set()
        (held,) = await it.ended()
        assert (held.code, held.retryable) == ("shutting_down", True)
    store.close()


async def test_what_comes_after_the_stop_is_not_held(
    autojump_clock: MockClock, memory: ApprovalStore
) -> None:
    async with bench(memory) as it:
        scope = it.hold()
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        it.holder.stop()
        it.hold()  # has an approval that is still open
        it.hold(n=2)
        before = trio.current_time()
        assert [held.code for held in await it.ended(2)] == ["shutting_down"] * 2
        assert trio.current_time() - before < 1
        assert len(memory.pending()) == 1


async def test_no_more_than_the_limit_are_held_whatever_they_find(
    autojump_clock: MockClock, memory: ApprovalStore
) -> None:
    async with bench(memory, limit=1) as it:
        scope = it.hold()
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        it.hold(n=2)
        await wait_all_tasks_blocked()
        it.hold()  # its approval is still open, but there is no room to wait
        (held,) = await it.ended()
        assert (held.code, held.retryable) == ("too_many_held", True)
        # What is decided needs no room.
        (one, _), _ = await it.holder.pending()
        await it.holder.decide(one.id, approve=True, by="ada")
        it.hold()
        assert (await it.ended(2))[1].approved


async def test_calls_that_nobody_waits_for_cannot_pile_up_without_end(
    autojump_clock: MockClock, memory: ApprovalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kars_router.governance.holding._MOST_OPEN", 3)
    async with bench(memory) as it:
        for n in range(3):
            scope = it.hold(n=n)
            await wait_all_tasks_blocked()
            scope.cancel()
        it.hold(n=7)
        (held,) = await it.ended()
        assert held.code == "too_many_held"
        assert len(memory.pending()) == 3


@pytest.mark.parametrize("when", ["add", "get", "use", "find"])
async def test_a_disk_that_fails_denies_the_call(
    autojump_clock: MockClock, memory: ApprovalStore, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> Any:
        raise StoreError("database or disk is full")

    async with bench(memory) as it:
        if when in ("get", "use"):
            scope = it.hold()
            await wait_all_tasks_blocked()
            scope.cancel()
            await wait_all_tasks_blocked()
            ((held, _),) = await it.holder.pending()
            await it.holder.decide(held.id, approve=True, by="ada")
        broken = {"use": "change"}.get(when, when)
        monkeypatch.setattr(memory, broken, fails)
        it.hold()
        (ended,) = await it.ended()
        assert not ended.approved
        assert (ended.code, ended.retryable) == ("approval_unavailable", True)
        assert len(it.holder) == 0
        if when in ("get", "use"):
            monkeypatch.undo()
            it.hold()
            assert (await it.ended(2))[1].approved  # the decision was not lost


async def test_a_disk_that_fails_when_the_person_behind_the_agent_decides(
    autojump_clock: MockClock, memory: ApprovalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> Any:
        raise StoreError("database or disk is full")

    async with bench(memory) as it:
        monkeypatch.setattr(memory, "change", fails)
        yes = Reply(result=b'{"action":"accept","content":{"approve":true}}')
        it.hold(Agent(FORM, reply=yes))
        (ended,) = await it.ended()
        assert ended.code == "approval_unavailable"
        with pytest.raises(StoreError):
            await it.holder.decide(it.noted[0], approve=True, by="ada")


@pytest.mark.parametrize(
    "result",
    [
        b'{"action":"cancel"}',
        b"{}",
        b"[]",
        b"7",
        b'{"action":"accept"}',
        b'{"action":"accept","content":null}',
        b'{"action":"accept","content":{"approve":"true"}}',
        b'{"action":"accept","content":{"approve":1}}',
        b'{"action":"accept","content":[true]}',
        b'{"action":{"accept":true},"content":{"approve":true}}',
        b'{"action":"ACCEPT","content":{"approve":true}}',
        None,
    ],
    ids=str,
)
async def test_an_answer_that_decides_nothing_is_no_denial(
    autojump_clock: MockClock, memory: ApprovalStore, result: bytes | None
) -> None:
    reply = Reply(result=result) if result is not None else refusal("gone")
    async with bench(memory) as it:
        # Where an operator can decide, the call goes on waiting.
        it.hold(Agent(FORM, reply=reply))
        await wait_all_tasks_blocked()
        assert it.results == []
        await it.holder.decide(it.noted[0], approve=True, by="ada")
        assert (await it.ended())[0].approved
        # Where nobody else can, it ends, and the same call is asked about anew.
        it.hold(Agent(FORM, reply=reply), ELICITED)
        assert (await it.ended(2))[1].code == "approval_impossible"
        yes = Reply(result=b'{"action":"accept","content":{"approve":true}}')
        it.hold(Agent(FORM, reply=yes), ELICITED)
        assert (await it.ended(3))[2].approved


async def test_an_open_approval_that_nobody_can_give_any_more(
    autojump_clock: MockClock, memory: ApprovalStore
) -> None:
    async with bench(memory) as it:
        scope = it.hold(Agent(FORM), ELICITED)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        it.hold(Agent(), ELICITED)  # this time its client cannot ask
        (held,) = await it.ended()
        assert held.code == "approval_impossible"


async def test_an_agent_that_is_gone_does_not_use_its_approval_up(
    autojump_clock: MockClock, memory: ApprovalStore
) -> None:
    async with bench(memory) as it:
        agent = Agent()
        it.hold(agent)
        await wait_all_tasks_blocked()
        agent.heard = False
        await it.holder.decide(it.noted[0], approve=True, by="ada")
        (held,) = await it.ended()
        assert (held.approved, held.code) == (False, "agent_gone")
        it.hold()
        assert (await it.ended(2))[1].approved


async def test_an_agent_that_is_gone_is_not_waited_for(
    autojump_clock: MockClock, memory: ApprovalStore
) -> None:
    async with bench(memory) as it:
        agent = Agent()
        it.hold(agent)
        await wait_all_tasks_blocked()
        agent.heard = False
        await trio.sleep(10)
        assert [held.code for held in it.results] == ["agent_gone"]
        ((_, waiting),) = await it.holder.pending()
        assert not waiting


async def test_a_decision_is_noted_even_if_nobody_waits(
    autojump_clock: MockClock, memory: ApprovalStore
) -> None:
    notes: list[tuple[str, dict[str, Any]]] = []
    async with bench(memory) as it:
        it.holder.note = lambda event, **fields: notes.append((event, fields))
        scope = it.hold()
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        _, waiting = await it.holder.decide(
            it.noted[0], approve=False, by="ada", comment="not today"
        )
        assert not waiting
    assert notes == [
        (
            "approval_decided",
            {
                "approval": it.noted[0],
                "call": "1",
                "state": "denied",
                "by": "ada",
                "comment": "not today",
            },
        )
    ]


async def test_a_decision_that_comes_too_late_decides_nothing(
    autojump_clock: MockClock, memory: ApprovalStore
) -> None:
    async with bench(memory) as it:
        it.hold()
        await wait_all_tasks_blocked()
        it.holder._clock = lambda: 1060.0
        with pytest.raises(LookupError):
            await it.holder.decide(it.noted[0], approve=True, by="ada")
        assert (await it.ended())[0].code == "approval_expired"


async def test_what_a_person_sees_of_a_call_is_not_turned_around(
    autojump_clock: MockClock, memory: ApprovalStore
) -> None:
    async with bench(memory) as it:
        params = '{"name":"read","arguments":{"\u202egnp":"\x9b31m\u200b"}}'.encode()
        one = evolve(call(), name="re\u202ead", params=params)
        it.nursery.start_soon(lambda: it.holder.hold(one, APPROVE, Agent(), noted=it.note))
        await wait_all_tasks_blocked()
        ((held, _),) = await it.holder.pending()
        assert held.arguments == r'{"\u202egnp":"\u009b31m\u200b"}'
        assert question(held)["message"].startswith(r"The agent wants to use re\u202ead on")


async def test_what_a_person_sees_of_a_call_has_no_room_to_hide_in(
    autojump_clock: MockClock, memory: ApprovalStore
) -> None:
    async with bench(memory) as it:
        spread = b'{"name":"read","arguments":{"ok":1,' + b" " * 500 + b'\n"path":"/etc"}}'
        one = evolve(call(), params=spread)
        it.nursery.start_soon(lambda: it.holder.hold(one, APPROVE, Agent(), noted=it.note))
        await wait_all_tasks_blocked()
        ((held, _),) = await it.holder.pending()
        assert held.arguments == '{"ok":1,"path":"/etc"}'


def an_approval() -> Approval:
    return Approval(
        id="a",
        digest="d",
        call="c",
        agent="agent",
        server="box",
        method="tools/call",
        name="read",
        created=1000.0,
        expires=1100.0,
    )


def test_a_store_that_failed_works_again(tmp_path: Path) -> None:
    """A transaction that failed must not stay open."""
    store = ApprovalStore(tmp_path, lambda: 1000.0)
    store.add(an_approval())
    assert store._db is not None
    store._db.execute("PRAGMA busy_timeout = 0")
    store._db.execute(
        "CREATE TEMP TRIGGER full BEFORE UPDATE ON approvals BEGIN "
        "SELECT RAISE(FAIL, 'disk is full'); END"
    )
    with pytest.raises(StoreError, match="disk is full"):
        store.change("a", ApprovalState.PENDING, state=ApprovalState.APPROVED)
    store._db.execute("DROP TRIGGER full")
    # Another process reads, or writes, in between.
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked"):
        store.change("a", ApprovalState.PENDING, state=ApprovalState.APPROVED)
    other.execute("COMMIT")
    other.close()
    assert store.get("a") == an_approval()
    changed = store.change("a", ApprovalState.PENDING, state=ApprovalState.APPROVED)
    assert changed is not None
    store.close()


def test_what_is_over_is_forgotten_without_being_listed(tmp_path: Path) -> None:
    now = [1000.0]
    store = ApprovalStore(tmp_path, lambda: now[0])
    body = an_approval()
    store.add(body)
    now[0] += 30 * 86_400
    store.add(evolve(body, id="b", expires=now[0] + 60))
    assert store.get("a") is None
    store.close()


def test_nobody_else_may_read_the_file(tmp_path: Path) -> None:
    store = ApprovalStore(tmp_path, lambda: 1000.0)
    store.add(an_approval())
    files = [path for path in tmp_path.iterdir() if path.name.startswith(FILE)]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    store.close()
