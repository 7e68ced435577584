"""JSON-RPC 2.0 messages: reading the envelope, writing messages, error codes.

Owns the envelope only. `id`, `params`, `result` and `error` stay the bytes that the peer wrote,
so a hop changes neither the type of an id nor the spelling of a number nor an unknown field.
The one exception are escapes of lone surrogates, which nobody could read; see `mend`.
Must not know which side of the router a message came from.

Source: JSON-RPC 2.0 specification; MCP 2025-11-25 "Base Protocol / Messages".
"""

from __future__ import annotations

import enum
import re
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
# -32000 to -32019 has no fixed meaning in the handshake era; the SDKs use -32000 for "refused".
REFUSED: Final = -32000


class Kind(enum.Enum):
    """What a message is, by the members that it has."""

    REQUEST = "request"
    NOTIFICATION = "notification"
    RESPONSE = "response"


class Message(msgspec.Struct, frozen=True):
    """One JSON-RPC message.

    Attributes:
        kind: request, notification or response.
        id: the id as JSON (`0`, `1` and `"1"` differ); empty for a notification, and for an
            error response to a message whose id could not be read.
        method: empty for a response.
        params: as JSON; empty if absent.
        result: as JSON; None if absent.
        error: as JSON; None if absent.
    """

    kind: Kind
    id: bytes = b""
    method: str = ""
    params: bytes = b""
    result: bytes | None = None
    error: bytes | None = None


class MalformedError(ValueError):
    """Bytes that are no JSON-RPC message.

    Args:
        code: PARSE_ERROR or INVALID_REQUEST.
        message: one sentence.
        id: the message's id as JSON, if it could be read.
    """

    def __init__(self, code: int, message: str, id: bytes = b"") -> None:  # noqa: A002 - the wire's word
        self.code = code
        self.id = id
        super().__init__(message)


class _Envelope(msgspec.Struct):
    jsonrpc: str | UnsetType = UNSET
    id: msgspec.Raw | UnsetType = UNSET
    method: str | UnsetType = UNSET
    params: msgspec.Raw | UnsetType = UNSET
    result: msgspec.Raw | UnsetType = UNSET
    error: msgspec.Raw | UnsetType = UNSET


_envelope = msgspec.json.Decoder(_Envelope)
_array = msgspec.json.Decoder(list[msgspec.Raw])
_any = msgspec.json.Decoder()
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.Encoder().encode

_BOM = b"\xef\xbb\xbf"
# One half of a UTF-16 pair, written as an escape, without the other half beside it.
# Both halves begin alike, for the search is much faster with a literal start.
_LONE_HALF = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F][0-9a-fA-F]{2})"
)
# Some 0.1 s of work. A text that was cut has one; a peer that sends millions means no text.
_MOST_MENDED: Final = 250_000

_T = TypeVar("_T")


def mend(data: bytes) -> bytes:
    """Replaces lone surrogate escapes in JSON by that of U+FFFD, and changes nothing else.

    Only the first 250,000 are replaced, so that a hostile message cannot hold up everyone.

    RFC 8259, section 8.2, leaves open what becomes of them. JavaScript writes them for a text
    that was cut in the middle of a character, and the decoder here refuses them.

    Returns:
        JSON of the same length; the same bytes if there is none, or if the data are no JSON.
    """
    if b"\0" in data:  # no JSON
        return data
    # In JSON a run of backslashes is read in pairs from its left, which is what `replace` does.
    # With the pairs out of the way, each backslash that is left begins an escape.
    marked = data.replace(b"\\\\", b"\0\0")
    return _LONE_HALF.sub(rb"\\ufffd", marked, _MOST_MENDED).replace(b"\0\0", b"\\\\")


def _decode(decoder: msgspec.json.Decoder[_T], data: bytes) -> _T:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        mended = mend(data)
        if mended == data:
            raise
    return decoder.decode(mended)


