"""The calls: a span for each, made by a governor without an opinion.

A transformer passes the span's context on to the server. Owns the spans of calls that have not
ended, and the contexts of those that lately did, so that audit records find theirs. Must not know
the SDK.

Source: OpenTelemetry GenAI semantic conventions, "MCP / Server"; MCP SEP-414.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from attrs import define, field
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

from kars_plugin_otel import attributes
from kars_plugin_otel.context import extract, inject
from kars_plugin_otel.options import Options
from kars_plugin_otel.running import Running
from kars_router.model import CallEnd, GovernedCall

_MOST_ENDED: Final = 4096
_EMPTY: Final = Context()


@define(eq=False)
class Calls:
    """The calls of one router; outlives the governors, which are made anew with each policy.

    Attributes:
        running: the SDK, while there is one.
        options: the plugin's options.
    """

    running: Running
    options: Options = field(factory=Options)
    _open: dict[str, Span] = field(factory=dict, init=False)
    _ended: OrderedDict[str, Context] = field(factory=OrderedDict, init=False)

    def begin(self, call: GovernedCall) -> None:
        """Starts a call's span, at the time when the call came."""
        export = self.running.export
        if export is None or export.tracer is None:
            return
        parent = extract(call.params)
        links = []
        if not self.options.continue_agents:
            theirs = trace.get_current_span(parent).get_span_context()
            links = [Link(theirs)] if theirs.is_valid else []
            parent = _EMPTY
        self._open[call.id] = export.tracer.start_span(
            attributes.span_name(call),
            context=parent,
            kind=SpanKind.SERVER,
            attributes=attributes.of_call(call, content=self.options.content),
            links=links,
            start_time=round(call.time * 1e9) if call.time > 0 else None,
        )

    def end(self, call: GovernedCall, end: CallEnd) -> None:
        """Ends its span, and measures the call."""
        span = self._open.pop(call.id, None)
        context = _EMPTY
        if span is not None:
            context = trace.set_span_in_context(span, _EMPTY)
            self._ended[call.id] = context
            while len(self._ended) > _MOST_ENDED:
                self._ended.popitem(last=False)
            if span.is_recording():
                how = attributes.of_end(end)
                span.set_attributes({**how, **attributes.of_decision(end)})
                if "error.type" in how:
                    said = attributes.error_message(end) if self.options.content else ""
                    span.set_status(Status(StatusCode.ERROR, said or end.code))
            span.end()
        if self.running.meters is not None:
            self.running.meters.ended(call, end, context)

    def context(self, call_id: str) -> Context:
        """The context of a call's span; an empty one if it has or had none."""
        if (span := self._open.get(call_id)) is not None:
            return trace.set_span_in_context(span, _EMPTY)
        return self._ended.get(call_id, _EMPTY)


@define(eq=False)
class CallGovernor:
    """Has no opinion; sees calls begin and end."""

    calls: Calls

    async def before_call(self, call: GovernedCall) -> None:
        """See `Governor.before_call`: always None."""
        self.calls.begin(call)

    async def after_call(self, call: GovernedCall, end: CallEnd) -> None:
        """See `Governor.after_call`: always None."""
        self.calls.end(call, end)

    async def aclose(self) -> None:
        """Has everything exported, if this was the last that used the SDK; within two seconds."""
        await self.calls.running.release(self)


@define(eq=False)
class ContextTransformer:
    """Makes the router's span the parent of whatever the server does."""

    calls: Calls

    def outgoing(self, call: GovernedCall) -> bytes:
        """The params with the trace context of the call's span; as they came if it has none."""
        return inject(call.params, self.calls.context(call.id))

    def incoming(self, call: GovernedCall, body: bytes) -> bytes:  # noqa: ARG002 - the interface
        """Nothing is changed on the way back."""
        return body
