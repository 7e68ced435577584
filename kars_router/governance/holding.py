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

import trio
from attrs import define, field, frozen

from kars_router.governance import questions
from kars_router.governance.approvals import Approval, ApprovalState, ApprovalStore
from kars_router.governance.questions import Asker
from kars_router.model import Decision, GovernedCall
from kars_router.telemetry import Metrics, log
from kars_router.wire import jsonrpc

_LONGEST_ARGUMENTS: Final = 16 * 1024
_PROGRESS_SECONDS: Final = 5.0
_AGENT: Final = "the person behind the agent"
T = TypeVar("T")


@frozen(kw_only=True)
class Held:
    """How the holding of a call ended.

    Attributes:
        approved: whether the call may be made, once, now.
        code: why not, as a stable name; "" if it may.
        reason: the same as a sentence for the model.
        approval: its id, "" if there is none.
        by: who decided.
        retryable: whether the same call may be made again, and finds the approval then.
    """

    approved: bool = False
    code: str = ""
    reason: str = ""
    approval: str = ""
    by: str = ""
    retryable: bool = False


@define(eq=False)
class _Waiter:
    approval: Approval
    decided: trio.Event = field(factory=trio.Event)
    outcome: Approval | None = None
    withdrawn: bool = False
    stopping: bool = False

    def decide(self, outcome: Approval) -> None:
        self.outcome = outcome
        self.decided.set()


class Holder:
    """The held calls of one router.

    Args:
        store: what outlives the process.
        metrics: where held calls are counted.
        limit: most calls that are held at once.
        patience: seconds for a decision, unless a policy says otherwise.
        clock: the wall clock, in seconds.
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
            waiter.stopping = True
            waiter.decided.set()

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
        digest = digest_of(call)
        ask = decision.terms.elicitation and questions.can_answer(asker)
        found = [a for a in await self._db(self._store.find, digest) if a.id not in self._waiters]
        if found:
            approval = found[0]
            if approval.state is ApprovalState.DENIED:
                return _denied(approval)
        elif not (decision.terms.operator or ask):
            return Held(
                code="approval_impossible",
                reason="This call needs the approval of the person behind the agent, and the "
                "agent's client offers no way to ask; it was not made.",
            )
        elif self._stopping or len(self._waiters) >= self.limit:
            return Held(
                code="too_many_held",
                reason=f"{self.limit} calls are waiting for approval already, so this one was not "
                "made. Try again later.",
                retryable=True,
            )
        else:
            approval = self._made(call, decision, digest)
            await self._db(self._store.add, approval)
        noted(approval.id)
        waiter = self._waiters[approval.id] = _Waiter(approval)
        self._metrics.held.set(len(self._waiters))
        try:
            current = await self._db(self._store.get, approval.id)
            if current is not None and current.state is not ApprovalState.PENDING:
                waiter.decide(current)  # while its agent was away, or just now
            else:
                await self._wait(call, waiter, asker if ask else None, asker)
            return await self._ended(waiter, asker)
        finally:
            del self._waiters[approval.id]
            self._metrics.held.set(len(self._waiters))

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
        """
        found = await self._db(self._store.get, ident)
        if found is None or not found.operator:
            raise LookupError(ident)
        changed = await self._change(ident, approve=approve, by=by, comment=comment)
        if changed is None:
            raise LookupError(ident)
        return changed

    async def pending(self) -> list[tuple[Approval, bool]]:
        """What waits for a decision, each with whether its agent is still there."""
        listed = await self._db(self._store.pending)
        return [(each, each.id in self._waiters) for each in listed]

    async def all(self) -> list[tuple[Approval, bool]]:
        """Every approval that is still known, each with whether somebody waits for it."""
        return [(each, each.id in self._waiters) for each in await self._db(self._store.all)]

    async def _wait(
        self, call: GovernedCall, waiter: _Waiter, askable: Asker | None, asker: Asker
    ) -> None:
        left = waiter.approval.expires - self._clock()
        with trio.move_on_after(max(left, 0.0)):
            async with trio.open_nursery() as nursery:
                asker.on_withdraw = partial(_withdraw, waiter)
                if asker.withdrawn:
                    _withdraw(waiter)
                nursery.start_soon(self._tell, questions.token_of(call.params), waiter, asker)
                if askable is not None:
                    nursery.start_soon(self._ask, waiter, askable)
                await waiter.decided.wait()
                nursery.cancel_scope.cancel()

    async def _tell(self, token: bytes, waiter: _Waiter, asker: Asker) -> None:
        count = 0
        while token:
            left = waiter.approval.expires - self._clock()
            asker.notify(questions.PROGRESS, questions.waiting(token, count, left))
            count += 1
            await trio.sleep(_PROGRESS_SECONDS)

    async def _ask(self, waiter: _Waiter, asker: Asker) -> None:
        said = await questions.ask(asker, waiter.approval)
        if said is None:
            if not waiter.approval.operator:  # nobody else can decide
                said = False
            else:
                return
        await self._change(waiter.approval.id, approve=said, by=_AGENT)

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
        waiter = self._waiters.get(ident)
        if waiter is not None:
            waiter.decide(changed)
        return changed, waiter is not None

    async def _ended(self, waiter: _Waiter, asker: Asker) -> Held:
        ident, outcome = waiter.approval.id, waiter.outcome
        if waiter.withdrawn or asker.withdrawn:
            return Held(
                code="cancelled",
                reason="The call was cancelled before it was made.",
                approval=ident,
            )
        if outcome is not None and outcome.state is ApprovalState.APPROVED:
            with trio.CancelScope(shield=True):
                used = await self._db(
                    partial(
                        self._store.change, ident, ApprovalState.APPROVED, state=ApprovalState.USED
                    )
                )
            if used is not None:
                return Held(approved=True, approval=ident, by=outcome.by)
        if outcome is not None and outcome.state is ApprovalState.DENIED:
            return _denied(outcome)
        if waiter.stopping:
            return Held(
                code="shutting_down",
                reason="The router is shutting down; the call was not made. Its approval is still "
                "open: the same call made again will find it.",
                approval=ident,
                retryable=True,
            )
        await self._db(
            partial(self._store.change, ident, ApprovalState.PENDING, state=ApprovalState.EXPIRED)
        )
        return Held(
            code="approval_expired",
            reason="Nobody approved this call in time, so it was not made.",
            approval=ident,
        )

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
            expires=now + (decision.terms.expires or self.patience),
            operator=decision.terms.operator,
        )

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


def _withdraw(waiter: _Waiter) -> None:
    waiter.withdrawn = True
    waiter.decided.set()


def _denied(approval: Approval) -> Held:
    said = f" They said: {approval.comment}" if approval.comment else ""
    return Held(
        code="approval_denied",
        reason=f"A person was asked about this call and denied it; it was not made.{said}",
        approval=approval.id,
        by=approval.by,
    )


def _shown(params: bytes) -> str:
    try:
        written = bytes(jsonrpc.members(params).get("arguments", b""))
    except jsonrpc.MalformedError:
        return ""
    shown = written.decode("utf-8", "replace")
    return shown if len(shown) <= _LONGEST_ARGUMENTS else f"{shown[:_LONGEST_ARGUMENTS]}... (cut)"
