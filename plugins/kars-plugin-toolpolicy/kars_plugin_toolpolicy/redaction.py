"""Takes secrets out of arguments and results before anyone sees them who should not.

Owns which parts of a message are looked at, and that nothing else of it changes: strings are
replaced where they stand, as bytes, and everything around them stays as the peer wrote it. Must
not know which rules ask for it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec
from attrs import define, field

from kars_plugin_toolpolicy import jsonspans
from kars_plugin_toolpolicy.expressions import Expression, Patience
from kars_plugin_toolpolicy.jsonspans import LITERAL, Span
from kars_plugin_toolpolicy.secrets import (
    hide,
    label,
    member_kind,
    replace,
    secret_member,
)
from kars_plugin_toolpolicy.sightings import Sightings
from kars_router.config.toolpolicy import Redact, SecretKind
from kars_router.model import GovernedCall

# Values shorter than this are not looked for elsewhere: they would be found by chance.
_SHORTEST_COPY: Final = 6
_MOST_COPIES: Final = 64
_MOST_PLANS: Final = 1024

# Members that the other side must get back as they were, or the conversation breaks.
_HANDLES: Final = ("requestState", "progressToken")
# Of `tools/call` and its like, what the agent or its user made up; the rest is addresses.
_ARGUMENTS: Final = ("arguments", "inputResponses")
_BLOBS: Final = (b'"data"', b'"blob"')
_BASE64: Final = re.compile(rb'"[A-Za-z0-9+/]*+={0,2}"\Z')


class Redactor:
    """Redacts; see `kars_router.hookspecs.Transformer`.

    Args:
        matching: what is to be taken out of a call and of what comes back on its behalf; all of
            them together count.
    """

    def __init__(self, matching: Callable[[GovernedCall], Sequence[Redact]]) -> None:
        self._matching = matching
        self._plans: dict[tuple[bool, tuple[Redact, ...]], Plan | None] = {}
        self._latest: dict[bool, tuple[Sequence[Redact], Plan | None]] = {}

    def outgoing(self, call: GovernedCall) -> bytes:
        """The params, with secrets taken out of the arguments and of a person's answers.

        Raises:
            ValueError: they are no JSON.
        """
        plan = self._plan(call, results=False)
        if plan is None:
            return call.params
        spans = [span for name in _ARGUMENTS for span in jsonspans.member(call.params, name)]
        return plan.arguments(call.params, spans)

    def incoming(self, call: GovernedCall, body: bytes) -> bytes:
        """A result, an error or params, with secrets taken out of every string.

        Raises:
            ValueError: it is no JSON.
            TooSlowError: its expressions took too long to look for, as in `outgoing`.
        """
        plan = self._plan(call, results=True)
        return body if plan is None else plan.result(body)

    def _plan(self, call: GovernedCall, *, results: bool) -> Plan | None:
        terms = self._matching(call)
        if not terms:
            return None
        # Mostly the very same terms as before, which are quicker to know than to compare.
        latest = self._latest.get(results)
        if latest is not None and latest[0] is terms:
            return latest[1]
        key = (results, tuple(terms))
        if key not in self._plans:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[key] = _plan(key[1], results=results)
        self._latest[results] = (terms, self._plans[key])
        return self._plans[key]


@define(eq=False)
class Plan:
    """What is taken out, made ready.

    Attributes:
        kinds: secrets by their shape.
        expressions: secrets by expression.
        pointers: values by their place.
    """

    kinds: frozenset[SecretKind]
    expressions: tuple[Expression, ...]
    pointers: tuple[tuple[str, ...], ...]
    _sightings: Sightings

    @classmethod
    def of(
        cls, kinds: Iterable[SecretKind], expressions: Iterable[str], fields: Iterable[str]
    ) -> Plan:
        """Makes ready what is to be taken out."""
        wanted = frozenset(kinds)
        return cls(
            wanted,
            tuple(Expression.compile(each) for each in dict.fromkeys(expressions)),
            tuple(jsonspans.parse_pointer(each) for each in dict.fromkeys(fields)),
            Sightings.of(wanted),
        )

    def result(self, body: bytes) -> bytes:
        """Redacts a whole message; its `structuredContent` is what pointers lead into."""
        roots = list(jsonspans.member(body, "structuredContent")) if self.pointers else []
        return self._redact(body, roots, [(0, len(body))])

    def arguments(self, params: bytes, spans: Sequence[Span]) -> bytes:
        """Redacts parts of a message, each of which pointers lead into."""
        return self._redact(params, spans if self.pointers else [], spans)

    def _redact(self, doc: bytes, roots: Sequence[Span], parts: Sequence[Span]) -> bytes:
        fields = [
            span
            for start, _ in roots
            for pointer in self.pointers
            for span in jsonspans.resolve(doc, start, pointer)
        ]
        changes = [(span, jsonspans.literal_of(label("field"))) for span in fields]
        every = bool(self.expressions or self.pointers)
        sighted = [] if every and not self.kinds else sorted(self._sightings.within(doc))
        if not every and not sighted:
            return doc
        strings = _Strings(self, sighted, _copies(doc, fields), every)
        skipped = [*fields, *_handles(doc)]
        for part in parts:
            changes += strings.changes(doc, part, skipped)
        return jsonspans.splice(doc, changes)


@define(eq=False)
class _Strings:
    """Redacts the strings of one message.

    Attributes:
        plan: what is taken out.
        sighted: where secrets may be, sorted.
        copies: values that were taken out by their place, wherever else they stand.
        every: whether every string is looked at, rather than those with a sighting.
        patience: how long expressions may be looked for.
    """

    plan: Plan
    sighted: Sequence[int]
    copies: re.Pattern[str] | None
    every: bool
    patience: Patience = field(factory=Patience)

    def changes(
        self, doc: bytes, part: Span, skipped: Sequence[Span]
    ) -> Iterator[tuple[Span, bytes]]:
        named: str | None = None  # of the member whose value comes next
        value = -1
        for literal in LITERAL.finditer(doc, *part):
            start, end = literal.span()
            name, named = (named if start == value else None), None
            if not self._looked_at(start, end) and name is None:
                continue
            if any(begin <= start < stop for begin, stop in skipped):
                continue
            raw = literal[0]
            value = jsonspans.follows_colon(doc, end) or -1
            text = jsonspans.text_of(raw)
            if value >= 0:
                named = text
            new = text if _is_blob(doc, start, raw) else self._text(text, name)
            if new != text:
                yield (start, end), jsonspans.literal_of(new)

    def _looked_at(self, start: int, end: int) -> bool:
        if self.every:
            return True
        place = bisect_left(self.sighted, start)
        return place < len(self.sighted) and self.sighted[place] < end

    def _text(self, text: str, name: str | None) -> str:
        kind = member_kind(name) if name is not None else None
        if kind is not None and kind in self.plan.kinds and secret_member(kind, text):
            return label(kind.value)
        text = hide(text, self.plan.kinds)
        if self.plan.pointers:
            text = self._nested(text)
        if self.copies is not None:
            text = self.copies.sub(label("field"), text)
        for expression in self.plan.expressions:
            spans = expression.within(text, self.patience)
            text = replace(text, ((span, "expression") for span in spans))
        return text

    def _nested(self, text: str) -> str:
        """A text that is JSON itself: a copy of the structured content, as servers send it."""
        if text.lstrip()[:1] not in ("{", "["):
            return text
        doc = text.encode("utf-8", "surrogatepass")
        try:
            msgspec.json.decode(doc)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return text
        start = len(doc) - len(doc.lstrip())
        new = jsonspans.literal_of(label("field"))
        spans = (
            span
            for pointer in self.plan.pointers
            for span in jsonspans.resolve(doc, start, pointer)
        )
        return jsonspans.splice(doc, ((span, new) for span in spans)).decode()


def _plan(terms: Sequence[Redact], *, results: bool) -> Plan | None:
    chosen = [each for each in terms if (each.results if results else each.arguments)]
    if not chosen:
        return None
    return Plan.of(
        (kind for each in chosen for kind in each.kinds),
        (expression for each in chosen for expression in each.expressions),
        (pointer for each in chosen for pointer in each.fields),
    )


def _handles(doc: bytes) -> Iterator[Span]:
    for name in _HANDLES:
        if f'"{name}"'.encode() in doc:
            yield from jsonspans.member(doc, name)


def _is_blob(doc: bytes, start: int, raw: bytes) -> bool:
    if len(raw) <= 64 or not _BASE64.match(raw):
        return False
    return doc[max(0, start - 16) : start].rstrip(b" \t\r\n:").endswith(_BLOBS)


def _copies(doc: bytes, fields: Iterable[Span]) -> re.Pattern[str] | None:
    """Finds the strings that stand at these places, wherever else they stand."""
    values: set[str] = set()
    for start, end in fields:
        if doc[start : start + 1] == b'"':
            values.add(jsonspans.text_of(doc[start:end]))
    long = sorted((each for each in values if len(each) >= _SHORTEST_COPY), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, long[:_MOST_COPIES]))) if long else None
