"""Audit records on standard output, one JSON object a line, for whoever collects a pod's output.

Off unless `plugins.options.stdout-sink.enabled` is true. Knows nothing of the journal.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import trio
from attrs import field, frozen

from kars_router.errors import PluginError
from kars_router.hookspecs import AuditSink, hookimpl


@frozen
class StdoutSink:
    """Writes records to a descriptor, in a thread, since a pipe that nobody reads blocks.

    Attributes:
        descriptor: where to.
    """

    descriptor: int
    _writing: threading.Lock = field(factory=threading.Lock, init=False, repr=False)

    async def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Writes a line for each record.

        On cancellation the thread is left to itself; nothing else is written until it is done, so
        that no line stands inside another.

        Raises:
            OSError: nobody takes what was written before, or the other side is gone.
        """
        if self._writing.locked():
            raise BlockingIOError("nobody reads what was written to standard output before")
        data = msgspec.json.Encoder().encode_lines(records)
        await trio.to_thread.run_sync(self._write, data, abandon_on_cancel=True)

    def _write(self, data: bytes) -> None:
        with self._writing:
            while data:
                data = data[os.write(self.descriptor, data) :]

    async def aclose(self) -> None:
        """Nothing is left: each write is whole."""


class Plugin:
    """The plugin `stdout-sink`; made anew for each router, because it holds its options."""

    def __init__(self) -> None:
        self._enabled = False

    @hookimpl
    def kars_configure(self, options: Mapping[str, Any]) -> None:
        """Takes `enabled`: true or false."""
        unknown = sorted(set(options) - {"enabled"})
        if unknown:
            raise PluginError(f"{unknown[0]} is unknown; there is only enabled")
        enabled = options.get("enabled", False)
        if not isinstance(enabled, bool):
            raise PluginError("enabled must be true or false")
        self._enabled = enabled

    @hookimpl
    def kars_audit_sinks(self) -> Sequence[AuditSink]:
        """The sink, if it is wanted and there is a standard output."""
        if not self._enabled or sys.stdout is None:
            return ()
        return (StdoutSink(sys.stdout.fileno()),)
