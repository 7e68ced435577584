"""Holds calls until a person has decided: in the admin interface, or behind the agent.

Owns who waits for which approval. Must not know how calls are made.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import msgspec
import trio
from attrs import define, evolve, field

from kars_router.errors import StoreError
from kars_router.governance import held, questions
from kars_router.governance.approvals import Approval, ApprovalState, ApprovalStore
from kars_router.governance.held import Held
from kars_router.governance.questions import Asker
from kars_router.model import Decision, GovernedCall
from kars_router.telemetry import Metrics, log
from kars_router.wire import jsonrpc

_LONGEST_ARGUMENTS: Final = 16 * 1024
_PROGRESS_SECONDS: Final = 5.0
# Also of those that nobody waits for: an agent that goes away each time must not fill the disk.
_MOST_OPEN: Final = 1000
_LONGEST_SECONDS: Final = 366 * 86_400.0
_AGENT: Final = "the person behind the agent"
T = TypeVar("T")


@define(eq=False)
class _Waiter:
    approval: Approval
    decided: trio.Event = field(factory=trio.Event)
    outcome: Approval | None = None
    end: Held | None = None

    def decide(self, outcome: Approval) -> None:
        self.outcome = outcome
        self.decided.set()

    def give_up(self, end: Held) -> None:
        """Ends the waiting without a decision; the approval stays open."""
        if self.end is None:
            self.end = evolve(end, approval=self.approval.id)
        self.decided.set()


def _nothing(_event: str, **_fields: Any) -> None:
    """Nothing is recorded."""


class Holder:
    """The held calls of one router.

    Args:
        store: what outlives the process.
        metrics: where held calls are counted.
        limit: most calls that are held at once.
        patience: seconds for a decision, unless a policy says otherwise.
        clock: the wall clock, in seconds.

    Attributes:
        note: writes a record of each decision; takes the event and its fields.
    """

    def __init__(
        self,
        store: ApprovalStore,
        metrics: Metrics,
        *,
        limit: int,
        patience: float,
        clock: Callable[[], float],
    ) -> None:
        self.limit, self.patience = limit, patience
        self.note: Callable[..., None] = _nothing
        self._store = store
        self._metrics = metrics
        self._clock = clock
        self._waiters: dict[str, _Waiter] = {}
        self._lock = threading.Lock()
        self._stopping = False

    def __len__(self) -> int:
        return len(self._waiters)

    def stop(self) -> None:
        """Lets go of every held call; none of them is made. What is open stays open."""
        self._stopping = True
        for waiter in self._waiters.values():
            waiter.give_up(held.STOPPING)

    def close(self) -> None:
        """Closes the file; nothing is held any more."""
        self._store.close()

    async def hold(
        self,
        call: GovernedCall,
        decision: Decision,
        asker: Asker,
        *,
        noted: Callable[[str], None],
    ) -> Held:
        """Holds a call until it is decided; an approval is used up when this says that it is given.

        Args:
            call: the call, with the params that would be sent.
            decision: why it is held, and on which terms.
            asker: the agent's side of the request.
            noted: told the approval's id once there is one.

        Cancellation, like an agent that leaves, leaves the approval open.
        """
        try:
            ended = None
            while ended is None:
                ended = await self._hold(call, decision, asker, noted)
        except StoreError as error:
            log().error("approvals_failed", error=str(error), call=call.id)
            return held.FAILED
        return ended

    async def _hold(
        self,
        call: GovernedCall,
        decision: Decision,
        asker: Asker,
        noted: Callable[[str], None],
    ) -> Held | None:
        """See `hold`; None if another call was quicker to use what this one had found."""
        digest = digest_of(call)
        ask = decision.terms.elicitation and questions.can_answer(asker)
        listed, count = await self._db(self._look, digest)
        # Nothing may wait between this and `_waiters` below: each approval has one waiter at most.
        found = next((each for each in listed if each.id not in self._waiters), None)
        if found is not None and found.state is ApprovalState.DENIED:
            return held.denied(found)
        if found is None or found.state is ApprovalState.PENDING:
            operator = decision.terms.operator if found is None else found.operator
            if not (operator or ask):
                return held.UNASKABLE
            if self._stopping:
                return held.STOPPING
            if len(self._waiters) >= self.limit or (found is None and count >= _MOST_OPEN):
                return held.too_many(self.limit)
        approval = found or self._made(call, decision, digest)
        # Before it is on the disk, where another call of the same kind would find it.
        waiter = self._waiters[approval.id] = _Waiter(approval)
        self._metrics.held.set(len(self._waiters))
        try:
            if found is None:
                await self._db(self._store.add, approval)
            noted(approval.id)
            if found is not None:
                current = await self._db(self._store.get, approval.id)
                if current is None or current.state in (ApprovalState.USED, ApprovalState.EXPIRED):
                    return None
                if current.state is not ApprovalState.PENDING:
                    waiter.decide(current)  # while its agent was away, or just now
            if not waiter.decided.is_set():
                await self._wait(call, waiter, asker, ask=ask)
            return await self._ended(waiter, asker)
        finally:
            del self._waiters[approval.id]
            self._metrics.held.set(len(self._waiters))

    def _look(self, digest: str) -> tuple[list[Approval], int]:
        return self._store.find(digest), self._store.count()

    async def decide(
        self, ident: str, *, approve: bool, by: str, comment: str = ""
    ) -> tuple[Approval, bool]:
        """Decides on a held call, from the admin interface.

        Args:
            ident: the approval's id.
            approve: whether the call may be made.
            by: who decides.
            comment: what the model is told with a denial.

        Returns:
            the approval as it is now, and whether its agent was waiting for it.

        Raises:
            LookupError: there is no such approval that waits for this.
            StoreError: it cannot be kept; nothing is decided.
        """
        found = await self._db(self._store.get, ident)
        if found is None or not found.operator:
            raise LookupError(ident)
        changed = await self._change(ident, approve=approve, by=by, comment=comment)
        if changed is None:
            raise LookupError(ident)
        return changed

    async def pending(self) -> list[tuple[Approval, bool]]:
        """What waits for a decision, each with whether its agent is still there.

        Raises:
            StoreError: it cannot be read.
        """
        listed = await self._db(self._store.pending)
        return [(each, each.id in self._waiters) for each in listed]

    async def all(self) -> list[tuple[Approval, bool]]:
        """Every approval that is still known, each with whether somebody waits for it.

        Raises:
            StoreError: it cannot be read.
        """
        return [(each, each.id in self._waiters) for each in await self._db(self._store.all)]

    async def _wait(self, call: GovernedCall, waiter: _Waiter, asker: Asker, *, ask: bool) -> None:
        left = waiter.approval.expires - self._clock()
        with trio.move_on_after(max(left, 0.0)):
            async with trio.open_nursery() as nursery:
                asker.on_withdraw = partial(waiter.give_up, held.CANCELLED)
                if asker.withdrawn:
                    waiter.give_up(held.CANCELLED)
                nursery.start_soon(self._attend, questions.token_of(call.params), waiter, asker)
                if ask:
                    nursery.start_soon(self._ask, waiter, asker)
                await waiter.decided.wait()
                nursery.cancel_scope.cancel()

    async def _attend(self, token: bytes, waiter: _Waiter, asker: Asker) -> None:
        count = 0
        while asker.audible:
            if token:
                left = waiter.approval.expires - self._clock()
                asker.notify(questions.PROGRESS, questions.waiting(token, count, left))
                count += 1
            await trio.sleep(_PROGRESS_SECONDS)
        waiter.give_up(held.GONE)

    async def _ask(self, waiter: _Waiter, asker: Asker) -> None:
        said = await questions.ask(asker, waiter.approval)
        if said is None:
            if not waiter.approval.operator:  # nobody else can decide
                waiter.give_up(held.UNANSWERED)
            return
        try:
            await self._change(waiter.approval.id, approve=said, by=_AGENT)
        except StoreError as error:
            log().error("approvals_failed", error=str(error), approval=waiter.approval.id)
            waiter.give_up(held.FAILED)

    async def _change(
        self, ident: str, *, approve: bool, by: str, comment: str = ""
    ) -> tuple[Approval, bool] | None:
        state = ApprovalState.APPROVED if approve else ApprovalState.DENIED
        # Not to be cut in the middle: what is on the disk is what the waiter gets to know.
        with trio.CancelScope(shield=True):
            changed = await self._db(
                partial(
                    self._store.change,
                    ident,
                    ApprovalState.PENDING,
                    state=state,
                    by=by,
                    comment=comment,
                    decided=self._clock(),
                )
            )
        if changed is None or changed.expires <= self._clock():
            return None
        log().info("approval_decided", approval=ident, state=state.value, by=by)
        fields = {"call": changed.call, "state": state.value, "by": by, "comment": comment}
        self.note("approval_decided", approval=ident, **fields)
        waiter = self._waiters.get(ident)
        if waiter is not None:
            waiter.decide(changed)
        return changed, waiter is not None

    async def _ended(self, waiter: _Waiter, asker: Asker) -> Held:
        ident, outcome = waiter.approval.id, waiter.outcome
        if asker.withdrawn:
            waiter.give_up(held.CANCELLED)
        elif not asker.audible:
            waiter.give_up(held.GONE)
        # Who has left does not use up what was decided meanwhile.
        if waiter.end is not None:
            return waiter.end
        if outcome is not None and outcome.state is ApprovalState.DENIED:
            return held.denied(outcome)
        if outcome is not None:
            with trio.CancelScope(shield=True):
                used = await self._db(
                    partial(
                        self._store.change, ident, ApprovalState.APPROVED, state=ApprovalState.USED
                    )
                )
            if used is not None:
                return Held(approved=True, approval=ident, by=outcome.by)
        await self._db(
            partial(self._store.change, ident, ApprovalState.PENDING, state=ApprovalState.EXPIRED)
        )
        return evolve(held.EXPIRED, approval=ident)

    def _made(self, call: GovernedCall, decision: Decision, digest: str) -> Approval:
        now = self._clock()
        return Approval(
            id=secrets.token_hex(4),
            digest=digest,
            call=call.id,
            agent=call.agent,
            client=call.client,
            subject=call.subject,
            server=call.server,
            method=call.method,
            name=call.name,
            arguments=_shown(call.params),
            reason=decision.reason,
            rule=decision.rule,
            source=decision.source,
            created=now,
            expires=now + self._seconds(decision.terms.expires),
            operator=decision.terms.operator,
        )

    def _seconds(self, wanted: float | None) -> float:
        # What a plugin says may be no number that a file can keep.
        sound = wanted is not None and 0 < wanted <= _LONGEST_SECONDS
        return wanted if sound and wanted is not None else self.patience

    async def _db(self, work: Callable[..., T], *args: Any) -> T:
        if not self._store.blocks:
            await trio.lowlevel.checkpoint()
            return work(*args)

        def locked() -> T:
            with self._lock:
                return work(*args)

        return await trio.to_thread.run_sync(locked)


def digest_of(call: GovernedCall) -> str:
    """What makes two calls the same to the person who approves them.

    The agent, the server, the method and the params; but for `_meta`, in which progress tokens and
    trace ids differ each time.
    """
    try:
        members = jsonrpc.members(call.params or b"{}")
    except jsonrpc.MalformedError:
        members = {}
    members.pop("_meta", None)
    kept = {
        name: bytes(value).decode("utf-8", "surrogateescape") for name, value in members.items()
    }
    parts = [call.agent, call.server, call.method, call.name, *map(str, sorted(kept.items()))]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _shown(params: bytes) -> str:
    try:
        members = jsonrpc.members(params)
        written = bytes(members.get("arguments") or members.get("argument") or b"")
        if not written:
            return ""
        # Without white space, in which arguments could be hidden from who skims a list.
        shown = questions.plain(msgspec.json.format(written, indent=-1).decode("utf-8", "replace"))
    except (jsonrpc.MalformedError, msgspec.DecodeError):
        return ""
    return shown if len(shown) <= _LONGEST_ARGUMENTS else f"{shown[:_LONGEST_ARGUMENTS]}... (cut)"
