"""What the router proves with who it is: from variables and files, read each time anew.

Owns where secrets come from. Must not know what they are used for. Nothing here is ever shown.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote_plus

import trio
from attrs import field, frozen

from kars_router.config.auth import OAuth
from kars_router.transports.oauth.errors import TokenError

_MOST_BYTES = 64 * 1024


@frozen(kw_only=True)
class Secrets:
    """What one request for a token takes.

    Attributes:
        client_id: the client's identifier; no secret.
        client_secret: its secret; "" for a client without one.
        subject_token: the token that is to be exchanged; "" if none is.
        keys: which setting each of them comes from, for errors.
    """

    client_id: str
    client_secret: str = field(default="", repr=False)
    subject_token: str = field(default="", repr=False)
    keys: Mapping[str, str] = field(factory=dict)

    def basic(self) -> str:
        """Identifier and secret for basic authentication (RFC 6749 section 2.3.1)."""
        pair = f"{quote_plus(self.client_id)}:{quote_plus(self.client_secret)}"
        return base64.b64encode(pair.encode()).decode()

    def values(self) -> list[str]:
        """Those that must not be shown, in each form in which they are sent."""
        given = [value for value in (self.client_secret, self.subject_token) if value]
        pair = [self.basic()] if self.client_secret else []
        return [*given, *(quote_plus(value) for value in given), *pair]


async def read(settings: OAuth) -> Secrets:
    """Reads what the settings name.

    Raises:
        TokenError: a variable or a file holds nothing that can be used; names the setting.
    """
    keys: dict[str, str] = {}
    return Secrets(
        client_id=settings.client_id
        or await _one(settings.client_id_from_env, None, "clientId", keys),
        client_secret=await _one(
            settings.client_secret_from_env, settings.client_secret_from_file, "clientSecret", keys
        ),
        subject_token=await _one(
            settings.subject_token_from_env, settings.subject_token_from_file, "subjectToken", keys
        ),
        keys={"clientId": "clientId"} | keys,
    )


def fingerprint(settings: OAuth) -> tuple[object, ...]:
    """Changes whenever one of the files does; cheap, and blocks no longer than a `stat`."""
    files = (settings.client_secret_from_file, settings.subject_token_from_file)
    return tuple(stamp(path) if path else None for path in files)


def stamp(path: Path | str) -> tuple[int, int, int, int] | None:
    """Which state of a file this is; None if there is no file.

    A projected volume is changed by swapping a symbolic link, which is followed: the new file
    has another inode.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - on the path of every request; Path costs more
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size


async def _one(env: str | None, path: Path | None, name: str, keys: dict[str, str]) -> str:
    if env:
        key = keys[name] = f"{name}FromEnv"
        value = os.environ.get(env, "")
        origin = f"the variable {env}"
    elif path:
        key = keys[name] = f"{name}FromFile"
        origin = f"the file {path}"
        value = await _content(path, origin, key)
    else:
        return ""
    value = value.strip()
    if not value:
        raise TokenError(f"{origin} is empty or not set", key=key)
    if not value.isascii() or not value.isprintable() or " " in value:
        raise TokenError(f"{origin} holds characters that no token has", key=key)
    return value


async def _content(path: Path, origin: str, key: str) -> str:
    try:
        async with await trio.open_file(path, "rb") as file:
            content = await file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise TokenError(f"{origin} is too large for a token", key=key)
        return content.decode("ascii")
    except UnicodeDecodeError:
        raise TokenError(f"{origin} holds characters that no token has", key=key) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise TokenError(f"{origin} cannot be read: {reason}", key=key) from error
