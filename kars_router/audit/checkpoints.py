"""Signatures under the chain: the key, what it signs, and who can check that.

A checkpoint is a record whose last members are `signature` and `hash`. Signed are all bytes of its
line before the comma in front of `signature`, with a purpose in front of them, so that a signature
under something else is none under a checkpoint. Since `prev` is among those bytes, everything
before it is signed as well. Knows neither files of records nor clocks.

Source: RFC 8032 (Ed25519), RFC 5869 (HKDF).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
from attrs import field, frozen
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kars_router.audit.chain import BrokenError, body_of
from kars_router.errors import UserError

KEY_FILE: Final = "audit-key.pem"
_PURPOSE: Final = b"kars-router audit checkpoint, version 1\n"
_DIGESTS: Final = b"kars-router audit digests, version 1"
_SIGNATURE: Final = b',"signature":"'
_TAIL: Final = len(_SIGNATURE) + 88 + 1
_BEGIN: Final = b"-----BEGIN PUBLIC KEY-----"


@frozen
class Signer:
    """The key that signs checkpoints.

    Attributes:
        fingerprint: SHA-256 of the raw public key, as hexadecimal digits.
        public: the raw public key in base64.
        digest_key: derived from it; the key of the digests of arguments and results.
        kept: whether it outlives the process.
    """

    _key: Ed25519PrivateKey = field(repr=False)
    kept: bool
    fingerprint: str = field(init=False)
    public: str = field(init=False)
    digest_key: bytes = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        raw = self._key.public_key().public_bytes_raw()
        derived = HKDF(hashes.SHA256(), 32, salt=None, info=_DIGESTS)
        # The way that attrs has for values that follow from others.
        object.__setattr__(self, "fingerprint", fingerprint(raw))
        object.__setattr__(self, "public", base64.b64encode(raw).decode())
        object.__setattr__(self, "digest_key", derived.derive(self._key.private_bytes_raw()))

    def sign(self, body: bytes) -> bytes:
        """The body of a checkpoint, with its signature."""
        signature = base64.b64encode(self._key.sign(_PURPOSE + body))
        return b'%b%b%b"' % (body, _SIGNATURE, signature)

    def public_pem(self) -> bytes:
        """The public key as it stands in a `.pub` file."""
        return self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


def fingerprint(raw: bytes) -> str:
    """The fingerprint of a raw public key."""
    return hashlib.sha256(raw).hexdigest()


def load_signer(path: Path | None, state: Path | None) -> Signer:
    """The signing key; made, for its owner only, where there is none.

    Args:
        path: the configured file.
        state: the state directory, used if no file is configured; with neither, the key dies with
            the process.

    Raises:
        UserError: the file cannot be used, or holds no Ed25519 key.
    """
    if path is None and state is None:
        return Signer(Ed25519PrivateKey.generate(), kept=False)
    place = path if path is not None else (state or Path()) / KEY_FILE
    setting = "audit.signingKey" if path is not None else "state"
    try:
        if not place.exists():
            _create(place)
        text = place.read_bytes()
    except OSError as error:
        raise UserError(
            f"{setting}: the signing key {place} cannot be used: {error.strerror or error}"
        ) from error
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UserError(f"{setting}: {place} holds no private key in PEM: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{setting}: the key in {place} must be an Ed25519 key")
    return Signer(key, kept=True)


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    text = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    # Written aside and linked into place: two that start at once agree on one key, and a crash
    # leaves no half-written one.
    fresh = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            if os.write(handle, text) != len(text):
                raise OSError(0, "the disk is full")
            os.fsync(handle)
        finally:
            os.close(handle)
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        fresh.unlink()


def publish(signer: Signer, path: Path) -> None:
    """Adds the public key to a `.pub` file, unless it stands there.

    Raises:
        OSError: it cannot be written.
    """
    text = signer.public_pem()
    known = path.read_bytes() if path.exists() else b""
    if text not in known:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        with os.fdopen(handle, "wb") as file:
            file.write(text)


def load_public(path: Path) -> dict[str, Ed25519PublicKey]:
    """The public keys (PEM) in a file, by their fingerprints.

    Raises:
        OSError: it cannot be read.
        UserError: it holds something else.
    """
    found: dict[str, Ed25519PublicKey] = {}
    for block in path.read_bytes().split(_BEGIN)[1:]:
        try:
            key = serialization.load_pem_public_key(_BEGIN + block)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise UserError(f"{path} holds no public key in PEM: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise UserError(f"{path} holds a key that is not an Ed25519 key")
        found[fingerprint(key.public_bytes_raw())] = key
    if not found:
        raise UserError(f"{path} holds no public key in PEM")
    return found


class _Checkpoint(msgspec.Struct):
    key: str
    public: str
    signature: str


_decoder = msgspec.json.Decoder(_Checkpoint)


def check(line: bytes, trusted: Mapping[str, Ed25519PublicKey] | None) -> str:
    """Checks the signature of a checkpoint whose place in the chain is in order.

    Args:
        line: without its line feed.
        trusted: the keys that may have signed it; None for the one that it names itself.

    Returns:
        The key's fingerprint.

    Raises:
        BrokenError: it is not signed, or not by that key.
    """
    try:
        said = _decoder.decode(line)
        raw = base64.b64decode(said.public, validate=True)
        signature = base64.b64decode(said.signature, validate=True)
        key = Ed25519PublicKey.from_public_bytes(raw)
    except (msgspec.DecodeError, binascii.Error, ValueError) as error:
        raise BrokenError(f"it is no checkpoint: {error}") from None
    if fingerprint(raw) != said.key:
        raise BrokenError("its public key does not have the fingerprint that it names")
    if trusted is not None:
        if said.key not in trusted:
            raise BrokenError(f"it is signed by the key {said.key[:16]}, which is not trusted")
        key = trusted[said.key]
    body = body_of(line)
    if not body[-_TAIL:].startswith(_SIGNATURE):
        raise BrokenError("it is no checkpoint: its signature does not stand before its hash")
    try:
        key.verify(signature, _PURPOSE + body[:-_TAIL])
    except InvalidSignature:
        raise BrokenError("its signature is wrong") from None
    return said.key
