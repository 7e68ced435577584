from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from attrs import define
from trio.testing import MockClock

from kars_router.errors import PluginError
from kars_router.hookspecs import hookimpl
from kars_router.model import CallEnd, Decision, Fate, GovernedCall, Ruling
from kars_router.testing import call_end, decide, governed_call, plugin_host


@define(eq=False)
class Opinion:
    """A governor that says what it is told, after a while."""

    said: Any
    after: float = 0

    async def before_call(self, call: GovernedCall) -> Decision | None:
        await trio.sleep(self.after)
        if isinstance(self.said, Exception):
            raise self.said
        answer: Decision | None = self.said
        return answer

    async def after_call(self, call: GovernedCall, end: CallEnd) -> Decision | None:
        return None

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize(
    ("said", "ruling", "code"),
    [
        (None, Ruling.ALLOW, "ok"),
        (Decision(ruling=Ruling.APPROVE), Ruling.APPROVE, "denied"),
        (Decision(ruling=Ruling.DENY, code="mine"), Ruling.DENY, "mine"),
        (ValueError("broken"), Ruling.DENY, "policy_error"),
        ("no decision", Ruling.DENY, "policy_error"),
    ],
)
async def test_a_governors_opinion_is_what_the_router_makes_of_it(
    said: Any, ruling: Ruling, code: str
) -> None:
    decision = await decide(Opinion(said), governed_call())
    assert (decision.ruling, decision.code) == (ruling, code)


async def test_a_governor_that_takes_too_long_denies(autojump_clock: MockClock) -> None:
    slow = Opinion(None, after=3)
    assert (await decide(slow, governed_call())).ruling is Ruling.DENY
    assert (await decide(slow, governed_call(), seconds=4)).ruling is Ruling.ALLOW


def test_a_call_agrees_with_its_params() -> None:
    call = governed_call("echo", {"n": [1]}, meta={"traceparent": "x"}, server="box", time=7.0)
    assert json.loads(call.params) == {
        "name": "echo",
        "arguments": {"n": [1]},
        "_meta": {"traceparent": "x"},
    }
    assert (call.name, call.arguments, call.method) == ("echo", {"n": [1]}, "tools/call")
    assert (call.server, call.time, call.agent) == ("box", 7.0, "agent")
    assert governed_call().id != governed_call().id


def test_what_is_read_has_a_uri() -> None:
    call = governed_call("file:///a", method="resources/read")
    assert json.loads(call.params) == {"uri": "file:///a"}
    assert governed_call("x", params=b"[]").params == b"[]"


def test_an_attribute_that_there_is_not_is_a_mistake() -> None:
    with pytest.raises(TypeError):
        governed_call(tool="x")
    with pytest.raises(TypeError):
        call_end(fait="executed")


def test_an_end_is_good_unless_told_otherwise() -> None:
    assert call_end() == CallEnd(decision=Decision(ruling=Ruling.ALLOW), fate=Fate.EXECUTED)
    assert call_end(result={"n": 1}, error=b"{}") == call_end(result=b'{"n":1}', error=b"{}")
    assert call_end(fate=Fate.UNKNOWN, code="x").code == "x"


def test_a_host_has_the_plugin_and_nothing_else() -> None:
    class Plugin:
        options: Any = None

        @hookimpl
        def kars_configure(self, options: Any) -> None:
            self.options = options

    plugin = Plugin()
    host = plugin_host(plugin, name="mine", options={"a": 1})
    assert [(entry.name, entry.hooks) for entry in host.entries()] == [
        ("mine", ("kars_configure",))
    ]
    assert plugin.options == {"a": 1}


def test_a_plugin_that_does_not_fit_is_refused() -> None:
    def kars_session_opened(surprise: Any) -> None:
        pass

    module = SimpleNamespace(kars_session_opened=hookimpl(kars_session_opened))
    with pytest.raises(PluginError, match="surprise"):
        plugin_host(module)
