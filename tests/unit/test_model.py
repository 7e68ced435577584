from __future__ import annotations

import msgspec
import pytest
from rich.pretty import pretty_repr

from kars_router.model import CallOutcome, Discreet, Fate, ToolCall
from kars_router.session.pending import Pending
from kars_router.session.requests import Request
from kars_router.wire import jsonrpc

SECRET = b'{"password":"hunter2"}'
CALL = ToolCall(agent="a1", server="box", tool="open", params=SECRET, client="shell")
REST = "message='', retryable=False, reset=None, retry_after=None"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (CALL, "ToolCall(agent='a1', server='box', tool='open', client='shell')"),
        (
            Request(agent="a1", server="box", method="ping", params=SECRET, call=CALL),
            f"Request(agent='a1', server='box', method='ping', call={CALL!r}, before_send=None)",
        ),
        (
            CallOutcome(fate=Fate.EXECUTED, result=SECRET, error=SECRET),
            f"CallOutcome(fate={Fate.EXECUTED!r}, code='ok', {REST})",
        ),
    ],
)
def test_a_value_on_its_way_does_not_show_what_is_said_with_it(value: Discreet, said: str) -> None:
    assert repr(value) == said
    shown = pretty_repr(value, max_width=1000)  # a traceback of rich, for one
    assert shown == said


async def test_nor_does_a_request_that_was_sent() -> None:
    pending = Pending(b"7", "tools/call", jsonrpc.request(b"7", "tools/call", SECRET))
    assert repr(pending).startswith("Pending(ident=b'7', method='tools/call', delivery=")
    assert "hunter2" not in repr(pending)


def test_a_call_cannot_be_changed_but_copied_with_a_change() -> None:
    with pytest.raises(AttributeError):
        CALL.tool = "close"  # type: ignore[misc]
    other = msgspec.structs.replace(CALL, tool="close")
    assert (other.tool, other.params, CALL.tool) == ("close", SECRET, "open")
    assert other != CALL == msgspec.structs.replace(other, tool="open")
