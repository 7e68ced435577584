"""Arguments that a tool wants repeated in HTTP headers: its `x-mcp-header` annotations.

As a client the router adds such headers; as a server it holds them against the arguments.

Must not know where a schema comes from, or what becomes of a tool whose annotations are wrong.

Source: MCP 2026-07-28 "Streamable HTTP / Custom Headers from Tool Parameters".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import msgspec
from attrs import frozen

from kars_router.wire import headers, raw

ANNOTATION: Final = "x-mcp-header"

_Path = tuple[str, ...]

_TYPES: Final = ("string", "integer", "boolean")
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")  # RFC 9110, section 5.6.2
# Where JSON Schema (2020-12, and what older drafts called otherwise) has schemas inside of one.
# A value may be a schema, or a list of them; or it maps names to them.
_SCHEMAS: Final = frozenset(
    {
        "additionalItems",
        "additionalProperties",
        "allOf",
        "anyOf",
        "contains",
        "contentSchema",
        "else",
        "if",
        "items",
        "not",
        "oneOf",
        "prefixItems",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
_MAPS: Final = frozenset(
    {"$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties"}
)
_DECIMAL: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?\Z")
_MOST_DIGITS: Final = 308  # of a double, which is what most peers read a number into


class InvalidAnnotation(ValueError):
    """An annotation that no client may act on; the message says which and why.

    A client has to leave the tool out. A server has nothing to hold headers against.
    """


@frozen
class HeaderPlan:
    """The headers that repeat a tool's arguments.

    Attributes:
        paths: where the argument is, by the header's name in lower case.
    """

    paths: dict[str, _Path]

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.paths)

    def headers(self, arguments: bytes) -> dict[str, str]:
        """The headers to send with a call.

        Args:
            arguments: the `arguments` of the call as JSON, or empty.

        Returns:
            the encoded values by the headers' names in lower case. Arguments that are absent or
            null have none, nor have objects and arrays.
        """
        values = _values(arguments, self.paths)
        texts = {name: _scalar(value) for name, value in values.items()}
        return {
            name: headers.encode_value(text) for name, text in texts.items() if text is not None
        }

    def mismatch(
        self, arguments: bytes, request_headers: Iterable[tuple[bytes, bytes]]
    ) -> str | None:
        """What is wrong with the headers of a call, if anything.

        Numbers are compared as such: `42.0` is `42`. A header whose argument is absent is wrong,
        too, for somebody on the way may have acted on it.

        Args:
            arguments: the `arguments` of the call as JSON, or empty.
            request_headers: all headers of the request, names in any case, each occurrence for
                itself.

        Returns:
            a sentence that names the header and holds no value; None if they match.
        """
        if not self.paths:
            return None
        found: dict[str, list[str]] = {name: [] for name in self.paths}
        for raw_name, raw_value in request_headers:
            name = raw_name.decode("latin-1").lower()
            if name in found:
                found[name].append(raw_value.decode("latin-1"))
        for name, value in _values(arguments, self.paths).items():
            wrong = _wrong(found[name], value)
            if wrong:
                return f"the header {name} {wrong}"
        return None


def plan(schema: Any) -> HeaderPlan:
    """Reads the annotations of a tool.

    Args:
        schema: its `inputSchema`, decoded; anything but an object has no annotations.

    Raises:
        InvalidAnnotation: one of them is wrong: it is not on a property that is reached from the
            root through `properties` alone, not on a string, integer or boolean, no token, or not
            unique but for case.
    """
    paths: dict[str, _Path] = {}
    for path, position in _positions(schema):
        if ANNOTATION not in position:
            continue
        if not path:
            raise InvalidAnnotation(f"{ANNOTATION} is on something else than a plain property")
        where, token, kind = ".".join(path)[:128], position[ANNOTATION], position.get("type")
        if not isinstance(token, str) or not _TOKEN.match(token):
            raise InvalidAnnotation(f"{ANNOTATION} of {where!r} is no header name")
        if kind not in _TYPES:
            raise InvalidAnnotation(f"{ANNOTATION} of {where!r} is on no {', '.join(_TYPES)}")
        name = headers.PARAM_PREFIX + token.lower()
        if name in paths:
            raise InvalidAnnotation(f"{ANNOTATION} {token!r} occurs more than once")
        paths[name] = path
    return HeaderPlan(paths)


def _positions(root: Any) -> Iterator[tuple[_Path | None, dict[str, Any]]]:
    # Every schema inside of a schema, each with its chain of properties, or None. What is data,
    # such as `default`, holds no schemas. No recursion: how deep it is, is up to a server.
    waiting: list[tuple[_Path | None, Any]] = [((), root)]
    while waiting:
        path, schema = waiting.pop()
        if not isinstance(schema, dict):
            continue
        yield path, schema
        for keyword, value in schema.items():
            if keyword == "properties" and isinstance(value, dict):
                waiting += [
                    (None if path is None else (*path, name), inner)
                    for name, inner in value.items()
                ]
            elif keyword in _SCHEMAS:
                waiting += [(None, inner) for inner in _as_list(value)]
            elif keyword in _MAPS and isinstance(value, dict):
                waiting += [(None, inner) for inner in value.values()]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _values(arguments: bytes, paths: dict[str, _Path]) -> dict[str, bytes]:
    # The values as they were written; empty where there is none. Each object is read once.
    objects: dict[_Path, dict[str, msgspec.Raw]] = {(): raw.fields(arguments) or {}}
    found: dict[str, bytes] = {}
    for name, path in paths.items():
        for depth in range(1, len(path)):
            inside, outside = path[:depth], path[: depth - 1]
            if inside not in objects:
                objects[inside] = raw.fields(objects[outside].get(inside[-1])) or {}
        found[name] = bytes(objects[path[:-1]].get(path[-1], b""))
    return found


def _scalar(value: bytes) -> str | None:
    if not value or value == b"null" or value[:1] in b"{[":
        return None
    if value.startswith(b'"'):
        return raw.text(value)
    written = value.decode("latin-1")
    return written if value in (b"true", b"false") else _number(written)


def _number(written: str) -> str:
    number = _parse(written)
    if number is None or number.adjusted() > _MOST_DIGITS or number != number.to_integral_value():
        return written  # the server's to refuse
    return format(number.to_integral_value(), "f").removeprefix("-" if number == 0 else "")


def _parse(written: str) -> Decimal | None:
    try:
        return Decimal(written)
    except InvalidOperation:  # an exponent beyond everything
        return None


def _wrong(found: list[str], value: bytes) -> str | None:
    if len(found) > 1:
        return "occurs more than once"
    expected = _scalar(value)
    if not found:
        return None if expected is None else "is missing"
    header = headers.decode_value(found[0])
    if header is None:
        return "cannot be decoded"
    if expected is None:
        return "repeats an argument that is not there"
    return None if header == expected or _same_number(header, value) else "does not match the body"


def _same_number(header: str, value: bytes) -> bool:
    if value[:1] not in b"-0123456789":
        return False
    written = value.decode("latin-1")
    if header == written:  # as clients do that do not care which numbers are whole
        return True
    number = _parse(written) if _DECIMAL.match(header) else None
    return number is not None and number == _parse(header)
