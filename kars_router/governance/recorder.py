"""What governance writes down of a call, and when; `audit` has the one that does it.

Must not know files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kars_router.model import CallEnd, Decision, GovernedCall, Ruling


class Recorder(Protocol):
    """The record of calls, as far as governance writes it; `audit` has the one there is."""

    def accepted(
        self, call: GovernedCall, decision: Decision, visible: Callable[[], bytes | None]
    ) -> None:
        """A call has been decided on; `visible` makes its params as they may be shown, or None.

        Raises JournalError.
        """
        ...

    def held(self, call_id: str, approval: str) -> None:
        """It waits for a person."""
        ...

    def decided(self, call_id: str, approval: str, ruling: Ruling, by: str) -> None:
        """A person has decided, or nobody has."""
        ...

    def sent(self, call_id: str, generation: int) -> None:
        """It is about to be sent. Raises JournalError."""
        ...

    def ended(self, call_id: str, end: CallEnd) -> None:
        """It has ended."""
        ...
