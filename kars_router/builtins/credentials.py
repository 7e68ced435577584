"""Bearer tokens from an environment variable or from a mounted file.

A file is read again when the server refuses the token, which is how rotated Kubernetes secrets
arrive. Source: RFC 6750, section 2.1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import trio
from attrs import define, field

from kars_router.errors import UserError
from kars_router.hookspecs import Credentials, hookimpl
from kars_router.model import ServerInfo


@define
class _Bearer:
    server: ServerInfo
    _token: str = field(default="", repr=False)

    async def headers(self, *, refresh: bool) -> Mapping[str, str]:
        if refresh or not self._token:
            self._token = await self._read()
        return {"authorization": f"Bearer {self._token}"}

    async def _read(self) -> str:
        server = self.server
        if server.bearer_from_file:
            origin = f"the file {server.bearer_from_file}"
            try:
                token = (await trio.Path(server.bearer_from_file).read_text("ascii")).strip()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(
                    f"servers.{server.name}.bearerFromFile: {origin} cannot be read: {error}"
                ) from error
        else:
            origin = f"the variable {server.bearer_from_env}"
            token = os.environ.get(server.bearer_from_env, "").strip()
        if not token or not token.isascii() or not token.isprintable():
            raise UserError(f"servers.{server.name}: {origin} holds no usable bearer token")
        return token


@hookimpl(trylast=True)
def kars_credentials(server: ServerInfo) -> Credentials | None:
    """A bearer token where the server's configuration names one."""
    return _Bearer(server) if server.bearer_from_env or server.bearer_from_file else None
