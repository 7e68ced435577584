"""Bearer tokens in HTTP: where a request shows one, and how a refusal asks for one.

Pure. Must not know what makes a token good.

Source: RFC 6750, sections 2.1 and 3; RFC 9728, section 5.1; RFC 9110, section 11.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import frozen

from kars_router.front.exchange import Exchange, Header

_AUTHORIZATION: Final = b"authorization"
_LONGEST: Final = 16 * 1024
_REALM: Final = "kars-router"
_TOKEN: Final = re.compile(rb"[A-Za-z0-9._~+/-]+=*\Z")  # `b64token`


class BadTokenError(Exception):
    """A token was shown, and it is not good.

    Args:
        reason: half a sentence for the agent's developer, in words of our own: nothing of a token
            is repeated.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class UncheckableError(Exception):
    """Whether a token is good cannot be found out now; the message is for the log."""


def take_authorization(exchange: Exchange) -> bytes | None:
    """What a request's Authorization header holds; None if it has none.

    The request loses it, so that nothing that reads the request later can log it or pass it on.
    """
    shown = exchange.headers.pop(_AUTHORIZATION, None)
    if shown is not None:
        kept = [pair for pair in exchange.scope["headers"] if pair[0].lower() != _AUTHORIZATION]
        exchange.scope = {**exchange.scope, "headers": kept}
    return shown


def token_in(shown: bytes | None) -> str | None:
    """The bearer token in an Authorization header; never one from anywhere else.

    Args:
        shown: the header's value, or None.

    Returns:
        None if no token is shown: no header, or one of another scheme.

    Raises:
        BadTokenError: what is shown cannot be a token; also when there are several.
    """
    scheme, _, rest = (shown or b"").strip(b" \t").partition(b" ")
    if scheme.lower() != b"bearer":
        return None
    token = rest.strip(b" \t")
    if len(token) > _LONGEST or not _TOKEN.match(token):
        raise BadTokenError("the Authorization header does not hold one bearer token")
    return token.decode("ascii")


@frozen(kw_only=True)
class Challenge:
    """What a refusal says about the tokens that are wanted.

    Attributes:
        error: an error code of RFC 6750; "" if no token was shown, when there must be none.
        reason: half a sentence beside it.
        metadata: where more can be learned (RFC 9728); "" for nowhere.
        scopes: what a token has to allow.
    """

    error: str = ""
    reason: str = ""
    metadata: str = ""
    scopes: tuple[str, ...] = ()

    def header(self) -> Header:
        """The WWW-Authenticate header; no part of it may hold quotes or line breaks."""
        parts = {
            "realm": _REALM,
            "error": self.error,
            "error_description": self.reason,
            "resource_metadata": self.metadata,
            "scope": " ".join(self.scopes),
        }
        said = ", ".join(f'{name}="{value}"' for name, value in parts.items() if value)
        return b"www-authenticate", f"Bearer {said}".encode("ascii")
