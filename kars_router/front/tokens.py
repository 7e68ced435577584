"""JSON Web Tokens of agents: whom they name, if they are good.

Owns what a good token is. Must not know HTTP, nor where keys come from. Imports the JWT library,
which a router without JWT never loads: import this module late.

Source: RFC 7519, RFC 8725 (best current practices), RFC 9068 (access tokens), RFC 6749 section
3.3 (scopes).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import jwt
from jwt.api_jws import PyJWS

from kars_router.config.auth import Jwt
from kars_router.front.bearer import BadTokenError
from kars_router.front.jwks import ALGORITHMS
from kars_router.front.keysource import KeySource
from kars_router.front.principal import Principal
from kars_router.wire import jsonrpc

_LONGEST_SUBJECT: Final = 255
_MOST_SCOPES: Final = 256
_LATEST: Final = 1e15  # seconds
# RFC 8725 section 3.11: what was issued for another use, such as a logout, is no access token.
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})


class JwtVerifier:
    """Checks JWTs.

    Args:
        settings: the tokens that are wanted.
        keys: the keys of their issuer.
        clock: the wall clock, in seconds.
    """

    def __init__(
        self, settings: Jwt, keys: KeySource, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._clock = clock
        # It knows these algorithms only: whatever a header says, nothing else can be run.
        self._jws = PyJWS(algorithms=ALGORITHMS, options={"enforce_minimum_key_length": True})

    async def run(self) -> None:
        """Keeps the keys fresh until cancelled."""
        await self._keys.run()

    async def verify(self, token: str) -> Principal:
        """Checks everything but the scopes.

        Raises:
            BadTokenError: the token is not good.
            UncheckableError: there are no keys to check it with.
        """
        try:
            header = self._jws.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise BadTokenError("the token is not a signed JWT") from error
        algorithm, kid, typ = header.get("alg"), header.get("kid", ""), header.get("typ", "JWT")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
            raise BadTokenError("the token is not signed by an algorithm that is taken here")
        if not isinstance(typ, str) or typ.lower() not in _TYPES:
            raise BadTokenError("the token is not an access token")
        key = await self._keys.find(kid, algorithm)
        if key is None:
            raise BadTokenError("the token is signed with an unknown key")
        try:
            payload = self._jws.decode_complete(token, key.value, algorithms=[algorithm])["payload"]
            claims = jsonrpc.decode(payload)
        except (jwt.PyJWTError, jsonrpc.MalformedError, RecursionError) as error:
            raise BadTokenError("the signature or the form of the token is wrong") from error
        if not isinstance(claims, dict):
            raise BadTokenError("the signature or the form of the token is wrong")
        self._check_time(claims)
        return self._principal(claims)

    def _check_time(self, claims: dict[str, Any]) -> None:
        now, leeway = self._clock(), self._settings.leeway
        expires = _seconds(claims, "exp")
        if expires is None:
            raise BadTokenError("the token does not say when it expires")
        if now >= expires + leeway:
            raise BadTokenError("the token has expired")
        for name in ("nbf", "iat"):
            begins = _seconds(claims, name)
            if begins is not None and now < begins - leeway:
                raise BadTokenError("the token is not valid yet")

    def _principal(self, claims: dict[str, Any]) -> Principal:
        if claims.get("iss") != self._settings.issuer:
            raise BadTokenError("the token is of another issuer")
        audience = claims.get("aud")
        named = audience if isinstance(audience, list) else [audience]
        if not any(each in self._settings.audience for each in named if isinstance(each, str)):
            raise BadTokenError("the token is for another audience")
        subject = claims.get("sub")
        if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST_SUBJECT:
            raise BadTokenError("the token names no subject")
        if not subject.isprintable():
            raise BadTokenError("the token names no subject")
        return Principal(subject=subject, issuer=self._settings.issuer, scopes=_scopes(claims))


def _seconds(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    # Whole numbers may be too large for a float; compared they are exact, and NaN is in no range.
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -_LATEST < value < _LATEST
    ):
        return value
    raise BadTokenError("the token holds a time that is none")


def _scopes(claims: dict[str, Any]) -> tuple[str, ...]:
    """What a token allows: `scope`, a string with spaces, or else `scp`, that or a list."""
    said = claims.get("scope", claims.get("scp", ""))
    each = said.split(" ") if isinstance(said, str) else said
    if not isinstance(each, list) or not all(isinstance(one, str) for one in each):
        raise BadTokenError("the token holds scopes that are none")
    found = tuple(dict.fromkeys(one for one in each if one))
    if len(found) > _MOST_SCOPES:
        raise BadTokenError("the token holds too many scopes")
    return found
