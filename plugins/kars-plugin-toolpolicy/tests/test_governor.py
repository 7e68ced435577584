from __future__ import annotations

from kars_plugin_toolpolicy.engine import Engine
from kars_plugin_toolpolicy.governor import PolicyGovernor
from kars_plugin_toolpolicy.limits import Limits
from kars_plugin_toolpolicy.store import Store
from kars_plugin_toolpolicy.testing import call, policies, said

from kars_router.model import CallEnd, Decision, Fate, Ruling

SPEC = {
    "name": "p",
    "rules": [
        {"name": "yes", "effect": "allow", "tools": ["a"]},
        {"name": "ask", "effect": "approve", "tools": ["b"]},
    ],
    "rateLimits": [{"name": "one", "concurrency": 1}],
}
DONE = CallEnd(decision=Decision(ruling=Ruling.ALLOW), fate=Fate.EXECUTED)


def governor() -> PolicyGovernor:
    engine = Engine.of(policies(SPEC))
    return PolicyGovernor(engine, Limits(engine.settings, Store.open(None)))


async def test_what_rules_let_through_has_to_pass_the_limits() -> None:
    both = governor()
    assert said(await both.before_call(call(tool="a", id="1"))) == "allow p/yes"
    full = await both.before_call(call(tool="b", id="2"))
    assert full is not None
    assert (full.ruling, full.code) == (Ruling.DENY, "too_many_calls")


async def test_what_rules_deny_takes_nothing_of_a_limit() -> None:
    both = governor()
    assert said(await both.before_call(call(tool="c", id="1"))) == "deny p/default"
    assert said(await both.before_call(call(tool="b", id="2"))) == "approve p/ask"


async def test_the_end_of_a_call_gives_back_what_it_held() -> None:
    both = governor()
    first = call(tool="a", id="1")
    await both.before_call(first)
    assert await both.after_call(first, DONE) is None
    assert said(await both.before_call(call(tool="a", id="2"))) == "allow p/yes"


async def test_the_end_of_a_denied_call_gives_back_nothing() -> None:
    both = governor()
    await both.before_call(call(tool="a", id="1"))
    denied = call(tool="c", id="2")
    await both.before_call(denied)
    await both.after_call(denied, DONE)
    held = await both.before_call(call(tool="a", id="3"))
    assert held is not None
    assert held.code == "too_many_calls"


async def test_steps_are_plain_data() -> None:
    both = governor()
    assert both.explain(call(tool="b"))[1] == {
        "rule": "p/ask",
        "effect": "approve",
        "matched": True,
        "why": "",
    }
    await both.aclose()
