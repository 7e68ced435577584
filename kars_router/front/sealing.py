"""Values that an agent keeps for the router: sealed by a message authentication code.

What is sealed cannot be made or altered without the key. It can be read, by the agent that keeps it
and told the router most of what is in it. Session ids say who they were made for,
so the router can rebuild a session from one after a restart; request states lead back to a call
that waits. The key comes from a file that is made once; each use has a purpose of its own, so
that what was sealed for one opens nothing for another.

Source: RFC 2104 (HMAC); MCP 2025-11-25 "Session Management" (visible ASCII); MCP
2026-07-28 "Multi Round-Trip Requests" (the integrity of `requestState`).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

from kars_router.errors import UserError

KEY_FILE: Final = "session.key"
KEY_BYTES: Final = 32
_TAG_BYTES: Final = 32
_DIGEST: Final = "sha256"
_LONGEST: Final = 4096
# Bound into the seal, so that a key used for something else later opens no session ids.
_PURPOSE: Final = b"kars-router agent session id, version 2"
T = TypeVar("T")


class Ticket(
    msgspec.Struct,
    frozen=True,
    rename={
        "agent": "a",
        "revision": "v",
        "endpoint": "e",
        "created": "t",
        "client": "n",
        "capabilities": "c",
        "owner": "o",
    },
):
    """What a session id holds.

    Attributes:
        agent: identifier of the agent session.
        revision: the negotiated revision.
        endpoint: the one server it is for, or "" for all.
        created: seconds since the epoch.
        client: the client's name for itself; untrusted.
        capabilities: what the client declared, as a JSON object.
        owner: the digest of the principal that it was made for; "" for nobody in particular.
    """

    agent: str
    revision: str
    endpoint: str
    created: float
    client: str = ""
    capabilities: str = "{}"
    owner: str = ""


class Seal(Generic[T]):
    """Seals and opens values of one kind, for one purpose.

    A seal proves that a value is ours and whole. It hides nothing, so that what is sealed must be
    no secret to whoever gets it; and the same value always looks the same.

    Args:
        key: 32 bytes.
        purpose: says what is sealed and in which version.
        kind: the type of the values.
    """

    def __init__(self, key: bytes, purpose: bytes, kind: type[T]) -> None:
        # A key for each purpose, so that none opens what was sealed for another.
        self._key = hmac.digest(key, purpose, _DIGEST)
        self._decoder = msgspec.json.Decoder(kind)

    def seal(self, value: T, bound: bytes = b"") -> str:
        """Seals a value.

        Args:
            value: what to seal.
            bound: what it belongs to; it opens only together with the same.

        Returns:
            base64url; some 40 characters more than a third above the value's JSON.
        """
        text = msgspec.json.encode(value)
        return _spell(self._tag(text, bound) + text)

    def open(self, text: str, bound: bytes = b"") -> T | None:
        """The value in a text; None if it was not made with this key for this purpose.

        Args:
            text: what is to be opened; anything.
            bound: what it must belong to.
        """
        if len(text) > _LONGEST or not text.isascii():
            return None
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except binascii.Error:
            return None
        if _spell(raw) != text:
            return None  # the last character has bits that decoding ignores
        tag, sealed = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(sealed, bound)):
            return None
        try:
            return self._decoder.decode(sealed)
        except msgspec.DecodeError:
            return None

    def _tag(self, text: bytes, bound: bytes) -> bytes:
        # The length in front says where one ends and the other begins.
        return hmac.digest(self._key, b"%d:%b%b" % (len(bound), bound, text), _DIGEST)


class Sealer(Seal[Ticket]):
    """Seals and opens session ids, about 200 characters each.

    Args:
        key: 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        super().__init__(key, _PURPOSE, Ticket)


def _spell(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def load_key(directory: Path | None) -> bytes:
    """The key in a directory; made there, readable by its owner only, if there is none.

    Args:
        directory: where the key is kept, or None for a key that dies with the process.

    Raises:
        UserError: the directory cannot be used, or the file does not hold a key.
    """
    if directory is None:
        return secrets.token_bytes(KEY_BYTES)
    path = directory / KEY_FILE
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            _create(path)
        key = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"state: the session key {path} cannot be used: {error.strerror or error}"
        ) from error
    if len(key) != KEY_BYTES:
        raise UserError(
            f"state: {path} must hold exactly {KEY_BYTES} bytes; remove it to have a new key made"
        )
    return key


def _create(path: Path) -> None:
    # Written aside and linked into place: two routers that start at once agree on one key, and a
    # crash leaves no half-written one.
    fresh = path.with_suffix(f".{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, secrets.token_bytes(KEY_BYTES))
        os.fsync(handle)
    finally:
        os.close(handle)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        fresh.unlink()
