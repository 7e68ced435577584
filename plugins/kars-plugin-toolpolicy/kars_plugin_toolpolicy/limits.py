"""Which calls the limits of the policies let through.

Owns what each limit counts, and that a call takes from all of its limits or from none. Must not
know how counters are kept, nor what rules say.

Three kinds, and what becomes of what a call took:

- a rate counts attempts: nothing is given back;
- concurrency counts calls in flight: the slot is given back when the call ends, once;
- a budget counts calls that a server may have acted on, and the bytes of results: a call that
  turns out never to have been made is given back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final

import msgspec
from attrs import define, evolve, field

from kars_plugin_toolpolicy.allowances import (
    Allowance,
    Concurrency,
    Length,
    Limit,
    Rate,
    limits_of,
    worst,
)
from kars_plugin_toolpolicy.budgets import DAY, Spent, ends, today
from kars_plugin_toolpolicy.concurrency import Key
from kars_plugin_toolpolicy.scopes import TOOL, who
from kars_plugin_toolpolicy.store import Counter, Store
from kars_router.config.toolpolicy import Period, ToolPolicy
from kars_router.model import CallEnd, Decision, Fate, GovernedCall

# Longer than an agent session lives unless it is told to; each call puts it off.
SESSION_KEPT: Final = 30 * DAY
# How long a person may take over a server's question.
ROUND_KEPT: Final = 3600.0
_MOST_REMEMBERED: Final = 4096


class _Resumed(msgspec.Struct):
    """By what a request says that it goes on with a call (MCP 2026-07-28, multi round-trip)."""

    input_responses: msgspec.Raw | msgspec.UnsetType = msgspec.field(
        name="inputResponses", default=msgspec.UNSET
    )
    request_state: msgspec.Raw | msgspec.UnsetType = msgspec.field(
        name="requestState", default=msgspec.UNSET
    )


class _Outcome(msgspec.Struct):
    result_type: str = msgspec.field(name="resultType", default="")


_resumed = msgspec.json.Decoder(_Resumed)
_outcome = msgspec.json.Decoder(_Outcome)
_canonical = msgspec.json.Encoder(order="deterministic")


@define(eq=False)
class _Taking:
    """What a call takes, or has taken.

    Attributes:
        now: when.
        round: by what it was recognised, if it is a further round of a call.
        puts: the counters as they are to become.
        slots: the slots.
        charged: the budgets of calls, each with the day that is charged.
        refusals: why it may not.
    """

    now: float
    round: Key | None
    puts: list[tuple[Key, Counter]] = field(factory=list)
    slots: list[Key] = field(factory=list)
    charged: list[tuple[Key, int]] = field(factory=list)
    refusals: list[Decision] = field(factory=list)


class Limits:
    """The limits of a list of policies.

    A counter belongs to the names of its policy and its limit, so the same names in a later list
    go on from what was counted; one without a name goes by its place. What was taken of a limit
    that has since changed stays taken.

    Args:
        policies: the policies.
        store: what was counted; shared with the limits before and after these.
        clock: Unix time in seconds; may jump either way.
    """

    def __init__(
        self,
        policies: Sequence[ToolPolicy],
        store: Store,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._clock = clock
        self._limits = tuple(limits_of(policies))
        self._found: dict[tuple[str, str, str], tuple[Limit, ...]] = {}
        self._under_way: dict[str, _Taking] = {}

    def admit(self, call: GovernedCall) -> Decision | None:
        """Lets a call through, taking its share of every limit; or takes nothing of any.

        Asked again for a call that is under way, it takes nothing more.

        Args:
            call: the call. A further round of a call that was counted, with the same arguments,
                takes slots and nothing else.

        Returns:
            None, or a denial by the limit that lasts longest. Its `retry_after` is None if no
            waiting helps, which is so for the budget of a session.
        """
        limits = self._matching(call) if self._limits else ()
        if not limits or call.id in self._under_way:
            return None
        now = self._clock()
        taking = _Taking(now, self._round(call, now))
        for limit in limits:
            self._ask(limit, call, taking)
        if taking.refusals:
            return worst(taking.refusals)
        for key, counter in taking.puts:
            self._store.put(key, counter, now)
        self._store.slots.take(call.id, taking.slots)
        if taking.round is not None:
            self._store.rounds.begin(taking.round)
        self._under_way[call.id] = taking
        return None

    def refund(self, call: GovernedCall) -> None:
        """Notes that a call was not made after all; `release` may follow and finds nothing left.

        Its slots are free and its budgets of calls have it back; rates count attempts and keep it.
        """
        taken = self._under_way.pop(call.id, None)
        self._store.slots.free(call.id)
        if taken is not None:
            self._give_back(taken)

    def release(self, call: GovernedCall, end: CallEnd) -> Decision | None:
        """Notes that a call has ended; for one that was not let through, nothing is given back.

        Args:
            call: the call.
            end: how it ended. With the fate `not_executed`, this does what `refund` does.

        Returns:
            a denial with `result_too_long` if the agent must not get this much; or None.
        """
        if not self._limits:
            return None
        taken = self._under_way.pop(call.id, None)
        self._store.slots.free(call.id)
        size = len(end.result or b"") + len(end.error or b"")
        if taken is not None:
            if end.fate is Fate.NOT_EXECUTED:
                self._give_back(taken)
            now = self._clock()
            self._charge_bytes(call, size, now)
            if _asks_for_input(end.result):
                self._store.rounds.expect(_round_key(call), now + ROUND_KEPT)
        return self._too_long(call, size)

    def save(self) -> None:
        """Writes down what was counted."""
        self._store.save()

    def _matching(self, call: GovernedCall) -> tuple[Limit, ...]:
        # Names of tools decide; URIs and prompts do not, and there is no end to them.
        known = (call.server, call.method, call.name if call.method == TOOL else "")
        found = self._found.get(known)
        if found is None:
            if len(self._found) >= _MOST_REMEMBERED:
                self._found.clear()
            found = tuple(limit for limit in self._limits if limit.scope.covers(call))
            self._found[known] = found
        return found

    def _ask(self, limit: Limit, call: GovernedCall, taking: _Taking) -> None:
        """Notes what a call would take of a limit, and whether it may."""
        counted = taking.round is not None
        match limit:
            case Concurrency():
                key = limit.scope.key(call)
                taking.slots.append(key)
                if self._store.slots.used(key) >= limit.bound:
                    taking.refusals.append(limit.refusal())
            case Rate() if not counted:
                self._ask_rate(limit, limit.scope.key(call), taking)
            case Allowance() if limit.of_bytes or not counted:
                self._ask_budget(limit, limit.scope.key(call), taking)
            case _:
                pass

    def _ask_rate(self, limit: Rate, key: Key, taking: _Taking) -> None:
        now, missing = taking.now, 0.0
        counter = self._store.get(key)
        if counter is not None:
            missing = limit.bucket.missing(counter.value, now - counter.at)
            if counter.at > now:
                # The clock was set back. From here on the bucket fills by the new time, rather
                # than not at all until the old one comes again.
                self._store.put(key, evolve(counter, at=now), now)
        wait = limit.bucket.wait(missing)
        if wait:
            taking.refusals.append(limit.refusal(wait))
            return
        full = now + limit.bucket.full_in(missing + 1)
        taking.puts.append((key, Counter(missing + 1, now, full, limit.scope.minted(key))))

    def _ask_budget(self, limit: Allowance, key: Key, taking: _Taking) -> None:
        spent = self._spent(limit, key, taking.now)
        if spent.amount >= limit.bound:
            taking.refusals.append(limit.refusal(spent, taking.now))
        elif not limit.of_bytes:
            taking.charged.append((key, spent.day))
            taking.puts.append((key, _charged(limit, key, spent, 1, now=taking.now)))

    def _spent(self, limit: Allowance, key: Key, now: float) -> Spent:
        counter = self._store.get(key)
        spent = None if counter is None else Spent(counter.value, int(counter.at))
        if limit.period is Period.SESSION:
            return spent or Spent(0.0, 0)
        current = today(spent, now)
        if spent is not None and spent.day > current.day:
            # The clock was far ahead; from here on the budget goes by the new time.
            self._store.put(key, _charged(limit, key, current, 0, now=now), now)
        return current

    def _charge_bytes(self, call: GovernedCall, size: int, now: float) -> None:
        for limit in self._matching(call) if size else ():
            if isinstance(limit, Allowance) and limit.of_bytes:
                key = limit.scope.key(call)
                spent = self._spent(limit, key, now)
                self._store.put(key, _charged(limit, key, spent, size, now=now), now)

    def _give_back(self, taken: _Taking) -> None:
        for key, day in taken.charged:
            counter = self._store.get(key)
            # Another day has nothing to give back of this one.
            if counter is not None and counter.at == day and counter.value >= 1:
                self._store.put(key, evolve(counter, value=counter.value - 1), self._clock())
        if taken.round is not None:
            self._store.rounds.expect(taken.round, self._clock() + ROUND_KEPT)

    def _round(self, call: GovernedCall, now: float) -> Key | None:
        """By what a call is recognised as a further round of one that was counted; or None."""
        if b"requestState" not in call.params and b"inputResponses" not in call.params:
            return None
        try:
            claim = _resumed.decode(call.params)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if claim.input_responses is msgspec.UNSET and claim.request_state is msgspec.UNSET:
            return None
        key = _round_key(call)
        return key if self._store.rounds.expected(key, now) else None

    def _too_long(self, call: GovernedCall, size: int) -> Decision | None:
        bounds = [limit for limit in self._matching(call) if isinstance(limit, Length)]
        limit = min(bounds, key=lambda each: each.bound, default=None)
        return limit.refusal(size) if limit is not None and size > limit.bound else None


def _charged(limit: Allowance, key: Key, spent: Spent, amount: float, *, now: float) -> Counter:
    session = limit.period is Period.SESSION
    expires = now + SESSION_KEPT if session else ends(spent.day)
    return Counter(spent.amount + amount, spent.day, expires, limit.scope.minted(key))


def _asks_for_input(result: bytes | None) -> bool:
    if result is None or b"input_required" not in result:
        return False
    try:
        return _outcome.decode(result).result_type == "input_required"
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _round_key(call: GovernedCall) -> Key:
    try:
        arguments = _canonical.encode(call.arguments)
    except (UnicodeEncodeError, RecursionError):  # lone surrogates; its rounds count as calls
        arguments = call.id.encode()
    digest = blake2b(arguments, digest_size=16).hexdigest()
    return (who(call), call.server, call.method, call.name, digest)
