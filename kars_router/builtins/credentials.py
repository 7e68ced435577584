"""Bearer tokens from an environment variable or from a mounted file.

A file is read again as soon as it has changed, which is how rotated Kubernetes secrets arrive, and
when the server refuses the token. Source: RFC 6750, section 2.1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import trio
from attrs import define, field

from kars_router.errors import UserError
from kars_router.hookspecs import Credentials, hookimpl
from kars_router.model import ServerInfo
from kars_router.telemetry import log
from kars_router.transports.oauth.secrets import stamp

_MOST_BYTES: Final = 64 * 1024


@define
class _Bearer:
    server: ServerInfo
    _token: str = field(default="", repr=False)
    _stamp: tuple[int, int, int, int] | None = None
    _lock: trio.Lock = field(factory=trio.Lock, repr=False)

    async def headers(self, *, refresh: bool) -> Mapping[str, str]:
        async with self._lock:
            if not self._token or refresh:
                await self._read()
            elif self._changed():
                try:
                    await self._read()
                except UserError as error:
                    # Somebody is in the middle of writing it, or has taken it away: it is for the
                    # server to say that the token is no good any more.
                    log().warning("token_file_unusable", server=self.server.name, error=str(error))
        return self._headers()

    async def renew(
        self,
        refused: Mapping[str, str],
        *,
        status: int,  # noqa: ARG002 - a file is read whatever the server says
        challenge: str,  # noqa: ARG002
    ) -> Mapping[str, str]:
        async with self._lock:
            if not self._token or refused == self._headers():
                await self._read()
        return self._headers()

    def stale(self, headers: Mapping[str, str], *, urgent: bool) -> bool:  # noqa: ARG002 - a file is read at once
        return headers != self._headers() or self._changed()

    def _headers(self) -> Mapping[str, str]:
        return {"authorization": f"Bearer {self._token}"}

    def _changed(self) -> bool:
        path = self.server.bearer_from_file
        return bool(path) and stamp(path) != self._stamp

    async def _read(self) -> None:
        server = self.server
        path = server.bearer_from_file
        if path:
            origin = f"the file {path}"
            # Taken first: what is written while the file is read shows as a change afterwards.
            self._stamp = stamp(path)
            try:
                async with await trio.open_file(path, "rb") as file:
                    content = await file.read(_MOST_BYTES + 1)
            except (OSError, ValueError) as error:  # ValueError: a NUL in the name
                said = getattr(error, "strerror", None) or type(error).__name__
                raise UserError(
                    f"servers.{server.name}.bearerFromFile: {origin} cannot be read: {said}"
                ) from error
            # Too large, or of other characters: nothing that could be sent, and nothing to quote.
            whole = content.isascii() and len(content) <= _MOST_BYTES
            token = content.decode("ascii").strip() if whole else ""
        else:
            origin = f"the variable {server.bearer_from_env}"
            token = os.environ.get(server.bearer_from_env, "").strip()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise UserError(f"servers.{server.name}: {origin} holds no usable bearer token")
        self._token = token


@hookimpl(trylast=True)
def kars_credentials(server: ServerInfo) -> Credentials | None:
    """A bearer token where the server's configuration names one."""
    return _Bearer(server) if server.bearer_from_env or server.bearer_from_file else None
