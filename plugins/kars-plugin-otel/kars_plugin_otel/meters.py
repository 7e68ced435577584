"""The instruments: what is measured of calls and sessions, and how it is called.

Must not know the SDK or the router. Attributes have few values: servers and tools are those that
are configured, fates and codes come from fixed sets.

Source: OpenTelemetry GenAI semantic conventions, "MCP / Metrics".
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from attrs import define, field
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Meter, Observation

from kars_plugin_otel import attributes
from kars_router.model import CallEnd, GovernedCall, SessionInfo

_SECONDS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
# More than a pod has sessions; only one whose end was never reported could add up.
_MOST_SESSIONS: Final = 4096


@define(eq=False)
class Sessions:
    """The upstream sessions that live; outlives the instruments, which may be made anew.

    Attributes:
        clock: seconds that only go forward.
    """

    clock: Callable[[], float] = time.monotonic
    _since: dict[str, tuple[str, float]] = field(factory=dict, init=False)

    def opened(self, session: SessionInfo) -> None:
        """A session lives from now on."""
        if len(self._since) < _MOST_SESSIONS:
            self._since[session.key] = (session.server, self.clock())

    def closed(self, session: SessionInfo) -> float | None:
        """Seconds that it lived; None if nobody knows."""
        _, since = self._since.pop(session.key, ("", None))
        return None if since is None else self.clock() - since

    def live(self) -> Counter[str]:
        """How many there are by server; asked by another thread."""
        return Counter(server for server, _ in list(self._since.values()))


class Meters:
    """The instruments of one meter.

    Args:
        meter: where they are made.
        sessions: the sessions that live.
    """

    def __init__(self, meter: Meter, sessions: Sessions) -> None:
        self._sessions = sessions
        self._duration = meter.create_histogram(
            "mcp.server.operation.duration",
            unit="s",
            description="From the arrival of an agent's request to the end of its answer.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._lifetime = meter.create_histogram(
            "mcp.client.session.duration",
            unit="s",
            description="How long upstream sessions lived.",
            explicit_bucket_boundaries_advisory=(1, 10, 60, 300, 1800, 3600, 14400, 86400),
        )
        self._calls = meter.create_counter(
            "kars.calls", unit="{call}", description="Calls by fate and code."
        )
        self._generations = meter.create_counter(
            "kars.upstream.generations",
            unit="{session}",
            description="Upstream sessions opened.",
        )
        self._losses = meter.create_counter(
            "kars.session.losses", unit="{session}", description="Upstream sessions lost."
        )
        self._restored = meter.create_counter(
            "kars.session.restorations",
            unit="{session}",
            description="Sessions that took the place of a lost one.",
        )
        meter.create_observable_up_down_counter(
            "kars.upstream.sessions",
            callbacks=[self._observe],
            unit="{session}",
            description="Upstream sessions that live.",
        )

    def ended(self, call: GovernedCall, end: CallEnd, context: Context) -> None:
        """A call has ended.

        Args:
            call: the call.
            end: how it ended.
            context: holds its span, if it has one, which becomes the measurement's example.
        """
        how = attributes.of_end(end)
        labels = {**attributes.of_measure(call), **how}
        self._duration.record(end.seconds, labels, context)
        count = {name: how[name] for name in ("kars.fate", "kars.code")}
        self._calls.add(1, {"kars.server": call.server, **count}, context)

    def opened(self, session: SessionInfo) -> None:
        """An upstream session has begun."""
        self._generations.add(1, {"kars.server": session.server})

    def lost(self, session: SessionInfo) -> None:
        """One was lost."""
        self._losses.add(1, {"kars.server": session.server})

    def restored(self, session: SessionInfo) -> None:
        """One has taken the place of a lost one."""
        self._restored.add(1, {"kars.server": session.server})

    def closed(self, session: SessionInfo, seconds: float) -> None:
        """One has ended after so many seconds."""
        self._lifetime.record(seconds, {"kars.server": session.server})

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        for server, number in self._sessions.live().items():
            yield Observation(number, {"kars.server": server})
