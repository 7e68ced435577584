"""Conditions in CEL: the one module that knows the compiler.

Owns the variables that an expression may read, what is refused when it is compiled, and the bounds
on what it is given. Must not know rules: a condition is true, or false, or failed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from attrs import field, frozen
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
# Rather too often than too seldom: `.args` is `args`, too.
_READS_ARGUMENTS: Final = re.compile(r"\bargs\b")
_VARIABLE: Final = re.compile(r"\b(?:args|tool|server|method|name|annotations|agent|now)\b")
# What may differ from one call of an agent for a thing to the next.
_FLEETING: Final = frozenset({"args", "annotations", "now"})
# True of nothing that lacks the argument, if it is the first of terms that all have to be true.
_GUARD: Final = re.compile(r"\s*has\s*\(\s*args\s*\.\s*(\w+)\s*\)\s*&&")
_MOST_REMEMBERED: Final = 1024
_LONGEST_REMEMBERED: Final = 1024
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


@frozen
class Condition:
    """A compiled expression.

    Attributes:
        source: as it was written.
        reads: the variables that it may read.
        loops: whether it may go through all of `args` for each part of them.
        needs: an argument without which it is not true; None if there is none that is known.
    """

    source: str
    reads: frozenset[str]
    loops: bool
    needs: str | None
    _program: Any
    # An expression that reads neither arguments nor time has one answer for an agent and a tool,
    # and to remember it is far quicker than to wake up the machinery.
    _answers: dict[Hashable, bool] | None = field(eq=False, repr=False)

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
        reads = frozenset(_VARIABLE.findall(bare))
        guard = None if "||" in bare or "?" in bare else _GUARD.match(bare)
        needs = guard[1] if guard else None
        return cls(source, reads, _loops(bare), needs, program, None if reads & _FLEETING else {})

    @property
    def reads_arguments(self) -> bool:
        """Whether it reads `args`."""
        return "args" in self.reads

    def holds(self, call: GovernedCall, known: dict[frozenset[str], Any] | None = None) -> bool:
        """Whether it is true of a call.

        Args:
            call: the call; its arguments are within the bounds of `kars_plugin_toolpolicy.bounds`
                if it reads them.
            known: what was made of the call for other conditions, which this adds to.

        Raises:
            ConditionFailed: it has no answer, or none that is a bool; or the call holds what CEL
                has no value for, such as a number beyond 64 bits.
        """
        if self.needs is not None and self.needs not in call.arguments:
            return False
        if self._answers is None:
            return self._holds(call, known)
        who = (call.agent, call.client, call.subject, call.scopes)
        key = (call.server, call.method, call.name, who)
        answer = self._answers.get(key)
        if answer is None:
            answer = self._holds(call, known)
            if len(call.name) + len(call.client) + len(call.subject) > _LONGEST_REMEMBERED:
                return answer
            if len(self._answers) >= _MOST_REMEMBERED:
                self._answers.clear()
            self._answers[key] = answer
        return answer

    def _holds(self, call: GovernedCall, known: dict[frozenset[str], Any] | None) -> bool:
        values = None if known is None else known.get(self.reads)
        if values is None:
            values = _variables(call, self.reads)
            if known is not None:
                known[self.reads] = values
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


def _variables(call: GovernedCall, names: frozenset[str]) -> Any:
    """The variables of these names; each one costs, whether it is read or not."""
    try:
        return _ENVIRONMENT.Activation({name: _VALUES[name](call) for name in names})
    except (RuntimeError, ValueError, OverflowError, TypeError, OSError) as error:
        raise ConditionFailed("the call holds a value that CEL does not know", str(error)) from None


def _agent(call: GovernedCall) -> dict[str, Any]:
    return {
        "id": call.agent,
        "client": call.client,
        "subject": call.subject,
        "scopes": list(call.scopes),
    }


def _annotations(call: GovernedCall) -> dict[str, Any]:
    return {name: hint for name, hint in call.annotations.items() if _plain(hint)}


_VALUES: Final[Mapping[str, Callable[[GovernedCall], Any]]] = {
    "args": lambda call: call.arguments,
    "tool": lambda call: call.name if call.method == "tools/call" else "",
    "server": lambda call: call.server,
    "method": lambda call: call.method,
    "name": lambda call: call.name,
    "annotations": _annotations,
    "agent": _agent,
    "now": lambda call: datetime.fromtimestamp(call.time, UTC),
}


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
