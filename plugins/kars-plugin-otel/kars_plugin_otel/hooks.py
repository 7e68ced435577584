"""The hooks: what the router asks of this plugin.

Owns the options and who makes what. Must not know the SDK.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, field

from kars_plugin_otel import options as reading
from kars_plugin_otel.calls import CallGovernor, Calls, ContextTransformer
from kars_plugin_otel.records import RecordSink, session_event
from kars_plugin_otel.running import Running
from kars_router.errors import PluginError
from kars_router.hookspecs import AuditSink, Governor, Transformer, hookimpl
from kars_router.model import SessionInfo


@define(eq=False)
class OtelPlugin:
    """Sends what the router does to an OpenTelemetry collector.

    Attributes:
        calls: the calls that have not ended, and the SDK.
    """

    calls: Calls = field(factory=lambda: Calls(Running()))

    @hookimpl
    def kars_configure(self, options: Mapping[str, Any]) -> None:
        """Takes `plugins.options.otel` and the environment.

        Args:
            options: `signals`, `endpoint`, `content`, `continueAgents`.

        Raises:
            PluginError: an option, or a variable of the environment, cannot be used.
        """
        self.calls.options = self.calls.running.options = reading.read(options, os.environ)

    @hookimpl
    def kars_governors(self) -> Sequence[Governor]:
        """One that has no opinion, if calls are traced or measured.

        Raises:
            PluginError: the SDK refuses a variable of the environment.
        """
        if not self._sends("traces", "metrics"):
            return []
        governor = CallGovernor(self.calls)
        self._acquire(governor)
        return [governor]

    @hookimpl(trylast=True)
    def kars_transformers(self) -> Sequence[Transformer]:
        """One that passes the trace context on, if calls are traced."""
        return [ContextTransformer(self.calls)] if self._sends("traces") else []

    @hookimpl
    def kars_audit_sinks(self) -> Sequence[AuditSink]:
        """One that sends audit records, if logs are sent.

        Raises:
            PluginError: the SDK refuses a variable of the environment.
        """
        if not self._sends("logs"):
            return []
        sink = RecordSink(self.calls)
        self._acquire(sink)
        return [sink]

    @hookimpl
    def kars_session_opened(self, session: SessionInfo) -> None:
        """Counts it."""
        self.calls.running.sessions.opened(session)
        if self.calls.running.meters is not None:
            self.calls.running.meters.opened(session)

    @hookimpl
    def kars_session_lost(self, session: SessionInfo, reason: str) -> None:
        """Counts it, and writes a log record."""
        if self.calls.running.meters is not None:
            self.calls.running.meters.lost(session)
        session_event(self.calls, "kars.session.lost", session, reason)

    @hookimpl
    def kars_session_restored(self, session: SessionInfo, reason: str) -> None:
        """Counts it, and writes a log record."""
        if self.calls.running.meters is not None:
            self.calls.running.meters.restored(session)
        session_event(self.calls, "kars.session.restored", session, reason)

    @hookimpl
    def kars_session_closed(self, session: SessionInfo) -> None:
        """Measures how long it lived."""
        seconds = self.calls.running.sessions.closed(session)
        if self.calls.running.meters is not None and seconds is not None:
            self.calls.running.meters.closed(session, seconds)

    def _sends(self, *signals: str) -> bool:
        return not self.calls.options.signals.isdisjoint(signals)

    def _acquire(self, user: object) -> None:
        try:
            self.calls.running.acquire(user)
        except ValueError as error:
            raise PluginError(f"otel: {error}") from error
