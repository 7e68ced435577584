"""Why there is no token, in words that an operator can act on.

Owns how text of an authorization server is made harmless. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from kars_router.errors import KarsError
from kars_router.transports.redaction import SHORTEST, redact

_LONGEST: Final = 160
_HARMLESS: Final = re.compile(r"[^ -~]+")


class TokenError(KarsError):
    """No token could be got.

    Args:
        sentence: what is wrong and what to change; holds no secret.
        key: the setting below `oauth` that it is about; "" for all of it.
        code: the error code of the authorization server (RFC 6749 section 5.2); "" if it gave none.
        retry_after: seconds for which the authorization server wants to be left alone.
        moved: what was known of the authorization server may be out of date.
    """

    def __init__(
        self,
        sentence: str,
        *,
        key: str = "",
        code: str = "",
        retry_after: float = 0.0,
        moved: bool = False,
    ) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.key = key
        self.code = code
        self.retry_after = retry_after
        self.moved = moved

    def again(self) -> TokenError:
        """The same, to be raised once more."""
        return TokenError(self.sentence, key=self.key, code=self.code)


def harmless(text: object, secrets: Iterable[str] = ()) -> str:
    """Text of somebody else, fit for a log line: printable ASCII, cut, without our secrets.

    Args:
        text: what was said; anything but a string is nothing.
        secrets: what must not appear; those of under four characters are left.
    """
    if not isinstance(text, str):
        return ""
    plain = _HARMLESS.sub("?", text[: 16 * _LONGEST])
    plain = redact(plain, [secret for secret in secrets if len(secret) >= SHORTEST])
    return plain if len(plain) <= _LONGEST else plain[:_LONGEST] + "..."
