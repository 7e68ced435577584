"""What makes two definitions of a tool the same, and how a difference is shown to people.

Owns the canonical form of a definition, its digest, the lock and its bytes. Pure: who reads files,
and what is done about a difference, is decided elsewhere.

Source: RFC 8785 (JSON Canonicalization Scheme) for the canonical form, with one difference: whole
numbers keep all of their digits, for a change beyond the 53rd bit is a change as well.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from attrs import field, frozen

Definition = Mapping[str, Any]

VERSION: Final = 1
LONGEST: Final = 64 << 20
_DEEPEST: Final = 100  # levels of a definition that a diff shows line by line
_LONGEST_DIFF: Final = 5000  # lines on each side; beyond, looking for what is common takes too long
_CONTEXT: Final = 3
_EXACT: Final = 1 << 53  # below, a float without a fraction is one whole number only
_encode: Final = msgspec.json.Encoder(order="deterministic").encode
_normal: Final = msgspec.json.Decoder(float_hook=lambda written: _number(written))  # noqa: PLW0108
_NOT_ASCII: Final = re.compile(r"[^\n -~]")
_WORD: Final = re.compile(r"\w+")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z")


class UnpinnableError(ValueError):
    """A definition that has no canonical form; the message is the rest of a sentence about it."""


class LockError(ValueError):
    """A lock that must not be used; the message is the rest of a sentence about it."""


@frozen
class Pin:
    """An accepted definition.

    Attributes:
        digest: of its canonical form, as `sha256:` and hexadecimal digits.
        definition: its canonical form.
    """

    digest: str
    definition: bytes = field(repr=False)

    @classmethod
    def of(cls, definition: Definition) -> Pin:
        """The pin of a definition.

        Raises:
            UnpinnableError: it is nested too deep.
        """
        form = canonical(definition)
        return cls(_digest(form), form)

    @property
    def value(self) -> dict[str, Any]:
        """The definition, decoded."""
        found: dict[str, Any] = msgspec.json.decode(self.definition)
        return found


Lock = Mapping[str, Mapping[str, Pin]]
"""Accepted definitions by server and tool."""


@frozen(kw_only=True)
class Difference:
    """A tool that is not as it was accepted.

    Attributes:
        server: its server's configured name.
        tool: its own name.
        change: `added`, `changed` or `removed`.
        was: digest of what was accepted; "" if nothing was.
        now: digest of what is there; "" if nothing is.
        diff: lines of a unified diff, harmless on a terminal.
    """

    server: str
    tool: str
    change: str
    was: str = ""
    now: str = ""
    diff: tuple[str, ...] = ()


def canonical(definition: object) -> bytes:
    """The canonical form of plain data: neither the order of keys nor white space matters.

    Raises:
        UnpinnableError: it is nested too deep, or holds a number of thousands of digits.
    """
    # Servers choose how large definitions are, and pings wait meanwhile: nothing here but the
    # numbers with a fraction or an exponent is looked at by the interpreter. RFC 8785 section
    # 3.2.3 sorts keys by UTF-16 units; the order of UTF-8 serves as well.
    try:
        return _encode(_normal.decode(_encode(definition)))
    except RecursionError:
        raise UnpinnableError("is nested too deep") from None
    except ValueError:
        raise UnpinnableError("holds a number that is too long") from None


def digest(definition: Definition) -> str:
    """The digest of all that a definition holds, members that MCP does not know included.

    Raises:
        UnpinnableError: it is nested too deep.
    """
    return _digest(canonical(definition))


def matches(pins: Mapping[str, str], tool: str, definition: Definition) -> bool:
    """Whether a definition is the accepted one.

    Args:
        pins: digests of the accepted definitions by tool.
        tool: the tool's own name.
        definition: what its server says of it now.
    """
    try:
        return tool in pins and pins[tool] == digest(definition)
    except UnpinnableError:
        return False


def reason(pins: Mapping[str, Pin], tool: str, definition: Definition) -> str:
    """Why a definition is withheld, in one sentence for the operator.

    It quotes nothing that the server wrote but the names of members that MCP knows.
    """
    if not pins:
        return "its server is not in the lock"
    if tool not in pins:
        return "it is not in the lock"
    try:
        canonical(definition)
    except UnpinnableError as error:
        return f"its definition {error}"
    was = pins[tool].value
    changed = sorted(
        key for key in {*was, *definition} if _form(was, key) != _form(definition, key)
    )
    known = [key if key in _MEMBERS else "another member" for key in changed]
    return f"changed since it was accepted: {', '.join(dict.fromkeys(known))}"


def compare(server: str, old: Mapping[str, Pin], new: Mapping[str, Pin]) -> list[Difference]:
    """What is different between the accepted definitions of a server and the present ones."""
    found = []
    for tool in sorted({*old, *new}):
        was, now = old.get(tool), new.get(tool)
        if was == now:
            continue
        change = "changed" if was and now else "removed" if was else "added"
        found.append(
            Difference(
                server=server,
                tool=tool,
                change=change,
                was=was.digest if was else "",
                now=now.digest if now else "",
                diff=tuple(_unified(was, now, visible(f"{server}/{tool}"))),
            )
        )
    return found


def render(lock: Lock) -> bytes:
    """The bytes of a lock file: JSON, sorted, ASCII only, the same for the same content.

    What is not ASCII is escaped, so that whoever reviews the file sees control characters,
    changes of direction and letters that look like others.
    """
    servers = {
        server: {
            tool: {"definition": msgspec.Raw(pin.definition), "digest": pin.digest}
            for tool, pin in pins.items()
        }
        for server, pins in lock.items()
    }
    compact = _encode({"servers": servers, "version": VERSION})
    text = msgspec.json.format(compact, indent=2).decode()
    return _NOT_ASCII.sub(lambda found: _escape(found[0]), text).encode() + b"\n"


def parse(data: bytes) -> dict[str, dict[str, Pin]]:
    """Reads a lock file.

    Raises:
        LockError: it is none, was written by a later release, or was changed by hand.
    """
    if len(data) > LONGEST:
        raise LockError(f"is longer than {LONGEST >> 20} MiB")
    try:
        whole = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise LockError("is no JSON") from None
    if not isinstance(whole, dict) or "version" not in whole:
        raise LockError("is no lock of tools")
    if whole["version"] != VERSION:
        raise LockError("was written by another release of kars; write it anew")
    try:
        lock = {
            str(server): {str(tool): _pin(server, tool, each) for tool, each in tools.items()}
            for server, tools in whole["servers"].items()
        }
    except (AttributeError, KeyError, TypeError):
        raise LockError("has not the shape of a lock of tools") from None
    # A name that stands there twice, or a key that nobody reads, would hide from a review.
    if msgspec.json.format(data, indent=-1) != msgspec.json.format(render(lock), indent=-1):
        raise LockError("was changed by hand")
    return lock


def visible(text: str) -> str:
    """A text whose control characters, changes of direction and look-alikes can be seen.

    What is not printable is escaped, and so are letters of other scripts in a word that has ASCII
    letters as well.
    """
    shown = "".join(each if each.isprintable() else _escape(each) for each in text)
    return shown if shown.isascii() else _WORD.sub(_unmixed, shown)


_MEMBERS: Final = frozenset(
    (
        *("name", "title", "description", "inputSchema", "outputSchema", "annotations"),
        *("icons", "execution", "_meta"),
    )
)


def _pin(server: str, tool: str, entry: Mapping[str, Any]) -> Pin:
    definition, said = entry["definition"], entry["digest"]
    if not isinstance(definition, dict) or not isinstance(said, str) or not _DIGEST.match(said):
        raise TypeError
    place = visible(f"{server}/{tool}")
    try:
        pin = Pin.of(definition)
    except UnpinnableError as error:
        raise LockError(f"holds the definition of {place}, which {error}") from None
    if pin.digest != said:
        raise LockError(f"was changed by hand: the digest of {place} is not of its definition")
    if definition.get("name") != tool:
        raise LockError(f"was changed by hand: {place} holds the definition of another tool")
    return pin


def _digest(form: bytes) -> str:
    return f"sha256:{hashlib.sha256(form).hexdigest()}"


def _number(written: str) -> float | int:
    value = float(written)
    return int(value) if value.is_integer() and abs(value) < _EXACT else value


def _form(definition: Definition, key: str) -> bytes | None:
    return canonical(definition[key]) if key in definition else None


def _unified(was: Pin | None, now: Pin | None, name: str) -> Iterator[str]:
    old = list(_lines("", was.value, 0)) if was else []
    new = list(_lines("", now.value, 0)) if now else []
    if max(len(old), len(new)) > _LONGEST_DIFF:
        yield from (f"--- {name} (accepted)", f"+++ {name} (now)")
        yield from (f"-{line}" for line in old)
        yield from (f"+{line}" for line in new)
        return
    import difflib  # only `kars tools` asks

    yield from difflib.unified_diff(
        old, new, f"{name} (accepted)", f"{name} (now)", n=_CONTEXT, lineterm=""
    )


def _lines(start: str, value: object, depth: int) -> Iterator[str]:
    """Lines that look like JSON, in which each line of a text has a line of its own."""
    margin = "  " * depth
    if depth > _DEEPEST:
        yield f"{margin}{start}{visible(_encode(value).decode())}"
    elif isinstance(value, dict) and value:
        yield f"{margin}{start}{{"
        for key in sorted(value):
            yield from _lines(f"{_quoted(key)}: ", value[key], depth + 1)
        yield f"{margin}}}"
    elif isinstance(value, list) and value:
        yield f"{margin}{start}["
        for each in value:
            yield from _lines("", each, depth + 1)
        yield f"{margin}]"
    elif isinstance(value, str):
        first, *rest = value.splitlines(keepends=True) or [""]
        yield f"{margin}{start}{_quoted(first)}"
        for each in rest:
            yield f"{margin}  {_quoted(each)}"
    else:
        yield f"{margin}{start}{_encode(value).decode()}"


def _quoted(text: str) -> str:
    return visible(_encode(text).decode())


def _unmixed(word: re.Match[str]) -> str:
    if not any(each.isascii() and each.isalpha() for each in word[0]):
        return word[0]
    return "".join(
        each if each.isascii() or unicodedata.name(each, "").startswith("LATIN ") else _escape(each)
        for each in word[0]
    )


def _escape(character: str) -> str:
    # As JSON writes it: beyond the first plane in two halves.
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))
