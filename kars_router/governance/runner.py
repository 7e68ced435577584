"""The way of one call through governance: decide, hold, transform, record, make, judge.

Owns the order of these steps and which set of rules is in force. Must not know HTTP, sessions or
how a call is made.

The order: every governor decides; transformers change what is sent, so that a person who approves
sees just that; the call is recorded as accepted; it is held, if somebody has to approve it; it is
made, and recorded as sent before its first byte leaves; transformers change the result; every
governor sees the end, and may withhold the result; the fate is recorded.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio
from attrs import define, evolve, field
from msgspec.structs import replace

from kars_router import policy
from kars_router.barriers import GuardedGovernor, GuardedTransformer, TransformError
from kars_router.errors import JournalError
from kars_router.governance.continued import Continued
from kars_router.governance.held import Held
from kars_router.governance.holding import Holder
from kars_router.governance.questions import Asker
from kars_router.governance.recorder import Recorder
from kars_router.governance.rules import Rules
from kars_router.hookspecs import GovernanceSettings
from kars_router.model import CallEnd, CallOutcome, Decision, Fate, GovernedCall, Ruling
from kars_router.plugins import Plugins
from kars_router.telemetry import Metrics, log

# Even in a hurry, what needs no waiting is done.
_LEAST_SECONDS: Final = 0.05

BeforeSend = Callable[[int], CallOutcome | None]
Make = Callable[[bytes, BeforeSend], Awaitable[CallOutcome]]


@define(eq=False)
class _Passage:
    """One call on its way."""

    call: GovernedCall
    rules: Rules
    started: float
    asked: list[GuardedGovernor] = field(factory=list)
    decision: Decision = policy.ADMITTED
    sent: bool = False


class Governance:
    """Governs the calls of one router.

    Args:
        plugins: where governors and transformers come from.
        metrics: where decisions are counted.
        holder: holds calls that need approval.
        state: directory for what has to outlive the process, or None.
        deadline: seconds for each governor, before and after a call.
        clock: the wall clock, in seconds.

    Attributes:
        deadline: the same, while it may change.
        recorder: where calls are recorded, or None.
        fail_open: whether calls that cannot be recorded are made all the same.
    """

    def __init__(
        self,
        plugins: Plugins,
        metrics: Metrics,
        holder: Holder,
        *,
        state: Path | None,
        deadline: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.deadline = deadline
        self.recorder: Recorder | None = None
        self.fail_open = False
        self.holder = holder
        self._plugins = plugins
        self._metrics = metrics
        self._state = state
        self._clock = clock
        self._rules = Rules()
        self._continued = Continued()
        self._until = math.inf

    @property
    def active(self) -> bool:
        """Whether anything is to be done about calls at all."""
        rules = self._rules
        return bool(rules.governors or rules.transformers or self.recorder)

    def prepare(self, policies: Sequence[Any], *, strict: bool = True) -> Rules:
        """Makes the rules for a set of policies; nothing is in force yet.

        Args:
            policies: the policies.
            strict: whether a plugin that fails is an error, even if it is not required. If not,
                every call is denied, and the log says why.

        Raises:
            ConfigError: a policy cannot be used.
            PluginError: a plugin failed.
        """
        settings = GovernanceSettings(policies=policies, state=self._state)
        # Governors hold things, so they are made last, when nothing else can go wrong.
        transformers = self._plugins.transformers(settings, strict=strict)
        return Rules(self._plugins.governors(settings, strict=strict), transformers)

    async def adopt(self, rules: Rules) -> None:
        """Puts a set of rules in force for the next call; calls on their way keep theirs."""
        old, self._rules = self._rules, rules
        old.retired = True
        await old.let_go()

    def hurry(self, seconds: float) -> None:
        """The router is about to end: all governors together get so many seconds from now on."""
        self._until = trio.current_time() + seconds

    async def aclose(self) -> None:
        """Has governors write down what they must; no call follows."""
        await self.adopt(Rules())

    def overheard(self, server: str, agent: str) -> Callable[[bytes], bytes] | None:
        """What a server says to an agent outside of any call passes this, or None."""
        if not self._rules.transformers:
            return None
        return self.censor(GovernedCall(id="", agent=agent, server=server, method="", name=""))

    def censor(self, call: GovernedCall) -> Callable[[bytes], bytes] | None:
        """What every notification and question of a call's server passes, or None."""
        transformers = self._rules.transformers
        if not transformers:
            return None

        def passed(body: bytes) -> bytes:
            return _incoming(transformers, call, body)

        return passed

    async def perform(self, call: GovernedCall, asker: Asker, make: Make) -> CallOutcome:
        """Brings one call to its end; never raises for anything that goes wrong with it.

        Args:
            call: the call.
            asker: the agent's side of it.
            make: makes it with these params; calls back before anything is sent.

        Cancellation ends it with what is known by then; governors and the record learn of that.
        """
        passage = _Passage(call, self._rules, time.perf_counter())
        passage.rules.users += 1
        outcome: CallOutcome | None = None
        try:
            outcome = await self._made(passage, asker, make)
        finally:
            passage.rules.users -= 1
            known = _abandoned(sent=passage.sent) if outcome is None else outcome
            with trio.CancelScope(shield=True):  # each governor is bounded
                ended = await self._ended(passage, known)
                await passage.rules.let_go()
        return ended

    def note_refused(self, call: GovernedCall, outcome: CallOutcome) -> None:
        """Records a call that was refused before anybody was asked about it."""
        decision = _denial(outcome.code, outcome.message)
        passage = _Passage(call, self._rules, time.perf_counter(), decision=decision)
        self._accepted(passage)
        if self.recorder is not None:
            end = CallEnd(decision=decision, fate=outcome.fate, code=outcome.code)
            self.recorder.ended(call.id, end)

    async def _made(self, passage: _Passage, asker: Asker, make: Make) -> CallOutcome:
        await self._decide(passage)
        self._transform(passage)
        if not self._accepted(passage):
            return self._unrecorded(passage)
        decision = passage.decision
        if decision.ruling is Ruling.DENY:
            return _refused(decision, retryable=decision.retry_after is not None)
        approval = ""
        if decision.ruling is Ruling.APPROVE:
            held = await self._hold(passage, asker)
            approval = held.approval
            if not held.approved:
                passage.decision = _denial(held.code, held.reason)
                return _refused(passage.decision, retryable=held.retryable)
            passage.decision = evolve(decision, ruling=Ruling.ALLOW, code="approved")

        def before_send(generation: int) -> CallOutcome | None:
            if not self._record(passage.call, lambda r: r.sent(passage.call.id, generation)):
                return self._unrecorded(passage)
            passage.sent = True
            return None

        outcome = await make(passage.call.params, before_send)
        if approval and outcome.result is not None:
            self._continued.note(passage.call, outcome.result, approval)
        return self._seen(passage, outcome)

    def _accepted(self, passage: _Passage) -> bool:
        visible = partial(_visible, passage)
        call = passage.call
        return self._record(call, lambda r: r.accepted(call, passage.decision, visible))

    def _transform(self, passage: _Passage) -> None:
        if passage.decision.ruling is Ruling.DENY:
            return
        try:
            for each in passage.rules.transformers:
                params = each.outgoing(passage.call)
                if params is not passage.call.params:
                    passage.call = evolve(passage.call, params=params)
        except TransformError:
            passage.decision = _denial(
                "policy_error",
                "What this call would send could not be checked for secrets, so it was not made.",
            )

    def _unrecorded(self, passage: _Passage) -> CallOutcome:
        passage.decision = _denial("audit_unavailable", _UNRECORDED)
        return _refused(passage.decision, retryable=True)

    async def _decide(self, passage: _Passage) -> None:
        said = []
        for governor in passage.rules.governors:
            passage.asked.append(governor)
            decision = await governor.before_call(passage.call, seconds=self._patience())
            if decision is not None:
                said.append(decision)
        passage.decision = decision = policy.fold(said)
        self._metrics.decision_seconds.observe(time.perf_counter() - passage.started)
        code = decision.code if decision.ruling is Ruling.DENY else "ok"
        self._metrics.decisions.labels(passage.call.server, decision.ruling.value, code).inc()
        if decision.ruling is Ruling.DENY:
            log().warning(
                "call_denied",
                call=passage.call.id,
                server=passage.call.server,
                tool=passage.call.name,
                agent=passage.call.agent,
                code=decision.code,
                rule=decision.rule,
                source=decision.source,
            )

    async def _hold(self, passage: _Passage, asker: Asker) -> Held:
        call = passage.call
        if before := self._continued.take(call):
            # A further round of a call that was approved: the same question again would be none.
            by = "an earlier round"
            self._record(call, lambda r: r.decided(call.id, before, Ruling.ALLOW, by))
            return Held(approved=True, approval=before)
        log().info("call_held", call=call.id, server=call.server, tool=call.name, agent=call.agent)
        held = await self.holder.hold(
            call,
            passage.decision,
            asker,
            noted=lambda approval: self._noted(call, approval),
        )
        if held.approval:
            ruling = Ruling.ALLOW if held.approved else Ruling.DENY
            by = held.by or held.code
            self._record(call, lambda r: r.decided(call.id, held.approval, ruling, by))
        return held

    def _noted(self, call: GovernedCall, approval: str) -> None:
        self._record(call, lambda r: r.held(call.id, approval))

    def _seen(self, passage: _Passage, outcome: CallOutcome) -> CallOutcome:
        """An outcome after the transformers."""
        transformers = passage.rules.transformers
        if not transformers or (outcome.result is None and outcome.error is None):
            return outcome
        try:
            if outcome.result is not None:
                seen = _incoming(transformers, passage.call, outcome.result)
                return outcome if seen is outcome.result else replace(outcome, result=seen)
            error = _incoming(transformers, passage.call, outcome.error or b"{}")
            return replace(outcome, error=error)
        except TransformError:
            return self._withheld(
                passage,
                outcome,
                _denial("policy_error", "Its result could not be checked for secrets."),
            )

    def _patience(self) -> float:
        return min(self.deadline, max(self._until - trio.current_time(), _LEAST_SECONDS))

    async def _ended(self, passage: _Passage, outcome: CallOutcome) -> CallOutcome:
        end = CallEnd(
            decision=passage.decision,
            fate=outcome.fate,
            code=outcome.code,
            result=outcome.result,
            error=outcome.error,
            seconds=time.perf_counter() - passage.started,
        )
        for governor in passage.asked:
            denial = await governor.after_call(passage.call, end, seconds=self._patience())
            if denial is not None and (outcome.result is not None or outcome.error is not None):
                outcome = self._withheld(passage, outcome, denial)
        if outcome.code != end.code:
            end = evolve(end, code=outcome.code, result=outcome.result, error=outcome.error)
        if self.recorder is not None:
            self.recorder.ended(passage.call.id, end)
        return outcome

    def _withheld(self, passage: _Passage, outcome: CallOutcome, denial: Decision) -> CallOutcome:
        call = passage.call
        self._metrics.withheld.labels(call.server, denial.code).inc()
        log().warning(
            "result_withheld", call=call.id, server=call.server, tool=call.name, code=denial.code
        )
        return CallOutcome(
            fate=outcome.fate,
            code=denial.code,
            message=f"{_WITHHELD[outcome.fate]} {denial.reason}",
            reset=outcome.reset,
        )

    def _record(self, call: GovernedCall, write: Callable[[Recorder], None]) -> bool:
        """Whether the call may go on."""
        if self.recorder is None:
            return True
        try:
            write(self.recorder)
        except JournalError as error:
            # The only trace that is left of it.
            log().error(
                "audit_failed",
                call=call.id,
                server=call.server,
                tool=call.name,
                agent=call.agent,
                error=str(error),
                calls="go on" if self.fail_open else "no",
            )
            return self.fail_open
        return True


