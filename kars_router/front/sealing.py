"""Session ids that hold their session: sealed by authenticated encryption.

An id says who it was made for and cannot be read or altered without the key, so the router can
rebuild a session from it after a restart. The key comes from a file that is made once.

Source: RFC 8439 (ChaCha20-Poly1305); MCP 2025-11-25 "Session Management" (visible ASCII).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import secrets
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from kars_router.errors import UserError

KEY_FILE: Final = "session.key"
KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_LONGEST: Final = 4096
# Bound into the seal, so that a key used for something else later opens no session ids.
_PURPOSE: Final = b"kars-router agent session id, version 1"


class Ticket(
    msgspec.Struct,
    frozen=True,
    rename={
        "agent": "a",
        "revision": "v",
        "endpoint": "e",
        "created": "t",
        "client": "n",
    },
):
    """What a session id holds.

    Attributes:
        agent: identifier of the agent session.
        revision: the negotiated revision.
        endpoint: the one server it is for, or "" for all.
        created: seconds since the epoch.
        client: the client's name for itself; untrusted.
    """

    agent: str
    revision: str
    endpoint: str
    created: float
    client: str = ""


class Sealer:
    """Seals and opens session ids.

    Args:
        key: 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._decoder: msgspec.json.Decoder[Ticket] = msgspec.json.Decoder(Ticket)

    def seal(self, ticket: Ticket) -> str:
        """A session id for a ticket: base64url, about 200 characters."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, msgspec.json.encode(ticket), _PURPOSE)
        return _spell(nonce + sealed)

    def open(self, session_id: str) -> Ticket | None:
        """The ticket in a session id; None if it was not made with this key."""
        if len(session_id) > _LONGEST or not session_id.isascii():
            return None
        try:
            raw = base64.b64decode(
                session_id + "=" * (-len(session_id) % 4), altchars=b"-_", validate=True
            )
            if len(raw) < _NONCE_BYTES + _TAG_BYTES or _spell(raw) != session_id:
                return None  # the last character has bits that decoding ignores
            text = self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _PURPOSE)
            return self._decoder.decode(text)
        except (binascii.Error, InvalidTag, msgspec.DecodeError):
            return None


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
