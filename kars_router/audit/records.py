"""What the records hold beside their place in the chain, and how that becomes JSON.

Owns names of members, bounds on lengths, digests, and what is left out by the `content` setting.
Knows neither the file nor the chain. docs/audit.schema.json says the same, and a test holds the
two together.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec
from attrs import define, field

from kars_router.audit.chain import Run
from kars_router.config.schema import AuditContent
from kars_router.model import CallEnd, Decision, GovernedCall

FORMAT: Final = 1
LONGEST_TEXT: Final = 1024  # characters of a name, a reason, and the like
LONGEST_CONTENT: Final = 1 << 16  # bytes of arguments, of a result or of a note
MOST_OPEN: Final = 4096  # calls listed in `continued`, so that a line stays below its bound

Event = Literal[
    "opened",
    "continued",
    "recovered",
    "accepted",
    "held",
    "decided",
    "sent",
    "ended",
    "note",
    "resumed",
    "checkpoint",
    "closed",
]

_NEVER_DEEP: Final = 128  # brackets
_DEEPER: Final = b"[" * 64
_BACK: Final = b"]" * 64

_encoder = msgspec.json.Encoder(enc_hook=str)
encode = _encoder.encode


class Fields(msgspec.Struct, rename="camel", omit_defaults=True):
    """Members of a record; those that are empty are left out."""


class Began(Fields):
    """`opened` and `continued`: the beginning of a run, or of a file."""

    format: int
    journal: str
    key: str
    content: str
    checkpoint: int
    version: str
    run: Run
    file: int = 0
    reason: str = ""
    open: tuple[tuple[str, bool], ...] = ()


class Recovered(Fields):
    """`recovered`: what had to be mended when the journal was opened."""

    cut: int
    calls: int


class Body(Fields):
    """Arguments, a result or an error: always a digest, content by choice."""

    digest: str
    bytes: int
    content: msgspec.Raw | None = None
    redacted: bool = False
    omitted: bool = False


class Accepted(Fields):
    """`accepted`: a call and what was decided of it; nothing was sent so far."""

    call: str
    agent: str
    server: str
    method: str
    name: str
    ruling: str
    client: str = ""
    subject: str = ""
    arguments: Body | None = None
    rule: str = ""
    source: str = ""
    code: str = ""
    reason: str = ""


class Held(Fields):
    """`held`: a call waits for a person."""

    call: str
    approval: str
    at: str = ""


class Decided(Fields):
    """`decided`: a person has decided, or the time is over."""

    call: str
    approval: str
    ruling: str
    by: str
    at: str = ""


class Sent(Fields):
    """`sent`: a call is about to be sent to its server; once for each attempt."""

    call: str
    generation: int


class Ended(Fields):
    """`ended`: a call's fate."""

    call: str
    fate: str
    code: str
    ruling: str = ""
    rule: str = ""
    source: str = ""
    reason: str = ""
    seconds: float | None = None
    result: Body | None = None
    error: Body | None = None
    recovered: bool = False
    at: str = ""


class Note(Fields):
    """`note`: something else that happened."""

    note: str
    fields: msgspec.Raw | None = None
    omitted: bool = False
    at: str = ""


class Resumed(Fields):
    """`resumed`: records can be written again."""

    since: str
    error: str
    lost: int


class Checkpoint(Fields):
    """`checkpoint`: the key that signs all that came before."""

    key: str
    public: str


class Closed(Fields):
    """`closed`: the journal was closed in good order."""

    unended: int


class _Arguments(msgspec.Struct):
    arguments: msgspec.Raw = msgspec.Raw(b"")
    argument: msgspec.Raw = msgspec.Raw(b"")


_arguments = msgspec.json.Decoder(_Arguments)


def safe(text: str, longest: int = LONGEST_TEXT) -> str:
    """A text that can be written: cut to a length, and without half characters."""
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


