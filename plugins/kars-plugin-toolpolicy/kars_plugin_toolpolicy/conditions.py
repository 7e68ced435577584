"""Conditions in CEL: the one module that knows the compiler.

Owns the variables that an expression may read, what is refused when it is compiled, and the bounds
on what it is given. Must not know rules: a condition is true, or false, or failed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from attrs import frozen
from cel_expr_python import cel  # type: ignore[import-untyped]  # has stubs, but no py.typed

from kars_router.model import GovernedCall

_STRING: Final = cel.Type.STRING
_ANY_MAP: Final = cel.Type.Map(_STRING, cel.Type.DYN)
_ENVIRONMENT: Final = cel.NewEnv(
    variables={
        "args": _ANY_MAP,
        "tool": _STRING,
        "server": _STRING,
        "method": _STRING,
        "name": _STRING,
        "annotations": _ANY_MAP,
        "agent": _ANY_MAP,
        "now": cel.Type.TIMESTAMP,
    }
)
_AGENT_FIELDS: Final = ("id", "client", "subject", "scopes")

# A literal of the CEL specification's grammar, or a comment; neither holds names.
_LITERAL: Final = re.compile(
    r"""
    (?P<comment>//[^\n]*)
    | (?:[rR][bB]?|[bB][rR])
      (?: \"{3}.*?\"{3} | '{3}.*?'{3} | "[^"\n]*" | '[^'\n]*' )
    | [bB]?
      (?: \"{3}(?:\\.|[^\\])*?\"{3} | '{3}(?:\\.|[^\\])*?'{3}
        | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' )
    """,
    re.VERBOSE | re.DOTALL,
)
_HELD: Final = "\N{SUBSTITUTE}"  # stands for a literal once they are taken out
_REGEX_CALL: Final = re.compile(r"\bmatches\s*\(")
_GOOD_REGEX_CALL: Final = re.compile(rf"\.\s*matches\s*\(\s*{_HELD}(\d+){_HELD}\s*\)")
_AGENT_FIELD: Final = re.compile(r"(?<![.\w])(?<!\.\s)agent\s*\.\s*(\w+)")
_READS_ARGUMENTS: Final = re.compile(r"(?<![.\w])args\b")
_MACRO: Final = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(")
_PLACE: Final = re.compile(r"(?:[A-Z_]+: )?ERROR: <input>:(-?\d+):(-?\d+): ([^\n]*)")

# What is said of a failure, by how the compiler's own words begin. Those words may quote arguments,
# so they go no further than a person who tests a policy.
_FAILURES: Final = (
    ("NOT_FOUND", "something that it reads is not there"),
    ("UNKNOWN: No matching overloads", "the type of a value does not fit"),
    ("INVALID_ARGUMENT: Integer value", "the arguments hold a number beyond 64 bits"),
    ("INTERNAL: Iteration budget", "it takes more steps than are allowed"),
)


class ConditionError(Exception):
    """A condition that cannot be compiled; the text is the rest of a sentence."""


class ConditionFailed(Exception):
    """A condition that has no answer for a call.

    Args:
        clause: why, without anything of the call in it.
        detail: the same in the compiler's words, which may quote arguments.
    """

    def __init__(self, clause: str, detail: str = "") -> None:
        self.clause = clause
        self.detail = detail or clause
        super().__init__(clause)


def variables(call: GovernedCall, arguments: Mapping[str, Any]) -> Any:
    """What conditions of one call read; made once and used for all of them.

    Args:
        call: the call.
        arguments: its arguments, within the bounds of `kars_plugin_toolpolicy.bounds`; empty if no
            condition reads them.

    Raises:
        ConditionFailed: they hold what CEL has no value for, such as a number beyond 64 bits.
    """
    try:
        return _ENVIRONMENT.Activation(
            {
                "args": arguments,
                "tool": call.name if call.method == "tools/call" else "",
                "server": call.server,
                "method": call.method,
                "name": call.name,
                "annotations": {
                    name: hint for name, hint in call.annotations.items() if _plain(hint)
                },
                "agent": {
                    "id": call.agent,
                    "client": call.client,
                    "subject": call.subject,
                    "scopes": list(call.scopes),
                },
                "now": datetime.fromtimestamp(call.time, UTC),
            }
        )
    except (RuntimeError, ValueError, OverflowError, TypeError, OSError) as error:
        raise ConditionFailed("the call holds a value that CEL does not know", str(error)) from None


@frozen
class Condition:
    """A compiled expression.

    Attributes:
        source: as it was written.
        reads_arguments: whether it reads `args`.
        loops: whether it may go through all of `args` for each part of them.
    """

    source: str
    reads_arguments: bool
    loops: bool
    _program: Any

    @classmethod
    def compile(cls, source: str) -> Condition:
        """Compiles and type-checks an expression.

        Args:
            source: CEL, at most 4096 characters (the schema sees to that).

        Raises:
            ConditionError: it is no CEL, reads an unknown variable, cannot be a bool, or gives
                `matches` anything but a literal pattern.
        """
        held: list[str] = []
        bare = _LITERAL.sub(lambda match: _hold(match, held), source)
        program = _compiled(source)
        kind = program.return_type()
        if kind not in (cel.Type.BOOL, cel.Type.DYN):
            raise ConditionError(f"gives {kind.name().lower()}, and must give bool")
        for match in _AGENT_FIELD.finditer(bare):
            if match[1] not in _AGENT_FIELDS:
                known = ", ".join(_AGENT_FIELDS)
                raise ConditionError(f"reads agent.{match[1]}; there is only {known}")
        _check_patterns(bare, held)
        return cls(source, bool(_READS_ARGUMENTS.search(bare)), _loops(bare), program)

    def holds(self, values: Any) -> bool:
        """Whether it is true of a call.

        Args:
            values: what `variables` made of the call.

        Raises:
            ConditionFailed: it has no answer, or none that is a bool.
        """
        try:
            value = self._program.eval(values)
            kind, plain = value.type(), value.plain_value()
        except (RuntimeError, ValueError, OverflowError, TypeError) as error:
            raise _failed(str(error)) from None
        if kind == cel.Type.ERROR:
            raise _failed(str(plain))
        if not isinstance(plain, bool):
            raise ConditionFailed(f"it gave {kind.name().lower()} instead of bool")
        return plain


def _compiled(source: str) -> Any:
    try:
        return _ENVIRONMENT.compile(source)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConditionError(_why(str(error))) from None


def _hold(match: re.Match[str], held: list[str]) -> str:
    if match["comment"]:
        return " "
    held.append(match[0])
    return f"{_HELD}{len(held) - 1}{_HELD}"


def _plain(hint: object) -> bool:
    # A server could make every call slow with a long list here.
    return isinstance(hint, bool | int | float) or (isinstance(hint, str) and len(hint) <= 1024)


def _loops(bare: str) -> bool:
    """Whether a macro has the arguments, or another macro, in its body."""
    for macro in _MACRO.finditer(bare):
        depth, end = 1, macro.end()
        while depth and end < len(bare):
            depth += {"(": 1, ")": -1}.get(bare[end], 0)
            end += 1
        body = bare[macro.end() : end]
        if _READS_ARGUMENTS.search(body) or _MACRO.search(body):
            return True
    return False


def _check_patterns(bare: str, held: list[str]) -> None:
    """Patterns are the policy's, never the agent's, and are known to be good before any call."""
    good = list(_GOOD_REGEX_CALL.finditer(bare))
    if len(good) != len(_REGEX_CALL.findall(bare)):
        raise ConditionError("must give matches() a literal pattern, as in name.matches('^a')")
    for match in good:
        value = _compiled(f"''.matches({held[int(match[1])]})").eval(data={})
        if value.type() == cel.Type.ERROR:
            raise ConditionError("has a pattern in matches() that is no RE2 regular expression")


def _why(said: str) -> str:
    found = _PLACE.search(said)
    if found is None:
        return "is nested too deep" if "recursion" in said else "is no CEL expression"
    line, column, message = found.groups()
    message = message.removesuffix(" [INVALID_ARGUMENT]").replace(" (in container '')", "")
    if "recursion" in message:
        return "is nested too deep"
    # The list of all tokens that would have been fine helps nobody.
    message = re.sub(r" expecting \{.*", "", message)
    where = f"at column {column}" if line == "1" else f"at line {line}, column {column}"
    return f"is no condition: {message} {where}"


def _failed(said: str) -> ConditionFailed:
    for beginning, clause in _FAILURES:
        if said.startswith(beginning):
            return ConditionFailed(clause, said)
    return ConditionFailed("it cannot be evaluated", said)
