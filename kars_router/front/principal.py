"""Who makes a request, as far as a token has proved it.

Knows neither HTTP nor tokens.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec
from attrs import frozen


@frozen(kw_only=True)
class Principal:
    """Whom a token names; nobody in particular if `subject` is empty.

    Attributes:
        subject: whom the issuer means; 1 to 255 printable characters, or "".
        issuer: who said so.
        scopes: what the token allows.
    """

    subject: str = ""
    issuer: str = ""
    scopes: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """A name for log and status page that no two principals share; "" for nobody."""
        # An issuer is a URL, so it has no space: what follows the first one is the subject.
        return f"subject:{self.issuer} {self.subject}" if self.subject else ""

    @property
    def owner(self) -> str:
        """The same as a digest of 32 characters, for what is bound to a principal; "" for nobody.

        Whatever the length of a subject, a session id that holds this stays a short header.
        """
        if not self.subject:
            return ""
        named = msgspec.json.encode([self.issuer, self.subject])
        return hashlib.sha256(named).hexdigest()[:32]


NOBODY: Final = Principal()