def decode(data: bytes) -> Any:
    """Decodes any JSON value.

    Raises:
        MalformedError: not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return _decode(_any, data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(PARSE_ERROR, f"not JSON: {error}") from error


def members(data: bytes) -> dict[str, msgspec.Raw]:
    """Reads the members of a JSON object, each left as the bytes that it was written in.

    Written again by `encode`, the members that nobody touched are unchanged, down to numbers that
    no Python type holds.

    Raises:
        MalformedError: not a JSON object.
    """
    try:
        return _decode(_members, data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(INVALID_REQUEST, f"not a JSON object: {error}") from error


def elements(data: bytes) -> list[msgspec.Raw]:
    """Reads the elements of a JSON array, each left as the bytes that it was written in.

    Raises:
        MalformedError: not a JSON array.
    """
    try:
        return _decode(_array, data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(INVALID_REQUEST, f"not a JSON array: {error}") from error


def encode(value: Any) -> bytes:
    """Encodes a JSON value, compact, UTF-8."""
    return _encode(value)


def is_batch(data: bytes) -> bool:
    """Whether the bytes are a JSON array, as far as the first character tells."""
    return data.lstrip(b" \t\r\n").startswith(b"[")


def split_batch(data: bytes) -> list[bytes]:
    """Splits a JSON-RPC batch into its members.

    Raises:
        MalformedError: no array, or an empty one (JSON-RPC 2.0, section 6).
    """
    _check_utf8(data)
    try:
        parts = _decode(_array, data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise MalformedError(PARSE_ERROR, f"not JSON: {error}") from error
    if not parts:
        raise MalformedError(INVALID_REQUEST, "an empty batch")
    return [bytes(part) for part in parts]


def parse(data: bytes) -> Message:
    """Reads one message's envelope.

    Args:
        data: one JSON object, UTF-8; a byte order mark is not accepted. Of `result` and `error`
            one may be null beside the other, as JSON-RPC 1.0 had it; it counts as absent.

    Raises:
        MalformedError: with PARSE_ERROR if it is no JSON, else INVALID_REQUEST.
    """
    _check_utf8(data)
    try:
        raw = _decode(_envelope, data)
    except msgspec.ValidationError as error:
        raise MalformedError(INVALID_REQUEST, f"no JSON-RPC message: {error}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise MalformedError(PARSE_ERROR, f"not JSON: {error}") from error
    ident = b"" if raw.id is UNSET else bytes(raw.id)
    if ident and not _valid_id(ident):
        if ident == b"null" and raw.error is not UNSET:
            ident = b""
        else:
            raise MalformedError(INVALID_REQUEST, "the id must be a string or a number")
    if raw.jsonrpc != "2.0":
        raise MalformedError(INVALID_REQUEST, 'the member jsonrpc must be "2.0"', ident)
    result = None if raw.result is UNSET else bytes(raw.result)
    error_ = None if raw.error is UNSET else bytes(raw.error)
    if raw.method is not UNSET:
        if result is not None or error_ is not None:
            raise MalformedError(
                INVALID_REQUEST, "a message has either a method or an outcome", ident
            )
        params = b"" if raw.params is UNSET else bytes(raw.params)
        if params and params[:1] not in b"{[":
            raise MalformedError(INVALID_REQUEST, "params must be an object", ident)
        kind = Kind.REQUEST if ident else Kind.NOTIFICATION
        return Message(kind, ident, raw.method, params)
    if result is not None and error_ is not None and (result == b"null") != (error_ == b"null"):
        result, error_ = (None, error_) if result == b"null" else (result, None)
    if (result is None) == (error_ is None):
        raise MalformedError(
            INVALID_REQUEST, "a message needs a method, or either a result or an error", ident
        )
    if result is not None and not ident:
        raise MalformedError(INVALID_REQUEST, "a result needs an id")
    return Message(Kind.RESPONSE, ident, "", b"", result, error_)


def request(ident: bytes, method: str, params: bytes = b"") -> bytes:
    """Writes a request; `ident` and `params` are JSON."""
    head = b'{"jsonrpc":"2.0","id":%b,"method":%b' % (ident, _encode(method))
    return b'%b,"params":%b}' % (head, params) if params else head + b"}"


def notification(method: str, params: bytes = b"") -> bytes:
    """Writes a notification; `params` is JSON."""
    head = b'{"jsonrpc":"2.0","method":%b' % _encode(method)
    return b'%b,"params":%b}' % (head, params) if params else head + b"}"


def result(ident: bytes, value: bytes) -> bytes:
    """Writes a successful response; `ident` and `value` are JSON."""
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (ident, value)


def error(ident: bytes, value: bytes) -> bytes:
    """Writes an error response; `value` is the error object as JSON."""
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (ident or b"null", value)


def error_object(code: int, message: str) -> bytes:
    """Writes an error object as JSON."""
    return _encode({"code": code, "message": message})


def error_code(value: bytes) -> tuple[int | None, str]:
    """Reads code and message of an error object; None and "" where they are unusable."""
    try:
        data = decode(value)
    except MalformedError:
        return None, ""
    if not isinstance(data, dict):
        return None, ""
    code, message = data.get("code"), data.get("message")
    return (
        code if isinstance(code, int) and not isinstance(code, bool) else None,
        message if isinstance(message, str) else "",
    )


def _valid_id(ident: bytes) -> bool:
    first = ident[:1]
    return first in (b'"', b"-") or first.isdigit()


def _check_utf8(data: bytes) -> None:
    # The decoder skips over members that it keeps as raw bytes, their encoding included.
    if data.isascii():
        return
    if data.startswith(_BOM):
        raise MalformedError(PARSE_ERROR, "not JSON: starts with a byte order mark")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise MalformedError(PARSE_ERROR, f"not UTF-8: {error.reason}") from error
