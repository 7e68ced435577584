"""The token that a person shows to decide on held calls.

The agent shares the pod's loopback with the admin address, so being able to reach it proves
nothing; the state directory is the router's own, and the agent cannot read the token there.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from attrs import field, frozen

from kars_router.errors import UserError

TOKEN_FILE: Final = "admin-token"  # noqa: S105 - a file name
VARIABLE: Final = "KARS_ADMIN_TOKEN"
_SHORTEST: Final = 16


@frozen
class AdminToken:
    """The token, or none, and then nobody may decide anything here."""

    _value: str = field(default="", repr=False)

    @property
    def known(self) -> bool:
        """Whether there is one."""
        return bool(self._value)

    def admits(self, authorization: str) -> bool:
        """Whether an Authorization header shows it."""
        scheme, _, shown = authorization.partition(" ")
        given = shown.strip().encode("utf-8", "surrogateescape")
        return (
            self.known
            and scheme.lower() == "bearer"
            and hmac.compare_digest(given, self._value.encode())
        )


def load_admin_token(directory: Path | None, environ: Mapping[str, str]) -> AdminToken:
    """The token from the environment, else from the state directory, where it is made if need be.

    Args:
        directory: the state directory, or None.
        environ: the environment.

    Raises:
        UserError: it is too short, or the file cannot be read or made.
    """
    given = environ.get(VARIABLE, "").strip()
    if given:
        return AdminToken(_checked(given, f"the variable {VARIABLE}"))
    if directory is None:
        return AdminToken()
    path = directory / TOKEN_FILE
    try:
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return AdminToken(_checked(path.read_text("utf-8").strip(), f"the file {path}"))
        with os.fdopen(handle, "w", encoding="ascii") as file:
            made = secrets.token_urlsafe(32)
            file.write(f"{made}\n")
        return AdminToken(made)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"state: the admin token {path} cannot be used: {error}") from error


def _checked(token: str, origin: str) -> str:
    if len(token) < _SHORTEST or not token.isascii() or not token.isprintable():
        raise UserError(
            f"{origin} must hold an admin token of at least {_SHORTEST} printable characters"
        )
    return token
