"""Copies of records for plugins: one queue and one task for each sink.

A sink that is slow, or fails, loses records of its own and holds nobody else up. Knows lines, not
what stands in them.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import msgspec
import trio

from kars_router.hookspecs import AuditSink
from kars_router.telemetry import AuditMetrics, log

QUEUE: Final = 4096  # records
BATCH: Final = 256
WRITE_SECONDS: Final = 10.0
DRAIN_SECONDS: Final = 1.0
CLOSE_SECONDS: Final = 2.0


class Feed:
    """Takes records to one sink.

    Args:
        name: the sink's name in the log and in metrics.
        sink: the sink; closed when `run` ends.
        metrics: where lost records are counted.
    """

    def __init__(self, name: str, sink: AuditSink, metrics: AuditMetrics) -> None:
        self._name = name
        self._sink = sink
        self._dropped = metrics.sink_dropped.labels(name)
        self._lines: deque[bytes] = deque()
        self._wake = trio.Event()
        self._finished = False
        self._failing = False
        # Sinks get what is written while all the rest is being cancelled, so only `finish` ends
        # this, and bounds what is left then.
        self._scope = trio.CancelScope(shield=True)

    def put(self, line: bytes) -> None:
        """Adds a record; the oldest one makes room if there is none."""
        if len(self._lines) >= QUEUE:
            self._lines.popleft()
            self._dropped.inc()
        self._lines.append(line)
        self._wake.set()

    def finish(self) -> None:
        """Lets the sink have what is queued, for two seconds in all, and closes it."""
        self._finished = True
        self._scope.deadline = trio.current_time() + DRAIN_SECONDS
        self._wake.set()

    async def run(self) -> None:
        """Passes records on until `finish` is called. Cannot be cancelled from outside."""
        with self._scope:
            while not (self._finished and not self._lines):
                await self._wake.wait()
                self._wake = trio.Event()
                while self._lines:
                    await self._pass_on()
        self._dropped.inc(len(self._lines))
        with trio.move_on_after(CLOSE_SECONDS - DRAIN_SECONDS, shield=True):
            try:
                await self._sink.aclose()
            except Exception as error:  # noqa: BLE001 - crash barrier: one plugin call
                log().error("audit_sink_failed", sink=self._name, error=repr(error))

    async def _pass_on(self) -> None:
        lines = [self._lines.popleft() for _ in range(min(BATCH, len(self._lines)))]
        taken = False
        try:
            records: list[dict[str, Any]] = [msgspec.json.decode(line) for line in lines]
            with trio.fail_after(WRITE_SECONDS):
                await self._sink.write(records)
            taken = True
        except Exception as error:  # noqa: BLE001 - crash barrier: one plugin call
            # One line for each row of failures, not for each failure.
            if not self._failing:
                log().error("audit_sink_failed", sink=self._name, error=repr(error))
        finally:
            self._failing = not taken
            if not taken:
                self._dropped.inc(len(lines))