def new_call_id() -> str:
    """An id for a call."""
    return secrets.token_hex(8)


_WITHHELD: Final = {
    Fate.EXECUTED: "The call was executed, but its result is withheld.",
    Fate.NOT_EXECUTED: "The call was not executed, and what was said of it is withheld.",
    Fate.UNKNOWN: "Whether the call was executed is not known, and its result is withheld.",
}
_UNRECORDED: Final = (
    "The router cannot record calls at the moment, and what is not recorded is not made."
)


def _incoming(transformers: Sequence[GuardedTransformer], call: GovernedCall, body: bytes) -> bytes:
    for each in reversed(transformers):
        body = each.incoming(call, body)
    return body


def _visible(passage: _Passage) -> bytes | None:
    """What the record may show of a call's params; None if that cannot be known.

    A secret that the server has to get is none of the record's business, so params are treated
    like what comes back. Those of a denied call have passed nothing so far.
    """
    call, transformers = passage.call, passage.rules.transformers
    try:
        if passage.decision.ruling is Ruling.DENY:
            for each in transformers:
                call = evolve(call, params=each.outgoing(call))
        return _incoming(transformers, call, call.params)
    except TransformError:
        return None


def _denial(code: str, reason: str) -> Decision:
    return Decision(ruling=Ruling.DENY, code=code, reason=reason, source="router")


def _refused(decision: Decision, *, retryable: bool = False) -> CallOutcome:
    message = decision.reason or "A policy denies this call; it was not made."
    return CallOutcome(
        fate=Fate.NOT_EXECUTED,
        code=decision.code,
        message=message,
        retryable=retryable,
        retry_after=decision.retry_after,
    )


def _abandoned(*, sent: bool) -> CallOutcome:
    fate = Fate.UNKNOWN if sent else Fate.NOT_EXECUTED
    return CallOutcome(fate=fate, code="abandoned", message="The router gave the call up.")
