"""Calls in flight: who holds a slot, and which rounds of a call are yet to come.

Pure, and in memory only: no call outlives the process.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import Final

from attrs import define, field

Key = tuple[str, ...]

MOST_ROUNDS: Final = 4096


@define(eq=False)
class Slots:
    """Slots by the identifier of the call that holds them, so that none is given back twice."""

    _held: dict[str, tuple[Key, ...]] = field(factory=dict, init=False)
    _used: Counter[Key] = field(factory=Counter, init=False)

    def used(self, key: Key) -> int:
        """How many calls hold a slot of this limit."""
        return self._used[key]

    def take(self, call: str, keys: Iterable[Key]) -> None:
        """Takes one slot of each; a call that holds some already keeps these and takes none."""
        if call not in self._held:
            self._held[call] = taken = tuple(keys)
            self._used.update(taken)

    def free(self, call: str) -> None:
        """Gives back whatever the call holds; nothing the second time."""
        for key in self._held.pop(call, ()):
            self._used[key] -= 1
            if self._used[key] <= 0:
                del self._used[key]

    def __len__(self) -> int:
        return len(self._held)


@define(eq=False)
class Rounds:
    """Which calls were answered with a question, so that their next round is no new call.

    A round is recognised by what it repeats, never by what it claims: an agent could put a
    `requestState` into every call. Each question is good for one round. Only so many are
    remembered; a round that was forgotten is counted as a call.
    """

    _expected: OrderedDict[Key, float] = field(factory=OrderedDict, init=False)

    def expect(self, key: Key, until: float) -> None:
        """Notes that the next round of a call may come."""
        self._expected.pop(key, None)
        self._expected[key] = until
        if len(self._expected) > MOST_ROUNDS:
            self._expected.popitem(last=False)

    def expected(self, key: Key, now: float) -> bool:
        """Whether this is the next round of a call that was counted."""
        return self._expected.get(key, float("-inf")) >= now

    def begin(self, key: Key) -> None:
        """Notes that it came."""
        self._expected.pop(key, None)
