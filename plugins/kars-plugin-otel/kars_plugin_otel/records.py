"""Audit records as OpenTelemetry log records.

Owns how a record is written as one. Must not know the SDK, nor more of the journal's format than
the few fields that it lifts into attributes.

Source: OpenTelemetry "Logs Data Model".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from attrs import define
from opentelemetry._logs import LogRecord, SeverityNumber

from kars_plugin_otel import attributes
from kars_plugin_otel.calls import Calls
from kars_router.model import SessionInfo

EVENT: Final = "kars.audit"
# Of these a record's attributes are made, for looking things up; all else is in its body.
_LIFTED: Final = {
    "event": "kars.audit.event",
    "seq": "kars.audit.seq",
    "call": "kars.call.id",
    "agent": "mcp.session.id",
    "server": "kars.server",
    "method": "mcp.method.name",
    "fate": "kars.fate",
    "code": "kars.code",
}


@define(eq=False)
class RecordSink:
    """Copies audit records to the collector; they wait in the SDK's queue until they are sent."""

    calls: Calls

    async def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        """See `AuditSink.write`; never waits. A queue that is full loses its oldest records."""
        export = self.calls.running.export
        if export is None or export.logger is None:
            return
        for record in records:
            lifted = {
                name: value
                for key, name in _LIFTED.items()
                if isinstance(value := attributes.any_value(record.get(key)), str | int)
            }
            doubtful = record.get("fate") == "unknown"
            export.logger.emit(
                LogRecord(
                    timestamp=_nanoseconds(record.get("time")),
                    context=self.calls.context(str(record.get("call", ""))),
                    severity_number=SeverityNumber.WARN if doubtful else SeverityNumber.INFO,
                    severity_text="WARN" if doubtful else "INFO",
                    body=attributes.any_value(record),
                    attributes=lifted,
                    event_name=EVENT,
                )
            )

    async def aclose(self) -> None:
        """See `AuditSink.aclose`."""
        await self.calls.running.release(self)


def session_event(calls: Calls, name: str, session: SessionInfo, reason: str) -> None:
    """Writes that something befell an upstream session.

    Args:
        calls: where the SDK is.
        name: the event's name.
        session: the session.
        reason: one clause.
    """
    export = calls.running.export
    if export is None or export.logger is None:
        return
    export.logger.emit(
        LogRecord(
            severity_number=SeverityNumber.WARN,
            severity_text="WARN",
            body=attributes.text(reason),
            attributes={
                "kars.server": session.server,
                "kars.session.key": attributes.text(session.key),
                "kars.session.generation": session.generation,
                "mcp.session.id": attributes.text(session.agent),
            },
            event_name=name,
        )
    )


def _nanoseconds(value: Any) -> int | None:
    """A record's time, in seconds or in ISO 8601, in nanoseconds of Unix time."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return round(value * 1e9)
    if isinstance(value, str):
        try:
            return round(datetime.fromisoformat(value).timestamp() * 1e9)
        except ValueError:
            return None
    return None
