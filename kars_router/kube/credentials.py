"""Who we are to an API server: headers and certificates, and how they are renewed.

Owns tokens in files. Must not know where in a kubeconfig they were named.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

import trio
from attrs import define, field, frozen

from kars_router.errors import UndeterminedError

_TOKEN_SECONDS: Final = 10.0  # that a token is used before its file is read again
_LARGEST_TOKEN: Final = 1024 * 1024


@frozen
class Certificate:
    """A client certificate.

    Attributes:
        chain: PEM, the client's own certificate first.
        key: PEM, not encrypted.
    """

    chain: str = field(repr=False)
    key: str = field(repr=False)


class Credentials(Protocol):
    """What a request is authenticated with."""

    @property
    def certificate(self) -> Certificate | None:
        """What new TLS connections present; None for nothing. Valid after `headers`."""
        ...

    async def headers(self) -> Mapping[str, str]:
        """The headers to send now.

        Raises:
            UndeterminedError: there are none to be had; says what to change.
        """
        ...

    def refused(self) -> bool:
        """Takes note that the server did not accept them; tells whether others can be had."""
        ...


@frozen
class Fixed:
    """Credentials that stay what they are.

    Attributes:
        sent: the headers; none for somebody who has only a certificate, or nothing.
    """

    sent: Mapping[str, str] = field(factory=dict, repr=False)
    certificate: Certificate | None = None

    async def headers(self) -> Mapping[str, str]:
        """See `Credentials.headers`."""
        return self.sent

    def refused(self) -> bool:
        """See `Credentials.refused`."""
        return False


def bearer(token: str) -> dict[str, str]:
    """The header of a bearer token."""
    return {"authorization": f"Bearer {token}"}


def basic(name: str, password: str) -> dict[str, str]:
    """The header of a name and a password."""
    both = base64.b64encode(f"{name}:{password}".encode()).decode("ascii")
    return {"authorization": f"Basic {both}"}


@define
class TokenFile:
    """A bearer token that something else writes into a file, anew before each expires.

    Attributes:
        path: the file.
        certificate: for TLS, beside the token.
    """

    path: Path
    certificate: Certificate | None = None
    _token: str = field(default="", repr=False, init=False)
    _until: float = field(default=0.0, init=False)

    async def headers(self) -> Mapping[str, str]:
        """See `Credentials.headers`."""
        if not self._token or trio.current_time() >= self._until:
            self._token = read_token(self.path)
            self._until = trio.current_time() + _TOKEN_SECONDS
        return bearer(self._token)

    def refused(self) -> bool:
        """See `Credentials.refused`."""
        before, self._token = self._token, ""
        return read_token(self.path) != before


def read_token(path: Path) -> str:
    """Reads a token from a file.

    Raises:
        UndeterminedError: that is not possible.
    """
    try:
        with path.open("rb") as file:
            token = file.read(_LARGEST_TOKEN).decode("ascii", "replace").strip()
    except OSError as error:
        raise UndeterminedError(f"the token in {path} cannot be read: {error.strerror}") from error
    if not token.isascii() or not token.isprintable() or not token or " " in token:
        raise UndeterminedError(f"{path} holds no token")
    return token
