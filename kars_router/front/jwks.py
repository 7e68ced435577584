"""Sets of public keys, and which key a token was signed with.

Pure. Imports the JWT library, which a router without JWT never loads: import this module late.

Source: RFC 7517 (JWKS), RFC 7518, RFC 8037 (Ed25519), RFC 8725 section 3.1 (a key is for one
algorithm, and the token does not decide which).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import jwt
from attrs import frozen
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import AllowedPublicKeys

from kars_router.telemetry import log
from kars_router.wire import jsonrpc

# Signatures only: with HS256 and its like a public key would be the secret.
ALGORITHMS: Final = ("ES256", "ES384", "EdDSA", "RS256", "PS256")
_FITTING: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("OKP", "Ed25519"): ("EdDSA",),
    ("RSA", ""): ("RS256", "PS256"),
}
_PUBLIC: Final = ("kty", "crv", "x", "y", "n", "e")
_LEAST_RSA_BITS: Final = 2048
_MOST_KEYS: Final = 256


@frozen
class Key:
    """A public key.

    Attributes:
        kid: what tokens call it; "" if it has no name.
        algorithms: what it may be used for.
        value: the key.
    """

    kid: str
    algorithms: tuple[str, ...]
    value: AllowedPublicKeys


@frozen
class KeySet:
    """The keys of an issuer, as far as they are for signatures that are taken."""

    keys: tuple[Key, ...]

    def find(self, kid: str, algorithm: str) -> Key | None:
        """The key that a token names, or could only mean.

        Args:
            kid: the key's name as the token has it; "" if it names none.
            algorithm: the token's.
        """
        fitting = [key for key in self.keys if algorithm in key.algorithms]
        if kid:
            for key in fitting:
                if key.kid == kid:
                    return key
            fitting = [key for key in fitting if not key.kid and len(self.keys) == 1]
        return fitting[0] if len(fitting) == 1 else None


def parse(data: bytes) -> KeySet:
    """Reads a JWKS; keys of other kinds or for other uses are left out.

    Raises:
        ValueError: it is none; with a sentence's end that repeats nothing of it.
    """
    try:
        listed = jsonrpc.decode(data).get("keys")
    except (jsonrpc.MalformedError, AttributeError, RecursionError):
        listed = None
    if not isinstance(listed, list):
        raise ValueError("is no JSON object with a list of keys")
    if len(listed) > _MOST_KEYS:
        raise ValueError(f"holds more than {_MOST_KEYS} keys")
    found = [key for each in listed if isinstance(each, dict) and (key := _read(each)) is not None]
    if len(found) < len(listed):
        log().debug("agent_keys_left_out", count=len(listed) - len(found))
    return KeySet(tuple(found))


def _read(member: Mapping[str, Any]) -> Key | None:
    kty, crv = member.get("kty"), member.get("crv", "")
    if not isinstance(kty, str) or not isinstance(crv, str):
        return None
    algorithms = _FITTING.get((kty, crv if kty != "RSA" else ""), ())
    said, use, operations = member.get("alg"), member.get("use"), member.get("key_ops")
    if said is not None:
        algorithms = tuple(each for each in algorithms if each == said)
    for_others = use not in (None, "sig") or (
        operations is not None and not (isinstance(operations, list) and "verify" in operations)
    )
    kid = member.get("kid", "")
    if not algorithms or for_others or not isinstance(kid, str):
        return None
    # Whoever publishes a private key by mistake does not have it loaded here as well.
    public = {name: member[name] for name in _PUBLIC if name in member}
    try:
        value = jwt.PyJWK(public, algorithm=algorithms[0]).key
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError):
        return None
    if isinstance(value, RSAPublicKey) and value.key_size < _LEAST_RSA_BITS:
        return None
    return Key(kid, algorithms, value)
