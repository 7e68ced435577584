"""Regular expressions of policies: the one module that knows RE2.

Owns what is refused when they are compiled, and that looking for them ends. A server chooses the
text that they are looked for in, so no expression may take longer than in proportion to it; and
where a match is looked for again after each match, all of them together have a bound, too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import re2  # type: ignore[import-untyped]  # has neither stubs nor py.typed
from attrs import define, field, frozen

# CPU seconds for all expressions in one message.
PATIENCE: Final = 1.0

_HALVES: Final = re.compile("[\ud800-\udfff]")
_OPTIONS: Final = re2.Options()
_OPTIONS.log_errors = False

Span = tuple[int, int]


class ExpressionError(Exception):
    """An expression that cannot be compiled; the text is the rest of a sentence."""


class TooSlowError(Exception):
    """Looking for expressions in a message took too long, so it is not known what it holds."""


@define(eq=False)
class Patience:
    """What is left of the time for one message."""

    _clock: Callable[[], float] = time.thread_time
    _until: float = field(init=False)

    @_until.default
    def _begin(self) -> float:
        return self._clock() + PATIENCE

    def check(self) -> None:
        """Sees whether there is any left.

        Raises:
            TooSlowError: there is none.
        """
        if self._clock() > self._until:
            raise TooSlowError


@frozen
class Expression:
    """A compiled regular expression."""

    source: str
    _compiled: Any

    @classmethod
    def compile(cls, source: str) -> Expression:
        """Compiles an expression.

        Raises:
            ExpressionError: RE2 does not have it: a look-around, a back-reference, a repeat of
                more than 1000.
        """
        try:
            return cls(source, re2.compile(source, _OPTIONS))
        except (re2.error, UnicodeEncodeError) as error:
            said = error.args[0] if error.args else ""
            said = said.decode("utf-8", "replace") if isinstance(said, bytes) else "no Unicode"
            said = "".join(each if each.isprintable() else "?" for each in said)
            raise ExpressionError(f"is no RE2 regular expression: {said}") from None

    def within(self, text: str, patience: Patience) -> Iterator[Span]:
        """Where it matches, but for empty matches.

        Args:
            text: any text, halves of characters included.
            patience: the time for the message that the text is of.

        Raises:
            TooSlowError: it took too long.
        """
        patience.check()
        for match in self._compiled.finditer(_whole(text)):
            patience.check()
            start, end = match.span()
            if end > start:
                yield start, end


def _whole(text: str) -> str:
    """The text, each half of a character replaced, so that every other one keeps its place."""
    return text if text.isascii() else _HALVES.sub("\ufffd", text)