@define
class Clerk:
    """Makes the members of records that speak of calls.

    Attributes:
        key: key of the digests.
        content: what is recorded beside them.
    """

    key: bytes
    content: AuditContent
    _mac: hmac.HMAC = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._mac = hmac.new(self.key, digestmod="sha256")

    def accepted(
        self, call: GovernedCall, decision: Decision, visible: Callable[[], bytes | None] | None
    ) -> bytes:
        """The members of `accepted`; see `Journal.accepted`."""
        raw = arguments_of(call.params)
        return encode(
            Accepted(
                call=call.id,
                agent=safe(call.agent),
                server=call.server,
                method=safe(call.method),
                name=safe(call.name),
                client=safe(call.client),
                subject=safe(call.subject),
                arguments=self._arguments(raw, visible) if raw else None,
                ruling=decision.ruling,
                rule=safe(decision.rule),
                source=safe(decision.source),
                code=safe(decision.code) if decision.ruling == "deny" else "",
                reason=safe(decision.reason),
            )
        )

    def ended(self, call_id: str, end: CallEnd, at: str) -> bytes:
        """The members of `ended`."""
        # What waits for the disk must not fill the memory.
        shown = self.content is AuditContent.ALL and not at
        decision = end.decision
        return encode(
            Ended(
                call=call_id,
                fate=end.fate,
                code=safe(end.code),
                ruling=decision.ruling,
                rule=safe(decision.rule),
                source=safe(decision.source),
                reason=safe(decision.reason),
                seconds=round(end.seconds, 6),
                result=None if end.result is None else self._body(end.result, shown=shown),
                error=None if end.error is None else self._body(end.error, shown=shown),
                at=at,
            )
        )

    def _arguments(self, raw: bytes, visible: Callable[[], bytes | None] | None) -> Body:
        shown = self.content is not AuditContent.DIGEST
        if visible is None or not shown or len(raw) > LONGEST_CONTENT:
            return self._body(raw, shown=shown)
        params = visible()
        return self._body(raw, shown=True, left=b"" if params is None else arguments_of(params))

    def _body(self, raw: bytes, *, shown: bool, left: bytes | None = None) -> Body:
        left = raw if left is None else left
        content = raw_json(left) if shown else None
        return Body(
            digest=self._digest(raw),
            bytes=len(raw),
            content=content,
            redacted=content is not None and left != raw,
            omitted=shown and content is None,
        )

    def _digest(self, raw: bytes) -> str:
        # A plain hash would give away what is short or guessable to whoever reads the file. A copy
        # of what knows the key already takes half the time of a new one.
        mac = self._mac.copy()
        mac.update(raw)
        return mac.hexdigest()


def arguments_of(params: bytes) -> bytes:
    """The bytes of a request's arguments, as they stand in its params; empty if it has none."""
    try:
        found = _arguments.decode(params)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return b""
    return bytes(found.arguments) or bytes(found.argument)


def raw_json(raw: bytes) -> msgspec.Raw | None:
    """JSON that can stand in a line: what it was but for line feeds; None if it cannot be had."""
    if len(raw) > LONGEST_CONTENT:
        return None
    # Outside of strings, which hold none, a line feed is white space.
    line = raw.replace(b"\n", b" ").replace(b"\r", b" ")
    try:
        line.decode()
        msgspec.json.decode(line)
        if line.count(b"[") + line.count(b"{") > _NEVER_DEEP:
            # Whoever reads the record finds it some levels deeper, and may have less room for them.
            msgspec.json.decode(_DEEPER + line + _BACK)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return msgspec.Raw(line)


def note(what: str, fields: Mapping[str, Any], at: str) -> bytes:
    """The members of `note`, whatever the fields are."""
    raw = None
    if fields:
        try:
            raw = raw_json(encode(fields))
        except (TypeError, ValueError, RecursionError, OverflowError):
            raw = None
    return encode(Note(note=safe(what), fields=raw, omitted=bool(fields) and raw is None, at=at))


@define
class Stamp:
    """Writes times as RFC 3339 in UTC with microseconds, the second's part once a second."""

    _second: int = -1
    _text: str = ""

    def __call__(self, now: float) -> str:
        """Writes a time.

        Args:
            now: seconds of Unix time, at least 0.
        """
        micros = int(now * 1_000_000)
        second, rest = divmod(micros, 1_000_000)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{rest:06d}Z"
