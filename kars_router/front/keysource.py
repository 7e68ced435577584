"""Where the public keys of an issuer come from, and for how long they are good.

Owns when keys are read or fetched again. Must not know tokens, nor how a fetch goes over the
network. Without keys nobody is let in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio
from attrs import define, field

from kars_router.front.bearer import UncheckableError
from kars_router.front.files import WatchedFile
from kars_router.front.jwks import Key, KeySet, parse
from kars_router.telemetry import log

REFRESH_SECONDS: Final = 300.0
KEPT_SECONDS: Final = 3600.0
# Anybody can invent names of keys.
UNKNOWN_SECONDS: Final = 30.0
_FIRST_RETRY_SECONDS: Final = 2.0
_LAST_RETRY_SECONDS: Final = 60.0
_PATIENCE_SECONDS: Final = 12.0  # longer than any fetch


class FetchError(Exception):
    """Keys could not be fetched; the message is for the log."""


class KeySource(Protocol):
    """The keys of one issuer."""

    async def find(self, kid: str, algorithm: str) -> Key | None:
        """The key that a token names; None if there is none.

        Raises:
            UncheckableError: there are no keys at all.
        """
        ...

    async def run(self) -> None:
        """Keeps the keys fresh until cancelled."""
        ...


@define
class FileKeys:
    """The keys in a file, as they are when a token is checked.

    Attributes:
        file: the file.
    """

    file: WatchedFile
    _read: bytes | None = None
    _keys: KeySet = field(factory=lambda: KeySet(()))

    async def find(self, kid: str, algorithm: str) -> Key | None:
        """See `KeySource.find`."""
        await trio.lowlevel.checkpoint()
        return self.load().find(kid, algorithm)

    async def run(self) -> None:
        """See `KeySource.run`; there is nothing to do."""
        await trio.sleep_forever()

    def load(self) -> KeySet:
        """The keys.

        Raises:
            UncheckableError: the file cannot be read, or holds none.
        """
        try:
            data = self.file.read()
            if data != self._read:
                self._keys = parse(data)
                self._read = data
        except (OSError, ValueError) as error:
            # The old ones may have been taken back: a file that is gone must not keep them alive.
            reason = getattr(error, "strerror", None) or str(error)
            raise UncheckableError(f"{self.file.path}: {reason}") from error
        return self._keys


@define(eq=False)
class FetchedKeys:
    """Keys that are fetched, every five minutes, and once more when a token names another one.

    One fetch runs at a time, and all who need it wait for the same. When fetches fail, the keys
    of the last good one serve for an hour.

    Attributes:
        fetch: gets them; raises FetchError.
        name: the issuer, for the log.
    """

    fetch: Callable[[], Awaitable[KeySet]]
    name: str
    _keys: KeySet | None = None
    _fetched: float = 0.0
    _unknown: float = float("-inf")
    _under_way: bool = True
    _ended: bool = False
    _wanted: trio.Event = field(factory=trio.Event)
    _round: trio.Event = field(factory=trio.Event)

    async def find(self, kid: str, algorithm: str) -> Key | None:
        """See `KeySource.find`; waits for a fetch if that can help."""
        await trio.lowlevel.checkpoint()
        keys = self._current()
        found = keys and keys.find(kid, algorithm)
        if found:
            return found
        if keys is not None and not self._under_way and self._may_ask():
            self._under_way = True
            self._wanted.set()
        if self._under_way:
            with trio.move_on_after(_PATIENCE_SECONDS):
                await self._round.wait()
            keys = self._current()
        if keys is None:
            raise UncheckableError(f"the keys of {self.name} are not there")
        return keys.find(kid, algorithm)

    async def run(self) -> None:
        """See `KeySource.run`."""
        failures = 0
        try:
            while True:
                self._under_way = True
                failures = 0 if await self._try() else failures + 1
                self._finish_round()
                delay = REFRESH_SECONDS
                if failures:
                    # The exponent is bounded, or an outage of a day would be a number too large.
                    delay = _FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 10)
                    delay = min(delay, _LAST_RETRY_SECONDS)
                with trio.move_on_after(delay):
                    await self._wanted.wait()
        finally:
            self._ended = True
            self._finish_round()

    def _current(self) -> KeySet | None:
        too_old = trio.current_time() - self._fetched > KEPT_SECONDS
        return None if self._keys is None or self._ended or too_old else self._keys

    def _may_ask(self) -> bool:
        now = trio.current_time()
        if self._ended or now - self._unknown < UNKNOWN_SECONDS:
            return False
        self._unknown = now
        return True

    async def _try(self) -> bool:
        try:
            keys = await self.fetch()
        except FetchError as error:
            left = 0.0
            if self._keys is not None:
                left = max(KEPT_SECONDS - (trio.current_time() - self._fetched), 0.0)
            reason = str(error)
            log().warning("agent_keys_unavailable", issuer=self.name, reason=reason, kept_for=left)
            return False
        if self._keys is None or self._keys != keys:
            log().info("agent_keys_fetched", issuer=self.name, keys=len(keys.keys))
        self._keys, self._fetched = keys, trio.current_time()
        return True

    def _finish_round(self) -> None:
        self._under_way = False
        self._round.set()
        self._round, self._wanted = trio.Event(), trio.Event()
